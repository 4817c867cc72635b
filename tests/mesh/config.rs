//! Documents are watched: an edit takes effect within a second, a broken one is named with file, line and column while
//! the last good set keeps serving.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::curl::{self, Response, url};
use harness::{Mesh, wait};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::trial::own;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        own("config::an_edit_is_followed_within_a_second", &[], an_edit_is_followed_within_a_second),
        own("config::the_ca_knows_what_is_in_force_in_each_proxy", &[], the_ca_knows_what_is_in_force),
        own("config::a_broken_document_is_named_and_changes_nothing", &[], a_broken_document_is_named),
    ]
}

fn path_of(mesh: &Mesh, name: &str) -> PathBuf {
    mesh.dir().join("config").join(name)
}

fn ask(mesh: &Mesh, path: &str) -> Result<Response> {
    curl::get(url("http", mesh.at("/ingress/http")?, path)).send()
}

fn an_edit_is_followed_within_a_second(mesh: &mut Mesh) -> Result<()> {
    ask(mesh, "/helloworld/whoami")?.expect_status(200)?;
    let file = path_of(mesh, "closed.yaml");
    let mut times = Vec::new();
    for _ in 0..3 {
        std::fs::write(&file, CLOSED)?;
        times.push(wait::time_until("the path to be closed", FOLLOW_WAIT_MAX, || {
            let response = ask(mesh, "/helloworld/whoami")?.expect_status(403)?;
            ensure!(response.reason() == "RBAC_DENIED", "the reason is {}", response.reason());
            Ok(())
        })?);
        std::fs::write(&file, CLOSED.replace("/helloworld/whoami", "/helloworld/elsewhere"))?;
        times.push(wait::time_until("the path to be open", FOLLOW_WAIT_MAX, || {
            ask(mesh, "/helloworld/whoami")?.expect_status(200)
        })?);
    }
    std::fs::remove_file(&file)?;
    wait::until("the rule to be gone", FOLLOW_WAIT_MAX, || ask(mesh, "/helloworld/elsewhere")?.expect_status(404))?;
    // The one in the middle: a machine that did something else for a moment proves nothing.
    times.sort_unstable();
    let usual = times.get(times.len() / 2).copied().unwrap_or_default();
    ensure!(usual < FOLLOWED_WITHIN, "an edit took {usual:?}: {times:?}");
    Ok(())
}

/// Through the agent, and no sooner than the proxy serves by it: what discovery has had acknowledged.
fn the_ca_knows_what_is_in_force(mesh: &mut Mesh) -> Result<()> {
    let discovery = url("http", mesh.at("/discovery/admin")?, "/syncz");
    let known_as_acknowledged = || {
        let nodes = mesh.kasbah(["node", "list", "-o", "json"]).ok()?.json()?;
        let proxies = nodes[0]["proxies"].as_array().cloned().unwrap_or_default();
        let synced = curl::get(discovery.clone()).send()?.expect_status(200)?.json()?;
        let clients = synced["clients"].as_array().cloned().unwrap_or_default();
        ensure!(!clients.is_empty() && proxies.len() == clients.len(), "{proxies:?} of {clients:?}");
        for client in clients {
            let peer = client["peer"].as_str().context("a client without a certificate")?;
            let is_it =
                |proxy: &&Value| proxy["workload"].as_str().is_some_and(|name| name.starts_with(&format!("{peer} (")));
            let proxy = proxies.iter().find(is_it).with_context(|| format!("no {peer} in {proxies:?}"))?;
            let acknowledged =
                client["types"].as_object().into_iter().flatten().map(|(kind, state)| (kind, &state["acknowledged"]));
            for (kind, version) in acknowledged.filter(|(_, version)| **version != json!("")) {
                ensure!(proxy["configuration"][kind] == *version, "{kind}: {proxy} is not {version}");
            }
        }
        Ok(proxies)
    };
    let before = wait::until("the CA to know", FOLLOW_WAIT_MAX, known_as_acknowledged)?;
    let of_helloworld = |proxies: &[Value]| {
        let is_it = |proxy: &&Value| proxy["workload"].as_str().is_some_and(|name| name.contains("/sa/helloworld ("));
        proxies.iter().find(is_it).map(|proxy| proxy["configuration"].clone()).context("no proxy of helloworld")
    };
    std::fs::write(path_of(mesh, "closed.yaml"), CLOSED)?;
    wait::until("another configuration", FOLLOW_WAIT_MAX, || {
        let now = known_as_acknowledged()?;
        ensure!(of_helloworld(&now)? != of_helloworld(&before)?, "still {now:?}");
        Ok(())
    })?;
    std::fs::remove_file(path_of(mesh, "closed.yaml"))?;
    wait::until("the former configuration", FOLLOW_WAIT_MAX, || {
        let now = known_as_acknowledged()?;
        ensure!(of_helloworld(&now)? == of_helloworld(&before)?, "{now:?}");
        Ok(())
    })
}

