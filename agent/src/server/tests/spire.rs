//! The agent at a server of SPIRE, which knows none of our own calls. The answers are those of `spire-server` 1.15.3, as it
//! was seen to give them.

use identity::BundleSet;

use super::*;

impl Scene {
    fn stock() -> Self {
        let ca = FakeCa::new(Clock::system(), Duration::from_secs(600));
        let server = Server::start_stock(ca.clone());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("roots.pem"), ca.bundle.lock().unwrap().to_pem()).unwrap();
        Self { ca, server, dir }
    }
}

/// The name that a token gave the node comes as an entry among the others; it is nobody's identity.
#[tokio::test]
async fn an_agent_gets_all_it_needs_from_a_stock_server() {
    let scene = Scene::stock();
    let named = ["spiffe_id:spiffe://example.org/spire/agent/join_token/t"];
    let federated = crate::fake::changed(&own_entry("w", "/w"), |entry| {
        entry.federates_with = [identity::TrustDomain::parse("fed.org").unwrap()].into();
    });
    *scene.ca.entries.lock().unwrap() = vec![entry("n", "/n1", &named), federated];
    let running = scene.token("t").agent();
    running.wait_ready().await;
    let fetched = fetch_x509(&scene.endpoint()).await.unwrap();
    assert_eq!(fetched.svid().id().as_str(), "spiffe://example.org/w");
    let token = runtime::workload_api::fetch_jwt(&scene.endpoint(), vec!["db".into()], None).await.unwrap().remove(0);
    let bundles = BundleSet::new([Arc::new(scene.ca.bundle.lock().unwrap().clone())]);
    let verified = identity::jwt::verify_svid(&token.token, &bundles, "db", std::time::SystemTime::now()).unwrap();
    assert_eq!(verified.spiffe_id().path(), "/w");
    while scene.ca.posted.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_a_stock_server_evicted_attests_again_within_a_sync() {
    let scene = Scene::stock();
    scene.ca.entries.lock().unwrap().push(own_entry("w", "/w"));
    std::fs::write(scene.dir.path().join("psat"), "a.b.c\n").unwrap();
    let running = scene.agent_with(|settings| {
        let token_file = settings.join_token_file.take().unwrap().with_file_name("psat");
        settings.k8s_psat = Some(crate::settings::KubernetesPsat { cluster: "prod".into(), token_file });
    });
    running.wait_ready().await;
    let serial = async || running.page("/certs").await["agent"]["serial"].clone();
    let first = serial().await;
    scene.ca.evicted.store(true, Ordering::SeqCst);
    let back = async {
        while scene.ca.joins.load(Ordering::SeqCst) < 2 || serial().await == first {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.expect("half of the SVID's life is not waited for");
    assert_eq!(fetch_x509(&scene.endpoint()).await.unwrap().svid().id().path(), "/w");
    running.stop().await.unwrap();
}
