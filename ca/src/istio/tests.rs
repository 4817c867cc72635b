//! The CSR API as ztunnel and the Istio agent meet it, and as those meet it who should get nothing.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use identity::bundle::{BundleSet, TrustBundle};
use identity::key::PrivateKey;
use identity::svid::X509Svid;
use identity::tls::{FixedSnapshot, PeerRule};
use identity::{unix_time, verify};
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use tonic::Code;

use super::*;
use crate::entry::Selector;
use crate::testing::running::{Running, reason};
use crate::testing::{TokenIssuer, id, trust_domain};

struct Mesh {
    ca: Running,
    issuer: TokenIssuer,
}

impl Mesh {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut crate::Settings)) -> Self {
        let issuer = TokenIssuer::new();
        let ca = Running::start_with(|settings| {
            settings.istio_csr = Some("127.0.0.1:0".parse().unwrap());
            settings.service_account_issuers = vec![issuer.settings()];
            change(settings);
        });
        Self { ca: ca.await, issuer }
    }

    async fn ask(&self, authorization: Option<&str>, request: IstioCertificateRequest) -> Result<Vec<String>, Status> {
        let pem = std::fs::read(self.ca.path("bundle.pem")).unwrap();
        let bundle = TrustBundle::from_pem(trust_domain(), &pem).unwrap();
        let snapshot = FixedSnapshot { svid: None, bundles: Arc::new(BundleSet::new([Arc::new(bundle)])) };
        let addr = self.ca.addresses.istio_csr.unwrap().to_string();
        let channel = runtime::mtls::channel(&addr, Arc::new(snapshot), PeerRule::exactly(id("/spire/server")));
        let mut request = Request::new(request);
        if let Some(value) = authorization {
            request.metadata_mut().insert("authorization", value.parse().unwrap());
        }
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.issuer.token("default", "cart"))
    }
}

impl Mesh {
    /// Asks with a certificate in the place of a token.
    async fn ask_as(&self, svid: X509Svid, request: IstioCertificateRequest) -> Result<Vec<String>, Status> {
        let pem = std::fs::read(self.ca.path("bundle.pem")).unwrap();
        let bundle = TrustBundle::from_pem(trust_domain(), &pem).unwrap();
        let bundles = Arc::new(BundleSet::new([Arc::new(bundle)]));
        let snapshot = FixedSnapshot { svid: Some(Arc::new(svid)), bundles };
        let addr = self.ca.addresses.istio_csr.unwrap().to_string();
        let channel = runtime::mtls::channel(&addr, Arc::new(snapshot), PeerRule::exactly(id("/spire/server")));
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }
}

fn svid_of(chain: &[String], key: PrivateKey) -> X509Svid {
    let chain = chain[..chain.len() - 1].iter().flat_map(|text| pem::decode_certificates(text.as_bytes()).unwrap());
    X509Svid::from_parts(chain.collect(), key).unwrap()
}

