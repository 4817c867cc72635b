//! The server's own SVID, for the TLS of everything it serves.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use identity::bundle::BundleSet;
use identity::csr::Csr;
use identity::digest;
use identity::key::PrivateKey;
use identity::renewal::{renew_at, retry_wait};
use identity::svid::X509Svid;
use identity::tls::Snapshot;
use tokio::time::Instant;

use crate::certifier::Certifier;
use crate::issue::X509Order;
use crate::pace;
use crate::refusal::Refusal;
use crate::store::IssuanceKind;

/// Holds the SVID and replaces it at half of its life, with a new key each time; earlier when another root is to sign it,
/// which is so as soon as every node knows that root, waived or not.
#[derive(Debug)]
pub(crate) struct ServerSvid {
    certifier: Arc<Certifier>,
    dns_names: Vec<String>,
    ip_addresses: Vec<IpAddr>,
    current: ArcSwapOption<Own>,
}

#[derive(Debug)]
struct Own {
    svid: Arc<X509Svid>,
    /// The root that it leads to.
    root: String,
}

impl ServerSvid {
    /// `names` are DNS names and IP addresses beside the SPIFFE ID.
    pub(crate) fn new(certifier: Arc<Certifier>, names: &[String]) -> Self {
        let ip_addresses: Vec<IpAddr> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let dns_names = names.iter().filter(|name| name.parse::<IpAddr>().is_err()).cloned().collect();
        Self { certifier, dns_names, ip_addresses, current: ArcSwapOption::empty() }
    }

    /// The end of the SVID in use.
    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        self.svid().map(|svid| svid.not_after())
    }

    /// Issues a new SVID and begins to use it.
    pub(crate) async fn renew(&self) -> Result<(), Refusal> {
        let root = self.certifier.server_root();
        let unsigned = |_| Refusal::Signing;
        let key = PrivateKey::generate_p256().map_err(unsigned)?;
        let csr = Csr::decode_der(&key.csr_der(None).map_err(unsigned)?).map_err(Refusal::Csr)?;
        let order = X509Order {
            kind: IssuanceKind::Server,
            id: self.certifier.server_id.clone(),
            dns_names: self.dns_names.clone(),
            ip_addresses: self.ip_addresses.clone(),
            ttl: self.certifier.ttls.agent_svid,
            entry_id: String::new(),
            caller: self.certifier.server_id.to_string(),
        };
        let issued = self.certifier.issue_x509(order, &csr).await?;
        let svid = X509Svid::from_parts(issued.chain, key).map_err(|error| {
            tracing::error!(error = ?error, "own SVID not usable");
            Refusal::Signing
        })?;
        tracing::info!(serial = svid.serial(), root, "own SVID in force");
        self.current.store(Some(Arc::new(Own { svid: Arc::new(svid), root })));
        Ok(())
    }

    /// Waits until `next`, or until another root is to sign.
    async fn until_due(&self, next: SystemTime) {
        let mut changes = self.certifier.authorities.changes();
        let mut reports = self.certifier.contacts.reports();
        loop {
            let now = self.certifier.now();
            let same_root = self.current.load().as_ref().is_some_and(|own| own.root == self.certifier.server_root());
            if now >= next || !same_root {
                return;
            }
            let due = Instant::now() + next.duration_since(now).unwrap_or_default();
            tokio::select! {
                // Nodes also expire, which nobody tells, and the clock may be set.
                () = tokio::time::sleep_until(due.min(pace::next(LOOK_AGAIN))) => (),
                _ = changes.changed() => (),
                _ = reports.changed() => (),
            }
        }
    }

    /// Renews for ever.
    pub(crate) async fn keep_fresh(&self) {
        let mut failures = 0;
        loop {
            let now = self.certifier.now();
            let next = match self.not_after() {
                _ if failures > 0 => now + retry_wait(failures, RETRY, RETRY_MAX, dice()),
                Some(not_after) => renew_at(now, not_after, dice()),
                None => now,
            };
            self.until_due(next).await;
            match self.renew().await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::error!(reason = error.reason(), error = ?error, "own SVID not renewed, keeping the old one");
                }
            }
        }
    }
}

impl Snapshot for ServerSvid {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        self.current.load().as_ref().map(|own| own.svid.clone())
    }

    /// Callers prove themselves with SVIDs of our own trust domain only.
    fn bundles(&self) -> Arc<BundleSet> {
        let certifier = &self.certifier;
        certifier.revocations.judging(&certifier.authorities.current().bundles, certifier)
    }
}

/// 0 to 1.
fn dice() -> f64 {
    f64::from(u32::from_be_bytes(digest::random::<4>())) / f64::from(u32::MAX)
}

const LOOK_AGAIN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
