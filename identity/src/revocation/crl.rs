//! One certificate revocation list.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use super::{Issuer, without_zeros};
use crate::der::{self, Element, NotDer, Reader};
use crate::profile::shape::{self, Extension, oid};
use crate::profile::{self, AuthorityKeyId};
use crate::signed::Signed;
use crate::{digest, pem, time_from_secs};

/// A decoded list. Whether its signature is good is asked when an issuer is at hand.
#[derive(Clone)]
pub struct Crl {
    der: Vec<u8>,
    pub(super) issuer_name: Vec<u8>,
    pub(super) authority_key_id: Option<Vec<u8>>,
    /// The issuing distribution point as it is written, of a list for a part of the issuer's certificates.
    pub(super) distribution_point: Option<Vec<u8>>,
    /// Without leading zeros.
    number: Vec<u8>,
    this_update: SystemTime,
    next_update: SystemTime,
    revoked: BTreeMap<Box<[u8]>, RevokedCertificate>,
}

/// What a list says of one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// Since when it is revoked.
    pub at: SystemTime,
    /// Why, if the list says so.
    pub reason: Option<RevocationReason>,
}

/// Why a certificate was revoked (RFC 5280, section 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the standard's")]
pub enum RevocationReason {
    Unspecified,
    KeyCompromise,
    CaCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    CertificateHold,
    PrivilegeWithdrawn,
    AaCompromise,
}

impl RevocationReason {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 9] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::CaCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
        Self::CertificateHold,
        Self::PrivilegeWithdrawn,
        Self::AaCompromise,
    ];

    /// The CRLReason of RFC 5280, section 5.3.1.
    pub fn code(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::CaCompromise => 2,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::CertificateHold => 6,
            Self::PrivilegeWithdrawn => 9,
            Self::AaCompromise => 10,
        }
    }

    /// The name of RFC 5280, such as `keyCompromise`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "keyCompromise",
            Self::CaCompromise => "cACompromise",
            Self::AffiliationChanged => "affiliationChanged",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessationOfOperation",
            Self::CertificateHold => "certificateHold",
            Self::PrivilegeWithdrawn => "privilegeWithdrawn",
            Self::AaCompromise => "aACompromise",
        }
    }

    /// The reason of a name (hyphens and case do not count) or code.
    pub fn parse(text: &str) -> Option<Self> {
        let plain: String = text.chars().filter(|c| *c != '-' && *c != '_').collect();
        let named = Self::ALL.into_iter().find(|reason| reason.name().eq_ignore_ascii_case(&plain));
        named.or_else(|| text.parse().ok().and_then(Self::from_code))
    }

    /// The reason of a CRLReason code; `None` for one that stands in no complete list.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Unspecified,
            1 => Self::KeyCompromise,
            2 => Self::CaCompromise,
            3 => Self::AffiliationChanged,
            4 => Self::Superseded,
            5 => Self::CessationOfOperation,
            6 => Self::CertificateHold,
            9 => Self::PrivilegeWithdrawn,
            10 => Self::AaCompromise,
            _ => return None, // 8 takes a certificate off a delta list; we read no delta lists.
        })
    }
}

impl Crl {
    /// Decodes a list in DER.
    pub fn decode(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > CRL_BYTES_MAX {
            return Err(CrlError::TooLong);
        }
        let parts = Parts::decode(der)?;
        if parts.inner_algorithm != parts.signed.algorithm {
            return Err(CrlError::Malformed);
        }
        let (authority_key_id, number) = read_extensions(&parts.extensions)?;
        let distribution_point = read_distribution_point(&parts.extensions)?;
        Ok(Self {
            der: der.to_vec(),
            issuer_name: parts.issuer.to_vec(),
            authority_key_id,
            distribution_point,
            number,
            this_update: time(&parts.this_update)?,
            next_update: time(&parts.next_update.ok_or(CrlError::NoNextUpdate)?)?,
            revoked: read_revoked(parts.revoked)?,
        })
    }

    /// Decodes every list of a PEM text.
    pub fn decode_pem(text: &[u8]) -> Result<Vec<Self>, CrlError> {
        let lists = pem::decode_crls(text).map_err(|_| CrlError::Malformed)?;
        lists.iter().map(|list| Self::decode(list)).collect()
    }

    /// The list's DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The CRL number, big-endian without leading zeros.
    pub fn number(&self) -> &[u8] {
        &self.number
    }

    /// When the list was made.
    pub fn this_update(&self) -> SystemTime {
        self.this_update
    }

    /// Until when the next list will have been made; later, this one is of no use.
    pub fn next_update(&self) -> SystemTime {
        self.next_update
    }

