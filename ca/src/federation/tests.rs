//! Authorities that federate, each a whole one, and endpoints that should not be believed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use identity::authority::WebAuthority;
use identity::spiffe_id::TrustDomain;
use proto::kasbah::ca::v1::federation_client::FederationClient;
use proto::kasbah::ca::v1::{FederationState, ListStatesRequest};
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{
    BatchSetFederatedBundleRequest, GetBundleRequest, GetFederatedBundleRequest,
};
use proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::localauthority::v1::PrepareX509AuthorityRequest;
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use proto::spire::api::server::trustdomain::v1::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, GetFederationRelationshipRequest, ListFederationRelationshipsRequest,
    RefreshBundleRequest,
};
use proto::spire::api::types;
use proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use runtime::shutdown::Shutdown;
use tonic::{Code, Status};

use super::endpoint::WebCertificate;
use super::{RELATIONSHIPS_MAX, WebEndpoint};
use crate::testing::database::{self, Kind};
use crate::testing::running::{Running, reason, until};

const WAIT: Duration = Duration::from_secs(60);

fn loopback(settings: &mut crate::Settings) {
    settings.federation.allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
}

fn other_domain() -> TrustDomain {
    TrustDomain::parse("other.org").unwrap()
}

/// An authority of another trust domain.
async fn other_with(change: impl FnOnce(&mut crate::Settings)) -> Running {
    Running::start_with(|settings| {
        settings.trust_domain = other_domain();
        change(settings);
    })
    .await
}

async fn own_bundle(ca: &Running) -> types::Bundle {
    BundleClient::new(ca.local().await).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner()
}

fn spiffe_profile(id: &str) -> Option<BundleEndpointProfile> {
    Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: id.into() }))
}

fn web(domain: &str, addr: SocketAddr) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: domain.into(),
        bundle_endpoint_url: format!("https://127.0.0.1:{}/", addr.port()),
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
        trust_domain_bundle: None,
    }
}

/// A relationship of the profile `https_spiffe` with `other`, whose present bundle is given along.
async fn by_svid(other: &Running) -> types::FederationRelationship {
    types::FederationRelationship {
        bundle_endpoint_profile: spiffe_profile("spiffe://other.org/spire/server"),
        trust_domain_bundle: Some(own_bundle(other).await),
        ..web("other.org", other.addresses.bundle_endpoint.unwrap())
    }
}

async fn create(ca: &Running, relationships: Vec<types::FederationRelationship>) -> Vec<types::Status> {
    let request =
        BatchCreateFederationRelationshipRequest { federation_relationships: relationships, output_mask: None };
    let answer = TrustDomainClient::new(ca.local().await).batch_create_federation_relationship(request).await;
    answer.unwrap().into_inner().results.into_iter().map(|result| result.status.unwrap()).collect()
}

async fn refresh(ca: &Running, domain: &str) -> Result<(), Status> {
    let request = RefreshBundleRequest { trust_domain: domain.into() };
    TrustDomainClient::new(ca.local().await).refresh_bundle(request).await.map(|_| ())
}

async fn state(ca: &Running, domain: &str) -> FederationState {
    let request = ListStatesRequest { trust_domain: domain.into() };
    let answer = FederationClient::new(ca.local().await).list_states(request).await.unwrap().into_inner();
    answer.states.into_iter().next().expect("a state")
}

fn roots(ca: &Running) -> usize {
    ca.certifier.store.registry().federated(&other_domain()).map_or(0, |bundle| bundle.x509_authorities.len())
}