#[tokio::test]
async fn tokens_that_prove_nothing_are_held_against_the_address_and_others_are_not() {
    let limits = crate::AddressLimitSettings { requests_per_minute: 10, refusals_per_minute: 5, ..Default::default() };
    let mesh = Mesh::start_with(|settings| settings.address_limits = limits).await;
    let first = PrivateKey::generate_p256().unwrap();
    let chain = mesh.ask(Some(&mesh.bearer()), request(&first)).await.unwrap();
    for _ in 0..20 {
        mesh.ask(Some(&mesh.bearer()), request(&first)).await.unwrap();
    }
    for _ in 0..5 {
        assert_eq!(mesh.ask(Some("Bearer x.y.z"), request(&first)).await.unwrap_err().code(), Code::Unauthenticated);
    }
    let refused = mesh.ask(Some(&mesh.bearer()), request(&first)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(reason(Err::<(), _>(refused)), "ADDRESS_RATE_LIMITED");
    let second = PrivateKey::generate_p256().unwrap();
    assert!(mesh.ask_as(svid_of(&chain, first), request(&second)).await.is_ok(), "by its certificate it goes on");
}

async fn a_certificate_is_renewed_by_showing_it_and_nothing_else_is() {
    let mesh = Mesh::start().await;
    let (first, second) = (PrivateKey::generate_p256().unwrap(), PrivateKey::generate_p256().unwrap());
    let chain = mesh.ask(Some(&mesh.bearer()), request(&first)).await.unwrap();
    let old = svid_of(&chain, first);
    let new = svid_of(&mesh.ask_as(old.clone(), request(&second)).await.unwrap(), second);
    assert_eq!((new.id(), new.serial() == old.serial()), (old.id(), false));
    let for_another = with_metadata("ImpersonatedIdentity", "spiffe://example.org/ns/default/sa/other");
    assert_eq!(reason(mesh.ask_as(old.clone(), for_another).await), "IMPERSONATION_REFUSED");
    // A node's own certificate is no workload's.
    let node = mesh.ca.node(None).await;
    let key = PrivateKey::generate_p256().unwrap();
    assert_eq!(reason(mesh.ask_as((*node).clone(), request(&key)).await), "RENEWAL_REFUSED");
    // Nobody has a record of what another process signed with the same authority.
    let signing = mesh.ca.certifier.authorities.current();
    let profile = identity::authority::LeafProfile::new(old.id().clone(), Duration::from_secs(600));
    let stray = signing.x509.sign_svid(&key.public_key_spki(), &profile, SystemTime::now()).unwrap();
    let stray = X509Svid::from_parts(stray, key.clone()).unwrap();
    assert_eq!(reason(mesh.ask_as(stray, request(&key)).await), "RENEWAL_REFUSED");
    assert_eq!(mesh.ask(None, request(&key)).await.unwrap_err().code(), Code::Unauthenticated, "and nothing at all");
}

fn request(key: &PrivateKey) -> IstioCertificateRequest {
    let csr = key.csr_der(Some(&id("/ns/default/sa/cart"))).unwrap();
    IstioCertificateRequest { csr: pem::encode("CERTIFICATE REQUEST", &csr), validity_duration: 600, metadata: None }
}

fn with_metadata(name: &str, value: &str) -> IstioCertificateRequest {
    let kind = Some(prost_types::value::Kind::StringValue(value.into()));
    let fields = [(name.to_owned(), prost_types::Value { kind })].into();
    let key = PrivateKey::generate_p256().unwrap();
    IstioCertificateRequest { metadata: Some(prost_types::Struct { fields }), ..request(&key) }
}

async fn a_service_account_gets_its_identity_in_the_layout_that_istio_reads() {
    let mesh = Mesh::start().await;
    let key = PrivateKey::generate_p256().unwrap();
    let chain = mesh.ask(Some(&mesh.bearer()), request(&key)).await.unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate, root");
    assert!(chain.iter().all(|element| element.ends_with('\n')));
    assert_eq!(chain[2], std::fs::read_to_string(mesh.ca.path("bundle.pem")).unwrap());
    let ders: Vec<_> =
        chain[..2].iter().flat_map(|element| pem::decode_certificates(element.as_bytes()).unwrap()).collect();
    let bundle = TrustBundle::from_pem(trust_domain(), chain[2].as_bytes()).unwrap();
    let now = SystemTime::now();
    let peer = verify::verify_peer(&ders, &BundleSet::new([Arc::new(bundle)]), unix_time(now)).unwrap();
    assert_eq!(peer.spiffe_id(), &id("/ns/default/sa/cart"));
    let life = peer.not_after().duration_since(now).unwrap().as_secs();
    assert!((598..=600).contains(&life), "{life}");
    let recorded = mesh.ca.certifier.store.issued(10).await.unwrap();
    let record = recorded.iter().find(|record| record.issuance.serial == peer.leaf_serial()).expect("recorded");
    assert_eq!((record.issuance.caller.as_str(), record.kind.as_str()), ("system:serviceaccount:default:cart", "csr"));
}

async fn the_identity_is_the_tokens_whatever_the_csr_says() {
    let mesh = Mesh::start().await;
    let key = PrivateKey::generate_p256().unwrap();
    let csr = key.csr_der_with(Some(&id("/ns/kube-system/sa/admin")), &["evil.example.org".into()]).unwrap();
    let wish = IstioCertificateRequest { csr: pem::encode("CERTIFICATE REQUEST", &csr), ..request(&key) };
    let chain = mesh.ask(Some(&mesh.bearer()), wish).await.unwrap();
    let leaf = pem::decode_certificates(chain[0].as_bytes()).unwrap().remove(0);
    let summary = identity::summary::CertificateSummary::decode(&leaf).unwrap();
    assert_eq!(summary.uris, ["spiffe://example.org/ns/default/sa/cart"]);
    assert!(summary.dns_names.is_empty());
}

async fn who_proves_nothing_is_unauthenticated_and_told_nothing() {
    let mesh = Mesh::start().await;
    let key = PrivateKey::generate_p256().unwrap();
    let stranger = TokenIssuer::new().token("default", "cart");
    let wrong_audience = mesh.issuer.token_with("default", "cart", |claims| {
        claims.insert("aud".into(), serde_json::json!(["other"]));
    });
    let short = mesh.issuer.token_with("default", "cart", |claims| {
        claims.insert("sub".into(), serde_json::json!("system:serviceaccount:default"));
    });
    for (authorization, expected) in [
        (None, "TOKEN_MISSING"),
        (Some("Basic abc".to_owned()), "TOKEN_MISSING"),
        (Some("Bearer".to_owned()), "TOKEN_MISSING"),
        (Some("Bearer x.y.z".to_owned()), "TOKEN_ISSUER_UNKNOWN"),
        (Some(format!("Bearer {stranger}")), "JWT_BAD_SIGNATURE"),
        (Some(format!("Bearer {wrong_audience}")), "JWT_WRONG_AUDIENCE"),
        (Some(format!("Bearer {short}")), "TOKEN_SUBJECT_REFUSED"),
    ] {
        let status = mesh.ask(authorization.as_deref(), request(&key)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "request authentication failure"));
        let told = runtime::refusal::reason_of(&status).unwrap();
        assert!(told == expected || (expected == "JWT_BAD_SIGNATURE" && told == "JWT_NO_KEY"), "{told} for {expected}");
    }
    let failures = mesh.ca.certifier.counts.csr().authentication_failures.load(Ordering::Relaxed);
    assert_eq!(failures, 7);
}

