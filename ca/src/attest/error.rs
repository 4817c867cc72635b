//! Why evidence proves nothing.

use std::net::IpAddr;
use std::path::PathBuf;

use identity::device::DeviceError;
use identity::jwt::JwtError;
use tonic::Code;

use crate::jwks_file::{JwksFile, KeysError, Unverified};
use crate::service_account::TokenError;

/// Why a node is not believed. Texts go to strangers: they say which rule was broken and no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// Nobody here checks this kind of evidence.
    #[error("there is no attestor for this kind of evidence; known: {known}")]
    AttestorUnknown {
        /// Names.
        known: String,
    },
    /// The evidence is not what this attestor reads.
    #[error("the evidence {0}")]
    Malformed(&'static str),
    /// Too many at once.
    #[error("too many nodes attest at this moment; try again")]
    Busy,
    /// The challenge was not answered in time.
    #[error("the challenge was not answered")]
    Unanswered,
    /// The answer is not what this attestor reads.
    #[error("the answer to the challenge {0}")]
    AnswerMalformed(&'static str),
    /// A fact about the node cannot be a part of its ID.
    #[error("the field {field} is missing or cannot be a part of the node's ID")]
    NameUnusable {
        /// Which.
        field: String,
    },
    /// The join token was never made, or is used.
    #[error("the join token is not known, or was used before")]
    JoinTokenUnknown,
    /// The device certificate.
    #[error("{0}")]
    Device(#[source] DeviceError),
    /// The roots of devices cannot be read.
    #[error("the roots of device certificates cannot be read now")]
    RootsUnavailable,
    /// An SVID that may not be exchanged.
    #[error("the SVID may not be exchanged for a node's")]
    SvidNotExchangeable,
    /// Not the last SVID of a node that is known.
    #[error("the SVID is not the last one that was issued to this node, or the node is not known")]
    OldSvidUnknown,
    /// An SVID that ended too long ago.
    #[error("the SVID ended longer ago than nodes may be away")]
    OldSvidTooOld,
    /// Nobody here knows the cluster.
    #[error("the cluster is not one of those configured")]
    ClusterUnknown,
    /// Nobody here knows the issuer.
    #[error("the token's issuer is not one of those configured")]
    IssuerUnknown,
    /// The token.
    #[error("the token is refused: {0}")]
    Token(#[source] JwtError),
    /// The token of a service account that says nothing clear.
    #[error("{0}")]
    Account(#[source] TokenError),
    /// A service account that is no agent's.
    #[error("the service account is not on the list of those allowed to attest")]
    AccountNotAllowed,
    /// The token does not say where it is used.
    #[error("the token names no {0}")]
    Unbound(&'static str),
    /// A claim that must have certain values has another.
    #[error("the claim {claim} has none of the values that are asked for")]
    ClaimRefused {
        /// Which.
        claim: String,
    },
    /// Keys cannot be read now.
    #[error("the keys of the token's issuer cannot be read now")]
    KeysUnavailable {
        /// From where; not told to strangers.
        file: PathBuf,
        /// Why.
        #[source]
        source: KeysError,
    },
    /// A host that may not attest.
    #[error("the host name is malformed, or not one of those allowed to attest")]
    HostNotAllowed,
    /// A port that may not be called.
    #[error("the port is outside the allowed range")]
    PortNotAllowed,
    /// The name leads to an address that may not be called.
    #[error("the host name leads to an address that is not called: {0}")]
    AddressForbidden(IpAddr),
    /// The host gives no answer.
    #[error("the host cannot be reached: {0}")]
    HostUnreachable(&'static str),
    /// The host gives another answer than the challenge.
    #[error("the host does not answer with the challenge: {0}")]
    ChallengeWrong(&'static str),
}

impl AttestError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::AttestorUnknown { .. } => "ATTESTOR_UNKNOWN",
            Self::Malformed(_) | Self::AnswerMalformed(_) => "EVIDENCE_MALFORMED",
            Self::Busy => "ATTESTATION_BUSY",
            Self::Unanswered => "CHALLENGE_UNANSWERED",
            Self::NameUnusable { .. } => "NODE_NAME_UNUSABLE",
            Self::JoinTokenUnknown => "JOIN_TOKEN_UNKNOWN",
            Self::Device(error) => error.reason(),
            Self::RootsUnavailable => "DEVICE_ROOTS_UNAVAILABLE",
            Self::SvidNotExchangeable => "SVID_NOT_EXCHANGEABLE",
            Self::OldSvidUnknown => "OLD_SVID_UNKNOWN",
            Self::OldSvidTooOld => "OLD_SVID_TOO_OLD",
            Self::ClusterUnknown => "CLUSTER_UNKNOWN",
            Self::IssuerUnknown => "TOKEN_ISSUER_UNKNOWN",
            Self::Token(error) => error.reason(),
            Self::Account(error) => error.reason(),
            Self::AccountNotAllowed => "ACCOUNT_NOT_ALLOWED",
            Self::Unbound(_) => "TOKEN_UNBOUND",
            Self::ClaimRefused { .. } => "CLAIM_REFUSED",
            Self::KeysUnavailable { .. } => "TOKEN_KEYS_UNAVAILABLE",
            Self::HostNotAllowed => "HOST_NOT_ALLOWED",
            Self::PortNotAllowed => "PORT_NOT_ALLOWED",
            Self::AddressForbidden(_) => "ADDRESS_FORBIDDEN",
            Self::HostUnreachable(_) => "HOST_UNREACHABLE",
            Self::ChallengeWrong(_) => "CHALLENGE_WRONG",
        }
    }

    /// The gRPC code: what may go away by itself is `Unavailable`, what cannot be read `InvalidArgument`.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Busy | Self::RootsUnavailable | Self::KeysUnavailable { .. } | Self::HostUnreachable(_) => {
                Code::Unavailable
            }
            Self::AttestorUnknown { .. } | Self::Malformed(_) | Self::AnswerMalformed(_) | Self::JoinTokenUnknown => {
                Code::InvalidArgument
            }
            _ => Code::PermissionDenied,
        }
    }

    pub(super) fn of(keys: &JwksFile, why: Unverified) -> Self {
        match why {
            Unverified::Token(error) => Self::Token(error),
            Unverified::Keys(source) => Self::KeysUnavailable { file: keys.path().to_owned(), source },
        }
    }
}
