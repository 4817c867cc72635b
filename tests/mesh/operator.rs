//! The operator's verbs: completions, manual pages, tokens, edges, top, blast radius and reports, on a real mesh.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Mesh, Program, tools, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::{alone, own, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("operator::each_shell_gets_its_completions", each_shell_gets_its_completions),
        alone("operator::manual_pages_are_written", manual_pages_are_written),
        shared("operator::tokens_are_minted_shown_and_verified", tokens_are_minted_shown_and_verified),
        shared("operator::edges_show_identities_and_mtls", edges_show_identities_and_mtls),
        shared("operator::top_shows_roles_rates_and_certificates", top_shows_roles_rates_and_certificates),
        shared("operator::the_blast_radius_is_what_policies_say", the_blast_radius_is_what_policies_say),
        shared("operator::colour_is_for_terminals_that_want_it", colour_is_for_terminals_that_want_it),
        own("operator::a_report_holds_no_secret", &[], a_report_holds_no_secret),
    ]
}

fn kasbah<'a>(args: impl IntoIterator<Item = &'a str>) -> Program {
    Program::new(tools::kasbah()).args(args)
}

fn each_shell_gets_its_completions() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let script = kasbah(["completions", shell]).ok()?.stdout;
        ensure!(script.contains("kasbah") && script.contains("blast-radius"), "{shell}: {script}");
        if shell == "bash" {
            tools::system("bash")?.args(["-n"]).input(script).ok()?;
        }
    }
    let broken = tools::system("bash")?.args(["-n"]).input("case x in (").run()?;
    ensure!(broken.code != 0, "bash -n passes anything");
    ensure!(kasbah(["completions", "dosh"]).run()?.code == 64);
    Ok(())
}

fn manual_pages_are_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("man1").display().to_string();
    kasbah(["help", "man", "--write", &path]).ok()?;
    for page in ["kasbah.1", "kasbah-cert-show.1", "kasbah-ca-rotate.1"] {
        let text = std::fs::read_to_string(folder.path().join("man1").join(page)).with_context(|| page.to_owned())?;
        ensure!(text.contains(".TH"), "{page} is no manual page: {text}");
    }
    let one = kasbah(["help", "man", "cert", "show"]).ok()?.stdout;
    ensure!(one.contains(".TH") && one.contains("kasbah cert show"), "{one}");
    ensure!(kasbah(["help", "reasons", "--write", &path]).run()?.code == 64);
    Ok(())
}

fn tokens_are_minted_shown_and_verified(mesh: &Mesh) -> Result<()> {
    let id = "spiffe://cluster.local/ns/shop/sa/job";
    let minted = mesh.kasbah(["jwt", "mint", "--spiffe-id", id, "--audience", "db", "--ttl", "5m"]).ok()?.stdout;
    let token = minted.trim();
    let shown = mesh.kasbah(["jwt", "decode", "-o", "json"]).input(token).ok()?.json()?;
    ensure!(shown["claims"]["sub"] == id && shown["verified"] == false && shown["expired"] == false, "{shown:#}");
    let verify = |options: &[&str]| mesh.kasbah(["jwt", "verify", "-"]).args(options).input(token).run();
    let holds = verify(&["--audience", "db", "-o", "json"])?;
    ensure!(holds.code == 0 && holds.json()?["subject"] == id, "{}", holds.said());
    let other = verify(&["--audience", "shop", "--issuer", "https://other"])?;
    ensure!(other.code == 1, "{}", other.said());
    for code in ["JWT_WRONG_AUDIENCE", "JWT_WRONG_ISSUER"] {
        ensure!(other.stdout.contains(code), "no {code}: {}", other.said());
    }
    let stranger = verify(&["--keys", mesh.at("/jwt/jwks_file")?])?;
    ensure!(stranger.code == 1 && stranger.stdout.contains("does not hold"), "{}", stranger.said());
    let user = mesh.kasbah(["jwt", "verify", "-", "--issuer", mesh.at("/jwt/issuer")?, "--keys"]);
    user.arg(mesh.at("/jwt/jwks_file")?).input(mesh.token("testers")?).ok()?;
    let bad = mesh.kasbah(["jwt", "decode"]).input(format!("x{token}.tail")).run()?;
    ensure!(bad.code == 65 && !bad.said().contains(token), "{}", bad.said());
    Ok(())
}

