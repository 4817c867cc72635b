//! Between sidecars there is only TLS 1.3 with SPIFFE certificates, and whoever has none, a foreign or an unnamed one
//! is refused, each with a reason of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::curl::{self, url};
use harness::{Mesh, MeshOptions, Program, Skipped, tools, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::{alone, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("mtls::the_only_san_is_the_spiffe_id", the_only_san_is_the_spiffe_id),
        shared("mtls::older_tls_is_refused", older_tls_is_refused),
        shared("mtls::a_named_identity_is_answered", a_named_identity_is_answered),
        shared("mtls::three_kinds_of_strangers_have_three_reasons", three_kinds_of_strangers_have_three_reasons),
        alone("mtls::only_tls13_is_on_the_wire_between_sidecars", only_tls13_is_on_the_wire_between_sidecars),
    ]
}

/// `openssl s_client` to a sidecar's inbound address.
pub(crate) fn s_client(inbound: &str) -> Result<Program> {
    Ok(tools::system("openssl")?.args(["s_client", "-connect", inbound, "-servername", SNI, "-alpn", "h2,http/1.1"]))
}

/// The server's leaf certificate as PEM.
pub(crate) fn leaf_of(inbound: &str, identity: &Path) -> Result<String> {
    let answer = with_identity(s_client(inbound)?, identity).arg("-showcerts").run()?;
    let start = answer.stdout.find("-----BEGIN CERTIFICATE-----").with_context(|| answer.said())?;
    let end = answer.stdout[start..].find("-----END CERTIFICATE-----").with_context(|| answer.said())?;
    Ok(format!("{}-----END CERTIFICATE-----\n", &answer.stdout[start..start + end]))
}

/// What `openssl x509 -noout OPTIONS` says of a certificate.
pub(crate) fn x509(pem: &str, options: &[&str]) -> Result<String> {
    Ok(tools::system("openssl")?.args(["x509", "-noout"]).args(options).input(pem).ok()?.stdout)
}

fn with_identity(program: Program, folder: &Path) -> Program {
    let file = |name: &str| folder.join(name);
    program.arg("-cert").arg(file("svid.pem")).arg("-key").arg(file("svid.key")).arg("-CAfile").arg(file("bundle.pem"))
}

fn the_only_san_is_the_spiffe_id(mesh: &Mesh) -> Result<()> {
    let identity = mesh.write_identity("test")?;
    for workload in ["helloworld", "test"] {
        let inbound = mesh.at(&format!("/workloads/{workload}/inbound"))?;
        let answer = with_identity(s_client(inbound)?, &identity).run()?;
        ensure!(answer.said().contains("TLSv1.3"), "not TLS 1.3: {}", answer.said());
        ensure!(answer.said().contains("Verify return code: 0 (ok)"), "not our authority: {}", answer.said());
        let names = x509(&leaf_of(inbound, &identity)?, &["-ext", "subjectAltName"])?;
        let names: Vec<&str> = names.lines().skip(1).flat_map(|line| line.split(',')).map(str::trim).collect();
        let expected = format!("URI:{}", mesh.at(&format!("/workloads/{workload}/spiffe_id"))?);
        ensure!(names == [expected.as_str()], "the names are {names:?}, not only {expected}");
    }
    Ok(())
}

fn older_tls_is_refused(mesh: &Mesh) -> Result<()> {
    let identity = mesh.write_identity("test")?;
    let inbound = mesh.at("/workloads/helloworld/inbound")?;
    let answer = with_identity(s_client(inbound)?, &identity).arg("-tls1_2").run()?;
    ensure!(answer.code != 0, "TLS 1.2 was accepted: {}", answer.said());
    ensure!(answer.said().contains("alert"), "no alert, so not refused but failed: {}", answer.said());
    Ok(())
}

/// The control: what is refused below is not refused for other reasons.
fn a_named_identity_is_answered(mesh: &Mesh) -> Result<()> {
    for name in ["test", "istio-ingressgateway"] {
        let identity = mesh.write_identity(name)?;
        straight_to_helloworld(mesh)?.identity(&identity).send()?.expect_status(200).context(name)?;
    }
    Ok(())
}

/// A request to helloworld's inbound address with TLS of one's own.
fn straight_to_helloworld(mesh: &Mesh) -> Result<curl::Request> {
    let inbound = mesh.address("/workloads/helloworld/inbound")?;
    let resolve = format!("{HOST}:{}:{}", inbound.port(), inbound.ip());
    Ok(curl::get(format!("https://{HOST}:{}/helloworld", inbound.port())).options([
        "--resolve",
        &resolve,
        "--insecure",
    ]))
}

