//! What a listener's authorization filters say about a request when no service is asked: for explanations, offline
//! evaluation and tests. The rules are those that the proxy runs; only the asking is left out.

use std::sync::Arc;

use http::StatusCode;

use super::{FilterKind, HttpFilter};
use crate::request::Request;

/// What the filters say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// The answer of the refusal; none if all let the request pass.
    pub refused: Option<StatusCode>,
    /// The policy that decided: the one that denied, or the last that had to permit. None where nothing matched.
    pub policy: Option<Arc<str>>,
    /// Whether an authorization service would be asked; its answer is taken to be yes.
    pub asks_service: bool,
}

/// Runs the RBAC filters in their order, and looks which services would be asked.
pub fn authorize(filters: &[HttpFilter], request: &Request<'_>) -> Authorization {
    let mut metadata = request.metadata.clone();
    let mut said = Authorization { refused: None, policy: None, asks_service: false };
    for filter in filters {
        match &filter.kind {
            FilterKind::Rbac(rbac) => {
                let request = Request { metadata: &metadata, ..*request };
                let decision = rbac.decide(&request);
                if !decision.allowed {
                    return Authorization { refused: Some(decision.status()), policy: decision.policy, ..said };
                }
                if rbac.action() == Some(crate::rbac::Action::Allow) {
                    said.policy = decision.policy;
                }
                if let Some(shadow) = rbac.shadow(&request) {
                    rbac.note_shadow(&shadow, &mut metadata);
                }
            }
            FilterKind::ExtAuthz(service) => {
                said.asks_service |= service.enabled(&Request { metadata: &metadata, ..*request }, 0);
            }
            FilterKind::JwtAuthn(_)
            | FilterKind::RateLimit(_)
            | FilterKind::LocalRateLimit(_)
            | FilterKind::Fault(_)
            | FilterKind::Cors
            | FilterKind::Router(_) => (),
        }
    }
    said
}