/// A request within the mesh, and one that leaves it.
fn traffic(mesh: &Mesh) -> Result<()> {
    let ingress = mesh.at("/ingress/http")?;
    let token = format!("authorization: Bearer {}", mesh.token("testers")?);
    for path in ["/test", "/test/egress-direct"] {
        let url = harness::curl::url("http", ingress, path);
        tools::system("curl")?.args(["-sS", "-f", "-o", "/dev/null", "-H", &token, &url]).ok()?;
    }
    Ok(())
}

fn edges_of(mesh: &Mesh) -> Result<Vec<Value>> {
    let report = mesh.kasbah(["edges", "-o", "json"]).ok()?.json()?;
    report["edges"].as_array().cloned().context("no edges")
}

fn edges_show_identities_and_mtls(mesh: &Mesh) -> Result<()> {
    traffic(mesh)?;
    let (test, helloworld) = (mesh.at("/workloads/test/spiffe_id")?, mesh.at("/workloads/helloworld/spiffe_id")?);
    wait::until("the edge is counted", LIMIT, || {
        let edges = edges_of(mesh)?;
        let edge = edges.iter().find(|edge| edge["source"] == test && edge["destination"] == helloworld);
        let edge = edge.with_context(|| format!("no edge from test to helloworld: {edges:#?}"))?;
        ensure!(edge["security"] == "mutual_tls" && edge["requests"].as_u64() > Some(0), "{edge}");
        let outside = edges.iter().find(|edge| edge["service"] == "external.example.com");
        ensure!(
            outside.is_some_and(|edge| edge["security"] != "mutual_tls"),
            "what leaves the mesh is none: {edges:#?}"
        );
        Ok(())
    })?;
    let table = mesh.kasbah(["edges"]).ok()?.stdout;
    ensure!(table.contains("cluster.local/ns/default/sa/test") && table.contains("not mTLS"), "{table}");
    let plain = mesh.kasbah(["edges", "--plain", "-o", "json"]).ok()?.json()?;
    let plain = plain["edges"].as_array().context("no edges")?;
    ensure!(!plain.is_empty() && plain.iter().all(|edge| edge["security"] != "mutual_tls"), "{plain:#?}");
    Ok(())
}

fn top_shows_roles_rates_and_certificates(mesh: &Mesh) -> Result<()> {
    let report = mesh.kasbah(["top", "--once", "--every", "1s", "-o", "json"]).ok()?.json()?;
    let roles = report["roles"].as_array().context("no roles")?;
    for name in ["ca", "ingress", "helloworld-sidecar"] {
        let role = roles.iter().find(|role| role["name"] == name).with_context(|| format!("no {name}"))?;
        ensure!(role["cpu_percent"].is_number() && role["memory_bytes"].as_u64() > Some(1 << 20), "{role}");
    }
    ensure!(report["certificates"].as_u64() > Some(0) && report["first_end"]["life_left"].is_string(), "{report:#}");
    ensure!(report["rotations"][0]["phase"].is_string() && report["requests_per_second"].is_number(), "{report:#}");
    let page = mesh.kasbah(["top", "--once", "--every", "100ms"]).ok()?.stdout;
    ensure!(page.contains("requests ") && page.contains("rotation ") && !page.contains('\u{1b}'), "{page}");
    Ok(())
}

fn the_blast_radius_is_what_policies_say(mesh: &Mesh) -> Result<()> {
    traffic(mesh)?;
    let word = |id: &str, service: &str| -> Result<Value> {
        let report = mesh.kasbah(["blast-radius", id, "-o", "json"]).ok()?.json()?;
        let reach = report["reach"].as_array().context("no reach")?.clone();
        reach.into_iter().find(|one| one["service"] == service).with_context(|| format!("no {service}: {report:#}"))
    };
    let hello = "helloworld.default.svc.cluster.local";
    let test = mesh.at("/workloads/test/spiffe_id")?;
    let reached = wait::until("traffic is counted", LIMIT, || {
        let reached = word(test, hello)?;
        ensure!(reached["requests"].as_u64() > Some(0), "{reached}");
        Ok(())
    });
    reached?;
    ensure!(word(test, hello)?["by_policy"] == "yes", "{}", word(test, hello)?);
    ensure!(word(test, "test.default.svc.cluster.local")?["by_policy"] == "no");
    let stranger = word("spiffe://cluster.local/ns/shop/sa/cart", hello)?;
    ensure!(stranger["by_policy"] == "no" && stranger["requests"] == 0, "{stranger}");
    ensure!(mesh.kasbah(["blast-radius", "cart"]).run()?.code == 64);
    Ok(())
}

