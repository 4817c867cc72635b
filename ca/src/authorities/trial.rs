//! A new authority is tried before it may sign: it issues a throw-away SVID, and that is verified as a peer would.

use std::time::{Duration, SystemTime};

use identity::authority::{LeafProfile, X509Authority};
use identity::bundle::{BundleSet, TrustBundle};
use identity::jwt::{self, JwtAuthorityKey, JwtSvidProfile};
use identity::key::PrivateKey;
use identity::verify::verify_peer;
use identity::wit::{self, HolderKey, WitAuthorityKey, WitExpectations, WitKey, WitSvidProfile};

use super::AuthoritiesError;

/// Tries an intermediate against the bundle by which its certificates will be judged.
pub(super) fn x509(authority: &X509Authority, bundle: &TrustBundle, now: SystemTime) -> Result<(), AuthoritiesError> {
    let failed = || AuthoritiesError::Trial("X.509 authority");
    let id = authority.trust_domain().with_path(TRIAL_PATH).map_err(|_| failed())?;
    let key = PrivateKey::generate_p256()?;
    let profile = LeafProfile::new(id.clone(), LIFE);
    let chain = authority.sign_svid(&key.public_key_spki(), &profile, now)?;
    let bundles = BundleSet::new([std::sync::Arc::new(bundle.clone())]);
    let peer = verify_peer(&chain, &bundles, identity::unix_time(now)).map_err(|error| {
        tracing::error!(%error, authority = authority.subject_key_id(), "trial of a new authority failed");
        failed()
    })?;
    if *peer.spiffe_id() == id { Ok(()) } else { Err(failed()) }
}

/// The same for a JWT key.
pub(super) fn jwt(key: &JwtAuthorityKey, bundle: &TrustBundle, now: SystemTime) -> Result<(), AuthoritiesError> {
    let failed = || AuthoritiesError::Trial("JWT key");
    let id = bundle.trust_domain.with_path(TRIAL_PATH).map_err(|_| failed())?;
    let audiences = vec![TRIAL_PATH.to_owned()];
    let profile = JwtSvidProfile { id, audiences, ttl: LIFE, issuer: None, token_id: None };
    let signed = key.sign_svid(&profile, now)?;
    let bundles = BundleSet::new([std::sync::Arc::new(bundle.clone())]);
    jwt::verify_svid(&signed.token, &bundles, TRIAL_PATH, now).map(drop).map_err(|error| {
        tracing::error!(%error, authority = key.key_id(), "trial of a new authority failed");
        failed()
    })
}

/// The same for a WIT key, with a proof by the workload that does not exist.
pub(super) fn wit(key: &WitAuthorityKey, bundle: &TrustBundle, now: SystemTime) -> Result<(), AuthoritiesError> {
    let failed = || AuthoritiesError::Trial("WIT key");
    let id = bundle.trust_domain.with_path(TRIAL_PATH).map_err(|_| failed())?;
    let holder = WitKey::generate()?;
    let holder_key = HolderKey::from_spki_der(&holder.public_key_spki(), "").map_err(|_| failed())?;
    let profile = WitSvidProfile { id, key: holder_key, ttl: LIFE, backdate: Duration::ZERO, token_id: None };
    let signed = key.sign_svid(&profile, now)?;
    let proof = holder.prove(&signed.token, TRIAL_PATH, LIFE, now)?;
    let bundles = BundleSet::new([std::sync::Arc::new(bundle.clone())]);
    wit::verify(&signed.token, &proof, &bundles, &WitExpectations::at(TRIAL_PATH, now)).map(drop).map_err(|error| {
        tracing::error!(%error, authority = key.key_id(), "trial of a new authority failed");
        failed()
    })
}

const TRIAL_PATH: &str = "/spire/trial";
const LIFE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trust_domain;

    fn now() -> SystemTime {
        runtime::clock::from_unix_secs(1_700_000_000)
    }

    fn root() -> X509Authority {
        X509Authority::generate_root(&trust_domain(), Duration::from_secs(86_400), now()).unwrap()
    }

    fn bundle(root: &X509Authority) -> TrustBundle {
        TrustBundle::from_x509_authorities(trust_domain(), [root.certificate().clone()]).unwrap()
    }

    #[test]
    fn an_authority_is_good_under_its_own_root_alone() {
        let (one, other) = (root(), root());
        let intermediate = one.generate_intermediate(Duration::from_secs(3600), now()).unwrap();
        x509(&intermediate, &bundle(&one), now()).unwrap();
        let error = x509(&intermediate, &bundle(&other), now()).unwrap_err();
        assert_eq!(error.reason(), "AUTHORITY_TRIAL_FAILED");
    }

    #[test]
    fn a_jwt_key_is_good_once_the_bundle_has_it() {
        let key = JwtAuthorityKey::generate().unwrap();
        let mut bundle = bundle(&root());
        assert!(jwt(&key, &bundle, now()).is_err());
        bundle.jwt_authorities.push(key.public(None));
        jwt(&key, &bundle, now()).unwrap();
    }

    #[test]
    fn a_wit_key_is_good_once_the_bundle_has_it_for_wits() {
        let key = WitAuthorityKey::generate().unwrap();
        let mut bundle = bundle(&root());
        bundle.jwt_authorities.push(key.public(None));
        assert!(wit(&key, &bundle, now()).is_err());
        bundle.jwt_authorities.clear();
        bundle.wit_authorities.push(key.public(None));
        wit(&key, &bundle, now()).unwrap();
    }
}
