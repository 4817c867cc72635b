//! The `spiffe` crate: its streams, its sources that follow by themselves, and each single call.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use identity::CertificateDer;
use identity::summary::CertificateSummary;
use spiffe::{BundleSource, JwtSource, WorkloadApiClient, X509Bundle, X509Source, X509Svid};

/// Until a watch has brought so many certificates after the first.
pub(super) fn follow(endpoint: &str, rotations: usize, limit: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let followed = async {
        let client = WorkloadApiClient::connect_to(endpoint).await?;
        tokio::try_join!(watch(&client, rotations), sources(endpoint, rotations), calls(&client, rotations))
    };
    let (watched, held, called) =
        runtime.block_on(async { tokio::time::timeout(limit, followed).await }).context("too slow")??;
    ensure!(
        watched.len() > rotations && held.len() > rotations && called.len() > rotations,
        "{watched:?} {held:?} {called:?}"
    );
    Ok(())
}

/// What the stream of X.509 contexts brings.
async fn watch(client: &WorkloadApiClient, rotations: usize) -> Result<BTreeSet<String>> {
    let (mut stream, mut serials) = (client.stream_x509_contexts().await?, BTreeSet::new());
    while serials.len() <= rotations {
        let context = stream.next().await.context("the stream ended")??;
        for svid in context.svids() {
            let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain()).context("no bundle")?;
            let serial = check(svid, &bundle)?;
            if svid.spiffe_id().path() == "/client" {
                serials.insert(serial);
            }
        }
    }
    Ok(serials)
}

/// What the sources hold, looked at all the time: never nothing, never what has ended.
async fn sources(endpoint: &str, rotations: usize) -> Result<BTreeSet<String>> {
    let x509 = X509Source::builder().endpoint(endpoint).build().await?;
    let jwt = JwtSource::builder().endpoint(endpoint).build().await?;
    let mut serials = BTreeSet::new();
    while serials.len() <= rotations {
        let svid = x509.svid()?;
        let domain = svid.spiffe_id().trust_domain();
        let bundle = x509.bundle_for_trust_domain(domain)?.context("no X.509 bundle")?;
        serials.insert(check(&svid, &bundle)?);
        ensure!(jwt.bundle_for_trust_domain(domain)?.is_some_and(|bundle| bundle.jwt_authorities().count() > 0));
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
    let token = jwt.fetch_jwt_svid(["db"]).await?;
    ensure!(token.audience() == ["db"], "{:?}", token.audience());
    x509.shutdown().await;
    jwt.shutdown().await;
    Ok(serials)
}

/// Each call by itself, again and again.
async fn calls(client: &WorkloadApiClient, rotations: usize) -> Result<BTreeSet<String>> {
    let mut serials = BTreeSet::new();
    while serials.len() <= rotations {
        let svid = client.fetch_x509_svid().await?;
        let domain = svid.spiffe_id().trust_domain();
        let bundle = client.fetch_x509_bundles().await?.get(domain).context("no X.509 bundle")?;
        serials.insert(check(&svid, &bundle)?);
        let first = client.stream_x509_bundles().await?.next().await.context("no first message")??;
        ensure!(first.get(domain).is_some(), "no bundle in the stream");
        let token = client.fetch_jwt_svid(["db"], Some(svid.spiffe_id())).await?;
        ensure!(token.spiffe_id() == svid.spiffe_id(), "{}", token.spiffe_id());
        ensure!(client.validate_jwt_token("db", token.token()).await?.spiffe_id() == svid.spiffe_id());
        ensure!(
            client.validate_jwt_token("other", token.token()).await.is_err(),
            "a token for another audience counts"
        );
        ensure!(client.fetch_all_jwt_svids(["db"], None).await?.len() == 2, "one token for each identity");
        let keys = client.fetch_jwt_bundles().await?.get(domain).context("no JWT bundle")?;
        ensure!(keys.find_jwt_authority(token.key_id()).is_some(), "the key of the token is unknown");
        let first = client.stream_jwt_bundles().await?.next().await.context("no first message")??;
        ensure!(first.get(domain).is_some(), "no bundle in the stream");
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
    Ok(serials)
}

/// The serial of an SVID that is valid now, with a bundle to judge it by.
fn check(svid: &X509Svid, bundle: &X509Bundle) -> Result<String> {
    let leaf = CertificateSummary::decode(&CertificateDer::from(svid.leaf().as_bytes().to_vec()))?;
    let now = SystemTime::now();
    ensure!(leaf.not_before() <= now, "{} is not valid yet", svid.spiffe_id());
    let late = now.duration_since(leaf.not_after());
    ensure!(late.is_err(), "{} ended {late:?} ago", svid.spiffe_id());
    ensure!(!bundle.authorities().is_empty(), "an empty bundle");
    Ok(leaf.serial)
}

const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);