    /// The key identifier of the issuer, if the list names it.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.authority_key_id.as_deref()
    }

    /// Whether the list is for a part of its issuer's certificates only.
    pub fn is_partial(&self) -> bool {
        self.distribution_point.is_some()
    }

    /// How many certificates are revoked.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether no certificate is revoked.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// What the list says of a serial number (big-endian).
    pub fn find(&self, serial: &[u8]) -> Option<&RevokedCertificate> {
        self.revoked.get(without_zeros(serial))
    }

    /// Whether a certificate's key has signed this list and may do so. Nothing is said about the time.
    pub fn verify(&self, issuer: &rustls_pki_types::CertificateDer<'_>) -> Result<(), CrlError> {
        let issuer = Issuer::decode(issuer).ok_or(CrlError::Issuer)?;
        if issuer.name.as_ref() != self.issuer_name {
            return Err(CrlError::Issuer);
        }
        self.verify_by(&issuer)
    }

    pub(super) fn verify_by(&self, issuer: &Issuer) -> Result<(), CrlError> {
        if !Parts::decode(&self.der)?.signed.is_by(&issuer.spki) {
            return Err(CrlError::BadSignature);
        }
        if issuer.may_sign_lists { Ok(()) } else { Err(CrlError::IssuerMayNotSign) }
    }

    /// Whether the other list, of the same issuer, was made before this one.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        (self.number.len(), &self.number) > (other.number.len(), &other.number)
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crl")
            .field("number", &digest::serial_hex(&self.number))
            .field("revoked", &self.revoked.len())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Crl {}

/// The fields of a list as they are written.
struct Parts<'a> {
    signed: Signed<'a>,
    inner_algorithm: &'a [u8],
    issuer: &'a [u8],
    this_update: Element<'a>,
    next_update: Option<Element<'a>>,
    revoked: Option<Element<'a>>,
    extensions: Vec<Extension<'a>>,
}

impl<'a> Parts<'a> {
    fn decode(der: &'a [u8]) -> Result<Self, NotDer> {
        let mut list = Reader::whole(der, der::SEQUENCE)?;
        let tbs = list.take(der::SEQUENCE)?;
        let algorithm = list.take(der::SEQUENCE)?.content;
        let signature = der::bits(list.take(der::BIT_STRING)?.content)?;
        list.finish()?;
        let mut fields = tbs.reader();
        if fields.take(der::INTEGER)?.content != [VERSION_2] {
            return Err(NotDer);
        }
        let inner_algorithm = fields.take(der::SEQUENCE)?.content;
        let issuer = fields.take(der::SEQUENCE)?.content;
        let this_update = fields.next()?;
        let next_update = match fields.take_optional(der::UTC_TIME)? {
            Some(time) => Some(time),
            None => fields.take_optional(der::GENERALIZED_TIME)?,
        };
        let revoked = fields.take_optional(der::SEQUENCE)?;
        let extensions = match fields.take_optional(der::context_constructed(0))? {
            Some(wrapped) => shape::extensions(Reader::whole(wrapped.content, der::SEQUENCE)?)?,
            None => Vec::new(),
        };
        fields.finish()?;
        let signed = Signed { message: tbs.raw, algorithm, signature };
        Ok(Self { signed, inner_algorithm, issuer, this_update, next_update, revoked, extensions })
    }
}

