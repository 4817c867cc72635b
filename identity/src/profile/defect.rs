//! The names of what can be wrong with a certificate.

use std::fmt;

use crate::reason::REASONS;

/// Who cares about a defect. The order is from what everybody refuses to what only some do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Path validation (RFC 5280, section 6) or the X.509-SVID standard refuses it.
    Path,
    /// The certificate profile (RFC 5280, section 4) forbids it.
    Profile,
    /// The baseline requirements of web PKI forbid it.
    Web,
    /// The profile forbids it, but certificates in honest use have it, so that only a linter speaks of it.
    Lint,
}

/// One thing that is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is explained under its code in REASONS")]
pub enum Defect {
    TooLong,
    Malformed,
    Version,
    Serial,
    AlgorithmMismatch,
    AlgorithmParameters,
    AlgorithmWeak,
    IssuerEmpty,
    SubjectEmpty,
    TimeEncoding,
    ValidityReversed,
    UniqueId,
    KeyRefused,
    KeySizeOdd,
    ExtensionMalformed,
    ExtensionTwice,
    ExtensionUnknownCritical,
    ExtensionCriticality,
    AuthorityKeyIdMissing,
    AuthorityKeyIdOfRoot,
    SubjectKeyIdMissing,
    KeyUsageMissing,
    KeyUsageNotCritical,
    KeyUsageEmpty,
    KeyUsageNoCertSign,
    KeyUsageCertSign,
    LeafIsAuthority,
    NotAuthority,
    BasicConstraintsNotCritical,
    PathLength,
    NameConstraintsInLeaf,
    NameConstraintsNotCritical,
    NameConstraintsEmpty,
    NameConstraintsMalformed,
    PolicyConstraints,
    ExtendedKeyUsageCritical,
    ExtendedKeyUsageOfRoot,
    ExtendedKeyUsageAny,
    NamesEmpty,
    NamesAbsent,
    NamesMissing,
    NamesNotCritical,
    NamesCritical,
    NameMalformed,
    NameUnderscore,
    NameTooWide,
    CommonName,
    SvidIdMissing,
    SvidIdTwice,
    SvidIdInvalid,
    SvidIdWithoutPath,
    SvidAuthorityIdWithPath,
    SvidKeyUsage,
    SvidExtendedKeyUsage,
}

