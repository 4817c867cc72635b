//! Every reason for which a request is refused, with its gRPC code and its stable reason code.
//!
//! A permanent refusal is never `Internal` or `Unavailable`: clients repeat those, so each refusal would cost several
//! requests. What goes away by itself is `Unavailable`.

use std::time::Duration;

use identity::authority::AuthorityError;
use identity::csr::CsrError;
use identity::spiffe_id::SpiffeIdError;
use identity::transparency::TransparencyError;
use identity::wit::WitError;
use prost::Message as _;
use proto::spire::api::types::PermissionDeniedDetails;
use proto::spire::api::types::permission_denied_details::Reason as DeniedReason;
use tonic::{Code, Status};

use crate::address_limits;
use crate::attest::AttestError;
use crate::authorities::{AuthoritiesError, StepError};
use crate::clock_watch::ClockJump;
use crate::policy::PolicyRefusal;
use crate::rights::Verb;
use crate::rotation::machine::Refused;
use crate::service_account::TokenError;
use crate::store::StoreError;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No client certificate where one is needed.
    #[error("authorization denied: the caller shows no client certificate")]
    CallerUnknown,
    /// The caller's address has used up its share.
    #[error("too many requests without a certificate, or too much that proves nothing, from this address; try again in {} s", wait.as_secs())]
    AddressLimited {
        /// How long until there is room again.
        wait: Duration,
    },
    /// The caller is no node.
    #[error("authorization denied: the caller is no agent")]
    CallerNotAgent,
    /// The caller is no administrator.
    #[error("authorization denied: {who} is no administrator and lacks the right `{verb}`")]
    CallerNotAdmin {
        /// The caller.
        who: String,
        /// What the call needs.
        verb: Verb,
    },
    /// The caller has some rights, but not this one, or not for this.
    #[error("authorization denied: {who} lacks the right `{verb}`{what}")]
    RightMissing {
        /// The caller.
        who: String,
        /// What the call needs.
        verb: Verb,
        /// For what, with a space in front; empty: at all.
        what: String,
    },
    /// A second person has to approve the call.
    #[error(
        "`{verb}` needs a second person: the request {id} waits; let somebody else run `kasbah ca approvals approve {id}`, then \
         do the same again within {minutes} minutes"
    )]
    ApprovalNeeded {
        /// What the call needs.
        verb: Verb,
        /// Of the request.
        id: String,
        /// How long it waits, from its making.
        minutes: u64,
    },
    /// As many requests wait as may.
    #[error("{} calls wait for approval already", crate::rights::approvals::APPROVALS_MAX)]
    ApprovalsFull,
    /// No such request, or none any more.
    #[error("no call with this id waits for approval")]
    ApprovalUnknown,
    /// Who asks does not approve.
    #[error("a call is approved by somebody else than who wants to make it")]
    ApprovalSamePerson,
    /// Approved already.
    #[error("the call is approved already")]
    ApprovalDecided,
    /// A message that cannot wait for approval.
    #[error("the request is too large")]
    MessageTooLarge,
    /// The caller is no server below this one.
    #[error("authorization denied: the caller's entry is not marked `downstream`")]
    CallerNotDownstream,
    /// The node is not known: never attested, or deleted.
    #[error("the agent is not attested, or was deleted")]
    AgentNotAttested,
    /// The node was banned.
    #[error("the agent is banned")]
    AgentBanned,
    /// The node's SVID ran out while its connection stayed open.
    #[error("the agent's SVID has expired")]
    AgentExpired,
    /// The node shows an SVID that it has replaced.
    #[error("the agent's SVID was replaced by a newer one")]
    AgentNotActive,
    /// The caller's certificate was revoked while its connection stayed open.
    #[error("the caller's certificate is revoked")]
    CertificateRevoked,
    /// A revocation that cannot be.
    #[error("{field}: {problem}")]
    Revocation {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// No such node.
    #[error("no such agent")]
    AgentUnknown,
    /// The first message of an attestation lacks something.
    #[error("attestation is incomplete: {0} is missing")]
    AttestationIncomplete(&'static str),
    /// The evidence of a node.
    #[error("{0}")]
    Attestation(#[source] AttestError),
    /// A node that trusted on first use comes a second time.
    #[error(
        "the node has attested before, and this attestor admits a node once; evict it with `kasbah node evict` first"
    )]
    AgentAlreadyAttested,
    /// The join token came too late.
    #[error("the join token has expired")]
    JoinTokenExpired,
    /// The token asked for cannot be made.
    #[error("the join token {0}")]
    JoinTokenInvalid(&'static str),
    /// The same token exists.
    #[error("a join token of this value exists")]
    JoinTokenExists,
    /// The CSR.
    #[error("{}", with_cause(.0))]
    Csr(#[source] CsrError),
    /// The key that a WIT-SVID shall name.
    #[error("{}", with_cause(.0))]
    WitKey(#[source] WitError),
    /// The CSR of an administrator names no single identity.
    #[error("the CSR must hold exactly one URI, the SPIFFE ID")]
    CsrNames,
    /// Not a SPIFFE ID.
    #[error("{field}: {source}")]
    Id {
        /// Where it stands.
        field: &'static str,
        /// What is wrong.
        #[source]
        source: SpiffeIdError,
    },
    /// An ID that belongs elsewhere, or to nobody.
    #[error("{field}: {problem}")]
    IdRefused {
        /// Where it stands.
        field: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// An entry that cannot be.
    #[error("{field}: {problem}")]
    Entry {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// No such entry.
    #[error("no such entry")]
    EntryUnknown,
    /// Another entry says the same.
    #[error("an entry that says the same exists")]
    EntryExists,
    /// Another entry has the id.
    #[error("the id is taken by another entry")]
    EntryIdTaken,
    /// The entry belongs to another node, or there is none: an agent is not told which.
    #[error("entry not found or not authorized")]
    EntryNotAuthorized,
    /// No audience, or too many.
    #[error("the audience {0}")]
    Audience(&'static str),
    /// A life that cannot be.
    #[error("the requested life must be positive")]
    Ttl,
    /// Too much at once.
    #[error("more than {0} items at once")]
    TooMany(usize),
    /// A filter that cannot be.
    #[error("the filter `{0}` is not understood")]
    Filter(&'static str),
    /// A bundle that cannot be.
    #[error("the bundle {0}")]
    Bundle(&'static str),
    /// No such bundle.
    #[error("no bundle of this trust domain is known")]
    BundleUnknown,
    /// The bundle exists.
    #[error("a bundle of this trust domain exists")]
    BundleExists,
    /// Entries federate with the trust domain.
    #[error("entries federate with this trust domain; delete or dissociate them first")]
    BundleInUse,
    /// A relationship that cannot be.
    #[error("{field}: {problem}")]
    Relationship {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// The relationship exists.
    #[error("a federation relationship with this trust domain exists")]
    RelationshipExists,
    /// As many as there may be.
    #[error("there are {} federation relationships, and no more are kept", crate::federation::RELATIONSHIPS_MAX)]
    RelationshipsFull,
    /// A foreign bundle was not fetched, or not taken.
    #[error("{text}")]
    Federation {
        /// The stable code.
        reason: &'static str,
        /// What went wrong.
        text: String,
        /// Whether it may go away by itself.
        passing: bool,
    },
    /// No such relationship.
    #[error("no federation relationship with this trust domain is known")]
    RelationshipUnknown,
    /// No or another kind of credential at the CSR API.
    #[error("request authentication failure")]
    Token(#[source] TokenError),
    /// Acting for others at the CSR API.
    #[error("request impersonation authentication failure")]
    Impersonation,
    /// A signer of Kubernetes at the CSR API.
    #[error("the metadata CertSigner names a signer, and there is none here; leave it empty")]
    CertSigner,
    /// No record of such an SVID, or none any more.
    #[error("no record of an SVID with this serial is kept")]
    IssuanceUnknown,
    /// A certificate that is not renewed by showing it.
    #[error("the certificate is not renewed: its identity must be asked for anew")]
    Renewal,
    /// Nothing to give a receipt of.
    #[error("no rotation of this kind is on record")]
    NoRotation,
    /// The issuance policy says no.
    #[error(transparent)]
    Policy(#[from] PolicyRefusal),
    /// The transparency log has no answer to that.
    #[error(transparent)]
    Log(#[from] TransparencyError),
    /// Not offered.
    #[error("{0} is not offered by this server")]
    NotOffered(&'static str),
    /// The state does not allow it.
    #[error("{0}")]
    NotNow(String),
    /// The authority cannot be tainted or revoked, or is not known.
    #[error("{0}")]
    AuthorityRefused(String),
    /// Nodes have not acknowledged what the step needs.
    #[error("{0}; wait for them, or waive them by name")]
    NotAcknowledged(String),
    /// The authorities cannot be changed.
    #[error("the authorities cannot be changed: {text}")]
    Authorities {
        /// The stable code.
        reason: &'static str,
        /// What went wrong.
        text: String,
    },
    /// An authority from elsewhere is not taken in.
    #[error("{text}")]
    Import {
        /// The stable code.
        reason: &'static str,
        /// What is wrong.
        text: String,
    },
    /// A private key is taken at the local socket alone.
    #[error("a private key is accepted at the local admin socket only")]
    NotLocal,
    /// The key is kept elsewhere.
    #[error("the keeper of the authority's key gives no signature; try again")]
    KeyUnavailable,
    /// The signature could not be made.
    #[error("the certificate cannot be signed")]
    Signing,
    /// The time of day.
    #[error(transparent)]
    Clock(#[from] ClockJump),
    /// The database.
    #[error("{}", stored(.0))]
    Store(#[from] StoreError),
}

impl Refusal {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CallerUnknown => "CLIENT_CERTIFICATE_MISSING",
            Self::AddressLimited { .. } => address_limits::REASON,
            Self::CallerNotAgent => "CALLER_NOT_AGENT",
            Self::CallerNotDownstream => "CALLER_NOT_DOWNSTREAM",
            Self::CallerNotAdmin { .. } => "CALLER_NOT_ADMIN",
            Self::RightMissing { .. } => "RIGHT_MISSING",
            Self::ApprovalNeeded { .. } => "APPROVAL_NEEDED",
            Self::ApprovalsFull => "APPROVALS_FULL",
            Self::ApprovalUnknown => "APPROVAL_UNKNOWN",
            Self::ApprovalSamePerson => "APPROVAL_SAME_PERSON",
            Self::ApprovalDecided => "APPROVAL_DECIDED",
            Self::MessageTooLarge => "REQUEST_TOO_LARGE",
            Self::AgentNotAttested => "AGENT_NOT_ATTESTED",
            Self::AgentBanned => "AGENT_BANNED",
            Self::AgentExpired => "AGENT_EXPIRED",
            Self::AgentNotActive => "AGENT_NOT_ACTIVE",
            Self::CertificateRevoked => "CERT_REVOKED",
            Self::Revocation { .. } => "REVOCATION_INVALID",
            Self::AgentUnknown => "AGENT_UNKNOWN",
            Self::AttestationIncomplete(_) => "ATTESTATION_INCOMPLETE",
            Self::Attestation(error) => error.reason(),
            Self::AgentAlreadyAttested => "AGENT_ALREADY_ATTESTED",
            Self::JoinTokenExpired => "JOIN_TOKEN_EXPIRED",
            Self::JoinTokenInvalid(_) => "JOIN_TOKEN_INVALID",
            Self::JoinTokenExists => "JOIN_TOKEN_EXISTS",
            Self::Csr(error) => error.reason(),
            Self::WitKey(error) => error.reason(),
            Self::CsrNames => "CSR_NAMES_REFUSED",
            Self::Id { source, .. } => source.reason(),
            Self::IdRefused { .. } => "SPIFFE_ID_REFUSED",
            Self::Entry { .. } => "ENTRY_INVALID",
            Self::EntryUnknown => "ENTRY_UNKNOWN",
            Self::EntryExists => "ENTRY_EXISTS",
            Self::EntryIdTaken => "ENTRY_ID_TAKEN",
            Self::EntryNotAuthorized => "ENTRY_NOT_AUTHORIZED",
            Self::Audience(_) => "AUDIENCE_INVALID",
            Self::Ttl => "TTL_INVALID",
            Self::TooMany(_) => "BATCH_TOO_LARGE",
            Self::Filter(_) => "FILTER_INVALID",
            Self::Bundle(_) => "BUNDLE_INVALID",
            Self::BundleUnknown => "BUNDLE_UNKNOWN",
            Self::BundleExists => "BUNDLE_EXISTS",
            Self::BundleInUse => "BUNDLE_IN_USE",
            Self::Relationship { .. } => "FEDERATION_INVALID",
            Self::RelationshipExists => "FEDERATION_EXISTS",
            Self::RelationshipsFull => "FEDERATION_FULL",
            Self::Federation { reason, .. } => reason,
            Self::RelationshipUnknown => "FEDERATION_UNKNOWN",
            Self::Token(error) => error.reason(),
            Self::Impersonation => "IMPERSONATION_REFUSED",
            Self::CertSigner => "CERT_SIGNER_UNKNOWN",
            Self::IssuanceUnknown => "ISSUANCE_UNKNOWN",
            Self::NoRotation => "ROTATION_UNKNOWN",
            Self::Renewal => "RENEWAL_REFUSED",
            Self::Policy(refusal) => refusal.reason(),
            Self::Log(error) => error.reason(),
            Self::NotOffered(_) => "NOT_OFFERED",
            Self::NotNow(_) => "AUTHORITY_STATE",
            Self::AuthorityRefused(_) => "AUTHORITY_REFUSED",
            Self::NotAcknowledged(_) => "ROTATION_NOT_ACKNOWLEDGED",
            Self::Authorities { reason, .. } => reason,
            Self::Import { reason, .. } => reason,
            Self::NotLocal => "CALLER_NOT_LOCAL",
            Self::KeyUnavailable => "AUTHORITY_KEY_UNAVAILABLE",
            Self::Signing => "SIGNING_FAILED",
            Self::Clock(_) => "CLOCK_JUMPED",
            Self::Store(error) => error.reason(),
        }
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::AddressLimited { .. }
            | Self::Policy(PolicyRefusal { retry_after: Some(_), .. })
            | Self::Store(StoreError::Busy)
            | Self::RelationshipsFull
            | Self::ApprovalsFull
            | Self::MessageTooLarge => Code::ResourceExhausted,
            Self::Policy(_)
            | Self::CallerUnknown
            | Self::CallerNotAgent
            | Self::CallerNotDownstream
            | Self::Renewal
            | Self::NotLocal
            | Self::CallerNotAdmin { .. }
            | Self::RightMissing { .. }
            | Self::ApprovalSamePerson
            | Self::AgentNotAttested
            | Self::AgentBanned
            | Self::AgentExpired
            | Self::AgentNotActive
            | Self::CertificateRevoked
            | Self::Store(StoreError::Revoked)
            | Self::AgentAlreadyAttested => Code::PermissionDenied,
            Self::Attestation(error) => error.code(),
            Self::AttestationIncomplete(_)
            | Self::JoinTokenExpired
            | Self::JoinTokenInvalid(_)
            | Self::Csr(_)
            | Self::WitKey(_)
            | Self::CsrNames
            | Self::Id { .. }
            | Self::IdRefused { .. }
            | Self::Entry { .. }
            | Self::Revocation { .. }
            | Self::Audience(_)
            | Self::Ttl
            | Self::TooMany(_)
            | Self::Filter(_)
            | Self::Bundle(_)
            | Self::Relationship { .. }
            | Self::Log(_)
            | Self::CertSigner
            | Self::Import { .. }
            | Self::AuthorityRefused(_) => Code::InvalidArgument,
            Self::AgentUnknown
            | Self::EntryUnknown
            | Self::EntryNotAuthorized
            | Self::IssuanceUnknown
            | Self::NoRotation
            | Self::BundleUnknown
            | Self::ApprovalUnknown
            | Self::RelationshipUnknown => Code::NotFound,
            Self::EntryExists
            | Self::EntryIdTaken
            | Self::BundleExists
            | Self::JoinTokenExists
            | Self::RelationshipExists => Code::AlreadyExists,
            Self::Federation { passing: true, .. } => Code::Unavailable,
            Self::Federation { .. }
            | Self::Store(StoreError::RevokedTooMany)
            | Self::BundleInUse
            | Self::ApprovalNeeded { .. }
            | Self::ApprovalDecided
            | Self::NotNow(_)
            | Self::NotAcknowledged(_) => Code::FailedPrecondition,
            Self::Token(TokenError::KeysUnavailable { .. }) => Code::Unavailable,
            Self::Token(_) | Self::Impersonation => Code::Unauthenticated,
            Self::NotOffered(_) => Code::Unimplemented,
            Self::KeyUnavailable | Self::Signing | Self::Clock(_) | Self::Store(_) | Self::Authorities { .. } => {
                Code::Unavailable
            }
        }
    }

    /// The same for one item of a batch, with the stable code at the end of its text.
    pub fn item_status(&self) -> proto::spire::api::types::Status {
        let message = runtime::refusal::item_text(self.reason(), &self.to_string());
        proto::spire::api::types::Status { code: self.code() as i32, message }
    }

    /// Whether a node showed something that proves nothing. Who it is was clear in other cases, or is not judged yet.
    pub(crate) fn disproves(&self) -> bool {
        match self {
            Self::Attestation(AttestError::OldSvidUnknown | AttestError::OldSvidTooOld) => false,
            Self::Attestation(error) => error.code() != Code::Unavailable,
            Self::Token(error) => !matches!(error, TokenError::KeysUnavailable { .. }),
            Self::AttestationIncomplete(_) | Self::JoinTokenExpired => true,
            _ => false,
        }
    }

    /// What an agent reads to know whether it must attest again.
    fn denied_reason(&self) -> Option<DeniedReason> {
        match self {
            Self::AgentNotAttested => Some(DeniedReason::AgentNotAttested),
            Self::AgentBanned => Some(DeniedReason::AgentBanned),
            Self::AgentExpired => Some(DeniedReason::AgentExpired),
            Self::AgentNotActive => Some(DeniedReason::AgentNotActive),
            _ => None,
        }
    }
}

/// What is for good is said as it is; everything else is worth another try.
fn stored(error: &StoreError) -> String {
    match error {
        StoreError::Revoked | StoreError::RevokedTooMany => error.to_string(),
        _ => "the request cannot be recorded; try again".to_owned(),
    }
}

impl From<AttestError> for Refusal {
    fn from(error: AttestError) -> Self {
        Self::Attestation(error)
    }
}

impl From<StepError> for Refusal {
    fn from(error: StepError) -> Self {
        let text = error.to_string();
        match error {
            StepError::Refused(refused) => match refused {
                Refused::Unknown(_) | Refused::IsActive | Refused::NotOld | Refused::NotTainted => {
                    Self::AuthorityRefused(text)
                }
                Refused::NotAcknowledged { .. } => Self::NotAcknowledged(text),
                Refused::NodeUnknown => Self::AgentUnknown,
                Refused::NotPrepared | Refused::AlreadyPrepared | Refused::TooMany | Refused::Ended | Refused::Idle => {
                    Self::NotNow(text)
                }
            },
            StepError::Busy => Self::Authorities { reason: "ROTATION_BUSY", text },
            StepError::Authorities(AuthoritiesError::Store(error)) => Self::Store(error),
            StepError::Authorities(AuthoritiesError::Offline) => Self::NotNow(text),
            StepError::Authorities(
                AuthoritiesError::X509(AuthorityError::KeyUnavailable) | AuthoritiesError::Keeper(_),
            ) => Self::KeyUnavailable,
            StepError::Authorities(error) if is_about_import(&error) => {
                Self::Import { reason: error.reason(), text: whole(&error) }
            }
            StepError::Authorities(error) => {
                tracing::error!(reason = error.reason(), error = ?error, "authorities not changed");
                Self::Authorities { reason: error.reason(), text }
            }
        }
    }
}

impl From<AuthoritiesError> for Refusal {
    fn from(error: AuthoritiesError) -> Self {
        StepError::Authorities(error).into()
    }
}

fn is_about_import(error: &AuthoritiesError) -> bool {
    use AuthoritiesError as Error;
    matches!(
        error,
        Error::Import(_)
            | Error::Key(_)
            | Error::KeyRefused(_)
            | Error::KeysMadeElsewhere(_)
            | Error::NoRequest
            | Error::RootKnown(_)
            | Error::Trial(_)
    )
}

/// An error with all its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let status = runtime::refusal::status(refusal.code(), refusal.reason(), refusal.to_string());
        if let Refusal::AddressLimited { wait } | Refusal::Policy(PolicyRefusal { retry_after: Some(wait), .. }) =
            &refusal
        {
            return with_detail(&status, RETRY_TYPE, &retry_info(*wait));
        }
        match refusal.denied_reason() {
            Some(reason) => with_denied_reason(&status, reason),
            None => status,
        }
    }
}

/// Adds SPIRE's own detail to those that the status has.
fn with_denied_reason(status: &Status, reason: DeniedReason) -> Status {
    with_detail(status, DENIED_TYPE, &PermissionDeniedDetails { reason: reason.into() })
}

/// When asking again makes sense, as `google.rpc.RetryInfo`.
fn retry_info(wait: Duration) -> tonic_types::pb::RetryInfo {
    let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(wait.subsec_nanos()).unwrap_or(0);
    tonic_types::pb::RetryInfo { retry_delay: Some(prost_types::Duration { seconds, nanos }) }
}

fn with_detail(status: &Status, type_url: &str, detail: &impl prost::Message) -> Status {
    let mut whole = tonic_types::Status::decode(status.details()).unwrap_or_default();
    whole.details.push(prost_types::Any { type_url: type_url.into(), value: detail.encode_to_vec() });
    Status::with_details(status.code(), status.message(), whole.encode_to_vec().into())
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

const RETRY_TYPE: &str = "type.googleapis.com/google.rpc.RetryInfo";
const DENIED_TYPE: &str = "type.googleapis.com/spire.api.types.PermissionDeniedDetails";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_agent_learns_why_in_both_forms() {
        let status = Status::from(Refusal::AgentBanned);
        assert_eq!(runtime::refusal::reason_of(&status).as_deref(), Some("AGENT_BANNED"));
        let whole = tonic_types::Status::decode(status.details()).unwrap();
        let detail = whole.details.iter().find(|detail| detail.type_url == DENIED_TYPE).unwrap();
        let detail = PermissionDeniedDetails::decode(detail.value.as_slice()).unwrap();
        assert_eq!(detail.reason(), DeniedReason::AgentBanned);
    }

    #[test]
    fn no_permanent_refusal_invites_a_repetition() {
        for refusal in
            [Refusal::Ttl, Refusal::CsrNames, Refusal::Impersonation, Refusal::CallerUnknown, Refusal::CertSigner]
        {
            let again = [Code::Internal, Code::Unavailable, Code::ResourceExhausted, Code::Aborted];
            assert!(!again.contains(&refusal.code()), "{refusal}");
        }
    }
}
