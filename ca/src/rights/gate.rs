//! What every request passes before it reaches a service: the table of calls, and the second person's approval where rights
//! want one.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tonic::Status;

use super::approvals;
use super::table::{self, Call, Need};
use crate::api::{Api, Caller, Who};
use crate::refusal::Refusal;

/// Lets a request through to its service, with its [`Call`] as an extension.
pub(crate) async fn gate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let Some(call) = table::find(request.uri().path()) else {
        return Status::from(Refusal::NotOffered("this call")).into_http();
    };
    request.extensions_mut().insert(call);
    match pass(&api, call, request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal,
    }
}

async fn pass(api: &Api, call: &'static Call, request: Request) -> Result<Request, Response> {
    let caller = api.caller(request.extensions());
    let refuse = |refusal: Refusal| {
        api.note(name_of(call), &caller, Some(&refusal));
        Status::from(refusal).into_http()
    };
    if matches!(caller.who, Who::Unknown) {
        stranger(api, &caller, call).map_err(refuse)?;
    }
    if call.need == Need::Member {
        api.member(&caller).map_err(refuse)?;
    }
    let rights = api.rights();
    match call.need.verb().filter(|verb| rights.wants_two(*verb) && !is_agent(&caller)) {
        None => Ok(request),
        Some(verb) => {
            api.permit_for(&caller, verb).map_err(refuse)?;
            let (parts, body) = request.into_parts();
            let message = to_bytes(body, MESSAGE_BYTES_MAX).await.map_err(|_| refuse(Refusal::MessageTooLarge))?;
            approvals::check(api, &caller, call, verb, &message).await.map_err(refuse)?;
            Ok(Request::from_parts(parts, Body::from(message)))
        }
    }
}

/// Without a certificate only what is open to anyone can be answered; everything else is held against the address.
fn stranger(api: &Api, caller: &Caller, call: &Call) -> Result<(), Refusal> {
    let certifier = api.certifier();
    certifier.stranger(caller.source)?;
    if call.need != Need::Anyone {
        certifier.may_try(caller.source)?;
        certifier.address_limits.refused(caller.source);
    }
    Ok(())
}

/// What nodes do is not administration, even where administrators may do it too.
fn is_agent(caller: &Caller) -> bool {
    caller.is_node()
}

/// The method's name, as metrics and the audit trail know it.
fn name_of(call: &'static Call) -> &'static str {
    call.path.rsplit('/').next().unwrap_or_default()
}

/// The largest request that can wait for an approval; what gRPC takes by default.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;
