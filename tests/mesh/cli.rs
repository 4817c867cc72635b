//! The command line keeps its habits: results on stdout, stable JSON, exit codes, help with examples.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Mesh, MeshOptions, Program, tools, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::{alone, own, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("cli::status_tells_memory_and_the_time_to_be_ready", status_tells_memory_and_time),
        shared("cli::status_tells_what_proxies_acknowledged", status_tells_what_proxies_acknowledged),
        shared("cli::endpoints_are_all_there", endpoints_are_all_there),
        shared("cli::admin_addresses_answer", admin_addresses_answer),
        shared("cli::entries_are_created_listed_shown_and_deleted", entries_are_created_listed_shown_and_deleted),
        shared("cli::tokens_nodes_and_bundles_are_shown", tokens_nodes_and_bundles_are_shown),
        shared("cli::a_launched_program_keeps_its_output_and_exit_code", a_launched_program_keeps_its_exit_code),
        shared("cli::an_unknown_program_gets_no_identity", an_unknown_program_gets_no_identity),
        alone("cli::exit_codes_are_kept", exit_codes_are_kept),
        alone("cli::help_has_examples_reasons_and_codes", help_has_examples_reasons_and_codes),
        alone("cli::filters_answer_line_by_line", filters_answer_line_by_line),
        alone("cli::certificates_are_judged_without_a_server", certificates_are_judged_without_a_server),
        own("cli::a_warm_start_is_ready_within_three_seconds", &[], a_warm_start_is_ready_within_three_seconds),
    ]
}

fn kasbah<'a>(args: impl IntoIterator<Item = &'a str>) -> Program {
    Program::new(tools::kasbah()).args(args).env("NO_COLOR", "1")
}

fn status_tells_memory_and_time(mesh: &Mesh) -> Result<()> {
    let status = mesh.status()?;
    ensure!(status.get("healthy") == Some(&Value::Bool(true)), "not healthy: {status:#}");
    ensure!(status.get("ready_after_ms").and_then(Value::as_u64).is_some_and(|ms| ms > 0), "no time: {status:#}");
    let roles = mesh.roles()?;
    for name in ["ca", "agent", "discovery", "policy", "helloworld-sidecar", "test-sidecar", "ingress", "egress"] {
        let role = roles.iter().find(|role| role.name == name).with_context(|| format!("no {name}: {roles:?}"))?;
        ensure!(role.ready && role.memory_bytes.is_some_and(|bytes| bytes > 1 << 20), "{role:?}");
    }
    let table = mesh.kasbah(["status"]).ok()?.stdout;
    for word in ["MEMORY", "MiB", "ready after", "helloworld-sidecar"] {
        ensure!(table.contains(word), "no {word} in: {table}");
    }
    ensure!(!table.contains('\u{1b}'), "colour for a file: {table}");
    mesh.kasbah(["status", "-o", "yaml"]).ok()?;
    Ok(())
}

fn status_tells_what_proxies_acknowledged(mesh: &Mesh) -> Result<()> {
    wait::until("every proxy has acknowledged", LIMIT, || {
        let status = mesh.status()?;
        let roles = status["roles"].as_array().context("no roles")?;
        for name in ["helloworld-sidecar", "test-sidecar", "ingress", "egress"] {
            let role = roles.iter().find(|role| role["name"] == name).with_context(|| format!("no {name}"))?;
            let configuration = &role["configuration"];
            ensure!(configuration["state"] == "SYNCED" && configuration["behind"] == 0, "{name}: {configuration:#}");
            let clusters = &configuration["types"]["cds"];
            let sent = clusters["sent"].as_str().is_some_and(|version| !version.is_empty());
            ensure!(sent && clusters["sent"] == clusters["acknowledged"], "{name}: {configuration:#}");
        }
        for role in roles.iter().filter(|role| role["admin"].is_string()) {
            ensure!(role["version"] == status["version"], "{role:#}");
            let left = role["certificate"]["life_left_percent"].as_u64();
            ensure!(left.is_some_and(|percent| percent > 0), "{role:#}");
        }
        Ok(())
    })?;
    let table = mesh.kasbah(["status"]).ok()?.stdout;
    for word in ["CONFIGURATION", "SYNCED at ", "CERTIFICATE", "VERSION"] {
        ensure!(table.contains(word), "no {word} in: {table}");
    }
    Ok(())
}

