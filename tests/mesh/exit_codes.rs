//! The exit code says to a script what happened, whichever verb it was: each code is reached, and each class of verbs keeps to
//! them. A refusal begins with its reason code and says cause and remedy.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::{Answer, Mesh, Program, Skipped, tools};
use libtest_mimic::Trial;

use crate::trial::{alone, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("exit_codes::each_is_reached", each_is_reached),
        alone("exit_codes::wrong_usage_is_64", wrong_usage_is_64),
        shared("exit_codes::what_cannot_be_read_is_65", what_cannot_be_read_is_65),
        alone("exit_codes::what_cannot_be_reached_is_69", what_cannot_be_reached_is_69),
        shared("exit_codes::who_may_not_gets_77", who_may_not_gets_77),
        shared("exit_codes::who_may_not_open_a_socket_gets_77", who_may_not_open_a_socket_gets_77),
        shared("exit_codes::a_refusal_says_code_cause_and_remedy", a_refusal_says_code_cause_and_remedy),
    ]
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace()
}

/// Runs each line and expects the code; what differs is told all at once.
fn expect(code: i32, lines: &[&str], run: impl Fn(&str) -> Result<Answer>) -> Result<()> {
    let mut wrong = Vec::new();
    for line in lines {
        let answer = run(line)?;
        if answer.code != code || answer.stderr.is_empty() || answer.stderr.contains("panicked") {
            wrong.push(format!("kasbah {line} ended with {}: {}", answer.code, answer.said()));
        }
    }
    ensure!(wrong.is_empty(), "not {code}:\n{}", wrong.join("\n"));
    Ok(())
}

fn each_is_reached(mesh: &Mesh) -> Result<()> {
    let folder = mesh.scratch("exit-codes")?;
    std::fs::write(
        folder.join("bad.yaml"),
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {servers: 7}\n",
    )?;
    for (line, code) in [
        ("status", 0),
        ("cert needs-renewal helloworld --expires-in 100%", 0),
        ("cert needs-renewal helloworld --expires-in 0%", 1),
        ("entry show no-such-entry", 1),
        ("no-such-verb", 64),
        ("validate bad.yaml", 65),
        ("status --dir nothing", 69),
        ("agent fetch x509", 77),
        ("analyze bad.yaml", 79),
    ] {
        let answer = mesh.kasbah(words(line)).in_folder(&folder).run()?;
        ensure!(answer.code == code, "kasbah {line} ended with {}, not {code}: {}", answer.code, answer.said());
    }
    Ok(())
}

/// Every verb, and every group of verbs, as it is typed: by the names of the manual pages.
fn pages(folder: &Path) -> Result<Vec<String>> {
    Program::new(tools::kasbah()).args(["help", "man", "--write"]).arg(folder).ok()?;
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(".1").and_then(|name| name.strip_prefix("kasbah-")) {
            pages.push(typed(name)?);
        }
    }
    Ok(pages)
}

/// Some of the dashes in a page's name stand for spaces; of which ones there is help shows it.
fn typed(name: &str) -> Result<String> {
    let dashes = name.matches('-').count();
    for spaces in 0..1_u32 << dashes {
        let mut number = 0;
        let replaced = |c: char| {
            number += u32::from(c == '-');
            if c == '-' && spaces & 1 << (number - 1) != 0 { ' ' } else { c }
        };
        let line: String = name.chars().map(replaced).collect();
        if Program::new(tools::kasbah()).arg("help").args(words(&line)).run()?.code == 0 {
            return Ok(line);
        }
    }
    anyhow::bail!("no help is had on {name}")
}

fn wrong_usage_is_64() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kasbah = |line: &str| Program::new(tools::kasbah()).args(words(line)).in_folder(folder.path()).run();
    let pages = pages(&folder.path().join("pages"))?;
    ensure!(pages.len() > 60 && pages.iter().any(|page| page == "ca rotate"), "all? {pages:?}");
    for page in &pages {
        let answer = kasbah(&format!("{page} --no-such-option"))?;
        ensure!(
            answer.code == 64 && answer.stdout.is_empty() && answer.stderr.contains("--no-such-option"),
            "kasbah {page} --no-such-option ended with {}: {}",
            answer.code,
            answer.said()
        );
    }
    expect(64, WRONG, kasbah)
}

fn what_cannot_be_read_is_65(mesh: &Mesh) -> Result<()> {
    let folder = mesh.scratch("unreadable")?;
    for (name, text) in [("good.pem", None), ("garbage", Some("garbage"))] {
        match text {
            Some(text) => std::fs::write(folder.join(name), text)?,
            None => std::fs::write(folder.join(name), mesh.kasbah(["bundle", "show"]).ok()?.stdout)?,
        }
    }
    let run = |line: &str| mesh.kasbah(words(line)).in_folder(&folder).run();
    expect(65, UNREADABLE, run)?;
    // Where a certificate is judged, a bundle of garbage is a reason against it.
    let files = UNREADABLE.iter().filter(|line| !line.contains("--bundle nothing"));
    let garbage: Vec<String> = files.map(|line| line.replace("nothing", "garbage")).collect();
    let garbage: Vec<&str> = garbage.iter().map(String::as_str).collect();
    expect(65, &garbage, run)
}

