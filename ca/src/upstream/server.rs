//! The authority above as another server of the same trust domain, Kasbah's or SPIRE's: nesting.
//!
//! This server is a workload of an agent there, and the entry of that workload is marked `downstream`. The intermediate comes by
//! `NewDownstreamX509CA`, the roots by `GetBundle`, and our keys of tokens are published there, so that what one server of the
//! trust domain signs is verified everywhere in it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::CertificateDer;
use identity::spiffe_id::TrustDomain;
use identity::tls::{PeerRule, Snapshot};
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{GetBundleRequest, PublishJwtAuthorityRequest, PublishWitAuthorityRequest};
use proto::spire::api::server::svid::v1::NewDownstreamX509caRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::types;
use runtime::mtls;
use runtime::shutdown::Shutdown;
use runtime::workload_api;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Minted, Published, TokenKeys, Upstream, UpstreamError, id_of};

/// Where the server above is, and who we are there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamServer {
    /// HOST:PORT of its SPIRE server API.
    pub address: String,
    /// The Workload API socket of an agent of that server, which knows this process.
    pub workload_api: PathBuf,
}

/// A server above.
#[derive(Debug)]
pub(crate) struct ServerUpstream {
    trust_domain: TrustDomain,
    channel: Channel,
    published: watch::Sender<Arc<Published>>,
}

impl ServerUpstream {
    /// Follows the own SVID at the agent's socket, and uses it from then on.
    ///
    /// # Errors
    /// When the server's ID cannot be.
    pub(crate) fn open(trust_domain: &TrustDomain, settings: &UpstreamServer) -> Result<Self, UpstreamError> {
        let source = workload_api::watch(settings.workload_api.clone(), Shutdown::new());
        Self::with_source(trust_domain, &settings.address, source)
    }

    pub(crate) fn with_source(
        trust_domain: &TrustDomain,
        address: &str,
        source: impl Snapshot + 'static,
    ) -> Result<Self, UpstreamError> {
        let server = trust_domain.with_path(crate::server::SERVER_PATH).map_err(|_| UpstreamError::Answer("its ID"))?;
        let channel = mtls::channel(address, source, PeerRule::exactly(server));
        Ok(Self { trust_domain: trust_domain.clone(), channel, published: watch::Sender::default() })
    }

    /// Asks for the bundle, and publishes it if it changed.
    pub(crate) async fn fetch(&self) -> Result<(), UpstreamError> {
        let mut client = BundleClient::new(self.channel.clone());
        let bundle = within(client.get_bundle(GetBundleRequest { output_mask: None })).await?;
        if bundle.trust_domain.trim_start_matches("spiffe://") != self.trust_domain.as_str() {
            return Err(UpstreamError::Answer("its trust domain"));
        }
        let published = Arc::new(published(bundle)?);
        self.published.send_if_modified(|known| {
            let changed = *known != published;
            *known = published;
            changed
        });
        Ok(())
    }
}

/// What a bundle says.
fn published(bundle: types::Bundle) -> Result<Published, UpstreamError> {
    let mut published = Published::default();
    for root in bundle.x509_authorities.into_iter().take(ROOTS_MAX + 1) {
        let certificate = CertificateDer::from(root.asn1);
        let id = id_of(&certificate).ok_or(UpstreamError::Answer("a root without subject key identifier"))?;
        if root.tainted {
            published.tainted.insert(id);
        }
        published.roots.push(certificate);
    }
    if published.roots.is_empty() || published.roots.len() > ROOTS_MAX {
        return Err(UpstreamError::Answer("the number of its roots"));
    }
    published.keys = TokenKeys { jwt: bundle.jwt_authorities, wit: bundle.wit_authorities };
    Ok(published)
}

#[tonic::async_trait]
impl Upstream for ServerUpstream {
    async fn mint(&self, csr: &[u8], ttl: Duration, _now: SystemTime) -> Result<Minted, UpstreamError> {
        let preferred_ttl = i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX);
        let request = NewDownstreamX509caRequest { csr: csr.to_vec(), preferred_ttl };
        let answer = within(SvidClient::new(self.channel.clone()).new_downstream_x509ca(request)).await?;
        let certificates = |ders: Vec<Vec<u8>>| ders.into_iter().map(CertificateDer::from).collect();
        Ok(Minted { chain: certificates(answer.ca_cert_chain), roots: certificates(answer.x509_authorities) })
    }

    fn published(&self) -> watch::Receiver<Arc<Published>> {
        self.published.subscribe()
    }

    async fn publish(&self, keys: TokenKeys) -> Result<(), UpstreamError> {
        let mut client = BundleClient::new(self.channel.clone());
        for key in keys.jwt {
            within(client.publish_jwt_authority(PublishJwtAuthorityRequest { jwt_authority: Some(key) })).await?;
        }
        for key in keys.wit {
            let request = PublishWitAuthorityRequest { wit_authority: Some(key) };
            match within(client.publish_wit_authority(request)).await {
                // Servers from before WIT-SVIDs.
                Err(UpstreamError::Refused { code: Code::Unimplemented, .. }) => return Ok(()),
                published => published.map(drop)?,
            }
        }
        Ok(())
    }

    async fn keep_following(&self) {
        loop {
            if let Err(error) = self.fetch().await {
                tracing::warn!(reason = error.reason(), error = ?error, "bundle of the upstream server not fetched");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// An answer in time.
async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, UpstreamError> {
    match tokio::time::timeout(CALL_MAX, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
            Err(UpstreamError::Unreachable(status.message().to_owned()))
        }
        Ok(Err(status)) => Err(UpstreamError::Refused { code: status.code(), message: status.message().to_owned() }),
        Err(_) => Err(UpstreamError::Unreachable("no answer in time".into())),
    }
}

const CALL_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The most roots of a bundle from above.
const ROOTS_MAX: usize = 16;
