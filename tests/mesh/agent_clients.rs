//! Software that others wrote takes its identity from the agent for twenty rotations at a life of five seconds: it never
//! gets an expired SVID, never stands without one, and loses no request.

mod envoy;
mod rust_spiffe;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::tools;
use libtest_mimic::Trial;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::site::{START_MAX, Site};
use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![alone("agent::py_spiffe_the_spiffe_crate_and_stock_envoy_follow_twenty_rotations", twenty_rotations)]
}

/// All at the same time, since the time passes for all of them.
fn twenty_rotations() -> Result<()> {
    let (python, envoy) = (&tools::python_program("python")?, &tools::python_program("envoy")?);
    let site = &Site::with_agent_svid_ttl("1h")?;
    let _agent = site.agent(&json!({"sds": site.path("sds.sock")}))?;
    for path in ["/client", "/server"] {
        site.entry(path, LIFE)?;
    }
    harness::wait::until("both SVIDs", START_MAX, || {
        let fetched = site.fetch()?;
        ensure!(fetched["svids"].as_array().map(Vec::len) == Some(2), "{fetched}");
        Ok(())
    })
    .with_context(|| site.log("agent"))?;
    let endpoint = site.endpoint("agent");
    let results = std::thread::scope(|scope| {
        let py = scope.spawn(|| py_spiffe(python, &endpoint, &site.path("watch.json")));
        let rust = scope.spawn(|| rust_spiffe::follow(&endpoint, ROTATIONS, ROTATIONS_MAX));
        let bare = scope.spawn(|| without_the_header(&endpoint));
        let modes = ["GRPC", "DELTA_GRPC"];
        let envoys = modes.map(|mode| scope.spawn(move || envoy::serve_through(site, envoy, mode, ROTATIONS)));
        let mut all = vec![("py-spiffe", py.join()), ("spiffe", rust.join()), ("no header", bare.join())];
        all.extend(modes.into_iter().zip(envoys.map(std::thread::ScopedJoinHandle::join)));
        all
    });
    for (who, result) in results {
        let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
        result.with_context(|| who.to_owned()).with_context(|| site.log("agent"))?;
    }
    Ok(())
}

fn py_spiffe(python: &Path, endpoint: &str, log: &Path) -> Result<()> {
    let seconds = ROTATIONS_MAX.as_secs().to_string();
    let watching = harness::Program::new(python)
        .arg(tools::source("interop/spiffe_watch.py"))
        .args(["--seconds", &seconds, "--rotations", &ROTATIONS.to_string()])
        .env("SPIFFE_ENDPOINT_SOCKET", endpoint)
        .background(log)?;
    let ended = watching.finish(ROTATIONS_MAX + Duration::from_secs(20));
    let said = std::fs::read_to_string(log)?;
    ended.with_context(|| said.clone())?;
    let watched: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let serials: BTreeSet<&str> =
        watched["serials"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    ensure!(serials.len() > ROTATIONS, "only {} certificates came: {watched}", serials.len());
    ensure!(watched["errors"] == json!([]), "{watched}");
    ensure!(watched["calls"].as_u64() >= Some(100), "the calls beside it were few: {watched}");
    Ok(())
}

/// A call that does not say what it is for may have been tricked into being made.
fn without_the_header(endpoint: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let refused = runtime.block_on(async {
        let channel = tonic::transport::Endpoint::from_shared(endpoint.to_owned())?.connect().await?;
        let mut client = SpiffeWorkloadApiClient::new(channel);
        let token = JwtsvidRequest { audience: vec!["db".into()], ..JwtsvidRequest::default() };
        let judged = ValidateJwtsvidRequest { audience: "db".into(), svid: "e30.e30.e30".into() };
        anyhow::Ok([
            client.fetch_x509svid(X509svidRequest {}).await.err(),
            client.fetch_x509_bundles(X509BundlesRequest {}).await.err(),
            client.fetch_jwtsvid(token).await.err(),
            client.fetch_jwt_bundles(JwtBundlesRequest {}).await.err(),
            client.validate_jwtsvid(judged).await.err(),
        ])
    })?;
    let codes = refused.map(|status| status.as_ref().map(Status::code));
    ensure!(codes == [Some(Code::InvalidArgument); 5], "{codes:?}");
    Ok(())
}

const LIFE: &str = "5s";
const ROTATIONS: usize = 20;
/// At half of five seconds, a little earlier or later, they take about fifty.
const ROTATIONS_MAX: Duration = Duration::from_secs(100);
