//! `http_challenge`: serves the CA's challenge at the well-known path, for as long as one attempt lasts.

use axum::Router;
use axum::routing::get;
use runtime::listen;
use runtime::serve::{self, Limits};
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::ca::CaError;
use crate::node::JoinError;
use crate::settings::HttpChallenge;

/// A listener that answers once a challenge is known.
pub(super) struct Host {
    settings: HttpChallenge,
    port: u16,
    listener: Option<TcpListener>,
    /// Ends with the attempt.
    serving: TaskSet,
}

#[derive(Deserialize)]
struct Challenge {
    nonce: String,
}

impl Host {
    pub(super) fn listen(settings: &HttpChallenge) -> Result<Self, JoinError> {
        let listener = listen::tcp(settings.listen).map_err(JoinError::ChallengeListen)?;
        let port = listener.local_addr().map_or_else(|_| settings.listen.port(), |addr| addr.port());
        let port = settings.advertised_port.unwrap_or(port);
        Ok(Self { settings: settings.clone(), port, listener: Some(listener), serving: TaskSet::new() })
    }

    pub(super) fn payload(&self) -> Vec<u8> {
        let HttpChallenge { hostname, agent_name, .. } = &self.settings;
        json!({"hostname": hostname, "agentname": agent_name, "port": self.port}).to_string().into_bytes()
    }

    pub(super) fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, CaError> {
        let bad = |what| CaError::BadAnswer { what };
        let Challenge { nonce } =
            serde_json::from_slice(challenge).map_err(|_| bad("a challenge that is not http_challenge's"))?;
        if nonce.is_empty() || nonce.len() > NONCE_BYTES_MAX || nonce.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(bad("a challenge that cannot be served"));
        }
        let listener = self.listener.take().ok_or_else(|| bad("a second challenge"))?;
        let path = format!("/.well-known/spiffe/nodeattestor/http_challenge/{}/challenge", self.settings.agent_name);
        let router = Router::new().route(&path, get(move || async move { format!("{nonce}\n") }));
        self.serving.spawn("http challenge", serve::tcp(listener, router, Limits::default(), Shutdown::new()));
        Ok(b"{}".to_vec())
    }
}

const NONCE_BYTES_MAX: usize = 256;
