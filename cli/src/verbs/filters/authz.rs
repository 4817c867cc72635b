//! `kasbah authz eval --lines`: what authorization policies say about requests, by the proxy's own rules, offline.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use identity::TrustDomain;
use routing::filters::{HttpFilter, authorize};
use routing::request::{
    CanonicalPath, Connection, EscapedSlashes, Host, Metadata, PathOptions, PeerIdentity, Request, Scheme, TokenClaims,
};
use serde::Deserialize;

use super::lines;
use crate::exit::Failure;

/// Answers each line of stdin.
pub(crate) fn eval() -> Result<(), Failure> {
    let mut evaluator = Evaluator::default();
    lines(move |line| evaluator.answer(line))
}

/// Keeps the policies of the line before: neighbours mostly ask about the same ones.
#[derive(Default)]
pub(in crate::verbs) struct Evaluator {
    last: Option<(Policies, Result<Vec<HttpFilter>, String>)>,
}

impl Evaluator {
    /// `allow NS/POLICY/RULE` or `deny NS/POLICY/RULE`, either with `-` where no rule matched; `err CODE` where the
    /// question cannot be read or its policies cannot be used.
    pub(in crate::verbs) fn answer(&mut self, line: &[u8]) -> String {
        let Ok(Question { policies, request }) = serde_json::from_slice(line) else { return "err BAD_JSON".to_owned() };
        if self.last.as_ref().is_none_or(|(last, _)| *last != policies) {
            let filters = policies.compile();
            self.last = Some((policies, filters));
        }
        match &self.last {
            Some((_, Ok(filters))) => request.judge(filters),
            Some((_, Err(code))) => format!("err {code}"),
            None => "err BAD_JSON".to_owned(),
        }
    }
}

#[derive(Deserialize)]
struct Question {
    #[serde(flatten)]
    policies: Policies,
    request: Asked,
}

/// The policies, and for whom they are compiled.
#[derive(PartialEq, Deserialize)]
struct Policies {
    policies_yaml: String,
    #[serde(default)]
    workload: Workload,
    #[serde(default)]
    trust_domain: Option<String>,
    #[serde(default)]
    trust_domain_aliases: Vec<String>,
}

#[derive(PartialEq, Deserialize)]
struct Workload {
    #[serde(default = "default_namespace")]
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Default for Workload {
    fn default() -> Self {
        Self { namespace: default_namespace(), labels: BTreeMap::new() }
    }
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Policies {
    /// The filters of the workload, or the code of the first thing that is wrong.
    fn compile(&self) -> Result<Vec<HttpFilter>, String> {
        let parsed = discovery::documents::parse(Path::new("policies_yaml"), &self.policies_yaml);
        if let Some(finding) = parsed.findings.iter().find(|finding| finding.is_error()) {
            return Err(finding.reason.to_owned());
        }
        let trust_domain = self.trust_domain.as_deref().unwrap_or("cluster.local");
        let trust_domain = TrustDomain::parse(trust_domain).map_err(|error| error.reason().to_owned())?;
        let Workload { namespace, labels } = &self.workload;
        let aliases = &self.trust_domain_aliases;
        let filters = discovery::authorization_filters(&parsed.documents, &trust_domain, aliases, namespace, labels);
        let compiled: Result<Vec<_>, _> = filters.iter().map(HttpFilter::compile).collect();
        Ok(compiled.map_err(|_| "POLICY_NOT_COMPILED".to_owned())?.into_iter().flatten().collect())
    }
}

/// A request with what was proven about its sender.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    peer: Option<String>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    #[serde(default)]
    source_ip: Option<IpAddr>,
    #[serde(default)]
    destination_port: Option<u16>,
    #[serde(default)]
    claims: Option<serde_json::Map<String, serde_json::Value>>,
}

/// One value of a header, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Several(Vec<String>),
}

impl Asked {
    fn judge(&self, filters: &[HttpFilter]) -> String {
        // What our proxy refuses before it asks any policy no policy can permit.
        let Some((method, host, path, headers)) = self.head() else { return "deny -".to_owned() };
        let connection = self.connection();
        let mut metadata = Metadata::default();
        if let Some(claims) = &self.claims {
            let claims = TokenClaims::danger_assume(serde_json::Value::Object(claims.clone()));
            metadata.insert_claims(&Arc::from(discovery::CLAIMS_KEY), claims);
        }
        let request = Request {
            method: &method,
            host: &host,
            path: &path,
            headers: &headers,
            scheme: if connection.tls { Scheme::Https } else { Scheme::Http },
            connection: &connection,
            remote: connection.source.ip(),
            metadata: &metadata,
        };
        let said = authorize(filters, &request);
        let verdict = if said.refused.is_some() { "deny" } else { "allow" };
        format!("{verdict} {}", said.policy.map_or_else(|| "-".to_owned(), |policy| shown(&policy)))
    }

    fn head(&self) -> Option<(Method, Host, CanonicalPath, HeaderMap)> {
        let method = self.method.as_deref().unwrap_or("GET").parse().ok()?;
        let host = host(self.host.as_deref().unwrap_or("localhost"))?;
        // The path as the policy sees it: whoever asks has normalized it, or wants to see what happens without.
        let as_given = PathOptions { normalize: false, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };
        let path = CanonicalPath::parse_raw(self.path.as_deref().unwrap_or("/"), &as_given).ok()?;
        let mut headers = HeaderMap::new();
        for (name, values) in &self.headers {
            let values = match values {
                Values::One(value) => std::slice::from_ref(value),
                Values::Several(values) => values,
            };
            for value in values {
                headers.append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
            }
        }
        Some((method, host, path, headers))
    }

    fn connection(&self) -> Connection {
        let source = SocketAddr::new(self.source_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0);
        let destination = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.destination_port.unwrap_or(0));
        let peer = self.peer.as_deref().filter(|peer| !peer.is_empty()).map(PeerIdentity::danger_assume);
        Connection { tls: peer.is_some(), peer, ..Connection::plain(source, destination) }
    }
}

/// The host as our proxy means it. A name with an empty label never reaches a policy there, but what the policies say
/// about it is what is asked here.
fn host(text: &str) -> Option<Host> {
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte));
    Host::parse(text).ok().or_else(|| is_name.then(|| Host::danger_assume(text)))
}

/// `ns[NS]-policy[POLICY]-rule[RULE]` as `NS/POLICY/RULE`; other names as they are.
fn shown(name: &str) -> String {
    let parts = || {
        let rest = name.get(name.find("ns[")? + "ns[".len()..)?;
        let (namespace, rest) = rest.split_once("]-policy[")?;
        let (policy, rest) = rest.split_once("]-rule[")?;
        Some(format!("{namespace}/{policy}/{}", rest.trim_end_matches(|c: char| !c.is_ascii_digit())))
    };
    parts().unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
pub(in crate::verbs) mod tests;