async fn a_root_rotation_of_the_other_arrives_at_nodes_by_svid() {
    let (home, other) = (Running::start_with(loopback).await, other_with(|_| ()).await);
    assert_eq!(create(&home, vec![by_svid(&other).await]).await[0].code, 0);
    until("the first fetch", WAIT, async || state(&home, "other.org").await.succeeded_at > 0).await;
    assert_eq!(roots(&home), 1);
    let node = home.node(Some("/node/local")).await;
    home.entry_with("/web", "/node/local", |entry| entry.federates_with = vec!["other.org".into()]).await.unwrap();
    let mut told = home.certifier.store.entries_revision();
    let before = *told.borrow_and_update();

    LocalAuthorityClient::new(other.local().await)
        .prepare_x509_authority(PrepareX509AuthorityRequest {})
        .await
        .unwrap();
    refresh(&home, "other.org").await.unwrap();
    assert_eq!(roots(&home), 2);
    assert!(*told.borrow_and_update() > before, "watching nodes are woken");
    let request = GetFederatedBundleRequest { trust_domain: "other.org".into(), output_mask: None };
    let seen = BundleClient::new(home.network(Some(&node))).get_federated_bundle(request).await.unwrap().into_inner();
    assert_eq!((seen.x509_authorities.len(), seen.sequence_number), (2, 2));
    let state = state(&home, "other.org").await;
    assert_eq!((state.failures, state.reason.as_str(), state.bundle_sequence), (0, "", 2));
    let until_next = state.next_at - state.succeeded_at;
    assert!((300..=331).contains(&until_next), "the endpoint's hint of 300 s: {until_next}");
    let audit = home.certifier.store.audit(&crate::store::AuditFilter::default(), 50).await.unwrap();
    assert!(audit.iter().any(|record| record.action == "federation.create" && record.actor == "local"));
    let refreshed = audit.iter().filter(|record| record.action == "bundle.refresh").count();
    assert!(refreshed >= 1, "{audit:?}");

    // Nothing new leaves no trace but the time.
    let revision = *told.borrow_and_update();
    refresh(&home, "other.org").await.unwrap();
    assert_eq!(*told.borrow_and_update(), revision);
    let (_, body) = runtime::ask::get(home.addresses.admin.unwrap(), "/status").await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&status["federation"][0]["trust_domain"], &status["federation"][0]["bundle_sequence"]),
        (&"other.org".into(), &2.into())
    );
    let (_, metrics) = runtime::ask::get(home.addresses.admin.unwrap(), "/metrics").await.unwrap();
    assert!(
        String::from_utf8_lossy(&metrics).contains("ca_federation_bundle_age_seconds{trust_domain=\"other.org\"} ")
    );
    let home = home.restart().await;
    assert_eq!(roots(&home), 2, "after a restart");
}

/// Certificate files for 127.0.0.1, and the root that signed them.
struct WebFiles {
    dir: tempfile::TempDir,
}

impl WebFiles {
    fn new() -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        files.write();
        files
    }

    /// A new authority and a new certificate in the same files.
    fn write(&self) {
        let (now, day) = (std::time::SystemTime::now(), Duration::from_secs(86_400));
        let authority = WebAuthority::generate("web", day, now).unwrap();
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        let server = authority.issue_server(&["localhost".into()], &[address], day / 2, now).unwrap();
        std::fs::write(self.path("key.pem"), server.key_pem().as_bytes()).unwrap();
        std::fs::write(self.path("cert.pem"), server.certificate_pem()).unwrap();
        std::fs::write(self.path("roots.pem"), authority.certificate_pem()).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn endpoint(&self) -> WebEndpoint {
        let listen = "127.0.0.1:0".parse().unwrap();
        WebEndpoint { listen, cert_file: Some(self.path("cert.pem")), key_file: Some(self.path("key.pem")), acme: None }
    }

    async fn home(&self) -> Running {
        let roots = Some(self.path("roots.pem"));
        Running::start_with(|settings| {
            loopback(settings);
            settings.federation.web_roots_file = roots;
        })
        .await
    }

    /// Serves whatever `router` says as a bundle endpoint.
    async fn serve(&self, router: Router, shutdown: &Shutdown) -> SocketAddr {
        let listener = runtime::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let certificate =
            Arc::new(WebCertificate::open(self.endpoint(), self.dir.path(), std::time::SystemTime::now()).unwrap());
        tokio::spawn(certificate.serve(listener, router, shutdown.clone()));
        addr
    }
}

