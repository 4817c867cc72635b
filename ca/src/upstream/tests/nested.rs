//! Two servers of one trust domain, one below the other.

use std::sync::Mutex;

use identity::key::PrivateKey;
use identity::svid::X509Svid;
use identity::tls::Snapshot;
use identity::verify::verify_peer;
use identity::{BundleSet, CertificateDer};
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{MintJwtsvidRequest, NewDownstreamX509caRequest};

use super::super::server::ServerUpstream;
use super::*;
use crate::certifier::Certifier;
use crate::custody::tests::rotate;
use crate::testing::database::setting_in;
use crate::testing::running::{id_message, reason};
use crate::testing::{id, trust_domain};

/// The server below as a workload of the one above: always with an SVID that is good there.
#[derive(Debug)]
struct Workload {
    above: Arc<Certifier>,
    svid: Mutex<Arc<X509Svid>>,
}

/// The side of it that the connections of the server below have.
#[derive(Clone, Debug)]
struct Own(Arc<Workload>);

impl Snapshot for Own {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        Some(self.0.svid.lock().unwrap().clone())
    }

    fn bundles(&self) -> Arc<BundleSet> {
        self.0.above.authorities.current().bundles.clone()
    }
}

struct Nested {
    above: Running,
    below: Running,
    own: Own,
}

impl Nested {
    async fn start() -> Self {
        let above = Running::start().await;
        above.entry_with("/below", "/spire/server", |entry| entry.downstream = true).await.unwrap();
        let svid = Mutex::new(above.mint("/below").await);
        let own = Own(Arc::new(Workload { above: above.certifier.clone(), svid }));
        let address = above.addresses.grpc.to_string();
        let upstream = ServerUpstream::with_source(&trust_domain(), &address, own.clone()).unwrap();
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let settings = Settings { database: setting_in(dir.path()).await, ..settings(dir.path()) };
        let below = Running::start_below(dir, settings, Arc::new(upstream)).await;
        Self { above, below, own }
    }

    /// The agent above renewed the SVID.
    async fn renew(&self) {
        let svid = self.above.mint("/below").await;
        *self.own.0.svid.lock().unwrap() = svid;
    }
}

fn verifies(chain: &[CertificateDer<'_>], by: &Running) -> bool {
    let bundles = by.certifier.authorities.current().bundles.clone();
    verify_peer(chain, &bundles, identity::unix_time(runtime::clock::now())).is_ok()
}

fn roots_of(ca: &Running) -> Vec<CertificateDer<'static>> {
    let mut roots = ca.certifier.authorities.current().bundle.x509_authorities.clone();
    roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots
}

async fn what_the_lower_server_signs_verifies_by_the_bundle_of_the_upper_one() {
    let nested = Nested::start().await;
    let svid = issues(&nested.below).await;
    assert_eq!(svid.chain().count(), 3, "leaf, intermediate below, intermediate above");
    assert!(verifies(&svid.to_chain(), &nested.above));
    assert!(verifies(&nested.above.mint("/shop").await.to_chain(), &nested.below), "and the other way round");
    assert_eq!(roots_of(&nested.below), roots_of(&nested.above));
    until("tokens of each are verified by the other", WAIT, async || {
        let mut good = true;
        for (signer, verifier) in [(&nested.above, &nested.below), (&nested.below, &nested.above)] {
            let request = MintJwtsvidRequest { id: Some(id_message("/cart")), audience: vec!["shop".into()], ttl: 0 };
            let answer = SvidClient::new(signer.local().await).mint_jwtsvid(request).await.unwrap().into_inner();
            let bundles = verifier.certifier.authorities.current().bundles.clone();
            let token = answer.svid.unwrap().token;
            good &= identity::jwt::verify_svid(&token, &bundles, "shop", runtime::clock::now()).is_ok();
        }
        good
    })
    .await;
    let issued = nested.above.certifier.store.issued(50).await.unwrap();
    assert!(issued.iter().any(|record| record.kind == "downstream"), "it is on record and in the log");
}

async fn a_rotation_of_the_root_above_reaches_the_server_below() {
    let nested = Nested::start().await;
    let first = roots_of(&nested.above);
    rotate(&nested.above).await;
    nested.renew().await;
    until("the lower server follows", WAIT, async || {
        nested.renew().await;
        roots_of(&nested.below) == roots_of(&nested.above)
    })
    .await;
    assert_ne!(roots_of(&nested.below), first);
    let svid = issues(&nested.below).await;
    assert!(verifies(&svid.to_chain(), &nested.above));
}

async fn only_a_server_below_gets_an_intermediate_and_none_may_stand_below_it() {
    let nested = Nested::start().await;
    let key = PrivateKey::generate_p256().unwrap();
    let request = || NewDownstreamX509caRequest { csr: key.csr_der(None).unwrap(), preferred_ttl: 60 };
    let web = nested.above.mint("/web").await;
    let mut refused = SvidClient::new(nested.above.network(Some(&web)));
    assert_eq!(reason(refused.new_downstream_x509ca(request()).await), "CALLER_NOT_DOWNSTREAM");
    let svid = nested.own.svid().unwrap();
    let mut client = SvidClient::new(nested.above.network(Some(&svid)));
    let negative = NewDownstreamX509caRequest { preferred_ttl: -1, ..request() };
    assert_eq!(reason(client.new_downstream_x509ca(negative).await), "TTL_INVALID");
    let garbage = NewDownstreamX509caRequest { csr: b"x".to_vec(), preferred_ttl: 0 };
    assert!(reason(client.new_downstream_x509ca(garbage).await).starts_with("CSR_"));
    let answer = client.new_downstream_x509ca(request()).await.unwrap().into_inner();
    let chain: Vec<CertificateDer<'static>> = answer.ca_cert_chain.into_iter().map(CertificateDer::from).collect();
    let authority = identity::authority::X509Authority::from_parts(&trust_domain(), chain, key.clone()).unwrap();
    let now = runtime::clock::now();
    assert!(authority.not_after() <= now + Duration::from_secs(60));
    assert!(authority.generate_intermediate(Duration::from_secs(30), now).is_err(), "its path length is 0");
    let profile = identity::authority::LeafProfile::new(id("/cart"), Duration::from_secs(30));
    assert!(verifies(&authority.sign_svid(&key.public_key_spki(), &profile, now).unwrap(), &nested.above));
}

on_each_database! {
    what_the_lower_server_signs_verifies_by_the_bundle_of_the_upper_one,
    a_rotation_of_the_root_above_reaches_the_server_below,
    only_a_server_below_gets_an_intermediate_and_none_may_stand_below_it,
}