async fn a_bad_csr_or_life_is_an_invalid_argument_and_never_internal() {
    let mesh = Mesh::start().await;
    let key = PrivateKey::generate_p256().unwrap();
    let mut der = key.csr_der(None).unwrap();
    *der.last_mut().unwrap() ^= 1;
    let forged = pem::encode("CERTIFICATE REQUEST", &der);
    for (csr, expected) in [
        (forged, "CSR_BAD_SIGNATURE"),
        (String::new(), "CSR_MALFORMED"),
        ("junk".into(), "CSR_MALFORMED"),
        (pem::encode("CERTIFICATE REQUEST", b"junk"), "CSR_MALFORMED"),
        ("x".repeat(100_000), "CSR_MALFORMED"),
    ] {
        let status =
            mesh.ask(Some(&mesh.bearer()), IstioCertificateRequest { csr, ..request(&key) }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason::<()>(Err(status)), expected);
    }
    let backwards = IstioCertificateRequest { validity_duration: -1, ..request(&key) };
    assert_eq!(reason(mesh.ask(Some(&mesh.bearer()), backwards).await), "TTL_INVALID");
}

async fn a_long_life_is_cut_and_none_is_the_default() {
    let mesh = Mesh::start().await;
    for (asked, expected) in [(0, 3600), (86_400, 86_400), (i64::MAX, 86_400)] {
        let key = PrivateKey::generate_p256().unwrap();
        let wish = IstioCertificateRequest { validity_duration: asked, ..request(&key) };
        let chain = mesh.ask(Some(&mesh.bearer()), wish).await.unwrap();
        let leaf = pem::decode_certificates(chain[0].as_bytes()).unwrap().remove(0);
        let summary = identity::summary::CertificateSummary::decode(&leaf).unwrap();
        let life = summary.not_after().duration_since(SystemTime::now()).unwrap().as_secs();
        assert!((expected - 2..=expected).contains(&life), "{asked}: {life}");
    }
}

