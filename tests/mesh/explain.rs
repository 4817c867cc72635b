//! `kasbah explain` says what the running mesh does: each answer is compared with a real request's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::curl::{self, Request};
use harness::{Mesh, Program, tools, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::{own, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("explain::answers_are_those_of_the_mesh", answers_are_those_of_the_mesh),
        shared(
            "explain::answers_between_workloads_are_those_of_the_mesh",
            answers_between_workloads_are_those_of_the_mesh,
        ),
        shared("explain::a_workload_is_explained", a_workload_is_explained),
        own("explain::a_proxy_that_holds_something_else_is_told", &[], a_proxy_that_holds_something_else_is_told),
    ]
}

fn explain(mesh: &Mesh, words: &[&str]) -> Result<(i32, Value)> {
    let answer = mesh.kasbah(["explain", "-o", "json"]).args(words.iter().copied()).run()?;
    ensure!(answer.code == 0 || answer.code == 1, "{}", answer.said());
    let report = answer.json()?;
    ensure!((answer.code == 0) == (report["answer"] == "allow"), "{}: {report:#}", answer.code);
    Ok((answer.code, report))
}

/// What the mesh answers and what is said of it must be the same: status and reason of a refusal.
fn compare(mesh: &Mesh, path: &str, token: Option<&str>, headers: &[(&str, &str)]) -> Result<Value> {
    let url = curl::url("http", mesh.at("/ingress/http")?, path);
    let mut request: Request = curl::get(&url);
    let mut words = vec!["GET".to_owned(), url];
    if let Some(token) = token {
        request = request.bearer(token);
        words.extend(["--token".to_owned(), token.to_owned()]);
    }
    for (name, value) in headers {
        request = request.header(name, value);
        words.extend(["--header".to_owned(), format!("{name}: {value}")]);
    }
    let real = request.send()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (_, report) = explain(mesh, &words)?;
    let refused = real.reason() != "-";
    ensure!((report["answer"] == "deny") == refused, "{path}: really {} {}: {report:#}", real.status, real.reason());
    if refused {
        ensure!(report["status"] == real.status, "{path}: really {}: {report:#}", real.status);
        ensure!(report["reason"] == real.reason(), "{path}: really {}: {report:#}", real.reason());
    }
    ensure!(report["hops"][0]["source"] != "documents", "the proxy was not asked: {report:#}");
    ensure!(report["hops"][0]["differs"] == serde_json::json!([]), "{report:#}");
    Ok(report)
}

fn answers_are_those_of_the_mesh(mesh: &Mesh) -> Result<()> {
    let (testers, users) = (mesh.token("testers")?, mesh.token("users")?);
    compare(mesh, "/helloworld", None, &[])?;
    compare(mesh, "/helloworld/whoami", None, &[])?;
    compare(mesh, "/helloworldx", None, &[])?;
    compare(mesh, "/nowhere", None, &[])?;
    compare(mesh, "/nowhere/../helloworld", None, &[])?;
    compare(mesh, "/helloworld%2f", None, &[])?;
    compare(mesh, "/helloworld", None, &[("x_y", "1")])?;
    let missing = compare(mesh, "/test", None, &[])?;
    ensure!(missing["reason"] == "JWT_MISSING", "{missing:#}");
    let place = &missing["decided_by"]["document"];
    let in_file = place["file"].as_str().is_some_and(|file| file.ends_with("config/security.yaml"));
    ensure!(in_file && place["line"].as_u64() > Some(1), "{missing:#}");
    compare(mesh, "/test", Some("not.a.token"), &[])?;
    compare(mesh, "/test", Some(&users), &[])?;
    let allowed = compare(mesh, "/test", Some(&testers), &[])?;
    ensure!(allowed["hops"].as_array().map(Vec::len) == Some(2), "{allowed:#}");
    ensure!(!allowed.to_string().contains(&testers), "the token is repeated");
    let service = mesh.kasbah(["explain", "http://localhost/helloworld", "--header", "x-demo-deny: true"]).ok()?;
    ensure!(service.stdout.contains("taken for granted") && service.stdout.contains("ext_authz"), "{}", service.said());
    Ok(())
}