fn what_cannot_be_reached_is_69() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = |line: &str| {
        let program = Program::new(tools::kasbah()).args(words(line)).in_folder(folder.path());
        program.env("KASBAH_DIR", folder.path().join("nothing")).input("a.b.c").run()
    };
    expect(69, UNREACHABLE, run)
}

fn who_may_not_gets_77(mesh: &Mesh) -> Result<()> {
    let folder = mesh.write_identity("test")?;
    let server = mesh.at("/ca/grpc")?;
    let files = ["--cert", "svid.pem", "--key", "svid.key", "--bundle", "bundle.pem", "--server", server];
    let run = |line: &str| mesh.kasbah(words(line)).args(files).in_folder(&folder).run();
    expect(77, FORBIDDEN, run)?;
    for line in FORBIDDEN {
        let said = run(line)?.stderr;
        ensure!(said.starts_with("error: CALLER_NOT_ADMIN: ") && said.contains("\n  to mend it: "), "{line}: {said}");
    }
    Ok(())
}

/// Root may do everything, so another user tries.
fn who_may_not_open_a_socket_gets_77(mesh: &Mesh) -> Result<()> {
    if tools::system("id")?.arg("-u").ok()?.stdout.trim() != "0" {
        return Err(Skipped("only root can be another user".into()).into());
    }
    let folder = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir()?;
    let program = folder.path().join("kasbah");
    std::fs::copy(tools::kasbah(), &program)?;
    let run = |line: &str| {
        let other = tools::system("setpriv")?.args(["--reuid=12345", "--clear-groups"]).arg(&program).args(words(line));
        other.env("KASBAH_DIR", mesh.dir()).in_folder(folder.path()).run()
    };
    let lines = ["entry list", "status", "ca rotate --yes", "token create"];
    expect(77, &lines, run)?;
    for line in lines {
        let said = run(line)?.stderr;
        ensure!(said.starts_with("error: LOCAL_ACCESS_DENIED: "), "{line}: {said}");
    }
    Ok(())
}

fn a_refusal_says_code_cause_and_remedy(mesh: &Mesh) -> Result<()> {
    let documented = mesh.kasbah(["help", "reasons", "-o", "json"]).ok()?.json()?;
    for (line, code) in [
        ("entry show no-such-entry", "ENTRY_UNKNOWN"),
        ("entry delete no-such-entry", "ENTRY_UNKNOWN"),
        ("node show spiffe://cluster.local/spire/agent/join_token/nobody", "AGENT_UNKNOWN"),
        ("bundle delete --id nobody.example", "BUNDLE_UNKNOWN"),
        ("federation delete --trust-domain nobody.example", "FEDERATION_UNKNOWN"),
        ("ca approvals approve no-such-request", "APPROVAL_UNKNOWN"),
        ("jwt mint --spiffe-id spiffe://other.example/x --audience db", "SPIFFE_ID_REFUSED"),
        ("entry list --dir nothing", "PEER_UNREACHABLE"),
        ("status --dir nothing", "MESH_NOT_RUNNING"),
        ("agent fetch x509", "NO_IDENTITY_ISSUED"),
    ] {
        let said = mesh.kasbah(words(line)).run()?.stderr;
        let known = documented.as_array().context("no list")?.iter().find(|doc| doc["code"] == code);
        let cause = known.and_then(|doc| doc["cause"].as_str()).with_context(|| format!("{code} is not documented"))?;
        ensure!(said.starts_with(&format!("error: {code}: ")), "kasbah {line}: {said}");
        ensure!(said.contains(&format!("\n  cause: {cause}\n  to mend it: ")), "kasbah {line}: {said}");
        ensure!(!said.contains("gRPC"), "kasbah {line}: {said}");
    }
    Ok(())
}

/// An option that is missing, or does not fit.
const WRONG: &[&str] = &[
    "up --leaf-ttl soon",
    "run --name x",
    "run -- true",
    "token create --ttl 0s",
    "entry create --spiffe-id spiffe://td/x",
    "entry show",
    "entry list --downstream perhaps",
    "entry create --spiffe-id x --parent-id spiffe://td/n --selector unix:uid:1 --expires-at soon",
    "node show",
    "node purge",
    "node list --expires-before soon",
    "bundle set",
    "bundle show --format xml",
    "federation create --trust-domain x",
    "federation update --trust-domain x",
    "log prove",
    "audit list --limit 0",
    "jwt mint --audience db",
    "jwt mint --audience db --spiffe-id nonsense",
    "jws verify",
    "spiffe-id",
    "authz eval",
    "validate",
    "cert show",
    "cert show nowhere",
    "cert needs-renewal x --expires-in soon",
    "cert issue --spiffe-id spiffe://td/x",
    "cert issue --spiffe-id nonsense --write x",
    "cert revoke --reason superseded",
    "check --only no-such-check",
    "check -o csv",
    "edges --watch never",
    "top --every 0s",
    "blast-radius nonsense",
    "completions",
    "ca run",
    "ca rotate dance",
    "ca rotate --plan --yes",
    "ca rotate prepare --plan",
    "ca rotate --verify x",
    "ca import --cert x",
    "ca signer --keys x --socket y --mode 666",
    "ca policy explain --spiffe-id spiffe://td/x",
    "ca rights explain --subject local",
    "agent join --server x",
    "agent fetch jwt",
    "agent fetch x509 --socket nonsense",
    "agent validate x",
    "agent whoami",
    "demo token --kind service-account",
    "help no-such-topic",
    "help reasons --write x",
    "entry list --server nonsense --cert a --key b --socket c",
];

