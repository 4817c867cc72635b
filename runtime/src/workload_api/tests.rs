//! Following a scripted agent.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Mutex;

use identity::authority::{LeafProfile, X509Authority};
use identity::tls::Snapshot;
use proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use proto::workload::*;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Response;
use tonic::service::Routes;

use super::*;
use crate::clock;

type Sending = tokio::sync::mpsc::Sender<Result<X509svidResponse, Status>>;
type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// An agent whose X.509 streams are fed by the test.
#[derive(Clone, Default)]
struct Agent(Arc<Mutex<Vec<Sending>>>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for Agent {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<WitsvidResponse>;
    type FetchWITBundlesStream = Answers<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        assert_eq!(request.metadata().get("workload.spiffe.io").unwrap(), "true");
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        self.0.lock().unwrap().push(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let svid = request.into_inner().audience.join(" ");
        let svids = vec![Jwtsvid { spiffe_id: "spiffe://example.org/a".into(), svid, hint: "h".into() }];
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_witsvid(&self, _: Request<WitsvidRequest>) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Scene {
    agent: Agent,
    root: X509Authority,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let domain = TrustDomain::parse("example.org").unwrap();
        let root = X509Authority::generate_root(&domain, Duration::from_secs(3600), clock::now()).unwrap();
        let scene = Self { agent: Agent::default(), root, path, _dir: dir };
        let listener = crate::listen::unix(&scene.path, 0o600).unwrap();
        let router = Routes::new(SpiffeWorkloadApiServer::new(scene.agent.clone())).prepare().into_axum_router();
        let establish = |stream: UnixStream| async move { Some((stream, http::Extensions::new())) };
        tokio::spawn(crate::serve::grpc(listener, establish, router, crate::serve::Limits::default(), Shutdown::new()));
        scene
    }

    /// The sending side of the next stream that the client opens.
    async fn stream(&self) -> Sending {
        loop {
            if let Some(sender) = self.agent.0.lock().unwrap().pop() {
                return sender;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn message(&self, path: &str) -> X509svidResponse {
        let key = PrivateKey::generate_p256().unwrap();
        let id = TrustDomain::parse("example.org").unwrap().with_path(path).unwrap();
        let profile = LeafProfile::new(id.clone(), Duration::from_secs(600));
        let chain = self.root.sign_svid(&key.public_key_spki(), &profile, clock::now()).unwrap();
        let svid = X509svid {
            spiffe_id: id.to_string(),
            x509_svid: chain.iter().flat_map(|der| der.to_vec()).collect(),
            x509_svid_key: key.pkcs8_der().to_vec(),
            bundle: self.root.certificate().to_vec(),
            hint: "hint".into(),
        };
        X509svidResponse { svids: vec![svid], ..X509svidResponse::default() }
    }
}

#[tokio::test]
async fn an_identity_is_followed_as_it_rotates() {
    let scene = Scene::start();
    let source = watch(scene.path.clone(), Shutdown::new());
    let stream = scene.stream().await;
    stream.send(Ok(scene.message("/one"))).await.unwrap();
    let first = source.wait_ready().await;
    assert_eq!((first.svid().id().path(), first.svid().hint()), ("/one", "hint"));
    assert_eq!(first.bundles().len(), 1);
    let mut changes = source.subscribe();
    stream.send(Ok(scene.message("/two"))).await.unwrap();
    changes.changed().await.unwrap();
    assert_eq!(source.svid().unwrap().id().path(), "/two");
}

#[tokio::test]
async fn an_identity_outlives_the_agent_and_is_taken_up_again() {
    let scene = Scene::start();
    let source = watch(scene.path.clone(), Shutdown::new());
    let stream = scene.stream().await;
    stream.send(Ok(scene.message("/one"))).await.unwrap();
    source.wait_ready().await;
    let mut changes = source.subscribe();
    stream.send(Err(Status::unavailable("restarting"))).await.unwrap();
    let again = scene.stream().await;
    assert_eq!(source.svid().unwrap().id().path(), "/one");
    again.send(Ok(scene.message("/two"))).await.unwrap();
    changes.changed().await.unwrap();
    assert_eq!(source.svid().unwrap().id().path(), "/two");
}

#[tokio::test]
async fn a_withdrawn_identity_is_not_used_any_more() {
    let scene = Scene::start();
    let source = watch(scene.path.clone(), Shutdown::new());
    let stream = scene.stream().await;
    stream.send(Ok(scene.message("/one"))).await.unwrap();
    source.wait_ready().await;
    let mut changes = source.subscribe();
    stream
        .send(Err(refusal::status(Code::PermissionDenied, "NO_IDENTITY_ISSUED", "no identity issued")))
        .await
        .unwrap();
    changes.changed().await.unwrap();
    assert!(source.current().is_none() && source.svid().is_none());
}

#[tokio::test]
async fn a_message_that_breaks_the_standard_is_ignored() {
    let scene = Scene::start();
    let source = watch(scene.path.clone(), Shutdown::new());
    let stream = scene.stream().await;
    let good = scene.message("/one");
    let broken = |change: fn(&mut X509svid)| {
        let mut message = good.clone();
        change(&mut message.svids[0]);
        message
    };
    for message in [
        X509svidResponse::default(),
        broken(|svid| svid.x509_svid.truncate(20)),
        broken(|svid| svid.x509_svid_key.clear()),
        broken(|svid| svid.bundle = vec![1, 2, 3]),
        broken(|svid| svid.spiffe_id = "spiffe://example.org/other".into()),
        broken(|svid| svid.x509_svid_key = PrivateKey::generate_p256().unwrap().pkcs8_der().to_vec()),
    ] {
        assert!(decode(message.clone()).is_err());
        stream.send(Ok(message)).await.unwrap();
    }
    stream.send(Ok(good)).await.unwrap();
    assert_eq!(source.wait_ready().await.svid().id().path(), "/one");
}

#[tokio::test]
async fn jwt_svids_are_fetched_and_never_shown() {
    let scene = Scene::start();
    let svids = fetch_jwt(&scene.path.clone().into(), vec!["db".into(), "web".into()], None).await.unwrap();
    assert_eq!((svids[0].token.as_str(), svids[0].hint.as_str()), ("db web", "h"));
    assert!(!format!("{svids:?}").contains("db web"));
}

#[tokio::test]
async fn a_missing_agent_is_named() {
    let error = fetch_x509(&PathBuf::from("/nonexistent/agent.sock").into()).await.unwrap_err();
    assert_eq!(error.reason(), "AGENT_UNREACHABLE");
    assert!(error.to_string().contains("/nonexistent/agent.sock"));
}

#[tokio::test]
async fn dropping_the_source_closes_its_stream() {
    let scene = Scene::start();
    let source = watch(scene.path.clone(), Shutdown::new());
    let stream = scene.stream().await;
    drop(source);
    stream.closed().await;
}

#[test]
fn the_empty_source_trusts_nobody() {
    let (_publisher, source) = publisher();
    assert!(source.svid().is_none() && source.bundles().is_empty());
}

#[tokio::test]
async fn revocation_lists_are_heeded_and_dropped_when_they_come_no_more() {
    let scene = Scene::start();
    let source = watch(scene.path.clone(), Shutdown::new());
    let stream = scene.stream().await;
    let (peer, message) = (scene.message("/peer"), scene.message("/one"));
    let chain = split_concatenated_der(&peer.svids[0].x509_svid).unwrap();
    let summary = identity::summary::CertificateSummary::decode(&chain[0]).unwrap();
    let revoked = identity::authority::RevokedSerial {
        serial: identity::revocation::serial_bytes(&summary.serial).unwrap(),
        at: clock::now(),
        reason: None,
    };
    let profile = identity::authority::CrlProfile {
        number: 1,
        this_update: clock::now(),
        next_update: clock::now() + Duration::from_secs(600),
        revoked: vec![revoked],
        distribution_point: None,
    };
    let crl = vec![scene.root.sign_crl(&profile).unwrap()];
    let judge = || {
        let now = identity::unix_time(clock::now());
        identity::verify::verify_peer(&chain, &source.bundles(), now).map_err(|error| error.reason())
    };
    let mut changes = source.subscribe();
    for (crl, expected) in [(Vec::new(), None), (crl, Some("CERT_REVOKED")), (Vec::new(), None)] {
        stream.send(Ok(X509svidResponse { crl, ..message.clone() })).await.unwrap();
        changes.changed().await.unwrap();
        assert_eq!(judge().err(), expected);
    }
    assert!(decode(X509svidResponse { crl: vec![vec![1, 2, 3]], ..message }).is_err(), "all or nothing");
}
