//! The answers, as programs read them. Field names are stable.

use discovery::Origin;
use serde::Serialize;
use serde_json::Value;

/// What becomes of a request.
#[derive(Debug, Serialize)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) url: String,
    pub(super) peer: Option<String>,
    /// `allow` or `deny`.
    pub(super) answer: &'static str,
    /// Status of a refusal, or of an answer by a proxy itself; absent where a connection is closed without one.
    pub(super) status: Option<u16>,
    /// The stable code of a refusal.
    pub(super) reason: Option<String>,
    /// What decided.
    pub(super) decided_by: Option<Decision>,
    /// What was taken for granted.
    pub(super) assumed: Vec<String>,
    pub(super) hops: Vec<Hop>,
}

impl Request {
    pub(super) fn is_allowed(&self) -> bool {
        self.answer == "allow"
    }
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Decision {
    /// The proxy, `namespace/name`.
    pub(super) proxy: String,
    pub(super) step: &'static str,
    pub(super) name: String,
    pub(super) why: String,
    pub(super) document: Option<Document>,
}

/// One proxy on the way.
#[derive(Debug, Serialize)]
pub(super) struct Hop {
    /// `namespace/name`.
    pub(super) proxy: String,
    /// `gateway` or `sidecar`.
    pub(super) kind: &'static str,
    /// `documents`, or the admin address of the proxy that said what it holds.
    pub(super) source: String,
    /// How what it holds differs from the documents; empty where it does not, or was not asked.
    pub(super) differs: Vec<String>,
    pub(super) steps: Vec<Step>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    pub(super) step: &'static str,
    /// `pass`, `no match`, `allow`, `watched`, `deny`, `unknown`.
    pub(super) outcome: &'static str,
    /// What decides: a listener, policy `namespace/name` with its rule, route, cluster.
    pub(super) name: String,
    pub(super) why: String,
    pub(super) document: Option<Document>,
    /// Whether this step decided about the request.
    pub(super) decides: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Document {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) file: String,
    pub(super) line: u64,
}

impl From<Origin> for Document {
    fn from(origin: Origin) -> Self {
        let Origin { kind, namespace, name, file, line } = origin;
        Self { kind: kind.to_string(), namespace, name, file: file.display().to_string(), line }
    }
}

impl Document {
    /// `FILE:LINE Kind namespace/name`.
    pub(super) fn text(&self) -> String {
        format!("{}:{} {} {}/{}", self.file, self.line, self.kind, self.namespace, self.name)
    }
}

/// What holds for a workload.
#[derive(Debug, Serialize)]
pub(super) struct Workload {
    /// `namespace/name`.
    pub(super) workload: String,
    pub(super) kind: &'static str,
    pub(super) spiffe_id: Option<String>,
    /// Whether the SPIFFE ID is a guess, because no document names the service account.
    pub(super) spiffe_id_assumed: bool,
    pub(super) source: String,
    pub(super) differs: Vec<String>,
    pub(super) listeners: Vec<Listener>,
    pub(super) ports: Vec<Port>,
    pub(super) jwt: Vec<JwtRule>,
    pub(super) policies: Vec<Policy>,
    pub(super) routes: Vec<Route>,
    pub(super) callers: Vec<Caller>,
}

#[derive(Debug, Serialize)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) filter_chains: usize,
    pub(super) document: Option<Document>,
}

#[derive(Debug, Serialize)]
pub(super) struct Port {
    pub(super) port: u16,
    pub(super) protocol: &'static str,
    pub(super) services: Vec<String>,
    /// `STRICT`, `PERMISSIVE`, `DISABLE`.
    pub(super) mtls: &'static str,
    /// Where it comes from: `port`, `workload`, `namespace`, `mesh`, `default`.
    pub(super) mtls_of: &'static str,
    pub(super) document: Option<Document>,
}

#[derive(Debug, Serialize)]
pub(super) struct JwtRule {
    pub(super) issuer: String,
    /// `in the document`, or the address.
    pub(super) keys: String,
    pub(super) document: Document,
}

#[derive(Debug, Serialize)]
pub(super) struct Policy {
    pub(super) action: &'static str,
    pub(super) name: String,
    pub(super) dry_run: bool,
    pub(super) document: Document,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug, Serialize)]
pub(super) struct Rule {
    pub(super) line: u64,
    pub(super) rule: Value,
}

/// A route that leads here.
#[derive(Debug, Serialize)]
pub(super) struct Route {
    /// The proxy that has it, `namespace/name`.
    pub(super) proxy: String,
    pub(super) host: String,
    pub(super) route: String,
    pub(super) matches: String,
    pub(super) cluster: String,
    pub(super) document: Option<Document>,
}

#[derive(Debug, Serialize)]
pub(super) struct Caller {
    pub(super) spiffe_id: String,
    /// `yes`, `no`, `depends` (on the request).
    pub(super) may_call: &'static str,
    pub(super) decided_by: Vec<String>,
}
