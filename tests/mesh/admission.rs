//! Nodes join by whatever proves what they are, come back by themselves, and entries follow documents.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use harness::program::Running;
use harness::{Answer, Program, mesh, tools, wait};
use identity::TrustBundle;
use identity::jwt::JwtAuthorityKey;
use identity::spiffe_id::TrustDomain;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("admission::nodes_join_by_device_token_and_host_and_come_back_by_themselves", nodes_join_and_come_back),
        alone("admission::documents_are_planned_applied_explained_and_pruned", documents_are_planned_and_applied),
        alone("admission::settings_of_attestors_are_judged_without_starting", settings_are_judged),
    ]
}

/// A CA of its own in a folder of its own, without the demo.
struct Site {
    dir: tempfile::TempDir,
    grpc: u16,
    _ca: Option<Running>,
}

impl Site {
    fn start(attestors: &Value) -> Result<Self> {
        let mut site = Self { dir: tempfile::tempdir()?, grpc: mesh::free_port()?, _ca: None };
        let settings = json!({
            "trust_domain": "example.org",
            "data_dir": site.path("ca"),
            "grpc": format!("127.0.0.1:{}", site.grpc),
            "admin_socket": site.path("ca.sock"),
            "bundle_file": site.path("bundle.pem"),
            "agent_svid_ttl": "8s",
            "node_attestors": attestors,
        });
        let file = site.write("ca.yaml", &settings.to_string())?;
        site._ca = Some(site.role("ca", &file)?);
        wait::until("the CA", START_MAX, || site.ca(["node", "list"]).ok())?;
        Ok(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.path(name);
        std::fs::write(&file, text)?;
        Ok(file)
    }

    fn role(&self, role: &str, settings: &Path) -> Result<Running> {
        let log = settings.with_extension("log");
        Program::new(tools::kasbah()).args([role, "run", "--config"]).arg(settings).background(&log)
    }

    /// A verb of administration.
    fn ca<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Program {
        let program = Program::new(tools::kasbah()).args(args).env("NO_COLOR", "1");
        program.arg("--socket").arg(self.path("ca.sock"))
    }

    fn agent(&self, name: &str, way: (&str, Value)) -> Result<Running> {
        let mut settings = json!({
            "trust_domain": "example.org",
            "data_dir": self.path(name),
            "server": format!("127.0.0.1:{}", self.grpc),
            "trust_bundle": self.path("bundle.pem"),
            "workload_api": self.path(&format!("{name}.sock")),
            "admin": format!("127.0.0.1:{}", mesh::free_port()?),
            "sync_interval": "1s",
        });
        settings[way.0] = way.1;
        self.role("agent", &self.write(&format!("{name}.yaml"), &settings.to_string())?)
    }

    /// The node whose ID has `part`, once it is there.
    fn node(&self, part: &str) -> Result<Value> {
        wait::until(part, START_MAX, || {
            let nodes = self.ca(["node", "list", "-o", "json"]).ok()?.json()?;
            let found = nodes.as_array().into_iter().flatten().find(|node| text(node, "id").contains(part));
            found.cloned().with_context(|| format!("{part} is not in {nodes}; {}", self.logs()))
        })
    }

    fn logs(&self) -> String {
        let files = std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = files.filter(|file| file.extension().is_some_and(|ending| ending == "log"));
        let last = |file: &PathBuf| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            format!("--- {}\n{}", file.display(), lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        logs.map(|file| last(&file)).collect::<Vec<_>>().join("\n")
    }

    fn fetch(&self, name: &str) -> Result<Answer> {
        let address = format!("unix://{}", self.path(&format!("{name}.sock")).display());
        Program::new(tools::kasbah()).args(["agent", "fetch", "x509", "-o", "json", "--socket", &address]).ok()
    }
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

/// A device CA and one device with an RSA key, made by OpenSSL.
pub(crate) fn devices(dir: &Path) -> Result<()> {
    std::fs::write(
        dir.join("ext"),
        "keyUsage=critical,digitalSignature\nbasicConstraints=critical,CA:FALSE\n\
         subjectAltName=URI:x509pop://example.org/rack:r7\n",
    )?;
    let commands = [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out roots.pem -days 30 \
         -subj /CN=devices -addext keyUsage=critical,keyCertSign",
        "req -new -newkey rsa:2048 -nodes -keyout device.key -out device.csr -subj /CN=rack-7",
        "x509 -req -in device.csr -CA roots.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out device.pem",
    ];
    for command in commands {
        tools::system("openssl")?.args(command.split_whitespace()).in_folder(dir).ok()?;
    }
    Ok(())
}

/// Tokens of a Kubernetes cluster and of a build system, and their keys.
pub(crate) fn tokens(dir: &Path) -> Result<()> {
    let key = JwtAuthorityKey::generate()?;
    let mut bundle = TrustBundle::new(TrustDomain::parse("example.org")?);
    bundle.jwt_authorities.push(key.public(None));
    std::fs::write(dir.join("jwks.json"), bundle.jwks().to_string())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let claims = json!({
        "iss": "https://kubernetes.example", "sub": "system:serviceaccount:spire:agent", "aud": ["spire-server"],
        "exp": now + 3600,
        "kubernetes.io": {"namespace": "spire", "node": {"name": "node-1", "uid": "u-1"}, "pod": {"name": "p", "uid": "p-1"}},
    });
    std::fs::write(dir.join("psat"), key.sign(claims.as_object().context("an object")?)?)?;
    let claims = json!({
        "iss": "https://token.example.com", "sub": "repo:our-org/shop", "aud": ["kasbah"], "exp": now + 3600,
        "repository_owner": "our-org",
    });
    std::fs::write(dir.join("oidc.token"), key.sign(claims.as_object().context("an object")?)?)?;
    Ok(())
}

fn nodes_join_and_come_back() -> Result<()> {
    let evidence = tempfile::tempdir()?;
    devices(evidence.path())?;
    tokens(evidence.path())?;
    let at = |name: &str| evidence.path().join(name);
    let site = Site::start(&json!({
        "x509pop": {"ca_bundles": [at("roots.pem")]},
        "k8s_psat": {"clusters": {"prod": {
            "issuer": "https://kubernetes.example", "jwks_file": at("jwks.json"), "service_accounts": ["spire:agent"],
        }}},
        "http_challenge": {"allowed_dns_patterns": ["localhost"], "allowed_networks": ["127.0.0.0/8", "::1/128"]},
    }))?;
    let port = mesh::free_port()?;
    let way = ("x509pop", json!({"certificate_file": at("device.pem"), "private_key_file": at("device.key")}));
    let device_agent = site.agent("device", way)?;
    let _pod = site.agent("pod", ("k8s_psat", json!({"cluster": "prod", "token_file": at("psat")})))?;
    let _host = site
        .agent("host", ("http_challenge", json!({"hostname": "localhost", "listen": format!("127.0.0.1:{port}")})))?;

    let device = site.node("/spire/agent/x509pop/")?;
    let selectors = device["selectors"].to_string();
    for wanted in ["x509pop:subject:cn:rack-7", "x509pop:san:rack:r7", "x509pop:ca:fingerprint:"] {
        ensure!(selectors.contains(wanted), "no {wanted} in {selectors}");
    }
    let pod = site.node("/spire/agent/k8s_psat/prod/u-1")?;
    ensure!(pod["can_reattest"] == json!(true), "{pod}");
    let host = site.node("/spire/agent/http_challenge/localhost")?;
    ensure!(host["can_reattest"] == json!(false), "{host}");
    let listed = site.ca(["node", "list", "--selector", "k8s_psat:agent_sa:agent", "-o", "json"]).ok()?.json()?;
    ensure!(listed.as_array().map(Vec::len) == Some(1), "{listed}");

    // An alias by what attestation found, and a workload below it: this test's own user.
    let uid = tools::system("id")?.arg("-u").ok()?.stdout.trim().to_owned();
    let alias = ["--parent-id", "spiffe://example.org/spire/server", "--selector", "x509pop:san:rack:r7"];
    site.ca(["entry", "create", "--spiffe-id", "spiffe://example.org/rack/7"].into_iter().chain(alias)).ok()?;
    let selector = format!("unix:uid:{uid}");
    let below = ["--parent-id", "spiffe://example.org/rack/7", "--selector", &selector];
    site.ca(["entry", "create", "--spiffe-id", "spiffe://example.org/web"].into_iter().chain(below)).ok()?;
    let fetched = wait::until("the workload's SVID", START_MAX, || site.fetch("device"))?.json()?;
    ensure!(fetched["svids"][0]["spiffe_id"] == json!("spiffe://example.org/web"), "{fetched}");
    ensure!(site.fetch("pod").is_err(), "another node gets nothing");

    // Forgotten nodes come back at their next renewal, without a restart.
    for (part, node) in [("/x509pop/", &device), ("/k8s_psat/", &pod)] {
        site.ca(["node", "evict", &text(node, "id")]).ok()?;
        let back = site.node(part)?;
        ensure!(text(&back, "serial") != text(node, "serial"), "{back}");
    }
    wait::until("the workload's SVID after the return", START_MAX, || site.fetch("device"))?;

    // An agent that was off for longer than its SVID lives joins anew when it starts again.
    drop(device_agent);
    let expired = ["node", "list", "--expired", "--attestation-type", "x509pop", "-o", "json"];
    wait::until("the end of the device's SVID", START_MAX, || {
        let nodes = site.ca(expired).ok()?.json()?;
        ensure!(nodes.as_array().is_some_and(|nodes| !nodes.is_empty()), "{nodes}");
        Ok(())
    })?;
    let _device = site.role("agent", &site.path("device.yaml"))?;
    wait::until("the workload's SVID after the long absence", START_MAX, || site.fetch("device"))?;

    a_second_host_is_refused(&site)
}

/// A second machine under a host's name is refused, with what to do.
fn a_second_host_is_refused(site: &Site) -> Result<()> {
    let way =
        ("http_challenge", json!({"hostname": "localhost", "listen": format!("127.0.0.1:{}", mesh::free_port()?)}));
    let mut second = site.agent("second", way)?;
    wait::until("the second host's end", START_MAX, || {
        ensure!(second.has_ended(), "it still runs");
        Ok(())
    })?;
    let log = std::fs::read_to_string(site.path("second.log"))?;
    ensure!(log.contains("kasbah node evict"), "{log}");
    Ok(())
}

const DOCUMENT: &str = "
kind: Entries
owner: shop
defaults: {parent_id: spiffe://example.org/spire/agent/join_token/n1, x509_svid_ttl: 1h}
entries:
  - name: cart
    spiffe_id: spiffe://example.org/cart
    selectors: ['launch:name:cart', 'unix:uid:1000']
  - name: web-${each.region}
    for_each: [{region: eu}, {region: us}]
    spiffe_id: spiffe://example.org/${each.region}/web
    selectors: ['launch:name:${each.region}']
";

fn documents_are_planned_and_applied() -> Result<()> {
    let site = Site::start(&json!({}))?;
    let file = site.write("entries.yaml", DOCUMENT)?.display().to_string();
    let by_hand = ["--parent-id", "spiffe://example.org/n", "--selector", "unix:uid:7"];
    site.ca(["entry", "create", "--spiffe-id", "spiffe://example.org/by-hand"].into_iter().chain(by_hand)).ok()?;

    let plan = site.ca(["entry", "plan", &file, "--exit-code"]).run()?;
    ensure!(plan.code == 1 && plan.stdout.contains("3 to create"), "{}", plan.said());
    ensure!(
        site.ca(["entry", "list", "-o", "json"]).ok()?.json()?.as_array().map(Vec::len) == Some(1),
        "plan changes nothing"
    );
    site.ca(["entry", "apply", &file]).ok()?;
    let again = site.ca(["entry", "apply", &file, "-o", "json"]).ok()?.json()?;
    ensure!(again["pending"] == json!(false) && again["unchanged"].as_array().map(Vec::len) == Some(3), "{again}");
    site.ca(["entry", "plan", &file, "--exit-code"]).ok()?;

    let changed = DOCUMENT.replace("'unix:uid:1000'", "'unix:uid:1001'").replace(", {region: us}", "");
    site.write("entries.yaml", &changed)?;
    let plan = site.ca(["entry", "plan", &file, "-o", "json"]).ok()?.json()?;
    ensure!(plan["update"][0]["changes"]["selectors"]["to"] == json!("launch:name:cart, unix:uid:1001"), "{plan}");
    ensure!(plan["orphaned"][0]["id"] == json!("kasbah.shop.web-us") && plan["delete"] == json!([]), "{plan}");
    site.ca(["entry", "apply", &file, "--prune"]).ok()?;
    let left = site.ca(["entry", "list", "-o", "json"]).ok()?.stdout;
    ensure!(left.contains("by-hand") && !left.contains("web-us") && left.contains("unix:uid:1001"), "{left}");

    site.write("entries.yaml", &DOCUMENT.replace("selectors: ['launch:name:cart'", "selector: ['launch:name:cart'"))?;
    let refused = site.ca(["entry", "apply", &file]).run()?;
    ensure!(refused.code == 65 && refused.stderr.contains("entries.yaml:8:"), "{}", refused.said());

    explanations(&site)
}

fn explanations(site: &Site) -> Result<()> {
    let explain = |args: &[&str]| site.ca(["entry", "explain"].into_iter().chain(args.iter().copied())).run();
    let missing = explain(&["--selector", "launch:name:cart", "-o", "json"])?;
    let first = missing.json()?["entries"][0].clone();
    ensure!(missing.code == 1 && first["grounds"].to_string().contains("SELECTOR_MISSING"), "{first}");
    let unknown = explain(&["--spiffe-id", "spiffe://example.org/nobody"])?;
    ensure!(unknown.code == 1 && unknown.stdout.contains("NO_ENTRY"), "{}", unknown.said());
    let token = site.ca(["token", "create"]).ok()?.stdout.trim().to_owned();
    let file = site.write("token", &token)?;
    let _agent = site.agent("joined", ("join_token_file", json!(file)))?;
    let node = text(&site.node(&token)?, "id");
    let here = ["--spiffe-id", "spiffe://example.org/here", "--parent-id", &node, "--selector", "launch:name:here"];
    site.ca(["entry", "create"].into_iter().chain(here)).ok()?;
    let given = explain(&["--selector", "launch:name:here", "--parent", &node])?;
    ensure!(given.code == 0 && given.stdout.contains("gets  spiffe://example.org/here"), "{}", given.said());
    let elsewhere = explain(&["--selector", "launch:name:eu", "--parent", &node])?;
    ensure!(elsewhere.code == 1 && elsewhere.stdout.contains("PARENT_OTHER_NODE"), "{}", elsewhere.said());
    let purged = site.ca(["node", "purge", "--expired-for", "7d", "-o", "json"]).ok()?;
    ensure!(purged.json()? == json!([]), "{}", purged.said());
    Ok(())
}

fn settings_are_judged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let check = |role: &str, text: &str| -> Result<Answer> {
        let file = dir.path().join("settings.yaml");
        std::fs::write(&file, text)?;
        Program::new(tools::kasbah()).args([role, "run", "--check", "--config"]).arg(&file).run()
    };
    let ca = "trust_domain: example.org\ndata_dir: /tmp/x\nnode_attestors:\n";
    ensure!(check("ca", &format!("{ca}  x509pop: {{ca_bundles: [/r.pem]}}\n"))?.code == 0);
    let unknown = check("ca", &format!("{ca}  x509pop: {{ca_bundle: [/r.pem]}}\n"))?;
    ensure!(unknown.code == 65 && unknown.stderr.contains("ca_bundle"), "{}", unknown.said());
    let agent = "trust_domain: example.org\ndata_dir: /d\nserver: 'h:1'\ntrust_bundle: /b\nworkload_api: /w\n";
    ensure!(check("agent", &format!("{agent}k8s_psat: {{cluster: prod}}\n"))?.code == 0);
    ensure!(check("agent", &format!("{agent}k8s_psat: {{clusters: prod}}\n"))?.code == 65);
    Ok(())
}

const START_MAX: Duration = Duration::from_secs(60);
