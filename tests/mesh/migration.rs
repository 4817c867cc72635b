//! A mesh moves here from Istio's CA, from cert-manager and from SPIRE: workloads with old certificates and workloads with new
//! ones call each other through our proxies, and no call fails. In the end the old ones are refused. The authorities that are
//! left are made by openssl, in the files in which those programs leave them.

#![allow(clippy::print_stdout, reason = "how many calls there were is part of the test's output")]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use harness::mesh::kill;
use harness::{Mesh, tools, wait};
use identity::jwt::{JwtAuthorityKey, JwtSvidProfile};
use identity::{PrivateKey, SpiffeId, TrustBundle, TrustDomain};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::foreign::{Calls, Foreign, Into, OutOf, holder, openssl};
use crate::mtls;
use crate::rotation::load_through_all;
use crate::trial::own;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        own("migration::from_istios_ca_by_its_root_and_the_csr_api", &[], from_istio),
        own("migration::from_cert_manager_by_its_ca_as_the_authority_above", &[], from_cert_manager),
        own("migration::from_spire_by_both_roots_in_the_bundle", &[], from_spire),
    ]
}

/// `istio-ca-secret`: a self-signed RSA root with its key. The mesh moves below it, workloads are moved one by one by the CSR
/// API, and the mesh leaves it for a root of its own.
fn from_istio(mesh: &mut Mesh) -> Result<()> {
    let others = load_through_all(mesh)?;
    let istio = Foreign::make(mesh, &["rsa:2048"], "/O=cluster.local", ISTIO_ROOT)?;
    let import = mesh.kasbah(["ca", "import", "--cert"]).arg(&istio.root).arg("--key").arg(&istio.key);
    let imported = import.args(["-o", "json"]).ok()?.json()?;
    ensure!(imported["signs"] == false, "{imported}");
    rotate(mesh)?;
    wait::until("certificates below Istio's root", STEP_MAX, || expect_root(mesh, &istio.root))?;

    let old_in = Into::start(mesh, istio.issue(CALLER, "client", &[&istio.root])?)?;
    let old_out = OutOf::start(mesh, "legacy", 0, istio.issue(LEGACY, "server", &[&istio.root])?)?;
    old_in.wait()?;
    old_out.wait()?;

    // Istio's agent knows its own root and nothing else: by it, it believes our CSR API, and what that gives.
    let (certificate, key) = by_csr(mesh, &istio, "test")?;
    let moved_in = Into::start(mesh, holder(&certificate, &key, &[&istio.root])?)?;
    let (certificate, key) = by_csr(mesh, &istio, "moved")?;
    let moved_out = OutOf::start(mesh, "moved", 1, holder(&certificate, &key, &[&istio.root])?)?;
    moved_in.wait()?;
    moved_out.wait()?;
    go_on()?;
    expect_no_failure(&[
        ("old in", &old_in),
        ("old out", &old_out),
        ("moved in", &moved_in),
        ("moved out", &moved_out),
    ])?;
    // Istio's root may sign no lists, and needs none: what our intermediate below it signed can be revoked.
    mesh.kasbah(["cert", "revoke", "--reason", "superseded", "--yes"]).arg(&certificate).ok()?;
    moved_out.expect_refused()?;
    expect_no_failure(&[("old in", &old_in), ("old out", &old_out), ("moved in", &moved_in)])?;
    drop((moved_in, moved_out));

    rotate(mesh)?;
    old_in.expect_refused()?;
    old_out.expect_refused()?;
    mesh.expect_healthy()?;
    others.stop().expect_no_failure()
}

