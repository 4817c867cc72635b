//! `envoy.service.auth.v3.Authorization`: permit or deny a request by the rules in force.

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use envoy_types::pb::google::rpc;
use runtime::refusal;
use tonic::{Code, Request, Response, Status};

use crate::facts::{Facts, HttpFacts};
use crate::metrics::{DecisionLabel, PolicyMetrics};
use crate::rules::Decision;
use crate::rules_file::RulesInForce;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Authorizer {
    pub(crate) rules: RulesInForce,
    pub(crate) metrics: PolicyMetrics,
}

#[tonic::async_trait]
impl Authorization for Authorizer {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let Some(attributes) = &request.get_ref().attributes else {
            self.metrics.checked(DecisionLabel::invalid);
            let what = "a check without attributes says nothing about the request";
            return Err(refusal::status(Code::InvalidArgument, "POLICY_REQUEST_EMPTY", what));
        };
        let version = self.rules.current();
        let decision = version.rules.authorization.decide(&facts(attributes));
        let answer = match decision {
            Decision::Allow { rule } => {
                self.metrics.checked(DecisionLabel::allow);
                allowed(rule)
            }
            Decision::Deny { rule, status, body } => {
                self.metrics.checked(DecisionLabel::deny);
                tracing::debug!(reason = REASON, rule, generation = version.generation, "request denied");
                denied(rule, status, body)
            }
        };
        Ok(Response::new(answer))
    }
}

fn facts(attributes: &AttributeContext) -> Facts<'_> {
    let http = attributes.request.as_ref().and_then(|request| request.http.as_ref());
    let principal = attributes.source.as_ref().map_or("", |source| source.principal.as_str());
    Facts { principal, http: http.map(http_facts) }
}

fn http_facts(http: &HttpRequest) -> HttpFacts<'_> {
    let raw = http.header_map.as_ref().map(|map| map.headers.iter().map(line).collect::<Vec<_>>());
    let lines =
        raw.unwrap_or_else(|| http.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect());
    HttpFacts::new(&http.method, &http.host, &http.path, lines)
}

/// A header line; bytes that are no text count as a value that equals nothing anybody writes.
fn line(header: &HeaderValue) -> (&str, &str) {
    let raw = std::str::from_utf8(&header.raw_value).unwrap_or("\u{fffd}");
    (&header.key, if header.raw_value.is_empty() { &header.value } else { raw })
}

fn allowed(rule: Option<&str>) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status { code: Code::Ok as i32, ..Default::default() }),
        dynamic_metadata: Some(metadata("allow", rule, None)),
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse::default())),
    }
}

fn denied(rule: Option<&str>, status: u16, body: Option<&str>) -> CheckResponse {
    let said = rule.map_or_else(|| "no rule allows it".to_owned(), |rule| format!("rule {rule}"));
    let code = if status == 401 { Code::Unauthenticated } else { Code::PermissionDenied };
    let response = DeniedHttpResponse {
        status: Some(HttpStatus { code: i32::from(status) }),
        headers: vec![header("x-kasbah-reason", REASON), header("content-type", "text/plain; charset=utf-8")],
        body: body.map_or_else(|| format!("denied by policy: {said}\n"), str::to_owned),
    };
    CheckResponse {
        status: Some(rpc::Status { code: code as i32, message: format!("{REASON}: {said}"), details: Vec::new() }),
        dynamic_metadata: Some(metadata("deny", rule, Some(REASON))),
        http_response: Some(HttpResponse::DeniedResponse(response)),
    }
}

fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: key.into(), value: value.into(), ..Default::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    }
}

/// What the proxy may write into its access log.
fn metadata(decision: &str, rule: Option<&str>, reason: Option<&str>) -> Struct {
    let members = [("decision", Some(decision)), ("policy", rule), ("reason", reason)];
    let fields = members.into_iter().filter_map(|(name, value)| {
        let kind = Some(Kind::StringValue(value?.to_owned()));
        Some((name.to_owned(), Value { kind }))
    });
    Struct { fields: fields.collect() }
}

/// The code of every denial; our proxy uses the same for an authorization service that names none.
const REASON: &str = "EXT_AUTHZ_DENIED";