/// What a program writes on a terminal of its own.
fn on_terminal(mesh: &Mesh, verb: &str, variables: &str) -> Result<String> {
    let kasbah = tools::kasbah().display().to_string();
    let command = format!("env -u NO_COLOR TERM=xterm {variables} {kasbah} {verb} --dir '{}'", mesh.dir().display());
    Ok(tools::system("script")?.args(["-qec", &command, "/dev/null"]).ok()?.stdout)
}

fn colour_is_for_terminals_that_want_it(mesh: &Mesh) -> Result<()> {
    traffic(mesh)?;
    wait::until("what is not mTLS is red on a terminal", LIMIT, || {
        let page = on_terminal(mesh, "edges", "")?;
        ensure!(page.contains("\u{1b}[31m"), "{page}");
        Ok(())
    })?;
    for verb in ["edges", "check", "status", "top --once --every 100ms"] {
        let page = on_terminal(mesh, verb, "NO_COLOR=1")?;
        ensure!(page.len() > 50 && !page.contains("\u{1b}["), "{verb}: {page:?}");
        let piped = mesh.kasbah(verb.split(' ')).env("TERM", "xterm").ok()?;
        ensure!(!piped.said().contains('\u{1b}'), "{verb}: {}", piped.said());
    }
    Ok(())
}

fn a_report_holds_no_secret(mesh: &mut Mesh) -> Result<()> {
    let (dir, token) = (mesh.dir().to_owned(), mesh.token("testers")?);
    let minted = mesh.kasbah(["token", "create", "-o", "json"]).ok()?.json()?;
    let join = minted["token"].as_str().context("no token")?;
    let key = "-----BEGIN PRIVATE KEY-----\nPLANTED\n-----END PRIVATE KEY-----\n";
    let log = format!("authorization: Bearer {token}\ndatabase postgres://u:PLANTED@db/x\njoin_token={join}\n{key}");
    std::fs::write(dir.join("logs/planted.log"), &log)?;
    std::fs::write(dir.join("run/settings/planted.yaml"), format!("database: mysql://u:PLANTED@db\nkey: |\n  {key}"))?;
    std::fs::write(dir.join("policy/planted.yaml"), "password: PLANTED\n")?;
    std::fs::write(
        dir.join("config/planted.yaml"),
        "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata:\n  a: PLANTED\n",
    )?;
    let file = mesh.scratch("report")?.join("report.tar.gz");
    let file = file.to_str().context("a path")?;
    let answer = mesh.kasbah(["bug-report", "--output", file]).ok()?;
    ensure!(answer.stdout.trim() == file, "{}", answer.said());
    let names = tools::system("tar")?.args(["-tzf", file]).ok()?.stdout;
    for name in [
        "about.json",
        "status.json",
        "check.json",
        "logs/ca.log",
        "logs/planted.log",
        "settings/ca.yaml",
        "config/security.yaml",
        "policy/rules.yaml",
        "pages/ingress/config_dump",
        "pages/ca/certs",
    ] {
        ensure!(names.contains(name), "no {name} in {names}");
    }
    let text = tools::system("tar")?.args(["-xzOf", file]).ok()?.stdout;
    for secret in ["PLANTED", "PRIVATE KEY", &token, join] {
        ensure!(!text.contains(secret), "{secret} is in the report");
    }
    ensure!(text.contains("[removed]") && text.contains("spiffe://cluster.local/"), "nothing is in the report");
    let again = mesh.kasbah(["bug-report", "--output", file]).run()?;
    ensure!(again.code == 1 && again.stderr.contains("--output"), "replaced: {}", again.said());
    Ok(())
}

const LIMIT: Duration = Duration::from_secs(60);