/// A CA that cert-manager renews stands above ours, in the files of its secret; in the end the mesh has a root of its own.
fn from_cert_manager(mesh: &mut Mesh) -> Result<()> {
    let others = load_through_all(mesh)?;
    let before = root_that_signs(mesh)?;
    let above = Foreign::make(mesh, &["rsa:2048"], "/CN=mesh-ca", CERT_MANAGER_ROOT)?;
    let settings = mesh.dir().join("run/settings/ca.yaml");
    let without = std::fs::read_to_string(&settings)?;
    let (certificate, key) = (above.root.display(), above.key.display());
    let upstream = format!("upstream: {{files: {{certificate: {certificate}, key: {key}, bundle: {certificate}}}}}\n");
    std::fs::write(&settings, format!("{without}{upstream}"))?;
    start_ca_again(mesh)?;
    wait::until("an intermediate below cert-manager's root", STEP_MAX, || {
        ensure!(root_that_signs(mesh)? != before, "still {before}");
        Ok(())
    })?;
    // What signed before goes, and everything that it signed is replaced.
    rotate(mesh)?;
    ensure!(!keys(mesh)?.iter().any(|key| key["id"] == before.as_str()), "{before} is still there");
    wait::until("certificates below cert-manager's root", STEP_MAX, || expect_root(mesh, &above.root))?;

    let old_in = Into::start(mesh, above.issue(CALLER, "client", &[&above.root])?)?;
    let old_out = OutOf::start(mesh, "legacy", 0, above.issue(LEGACY, "server", &[&above.root])?)?;
    old_in.wait()?;
    old_out.wait()?;
    go_on()?;
    expect_no_failure(&[("old in", &old_in), ("old out", &old_out)])?;

    std::fs::write(&settings, without)?;
    start_ca_again(mesh)?;
    let (root, key) = own_root(mesh)?;
    mesh.kasbah(["ca", "import", "--cert"]).arg(&root).arg("--key").arg(&key).ok()?;
    expect_no_failure(&[("old in", &old_in), ("old out", &old_out)])?;
    rotate(mesh)?;
    wait::until("certificates below the new root", STEP_MAX, || expect_root(mesh, &root))?;
    old_in.expect_refused()?;
    old_out.expect_refused()?;
    mesh.expect_healthy()?;
    others.stop().expect_no_failure()
}

/// SPIRE's bundle stands beside our root, without its key; its entries and its tokens come along.
fn from_spire(mesh: &mut Mesh) -> Result<()> {
    let others = load_through_all(mesh)?;
    let key = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let spire = Foreign::make(mesh, &key, "/C=US/O=SPIFFE", SPIRE_ROOT)?;
    let tokens = JwtAuthorityKey::of(PrivateKey::generate_p256()?, Some("spire-jwt-1"))?;
    let mut bundle = TrustBundle::from_pem(TrustDomain::parse("cluster.local")?, &std::fs::read(&spire.root)?)?;
    bundle.jwt_authorities.push(tokens.public(None));
    let document = spire.folder.join("bundle.json");
    std::fs::write(&document, bundle.to_spiffe_json())?;
    let append = || mesh.kasbah(["bundle", "append", "--format", "spiffe", "-o", "json", "--path"]).arg(&document);
    let appended = append().ok()?.json()?;
    ensure!(appended["x509_authorities"] == 2 && appended["jwt_authorities"] == 2, "{appended}");
    ensure!(append().ok()?.json()?["sequence"] == appended["sequence"], "the same again has changed something");

    let bundle_file = PathBuf::from(mesh.at("/ca/bundle_file")?);
    let ours = spire.folder.join("ours.pem");
    std::fs::copy(&bundle_file, &ours)?;
    let old_in = Into::start(mesh, spire.issue(CALLER, "client", &[&ours])?)?;
    let old_out = OutOf::start(mesh, "legacy", 0, spire.issue(LEGACY, "server", &[&ours])?)?;
    old_in.wait()?;
    old_out.wait()?;
    let token = token_of(&tokens)?;
    let judge = || mesh.launch("test", tools::kasbah()).args(["agent", "validate", "--audience", "db", &token]).run();
    ensure!(judge()?.code == 0, "a token of SPIRE's is refused: {}", judge()?.said());
    entries_come_along(mesh, &spire)?;
    // Our own root is replaced meanwhile: SPIRE's is not touched by it.
    expect_no_failure(&[("old in", &old_in), ("old out", &old_out)])?;
    drop((old_in, old_out));
    rotate(mesh)?;
    std::fs::copy(&bundle_file, &ours)?;
    let old_in = Into::start(mesh, spire.issue(CALLER, "client-2", &[&ours])?)?;
    let old_out = OutOf::start(mesh, "legacy", 0, spire.issue(LEGACY, "server-2", &[&ours])?)?;
    old_in.wait()?;
    old_out.wait()?;
    go_on()?;
    expect_no_failure(&[("old in", &old_in), ("old out", &old_out)])?;

    let keys = keys(mesh)?;
    let elsewhere = keys.iter().filter(|key| key["place"] == "offline" && key["state"] == "old");
    for key in elsewhere.collect::<Vec<_>>() {
        let (id, kind) = (key["id"].as_str().context("no id")?, if key["kind"] == "root" { "x509" } else { "jwt" });
        for step in ["taint", "revoke"] {
            let step = || mesh.kasbah(["ca", "rotate", step, "--kind", kind, "--authority", id]).ok();
            wait::until("the step to be safe", STEP_MAX, step)?;
        }
    }
    old_in.expect_refused()?;
    old_out.expect_refused()?;
    wait::until("the end of SPIRE's tokens", STEP_MAX, || {
        let answer = judge()?;
        ensure!(answer.code == 1, "{}", answer.said());
        Ok(())
    })?;
    refuses_nonsense(mesh, &spire)?;
    mesh.expect_healthy()?;
    others.stop().expect_no_failure()
}

