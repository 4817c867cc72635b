//! `http_challenge`: the node answers a random text at a well-known path of its own host name. The messages and the path
//! are those of SPIRE's attestor of that name.
//!
//! The call is made for a stranger, so it goes nowhere but where the settings say: [`dial`] checks the addresses after the
//! name was resolved and connects to exactly those; redirects are not followed, and little of the answer is read.

mod dial;

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use regex::Regex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::path::{PathTemplate, Value};
use super::settings::AttestorProblem;
use super::{AttestError, Attested, HttpChallenge, Respondent, World, selectors};
use crate::names;
use dial::Networks;
pub(crate) use dial::is_metadata;

/// The attestor with what it may call.
#[derive(Debug)]
pub(super) struct Attestor {
    settings: HttpChallenge,
    patterns: Vec<Regex>,
    networks: Networks,
    template: PathTemplate,
}

#[derive(Deserialize)]
struct Payload {
    hostname: String,
    agentname: String,
    port: u32,
}

#[derive(Serialize)]
struct Challenge {
    nonce: String,
}

impl Attestor {
    pub(super) fn build(settings: &HttpChallenge) -> Result<Self, AttestorProblem> {
        let template = PathTemplate::parse("{{ .HostName }}", &["HostName"]);
        Ok(Self {
            patterns: patterns(settings)?,
            networks: Networks::new(&settings.allowed_networks),
            template: template.map_err(|problem| AttestorProblem::new(NAME, problem))?,
            settings: settings.clone(),
        })
    }

    pub(super) async fn attest(
        &self,
        payload: &[u8],
        world: &World<'_>,
        respondent: &mut dyn Respondent,
    ) -> Result<Attested, AttestError> {
        let Payload { hostname, agentname, port } =
            serde_json::from_slice(payload).map_err(|_| AttestError::Malformed("is not JSON of its kind"))?;
        let port = self.check(&hostname, &agentname, port)?;
        let host = hostname.clone();
        let id = self.template.fill(world.trust_domain, NAME, move |_| Some(Value::Part(host.clone())))?;
        let nonce = URL_SAFE.encode(identity::digest::random::<NONCE_LEN>());
        let challenge = serde_json::to_vec(&Challenge { nonce: nonce.clone() });
        // The answer is empty; its arrival says that the node serves the challenge now.
        respondent.ask(challenge.map_err(|_| AttestError::AnswerMalformed("cannot be asked for"))?).await?;
        let path = format!("/.well-known/spiffe/nodeattestor/http_challenge/{agentname}/challenge");
        let call = self.call(&hostname, port, &path);
        let told = tokio::time::timeout(CALL_WAIT_MAX, call).await;
        let told = told.map_err(|_| AttestError::HostUnreachable("no answer in time"))??;
        if !identity::digest::equal(told.trim_ascii(), nonce.as_bytes()) {
            return Err(AttestError::ChallengeWrong("another text"));
        }
        let selectors = selectors(NAME, [("hostname", Some(hostname.as_str()))]);
        Ok(Attested { id, kind: NAME, selectors, can_reattest: !self.settings.tofu, token: None })
    }

    fn check(&self, host: &str, agent: &str, port: u32) -> Result<u16, AttestError> {
        if !is_host_name(host) || !self.patterns.iter().any(|pattern| pattern.is_match(host)) {
            return Err(AttestError::HostNotAllowed);
        }
        if !is_agent_name(agent) {
            return Err(AttestError::Malformed(
                "names an agent that is no word of at most 32 letters, digits and dashes",
            ));
        }
        let port = u16::try_from(port).map_err(|_| AttestError::PortNotAllowed)?;
        let allowed = (self.settings.port_min..=self.settings.port_max).contains(&port);
        if allowed { Ok(port) } else { Err(AttestError::PortNotAllowed) }
    }

    /// The beginning of the answer at `path`.
    async fn call(&self, host: &str, port: u16, path: &str) -> Result<Vec<u8>, AttestError> {
        let found = tokio::net::lookup_host((host, port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|_| AttestError::HostUnreachable("the name is not known"))?.collect();
        let stream = dial::connect(&self.networks.check(&found)?).await?;
        let unheard = |_| AttestError::HostUnreachable("no HTTP answer");
        let (answer, _connection) = ask(stream, host, port, path).await.map_err(unheard)?;
        // Not even a redirect: where it leads was not checked.
        if answer.status() != http::StatusCode::OK {
            return Err(AttestError::ChallengeWrong("another status than 200"));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(body.map_err(|_| AttestError::ChallengeWrong("too long, or cut off"))?.to_bytes().to_vec())
    }
}

/// The answer, and the connection that its body comes over; dropping that ends the call.
async fn ask(
    stream: TcpStream,
    host: &str,
    port: u16,
    path: &str,
) -> hyper::Result<(http::Response<Incoming>, AbortOnDropHandle<hyper::Result<()>>)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = http::Request::get(path)
        .header(http::header::HOST, format!("{host}:{port}"))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    // Host and path hold letters, digits, dots, dashes and slashes only.
    let request = request.unwrap_or_default();
    Ok((sender.send_request(request).await?, connection))
}

/// A DNS name in lower case that cannot be read as an address.
fn is_host_name(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    names::is_dns_name(name)
        && !name.contains('*')
        && !name.bytes().any(|byte| byte.is_ascii_uppercase())
        && last.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !last.starts_with("0x")
}

fn is_agent_name(name: &str) -> bool {
    name.len() <= AGENT_NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

pub(super) fn patterns(settings: &HttpChallenge) -> Result<Vec<Regex>, AttestorProblem> {
    let whole = |pattern: &String| {
        Regex::new(&format!("^(?:{pattern})$"))
            .map_err(|error| AttestorProblem::new("http_challenge.allowed_dns_patterns", error.to_string()))
    };
    settings.allowed_dns_patterns.iter().map(whole).collect()
}

pub(super) const NAME: &str = "http_challenge";
const NONCE_LEN: usize = 32;
const AGENT_NAME_BYTES_MAX: usize = 32;
/// How long name, connection and answer may take together.
const CALL_WAIT_MAX: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 16 << 10;
const ANSWER_BYTES_MAX: usize = 256;
