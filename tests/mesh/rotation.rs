//! Certificates rotate under load and no request notices.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::curl::{self, url};
use harness::load::{Load, Plan};
use harness::{Mesh, tools, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::mtls;
use crate::trial::own;

pub(crate) fn trials() -> Vec<Trial> {
    vec![own("rotation::four_certificates_pass_and_no_request_fails", &["--leaf-ttl", "20s"], four_certificates_pass)]
}

/// `GET /test`: ingress → test → helloworld, three proxies and two hops of mTLS.
pub(crate) fn load_through_all(mesh: &Mesh) -> Result<Load> {
    let address = mesh.address("/ingress/http")?;
    let token = mesh.token("testers")?;
    let request = format!("GET /test HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}");
    let pause = Duration::from_millis(20);
    Ok(Load::start(Plan { address, request, connections: 4, pause, expect: 200 }))
}

fn four_certificates_pass(mesh: &mut Mesh) -> Result<()> {
    let short_lived = mesh.kasbah(["demo", "token", "--group", "testers", "--ttl", "1s"]).ok()?.stdout;
    let load = load_through_all(mesh)?;
    let log = mesh.scratch("watch")?.join("watch.json");
    let watching = mesh
        .launch("helloworld", tools::python_program("python")?)
        .arg(tools::source("interop/spiffe_watch.py"))
        .args(["--seconds", &LOAD_TIME.as_secs().to_string()])
        .background(&log)?;
    let identity = mesh.write_identity("test")?;
    let workloads = ["helloworld", "test"];
    let mut serials = workloads.map(|_| BTreeSet::new());
    let began = Instant::now();
    while began.elapsed() < LOAD_TIME {
        for (workload, seen) in workloads.iter().zip(&mut serials) {
            let inbound = mesh.at(&format!("/workloads/{workload}/inbound"))?;
            seen.insert(mtls::x509(&mtls::leaf_of(inbound, &identity)?, &["-serial"])?);
        }
        std::thread::sleep(LOOK_AGAIN_AFTER);
    }
    let tally = load.stop();
    tally.expect_no_failure()?;
    for (workload, seen) in workloads.iter().zip(&serials) {
        ensure!(seen.len() >= 4, "{workload} showed only {} certificates: {seen:?}", seen.len());
    }
    ensure!(tally.answered > 1_000, "the load was no load: {} requests", tally.answered);
    watching.finish(Duration::from_secs(20))?;
    let watched: Value = serde_json::from_str(&std::fs::read_to_string(&log)?)?;
    let count = watched.get("serials").and_then(Value::as_array).map_or(0, Vec::len);
    ensure!(count >= 4, "py-spiffe was pushed only {count} certificates: {watched}");
    mesh.expect_healthy()?;
    expect_expired(mesh, short_lived.trim())
}

/// A token of one second is worthless by now, but for the clock skew that verifiers allow.
fn expect_expired(mesh: &Mesh, token: &str) -> Result<()> {
    wait::until("the end of the token", Duration::from_secs(20), || {
        let response = curl::get(url("http", mesh.at("/ingress/http")?, "/test")).bearer(token).send()?;
        let response = response.expect_status(401)?;
        ensure!(response.reason() == "JWT_EXPIRED", "the reason is {}", response.reason());
        Ok(())
    })
}

const LOAD_TIME: Duration = Duration::from_secs(60);
/// Often enough to see each of the certificates, which live for ten seconds and more.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
