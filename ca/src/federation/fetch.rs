//! Fetching one bundle from its endpoint: one `GET` over TLS, redirects not followed, size and time limited.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use identity::bundle::{BUNDLE_BYTES_MAX, BundleSet, TrustBundle};
use identity::spiffe_id::SpiffeId;
use identity::tls::{self, ALPN_HTTP11, FixedSnapshot, PeerRule, web};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::dial::Networks;
use super::error::FetchError;
use super::{EndpointUrl, FederationSettings, Profile, Relationship};

/// How endpoints are called.
#[derive(Debug)]
pub(crate) struct Client {
    networks: Networks,
    web_roots: Option<PathBuf>,
    wait_max: Duration,
}

impl Client {
    pub(crate) fn new(settings: &FederationSettings) -> Self {
        Self {
            networks: Networks::new(&settings.allowed_networks),
            web_roots: settings.web_roots_file.clone(),
            wait_max: FETCH_WAIT_MAX,
        }
    }

    /// The bundle that the endpoint publishes. `known` finds the bundle with which an endpoint's SVID is verified.
    ///
    /// # Errors
    /// When there is no whole, proven answer in time, or it is not a bundle of this trust domain.
    pub(crate) async fn fetch(
        &self,
        relationship: &Relationship,
        known: impl Fn(&SpiffeId) -> Option<Arc<TrustBundle>>,
    ) -> Result<TrustBundle, FetchError> {
        let connector = self.connector(&relationship.profile, known)?;
        let document = tokio::time::timeout(self.wait_max, self.document(&relationship.url, &connector));
        let document = document.await.map_err(|_| FetchError::Late)??;
        TrustBundle::parse_published(relationship.trust_domain.clone(), &document).map_err(FetchError::Document)
    }

    fn connector(
        &self,
        profile: &Profile,
        known: impl Fn(&SpiffeId) -> Option<Arc<TrustBundle>>,
    ) -> Result<TlsConnector, FetchError> {
        let config = match (profile, &self.web_roots) {
            (Profile::HttpsSpiffe(id), _) => {
                let bundle = known(id).ok_or_else(|| FetchError::NoBundle(id.trust_domain()))?;
                let trusted = FixedSnapshot { svid: None, bundles: Arc::new(BundleSet::new([bundle])) };
                tls::client_config(Arc::new(trusted), PeerRule::exactly(id.clone()), &[ALPN_HTTP11])
            }
            (Profile::HttpsWeb, None) => web::public_client_config(&[ALPN_HTTP11]),
            (Profile::HttpsWeb, Some(file)) => {
                let unreadable = |source| FetchError::Roots { file: file.clone(), source };
                web::client_config(&std::fs::read(file).map_err(unreadable)?, None, &[ALPN_HTTP11])
            }
        };
        config.map(TlsConnector::from).map_err(FetchError::Config)
    }

    async fn document(&self, url: &EndpointUrl, connector: &TlsConnector) -> Result<Bytes, FetchError> {
        let name = ServerName::try_from(url.host().to_owned());
        let name = name.map_err(|error| FetchError::Name(std::io::Error::other(error)))?;
        let stream = self.networks.connect(url.host(), url.port()).await?;
        let stream = connector.connect(name, stream).await.map_err(FetchError::Tls)?;
        let (answer, _connection) = ask(stream, url).await.map_err(FetchError::Http)?;
        // Not even a redirect: where it leads was not configured.
        if answer.status() != http::StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), BUNDLE_BYTES_MAX).collect().await;
        Ok(body.map_err(|_| FetchError::Body)?.to_bytes())
    }
}

/// The answer, and the connection that its body comes over; dropping that ends the call.
async fn ask(
    stream: TlsStream<TcpStream>,
    url: &EndpointUrl,
) -> hyper::Result<(http::Response<Incoming>, AbortOnDropHandle<hyper::Result<()>>)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let host = if url.host().contains(':') { format!("[{}]", url.host()) } else { url.host().to_owned() };
    let request = http::Request::get(url.target())
        .header(http::header::HOST, format!("{host}:{}", url.port()))
        .header(http::header::ACCEPT, "application/json")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    // Host and target were parsed as parts of a URL.
    Ok((sender.send_request(request.unwrap_or_default()).await?, connection))
}

/// How long name, connection, handshake and document may take together.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(15);
const HEAD_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use identity::spiffe_id::TrustDomain;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_endpoint_that_does_not_answer_is_not_waited_for() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}/", silent.local_addr().unwrap().port());
        let accepting = tokio::spawn(async move {
            let (mut stream, _) = silent.accept().await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.map(|_| heard.len())
        });
        let (domain, url) = (TrustDomain::parse("other.org").unwrap(), EndpointUrl::parse(&url).unwrap());
        let relationship = Relationship::new(domain, url, Profile::HttpsWeb, 0);
        let settings =
            FederationSettings { allowed_networks: vec!["127.0.0.0/8".parse().unwrap()], ..Default::default() };
        let client = Client { wait_max: Duration::from_millis(200), ..Client::new(&settings) };
        assert_eq!(Client::new(&settings).wait_max, FETCH_WAIT_MAX);
        let began = Instant::now();
        let refused = client.fetch(&relationship, |_| None).await.unwrap_err();
        assert!(matches!(refused, FetchError::Late), "{refused:?}");
        assert!(began.elapsed() >= client.wait_max, "it was given its time");
        let heard = accepting.await.unwrap();
        assert!(heard.is_ok_and(|bytes| bytes > 0), "it was called, and left in the end");
    }
}
