//! The Istio CSR API, asked by grpcio: the identity is the token's, whatever the CSR says.

use anyhow::{Context, Result, ensure};
use harness::{Mesh, Program, tools};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::shared;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("csr::the_identity_is_the_tokens", the_identity_is_the_tokens),
        shared("csr::a_csr_with_a_bad_signature_is_refused", a_csr_with_a_bad_signature_is_refused),
        shared("csr::bad_tokens_are_refused", bad_tokens_are_refused),
        shared("csr::nobody_gets_the_identity_of_somebody_else", nobody_gets_the_identity_of_somebody_else),
        shared("csr::the_server_speaks_only_tls13", the_server_speaks_only_tls13),
    ]
}

fn service_account_token(mesh: &Mesh, more: &[&str]) -> Result<String> {
    let args = ["demo", "token", "--kind", "service-account", "--namespace", "shop", "--account", "cart"];
    Ok(mesh.kasbah(args).args(more).ok()?.stdout.trim().to_owned())
}

fn client(mesh: &Mesh, token: &str) -> Result<Program> {
    let program = tools::script("istio_csr.py")?.args(["--address", mesh.at("/ca/istio_csr")?]);
    Ok(program.args(["--bundle", mesh.at("/ca/bundle_file")?, "--token", token]))
}

fn the_identity_is_the_tokens(mesh: &Mesh) -> Result<()> {
    let token = service_account_token(mesh, &[])?;
    let lie = "spiffe://cluster.local/ns/kube-system/sa/admin";
    let answer = client(mesh, &token)?.args(["--uri", lie]).ok()?.json()?;
    let names = answer.get("sans").and_then(Value::as_array).context("no names")?;
    ensure!(names == &["URI:spiffe://cluster.local/ns/shop/sa/cart"], "the names are {names:?}");
    ensure!(answer.get("verified") == Some(&Value::Bool(true)), "the chain does not end at the bundle: {answer}");
    Ok(())
}

fn a_csr_with_a_bad_signature_is_refused(mesh: &Mesh) -> Result<()> {
    let token = service_account_token(mesh, &[])?;
    let answer = client(mesh, &token)?.arg("--break-signature").run()?;
    ensure!(answer.code != 0, "it was signed: {}", answer.stdout);
    let error = answer.json()?;
    ensure!(error.get("code").and_then(Value::as_str) == Some("INVALID_ARGUMENT"), "not bad input: {error}");
    ensure!(error.to_string().contains("CSR_BAD_SIGNATURE"), "no reason code: {error}");
    Ok(())
}

fn bad_tokens_are_refused(mesh: &Mesh) -> Result<()> {
    let end_user = mesh.token("testers")?;
    let other_audience = service_account_token(mesh, &["--audience", "somebody-else"])?;
    let good = service_account_token(mesh, &[])?;
    let forged = format!("{}AAAA", &good[..good.len() - 4]);
    for (what, token) in [
        ("none", ""),
        ("nonsense", "nonsense"),
        ("an end user's", end_user.as_str()),
        ("another audience's", other_audience.as_str()),
        ("a forged one", forged.as_str()),
    ] {
        let answer = client(mesh, token)?.run()?;
        ensure!(answer.code != 0, "signed with {what}: {}", answer.stdout);
        let error = answer.json()?;
        ensure!(error.get("code").and_then(Value::as_str) == Some("UNAUTHENTICATED"), "with {what}: {error}");
        let reason = ["JWT_", "TOKEN_"].iter().any(|reason| error.to_string().contains(reason));
        ensure!(reason, "no reason code with {what}: {error}");
    }
    Ok(())
}

/// As grpcio sees it: one code and one text, whatever the reason.
fn nobody_gets_the_identity_of_somebody_else(mesh: &Mesh) -> Result<()> {
    let token = service_account_token(mesh, &[])?;
    for wanted in ["spiffe://cluster.local/ns/default/sa/test", "spiffe://elsewhere/ns/default/sa/test", "nonsense"] {
        let answer = client(mesh, &token)?.args(["--impersonate", wanted]).run()?;
        ensure!(answer.code != 0, "it was signed: {}", answer.stdout);
        let error = answer.json()?;
        ensure!(error.get("code").and_then(Value::as_str) == Some("UNAUTHENTICATED"), "{wanted}: {error}");
        let text = error.get("message").and_then(Value::as_str);
        ensure!(text == Some("request impersonation authentication failure"), "{wanted}: {error}");
    }
    let own = "spiffe://cluster.local/ns/shop/sa/cart";
    let names = client(mesh, &token)?.args(["--impersonate", own]).ok()?.json()?;
    ensure!(names.to_string().contains(own), "its own identity: {names}");
    Ok(())
}

fn the_server_speaks_only_tls13(mesh: &Mesh) -> Result<()> {
    let connect = |more: &str| {
        let program =
            tools::system("openssl")?.args(["s_client", "-alpn", "h2", "-connect", mesh.at("/ca/istio_csr")?]);
        program.args(["-CAfile", mesh.at("/ca/bundle_file")?, more]).run()
    };
    let new = connect("-tls1_3")?;
    ensure!(new.said().contains("Verify return code: 0 (ok)"), "{}", new.said());
    ensure!(connect("-tls1_2")?.code != 0, "TLS 1.2 was accepted");
    Ok(())
}