fn endpoints_are_all_there(mesh: &Mesh) -> Result<()> {
    for pointer in [
        "/trust_domain /ingress/http /ingress/https /ingress/tcp /ingress/ca_file /ingress/admin /egress/admin",
        "/ca/grpc /ca/istio_csr /ca/admin_socket /ca/bundle_file /ca/bundle_endpoint /ca/oidc /ca/admin",
        "/agent/workload_api /agent/sds /agent/admin /discovery/xds /discovery/xds_tls /discovery/admin",
        "/policy/grpc /policy/admin /workloads/helloworld/address /workloads/helloworld/inbound",
        "/workloads/helloworld/admin /workloads/helloworld/spiffe_id /workloads/test/address /workloads/test/inbound",
        "/workloads/test/admin /workloads/test/spiffe_id /external/host /external/address /jwt/issuer /jwt/jwks_file",
    ]
    .iter()
    .flat_map(|line| line.split(' '))
    {
        ensure!(!mesh.at(pointer)?.is_empty(), "{pointer} is empty");
    }
    for file in ["/ingress/ca_file", "/ca/bundle_file", "/jwt/jwks_file"] {
        ensure!(std::fs::metadata(mesh.at(file)?).is_ok_and(|m| m.len() > 0), "{file} is no file");
    }
    Ok(())
}

fn admin_addresses_answer(mesh: &Mesh) -> Result<()> {
    let roles = [
        "/ingress/admin",
        "/egress/admin",
        "/ca/admin",
        "/agent/admin",
        "/discovery/admin",
        "/policy/admin",
        "/workloads/helloworld/admin",
        "/workloads/test/admin",
    ];
    for role in roles {
        let admin = mesh.at(role)?;
        let get = |path: &str| harness::curl::get(harness::curl::url("http", admin, path)).send()?.expect_status(200);
        for path in ["/healthz/ready", "/healthz/live", "/logging"] {
            get(path).with_context(|| format!("{role} {path}"))?;
        }
        for path in ["/config_dump", "/certs"] {
            let page = get(path).with_context(|| format!("{role} {path}"))?;
            let text = page.json()?.to_string();
            ensure!(!text.contains("PRIVATE KEY"), "{role} {path} shows a key");
        }
        let metrics = get("/metrics")?.body;
        ensure!(metrics.trim_end().ends_with("# EOF"), "{role} /metrics is no OpenMetrics: {metrics}");
    }
    let sidecar = mesh.at("/workloads/helloworld/admin")?;
    let metrics = harness::curl::get(harness::curl::url("http", sidecar, "/metrics")).send()?.body;
    ensure!(metrics.contains("istio_requests_total"), "no istio_requests_total: {metrics}");
    Ok(())
}

fn entries_are_created_listed_shown_and_deleted(mesh: &Mesh) -> Result<()> {
    let id = "spiffe://cluster.local/ns/shop/sa/cart";
    let entry =
        ["--spiffe-id", id, "--parent-id", "spiffe://cluster.local/node/local", "--selector", "unix:uid:4294967294"];
    let created = mesh.kasbah(["entry", "create"]).args(entry).ok()?.stdout;
    let created = created.trim();
    ensure!(!created.is_empty() && !created.contains(' '), "not an id alone: {created:?}");
    let listed = mesh.kasbah(["entry", "list", "--spiffe-id", id, "-o", "json"]).ok()?.stdout;
    ensure!(listed.contains(created), "not listed: {listed}");
    let shown = mesh.kasbah(["entry", "show", created, "-o", "json"]).ok()?.stdout;
    ensure!(shown.contains(id) && shown.contains("4294967294"), "not shown: {shown}");
    mesh.kasbah(["entry", "delete", created]).ok()?;
    ensure!(mesh.kasbah(["entry", "show", created]).run()?.code != 0, "still there");
    ensure!(mesh.kasbah(["entry", "delete", created]).run()?.code != 0, "deleted twice");
    let bad = mesh
        .kasbah(["entry", "create", "--spiffe-id", "spiffe://cluster.local/a b", "--parent-id", id])
        .args(["--selector", "unix:uid:1"])
        .run()?;
    ensure!(bad.code == 65 || bad.code == 64, "a bad SPIFFE ID ended with {}: {}", bad.code, bad.said());
    Ok(())
}