async fn bundles_arrive_over_the_web_and_new_certificates_are_followed() {
    let files = WebFiles::new();
    let (endpoint, home) = (files.endpoint(), files.home().await);
    let other = other_with(|settings| {
        settings.federation.web_endpoint = Some(endpoint);
        settings.federation.serve_map = true;
    })
    .await;
    let mut wanted = web("other.org", other.addresses.web_endpoint.unwrap());
    wanted.bundle_endpoint_url.push_str("map");
    assert_eq!(create(&home, vec![wanted]).await[0].code, 0);
    until("the first bundle", WAIT, async || roots(&home) == 1).await;
    assert_eq!(state(&home, "other.org").await.bundle_sequence, 1);

    // The files are replaced, the roots with them: within a look the endpoint shows the new certificate.
    files.write();
    until("the new certificate", WAIT, async || refresh(&home, "other.org").await.is_ok()).await;
    std::fs::write(files.path("cert.pem"), "rubbish").unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    refresh(&home, "other.org").await.unwrap();

    // Other roots: nobody is believed, and what is known stays.
    let strange = WebFiles::new();
    std::fs::copy(strange.path("roots.pem"), files.path("roots.pem")).unwrap();
    let refused = refresh(&home, "other.org").await.unwrap_err();
    assert_eq!((refused.code(), reason::<()>(Err(refused)).as_str()), (Code::FailedPrecondition, "TLS_PEER_UNTRUSTED"));
    assert_eq!(roots(&home), 1);
    let state = state(&home, "other.org").await;
    assert_eq!((state.failures, state.reason.as_str()), (1, "TLS_PEER_UNTRUSTED"));
    assert!(state.problem.contains("does not prove itself") && state.succeeded_at > 0, "{state:?}");
    let (ready, _) = runtime::ask::get(home.addresses.admin.unwrap(), "/healthz/ready").await.unwrap();
    assert_eq!(ready, http::StatusCode::OK, "readiness does not depend on others");
}

async fn what_does_not_fit_is_refused_and_the_last_good_bundle_stays() {
    let files = WebFiles::new();
    let (endpoint, home) = (files.endpoint(), files.home().await);
    let other = other_with(|settings| settings.federation.web_endpoint = Some(endpoint)).await;
    let addr = other.addresses.web_endpoint.unwrap();
    let mut wrong_id = by_svid(&other).await;
    wrong_id.bundle_endpoint_profile = spiffe_profile("spiffe://other.org/somebody/else");
    assert!(create(&home, vec![wrong_id, web("third.org", addr)]).await.iter().all(|status| status.code == 0));
    let refused = refresh(&home, "other.org").await;
    assert!(reason(refused).starts_with("TLS_PEER_"), "another ID than the configured one");
    assert_eq!(reason(refresh(&home, "third.org").await), "BUNDLE_OTHER_TRUST_DOMAIN");

    let update = BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![types::FederationRelationship {
            bundle_endpoint_profile: spiffe_profile("spiffe://other.org/spire/server"),
            ..types::FederationRelationship { trust_domain: "other.org".into(), ..Default::default() }
        }],
        input_mask: Some(types::FederationRelationshipMask { bundle_endpoint_profile: true, ..Default::default() }),
        output_mask: None,
    };
    let answer = TrustDomainClient::new(home.local().await).batch_update_federation_relationship(update).await;
    assert_eq!(answer.unwrap().into_inner().results[0].status.as_ref().unwrap().code, 0);
    refresh(&home, "other.org").await.unwrap();

    let newer = types::Bundle { sequence_number: 9, ..own_bundle(&other).await };
    let set = BatchSetFederatedBundleRequest { bundle: vec![newer], output_mask: None };
    BundleClient::new(home.local().await).batch_set_federated_bundle(set).await.unwrap();
    assert_eq!(reason(refresh(&home, "other.org").await), "FEDERATION_SEQUENCE_BACKWARDS");
    let known = home.certifier.store.registry().federated(&other_domain()).unwrap();
    assert_eq!((known.sequence, known.x509_authorities.len()), (9, 1));
}

