//! WIT-SVIDs as nodes, administrators and relying parties meet them.

use identity::wit::{self, WitExpectations, WitKey};
use identity::{BundleSet, jwt as identity_jwt};
use proto::spire::api::server::bundle::v1::PublishWitAuthorityRequest;
use proto::spire::api::server::localauthority::v1::{
    ActivateWitAuthorityRequest, GetWitAuthorityStateRequest, PrepareWitAuthorityRequest, RevokeWitAuthorityRequest,
    TaintWitAuthorityRequest,
};
use proto::spire::api::server::svid::v1::{BatchNewWitsvidRequest, MintWitsvidRequest, NewWitsvidParams};

use super::*;

fn wit_params(entry_id: &str, key: &WitKey, algorithm: &str) -> NewWitsvidParams {
    let (public_key, signing_algorithm) = (key.public_key_spki(), algorithm.into());
    NewWitsvidParams { entry_id: entry_id.into(), public_key, signing_algorithm }
}

/// What a relying party with these bundles says to a WIT and a fresh proof.
fn judge(token: &str, key: &WitKey, bundles: &BundleSet) -> Result<String, &'static str> {
    let now = std::time::SystemTime::now();
    let proof = key.prove(token, "db", Duration::from_secs(30), now).unwrap();
    let verified = wit::verify(token, &proof, bundles, &WitExpectations::at("db", now));
    verified.map(|verified| verified.spiffe_id().to_string()).map_err(|error| error.reason())
}

fn bundles(ca: &Running) -> Arc<BundleSet> {
    ca.certifier.authorities.current().bundles.clone()
}

async fn a_node_gets_wits_for_its_entries_and_each_item_has_its_own_outcome() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let web = ca.entry_with("/web", "/node/local", |entry| {
        entry.x509_svid_ttl = 60;
        entry.hint = "main".into();
    });
    let (web, other) = (web.await.unwrap(), ca.entry("/other", "/node/other").await);
    let key = WitKey::generate().unwrap();
    let junk = NewWitsvidParams { public_key: b"junk".to_vec(), ..wit_params(&web, &key, "") };
    let params = vec![
        wit_params(&web, &key, "ES256"),
        wit_params(&other, &key, "ES256"),
        wit_params(&web, &key, "HS256"),
        wit_params(&web, &key, ""),
        junk,
    ];
    let mut client = SvidClient::new(ca.network(Some(&node)));
    let results = client.batch_new_witsvid(BatchNewWitsvidRequest { params }).await.unwrap().into_inner().results;
    let codes: Vec<_> = results.iter().map(|result| Code::from(result.status.as_ref().unwrap().code)).collect();
    let entry_refused = Code::from(codes[1] as i32);
    assert_eq!(codes, [Code::Ok, entry_refused, Code::InvalidArgument, Code::Ok, Code::InvalidArgument]);
    assert!(entry_refused != Code::Ok && results[1].svid.is_none());

    let svid = results[0].svid.clone().unwrap();
    assert_eq!((svid.expires_at - svid.issued_at, svid.hint.as_str()), (60, "main"));
    assert_eq!(judge(&svid.token, &key, &bundles(&ca)).unwrap(), "spiffe://example.org/web");
    let thief = WitKey::generate().unwrap();
    assert_eq!(judge(&svid.token, &thief, &bundles(&ca)).unwrap_err(), "WIT_PROOF_REFUSED");
    assert!(identity_jwt::verify_svid(&svid.token, &bundles(&ca), "db", std::time::SystemTime::now()).is_err());

    let recorded = ca.certifier.store.issued(10).await.unwrap();
    let wits = recorded.iter().filter(|record| record.kind == "wit" && record.issuance.entry_id == web);
    assert_eq!(wits.count(), 2);
}

