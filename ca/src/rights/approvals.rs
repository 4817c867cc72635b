//! The second person: a call of certain verbs is written down first, somebody else approves it, and the same caller's same
//! call then goes through, once.

use identity::digest;

use super::table::Call;
use super::{Verb, text};
use crate::api::{Api, Caller};
use crate::audit::Act;
use crate::refusal::Refusal;
use crate::store::{Approval, Asked};

/// The most requests that wait at once.
pub(crate) const APPROVALS_MAX: usize = 256;

/// Lets the call through when it is approved; writes it down as a request otherwise.
///
/// # Errors
/// That it waits, with its id; or why it cannot be asked for.
pub(super) async fn check(
    api: &Api,
    caller: &Caller,
    call: &'static Call,
    verb: Verb,
    message: &[u8],
) -> Result<(), Refusal> {
    let certifier = api.certifier();
    let (now, life) = (certifier.now_secs(), api.rights().approval_life());
    let approval = Approval {
        id: crate::random::uuid(),
        verb: verb.as_str().into(),
        call: call.path.into(),
        digest: digest_of(call, message),
        requester: caller.name(),
        source: caller.source.to_string(),
        request: text::of_request(call.path, message),
        approver: String::new(),
        requested_at: now,
        expires_at: now.saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX)),
    };
    let act =
        |action| Act::new(action, &approval.id).detail(format_args!("{verb}: {} {}", call.path, approval.request));
    let records =
        [certifier.record_of(caller, act("approval.request")), certifier.record_of(caller, act("approval.use"))];
    match certifier.store.ask_approval(approval.clone(), records, now).await? {
        Asked::Granted { approver } => {
            tracing::warn!(caller = caller.name(), approver, call = call.path, "approved call goes through");
            Ok(())
        }
        Asked::Waits { id } => Err(Refusal::ApprovalNeeded { verb, id, minutes: life.as_secs() / 60 }),
        Asked::Full => Err(Refusal::ApprovalsFull),
    }
}

/// What is approved is this very request.
fn digest_of(call: &Call, message: &[u8]) -> String {
    digest::hex(&digest::sha256(&[call.path.as_bytes(), b"\0", message].concat()))
}