async fn strange_endpoints_bring_nothing() {
    let (files, shutdown) = (WebFiles::new(), Shutdown::new());
    let home = files.home().await;
    let big = vec![b' '; identity::bundle::BUNDLE_BYTES_MAX + 1];
    let fits = [b"{\"keys\":[]".as_slice(), &vec![b' '; identity::bundle::BUNDLE_BYTES_MAX - 11], b"}"].concat();
    assert_eq!(fits.len(), identity::bundle::BUNDLE_BYTES_MAX);
    let router = Router::new()
        .route("/away", get(|| async { Redirect::temporary("/fits") }))
        .route(
            "/big",
            get(move || {
                let big = big.clone();
                async move { big }
            }),
        )
        .route(
            "/fits",
            get(move || {
                let fits = fits.clone();
                async move { fits }
            }),
        )
        .route("/junk", get(|| async { "junk" }));
    let addr = files.serve(router, &shutdown).await;
    for (path, expected) in [
        ("away", "FEDERATION_ANSWER_REFUSED"),
        ("big", "FEDERATION_ANSWER_REFUSED"),
        ("missing", "FEDERATION_ANSWER_REFUSED"),
        ("junk", "BUNDLE_INVALID"),
    ] {
        let mut wanted = web(&format!("{path}.org"), addr);
        wanted.bundle_endpoint_url.push_str(path);
        create(&home, vec![wanted]).await;
        assert_eq!(reason(refresh(&home, &format!("{path}.org")).await), expected, "{path}");
    }
    let mut wanted = web("other.org", addr);
    wanted.bundle_endpoint_url.push_str("fits");
    create(&home, vec![wanted]).await;
    refresh(&home, "other.org").await.unwrap();
    let closed = runtime::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap().local_addr().unwrap();
    create(&home, vec![web("closed.org", closed)]).await;
    let refused = refresh(&home, "closed.org").await.unwrap_err();
    assert_eq!((refused.code(), reason::<()>(Err(refused)).as_str()), (Code::Unavailable, "FEDERATION_UNREACHABLE"));
    shutdown.trigger();

    let strict = Running::start().await;
    create(&strict, vec![web("other.org", addr)]).await;
    assert_eq!(reason(refresh(&strict, "other.org").await), "FEDERATION_ADDRESS_FORBIDDEN");
}

