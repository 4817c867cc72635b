//! Handshakes carried by hand between two ends in memory.

use std::sync::RwLock;
use std::time::{Duration, SystemTime};

use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;
use crate::authority::{LeafProfile, WebAuthority, X509Authority};
use crate::bundle::TrustBundle;
use crate::key::PrivateKey;
use crate::unix_time;

const HOUR: Duration = Duration::from_secs(3600);

/// rustls itself reads the clock in a handshake, so these tests live in the present.
fn now() -> SystemTime {
    SystemTime::now()
}

struct Mesh {
    root: X509Authority,
}

impl Mesh {
    fn new() -> Self {
        Self { root: X509Authority::generate_root(&TrustDomain::parse("td").unwrap(), HOUR, now()).unwrap() }
    }

    fn id(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://td/ns/shop/sa/{name}")).unwrap()
    }

    fn svid(&self, name: &str, ttl: Duration, now: SystemTime) -> Arc<X509Svid> {
        let key = PrivateKey::generate_p256().unwrap();
        let profile = LeafProfile::new(Self::id(name), ttl);
        let chain = self.root.sign_svid(&key.public_key_spki(), &profile, now).unwrap();
        Arc::new(X509Svid::from_parts(chain, key).unwrap())
    }

    fn bundles(&self) -> Arc<BundleSet> {
        let roots = [self.root.certificate().clone()];
        let bundle = TrustBundle::from_x509_authorities(self.root.trust_domain().clone(), roots).unwrap();
        Arc::new(BundleSet::new([Arc::new(bundle)]))
    }

    fn holder(&self, name: &str) -> Arc<FixedSnapshot> {
        Arc::new(FixedSnapshot { svid: Some(self.svid(name, HOUR, now())), bundles: self.bundles() })
    }

    fn without_svid(&self) -> Arc<FixedSnapshot> {
        Arc::new(FixedSnapshot { svid: None, bundles: self.bundles() })
    }
}

/// Both ends of a handshake carried by hand, and the errors each end saw.
struct Pair {
    client: ClientConnection,
    server: ServerConnection,
    client_error: Option<rustls::Error>,
    server_error: Option<rustls::Error>,
}

fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Pair {
    shake_named(client, server, "outbound_.9095_._.helloworld.default.svc.cluster.local")
}

fn shake_named(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> Pair {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut pair = Pair {
        client: ClientConnection::new(client, name).unwrap(),
        server: ServerConnection::new(server).unwrap(),
        client_error: None,
        server_error: None,
    };
    for _ in 0..6 {
        let mut wire = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut wire).unwrap();
        }
        pair.server.read_tls(&mut wire.as_slice()).unwrap();
        pair.server_error = pair.server.process_new_packets().err().or(pair.server_error);
        let mut wire = Vec::new();
        while pair.server.wants_write() {
            pair.server.write_tls(&mut wire).unwrap();
        }
        pair.client.read_tls(&mut wire.as_slice()).unwrap();
        pair.client_error = pair.client.process_new_packets().err().or(pair.client_error);
    }
    pair
}

fn mtls(client: Arc<dyn Snapshot>, server: Arc<dyn Snapshot>, auth: ClientAuth, expect: PeerRule) -> Pair {
    let client = client_config(client, expect, &[ALPN_H2]).unwrap();
    let server = server_config(server, auth, PeerRule::AnyTrusted, &[ALPN_H2, ALPN_HTTP11]).unwrap();
    shake(client, server)
}

fn reasons(pair: &Pair) -> (Option<&'static str>, Option<&'static str>) {
    (pair.client_error.as_ref().and_then(reason_of), pair.server_error.as_ref().and_then(reason_of))
}

