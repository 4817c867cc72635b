//! Two trust domains federate: the shared mesh and an authority of another one, real processes both.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Mesh, Program, tools, wait};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::trial::shared;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("federation::a_root_rotation_there_arrives_at_a_workload_here", a_root_rotation_arrives),
        shared("federation::bundles_are_fetched_with_certificates_of_the_web", bundles_are_fetched_over_the_web),
    ]
}

/// An authority of another trust domain.
struct Other {
    folder: PathBuf,
    endpoint: u16,
    _process: harness::Running,
}

impl Other {
    fn start(mesh: &Mesh, trust_domain: &str, federation: &Value) -> Result<Self> {
        let folder = mesh.scratch(&format!("{trust_domain}-{}", free_port()?))?;
        let (grpc, endpoint) = (free_port()?, free_port()?);
        let settings = json!({
            "trust_domain": trust_domain,
            "federation": federation,
            "data_dir": folder.join("data"),
            "grpc": format!("127.0.0.1:{grpc}"),
            "admin_socket": folder.join("admin.sock"),
            "bundle_file": folder.join("bundle.pem"),
            "bundle_endpoint": format!("127.0.0.1:{endpoint}"),
            "server_names": ["localhost", "127.0.0.1"],
        });
        let file = folder.join("ca.yaml");
        std::fs::write(&file, settings.to_string())?;
        let program = kasbah(["ca", "run", "--config"]).arg(&file);
        let process = program.background(&folder.join("ca.log"))?;
        let other = Self { folder, endpoint, _process: process };
        wait::until("the other authority", Duration::from_secs(60), || other.kasbah(["bundle", "show"])?.ok())?;
        Ok(other)
    }

    /// `kasbah …` at its admin socket.
    fn kasbah<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Program> {
        Ok(kasbah(args).arg("--socket").arg(self.folder.join("admin.sock")))
    }
}

