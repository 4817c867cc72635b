//! The issuance policy in force, asked without issuing anything.

use std::time::Duration;

use identity::spiffe_id::SpiffeId;
use proto::kasbah::ca::v1::{ExplainRequest, ExplainResponse, issuance_policy_server};
use tonic::{Request, Response, Status};

use super::Api;
use crate::policy::{Ask, KeyType, Verdict};
use crate::refusal::Refusal;

#[tonic::async_trait]
impl issuance_policy_server::IssuancePolicy for Api {
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            self.explained(&request.into_inner())
        };
        self.answer("ExplainIssuance", &caller, work).await
    }
}

impl Api {
    fn explained(&self, request: &ExplainRequest) -> Result<ExplainResponse, Refusal> {
        let field = "spiffe_id";
        let id = SpiffeId::parse(&request.spiffe_id).map_err(|source| Refusal::Id { field, source })?;
        let key = match request.key_type.as_str() {
            "" => KeyType::P256,
            name => KeyType::parse(name).ok_or(Refusal::Filter("key_type"))?,
        };
        let ttls = &self.certifier.ttls;
        let kind = if request.kind.is_empty() { "x509" } else { &request.kind };
        let default = if kind.ends_with("jwt") { ttls.jwt_svid } else { ttls.x509_svid };
        let callers = self.certifier.names_of(&request.caller);
        let ask = Ask {
            id: &id,
            callers: &callers,
            kind,
            ttl: ttls.or_default(request.ttl, default),
            dns_names: &request.dns_names,
            key: (!kind.ends_with("jwt") && !kind.ends_with("wit")).then_some(key),
        };
        Ok(answer(self.certifier.policy.current().judge(&ask)))
    }
}

fn answer(verdict: Verdict) -> ExplainResponse {
    let secs = |ttl: Duration| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    match verdict {
        Verdict::Allowed { rule, ttl } => ExplainResponse {
            allowed: true,
            text: match &rule {
                Some(rule) => format!("rule `{rule}` allows it"),
                None => "no rule speaks of it, and the default is to allow".into(),
            },
            rule: rule.unwrap_or_default(),
            ttl: secs(ttl),
            ..Default::default()
        },
        Verdict::Refused(refusal) => ExplainResponse {
            allowed: false,
            reason: refusal.reason().into(),
            text: refusal.to_string(),
            rule: refusal.rule.unwrap_or_default(),
            ttl: 0,
        },
    }
}