#[test]
fn both_sides_know_each_other_afterwards() {
    let mesh = Mesh::new();
    let pair = mtls(mesh.holder("a"), mesh.holder("b"), ClientAuth::Required, PeerRule::exactly(Mesh::id("b")));
    assert_eq!(reasons(&pair), (None, None));
    let seen = |conn: &CommonState| peer_of(conn, &mesh.bundles(), unix_time(now())).unwrap().unwrap();
    assert_eq!(seen(&pair.server).spiffe_id(), &Mesh::id("a"));
    assert_eq!(seen(&pair.client).spiffe_id(), &Mesh::id("b"));
    assert_eq!(pair.client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let hybrid = cfg!(feature = "aws-lc-rs");
    let group = if hybrid { rustls::NamedGroup::X25519MLKEM768 } else { rustls::NamedGroup::X25519 };
    assert_eq!(pair.client.negotiated_key_exchange_group().unwrap().name(), group);
    assert_eq!(pair.server.alpn_protocol(), Some(ALPN_H2));
    assert_eq!(pair.client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    assert_eq!(pair.client.tls13_tickets_received(), 0);
}

#[test]
fn a_required_client_certificate_is_required() {
    let mesh = Mesh::new();
    let pair = mtls(mesh.without_svid(), mesh.holder("b"), ClientAuth::Required, PeerRule::AnyTrusted);
    assert_eq!(reasons(&pair), (Some("TLS_REFUSED_BY_PEER"), Some("TLS_PEER_CERT_MISSING")));
}

#[test]
fn an_optional_client_certificate_may_be_missing() {
    let mesh = Mesh::new();
    for auth in [ClientAuth::Optional, ClientAuth::None] {
        let pair = mtls(mesh.without_svid(), mesh.holder("b"), auth, PeerRule::AnyTrusted);
        assert_eq!(reasons(&pair), (None, None));
        assert_eq!(peer_of(&pair.server, &mesh.bundles(), unix_time(now())).unwrap(), None);
    }
}

#[test]
fn an_optional_client_certificate_must_still_verify() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let client = Arc::new(FixedSnapshot { svid: other.holder("a").svid(), bundles: mesh.bundles() });
    let pair = mtls(client, mesh.holder("b"), ClientAuth::Optional, PeerRule::AnyTrusted);
    assert_eq!(reasons(&pair), (Some("TLS_REFUSED_BY_PEER"), Some("TLS_PEER_UNTRUSTED")));
}

#[test]
fn the_client_refuses_whom_it_does_not_expect() {
    let mesh = Mesh::new();
    let pair = mtls(mesh.holder("a"), mesh.holder("b"), ClientAuth::Required, PeerRule::exactly(Mesh::id("c")));
    assert_eq!(reasons(&pair), (Some("TLS_PEER_ID_UNEXPECTED"), Some("TLS_REFUSED_BY_PEER")));
    let error = peer_error_of(pair.client_error.as_ref().unwrap()).unwrap();
    assert_eq!(error.claimed_id(), Some(&Mesh::id("b")));
    let io = std::io::Error::new(std::io::ErrorKind::InvalidData, pair.client_error.unwrap());
    assert_eq!(reason_of_io(&io), Some("TLS_PEER_ID_UNEXPECTED"));
}

#[test]
fn reasons_survive_rustls() {
    let mesh = Mesh::new();
    let expired = mesh.svid("b", Duration::from_secs(1), now() - Duration::from_secs(30));
    let server = Arc::new(FixedSnapshot { svid: Some(expired), bundles: mesh.bundles() });
    let pair = mtls(mesh.holder("a"), server, ClientAuth::Required, PeerRule::AnyTrusted);
    assert_eq!(reasons(&pair).0, Some("TLS_PEER_EXPIRED"));

    let stranger = Arc::new(FixedSnapshot { svid: mesh.holder("a").svid(), bundles: Arc::default() });
    let pair = mtls(stranger, mesh.holder("b"), ClientAuth::Required, PeerRule::AnyTrusted);
    assert_eq!(reasons(&pair).0, Some("TLS_PEER_TRUST_DOMAIN_UNKNOWN"));
}

#[test]
fn a_web_certificate_is_no_svid() {
    let mesh = Mesh::new();
    let pair = shake_named(
        client_config(mesh.holder("a"), PeerRule::AnyTrusted, &[]).unwrap(),
        web::server_config(Arc::new(web_certificates("example.org").0), ClientAuth::None, &[], &[]).unwrap(),
        "example.org",
    );
    assert_eq!(reasons(&pair).0, Some("TLS_PEER_NO_SPIFFE_ID"));
}

#[test]
fn protocols_must_agree() {
    let mesh = Mesh::new();
    let client = client_config(mesh.holder("a"), PeerRule::AnyTrusted, &[b"istio"]).unwrap();
    let server = server_config(mesh.holder("b"), ClientAuth::Required, PeerRule::AnyTrusted, &[ALPN_H2]).unwrap();
    assert_eq!(reasons(&shake(client, server)).1, Some("TLS_ALPN_MISMATCH"));
}

struct Rotating(RwLock<Arc<FixedSnapshot>>);

impl Snapshot for Rotating {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        self.0.read().unwrap().svid()
    }

    fn bundles(&self) -> Arc<BundleSet> {
        self.0.read().unwrap().bundles()
    }
}

