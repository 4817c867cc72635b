//! What the agent's admin address shows.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use identity::summary::CertificateSummary;
use identity::{TrustBundle, X509Svid};
use runtime::admin::AdminParts;
use runtime::clock::rfc3339;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::attest::{AttestError, Launches, Process, Wanted};
use crate::caller::Desk;
use crate::entry::Entry;
use crate::node::NodeIdentity;
use crate::settings::Settings;

/// What the pages read.
pub(crate) struct Pages {
    pub(crate) desk: Arc<Desk>,
    pub(crate) own: Arc<NodeIdentity>,
    pub(crate) launches: Arc<Launches>,
    pub(crate) settings: Settings,
}

/// What a process is to this agent, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhoAmI {
    /// The process.
    pub pid: i32,
    /// The agent's own SPIFFE ID: the node below which entries count here.
    #[serde(default)]
    pub node: Option<String>,
    /// The facts that attestation found.
    pub selectors: Vec<String>,
    /// The identities it gets, the default one first.
    pub identities: Vec<WhoAmIIdentity>,
    /// Entries that share a selector with the process and lack others: why it does not get them.
    pub near_misses: Vec<NearMiss>,
}

/// An identity that a process gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhoAmIIdentity {
    /// The SPIFFE ID.
    pub spiffe_id: String,
    /// The entry that gives it.
    pub entry_id: String,
    /// The selectors that the entry asks for.
    pub selectors: Vec<String>,
    /// The serial number of the SVID held for it; none while it has not been issued.
    pub serial: Option<String>,
    /// When that expires.
    pub not_after: Option<String>,
}

/// An entry that a process almost matches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NearMiss {
    /// The SPIFFE ID.
    pub spiffe_id: String,
    /// The entry.
    pub entry_id: String,
    /// The selectors that the process does not show.
    pub missing: Vec<String>,
}

impl Pages {
    /// All pages on top of the common ones.
    pub(crate) fn add_to(self, parts: AdminParts) -> AdminParts {
        let pages = Arc::new(self);
        let (dump, certs, status) = (pages.clone(), pages.clone(), pages.clone());
        parts
            .config_dump(move || dump.config_dump())
            .certs(move || certs.certs())
            .status(move || status.status())
            .routes(Router::new().route("/whoami", get(whoami)).with_state(pages))
    }

    fn status(&self) -> Value {
        let (snapshot, now) = (self.desk.state.current(), self.desk.clock.now());
        let own = self.own.svid();
        let bundle = snapshot.bundles.get(self.desk.state.trust_domain());
        json!({
            "trust_domain": self.settings.trust_domain.as_str(),
            "spiffe_id": own.as_ref().map(|svid| svid.id().to_string()),
            "svid_not_after": own.as_ref().map(|svid| rfc3339(svid.not_after())),
            "server": self.settings.server,
            "synced": snapshot.synced,
            "entries": snapshot.entries.len(),
            "svids": snapshot.held.len(),
            "svids_missing": snapshot.missing(now),
            "bundle_sequence": bundle.map(|bundle| bundle.sequence),
            "revocation_generation": snapshot.revocations.generation,
            "revoked_certificates": snapshot.revocations.index.lists().map(|list| list.len()).sum::<usize>(),
            "revoked_tokens": snapshot.revocations.token_count(),
            "launches": self.launches.len(),
        })
    }

    fn certs(&self) -> Value {
        let snapshot = self.desk.state.current();
        let svids = snapshot.held.iter().filter_map(|(id, held)| {
            let entry = snapshot.entries.get(id)?;
            Some(svid_page(&held.svid, Some(entry), Some(held.renew_at)))
        });
        json!({
            "agent": self.own.svid().map(|svid| svid_page(&svid, None, None)),
            "svids": svids.collect::<Vec<_>>(),
            "bundles": snapshot.bundles.iter().map(|(_, bundle)| bundle_page(bundle)).collect::<Vec<_>>(),
        })
    }

