//! What the admin pages show: configuration in force with its versions, and certificates. No secrets.

use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use identity::X509Svid;
use identity::digest::hex;
use identity::summary::CertificateSummary;
use prost::Message;
use routing::endpoint::EndpointAddress;
use routing::tls::{CertificateRef, TlsCommon};
use runtime::clock::rfc3339;
use serde_json::{Value, json};

use crate::control::Control;
use crate::process::Process;
use crate::tls::files::CertificateFiles;
use crate::tls::own::revoked_by;
use crate::xds::store::Entry;
use crate::xds::subscription::Kind;

/// `/config_dump`: every resource by type, with the version it came in.
pub(crate) fn config_dump(control: &Control) -> Value {
    let config = control.current();
    let store = control.store();
    let store = store.lock().unwrap_or_else(PoisonError::into_inner);
    let listeners: Vec<Value> = store.listeners.values().map(|entry| listener(entry, &config)).collect();
    let clusters: Vec<Value> = store
        .clusters
        .iter()
        .map(|(name, entry)| {
            let endpoints = config.clusters.get(name.as_str()).map(|cluster| endpoints(&cluster.endpoints));
            json!({"name": name, "version": entry.version, "endpoints": endpoints, "tls": entry.compiled.all_tls().next().is_some()})
        })
        .collect();
    let routes: Vec<Value> = store.routes.values().map(route).collect();
    let load: Vec<Value> = store
        .endpoints
        .iter()
        .map(|(name, entry)| json!({"name": name, "version": entry.version, "endpoints": endpoints(&entry.compiled)}))
        .collect();
    json!({
        "generation": config.generation,
        "warm": store.is_warm(),
        "listeners": listeners,
        "clusters": clusters,
        "routes": routes,
        "endpoints": load,
        "lingering_clusters": store.lingering.keys().collect::<Vec<_>>(),
        "open": control.open_addresses(),
    })
}

fn listener(entry: &Entry<routing::listener::Listener>, config: &crate::config::Config) -> Value {
    let listener = &entry.compiled;
    let chains: Vec<&str> = listener.all_chains().map(|chain| &*chain.name).collect();
    let in_force = config.listeners.get(&listener.name).is_some_and(|now| Arc::ptr_eq(&now.listener, listener));
    json!({
        "name": &*listener.name,
        "version": entry.version,
        "address": format!("{:?}", listener.address),
        "filter_chains": chains,
        "in_force": in_force,
    })
}

fn route(entry: &Entry<routing::route::RouteTable>) -> Value {
    let hosts: Vec<Value> = entry
        .compiled
        .hosts
        .iter()
        .map(|host| json!({"name": &*host.name, "routes": host.routes.iter().map(|route| &*route.name).collect::<Vec<_>>()}))
        .collect();
    json!({"name": &*entry.compiled.name, "version": entry.version, "virtual_hosts": hosts})
}

fn endpoints(endpoints: &routing::cluster::Endpoints) -> Vec<Value> {
    let one = |endpoint: &routing::endpoint::Endpoint| {
        json!({
            "address": address(&endpoint.address),
            "health": format!("{:?}", endpoint.health),
            "weight": endpoint.weight,
            "priority": endpoint.priority,
        })
    };
    endpoints.all().iter().map(one).collect()
}

fn address(address: &EndpointAddress) -> String {
    match address {
        EndpointAddress::Ip(address) => address.to_string(),
        EndpointAddress::Dns { host, port } => format!("{host}:{port}"),
        EndpointAddress::Pipe(path) => path.display().to_string(),
    }
}