#[test]
fn rotation_needs_no_new_configuration() {
    let mesh = Mesh::new();
    let source = Arc::new(Rotating(RwLock::new(mesh.without_svid())));
    let server = server_config(source.clone(), ClientAuth::Required, PeerRule::AnyTrusted, &[]).unwrap();
    let client = client_config(mesh.holder("a"), PeerRule::AnyTrusted, &[]).unwrap();
    assert!(shake(Arc::clone(&client), Arc::clone(&server)).server_error.is_some(), "no SVID yet");
    for name in ["b", "c"] {
        *source.0.write().unwrap() = mesh.holder(name);
        let pair = shake(Arc::clone(&client), Arc::clone(&server));
        let peer = peer_of(&pair.client, &mesh.bundles(), unix_time(now())).unwrap().unwrap();
        assert_eq!(peer.spiffe_id(), &Mesh::id(name));
    }
    *source.0.write().unwrap() = Arc::new(FixedSnapshot { svid: mesh.holder("b").svid(), bundles: Arc::default() });
    assert_eq!(reasons(&shake(client, server)).1, Some("TLS_PEER_TRUST_DOMAIN_UNKNOWN"));
}

#[test]
fn rules_permit_what_they_say() {
    let id = Mesh::id("a");
    let parse = |text: &str| SpiffeId::parse(text).unwrap();
    assert!(PeerRule::AnyTrusted.permits(&id));
    assert!(PeerRule::TrustDomain(TrustDomain::parse("td").unwrap()).permits(&id));
    assert!(!PeerRule::TrustDomain(TrustDomain::parse("other").unwrap()).permits(&id));
    assert!(PeerRule::Within(parse("spiffe://td/ns/shop")).permits(&id));
    assert!(!PeerRule::Within(parse("spiffe://td/ns/sho")).permits(&id));
    assert!(!PeerRule::AnyOf(vec![]).permits(&id));
    assert!(PeerRule::Matching(Arc::new(|id| id.path().ends_with("/a"))).permits(&id));
}

fn web_certificates(name: &str) -> (SniCertificates, WebAuthority) {
    let ca = WebAuthority::generate("demo", HOUR, now()).unwrap();
    let issued = ca.issue_server(&[name.to_owned()], &["127.0.0.1".parse().unwrap()], HOUR, now()).unwrap();
    let key = certified_key_from_pem(issued.certificate_pem().as_bytes(), issued.key_pem().as_bytes()).unwrap();
    (SniCertificates::new().with_name(name, Arc::clone(&key)).unwrap(), ca)
}

#[test]
fn the_web_edge_is_verified_by_name() {
    let (certificates, ca) = web_certificates("*.example.org");
    let client = web::client_config(ca.certificate_pem().as_bytes(), None, &[ALPN_H2]).unwrap();
    let server = web::server_config(Arc::new(certificates), ClientAuth::None, &[], &[ALPN_H2]).unwrap();
    let shake_as = |name: &str| shake_named(Arc::clone(&client), Arc::clone(&server), name);
    assert_eq!(reasons(&shake_as("shop.example.org")), (None, None));
    assert_eq!(shake_as("shop.example.org").server.alpn_protocol(), Some(ALPN_H2));
    for name in ["example.org", "a.b.example.org", "other.org"] {
        assert!(shake_as(name).server_error.is_some(), "{name}");
    }
}

