//! What is asked: a request, or a workload.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use identity::spiffe_id::SpiffeId;
use serde_json::{Map, Value};

use crate::args::ExplainMeshArgs;
use crate::exit::{Exit, Failure};

/// What is asked.
pub(super) enum Question {
    Workload(String),
    Request(Box<Asked>),
}

/// A request as somebody would send it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) scheme: Scheme,
    /// As it is sent: name, and the port if the URL names one.
    pub(super) authority: String,
    pub(super) port: Option<u16>,
    /// Path and query, untouched.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) claims: Option<Map<String, Value>>,
    pub(super) peer: Option<String>,
    pub(super) source: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    /// Bytes.
    Tcp,
}

impl Scheme {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
        }
    }

    pub(super) fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Tcp => None,
        }
    }
}

impl Question {
    pub(super) fn parse(args: &ExplainMeshArgs) -> Result<Self, Failure> {
        let (method, target) = match args.what.as_slice() {
            [target] if !target.contains("://") && !target.starts_with('/') => {
                return Ok(Self::Workload(target.clone()));
            }
            [target] => (Method::GET, target),
            [method, target, ..] => {
                let parsed = method.to_ascii_uppercase().parse();
                (parsed.map_err(|_| usage(format!("`{method}` is no HTTP method")))?, target)
            }
            [] => return Err(usage("nothing is asked".to_owned())),
        };
        Asked::parse(args, method, target).map(|asked| Self::Request(Box::new(asked)))
    }
}

impl Asked {
    fn parse(args: &ExplainMeshArgs, method: Method, target: &str) -> Result<Self, Failure> {
        let (scheme, rest) = match target.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("tcp", rest)) => (Scheme::Tcp, rest),
            None if target.starts_with('/') && args.to.is_some() => (Scheme::Http, target),
            _ => return Err(usage(format!("`{target}` is no URL that begins with http://, https:// or tcp://"))),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let (path, _) = path.split_once('#').unwrap_or((&path, ""));
        if authority.contains('@') || (authority.is_empty() && args.to.is_none()) {
            return Err(usage(format!("`{target}` names no host")));
        }
        let authority = if authority.is_empty() { args.to.clone().unwrap_or_default() } else { authority.to_owned() };
        Ok(Self {
            method,
            scheme,
            port: args.port.or_else(|| port_of(&authority)),
            authority,
            path: path.to_owned(),
            headers: headers(args)?,
            claims: args.claims.as_deref().map(claims).transpose()?,
            peer: args.peer.as_deref().map(peer).transpose()?,
            source: args.source_ip,
        })
    }

    /// The host without its port.
    pub(super) fn host(&self) -> &str {
        match port_of(&self.authority) {
            Some(_) => self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host),
            None => &self.authority,
        }
    }

    pub(super) fn url(&self) -> String {
        let path = if self.scheme == Scheme::Tcp { "" } else { &self.path };
        format!("{}://{}{path}", self.scheme.word(), self.authority)
    }
}

fn usage(text: String) -> Failure {
    Failure::new(Exit::Usage, text).remedy("see `kasbah explain --help` for examples")
}

fn port_of(authority: &str) -> Option<u16> {
    authority.rsplit_once(':')?.1.parse().ok()
}

fn headers(args: &ExplainMeshArgs) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for line in &args.header {
        let bad = || usage("a header is written as `name: value`".to_owned());
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| bad())?;
        headers.append(name, HeaderValue::try_from(value.trim()).map_err(|_| bad())?);
    }
    if let Some(token) = &args.token {
        let token = if token == "-" { std::io::read_to_string(std::io::stdin())? } else { token.clone() };
        let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
        headers.insert(header::AUTHORIZATION, value.map_err(|_| usage("this is no token".to_owned()))?);
    }
    Ok(headers)
}

fn claims(text: &str) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(text).map_err(|error| usage(format!("--claims is no JSON object: {error}")))
}

fn peer(text: &str) -> Result<String, Failure> {
    SpiffeId::parse(text).map(|id| id.to_string()).map_err(|error| usage(format!("`{text}` is no SPIFFE ID: {error}")))
}
