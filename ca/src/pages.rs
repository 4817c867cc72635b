//! What the admin address shows of an authority.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use identity::summary::CertificateSummary;
use identity::tls::Snapshot;
use runtime::admin::AdminParts;
use runtime::clock::{from_unix_secs, rfc3339};
use runtime::logs::LogControl;
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::certifier::{Certifier, secs};
use crate::custody::renewal::Renewal;
use crate::federation;
use crate::metrics::Gauges;
use crate::server_svid::ServerSvid;
use crate::settings::Settings;
use crate::store::Recorded;

pub(crate) fn admin_parts(
    settings: &Settings,
    certifier: &Arc<Certifier>,
    svid: &Arc<ServerSvid>,
    readiness: &Readiness,
    logs: LogControl,
) -> AdminParts {
    let metrics = Metrics::new();
    let (of_certifier, of_svid) = (certifier.clone(), svid.clone());
    certifier.counts.register(&metrics, move || gauges(&of_certifier, &of_svid));
    let of_federation = certifier.clone();
    metrics.add_source(Arc::new(move |out| federation::view::write_metrics(&of_federation, out)));
    let dump = config_dump(settings);
    let (certifier, svid) = (certifier.clone(), svid.clone());
    let (for_status, for_routes) = (certifier.clone(), certifier.clone());
    AdminParts::new("ca", readiness.clone(), metrics, logs)
        .config_dump(move || dump.clone())
        .certs(move || certs(&certifier, &svid))
        .status(move || status(&for_status))
        .routes(Router::new().route("/issuance", get(issuance)).with_state(for_routes))
}

fn gauges(certifier: &Certifier, svid: &ServerSvid) -> Gauges {
    let signing = certifier.authorities.current();
    let registry = certifier.store.registry();
    Gauges {
        root_expires_at: signing.root_not_after(),
        chain_expires_at: signing.root_not_after().min(secs(signing.x509.not_after())),
        server_svid_expires_at: svid.not_after().map_or(0, secs),
        entries: registry.entry_count(),
        agents: registry.agents().count(),
        bundle_sequence: signing.bundle.sequence,
        store_up: certifier.store.health().trouble().is_none(),
        store_waiting: certifier.store.waiting(),
        leads: certifier.store.lease().is_held(),
        clock_sound: certifier.clock_watch.check().is_ok(),
        clock_jumps: certifier.clock_watch.jumps(),
        keys_up: certifier.authorities.desks().iter().all(|desk| desk.trouble().is_none()),
        renewal_due: match certifier.renewal() {
            Renewal::Automatic | Renewal::NotYet => 0,
            Renewal::Due => 1,
            Renewal::Overdue => 2,
        },
        web_certificate_expires_at: certifier.web_health.now().not_after,
        acme_failures: certifier.web_health.now().failures,
        now: certifier.now_secs(),
    }
}

/// The settings in force, without a password that the database's URL may hold.
fn config_dump(settings: &Settings) -> Value {
    let mut shown = settings.clone();
    shown.database = settings.database.as_deref().map(crate::store::shown_url);
    json!({ "settings": serde_json::to_value(shown).unwrap_or_default() })
}

fn certs(certifier: &Certifier, svid: &ServerSvid) -> Value {
    let signing = certifier.authorities.current();
    let time = |at: i64| rfc3339(from_unix_secs(at));
    let authorities = signing.facts.iter().map(|facts| {
        json!({
            "kind": facts.kind.as_str(),
            "id": facts.id,
            "state": facts.state.as_str(),
            "key": facts.place.as_str(),
            "not_before": time(facts.not_before),
            "not_after": time(facts.not_after),
        })
    });
    let roots = signing.bundle.x509_authorities.iter().filter_map(|root| CertificateSummary::decode(root).ok());
    json!({
        "trust_domain": certifier.trust_domain,
        "authorities": authorities.collect::<Vec<_>>(),
        "bundle": {
            "sequence": signing.bundle.sequence,
            "roots": roots.map(|root| json!({
                "id": root.subject_key_id,
                "serial": root.serial,
                "not_after": rfc3339(root.not_after()),
                "fingerprint_sha256": root.fingerprint_sha256,
            })).collect::<Vec<_>>(),
            "jwt_keys": signing.bundle.jwt_authorities.iter().map(|key| key.key_id.clone()).collect::<Vec<_>>(),
            "wit_keys": signing.bundle.wit_authorities.iter().map(|key| key.key_id.clone()).collect::<Vec<_>>(),
        },
        "own_svid": svid.svid().map(|svid| json!({
            "spiffe_id": svid.id(),
            "serial": svid.serial(),
            "not_before": rfc3339(svid.not_before()),
            "not_after": rfc3339(svid.not_after()),
            "dns_names": svid.dns_names(),
        })),
    })
}