/// The issuer's key identifier and the list's number. Extensions that change what the list means (indirect and delta
/// lists) are critical, and refused as everything critical that we do not know.
fn read_extensions(extensions: &[Extension<'_>]) -> Result<(Option<Vec<u8>>, Vec<u8>), CrlError> {
    check_extensions(extensions)?;
    let value = |oid: &[u8]| extensions.iter().find(|extension| extension.oid == oid).map(|extension| extension.value);
    let key_id = value(oid::AUTHORITY_KEY_ID).map(profile::authority_key_id).transpose()?;
    let key_id = key_id.and_then(|id: AuthorityKeyId<'_>| id.key_id).map(<[u8]>::to_vec);
    let mut reader = Reader::new(value(oid::CRL_NUMBER).ok_or(CrlError::NoNumber)?);
    let number = reader.take(der::INTEGER)?.content;
    reader.finish()?;
    let good = der::is_integer(number) && number[0] & 0x80 == 0 && number.len() <= NUMBER_BYTES_MAX;
    if good { Ok((key_id, without_zeros(number).to_vec())) } else { Err(CrlError::Malformed) }
}

/// No extension twice, none critical: those that may be critical are not supported, the others must not be.
fn check_extensions(extensions: &[Extension<'_>]) -> Result<(), CrlError> {
    for (at, extension) in extensions.iter().enumerate() {
        if extensions[..at].iter().any(|earlier| earlier.oid == extension.oid) {
            return Err(CrlError::Malformed);
        }
        if extension.critical && extension.oid != oid::ISSUING_DISTRIBUTION_POINT {
            return Err(CrlError::ExtensionUnsupported);
        }
    }
    Ok(())
}

/// The issuing distribution point (RFC 5280, section 5.2.5), which is critical. It may say where the list is, so that
/// lists for parts of an issuer's certificates can be told apart, and nothing else.
fn read_distribution_point(extensions: &[Extension<'_>]) -> Result<Option<Vec<u8>>, CrlError> {
    let Some(found) = extensions.iter().find(|extension| extension.oid == oid::ISSUING_DISTRIBUTION_POINT) else {
        return Ok(None);
    };
    let mut fields = Reader::whole(found.value, der::SEQUENCE)?;
    let named = fields.take_optional(der::context_constructed(0))?;
    match named {
        Some(name) if found.critical && fields.at_end() && !name.content.is_empty() => Ok(Some(found.value.to_vec())),
        _ => Err(CrlError::ExtensionUnsupported),
    }
}

fn read_revoked(list: Option<Element<'_>>) -> Result<BTreeMap<Box<[u8]>, RevokedCertificate>, CrlError> {
    let mut revoked = BTreeMap::new();
    let mut entries = list.as_ref().map_or_else(|| Reader::new(&[]), Element::reader);
    while !entries.at_end() {
        if revoked.len() == ENTRIES_MAX {
            return Err(CrlError::TooLong);
        }
        let mut entry = entries.take(der::SEQUENCE)?.reader();
        let serial = entry.take(der::INTEGER)?.content;
        let at = time(&entry.next()?)?;
        let reason = match entry.take_optional(der::SEQUENCE)? {
            Some(list) => read_reason(&shape::extensions(list.reader())?)?,
            None => None,
        };
        entry.finish()?;
        revoked.insert(without_zeros(serial).into(), RevokedCertificate { at, reason });
    }
    Ok(revoked)
}

fn read_reason(extensions: &[Extension<'_>]) -> Result<Option<RevocationReason>, CrlError> {
    check_extensions(extensions)?;
    if extensions.iter().any(|extension| extension.critical) {
        return Err(CrlError::ExtensionUnsupported);
    }
    let Some(extension) = extensions.iter().find(|extension| extension.oid == oid::REASON_CODE) else {
        return Ok(None);
    };
    let mut reader = Reader::new(extension.value);
    let code = reader.take(der::ENUMERATED)?.content;
    reader.finish()?;
    match code {
        [code] => RevocationReason::from_code(*code).map(Some).ok_or(CrlError::Malformed),
        _ => Err(CrlError::Malformed),
    }
}

fn time(element: &Element<'_>) -> Result<SystemTime, CrlError> {
    profile::unix_secs(element).map(time_from_secs).ok_or(CrlError::Malformed)
}

/// Why a list is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CrlError {
    /// Longer than a list may be.
    #[error("the revocation list is longer than {CRL_BYTES_MAX} bytes or {ENTRIES_MAX} entries")]
    TooLong,
    /// Not a well-formed list of version 2.
    #[error("the revocation list is malformed")]
    Malformed,
    /// The CRL number is missing, so that old and new lists cannot be told apart.
    #[error("the revocation list has no CRL number")]
    NoNumber,
    /// The next update is missing, so that the list would be good forever.
    #[error("the revocation list has no next update")]
    NoNextUpdate,
    /// A critical extension, such as those of indirect and delta lists.
    #[error("the revocation list has a critical extension, which is not supported")]
    ExtensionUnsupported,
    /// The certificate is not that of the list's issuer.
    #[error("the revocation list is by another issuer")]
    Issuer,
    /// The issuer's key has not signed it.
    #[error("the revocation list is not signed by its issuer")]
    BadSignature,
    /// The issuer's key usage lacks cRLSign.
    #[error("the issuer of the revocation list must not sign lists: its key usage lacks cRLSign")]
    IssuerMayNotSign,
    /// A list of the same issuer with the same or a higher number is known.
    #[error("the revocation list is not newer than the one that is known")]
    Older,
    /// More lists than one trust domain may have.
    #[error("a trust domain has at most {LISTS_MAX} revocation lists")]
    TooMany,
}

impl From<NotDer> for CrlError {
    fn from(_: NotDer) -> Self {
        Self::Malformed
    }
}

impl CrlError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong | Self::TooMany => "CRL_TOO_LONG",
            Self::Malformed => "CRL_MALFORMED",
            Self::NoNumber => "CRL_NO_NUMBER",
            Self::NoNextUpdate => "CRL_NO_NEXT_UPDATE",
            Self::ExtensionUnsupported => "CRL_EXTENSION_UNSUPPORTED",
            Self::Issuer => "CRL_WRONG_ISSUER",
            Self::BadSignature => "CRL_BAD_SIGNATURE",
            Self::IssuerMayNotSign => "CRL_ISSUER_MAY_NOT_SIGN",
            Self::Older => "CRL_OLDER",
        }
    }
}

/// The longest list read.
pub const CRL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The most certificates in one list.
pub const ENTRIES_MAX: usize = 250_000;

/// The most lists of one trust domain.
pub(super) const LISTS_MAX: usize = 64;

const VERSION_2: u8 = 1;
const NUMBER_BYTES_MAX: usize = 20;