#[test]
fn web_clients_refuse_the_wrong_name_and_the_wrong_root() {
    let (certificates, ca) = web_certificates("shop.example.org");
    let fallback = SniCertificates::new().with_default(certificates_default(&certificates));
    let server = web::server_config(Arc::new(fallback), ClientAuth::None, &[], &[]).unwrap();
    let client = web::client_config(ca.certificate_pem().as_bytes(), None, &[]).unwrap();
    let pair = shake_named(Arc::clone(&client), Arc::clone(&server), "other.org");
    assert_eq!(reasons(&pair).0, Some("TLS_PEER_NAME_MISMATCH"));
    assert_eq!(reasons(&shake_named(client, Arc::clone(&server), "127.0.0.1")), (None, None));
    let stranger = WebAuthority::generate("other", HOUR, now()).unwrap();
    let client = web::client_config(stranger.certificate_pem().as_bytes(), None, &[]).unwrap();
    assert_eq!(reasons(&shake_named(client, server, "shop.example.org")).0, Some("TLS_PEER_UNTRUSTED"));
}

fn certificates_default(certificates: &SniCertificates) -> Arc<CertifiedKey> {
    certificates.pick(Some("shop.example.org")).unwrap().clone()
}

#[test]
fn web_clients_can_prove_themselves_by_certificate() {
    let (certificates, ca) = web_certificates("shop.example.org");
    let roots = ca.certificate_pem();
    let server = web::server_config(Arc::new(certificates), ClientAuth::Required, roots.as_bytes(), &[]).unwrap();
    let issued = ca.issue_client("alice", HOUR, now()).unwrap();
    let key = certified_key_from_pem(issued.certificate_pem().as_bytes(), issued.key_pem().as_bytes()).unwrap();
    let with = web::client_config(roots.as_bytes(), Some(key), &[]).unwrap();
    assert_eq!(reasons(&shake_named(with, Arc::clone(&server), "shop.example.org")), (None, None));
    let without = web::client_config(roots.as_bytes(), None, &[]).unwrap();
    assert_eq!(reasons(&shake_named(without, server, "shop.example.org")).1, Some("TLS_PEER_CERT_MISSING"));
}

#[test]
fn certificate_and_key_must_belong_together() {
    let ca = WebAuthority::generate("demo", HOUR, now()).unwrap();
    let [a, b] = [0, 1].map(|_| ca.issue_server(&["x".to_owned()], &[], HOUR, now()).unwrap());
    let error = certified_key_from_pem(a.certificate_pem().as_bytes(), b.key_pem().as_bytes()).unwrap_err();
    assert_eq!(error.reason(), "TLS_CERTIFICATE_INVALID");
    assert!(certified_key_from_pem(b"", b"").is_err());
    assert!(
        SniCertificates::new()
            .with_name(
                "not a name",
                certified_key_from_pem(a.certificate_pem().as_bytes(), a.key_pem().as_bytes()).unwrap()
            )
            .is_err()
    );
}

#[test]
fn an_svid_needs_the_key_of_its_leaf() {
    let mesh = Mesh::new();
    let svid = mesh.svid("a", HOUR, now());
    let error = X509Svid::from_parts(svid.to_chain(), PrivateKey::generate_p256().unwrap()).unwrap_err();
    assert_eq!(error.reason(), "SVID_KEY_MISMATCH");
    assert!(X509Svid::from_parts(vec![], PrivateKey::generate_p256().unwrap()).is_err());
    let again = X509Svid::from_parts(svid.to_chain(), svid.key().clone()).unwrap().with_hint("internal");
    assert_eq!((again.hint(), again.serial(), again.id()), ("internal", svid.serial(), svid.id()));
    assert!(!format!("{again:?}").contains("key"));
}