/// `/resources`: who this proxy is and every resource as it came, both as encoded messages in hexadecimal, so that
/// others can decide as this proxy does. One that holds a private key is named and withheld.
pub(crate) fn resources(process: &Process, control: &Control) -> Value {
    let store = control.store();
    let store = store.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = Vec::new();
    for (name, entry) in &store.listeners {
        let secret = entry.compiled.all_chains().filter_map(|chain| chain.tls.as_ref()).any(|tls| has_key(&tls.common));
        all.push(resource(Kind::Listener, name, entry, secret));
    }
    for (name, entry) in &store.clusters {
        let secret = entry.compiled.all_tls().any(|tls| has_key(&tls.common));
        all.push(resource(Kind::Cluster, name, entry, secret));
    }
    all.extend(store.routes.iter().map(|(name, entry)| resource(Kind::Route, name, entry, false)));
    all.extend(store.endpoints.iter().map(|(name, entry)| resource(Kind::Endpoint, name, entry, false)));
    let settings = &process.settings;
    json!({
        "node": hex(&settings.node.to_proto().encode_to_vec()),
        "trust_domain": settings.trust_domain,
        "spiffe_id": process.identity.svid_now().map(|svid| svid.id().to_string()),
        "resources": all,
    })
}

fn resource<T>(kind: Kind, name: &str, entry: &Entry<T>, secret: bool) -> Value {
    let body = (!secret).then(|| hex(&entry.body));
    json!({"type_url": kind.type_url(), "name": name, "version": entry.version, "body": body})
}

fn has_key(tls: &TlsCommon) -> bool {
    tls.certificates.iter().any(|certificate| matches!(certificate, CertificateRef::Inline { .. }))
}

/// `/certs`: the SVID in force, the trusted roots, and certificates from files.
pub(crate) fn certs(process: &Process, files: &CertificateFiles) -> Value {
    let held = process.identity.held();
    let mut certificates = Vec::new();
    if let Some(svid) = &held.svid {
        let roots: Vec<Value> = held
            .bundles
            .get(&svid.id().trust_domain())
            .map(|bundle| {
                bundle
                    .x509_authorities
                    .iter()
                    .filter_map(|der| CertificateSummary::decode(der).ok())
                    .map(|c| detail(&c, ""))
                    .collect()
            })
            .unwrap_or_default();
        let chain: Vec<Value> =
            summaries(svid).iter().map(|certificate| detail(certificate, "sds://default")).collect();
        certificates.push(json!({"ca_cert": roots, "cert_chain": chain}));
    }
    for (path, key) in files.all() {
        let chain: Vec<Value> = key
            .iter()
            .flat_map(|key| key.cert.iter().filter_map(|der| CertificateSummary::decode(der).ok()))
            .map(|certificate| detail(&certificate, &path.to_string_lossy()))
            .collect();
        certificates.push(json!({"ca_cert": [], "cert_chain": chain}));
    }
    let svid = held.svid.as_ref().map(|svid| {
        json!({
            "spiffe_id": svid.id().as_str(),
            "serial": svid.serial(),
            "not_before": rfc3339(svid.not_before()),
            "not_after": rfc3339(svid.not_after()),
            "fingerprint_sha256": hex(&svid.fingerprint_sha256()),
        })
    });
    let trusted: Vec<Value> = held
        .bundles
        .iter()
        .map(|(name, bundle)| json!({"trust_domain": name.as_str(), "x509_authorities": bundle.x509_authorities.len(), "revoked": revoked_by(&held.bundles, name)}))
        .collect();
    json!({"svid": svid, "bundles": trusted, "generation": process.identity.generation(), "certificates": certificates})
}

fn summaries(svid: &X509Svid) -> Vec<CertificateSummary> {
    svid.chain().filter_map(|der| CertificateSummary::decode(der).ok()).collect()
}

/// A certificate in the words of Envoy's page of the same name.
fn detail(certificate: &CertificateSummary, path: &str) -> Value {
    let names: Vec<Value> = certificate
        .uris
        .iter()
        .map(|uri| json!({"uri": uri}))
        .chain(certificate.dns_names.iter().map(|name| json!({"dns": name})))
        .collect();
    let left = certificate.not_after().duration_since(runtime::clock::now().max(SystemTime::UNIX_EPOCH));
    json!({
        "path": path,
        "serial_number": certificate.serial,
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "subject_alt_names": names,
        "valid_from": rfc3339(certificate.not_before()),
        "expiration_time": rfc3339(certificate.not_after()),
        "days_until_expiration": (left.unwrap_or_default().as_secs() / 86_400).to_string(),
    })
}