fn three_kinds_of_strangers_have_three_reasons(mesh: &Mesh) -> Result<()> {
    let nobody = reason_of(mesh, || {
        let answer = straight_to_helloworld(mesh)?.try_send()?;
        ensure!(answer.code != 0, "a client without a certificate was answered: {}", answer.stdout);
        Ok(())
    })?;
    let foreign = self_made_identity(mesh)?;
    let foreigner = reason_of(mesh, || {
        let answer = straight_to_helloworld(mesh)?.identity(&foreign).try_send()?;
        ensure!(answer.code != 0, "a certificate of another root was accepted: {}", answer.stdout);
        Ok(())
    })?;
    let stranger = stranger(mesh)?;
    let unnamed = reason_of(mesh, || {
        let response = straight_to_helloworld(mesh)?.identity(&stranger).send()?.expect_status(403)?;
        ensure!(response.reason() == "RBAC_DENIED", "the reason is {}", response.reason());
        Ok(())
    })?;
    ensure!(unnamed == "RBAC_DENIED", "the log says {unnamed}");
    let reasons = [nobody, foreigner, unnamed];
    ensure!(reasons[0] != reasons[1] && reasons[1] != reasons[2] && reasons[0] != reasons[2], "not three: {reasons:?}");
    let known = mesh.kasbah(["help", "reasons"]).ok()?.stdout;
    for reason in &reasons {
        ensure!(known.contains(reason.as_str()), "`kasbah help reasons` does not explain {reason}");
    }
    Ok(())
}

/// Does something and reads the reason code that helloworld's sidecar logs for it.
fn reason_of(mesh: &Mesh, act: impl FnOnce() -> Result<()>) -> Result<String> {
    let logs = ["helloworld-sidecar", "helloworld-sidecar-access"];
    let line = mesh.log_line_after(&logs, &["reason=", "\"reason\":\""], act)?;
    let after = line.split("reason").nth(1).unwrap_or_default();
    let code: String = after
        .chars()
        .skip_while(|c| !c.is_ascii_uppercase())
        .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
        .collect();
    ensure!(code.len() > 3, "no reason code in: {line}");
    Ok(code)
}

/// A certificate with a name of this mesh, signed by a root of its own.
fn self_made_identity(mesh: &Mesh) -> Result<PathBuf> {
    let folder = mesh.scratch("self-made")?;
    let openssl = |args: &str| -> Result<()> {
        tools::system("openssl")?.in_folder(&folder).args(args.split(' ')).ok()?;
        Ok(())
    };
    std::fs::write(
        folder.join("leaf.cnf"),
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n\
         subjectAltName=URI:spiffe://cluster.local/ns/default/sa/test\n",
    )?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -keyout root.key -out root.pem -days 2 -subj /O=Foreign"))?;
    openssl(&format!("req -new {key} -keyout svid.key -out leaf.csr -subj /O=Foreign"))?;
    openssl(
        "x509 -req -in leaf.csr -CA root.pem -CAkey root.key -CAcreateserial -days 1 -extfile leaf.cnf -out svid.pem",
    )?;
    Ok(folder)
}

/// An identity of this mesh that no policy names.
fn stranger(mesh: &Mesh) -> Result<PathBuf> {
    let id = "spiffe://cluster.local/ns/default/sa/stranger";
    let parent = "spiffe://cluster.local/node/local";
    let known = mesh.kasbah(["entry", "list", "--spiffe-id", id, "-o", "json"]).ok()?;
    if !known.stdout.contains(id) {
        let entry = ["--spiffe-id", id, "--parent-id", parent, "--selector", "launch:name:stranger"];
        mesh.kasbah(["entry", "create"]).args(entry).ok()?;
    }
    // The new entry travels to the agent.
    wait::until("the stranger's certificate", Duration::from_secs(15), || mesh.write_identity("stranger"))
}

fn only_tls13_is_on_the_wire_between_sidecars() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("wire.json");
    let script =
        tools::script("wire.py")?.arg("--port").arg("15006").arg("--marker").arg(MARKER).arg("--report").arg(&report);
    let log = folder.path().join("wire.log");
    let mut wire = script.background(&log)?;
    let heard = |log: &Path| std::fs::read_to_string(log).unwrap_or_default();
    wait::until("the capture", Duration::from_secs(20), || {
        if wire.has_ended() {
            return Ok(false);
        }
        ensure!(heard(&log).contains("listening"), "{}", heard(&log));
        Ok(true)
    })?;
    if wire.has_ended() {
        return Err(Skipped(format!("the wire cannot be read here: {}", heard(&log).trim())).into());
    }
    // Started after the capture, so that every handshake between the sidecars is seen.
    let mesh = Mesh::start(&MeshOptions::default())?;
    let token = mesh.token("testers")?;
    for path in ["/helloworld/whoami", "/test"] {
        let request =
            curl::get(url("http", mesh.at("/ingress/http")?, path)).bearer(&token).header("traceparent", MARKER);
        request.send()?.expect_status(200).with_context(|| mesh.logs())?;
    }
    wire.finish(Duration::from_secs(20)).with_context(|| heard(&log))?;
    let seen: Value = serde_json::from_str(&std::fs::read_to_string(&report)?)?;
    for address in [mesh.at("/workloads/helloworld/address")?, mesh.at("/workloads/test/address")?] {
        let streams: Vec<&Value> = seen
            .get("streams")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|stream| stream.get("server").and_then(Value::as_str) == Some(address))
            .collect();
        ensure!(!streams.is_empty(), "nothing went to {address}:15006: {seen:#}");
        for stream in streams {
            if stream.get("verdict").and_then(Value::as_str) != Some("TLSv1.3") {
                bail!("not only TLS 1.3 to {address}:15006: {stream:#}");
            }
        }
    }
    Ok(())
}

const HOST: &str = "helloworld.default.svc.cluster.local";
const SNI: &str = "outbound_.9095_._.helloworld.default.svc.cluster.local";
/// A well-formed trace header whose number is looked for on the wire.
const MARKER: &str = "00-4b61736261684d61726b657273656372-4b61736261682121-01";