fn status(certifier: &Certifier) -> Value {
    let signing = certifier.authorities.current();
    let registry = certifier.store.registry();
    json!({
        "trust_domain": certifier.trust_domain,
        "now": rfc3339(certifier.now()),
        "entries": registry.entry_count(),
        "entries_revision": registry.entries_revision(),
        "agents": registry.agents().count(),
        "agents_enforcing_bundle": registry.agents().filter(|agent| agent.bundle_sequence >= signing.bundle.sequence).count(),
        "bundle_sequence": signing.bundle.sequence,
        "revoked": certifier.revocations.current().lists.revoked.len(),
        "crl_number": certifier.revocations.current().lists.number,
        "agents_enforcing_revocations": certifier.nodes_enforcing_revocations().0,
        "database": certifier.store.health().trouble().map_or("OK", |error| error.reason()),
        "rights": certifier.rights.problem().map_or_else(|| "OK".into(), |error| error.to_string()),
        "federation": federation::view::status(certifier),
        "web_endpoint": certifier.web_health.now().state(),
        "leads": certifier.store.lease().is_held(),
        "issued": certifier.counts.recorded(),
        "issuance_policy": certifier.policy.problem().map_or_else(|| "OK".into(), |error| error.to_string()),
        "root_not_after": rfc3339(from_unix_secs(signing.root_not_after())),
        "authority_not_after": rfc3339(signing.x509.not_after()),
        "authority_renewal": certifier.renewal().as_str(),
        "keys": keys(certifier),
        "root_key": signing.root_place.as_str(),
    })
}

/// The first trouble with keys that are elsewhere.
fn keys(certifier: &Certifier) -> String {
    let troubles = certifier.authorities.desks().iter().filter_map(|desk| Some((desk.place(), desk.trouble()?)));
    let mut texts = troubles.map(|(place, trouble)| format!("{}: {trouble}", place.as_str()));
    texts.next().unwrap_or_else(|| "OK".into())
}

#[derive(Deserialize)]
struct Newest {
    #[serde(default = "default_limit")]
    limit: u32,
}

fn default_limit() -> u32 {
    100
}

/// `GET /issuance?limit=N`: the newest records.
async fn issuance(State(certifier): State<Arc<Certifier>>, Query(newest): Query<Newest>) -> Response {
    let records = match certifier.store.issued(newest.limit.min(RECORDS_MAX)).await {
        Ok(records) => records,
        Err(error) => {
            let body = json!({ "reason": error.reason(), "error": error.to_string() });
            return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
        }
    };
    let rows = records.iter().map(|Recorded { issuance: record, kind }| {
        json!({
            "serial": record.serial,
            "kind": kind,
            "spiffe_id": record.spiffe_id,
            "entry_id": record.entry_id,
            "caller": record.caller,
            "authority_id": record.authority_id,
            "fingerprint_sha256": record.fingerprint,
            "log_index": record.log_index,
            "issued_at": rfc3339(from_unix_secs(record.issued_at)),
            "not_after": rfc3339(from_unix_secs(record.not_after)),
        })
    });
    Json(rows.collect::<Vec<_>>()).into_response()
}

/// The most records of one answer.
const RECORDS_MAX: u32 = 1_000;