fn a_broken_document_is_named(mesh: &mut Mesh) -> Result<()> {
    mesh.expect_healthy()?;
    for (name, text, position) in [("unknown-action.yaml", UNKNOWN_ACTION, ":7:11"), ("no-yaml.yaml", NO_YAML, ":4:")] {
        let file = path_of(mesh, name);
        let place = format!("{name}{position}");
        let line = mesh.log_line_after(&["discovery"], &[name], || Ok(std::fs::write(&file, text)?))?;
        let fields = position.trim_end_matches(':').replacen(':', "line=", 1).replacen(':', " column=", 1);
        ensure!(line.contains(&fields) && line.contains("reason="), "no {fields} in: {line}");
        wait::until("the status to name the document", FOLLOW_WAIT_MAX, || {
            let status = mesh.kasbah(["status"]).run()?;
            ensure!(status.said().contains(&place), "no {place} in: {}", status.said());
            ensure!(status.code == 1, "the exit code is {}", status.code);
            Ok(())
        })?;
        let findings = mesh.status()?.get("findings").cloned().context("no findings")?;
        ensure!(findings.as_array().is_some_and(|f| f.len() == 1), "not one finding: {findings}");
        ask(mesh, "/helloworld")?.expect_status(200).context("the traffic changed")?;
        let validated = mesh.kasbah(["validate"]).arg(mesh.dir().join("config")).run()?;
        ensure!(validated.code == 65, "validate ended with {}: {}", validated.code, validated.said());
        ensure!(validated.stdout.contains(&place), "validate does not say {place}: {}", validated.said());
        std::fs::remove_file(&file)?;
        wait::until("the finding to be gone", FOLLOW_WAIT_MAX, || mesh.expect_healthy())?;
    }
    a_good_document_gone_bad_keeps_serving(mesh)
}

/// Each of the demo's documents in turn is spoilt and mended.
fn a_good_document_gone_bad_keeps_serving(mesh: &Mesh) -> Result<()> {
    let token = mesh.token("testers")?;
    let mut spoilt = 0;
    for entry in std::fs::read_dir(mesh.dir().join("config"))? {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = file.file_name().context("no name")?.to_string_lossy().into_owned();
        let good = std::fs::read_to_string(&file)?;
        mesh.log_line_after(&["discovery"], &[&name], || {
            Ok(std::fs::write(&file, format!("{good}\n---\nkind: [\n"))?)
        })?;
        for path in ["/helloworld", "/test", "/test/egress"] {
            let request = curl::get(url("http", mesh.at("/ingress/http")?, path)).bearer(&token);
            request.send()?.expect_status(200).with_context(|| format!("{path} while {name} is broken"))?;
        }
        std::fs::write(&file, good)?;
        wait::until("the mended document", FOLLOW_WAIT_MAX, || mesh.expect_healthy())?;
        spoilt += 1;
    }
    if spoilt == 0 {
        bail!("the demo has no documents");
    }
    Ok(())
}

const FOLLOWED_WITHIN: Duration = Duration::from_secs(1);
const FOLLOW_WAIT_MAX: Duration = Duration::from_secs(10);

const CLOSED: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: closed
  namespace: default
spec:
  selector:
    matchLabels:
      app: helloworld
  action: DENY
  rules:
    - to:
        - operation:
            paths: [/helloworld/whoami]
";

const UNKNOWN_ACTION: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: broken
  namespace: default
spec:
  action: PERHAPS
";

const NO_YAML: &str = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: [broken
";