fn kasbah<'a>(args: impl IntoIterator<Item = &'a str>) -> Program {
    Program::new(tools::kasbah()).args(args).env("NO_COLOR", "1")
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn a_root_rotation_arrives(mesh: &Mesh) -> Result<()> {
    let other = Other::start(mesh, "other.org", &json!({}))?;
    let bundle = other.folder.join("bundle.json");
    std::fs::write(&bundle, other.kasbah(["bundle", "show", "--format", "spiffe"])?.ok()?.stdout)?;
    curl_reads_the_endpoint(&other)?;
    let url = format!("https://127.0.0.1:{}/", other.endpoint);
    let id = "spiffe://other.org/spire/server";
    mesh.kasbah(["federation", "create", "--trust-domain", "other.org", "--bundle-endpoint-url", &url])
        .args(["--bundle-endpoint-profile", "https_spiffe", "--endpoint-spiffe-id", id, "--trust-domain-bundle-path"])
        .arg(&bundle)
        .ok()?;
    let outcome = with_relationship(mesh, &other);
    mesh.kasbah(["federation", "delete", "--trust-domain", "other.org"]).ok()?;
    outcome
}

/// Two authorities beside the mesh: one shows the certificate of the mesh's ingress gateway, the other trusts its root.
fn bundles_are_fetched_over_the_web(mesh: &Mesh) -> Result<()> {
    let (port, ingress) = (free_port()?, mesh.dir().join("data/ingress"));
    let endpoint = json!({
        "listen": format!("127.0.0.1:{port}"),
        "cert_file": ingress.join("cert.pem"),
        "key_file": ingress.join("key.pem"),
    });
    let other = Other::start(mesh, "other.org", &json!({"web_endpoint": endpoint, "serve_map": true}))?;
    let trusting = json!({"web_roots_file": mesh.at("/ingress/ca_file")?, "allowed_networks": ["127.0.0.0/8"]});
    let third = Other::start(mesh, "third.org", &trusting)?;
    let url = format!("https://localhost:{port}/map");
    let create =
        third.kasbah(["federation", "create", "--trust-domain", "other.org", "--bundle-endpoint-url", &url])?;
    create.args(["--bundle-endpoint-profile", "https_web"]).ok()?;
    let expect = |roots: u64| {
        let bundles = third.kasbah(["bundle", "list", "-o", "json"])?.ok()?.json()?;
        ensure!(bundles[0]["x509_authorities"] == roots, "not {roots} roots: {bundles}");
        Ok(())
    };
    wait::until("the first bundle, by itself", Duration::from_secs(60), || expect(1))?;
    other.kasbah(["ca", "rotate", "prepare"])?.ok()?;
    third.kasbah(["federation", "refresh", "--trust-domain", "other.org"])?.ok()?;
    expect(2)?;
    let map = harness::curl::get(&url).trusting(mesh.at("/ingress/ca_file")?).send()?.expect_status(200)?.json()?;
    ensure!(map["trust_domains"]["other.org"]["spiffe_sequence"] == 2, "{map}");
    Ok(())
}

fn with_relationship(mesh: &Mesh, other: &Other) -> Result<()> {
    let shown = mesh.kasbah(["federation", "show", "--trust-domain", "other.org", "-o", "json"]).ok()?.json()?;
    ensure!(shown["bundle_endpoint_profile"] == "https_spiffe", "{shown}");
    let created = mesh.kasbah(["entry", "create", "--spiffe-id", "spiffe://cluster.local/ns/default/sa/federated"]);
    let parent = ["--parent-id", "spiffe://cluster.local/node/local", "--selector", "launch:name:federated"];
    let entry = created.args(parent).args(["--federates-with", "other.org"]).ok()?.stdout;
    let outcome = follow(mesh, other);
    mesh.kasbah(["entry", "delete", entry.trim()]).ok()?;
    outcome
}

fn follow(mesh: &Mesh, other: &Other) -> Result<()> {
    expect_roots(mesh, 1)?;
    other.kasbah(["ca", "rotate", "prepare"])?.ok()?;
    mesh.kasbah(["federation", "refresh", "--trust-domain", "other.org"]).ok()?;
    expect_roots(mesh, 2)?;
    let listed = mesh.kasbah(["federation", "list", "-o", "json"]).ok()?.json()?;
    ensure!(listed[0]["bundle_sequence"] == 2 && listed[0]["failures"] == 0, "{listed}");
    let bundles = mesh.kasbah(["bundle", "list", "-o", "json"]).ok()?.json()?;
    ensure!(bundles[0]["x509_authorities"] == 2, "{bundles}");
    let refused = mesh.kasbah(["bundle", "delete", "--id", "other.org"]).run()?;
    ensure!(refused.code == 1, "deleted while an entry federates with it: {}", refused.said());
    Ok(())
}

/// Waits until py-spiffe, as the workload, sees so many roots of the other trust domain.
fn expect_roots(mesh: &Mesh, roots: usize) -> Result<()> {
    let script = tools::source("interop/spiffe_bundles.py");
    wait::until(&format!("{roots} roots at the workload"), Duration::from_secs(60), || {
        let workload = mesh.launch("federated", tools::python_program("python")?).arg(&script);
        let answer = workload.env("SPIFFE_ENDPOINT_SOCKET", mesh.at("/agent/workload_api")?).ok()?.json()?;
        let seen = answer.get("other.org").and_then(Value::as_u64).context("no bundle of other.org")?;
        ensure!(seen == roots as u64, "{answer}");
        Ok(())
    })
}

/// curl believes the endpoint by its root, and reads the document.
fn curl_reads_the_endpoint(other: &Other) -> Result<()> {
    let url = |path: &str| harness::curl::url("https", &format!("127.0.0.1:{}", other.endpoint), path);
    let roots = path(&other.folder.join("bundle.pem"))?;
    let page = harness::curl::get(url("/")).trusting(&roots).send()?.expect_status(200)?;
    let document = page.json()?;
    ensure!(document["spiffe_sequence"] == 1 && document["spiffe_refresh_hint"] == 300, "{document}");
    harness::curl::get(url("/other")).trusting(&roots).send()?.expect_status(404)?;
    let post = harness::curl::get(url("/")).trusting(&roots).options(["-X", "POST"]).send()?;
    post.expect_status(405)?;
    Ok(())
}

fn path(file: &Path) -> Result<String> {
    file.to_str().map(str::to_owned).context("a path that is text")
}
