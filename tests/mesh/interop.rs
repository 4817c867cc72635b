//! Software that others wrote speaks to our seams unchanged: py-spiffe, stock Envoy, grpcio.

use anyhow::{Result, ensure};
use harness::{Mesh, Program, tools};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::{own, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("interop::py_spiffe_fetches_and_watches", py_spiffe_fetches_and_watches),
        shared("interop::grpcio_resolves_and_calls_by_xds", grpcio_resolves_and_calls_by_xds),
        own("interop::stock_envoy_runs_on_state_of_the_world", &[], |mesh| stock_envoy(mesh, "sotw")),
        own("interop::stock_envoy_runs_on_delta", &[], |mesh| stock_envoy(mesh, "delta")),
    ]
}

/// A script of `tests/interop`, started as the workload of that name.
fn as_workload(mesh: &Mesh, name: &str, script: &str) -> Result<Program> {
    let python = tools::python_program("python")?;
    Ok(mesh.launch(name, python).arg(tools::source("interop").join(script)))
}

fn py_spiffe_fetches_and_watches(mesh: &Mesh) -> Result<()> {
    let answer = as_workload(mesh, "helloworld", "spiffe_client.py")?.args(["--audience", "db"]).ok()?.json()?;
    let expected = mesh.at("/workloads/helloworld/spiffe_id")?;
    for member in ["x509_svid", "watched", "jwt_svid", "jwt_validated"] {
        ensure!(answer.get(member).and_then(Value::as_str) == Some(expected), "{member} is not {expected}: {answer:#}");
    }
    Ok(())
}

fn grpcio_resolves_and_calls_by_xds(mesh: &Mesh) -> Result<()> {
    let identity = mesh.write_identity("test")?;
    let program = tools::script("grpc_xds.py")?
        .args([
            "--discovery",
            mesh.at("/discovery/xds")?,
            "--target",
            "xds:///helloworld.default.svc.cluster.local:9095",
        ])
        .arg("--identity")
        .arg(&identity)
        .args(["--address", mesh.at("/workloads/test/address")?]);
    let answer = program.ok()?.json()?;
    ensure!(answer.get("reply").and_then(Value::as_str) == Some("Hello Zaynab"), "{answer}");
    Ok(())
}

/// Stock Envoy as a client's sidecar and as a server's, configured by our discovery, with certificates of our agent.
fn stock_envoy(mesh: &Mesh, mode: &str) -> Result<()> {
    let folder = mesh.scratch("envoy")?;
    let program = tools::script("envoy_sidecars.py")?
        .args(["--mode", mode])
        .arg("--envoy")
        .arg(tools::python_program("envoy")?)
        .arg("--kasbah")
        .arg(tools::kasbah())
        .arg("--dir")
        .arg(mesh.dir())
        .arg("--scratch")
        .arg(&folder);
    let answer = program.limit(std::time::Duration::from_secs(90)).ok()?.json()?;
    for call in ["envoy_to_kasbah", "kasbah_to_envoy"] {
        ensure!(answer.get(call).and_then(Value::as_u64) == Some(200), "{call}: {answer:#}");
    }
    ensure!(answer.get("rejected") == Some(&Value::Array(Vec::new())), "rejected updates: {answer:#}");
    Ok(())
}