async fn relationships_are_listed_by_page_limited_and_deleted_with_their_bundle() {
    let (home, other) = (Running::start().await, other_with(|_| ()).await);
    let unknown = web("x.org", "127.0.0.1:1".parse().unwrap());
    for (change, code) in [
        (
            types::FederationRelationship { trust_domain: "example.org".into(), ..unknown.clone() },
            Code::InvalidArgument,
        ),
        (types::FederationRelationship { trust_domain: "a b".into(), ..unknown.clone() }, Code::InvalidArgument),
        (
            types::FederationRelationship { bundle_endpoint_url: "http://x/".into(), ..unknown.clone() },
            Code::InvalidArgument,
        ),
        (types::FederationRelationship { bundle_endpoint_profile: None, ..unknown.clone() }, Code::InvalidArgument),
        (
            types::FederationRelationship { bundle_endpoint_profile: spiffe_profile("x"), ..unknown.clone() },
            Code::InvalidArgument,
        ),
        (
            types::FederationRelationship {
                bundle_endpoint_profile: spiffe_profile("spiffe://x.org"),
                ..unknown.clone()
            },
            Code::InvalidArgument,
        ),
        (
            types::FederationRelationship { trust_domain_bundle: Some(own_bundle(&other).await), ..unknown.clone() },
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(create(&home, vec![change.clone()]).await[0].code, code as i32, "{change:?}");
    }
    let mut all: Vec<_> = (1..RELATIONSHIPS_MAX)
        .map(|n| types::FederationRelationship { trust_domain: format!("d{n:03}.org"), ..unknown.clone() })
        .collect();
    all.push(by_svid(&other).await);
    assert!(create(&home, all).await.iter().all(|status| status.code == 0));
    let codes: Vec<i32> = create(&home, vec![unknown, by_svid(&other).await]).await.iter().map(|s| s.code).collect();
    assert_eq!(codes, [Code::ResourceExhausted as i32, Code::AlreadyExists as i32]);

    let mut client = TrustDomainClient::new(home.local().await);
    let mask = Some(types::FederationRelationshipMask::default());
    let (mut seen, mut page_token) = (0, String::new());
    loop {
        let request = ListFederationRelationshipsRequest { output_mask: mask, page_size: 100, page_token };
        let page = client.list_federation_relationships(request).await.unwrap().into_inner();
        seen += page.federation_relationships.len();
        assert!(page.federation_relationships.iter().all(|one| one.bundle_endpoint_url.is_empty()));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, RELATIONSHIPS_MAX);
    let get = || GetFederationRelationshipRequest { trust_domain: "other.org".into(), output_mask: None };
    let found = client.get_federation_relationship(get()).await.unwrap().into_inner();
    assert_eq!(found.trust_domain_bundle.map(|bundle| bundle.sequence_number), Some(1));
    let delete =
        BatchDeleteFederationRelationshipRequest { trust_domains: vec!["other.org".into(), "other.org".into()] };
    let results = client.batch_delete_federation_relationship(delete).await.unwrap().into_inner().results;
    let codes: Vec<i32> = results.into_iter().map(|result| result.status.unwrap().code).collect();
    assert_eq!(codes, [0, Code::NotFound as i32]);
    assert_eq!(roots(&home), 0, "the bundle went with it");
    assert_eq!(reason(client.get_federation_relationship(get()).await), "FEDERATION_UNKNOWN");
    assert_eq!(reason(refresh(&home, "other.org").await), "FEDERATION_UNKNOWN");
}

async fn workloads_get_the_bundles_of_aliases_whatever_their_entries_say() {
    let home = Running::start_with(|settings| settings.trust_domain_aliases = vec![other_domain()]).await;
    let other = other_with(|_| ()).await;
    let node = home.node(Some("/node/local")).await;
    home.entry("/web", "/node/local").await;
    let seen = async || {
        let mut client = EntryClient::new(home.network(Some(&node)));
        let answer = client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap();
        let entry = answer.into_inner().entries.into_iter().next().unwrap();
        (entry.federates_with, entry.revision_number)
    };
    assert_eq!(seen().await, (Vec::new(), 0), "nothing is known of the alias yet");
    let set = BatchSetFederatedBundleRequest { bundle: vec![own_bundle(&other).await], output_mask: None };
    BundleClient::new(home.local().await).batch_set_federated_bundle(set).await.unwrap();
    let (federates_with, revision) = seen().await;
    assert_eq!(federates_with, ["other.org"]);
    assert!(revision > i64::from(u32::MAX), "agents fetch the entry anew: {revision}");
    let stored =
        home.certifier.store.registry().entries_after("").find(|one| one.spiffe_id.path() == "/web").unwrap().clone();
    assert!(stored.federates_with.is_empty(), "the entry itself says nothing of it");
    let request = GetFederatedBundleRequest { trust_domain: "other.org".into(), output_mask: None };
    let bundle = BundleClient::new(home.network(Some(&node))).get_federated_bundle(request).await.unwrap().into_inner();
    assert_eq!(bundle.x509_authorities, own_bundle(&other).await.x509_authorities, "its own, not merged with ours");
}

/// One fetches, both know.
#[tokio::test]
async fn what_one_replica_fetches_the_other_knows() {
    database::on(Kind::Postgres, async {
        let (home, other) = (Running::start_with(loopback).await, other_with(|_| ()).await);
        let second = home.replica().await;
        create(&second, vec![by_svid(&other).await]).await;
        let fetched = async || state(&second, "other.org").await.succeeded_at > 0 && roots(&home) == 1;
        until("the fetch by whoever holds the lease", WAIT, fetched).await;
        assert_eq!(state(&home, "other.org").await, state(&second, "other.org").await);
    })
    .await;
}

database::on_each_database! {
    a_root_rotation_of_the_other_arrives_at_nodes_by_svid,
    bundles_arrive_over_the_web_and_new_certificates_are_followed,
    what_does_not_fit_is_refused_and_the_last_good_bundle_stays,
    strange_endpoints_bring_nothing,
    relationships_are_listed_by_page_limited_and_deleted_with_their_bundle,
    workloads_get_the_bundles_of_aliases_whatever_their_entries_say,
}