async fn an_administrator_mints_wits_and_nobody_else() {
    let ca = Running::start().await;
    let key = WitKey::generate().unwrap();
    let request = |path: &str| MintWitsvidRequest {
        id: Some(id_message(path)),
        public_key: key.public_key_spki(),
        ttl: 90,
        signing_algorithm: "ES256".into(),
    };
    let mut admin = SvidClient::new(ca.local().await);
    let svid = admin.mint_witsvid(request("/ops")).await.unwrap().into_inner().svid.unwrap();
    assert_eq!(svid.expires_at - svid.issued_at, 90);
    assert_eq!(judge(&svid.token, &key, &bundles(&ca)).unwrap(), "spiffe://example.org/ops");
    assert_eq!(reason(admin.mint_witsvid(request("/spire/server")).await), "SPIFFE_ID_REFUSED");
    let ed25519 = MintWitsvidRequest { signing_algorithm: "EdDSA".into(), ..request("/ops") };
    assert_eq!(reason(admin.mint_witsvid(ed25519).await), "WIT_KEY_REFUSED");
    let node = ca.node(None).await;
    let refused = SvidClient::new(ca.network(Some(&node))).mint_witsvid(request("/ops")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut bundles = BundleClient::new(ca.local().await);
    let published = bundles.publish_wit_authority(PublishWitAuthorityRequest::default()).await;
    assert_eq!(published.unwrap_err().code(), Code::PermissionDenied, "for servers below this one");
}

async fn the_bundle_tells_wit_keys_from_jwt_keys() {
    let ca = Running::start().await;
    let bundle =
        BundleClient::new(ca.local().await).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let current = ca.certifier.authorities.current();
    let ids = |keys: &[types::WitKey]| keys.iter().map(|key| key.key_id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&bundle.wit_authorities), [current.wit.key_id()]);
    assert_eq!(bundle.jwt_authorities[0].key_id, current.jwt.key_id());
    let mask = types::BundleMask { jwt_authorities: true, ..types::BundleMask::default() };
    let masked = GetBundleRequest { output_mask: Some(mask) };
    let masked = BundleClient::new(ca.local().await).get_bundle(masked).await.unwrap().into_inner();
    assert!(masked.wit_authorities.is_empty() && !masked.jwt_authorities.is_empty());
    assert!(!current.bundle.jwks().to_string().contains(current.wit.key_id()), "OIDC does not publish WIT keys");
}

async fn a_wit_key_is_rotated_step_by_step() {
    let ca = Running::start().await;
    let key = WitKey::generate().unwrap();
    let mint = MintWitsvidRequest {
        id: Some(id_message("/ops")),
        public_key: key.public_key_spki(),
        ..MintWitsvidRequest::default()
    };
    let mut svids = SvidClient::new(ca.local().await);
    let mut authorities = LocalAuthorityClient::new(ca.local().await);
    let first = svids.mint_witsvid(mint.clone()).await.unwrap().into_inner().svid.unwrap().token;
    let prepared = authorities.prepare_wit_authority(PrepareWitAuthorityRequest {}).await.unwrap().into_inner();
    let next = prepared.prepared_authority.unwrap().authority_id;
    let state = authorities.get_wit_authority_state(GetWitAuthorityStateRequest {}).await.unwrap().into_inner();
    let old = state.active.unwrap().authority_id;
    assert_eq!(state.prepared.unwrap().authority_id, next);
    assert_ne!(old, next);
    let activate = ActivateWitAuthorityRequest { authority_id: next.clone() };
    authorities.activate_wit_authority(activate).await.unwrap();
    let second = svids.mint_witsvid(mint).await.unwrap().into_inner().svid.unwrap().token;
    for token in [&first, &second] {
        assert!(judge(token, &key, &bundles(&ca)).is_ok(), "old and new are trusted");
    }
    authorities.taint_wit_authority(TaintWitAuthorityRequest { authority_id: old.clone() }).await.unwrap();
    let bundle =
        BundleClient::new(ca.local().await).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let tainted: Vec<_> = bundle.wit_authorities.iter().filter(|key| key.tainted).map(|key| &key.key_id).collect();
    assert_eq!(tainted, [&old]);
    authorities.revoke_wit_authority(RevokeWitAuthorityRequest { authority_id: old }).await.unwrap();
    assert_eq!(judge(&first, &key, &bundles(&ca)).unwrap_err(), "JWT_NO_KEY");
    assert!(judge(&second, &key, &bundles(&ca)).is_ok());
}

crate::testing::database::on_each_database! {
    a_node_gets_wits_for_its_entries_and_each_item_has_its_own_outcome,
    an_administrator_mints_wits_and_nobody_else,
    the_bundle_tells_wit_keys_from_jwt_keys,
    a_wit_key_is_rotated_step_by_step,
}