/// An input file that is not there; `nothing` is also tried as a file of garbage.
const UNREADABLE: &[&str] = &[
    "validate nothing",
    "analyze nothing",
    "entry plan nothing",
    "entry apply nothing",
    "bundle set --id other.example --format spiffe --path nothing",
    "federation create --trust-domain o.example --bundle-endpoint-url https://o.example/ --bundle-endpoint-profile https_web --trust-domain-bundle-path nothing",
    "jwt verify a.b.c --keys nothing",
    "cert verify nothing",
    "cert verify good.pem --bundle nothing",
    "cert verify good.pem --bundle good.pem --crl nothing",
    "cert lint nothing",
    "cert issue --csr nothing",
    "cert renew --cert nothing --key nothing",
    "cert revoke nothing --reason superseded --yes",
    "ca import --cert good.pem --key nothing",
    "ca install --cert nothing",
    "ca policy check nothing",
    "ca policy explain --file nothing --spiffe-id spiffe://cluster.local/x --node local",
    "ca rights check nothing",
    "ca rights explain --file nothing --subject uid:1 --verb entry.read",
    "ca backup to --config nothing",
    "ca restore nothing",
    "ca csr --config nothing",
    "ca run --check --config nothing",
    "agent run --check --config nothing",
    "proxy run --check --config nothing",
    "discovery run --check --config nothing",
    "policy run --check --config nothing",
    "ca rotate receipt --verify nothing",
    "log verify --file nothing",
    "log verify --since nothing",
    "blast-radius spiffe://cluster.local/x --config nothing",
    "agent join --server 127.0.0.1:1 --trust-domain cluster.local --trust-bundle nothing --token x --data-dir joined --wait 1ms",
];

/// A part that does not run.
const UNREACHABLE: &[&str] = &[
    "status",
    "check",
    "edges",
    "top --once",
    "blast-radius spiffe://cluster.local/x",
    "demo token",
    "cert list",
    "cert show 127.0.0.1:1",
    "cert issue --spiffe-id spiffe://cluster.local/x --write issued",
    "cert revoke abcd --reason superseded --yes",
    "cert revocations list",
    "entry list",
    "entry show x",
    "entry create --spiffe-id spiffe://cluster.local/x --parent-id spiffe://cluster.local/n --selector unix:uid:1",
    "entry explain --selector unix:uid:1",
    "node list",
    "node ban spiffe://cluster.local/spire/agent/join_token/x",
    "token create",
    "bundle show",
    "bundle list",
    "federation list",
    "federation refresh --trust-domain x.example",
    "log head",
    "log prove abcd",
    "log verify",
    "audit list",
    "jwt mint --spiffe-id spiffe://cluster.local/x --audience db",
    "jwt verify -",
    "ca keys",
    "ca csr",
    "ca rotate status",
    "ca rotate --yes",
    "ca approvals list",
    "ca policy explain --spiffe-id spiffe://cluster.local/x --node local",
    "ca rights explain --subject local --verb entry.read",
    "agent fetch x509",
    "agent fetch jwt --audience db",
    "agent fetch wit",
    "agent watch",
    "agent validate --audience db -",
    "agent whoami --pid 1",
    "run --name x --wait 1ms -- true",
];

/// What a workload without rights may not do.
const FORBIDDEN: &[&str] = &[
    "entry list",
    "entry show x",
    "entry create --spiffe-id spiffe://cluster.local/x --parent-id spiffe://cluster.local/n --selector unix:uid:1",
    "entry delete x",
    "node list",
    "node ban spiffe://cluster.local/spire/agent/join_token/x",
    "node evict spiffe://cluster.local/spire/agent/join_token/x",
    "token create",
    "bundle list",
    "bundle delete --id x.example",
    "federation list",
    "federation delete --trust-domain x.example",
    "federation refresh --trust-domain x.example",
    "audit list",
    "jwt mint --spiffe-id spiffe://cluster.local/x --audience db",
    "cert issue --spiffe-id spiffe://cluster.local/x --write issued",
    "cert revoke abcd --reason superseded --yes",
    "cert revocations list",
    "ca keys",
    "ca csr",
    "ca rotate status",
    "ca rotate prepare",
    "ca rotate --yes",
    "ca policy explain --spiffe-id spiffe://cluster.local/x --node local",
    "ca rights explain --subject local --verb entry.read",
];