/// What is not fit to be an authority of the trust domain changes nothing.
fn refuses_nonsense(mesh: &Mesh, spire: &Foreign) -> Result<()> {
    let show = || mesh.kasbah(["bundle", "show", "--format", "spiffe"]).ok();
    let sequence = || Ok::<_, anyhow::Error>(show()?.json()?["spiffe_sequence"].clone());
    let before = sequence()?;
    let foreign = Foreign::make(mesh, &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "/O=other", OTHER_ROOT)?;
    let leaf = spire.folder.join("client.pem");
    for (file, why) in [(&foreign.root, "not this trust domain"), (&leaf, "the issuer of")] {
        let refused = mesh.kasbah(["bundle", "append", "--path"]).arg(file).run()?;
        ensure!(refused.code != 0 && refused.stderr.contains(why), "{}", refused.said());
    }
    ensure!(sequence()? == before, "something has changed");
    Ok(())
}

/// What `spire-server entry show -output json` prints is applied, and a workload gets its identity.
fn entries_come_along(mesh: &Mesh, spire: &Foreign) -> Result<()> {
    let shown = r#"{"entries":[{"id":"7d4a0d6e-0f0e-4d6b-9a51-0c6f4a3f4b11",
        "spiffe_id":{"trust_domain":"cluster.local","path":"/ns/shop/sa/cart"},
        "parent_id":{"trust_domain":"cluster.local","path":"/spire/agent/join_token/42"},
        "selectors":[{"type":"launch","value":"name:cart"}],"x509_svid_ttl":1800,"federates_with":[],"admin":false,
        "downstream":false,"expires_at":"0","dns_names":[],"revision_number":"3","store_svid":false,"jwt_svid_ttl":0,
        "hint":"","created_at":"1700000000"}],"next_page_token":""}"#;
    let (from, to) = (spire.folder.join("entries.json"), spire.folder.join("entries.yaml"));
    std::fs::write(&from, shown)?;
    let node = "spiffe://cluster.local/spire/agent/join_token/42=spiffe://cluster.local/node/local";
    let converted = mesh.kasbah(["entry", "convert", "--parent", node, "--spire"]).arg(&from).ok()?;
    std::fs::write(&to, converted.stdout)?;
    mesh.kasbah(["entry", "apply"]).arg(&to).ok()?;
    let plan = mesh.kasbah(["entry", "plan", "--exit-code"]).arg(&to).run()?;
    ensure!(plan.code == 0, "a second time something would change: {}", plan.said());
    wait::until("the workload's identity", STEP_MAX, || {
        let answer = mesh.launch("cart", tools::kasbah()).args(["agent", "fetch", "x509", "-o", "json"]).ok()?;
        ensure!(answer.stdout.contains("spiffe://cluster.local/ns/shop/sa/cart"), "{}", answer.stdout);
        Ok(())
    })
}