fn answers_between_workloads_are_those_of_the_mesh(mesh: &Mesh) -> Result<()> {
    let token = mesh.token("testers")?;
    let through = |path: &str| curl::get(curl::url("http", mesh.at("/ingress/http")?, path)).bearer(&token).send();
    through("/test/egress-denied")?.expect_status(502)?;
    let (_, denied) = explain(mesh, &["http://not-in-mesh.example.org/", "--from", "test"])?;
    ensure!(denied["status"] == 502 && denied["reason"] == "HOST_NOT_IN_MESH", "{denied:#}");
    let external = mesh.at("/external/host")?;
    for (path, asked, hops) in [("/test/egress", "/", 2), ("/test/egress-direct", "/direct", 1)] {
        through(path)?.expect_status(200)?;
        let (code, allowed) = explain(mesh, &[&format!("http://{external}:9095{asked}"), "--from", "test"])?;
        ensure!(code == 0 && allowed["hops"].as_array().map(Vec::len) == Some(hops), "{path}: {allowed:#}");
    }
    let inbound = format!("http://{}/", mesh.at("/workloads/helloworld/inbound")?);
    let plain = curl::get(&inbound).try_send()?;
    ensure!(plain.code != 0, "plain text was answered: {}", plain.said());
    let (_, refused) = explain(mesh, &["GET", "/", "--to", "helloworld"])?;
    ensure!(refused["reason"] == "PLAINTEXT_REFUSED", "{refused:#}");
    ensure!(refused["decided_by"]["document"]["kind"] == "PeerAuthentication", "{refused:#}");
    let peer = mesh.at("/workloads/test/spiffe_id")?;
    ensure!(explain(mesh, &["GET", "/", "--to", "helloworld", "--peer", peer])?.0 == 0);
    let stranger = "spiffe://cluster.local/ns/default/sa/stranger";
    let (_, report) = explain(mesh, &["GET", "/", "--to", "helloworld", "--peer", stranger])?;
    ensure!(report["reason"] == "RBAC_DENIED" && report["status"] == 403, "{report:#}");
    Ok(())
}

fn a_workload_is_explained(mesh: &Mesh) -> Result<()> {
    let report = mesh.kasbah(["explain", "helloworld", "-o", "json"]).ok()?.json()?;
    ensure!(report["spiffe_id"] == mesh.at("/workloads/helloworld/spiffe_id")?, "{report:#}");
    ensure!(report["ports"][0]["mtls"] == "STRICT" && report["differs"] == serde_json::json!([]), "{report:#}");
    let config = mesh.dir().join("config");
    let table = mesh.kasbah(["explain", "helloworld", "--config"]).arg(&config).ok()?.stdout;
    for word in ["STRICT by the mesh's policy", "ROUTES THAT LEAD HERE", "WHO MAY CALL", "security.yaml:"] {
        ensure!(table.contains(word), "no `{word}`: {table}");
    }
    let nobody = mesh.kasbah(["explain", "nobody"]).run()?;
    ensure!(nobody.code == 64 && nobody.stderr.contains("default/helloworld"), "{}", nobody.said());
    let gone = Program::new(tools::kasbah()).args(["explain", "test", "--proxy", "127.0.0.1:1"]).run()?;
    ensure!(gone.code == 69, "{}", gone.said());
    let broken = mesh.scratch("explain")?;
    std::fs::write(broken.join("a.yaml"), "kind: Gateway\n")?;
    let bad = mesh.kasbah(["explain", "test", "--config"]).arg(&broken).run()?;
    ensure!(bad.code == 65 && bad.stderr.contains("a.yaml:1"), "{}", bad.said());
    Ok(())
}

/// A new policy serves, and the documents before it are given: the proxy decides, and the difference is named.
fn a_proxy_that_holds_something_else_is_told(mesh: &mut Mesh) -> Result<()> {
    let before = mesh.scratch("before")?;
    for file in std::fs::read_dir(mesh.dir().join("config"))? {
        let file = file?;
        std::fs::copy(file.path(), before.join(file.file_name()))?;
    }
    std::fs::write(mesh.dir().join("config/deny.yaml"), DENY)?;
    let url = curl::url("http", mesh.at("/ingress/http")?, "/helloworld/secret");
    wait::until("the policy serves", LIMIT, || {
        let real = curl::get(&url).send()?;
        ensure!(real.status == 403 && real.reason() == "RBAC_DENIED", "{} {}", real.status, real.reason());
        Ok(())
    })?;
    let (_, report) = explain(mesh, &[&url])?;
    let document = &report["decided_by"]["document"];
    ensure!(report["status"] == 403 && document["name"] == "no-secrets" && document["line"] == 9, "{report:#}");
    let admin = mesh.at("/ingress/admin")?;
    let before = before.display().to_string();
    let (code, asked) = explain(mesh, &[&url, "--proxy", admin, "--config", &before])?;
    let differs = asked["hops"][0]["differs"].as_array().context("no differences")?;
    ensure!(code == 1 && !differs.is_empty(), "{asked:#}");
    let (code, written) = explain(mesh, &[&url, "--config", &before])?;
    ensure!(code == 0 && written["hops"][0]["source"] == "documents", "{written:#}");
    let table = mesh.kasbah(["explain", &url, "--proxy", admin, "--config", &before]).run()?.stdout;
    ensure!(table.contains("NOT what the documents say"), "{table}");
    Ok(())
}

const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: no-secrets
  namespace: istio-system
spec:
  action: DENY
  rules:
    - to: [{operation: {paths: [/helloworld/secret]}}]
  selector: {matchLabels: {istio: ingressgateway}}
";
const LIMIT: Duration = Duration::from_secs(30);