fn tokens_nodes_and_bundles_are_shown(mesh: &Mesh) -> Result<()> {
    let token = mesh.kasbah(["token", "create", "-o", "json"]).ok()?.json()?;
    for member in ["token", "expires_at"] {
        ensure!(token.get(member).and_then(Value::as_str).is_some_and(|v| !v.is_empty()), "no {member}: {token}");
    }
    let nodes = mesh.kasbah(["node", "list", "-o", "json"]).ok()?.stdout;
    ensure!(nodes.contains("spiffe://cluster.local/spire/agent/join_token/"), "no node: {nodes}");
    let pem = mesh.kasbah(["bundle", "show"]).ok()?.stdout;
    ensure!(pem.contains("BEGIN CERTIFICATE"), "no PEM: {pem}");
    let spiffe = mesh.kasbah(["bundle", "show", "--format", "spiffe"]).ok()?.json()?;
    let uses: Vec<&str> = spiffe
        .get("keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|key| key.get("use").and_then(Value::as_str))
        .collect();
    ensure!(uses.contains(&"x509-svid") && uses.contains(&"jwt-svid"), "not both kinds of keys: {spiffe}");
    Ok(())
}

fn a_launched_program_keeps_its_exit_code(mesh: &Mesh) -> Result<()> {
    let answer = mesh.launch("helloworld", "sh").args(["-c", "cat; echo said >&2; exit 7"]).input("heard").run()?;
    ensure!((answer.code, answer.stdout.as_str()) == (7, "heard"), "{answer:?}");
    ensure!(answer.stderr == "said\n", "{answer:?}");
    // What a launched program starts is known by the same name.
    let kasbah = tools::kasbah().display().to_string();
    let script = format!("{kasbah} agent fetch x509 -o json; true");
    let child = mesh.launch("test", "sh").args(["-c", &script]).ok()?;
    ensure!(child.stdout.contains("spiffe://cluster.local/ns/default/sa/test"), "{}", child.said());
    let token = mesh.launch("test", tools::kasbah()).args(["agent", "fetch", "jwt", "--audience", "db"]).ok()?.stdout;
    ensure!(token.trim().split('.').count() == 3, "no token: {token}");
    Ok(())
}

fn an_unknown_program_gets_no_identity(mesh: &Mesh) -> Result<()> {
    for answer in [
        mesh.kasbah(["agent", "fetch", "x509"]).run()?,
        mesh.launch("nobody", tools::kasbah()).args(["agent", "fetch", "x509"]).run()?,
    ] {
        ensure!(answer.code == 77, "it ended with {}: {}", answer.code, answer.said());
    }
    Ok(())
}

fn exit_codes_are_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("nothing").display().to_string();
    let bad = folder.path().join("bad.yaml");
    std::fs::write(
        &bad,
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {servers: 7}\n",
    )?;
    let bad = bad.display().to_string();
    let cases: [(&[&str], i32); 9] = [
        (&["--help"], 0),
        (&["--version"], 0),
        (&["help", "exit-codes"], 0),
        (&["no-such-verb"], 64),
        (&["up", "--no-such-option"], 64),
        (&["up", "--leaf-ttl", "soon"], 64),
        (&["status", "--dir", &dir], 69),
        (&["down", "--dir", &dir], 0),
        (&["validate", &bad], 65),
    ];
    for (args, expected) in cases {
        let answer = kasbah(args.iter().copied()).run()?;
        ensure!(
            answer.code == expected,
            "kasbah {args:?} ended with {}, not {expected}: {}",
            answer.code,
            answer.said()
        );
    }
    let settings = folder.path().join("ca.yaml");
    std::fs::write(&settings, "trust_domain: cluster.local\nno_such_setting: 1\n")?;
    let answer = kasbah(["ca", "run", "--check", "--config", &settings.display().to_string()]).run()?;
    ensure!(answer.code == 65, "unknown settings ended with {}: {}", answer.code, answer.said());
    ensure!(answer.stderr.contains("ca.yaml:2:1"), "no place: {}", answer.said());
    Ok(())
}