fn token_of(tokens: &JwtAuthorityKey) -> Result<String> {
    let (id, audiences) = (SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/old")?, vec!["db".to_owned()]);
    let ttl = Duration::from_secs(3600);
    let profile = JwtSvidProfile { id, audiences, ttl, issuer: None, token_id: None };
    Ok(tokens.sign_svid(&profile, SystemTime::now())?.token)
}

/// Certificate and key of a service account in `default`, by Istio's CSR API and believing Istio's root alone.
fn by_csr(mesh: &Mesh, istio: &Foreign, account: &str) -> Result<(PathBuf, PathBuf)> {
    let token = ["demo", "token", "--kind", "service-account", "--namespace", "default", "--account", account];
    let token = mesh.kasbah(token).ok()?.stdout;
    let folder = mesh.scratch(&format!("csr-{account}"))?;
    let client = tools::script("istio_csr.py")?.args(["--address", mesh.at("/ca/istio_csr")?, "--token", token.trim()]);
    let answer = client.arg("--bundle").arg(&istio.root).arg("--write").arg(&folder).ok()?.json()?;
    ensure!(answer["verified"] == true, "what the CSR API gives does not lead to Istio's root: {answer}");
    Ok((folder.join("cert.pem"), folder.join("cert.key")))
}

/// What helloworld's sidecar shows leads to this root.
fn expect_root(mesh: &Mesh, root: &Path) -> Result<()> {
    let identity = mesh.write_identity("test")?;
    let show = mtls::s_client(mesh.at("/workloads/helloworld/inbound")?)?;
    let show = show.arg("-cert").arg(identity.join("svid.pem")).arg("-key").arg(identity.join("svid.key"));
    let answer = show.arg("-CAfile").arg(root).run()?;
    ensure!(answer.said().contains("Verify return code: 0 (ok)"), "{}", answer.said());
    Ok(())
}

fn own_root(mesh: &Mesh) -> Result<(PathBuf, PathBuf)> {
    let folder = mesh.scratch("own-root")?;
    let (root, key) = (folder.join("root.pem"), folder.join("root.key"));
    let make = openssl(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days"])?;
    let make = make.args(["3650", "-subj", "/CN=mesh root", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
    make.arg("-keyout").arg(&key).arg("-out").arg(&root).ok()?;
    Ok((root, key))
}

/// The whole rotation, or what is left of one that runs.
fn rotate(mesh: &Mesh) -> Result<()> {
    mesh.kasbah(["ca", "rotate", "--yes"]).limit(ROTATION_MAX).ok().map(drop)
}

fn keys(mesh: &Mesh) -> Result<Vec<Value>> {
    let keys = mesh.kasbah(["ca", "keys", "-o", "json"]).ok()?.json()?;
    Ok(keys["authorities"].as_array().context("no authorities")?.clone())
}

fn root_that_signs(mesh: &Mesh) -> Result<String> {
    let keys = keys(mesh)?;
    let root = keys.iter().find(|key| key["kind"] == "root" && key["state"] == "active");
    Ok(root.and_then(|root| root["id"].as_str()).context("no active root")?.to_owned())
}

/// With the settings as they are now.
fn start_ca_again(mesh: &Mesh) -> Result<()> {
    let pid = || {
        let ca = mesh.roles()?.into_iter().find(|role| role.name == "ca");
        ca.and_then(|ca| ca.pid).context("no CA")
    };
    let before = pid()?;
    kill(u64::from(before))?;
    wait::until("the next CA", STEP_MAX, || {
        ensure!(pid()? != before, "still the old one");
        keys(mesh).map(drop)
    })
}

/// Some hundred calls more.
fn go_on() -> Result<()> {
    std::thread::sleep(Duration::from_secs(2));
    Ok(())
}

fn expect_no_failure(calls: &[(&str, &dyn Calls)]) -> Result<()> {
    for (name, calls) in calls {
        calls.expect_no_failure().with_context(|| (*name).to_owned())?;
        println!("{name}: {} calls answered, none failed", calls.counts().0);
    }
    Ok(())
}

/// Whom helloworld's policy lets in.
const CALLER: &str = "spiffe://cluster.local/ns/default/sa/test";
const LEGACY: &str = "spiffe://cluster.local/ns/default/sa/legacy";
/// Of `istio-ca-secret`.
const ISTIO_ROOT: &str =
    "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n";
/// Of a secret of cert-manager's with `isCA: true`.
const CERT_MANAGER_ROOT: &str = "basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=hash\n\
keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\n";
const SPIRE_ROOT: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n\
subjectKeyIdentifier=hash\nsubjectAltName=URI:spiffe://cluster.local\n";
const OTHER_ROOT: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n\
subjectKeyIdentifier=hash\nsubjectAltName=URI:spiffe://other.org\n";
const STEP_MAX: Duration = Duration::from_secs(60);
const ROTATION_MAX: Duration = Duration::from_secs(120);
