//! The node agent without a demo around it: identities as files for programs that know no SPIFFE, nodes that come back by
//! themselves, agents that start while the CA is away, and what the command line says about all that.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::postgres::Postgres;
use harness::{Mesh, Program, mesh, tools, wait};
use libtest_mimic::Trial;
use serde_json::json;

use crate::site::{START_MAX, Site, role};
use crate::trial::{alone, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("agent::nginx_serves_each_new_certificate_from_files", nginx_serves_from_files),
        alone("agent::postgresql_serves_each_new_certificate_from_files", postgresql_serves_from_files),
        alone("agent::a_node_that_slept_comes_back_with_its_last_svid", a_node_comes_back),
        alone("agent::workloads_are_served_at_once_while_the_ca_is_away", served_while_the_ca_is_away),
        alone("agent::joining_explains_what_stands_in_the_way", joining_explains),
        shared("agent::run_passes_signals_and_exit_codes_and_ends_its_sidecar", run_with_a_sidecar),
        shared("agent::tokens_are_validated_and_files_written_by_the_workload_itself", validated_and_written),
    ]
}

/// Serials that a TLS server shows within some time, each connection judged by the bundle of that moment; no failure counts as
/// luck.
pub(crate) fn serials_shown(port: u16, bundle: &Path, starttls: &[&str], wanted: usize) -> Result<BTreeSet<String>> {
    let (mut serials, began) = (BTreeSet::new(), Instant::now());
    while serials.len() < wanted && began.elapsed() < ROTATIONS_MAX {
        let connect = format!("127.0.0.1:{port}");
        let client =
            tools::system("openssl")?.args(["s_client", "-connect", &connect, "-verify_return_error", "-CAfile"]);
        let shown = client.arg(bundle).args(starttls).input("").run()?;
        ensure!(shown.stdout.contains("Verify return code: 0"), "{}{}", shown.stdout, shown.stderr);
        let serial = tools::system("openssl")?.args(["x509", "-noout", "-serial"]).input(shown.stdout).ok()?.stdout;
        serials.insert(serial);
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(serials.len() >= wanted, "only {} certificates were shown: {serials:?}", serials.len());
    Ok(serials)
}

fn nginx_serves_from_files() -> Result<()> {
    tools::system("nginx")?;
    let (site, port) = (Site::start()?, mesh::free_port()?);
    let (folder, pid_file) = (site.path("web"), site.path("nginx.pid"));
    let files = json!([{
        "dir": folder,
        "spiffe_id": "spiffe://example.org/web",
        "after_change": {"pid_file": pid_file, "signal": "HUP"},
    }]);
    let _agent = site.agent(&json!({"files": files}))?;
    site.entry("/web", "8s")?;
    wait::until("the files", START_MAX, || Ok(std::fs::metadata(folder.join("svid.key"))?))
        .with_context(|| site.log("agent"))?;
    let config = format!(
        "daemon off; pid {pid}; error_log stderr; events {{}} http {{ access_log off; server {{ \
         listen 127.0.0.1:{port} ssl; ssl_certificate {dir}/svid.pem; ssl_certificate_key {dir}/svid.key; \
         location / {{ return 200 'ok'; }} }} }}",
        pid = pid_file.display(),
        dir = folder.display(),
    );
    let config = site.write("nginx.conf", &config)?;
    let server = tools::system("nginx")?.arg("-p").arg(site.dir.path()).arg("-c").arg(&config);
    let _nginx = server.background(&site.path("nginx.log"))?;
    wait::until("nginx", START_MAX, || Ok(std::net::TcpStream::connect(("127.0.0.1", port))?))
        .with_context(|| site.log("nginx"))?;
    let shown = serials_shown(port, &folder.join("bundle.pem"), &[], 4);
    shown.map(drop).with_context(|| format!("{}\n{}", site.log("agent"), site.log("nginx")))
}

fn postgresql_serves_from_files() -> Result<()> {
    let (postgres, site) = (Postgres::start()?, Site::start()?);
    let data = PathBuf::from(postgres.sql("postgres", "SHOW data_directory")?);
    let owner = std::fs::metadata(&data)?.uid();
    let folder = site.path("db");
    let files = json!([{
        "dir": folder,
        "spiffe_id": "spiffe://example.org/db",
        "access": {"owner": owner.to_string(), "mode": "0600"},
        "after_change": {"pid_file": data.join("postmaster.pid"), "signal": "HUP"},
    }]);
    let _agent = site.agent(&json!({"files": files}))?;
    site.entry("/db", "8s")?;
    wait::until("the files", START_MAX, || Ok(std::fs::metadata(folder.join("svid.key"))?))
        .with_context(|| site.log("agent"))?;
    for (setting, file) in [("ssl_cert_file", "svid.pem"), ("ssl_key_file", "svid.key"), ("ssl_ca_file", "bundle.pem")]
    {
        let file = folder.join(file);
        postgres.sql("postgres", &format!("ALTER SYSTEM SET {setting} = '{}'", file.display()))?;
    }
    postgres.sql("postgres", "ALTER SYSTEM SET ssl = on")?;
    postgres.sql("postgres", "SELECT pg_reload_conf()")?;
    wait::until("TLS with our certificate", START_MAX, || {
        serials_shown(postgres.port, &folder.join("bundle.pem"), &["-starttls", "postgres"], 1)
    })?;
    let shown = serials_shown(postgres.port, &folder.join("bundle.pem"), &["-starttls", "postgres"], 4);
    shown.map(drop).with_context(|| site.log("agent"))
}

fn a_node_comes_back() -> Result<()> {
    let site = Site::start()?;
    let agent = site.agent(&json!({}))?;
    site.entry("/web", "1h")?;
    wait::until("the first SVID", START_MAX, || site.fetch()).with_context(|| site.log("agent"))?;
    drop(agent);
    // The token is used up; nothing but the SVID that has run out is left to show.
    std::fs::remove_file(site.path("agent.token"))?;
    std::thread::sleep(Duration::from_secs(21));
    let _agent = site.agent(&json!({}))?;
    wait::until("the way back", START_MAX, || {
        ensure!(site.log("agent").contains("old_svid"), "{}", site.log("agent"));
        Ok(())
    })?;
    let fetched = wait::until("the SVID after the return", START_MAX, || site.fetch())?;
    ensure!(fetched["svids"][0]["spiffe_id"] == json!("spiffe://example.org/web"), "{fetched}");
    let audit = site.verb(["audit", "list", "-o", "json"]).run()?;
    ensure!(
        audit.stdout.contains("old_svid"),
        "the return is not in the audit trail: {}{}",
        audit.stdout,
        audit.stderr
    );
    Ok(())
}

fn served_while_the_ca_is_away() -> Result<()> {
    let mut site = Site::start()?;
    let agent = site.agent(&json!({}))?;
    site.entry("/web", "1h")?;
    let before = wait::until("the first SVID", START_MAX, || site.fetch()).with_context(|| site.log("agent"))?;
    wait::until("the cache", START_MAX, || Ok(std::fs::metadata(site.path("agent/cache.sealed"))?))?;
    // Killed, not asked to end: both of them.
    std::thread::sleep(Duration::from_secs(2));
    drop((agent, site.ca.take()));
    let _agent = site.agent(&json!({}))?;
    let during = wait::until("the SVID without a CA", START_MAX, || site.fetch()).with_context(|| site.log("agent"))?;
    ensure!(before["svids"][0]["serial"] == during["svids"][0]["serial"], "{before} and {during}");
    site.start_ca()?;
    site.entry("/late", "1h")?;
    wait::until("a new entry", START_MAX, || {
        let svids = site.fetch()?["svids"].as_array().map(Vec::len);
        ensure!(svids == Some(2), "{svids:?}; {}", site.log("agent"));
        Ok(())
    })
}

fn joining_explains() -> Result<()> {
    let site = Site::start()?;
    let server = format!("127.0.0.1:{}", site.grpc);
    let join = |server: &str, more: &[&str]| {
        let common = ["agent", "join", "--trust-domain", "example.org", "--wait", "1s", "--server", server];
        let program = Program::new(tools::kasbah()).args(common).args(more);
        program.arg("--data-dir").arg(site.path("joined")).run()
    };
    let bundle = site.path("bundle.pem").display().to_string();
    let other = mesh::free_port()?;
    for (server, more, code, said) in [
        (format!("127.0.0.1:{other}"), vec!["--trust-bundle", &bundle, "--token", "t"], 69, "PEER_UNREACHABLE"),
        (server.clone(), vec!["--trust-bundle", &bundle, "--token", "wrong"], 77, "kasbah token create"),
        (server.clone(), vec!["--trust-bundle", "/etc/hostname", "--token", "t"], 65, "BUNDLE_INVALID"),
        (server.clone(), vec!["--fingerprint", WRONG, "--token", "t"], 77, "ROOT_NOT_PINNED"),
        (server.clone(), vec!["--fingerprint", "xy", "--token", "t"], 64, "root_pins.fingerprints"),
        (server.clone(), vec!["--trust-bundle", &bundle], 64, "--token"),
        (server.clone(), vec!["--trust-bundle", &bundle, "--oidc-token-file", "/nowhere"], 65, "oidc_jwt.token_file"),
    ] {
        let answer = join(&server, &more)?;
        ensure!(answer.code == code && answer.stderr.contains(said), "{more:?}: {} {}", answer.code, answer.stderr);
        ensure!(answer.stdout.is_empty(), "{}", answer.stdout);
    }
    let digest = tools::system("openssl")?.args(["x509", "-noout", "-fingerprint", "-sha256", "-in", &bundle]).ok()?;
    let digest = digest.stdout.trim().rsplit('=').next().unwrap_or_default().to_owned();
    let token = site.verb(["token", "create"]).ok()?.stdout;
    let joined = join(&server, &["--fingerprint", &digest, "--token", token.trim(), "-o", "json"])?;
    ensure!(joined.code == 0, "{}", joined.stderr);
    let settings = joined.json()?["settings"].as_str().unwrap_or_default().to_owned();
    let _agent = role("agent", Path::new(&settings))?;
    wait::until("the agent's socket", START_MAX, || Ok(std::fs::metadata(site.path("joined/agent.sock"))?)).map(drop)
}

fn run_with_a_sidecar(mesh: &Mesh) -> Result<()> {
    for (options, script, code) in [
        (&[][..], "exit 42", 42),
        (&["--sidecar"][..], "exit 42", 42),
        (&["--sidecar"][..], "kill -TERM $$; sleep 10", 143),
    ] {
        let program = mesh.kasbah(["run", "--name", "test"]).args(options).args(["--", "sh", "-c", script]);
        let answer = program.limit(Duration::from_secs(60)).run()?;
        ensure!(answer.code == code, "{options:?} {script}: {} {}", answer.code, answer.stderr);
    }
    // A job that calls through its sidecar, with mutual TLS, and leaves nothing running.
    let script =
        "echo $KASBAH_SIDECAR_ADDRESS; curl -s -m 20 http://helloworld.default.svc.cluster.local:9095/helloworld";
    let program = mesh.kasbah(["run", "--name", "test", "--sidecar", "--", "sh", "-c", script]);
    let answer = program.limit(Duration::from_secs(60)).run()?;
    ensure!(answer.stdout.contains("Hello"), "{}{}", answer.stdout, answer.stderr);
    let address = answer.stdout.lines().next().unwrap_or_default().to_owned();
    ensure!(std::net::TcpStream::connect(format!("{address}:15006")).is_err(), "the sidecar outlives its job");
    Ok(())
}

fn validated_and_written(mesh: &Mesh) -> Result<()> {
    let fetch = mesh.launch("helloworld", tools::kasbah()).args(["agent", "fetch", "jwt", "--audience", "db"]).ok()?;
    let token = fetch.stdout.trim();
    let validate = |audience: &str| {
        mesh.launch("helloworld", tools::kasbah()).args([
            "agent",
            "validate",
            "--audience",
            audience,
            token,
            "-o",
            "json",
        ])
    };
    let valid = validate("db").ok()?.json()?;
    ensure!(valid["claims"]["sub"] == json!(mesh.at("/workloads/helloworld/spiffe_id")?), "{valid}");
    let other = validate("other").run()?;
    ensure!(other.code == 1 && other.stderr.contains("JWT_WRONG_AUDIENCE"), "{} {}", other.code, other.stderr);
    let folder = mesh.scratch("watched")?;
    std::fs::write(folder.join("password"), "secret\n")?;
    let (web, told) = (folder.join("web").display().to_string(), folder.join("told").display().to_string());
    let password = folder.join("password").display().to_string();
    let watch = mesh.launch("helloworld", tools::kasbah()).args(["agent", "watch", "--count", "1", "--write", &web]);
    let watch = watch.args(["--exec", "touch", "--exec", &told, "--pkcs12-password-file", &password]).ok()?;
    ensure!(watch.stderr.contains("svid.p12"), "{}", watch.stderr);
    ensure!(Path::new(&told).exists(), "nobody was told");
    let opened =
        tools::system("openssl")?.args(["pkcs12", "-in", &format!("{web}/svid.p12"), "-passin", "pass:secret"]);
    let opened = opened.args(["-nodes"]).ok()?.stdout;
    ensure!(opened.contains("PRIVATE KEY") && opened.contains("CERTIFICATE"), "{opened}");
    Ok(())
}

const WRONG: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const ROTATIONS_MAX: Duration = Duration::from_secs(90);