impl Defect {
    /// The reason code.
    pub fn code(self) -> &'static str {
        self.facts().0
    }

    /// Who cares.
    pub fn grade(self) -> Grade {
        self.facts().1
    }

    fn facts(self) -> (&'static str, Grade) {
        use Grade::{Lint, Path, Profile, Web};
        match self {
            Self::TooLong => ("CERT_TOO_LONG", Path),
            Self::Malformed => ("CERT_MALFORMED", Path),
            Self::Version => ("CERT_VERSION", Path),
            Self::Serial => ("CERT_SERIAL", Profile),
            Self::AlgorithmMismatch => ("CERT_ALGORITHM_MISMATCH", Path),
            Self::AlgorithmParameters => ("CERT_ALGORITHM_PARAMETERS", Profile),
            Self::AlgorithmWeak => ("CERT_ALGORITHM_WEAK", Path),
            Self::IssuerEmpty => ("CERT_ISSUER_EMPTY", Path),
            Self::SubjectEmpty => ("CERT_SUBJECT_EMPTY", Profile),
            Self::TimeEncoding => ("CERT_TIME_ENCODING", Profile),
            Self::ValidityReversed => ("CERT_VALIDITY_REVERSED", Path),
            Self::UniqueId => ("CERT_UNIQUE_ID", Profile),
            Self::KeyRefused => ("CERT_KEY_REFUSED", Path),
            Self::KeySizeOdd => ("CERT_KEY_SIZE_ODD", Web),
            Self::ExtensionMalformed => ("CERT_EXTENSION_MALFORMED", Path),
            Self::ExtensionTwice => ("CERT_EXTENSION_TWICE", Path),
            Self::ExtensionUnknownCritical => ("CERT_EXTENSION_UNKNOWN_CRITICAL", Path),
            Self::ExtensionCriticality => ("CERT_EXTENSION_CRITICALITY", Profile),
            Self::AuthorityKeyIdMissing => ("CERT_AKI_MISSING", Profile),
            Self::AuthorityKeyIdOfRoot => ("CERT_AKI_OF_ROOT", Web),
            Self::SubjectKeyIdMissing => ("CERT_SKI_MISSING", Profile),
            Self::KeyUsageMissing => ("CERT_KEY_USAGE_MISSING", Profile),
            Self::KeyUsageNotCritical => ("CERT_KEY_USAGE_NOT_CRITICAL", Lint),
            Self::KeyUsageEmpty => ("CERT_KEY_USAGE_EMPTY", Profile),
            Self::KeyUsageNoCertSign => ("CERT_KEY_USAGE_NO_CERT_SIGN", Path),
            Self::KeyUsageCertSign => ("CERT_KEY_USAGE_CERT_SIGN", Path),
            Self::LeafIsAuthority => ("CERT_LEAF_IS_AUTHORITY", Path),
            Self::NotAuthority => ("CERT_NOT_AUTHORITY", Path),
            Self::BasicConstraintsNotCritical => ("CERT_BASIC_CONSTRAINTS_NOT_CRITICAL", Profile),
            Self::PathLength => ("CERT_PATH_LENGTH", Profile),
            Self::NameConstraintsInLeaf => ("CERT_NAME_CONSTRAINTS_IN_LEAF", Profile),
            Self::NameConstraintsNotCritical => ("CERT_NAME_CONSTRAINTS_NOT_CRITICAL", Lint),
            Self::NameConstraintsEmpty => ("CERT_NAME_CONSTRAINTS_EMPTY", Profile),
            Self::NameConstraintsMalformed => ("CERT_NAME_CONSTRAINTS_MALFORMED", Profile),
            Self::ExtendedKeyUsageAny => ("CERT_EXTENDED_KEY_USAGE_ANY", Web),
            Self::PolicyConstraints => ("CERT_POLICY_CONSTRAINTS", Profile),
            Self::ExtendedKeyUsageCritical => ("CERT_EXTENDED_KEY_USAGE_CRITICAL", Web),
            Self::ExtendedKeyUsageOfRoot => ("CERT_EXTENDED_KEY_USAGE_OF_ROOT", Web),
            Self::NamesEmpty => ("CERT_NAMES_EMPTY", Path),
            Self::NamesAbsent => ("CERT_NAMES_ABSENT", Web),
            Self::NamesMissing => ("CERT_NAMES_MISSING", Profile),
            Self::NamesNotCritical => ("CERT_NAMES_NOT_CRITICAL", Profile),
            Self::NamesCritical => ("CERT_NAMES_CRITICAL", Web),
            Self::NameTooWide => ("CERT_NAME_TOO_WIDE", Web),
            Self::NameMalformed => ("CERT_NAME_MALFORMED", Profile),
            Self::NameUnderscore => ("CERT_NAME_UNDERSCORE", Profile),
            Self::CommonName => ("CERT_COMMON_NAME", Web),
            Self::SvidIdMissing => ("SVID_ID_MISSING", Path),
            Self::SvidIdTwice => ("SVID_ID_TWICE", Path),
            Self::SvidIdInvalid => ("SVID_ID_INVALID", Path),
            Self::SvidIdWithoutPath => ("SVID_ID_WITHOUT_PATH", Path),
            Self::SvidAuthorityIdWithPath => ("SVID_AUTHORITY_ID_WITH_PATH", Path),
            Self::SvidKeyUsage => ("SVID_KEY_USAGE", Path),
            Self::SvidExtendedKeyUsage => ("SVID_EXTENDED_KEY_USAGE", Path),
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doc = REASONS.iter().find(|doc| doc.code == self.code());
        f.write_str(doc.map_or_else(|| self.code(), |doc| doc.cause))
    }
}

impl std::error::Error for Defect {}
