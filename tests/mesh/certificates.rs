//! Every certificate that a mesh issues is well-formed in the eyes of three judges: openssl's strict mode, pkilint, and our
//! own linter.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::{Mesh, Program, tools};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::trial::shared;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("certificates::openssl_verifies_all_strictly", openssl_verifies_all_strictly),
        shared("certificates::pkilint_finds_nothing", pkilint_finds_nothing),
        shared("certificates::our_linter_finds_nothing", our_linter_finds_nothing),
    ]
}

/// A chain, leaf first, and the file with its root.
struct Chain {
    chain: PathBuf,
    root: PathBuf,
    profile: &'static str,
}

/// The chains of a workload, of the agent, of the CA's server, and of the ingress gateway.
fn chains(mesh: &Mesh) -> Result<Vec<Chain>> {
    let bundle = PathBuf::from(mesh.at("/ca/bundle_file")?);
    let workload = mesh.write_identity("test")?;
    let server = mesh.scratch("server-chain")?.join("chain.pem");
    let shown = tools::system("openssl")?.args(["s_client", "-showcerts", "-connect", mesh.at("/ca/grpc")?]).run()?;
    std::fs::write(&server, shown.stdout)?;
    let data = mesh.dir().join("data");
    let svid = |chain: PathBuf| Chain { chain, root: bundle.clone(), profile: "x509-svid" };
    Ok(vec![
        svid(workload.join("svid.pem")),
        svid(data.join("agent/agent.pem")),
        svid(server),
        Chain {
            chain: data.join("ingress/cert.pem"),
            root: PathBuf::from(mesh.at("/ingress/ca_file")?),
            profile: "rfc5280",
        },
    ])
}

fn openssl_verifies_all_strictly(mesh: &Mesh) -> Result<()> {
    for Chain { chain, root, .. } in chains(mesh)? {
        let verify = tools::system("openssl")?.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]);
        let answer = verify.arg(&root).arg("-untrusted").arg(&chain).arg(&chain).run()?;
        ensure!(answer.code == 0 && answer.stdout.trim().ends_with(": OK"), "{}: {}", chain.display(), answer.said());
    }
    Ok(())
}

fn pkilint_finds_nothing(mesh: &Mesh) -> Result<()> {
    tools::python_program("lint_pkix_cert")?;
    let chains = chains(mesh)?;
    let files = chains.iter().flat_map(|chain| [&chain.chain, &chain.root]);
    let answer =
        tools::script("lint_certificates.py")?.args(files).limit(std::time::Duration::from_secs(120)).ok()?.json()?;
    let count = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    // Root, intermediate, workload, agent, server; the ingress gateway's two: each signed by another of them but the roots.
    ensure!(count("certificates") >= 7 && count("pairs") >= 5, "not all were looked at: {answer}");
    ensure!(answer.get("findings") == Some(&json!([])), "{answer:#}");
    Ok(())
}

fn our_linter_finds_nothing(mesh: &Mesh) -> Result<()> {
    let chains = chains(mesh)?;
    let mut lines = String::new();
    for Chain { chain, root, profile } in &chains {
        for file in [chain, root] {
            lines.push_str(&json!({ "pem": certificates_of(file)?, "profile": profile }).to_string());
            lines.push('\n');
        }
    }
    let answer = Program::new(tools::kasbah()).args(["cert", "lint", "--lines"]).input(lines).ok()?;
    ensure!(answer.stdout.lines().all(|line| line == "ok"), "{}", answer.stdout);
    ensure!(answer.stdout.lines().count() == 2 * chains.len(), "{}", answer.stdout);
    Ok(())
}

/// The certificates of a file that may hold more, such as a key.
fn certificates_of(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let ends = "-----END CERTIFICATE-----\n";
    let parts =
        text.split_inclusive(ends).filter_map(|part| part.find("-----BEGIN CERTIFICATE-----").map(|at| &part[at..]));
    Ok(parts.collect())
}