async fn nobody_acts_for_others_and_there_is_one_signer() {
    let mesh = Mesh::start().await;
    let bearer = mesh.bearer();
    let other = with_metadata("ImpersonatedIdentity", "spiffe://example.org/ns/default/sa/db");
    let status = mesh.ask(Some(&bearer), other).await.unwrap_err();
    assert_eq!((status.code(), reason::<()>(Err(status)).as_str()), (Code::Unauthenticated, "IMPERSONATION_REFUSED"));
    let own = with_metadata("ImpersonatedIdentity", "spiffe://example.org/ns/default/sa/cart");
    assert!(mesh.ask(Some(&bearer), own).await.is_ok());
    assert!(mesh.ask(Some(&bearer), with_metadata("CertSigner", "")).await.is_ok(), "agents always send it");
    let status = mesh.ask(Some(&bearer), with_metadata("CertSigner", "k8s.example/x")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

async fn nothing_else_is_served_beside_it() {
    let mesh = Mesh::start().await;
    let addr = mesh.ca.addresses.istio_csr.unwrap().to_string();
    let snapshot = Arc::new(mesh.ca.snapshot(None));
    let channel = runtime::mtls::channel(&addr, snapshot, PeerRule::exactly(id("/spire/server")));
    let mut client = proto::spire::api::server::bundle::v1::bundle_client::BundleClient::new(channel);
    assert_eq!(
        client.get_bundle(proto::spire::api::server::bundle::v1::GetBundleRequest::default()).await.unwrap_err().code(),
        Code::Unimplemented
    );
}

/// A node that Kubernetes calls `name`, attested.
async fn attested(ca: &Running, path: &str, cluster: &str, name: &str) {
    let node = ca.node(None).await;
    let id = node.id().clone();
    let (cluster, name) = (format!("cluster:{cluster}"), format!("agent_node_name:{name}"));
    let change = ca.certifier.store.change_agent(&id, move |agent| {
        agent.selectors = [Selector::new("k8s_psat", cluster), Selector::new("k8s_psat", name)].into();
    });
    change.await.unwrap().unwrap();
    ca.entry(path, id.path()).await;
}

/// The token of an account that is bound to a node.
fn bound(issuer: &TokenIssuer, namespace: &str, name: &str, node: &str) -> String {
    let node = node.to_owned();
    let token = issuer.token_with(namespace, name, move |claims| {
        claims.insert("kubernetes.io".into(), serde_json::json!({"node": {"name": node}}));
    });
    format!("Bearer {token}")
}

fn uris(chain: &[String]) -> Vec<String> {
    let leaf = pem::decode_certificates(chain[0].as_bytes()).unwrap().remove(0);
    identity::summary::CertificateSummary::decode(&leaf).unwrap().uris
}

async fn a_node_proxy_gets_the_identities_of_its_own_node_and_no_others() {
    let issuer = TokenIssuer::new();
    let ca = Running::start_with(|settings| {
        settings.istio_csr = Some("127.0.0.1:0".parse().unwrap());
        settings.service_account_issuers = vec![issuer.settings()];
        settings.istio.trusted_node_accounts = vec!["istio-system/ztunnel".into()];
    });
    let mesh = Mesh { ca: ca.await, issuer };
    attested(&mesh.ca, "/ns/default/sa/cart", "one", "node-a").await;
    attested(&mesh.ca, "/ns/default/sa/db", "one", "node-b").await;
    let ask =
        async |token: &str, wanted: &str| mesh.ask(Some(token), with_metadata("ImpersonatedIdentity", wanted)).await;
    let on = |node: &str| bound(&mesh.issuer, "istio-system", "ztunnel", node);
    let cart = "spiffe://example.org/ns/default/sa/cart";
    let chain = ask(&on("node-a"), cart).await.unwrap();
    assert_eq!(uris(&chain), [cart]);
    let recorded = mesh.ca.certifier.store.issued(10).await.unwrap().into_iter().map(|record| record.issuance);
    let recorded = recorded.into_iter().find(|record| record.spiffe_id == cart).expect("recorded");
    assert_eq!(recorded.caller, "system:serviceaccount:istio-system:ztunnel");
    assert!(!recorded.entry_id.is_empty(), "by which entry");
    let of_a = |entry: &&Arc<crate::entry::Entry>| entry.spiffe_id == id("/ns/default/sa/cart");
    let parent = mesh.ca.certifier.store.registry().entries_after("").find(of_a).unwrap().parent_id.path().to_owned();
    mesh.ca.entry_with("/ns/default/sa/boss", &parent, |entry| entry.admin = true).await.unwrap();

    let unbound = format!("Bearer {}", mesh.issuer.token("istio-system", "ztunnel"));
    let stranger = bound(&mesh.issuer, "default", "cart", "node-b");
    for (what, token, wanted) in [
        ("on another node", on("node-a"), "spiffe://example.org/ns/default/sa/db"),
        ("of an administrator", on("node-a"), "spiffe://example.org/ns/default/sa/boss"),
        ("of nobody", on("node-a"), "spiffe://example.org/ns/default/sa/none"),
        ("of another trust domain", on("node-a"), "spiffe://other.org/ns/default/sa/cart"),
        ("that is no service account", on("node-a"), "spiffe://example.org/spire/server"),
        ("that is no ID", on("node-a"), "cart"),
        ("from a node that nobody attested", on("node-c"), cart),
        ("without a node", unbound, cart),
        ("by an account that is not trusted", stranger, "spiffe://example.org/ns/default/sa/db"),
    ] {
        let status = ask(&token, wanted).await.unwrap_err();
        let fixed = "request impersonation authentication failure";
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, fixed), "{what}");
        assert_eq!(reason::<()>(Err(status)), "IMPERSONATION_REFUSED", "{what}");
    }
    let own = "spiffe://example.org/ns/istio-system/sa/ztunnel";
    assert_eq!(uris(&ask(&on("node-a"), own).await.unwrap()), [own]);

    // Two nodes of one name: nobody knows which is meant.
    attested(&mesh.ca, "/ns/default/sa/cart", "two", "node-a").await;
    assert!(ask(&on("node-a"), cart).await.is_err());
    let node = mesh
        .ca
        .certifier
        .store
        .registry()
        .agents()
        .find(|a| a.selectors.contains(&Selector::new("k8s_psat", "agent_node_name:node-b")))
        .unwrap()
        .id
        .clone();
    let ban = mesh.ca.certifier.store.change_agent(&node, |agent| agent.banned = true);
    ban.await.unwrap().unwrap();
    assert!(ask(&on("node-b"), "spiffe://example.org/ns/default/sa/db").await.is_err(), "a banned node");
}

#[test]
fn accounts_of_node_proxies_have_a_namespace_and_a_name() {
    let check = |account: &str| {
        IstioSettings { trusted_node_accounts: vec![account.into()], ..IstioSettings::default() }.misfit().is_none()
    };
    assert!(check("istio-system/ztunnel"));
    for bad in ["", "ztunnel", "/ztunnel", "istio-system/", "a/b/c", "A/b", "system:serviceaccount:a:b"] {
        assert!(!check(bad), "{bad}");
    }
}

crate::testing::database::on_each_database! {
    a_certificate_is_renewed_by_showing_it_and_nothing_else_is,
    a_node_proxy_gets_the_identities_of_its_own_node_and_no_others,
    a_service_account_gets_its_identity_in_the_layout_that_istio_reads,
    the_identity_is_the_tokens_whatever_the_csr_says,
    who_proves_nothing_is_unauthenticated_and_told_nothing,
    a_bad_csr_or_life_is_an_invalid_argument_and_never_internal,
    a_long_life_is_cut_and_none_is_the_default,
    nobody_acts_for_others_and_there_is_one_signer,
    nothing_else_is_served_beside_it,
}
