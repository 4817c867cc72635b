//! The kubelet's list, as a kubelet of Kubernetes 1.31 writes it (cut down to what is read), served over HTTPS on loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use identity::authority::WebAuthority;
use identity::tls::{ClientAuth, SniCertificates, certified_key_from_pem, web};
use runtime::serve::{self, Limits};
use runtime::shutdown::Shutdown;
use serde_json::{Value, json};

use super::*;

const ID: &str = "3f2c0a9d8b7e6f5a4c3b2a1908f7e6d5c4b3a29180f7e6d5c4b3a2918f7e6d5c";
const POD: &str = "0f6a1f3c-7d2b-4b1e-9a53-2d9a6a1b7c11";

fn pods() -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [
        {"metadata": {"name": "other", "namespace": "x", "uid": "5d2b"}, "spec": {}, "status": {}},
        {
            "metadata": {
                "name": "web-5f7c9-abcde", "namespace": "shop", "uid": POD, "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": "web", "pod-template-hash": "5f7c9"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5f7c9", "uid": "77aa", "controller": true}],
            },
            "spec": {"nodeName": "node-1", "serviceAccountName": "web", "containers": [{"name": "app", "image": "web:1"}]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "app", "image": "registry/web:1", "imageID": "registry/web@sha256:aa", "containerID": format!("containerd://{ID}")},
                {"name": "log", "image": "registry/log:2", "imageID": "", "containerID": "containerd://ff"},
            ]},
        },
    ]})
}

/// A kubelet on loopback: `list` answers the how-many-eth question.
struct Node {
    dir: tempfile::TempDir,
    url: String,
    asked: Arc<AtomicUsize>,
    shutdown: Shutdown,
}

impl Node {
    async fn start(list: impl Fn(usize) -> Value + Clone + Send + Sync + 'static) -> Self {
        let year = Duration::from_secs(365 * 86_400);
        let now = std::time::SystemTime::now();
        let authority = WebAuthority::generate("kubelet", year, now).unwrap();
        let server = authority.issue_server(&[], &["127.0.0.1".parse().unwrap()], year / 2, now).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.certificate_pem()).unwrap();
        std::fs::write(dir.path().join("token"), "t0ken\n").unwrap();
        let key = certified_key_from_pem(server.certificate_pem().as_bytes(), server.key_pem().as_bytes()).unwrap();
        let certificates = Arc::new(SniCertificates::new().with_default(key));
        let config = web::server_config(certificates, ClientAuth::None, b"", &[b"http/1.1"]).unwrap();
        let (asked, shutdown) = (Arc::new(AtomicUsize::new(0)), Shutdown::new());
        let count = asked.clone();
        let answer = move |headers: HeaderMap| {
            let (count, list) = (count.clone(), list.clone());
            async move {
                if headers.get("authorization").is_none_or(|shown| shown != "Bearer t0ken") {
                    return (StatusCode::UNAUTHORIZED, String::new());
                }
                (StatusCode::OK, list(count.fetch_add(1, Ordering::SeqCst)).to_string())
            }
        };
        let listener = runtime::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let establish = move |(stream, _): (tokio::net::TcpStream, _)| {
            let acceptor = acceptor.clone();
            async move { Some((acceptor.accept(stream).await.ok()?, http::Extensions::new())) }
        };
        let router = Router::new().route("/pods", get(answer));
        tokio::spawn(serve::run(listener, establish, router, Limits::default(), shutdown.clone()));
        Self { dir, url, asked, shutdown }
    }

    fn kubelet(&self, change: impl FnOnce(&mut KubeletSettings)) -> Kubelet {
        let mut settings = KubeletSettings {
            url: self.url.clone(),
            ca_file: Some(self.dir.path().join("ca.pem")),
            danger_skip_verification: false,
            token_file: self.dir.path().join("token"),
        };
        change(&mut settings);
        Kubelet::new(settings)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

#[tokio::test]
async fn a_container_is_known_by_pod_account_labels_owner_and_image() {
    let node = Node::start(|_| pods()).await;
    let facts = node.kubelet(|_| ()).facts(POD, Some(ID)).await.unwrap();
    let facts: Vec<String> = facts.iter().map(ToString::to_string).collect();
    for expected in [
        "k8s:ns:shop",
        "k8s:sa:web",
        "k8s:node-name:node-1",
        "k8s:pod-name:web-5f7c9-abcde",
        "k8s:pod-label:app:web",
        "k8s:pod-owner:ReplicaSet:web-5f7c9",
        "k8s:pod-owner-uid:ReplicaSet:77aa",
        "k8s:container-name:app",
        "k8s:container-image:registry/web@sha256:aa",
        "k8s:pod-image-count:2",
        "k8s:pod-image:registry/log:2",
    ] {
        assert!(facts.contains(&expected.to_owned()), "{expected} not in {facts:?}");
    }
    assert!(!facts.contains(&"k8s:container-name:log".to_owned()), "the other container's");
}

#[tokio::test]
async fn a_container_that_has_just_started_is_asked_for_again_and_questions_are_shared() {
    let node = Node::start(|count| if count == 0 { json!({"items": []}) } else { pods() }).await;
    let kubelet = node.kubelet(|_| ());
    assert!(!kubelet.facts(POD, Some(ID)).await.unwrap().is_empty());
    assert_eq!(node.asked.load(Ordering::SeqCst), 2);
    let many = (0..20).map(|_| kubelet.facts(POD, Some(ID)));
    for facts in futures_util::future::join_all(many).await {
        assert!(!facts.unwrap().is_empty());
    }
    assert!(node.asked.load(Ordering::SeqCst) <= 4, "{:?}", node.asked);
}

#[tokio::test]
async fn a_pod_or_container_that_is_not_there_has_no_facts() {
    let node = Node::start(|_| pods()).await;
    let kubelet = node.kubelet(|_| ());
    assert!(kubelet.facts("11111111-7d2b-4b1e-9a53-2d9a6a1b7c11", None).await.unwrap().is_empty());
    assert!(kubelet.facts(POD, Some(&ID.replace('3', "9"))).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_kubelet_that_does_not_prove_itself_or_refuses_tells_nothing() {
    let node = Node::start(|_| pods()).await;
    let year = Duration::from_secs(365 * 86_400);
    let other = WebAuthority::generate("kubelet", year, std::time::SystemTime::now()).unwrap();
    let wrong = node.dir.path().join("other.pem");
    std::fs::write(&wrong, other.certificate_pem()).unwrap();
    let error = node.kubelet(|settings| settings.ca_file = Some(wrong)).facts(POD, None).await.unwrap_err();
    assert!(matches!(error, KubeletError::Fetch(FetchError::Connect { .. })), "{error:?}");
    std::fs::write(node.dir.path().join("bad"), "wrong").unwrap();
    let bad = node.dir.path().join("bad");
    let error = node.kubelet(|settings| settings.token_file = bad).facts(POD, None).await.unwrap_err();
    assert!(matches!(error, KubeletError::Fetch(FetchError::Status { .. })), "{error:?}");
    let skip = node.kubelet(|settings| (settings.ca_file, settings.danger_skip_verification) = (None, true));
    assert!(!skip.facts(POD, None).await.unwrap().is_empty());
    let unproven = KubeletSettings { ca_file: None, ..node.kubelet(|_| ()).settings };
    assert!(unproven.problem().is_some());
}
