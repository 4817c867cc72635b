//! The floor: the cryptography of one SVID with our own code, in this process, without network, database or policy.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use identity::authority::{LeafProfile, X509Authority};
use identity::csr::Csr;
use identity::jwt::{JwtAuthorityKey, JwtSvidProfile};
use identity::key::PrivateKey;
use identity::spiffe_id::TrustDomain;

/// Microseconds each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    /// Verify a CSR, sign the leaf (both P-256).
    pub(super) x509: f64,
    /// Sign a token with ES256.
    pub(super) jwt: f64,
}

pub(super) fn measure(time: Duration) -> Result<Floor> {
    let (domain, now) = (TrustDomain::parse("bench.example")?, SystemTime::now());
    let root = X509Authority::generate_root(&domain, Duration::from_secs(86_400), now)?;
    let authority = root.generate_intermediate(Duration::from_secs(86_400), now)?;
    let id = domain.with_path("/bench/workload")?;
    let csr = PrivateKey::generate_p256()?.csr_der(None)?;
    let x509 = each(time, || {
        let csr = Csr::decode_der(&csr)?;
        let profile = LeafProfile::new(id.clone(), Duration::from_secs(3_600));
        authority.sign_svid(csr.public_key_spki(), &profile, now)?;
        Ok(())
    })?;
    let key = JwtAuthorityKey::generate()?;
    let profile = JwtSvidProfile {
        id,
        audiences: vec!["bench".into()],
        ttl: Duration::from_secs(300),
        issuer: None,
        token_id: None,
    };
    let jwt = each(time, || {
        key.sign_svid(&profile, now)?;
        Ok(())
    })?;
    Ok(Floor { x509, jwt })
}

/// CPU microseconds of one turn, by this thread's own accounting.
fn each(time: Duration, mut turn: impl FnMut() -> Result<()>) -> Result<f64> {
    let (begun, before) = (Instant::now(), thread_nanos());
    let mut turns = 0_u32;
    while begun.elapsed() < time {
        turn()?;
        turns += 1;
    }
    Ok((thread_nanos() - before) / 1e3 / f64::from(turns.max(1)))
}

fn thread_nanos() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0.0)
}
