//! What becomes of a request: sent on, redirected, answered.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::config::route::v3 as pb;
use http::StatusCode;

use super::forward::Forward;
use super::matches::RouteMatch;
use crate::config::{At, ConfigError, not_supported, port, required};
use crate::matcher::Substitution;
use crate::request::{Request, Scheme};

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// It is sent on.
    Forward(Box<Forward>),
    /// The client is sent elsewhere.
    Redirect(Box<Redirect>),
    /// It is answered here.
    Direct(Direct),
    /// It is for filters only.
    NonForwarding,
}

/// Sends the client elsewhere.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// The answer's status.
    pub status: StatusCode,
    host: Option<Box<str>>,
    port: Option<u16>,
    scheme: Option<Box<str>>,
    path: PathChange,
    strip_query: bool,
}

#[derive(Clone, Debug)]
enum PathChange {
    Keep,
    Whole(Box<str>),
    Prefix(Box<str>),
    Regex(Box<Substitution>),
}

/// An answer that is written here.
#[derive(Clone, Debug)]
pub struct Direct {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

impl Action {
    pub(super) fn compile(value: Option<&pb::route::Action>) -> Result<Self, ConfigError> {
        match required(value).at("action")? {
            pb::route::Action::Route(route) => Ok(Self::Forward(Box::new(Forward::compile(route).at("route")?))),
            pb::route::Action::Redirect(redirect) => {
                Ok(Self::Redirect(Box::new(Redirect::compile(redirect).at("redirect")?)))
            }
            pb::route::Action::DirectResponse(direct) => {
                Ok(Self::Direct(Direct::compile(direct).at("direct_response")?))
            }
            pb::route::Action::NonForwardingAction(_) => Ok(Self::NonForwarding),
            pb::route::Action::FilterAction(_) => not_supported("a filter's own action").at("filter_action"),
        }
    }

    pub(super) fn as_forward(&self) -> Option<&Forward> {
        match self {
            Self::Forward(forward) => Some(forward),
            _ => None,
        }
    }

    pub(super) fn as_forward_mut(&mut self) -> Option<&mut Forward> {
        match self {
            Self::Forward(forward) => Some(forward),
            _ => None,
        }
    }
}

impl Direct {
    fn compile(value: &pb::DirectResponseAction) -> Result<Self, ConfigError> {
        let status = u16::try_from(value.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.filter(|status| status.as_u16() >= 200);
        if value.body_format.is_some() {
            return not_supported("a formatted body").at("body_format");
        }
        let body = value.body.as_ref().map(body).transpose().at("body")?.unwrap_or_default();
        if body.len() > DIRECT_BODY_BYTES_MAX {
            return Err(ConfigError::new(format!("has at most {DIRECT_BODY_BYTES_MAX} bytes")).under("body"));
        }
        Ok(Self { status: status.ok_or_else(|| ConfigError::new("is not a final status").under("status"))?, body })
    }
}

fn body(source: &DataSource) -> Result<Bytes, ConfigError> {
    match source.specifier.as_ref() {
        Some(Specifier::InlineBytes(bytes)) => Ok(Bytes::copy_from_slice(bytes)),
        Some(Specifier::InlineString(text)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        _ => not_supported("a body that is not written inline"),
    }
}

impl Redirect {
    fn compile(value: &pb::RedirectAction) -> Result<Self, ConfigError> {
        use pb::redirect_action::{PathRewriteSpecifier as Path, RedirectResponseCode as Code, SchemeRewriteSpecifier};
        let status = match Code::try_from(value.response_code) {
            Ok(Code::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
            Ok(Code::Found) => StatusCode::FOUND,
            Ok(Code::SeeOther) => StatusCode::SEE_OTHER,
            Ok(Code::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Ok(Code::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
            Err(_) => return Err(ConfigError::new("unknown value").under("response_code")),
        };
        let path = match value.path_rewrite_specifier.as_ref() {
            None => PathChange::Keep,
            Some(Path::PathRedirect(path)) => PathChange::Whole(absolute(path).at("path_redirect")?),
            Some(Path::PrefixRewrite(prefix)) => PathChange::Prefix(prefix.as_str().into()),
            Some(Path::RegexRewrite(regex)) => {
                PathChange::Regex(Box::new(Substitution::compile(regex).at("regex_rewrite")?))
            }
            Some(Path::PathRewrite(_)) => return not_supported("a formatted path").at("path_rewrite"),
        };
        let scheme = match value.scheme_rewrite_specifier.as_ref() {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https"),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if is_scheme(scheme) => Some(scheme.as_str()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(_)) => {
                return Err(ConfigError::new("is not a scheme").under("scheme_redirect"));
            }
            Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        };
        Ok(Self {
            status,
            host: Some(value.host_redirect.as_str()).filter(|host| !host.is_empty()).map(Into::into),
            port: Some(port(value.port_redirect).at("port_redirect")?).filter(|port| *port != 0),
            scheme: scheme.map(Into::into),
            path,
            strip_query: value.strip_query,
        })
    }

    /// The URL that the client is sent to.
    pub fn location(&self, request: &Request<'_>, matched: &RouteMatch) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme.as_str());
        let mut url = format!("{scheme}://{}", self.host.as_deref().unwrap_or_else(|| request.host.name()));
        if let Some(port) = self.port_for(request) {
            url.push_str(&format!(":{port}"));
        }
        self.push_path(request, matched, &mut url);
        url
    }

    /// A port stays only as long as scheme and host do, and never if the scheme means it anyway.
    fn port_for(&self, request: &Request<'_>) -> Option<u16> {
        let changes_scheme = self.scheme.as_deref().is_some_and(|scheme| scheme != request.scheme.as_str());
        let default = match self.scheme.as_deref() {
            Some("https") => Scheme::Https.default_port(),
            Some("http") => Scheme::Http.default_port(),
            _ => request.scheme.default_port(),
        };
        let kept = request.host.port().filter(|port| {
            self.host.is_none() && *port != default && !(changes_scheme && *port == request.scheme.default_port())
        });
        match self.port {
            Some(port) => Some(port).filter(|port| *port != default),
            None => kept,
        }
    }

    fn push_path(&self, request: &Request<'_>, matched: &RouteMatch, url: &mut String) {
        let path = request.path.path();
        match &self.path {
            PathChange::Keep => url.push_str(path),
            PathChange::Whole(whole) => url.push_str(whole),
            PathChange::Prefix(prefix) => url.push_str(&matched.replace_matched(path, prefix)),
            PathChange::Regex(regex) => url.push_str(&regex.apply(path)),
        }
        let writes_query = matches!(&self.path, PathChange::Whole(whole) if whole.contains('?'));
        if let Some(query) = request.path.query().filter(|_| !self.strip_query && !writes_query) {
            url.push('?');
            url.push_str(query);
        }
    }
}

fn absolute(path: &str) -> Result<Box<str>, ConfigError> {
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(ConfigError::new("begins with a slash")),
    }
}

fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// The longest body of an answer that is written here.
pub(crate) const DIRECT_BODY_BYTES_MAX: usize = 1 << 20;
