//! The SDS client: the proxy's own SVID and its trust bundles from the agent's socket.
//!
//! Two names are subscribed on one stream: `default` (certificate chain and key) and `ROOTCA` (bundles of every trust
//! domain this workload may trust). What arrives is checked before it replaces what is held; what is held stays in
//! force while the agent is away. Requests also say whether connections rest on a root that was left
//! ([`crate::tls::rests`]), and which configuration is in force; when that changes, the last one is sent again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{DataSource, Node, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use identity::bundle::BundleError;
use identity::key::KeyError;
use identity::pem::PemError;
use identity::revocation::{Crl, CrlError, RevocationIndex};
use identity::spiffe_id::SpiffeIdError;
use identity::svid::SvidError;
use identity::{BundleSet, PrivateKey, TrustBundle, TrustDomain, X509Svid};
use prost::Message;
use runtime::node_metadata::{CONFIGURED, RESTS_ON_LEFT_ROOT};
use runtime::shutdown::Shutdown;
use tokio::net::UnixStream;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::backoff::Backoff;
use super::subscription::{Kind, Request, Subscription, Update, XdsMode};
use crate::obs::counters::Counters;
use crate::tls::own::OwnIdentity;

/// Why a secret was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("the secret cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    #[error("{0} has nothing in it that is of use here")]
    Empty(&'static str),
    #[error("the certificate chain cannot be read")]
    Pem(#[from] PemError),
    #[error("the private key cannot be read")]
    Key(#[from] KeyError),
    #[error("certificate and key are no SVID")]
    Svid(#[from] SvidError),
    #[error("the trust domain's name is wrong")]
    TrustDomain(#[from] SpiffeIdError),
    #[error("the trust bundle cannot be read")]
    Bundle(#[from] BundleError),
    #[error("a revocation list cannot be used")]
    Crl(#[from] CrlError),
    #[error("a file that the secret names cannot be read")]
    File(#[from] std::io::Error),
}

/// The client.
#[derive(Debug)]
pub(crate) struct Sds {
    pub(crate) socket: PathBuf,
    pub(crate) node: Node,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) identity: Arc<OwnIdentity>,
    pub(crate) counters: Arc<Counters>,
}

impl Sds {
    /// Subscribes for ever.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(u64::from(std::process::id()) << 16);
        while !shutdown.is_requested() {
            if let Some(result) = shutdown.unless(self.stream(&mut backoff)).await {
                let error =
                    result.err().map_or_else(|| "the agent ended the stream".to_owned(), |error| error.to_string());
                tracing::warn!(reason = "IDENTITY_UNAVAILABLE", %error, socket = %self.socket.display(), "no identity stream, using what is held");
                shutdown.unless(tokio::time::sleep(backoff.wait())).await;
            }
        }
    }

    async fn stream(&self, backoff: &mut Backoff) -> Result<(), Status> {
        let channel = self.connect().await.map_err(|error| Status::unavailable(chain(&error)))?;
        let mut subscription = Subscription::new(Kind::Secret, XdsMode::Sotw);
        let (requests, outbound) = unbounded_channel();
        let mut said =
            Said { resting: self.counters.rests.resting(), configured: self.counters.configured.subscribe() };
        let send = |request: Request, said: &mut Said| {
            if let Request::Sotw(request) = request.with_node(&said.beside(&self.node)) {
                drop(requests.send(*request));
            }
        };
        let names = BTreeSet::from([OWN.to_owned(), ROOTS.to_owned()]);
        if let Some(request) = subscription.want(names) {
            send(request, &mut said);
        }
        let mut client = SecretDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut stream = client.stream_secrets(UnboundedReceiverStream::new(outbound)).await?.into_inner();
        loop {
            let response = tokio::select! {
                response = stream.message() => response?,
                () = said.changed() => {
                    if let Some(again) = subscription.again() {
                        send(again, &mut said);
                    }
                    continue;
                }
            };
            let Some(response) = response else { return Ok(()) };
            backoff.reset();
            let update = Update::of_sotw(Kind::Secret, response);
            let refusal = self.take(&update).err().map(|error| chain(&error));
            if let Some(error) = &refusal {
                tracing::warn!(reason = "SECRET_REFUSED", error, "secret refused");
            }
            self.counters.xds_answered(Kind::Secret.word(), refusal.is_none());
            // What was taken may have made connections to be left.
            send(subscription.answer(&update, &[], refusal.as_deref()), &mut said);
        }
    }

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let socket = self.socket.clone();
        // The address only fills the request's authority; the way is the socket.
        let connect = move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        };
        Endpoint::from_static("http://sds.local").connect_with_connector(service_fn(connect)).await
    }

    fn take(&self, update: &Update) -> Result<(), SecretError> {
        let mut decoded = Vec::with_capacity(update.set.len());
        for item in &update.set {
            decoded.push(decode_secret(item.body.value.as_slice(), &self.trust_domain)?);
        }
        for secret in decoded {
            match secret {
                Taken::Svid(svid) => {
                    if self.identity.svid_now().is_none_or(|held| held.serial() != svid.serial()) {
                        self.identity.set_svid(Arc::new(svid));
                    }
                }
                Taken::Bundles(bundles) => self.identity.set_bundles(Arc::new(bundles)),
                Taken::Other => {}
            }
        }
        Ok(())
    }
}

/// What is said beside requests: whether there are connections that rest on a root which our SVID has left, so that the agent
/// does not count on us for the last step of a rotation; and which configuration is in force.
struct Said {
    resting: watch::Receiver<bool>,
    configured: watch::Receiver<BTreeMap<&'static str, String>>,
}

impl Said {
    /// The senders live as long as we.
    async fn changed(&mut self) {
        tokio::select! {
            _ = self.resting.changed() => (),
            _ = self.configured.changed() => (),
        }
    }

    /// The node with what is to be said now.
    fn beside(&mut self, node: &Node) -> Node {
        let text = |version: &String| Value { kind: Some(value::Kind::StringValue(version.clone())) };
        let configured = self.configured.borrow_and_update();
        let fields = configured.iter().map(|(kind, version)| ((*kind).to_owned(), text(version))).collect();
        let resting = value::Kind::BoolValue(*self.resting.borrow_and_update());
        let mut node = node.clone();
        let metadata = &mut node.metadata.get_or_insert_default().fields;
        for (name, kind) in [(RESTS_ON_LEFT_ROOT, resting), (CONFIGURED, value::Kind::StructValue(Struct { fields }))] {
            metadata.insert(name.into(), Value { kind: Some(kind) });
        }
        node
    }
}

/// What a secret turned out to be.
enum Taken {
    Svid(X509Svid),
    Bundles(BundleSet),
    Other,
}

fn decode_secret(bytes: &[u8], own: &TrustDomain) -> Result<Taken, SecretError> {
    let secret = Secret::decode(bytes)?;
    match secret.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => svid_of(&certificate).map(Taken::Svid),
        Some(secret::Type::ValidationContext(context)) => bundles_of(&context, own).map(Taken::Bundles),
        _ => Ok(Taken::Other),
    }
}

fn svid_of(certificate: &TlsCertificate) -> Result<X509Svid, SecretError> {
    let chain = bytes_of(certificate.certificate_chain.as_ref(), "certificate_chain")?;
    let key = bytes_of(certificate.private_key.as_ref(), "private_key")?;
    Ok(X509Svid::from_parts(identity::pem::decode_certificates(&chain)?, PrivateKey::from_pkcs8_pem(&key)?)?)
}

/// Bundles by trust domain (SPIFFE validator), or one PEM bundle that is taken for our own trust domain's.
fn bundles_of(context: &CertificateValidationContext, own: &TrustDomain) -> Result<BundleSet, SecretError> {
    if let Some(typed) = context.custom_validator_config.as_ref().and_then(|config| config.typed_config.as_ref()) {
        let config = SpiffeCertValidatorConfig::decode(typed.value.as_slice())?;
        let mut bundles = BundleSet::default();
        for domain in &config.trust_domains {
            let name = TrustDomain::parse(&domain.name)?;
            let pem = bytes_of(domain.trust_bundle.as_ref(), "trust_bundle")?;
            // Envoy's validator reads lists from the same text.
            heed(&mut bundles, &name, &pem)?;
            bundles.insert(Arc::new(TrustBundle::from_pem(name, &pem)?));
        }
        return if bundles.is_empty() { Err(SecretError::Empty("trust_domains")) } else { Ok(bundles) };
    }
    let pem = bytes_of(context.trusted_ca.as_ref(), "trusted_ca")?;
    let mut bundles = BundleSet::new([Arc::new(TrustBundle::from_pem(own.clone(), &pem)?)]);
    if context.crl.is_some() {
        heed(&mut bundles, own, &bytes_of(context.crl.as_ref(), "crl")?)?;
    }
    Ok(bundles)
}

/// Takes the revocation lists out of a PEM text, if there are any.
fn heed(bundles: &mut BundleSet, name: &TrustDomain, pem: &[u8]) -> Result<(), SecretError> {
    if pem.windows(CRL_LABEL.len()).any(|part| part == CRL_LABEL) {
        bundles.set_revocations(name.clone(), Arc::new(RevocationIndex::new(Crl::decode_pem(pem)?)?));
    }
    Ok(())
}

fn bytes_of(source: Option<&DataSource>, field: &'static str) -> Result<Vec<u8>, SecretError> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::Filename(path)) => Ok(std::fs::read(path)?),
        _ => Err(SecretError::Empty(field)),
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

const CRL_LABEL: &[u8] = b"-----BEGIN X509 CRL-----";
/// Revocation lists may be long.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const OWN: &str = "default";
const ROOTS: &str = "ROOTCA";

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config as validator;
    use envoy_types::pb::google::protobuf::Any;
    use prost::Name;

    use super::*;
    use crate::tests::harness::Authority;

    fn inline(text: String) -> Option<DataSource> {
        Some(DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() })
    }

    fn own() -> TrustDomain {
        TrustDomain::parse("cluster.local").unwrap()
    }

    fn list_of(authority: &Authority) -> String {
        let bundles = authority.revoking(7, &[&authority.svid("x", std::time::Duration::from_secs(60))]);
        let index = bundles.revocations(&own()).unwrap();
        index.lists().map(|list| identity::pem::encode("X509 CRL", list.der())).collect()
    }

    #[test]
    fn lists_come_beside_plain_roots_and_inside_those_of_the_spiffe_validator() {
        let authority = Authority::new();
        let (roots, list) = (authority.bundle().to_pem(), list_of(&authority));
        let plain = CertificateValidationContext {
            trusted_ca: inline(roots.clone()),
            crl: inline(list.clone()),
            ..CertificateValidationContext::default()
        };
        let trust_domain = validator::TrustDomain {
            name: "cluster.local".into(),
            trust_bundle: inline(roots.clone() + &list),
            ..validator::TrustDomain::default()
        };
        let config = SpiffeCertValidatorConfig { trust_domains: vec![trust_domain], ..Default::default() };
        let typed = Any { type_url: SpiffeCertValidatorConfig::type_url(), value: config.encode_to_vec() };
        let by_domain = CertificateValidationContext {
            custom_validator_config: Some(envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig {
                name: "envoy.tls.cert_validator.spiffe".into(),
                typed_config: Some(typed),
            }),
            ..CertificateValidationContext::default()
        };
        for context in [plain, by_domain] {
            let bundles = bundles_of(&context, &own()).unwrap();
            assert_eq!(bundles.revocations(&own()).unwrap().lists().map(Crl::len).collect::<Vec<_>>(), [1]);
        }
        let without = CertificateValidationContext { trusted_ca: inline(roots), ..Default::default() };
        assert!(bundles_of(&without, &own()).unwrap().revocations(&own()).is_none());
    }

    #[test]
    fn a_list_that_cannot_be_used_refuses_the_secret() {
        let authority = Authority::new();
        let bad = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_owned();
        let context = CertificateValidationContext {
            trusted_ca: inline(authority.bundle().to_pem()),
            crl: inline(bad),
            ..CertificateValidationContext::default()
        };
        assert!(matches!(bundles_of(&context, &own()), Err(SecretError::Crl(_))));
    }
}
