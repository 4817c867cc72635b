//! What the documents have an administrator of the authority type, typed in the order of each page: entries, attestation,
//! administration, federation, revocation. Capital words and places stand for what exists here; what cannot be done on one machine
//! is tried for its form, each time with the reason.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Program, curl, mesh, tools, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::docs_commands::{commands_of, is_known};
use crate::page::Page;
use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("docs_authority::entries_are_made_as_the_page_says", entries),
        alone("docs_authority::nodes_are_attested_as_the_page_says", attestation),
        alone("docs_authority::rights_and_two_persons_work_as_the_page_says", administration),
        alone("docs_authority::trust_domains_federate_as_the_page_says", federation),
        alone("docs_authority::svids_are_revoked_as_the_page_says", revocation),
    ]
}

/// An authority as in `docs/ca.md`, with more settings.
pub(crate) fn authority(more: &str) -> Result<Page> {
    let mut page = crate::ca_docs::open()?;
    std::fs::create_dir_all(page.path("etc"))?;
    page.settle(&here(&page, more))?;
    page.start()?;
    Ok(page)
}

/// With the folders of this test.
pub(crate) fn here(page: &Page, text: &str) -> String {
    page.here(text).replace("/etc/kasbah", &page.path("etc").display().to_string())
}

/// The blocks of settings of a page.
pub(crate) fn settings_of(page: &Page, name: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(tools::source("../docs").join(name))?;
    let blocks = text.split("\n```yaml\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    Ok(blocks.map(|block| here(page, block)).collect())
}

/// A node that has joined under an alias and went away again; its files are in a folder of the alias' name.
pub(crate) fn join(page: &Page, alias: &str) -> Result<String> {
    let token = page.type_in(&format!("kasbah token create --spiffe-id spiffe://cluster.local/node/{alias}"))?;
    let joined = page.type_in(&format!("{} --token {} -o json", join_command(page, alias), token.trim()))?;
    let joined: Value = serde_json::from_str(&joined)?;
    Ok(joined["spiffe_id"].as_str().context("no node")?.to_owned())
}

fn join_command(page: &Page, folder: &str) -> String {
    format!(
        "kasbah agent join --server 127.0.0.1:{} --trust-domain cluster.local --trust-bundle lib/run/bundle.pem --data-dir {folder}",
        page.grpc
    )
}

/// Types a command that has to fail; answers what it said.
fn refused(page: &Page, command: &str) -> Result<String> {
    let command = command.split(" #").next().unwrap_or_default();
    page.type_in(&format!("! {command} > said 2>&1"))?;
    Ok(std::fs::read_to_string(page.path("said"))?)
}

fn entries() -> Result<()> {
    let mut page = authority("")?;
    let node = join(&page, "local")?;
    let document = settings_of(&page, "entries.md")?.remove(0);
    std::fs::write(page.path("entries.yaml"), document)?;
    let commands = commands_of("entries.md")?;
    let mut created = String::new();
    for command in &commands {
        let command = command.replace(" ID", &format!(" {created}"));
        match command.as_str() {
            // The agent must run: see the tests of the agent.
            whoami if whoami.starts_with("kasbah agent whoami") => is_known(whoami)?,
            elsewhere if elsewhere.contains("--parent spiffe") => {
                let command = elsewhere.replace("spiffe://cluster.local/spire/agent/join_token/…", &node);
                ensure!(refused(&page, &command)?.contains("PARENT_OTHER_NODE"), "{command}");
            }
            missing if missing.contains("explain --spiffe-id") => {
                ensure!(refused(&page, missing)?.contains("NO_ENTRY"), "it was deleted");
                page.type_in(&commands[0])?;
                page.type_in(missing)?;
            }
            _ => {
                let said = page.type_in(&command)?;
                if command.starts_with("kasbah entry create") {
                    said.trim().clone_into(&mut created);
                }
            }
        }
    }
    page.type_in("kasbah entry plan entries.yaml --exit-code").context("what was applied is there")?;
    let listed = page.type_in("kasbah entry list")?;
    for id in ["/prod/cart", "/prod/eu/web", "/prod/us/web", "/probe/"] {
        ensure!(listed.contains(id), "no {id} in {listed}");
    }
    page.stop()
}

fn attestation() -> Result<()> {
    let mut page = authority("")?;
    let node = join(&page, "here")?;
    let mut device = String::new();
    for command in commands_of("attestation.md")? {
        let command = here(&page, &command);
        match command.as_str() {
            // There is no cluster here.
            kubectl if kubectl.starts_with("kubectl ") => (),
            openssl if openssl.starts_with("openssl ") || openssl.starts_with("printf ") => {
                page.type_in(&format!("cd etc && {openssl}")).map(drop)?;
            }
            nodes => {
                if device.is_empty() && nodes.starts_with("kasbah node ") {
                    device = by_device(&mut page)?;
                }
                let nodes = nodes.replace("spiffe://cluster.local/spire/agent/join_token/…", &node);
                let host = "spiffe://cluster.local/spire/agent/http_challenge/node1.example.org";
                // One node is evicted and the other banned.
                let known = if nodes.contains("evict") { &device } else { &node };
                page.type_in(&nodes.replace(host, known)).map(drop)?;
            }
        }
    }
    let said = refused(&page, &format!("kasbah node show {device}"))?;
    ensure!(said.contains("AGENT_UNKNOWN"), "{said}");
    ensure!(page.type_in("kasbah node list --banned true")?.contains(&node), "not banned");
    page.stop()?;
    settings_are_taken(&page)
}

/// Joins by the device certificate that was made, with the settings of the page at both sides.
fn by_device(page: &mut Page) -> Result<String> {
    let blocks = settings_of(page, "attestation.md")?;
    let of = |side: &str| blocks.iter().find(|block| block.starts_with(side) && block.contains("x509pop"));
    page.stop()?;
    page.settle(of("# ca.yaml").context("no settings of the authority")?)?;
    page.start()?;
    std::fs::write(
        page.path("agent.yaml"),
        agent_settings(page, of("# agent.yaml").context("no settings of the agent")?),
    )?;
    let agent =
        Program::new(tools::kasbah()).args(["agent", "run", "--config", "agent.yaml"]).in_folder(&page.path(""));
    let agent = agent.background(&page.path("agent.log"))?;
    let joined = wait::until("the device", Duration::from_secs(20), || {
        let nodes = page.type_in("kasbah node list --attestation-type x509pop -o json")?;
        let nodes: Value = serde_json::from_str(&nodes)?;
        Ok(nodes[0]["id"].as_str().context("no node yet")?.to_owned())
    })
    .with_context(|| std::fs::read_to_string(page.path("agent.log")).unwrap_or_default())?;
    drop(agent);
    let shown = page.type_in(&format!("kasbah node show {joined} -o json"))?;
    ensure!(shown.contains("san:rack:r7"), "{shown}");
    Ok(joined)
}

fn agent_settings(page: &Page, way: &str) -> String {
    let at = |name: &str| page.path(name).display().to_string();
    format!(
        "{way}\ntrust_domain: cluster.local\ndata_dir: {}\nserver: 127.0.0.1:{}\ntrust_bundle: {}\nworkload_api: {}\n",
        at("agent"),
        page.grpc,
        at("lib/run/bundle.pem"),
        at("agent.sock")
    )
}

/// Every block of settings of the page is one that its role takes.
fn settings_are_taken(page: &Page) -> Result<()> {
    let keys = r#"{"keys":[]}"#;
    for file in ["prod-jwks.json", "ci-jwks.json"] {
        std::fs::write(page.path("etc").join(file), keys)?;
    }
    let mut judged = 0;
    for block in settings_of(page, "attestation.md")? {
        if block.starts_with("# ca.yaml") {
            page.settle(&block)?;
            page.type_in("kasbah ca run --config ca.yaml --check").with_context(|| block.clone())?;
        } else if block.starts_with("# agent.yaml") {
            std::fs::write(page.path("agent.yaml"), agent_settings(page, &block))?;
            page.type_in("kasbah agent run --config agent.yaml --check").with_context(|| block.clone())?;
        } else {
            bail!("whose settings are these? {block}");
        }
        judged += 1;
    }
    ensure!(judged >= 9, "only {judged} blocks");
    Ok(())
}

fn administration() -> Result<()> {
    let mut page = crate::ca_docs::open()?;
    std::fs::write(page.path("rights.yaml"), settings_of(&page, "administration.md")?.remove(0))?;
    page.settle("rights_file: rights.yaml")?;
    page.start()?;
    // Who does it from elsewhere has an SVID whose entry says so.
    let ops = "spiffe://cluster.local/ops";
    page.type_in(&format!(
        "kasbah entry create --spiffe-id {ops} --admin --parent-id spiffe://cluster.local/node/web-1 --selector unix:uid:1"
    ))?;
    page.type_in(&format!("kasbah cert issue --spiffe-id {ops} --write ."))?;
    let server = format!("127.0.0.1:{}", page.grpc);
    let from_elsewhere = format!("--server {server} --cert svid.pem --key svid.key --bundle bundle.pem");
    let mut waiting = String::new();
    for command in commands_of("administration.md")? {
        let command = command.replace("ca.example.org:8081", &server).replace("6c1f…", &waiting);
        match command.split(" #").next().unwrap_or_default().trim() {
            // The agent must run: see `administration::an_administrator_works_over_mtls`.
            own if own.starts_with("SPIFFE_ENDPOINT_SOCKET=") => is_known(own)?,
            // Alice asks, and does it when Bob has approved.
            "kasbah ca rotate prepare" if waiting.is_empty() => {
                let said = refused(&page, "kasbah ca rotate prepare")?;
                ensure!(said.contains("APPROVAL_NEEDED"), "{said}");
                let id = said.split("approvals approve ").nth(1).and_then(|rest| rest.split('`').next());
                id.context("no id")?.clone_into(&mut waiting);
            }
            list if list.starts_with("kasbah ca approvals list") => {
                let listed = page.type_in(&format!("kasbah ca approvals list {from_elsewhere}"))?;
                ensure!(listed.contains(&waiting), "{listed}");
            }
            approve if approve.starts_with("kasbah ca approvals approve") => {
                refused(&page, approve).context("the same person")?;
                page.type_in(&format!("{approve} {from_elsewhere}"))?;
            }
            other => drop(page.type_in(other)?),
        }
    }
    ensure!(page.type_in("kasbah ca keys")?.contains("prepared"), "nothing was prepared");
    page.stop()
}

fn federation() -> Result<()> {
    let (mut page, mut other) = (authority("")?, crate::ca_docs::open()?);
    other.settle("")?;
    let settings = std::fs::read_to_string(other.path("ca.yaml"))?;
    std::fs::write(other.path("ca.yaml"), settings.replace("cluster.local", "other.org"))?;
    other.start()?;
    for command in commands_of("federation.md")? {
        match command.as_str() {
            there if there.starts_with("kasbah bundle show") => {
                other.type_in(there)?;
                std::fs::copy(other.path("own.json"), page.path("own.json"))?;
            }
            second if second.contains("https_spiffe") => {
                // The other of two ways.
                page.type_in("kasbah federation delete --trust-domain other.org")?;
                page.type_in(second)?;
            }
            _ => drop(page.type_in(&command)?),
        }
    }
    ensure!(page.type_in("kasbah bundle list")?.contains("other.org"), "no bundle of the other");
    let blocks = settings_of(&page, "federation.md")?;
    let [settings, by_acme] = &blocks[..] else { bail!("other blocks of settings") };
    let openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout etc/web.key -out etc/web.pem -days 2 \
                   -subj /CN=localhost && cp etc/web.pem etc/roots.pem";
    page.type_in(openssl)?;
    page.stop()?;
    let (endpoint, web) = (mesh::free_port()?, mesh::free_port()?);
    let settings = settings.replace("0.0.0.0:8443", &format!("127.0.0.1:{endpoint}"));
    page.settle(&settings.replace("0.0.0.0:443", &format!("127.0.0.1:{web}")))?;
    page.start()?;
    for port in [endpoint, web] {
        let document = curl::get(format!("https://127.0.0.1:{port}/")).options(["--insecure"]).send()?.json()?;
        ensure!(document["spiffe_sequence"].is_u64(), "{document}");
    }
    other.stop()?;
    page.stop()?;
    // An ACME server is in the tests of the authority; here the settings are judged.
    page.settle(by_acme)?;
    page.type_in("kasbah ca run --config ca.yaml --check")?;
    page.settle(&by_acme.replace("tos_accepted: true", "tos_accepted: false"))?;
    let said = refused(&page, "kasbah ca run --config ca.yaml --check")?;
    ensure!(said.contains("tos_accepted"), "{said}");
    Ok(())
}

fn revocation() -> Result<()> {
    let web = mesh::free_port()?;
    let settings = settings_of(&crate::ca_docs::open()?, "revocation.md")?.remove(0);
    let settings = settings.replace("0.0.0.0:8089", &format!("127.0.0.1:{web}"));
    let mut page = authority(&settings)?;
    let node = join(&page, "doomed")?;
    let cart = "spiffe://cluster.local/ns/x/sa/cart";
    let entry = page.type_in(&format!(
        "kasbah entry create --spiffe-id {cart} --parent-id spiffe://cluster.local/node/doomed --selector unix:uid:1"
    ))?;
    for folder in ["first", "second", "third"] {
        page.type_in(&format!("kasbah cert issue --spiffe-id {cart} --write {folder}"))?;
    }
    page.type_in("cp second/svid.pem svid.pem")?;
    let serial = serial_of(&page, "first/svid.pem")?;
    for command in commands_of("revocation.md")? {
        let command = command
            .replace("3f2ac1…", &serial)
            .replace("spiffe://TD/spire/agent/join_token/…", &node)
            .replace("spiffe://TD", "spiffe://cluster.local")
            .replace("ENTRY_ID", entry.trim())
            .replace("ca.example:8089", &format!("127.0.0.1:{web}"));
        match command.as_str() {
            revoke if revoke.starts_with("kasbah cert revoke ") => {
                // Without a terminal nothing is revoked.
                ensure!(refused(&page, revoke)?.contains("--yes"), "{revoke}");
                page.type_in(&revoke.replacen(" --reason", " --yes --reason", 1))?;
            }
            lists if lists.starts_with("openssl verify") => {
                for_openssl(&page, web)?;
                let said = refused(&page, lists)?;
                ensure!(said.contains("certificate revoked"), "{said}");
            }
            ocsp if ocsp.starts_with("openssl ocsp") => {
                let said = page.type_in(&format!("{ocsp} 2>&1"))?;
                ensure!(said.contains("leaf.pem: revoked") && said.contains("verify OK"), "{said}");
            }
            _ => drop(page.type_in(&command)?),
        }
    }
    ensure!(page.type_in("kasbah cert revocations list")?.contains(&serial), "not on the list");
    ensure!(page.type_in("kasbah node list --banned true")?.contains(&node), "not banned");
    page.stop()
}

fn serial_of(page: &Page, file: &str) -> Result<String> {
    let shown: Value = serde_json::from_str(&page.type_in(&format!("kasbah cert show {file} -o json"))?)?;
    let serial = shown["serial"].as_str().or_else(|| shown[0]["serial"].as_str());
    Ok(serial.with_context(|| shown.to_string())?.to_owned())
}

/// `leaf.pem`, `issuer.pem`, `root.pem` and `crls.pem`, as the page names them.
fn for_openssl(page: &Page, web: u16) -> Result<()> {
    let chain = std::fs::read_to_string(page.path("first/svid.pem"))?;
    let begin = "-----BEGIN CERTIFICATE-----";
    let certificates: Vec<String> = chain.split(begin).skip(1).map(|rest| format!("{begin}{rest}")).collect();
    let [leaf, issuer] = &certificates[..] else { bail!("{} certificates", certificates.len()) };
    std::fs::write(page.path("leaf.pem"), leaf)?;
    std::fs::write(page.path("issuer.pem"), issuer)?;
    std::fs::copy(page.path("first/bundle.pem"), page.path("root.pem"))?;
    let address = format!("127.0.0.1:{web}");
    let lists = curl::get(curl::url("http", &address, "/crl")).send()?.json()?;
    let mut crls = String::new();
    for list in lists["lists"].as_array().context("no lists")? {
        let file = Path::new(list["path"].as_str().context("no path")?).with_extension("pem");
        crls.push_str(&curl::get(curl::url("http", &address, &file.display().to_string())).send()?.body);
    }
    Ok(std::fs::write(page.path("crls.pem"), crls)?)
}