    fn config_dump(&self) -> Value {
        let snapshot = self.desk.state.current();
        let entry = |entry: &Arc<Entry>| {
            json!({
                "id": entry.id,
                "spiffe_id": entry.spiffe_id.to_string(),
                "selectors": texts(&entry.selectors),
                "federates_with": texts(&entry.federates_with),
                "hint": entry.hint,
                "revision": entry.revision,
            })
        };
        json!({ "settings": self.settings, "entries": snapshot.entries.iter().map(entry).collect::<Vec<_>>() })
    }

    async fn whoami(&self, pid: i32) -> Result<WhoAmI, AttestError> {
        let process = Arc::new(Process::open(pid)?);
        let workload = self.desk.attestor.attest(&process, Wanted::ALL).await?;
        let snapshot = self.desk.state.current();
        let matching = snapshot.entries.matching(&workload.selectors);
        let identities = matching.iter().map(|entry| {
            let held = snapshot.held.get(&entry.id);
            WhoAmIIdentity {
                spiffe_id: entry.spiffe_id.to_string(),
                entry_id: entry.id.clone(),
                selectors: texts(&entry.selectors),
                serial: held.map(|held| held.svid.serial().to_owned()),
                not_after: held.map(|held| rfc3339(held.svid.not_after())),
            }
        });
        let near = snapshot.entries.iter().filter(|entry| {
            let shown = entry.selectors.iter().filter(|selector| workload.selectors.contains(selector)).count();
            shown > 0 && (shown < entry.selectors.len() || entry.store_svid)
        });
        let near_misses = near.take(NEAR_MISSES_MAX).map(|entry| NearMiss {
            spiffe_id: entry.spiffe_id.to_string(),
            entry_id: entry.id.clone(),
            missing: texts(entry.selectors.iter().filter(|selector| !workload.selectors.contains(selector))),
        });
        Ok(WhoAmI {
            pid: workload.pid,
            node: self.own.svid().map(|svid| svid.id().to_string()),
            identities: identities.collect(),
            near_misses: near_misses.collect(),
            selectors: texts(&workload.selectors),
        })
    }
}

#[derive(Deserialize)]
struct Asked {
    pid: i32,
}

async fn whoami(Shared(pages): Shared<Arc<Pages>>, Query(asked): Query<Asked>) -> Response {
    match pages.whoami(asked.pid).await {
        Ok(found) => Json(found).into_response(),
        Err(error) => {
            let body = json!({ "reason": error.reason(), "error": error.to_string() });
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
    }
}

fn svid_page(svid: &X509Svid, entry: Option<&Arc<Entry>>, renew_at: Option<SystemTime>) -> Value {
    json!({
        "spiffe_id": svid.id().to_string(),
        "serial": svid.serial(),
        "not_before": rfc3339(svid.not_before()),
        "not_after": rfc3339(svid.not_after()),
        "fingerprint_sha256": identity::digest::hex(&svid.fingerprint_sha256()),
        "entry_id": entry.map(|entry| &entry.id),
        "renew_at": renew_at.map(rfc3339),
    })
}

fn bundle_page(bundle: &TrustBundle) -> Value {
    let roots = bundle.x509_authorities.iter().filter_map(|root| CertificateSummary::decode(root).ok());
    let roots = roots.map(|root| {
        json!({
            "subject": root.subject,
            "serial": root.serial,
            "not_after": rfc3339(root.not_after()),
            "fingerprint_sha256": root.fingerprint_sha256,
        })
    });
    json!({
        "trust_domain": bundle.trust_domain.as_str(),
        "sequence": bundle.sequence,
        "roots": roots.collect::<Vec<_>>(),
        "jwt_keys": bundle.jwt_authorities.iter().map(|authority| &authority.key_id).collect::<Vec<_>>(),
        "wit_keys": bundle.wit_authorities.iter().map(|authority| &authority.key_id).collect::<Vec<_>>(),
    })
}

fn texts<'a, T: ToString + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    values.into_iter().map(ToString::to_string).collect()
}

/// Entries that `/whoami` explains the absence of.
const NEAR_MISSES_MAX: usize = 20;