fn help_has_examples_reasons_and_codes() -> Result<()> {
    for verb in ["up", "status", "run", "validate"] {
        let help = kasbah([verb, "--help"]).ok()?.stdout;
        ensure!(help.contains("Example"), "kasbah {verb} --help has no examples: {help}");
    }
    let codes = kasbah(["help", "exit-codes"]).ok()?.stdout;
    for code in ["64", "65", "69", "77", "79"] {
        ensure!(codes.contains(code), "no {code}: {codes}");
    }
    let reasons = kasbah(["help", "reasons", "-o", "json"]).ok()?.json()?;
    let reasons = reasons.as_array().context("no list of reasons")?;
    for code in ["JWT_MISSING", "JWT_EXPIRED", "RBAC_DENIED", "CSR_BAD_SIGNATURE", "HOST_NOT_IN_MESH"] {
        let found = reasons.iter().filter(|reason| reason.get("code").and_then(Value::as_str) == Some(code)).count();
        ensure!(found == 1, "{code} is explained {found} times");
    }
    for reason in reasons {
        for member in ["code", "cause", "remedy"] {
            ensure!(reason.get(member).and_then(Value::as_str).is_some_and(|v| v.len() > 3), "no {member}: {reason}");
        }
    }
    Ok(())
}

fn filters_answer_line_by_line() -> Result<()> {
    let input = "\"spiffe://example.org/cart\"\n\"spiffe://Example.org/cart\"\nno json\n\"spiffe://example.org\"\n";
    let answer = kasbah(["spiffe-id", "--lines"]).input(input).ok()?;
    let lines: Vec<&str> = answer.stdout.lines().collect();
    ensure!(lines.len() == 4, "{} answers to 4 lines: {lines:?}", lines.len());
    ensure!(lines[0] == "ok example.org /cart", "{lines:?}");
    ensure!(lines[1].starts_with("err ") && lines[2] == "err BAD_JSON", "{lines:?}");
    ensure!(lines[3].starts_with("ok example.org"), "{lines:?}");
    Ok(())
}

fn certificates_are_judged_without_a_server() -> Result<()> {
    let answer = kasbah(["cert", "lint", "--lines"]).input("\"text\"\nno json\n{\"pem\":\"\"}\n").ok()?;
    let lines: Vec<&str> = answer.stdout.lines().collect();
    ensure!(lines == ["err PEM_INVALID", "err BAD_JSON", "err PEM_INVALID"], "{lines:?}");
    let none = kasbah(["cert", "verify", "--limbo"]).input("{\"version\":1,\"testcases\":[]}").ok()?.json()?;
    ensure!(none.get("harness") == Some(&Value::from("kasbah")), "{none}");
    let bad = kasbah(["cert", "verify", "--limbo"]).input("[]").run()?;
    ensure!(bad.code == 65 && bad.stdout.is_empty(), "{}: {}", bad.code, bad.said());
    Ok(())
}

fn a_warm_start_is_ready_within_three_seconds(mesh: &mut Mesh) -> Result<()> {
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        mesh.down()?;
        let said = mesh.up(&MeshOptions::default())?.said();
        ensure!(said.contains("ready after"), "the table does not tell the time: {said}");
        let ms = mesh.status()?.get("ready_after_ms").and_then(Value::as_u64).context("no time in the status")?;
        quickest = quickest.min(Duration::from_millis(ms));
    }
    ensure!(quickest < Duration::from_secs(3), "the quickest of three warm starts took {quickest:?}");
    mesh.expect_healthy()
}

/// For what proxies and discovery tell a moment later.
const LIMIT: Duration = Duration::from_secs(30);
