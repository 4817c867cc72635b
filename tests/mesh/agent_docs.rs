//! `docs/agent.md`, typed: each way to join, each way to get an identity, and the settings that the page shows, as they stand
//! there. Where the page names folders, addresses and files of other programs, the test puts its own.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use harness::mesh::free_port;
use harness::postgres::Postgres;
use harness::program::Running;
use harness::{Mesh, Program, curl, tools, wait};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::page::{Page, START_MAX};
use crate::site::own_uid;
use crate::trial::{alone, shared};
use crate::{admission, agent};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("agent_docs::every_recipe_of_the_page_is_typed_by_a_test", every_recipe),
        alone("agent_docs::each_way_of_joining_works_as_it_stands", joining),
        alone("agent_docs::a_host_name_is_proven_with_the_settings_of_the_page", host_name),
        alone("agent_docs::each_way_of_getting_an_identity_works_as_it_stands", identities),
        shared("agent_docs::a_job_with_a_sidecar_runs_as_it_stands", job_with_a_sidecar),
        alone("agent_docs::stock_envoy_takes_its_secrets_with_the_settings_of_the_page", stock_envoy),
        alone("agent_docs::nginx_postgresql_and_a_key_store_read_files_as_the_page_says", files),
        alone("agent_docs::the_other_settings_of_the_page_are_served", other_settings),
    ]
}

/// How each block begins, and which of the tests here types it.
const RECIPES: [(&str, &str, &str); 18] = [
    ("sh", "kasbah bundle show > bundle.pem", "joining"),
    ("sh", "kasbah bundle show > bundle.pem", "joining"),
    ("sh", "JOIN=", "joining"),
    ("sh", "kasbah agent run --config", "joining"),
    ("yaml", "trust_domain: example.org", "host_name"),
    ("sh", "kasbah agent whoami", "identities"),
    ("yaml", "kubelet:", "other_settings"),
    ("sh", "export SPIFFE_ENDPOINT_SOCKET", "identities"),
    ("yaml", "workload_api_tcp:", "other_settings"),
    ("sh", "# at the CA:", "identities, job_with_a_sidecar"),
    ("sh", "kasbah agent fetch x509 --write ./svid", "identities"),
    ("yaml", "clusters:", "stock_envoy"),
    ("sh", "kasbah agent fetch x509 --wait", "identities"),
    ("yaml", "files:", "files"),
    ("nginx", "ssl_certificate ", "files"),
    ("sql", "ALTER SYSTEM", "files"),
    ("yaml", "broker:", "other_settings"),
    ("yaml", "cache:", "other_settings"),
];

fn every_recipe() -> Result<()> {
    let page = Page::open("agent.md")?;
    let openings = page.openings();
    let known = |(at, opening): (usize, &(&str, &str))| {
        RECIPES.get(at).is_some_and(|(language, begin, _)| opening.0 == *language && opening.1.starts_with(begin))
    };
    let unknown: Vec<_> = openings.iter().enumerate().filter(|found| !known(*found)).collect();
    ensure!(unknown.is_empty() && openings.len() == RECIPES.len(), "type it in a test and name that here: {unknown:?}");
    Ok(())
}

/// The page beside an authority that knows every attestor.
fn open() -> Result<Page> {
    let mut page = Page::open("agent.md")?;
    let [endpoint, tcp] = [free_port()?, free_port()?];
    for folder in ["etc", "run"] {
        std::fs::create_dir(page.path(folder))?;
    }
    page.replace("/var/lib/kasbah", page.path("node").display());
    page.replace("/etc/kasbah", page.path("etc").display());
    page.replace("/run/kasbah", page.path("run").display());
    page.replace("ca.example.org:8081", format!("127.0.0.1:{}", page.grpc));
    page.replace("ca.example.org:8443", format!("127.0.0.1:{endpoint}"));
    page.replace("127.0.0.1:15020", format!("127.0.0.1:{}", page.agent_admin));
    page.replace("127.0.0.1:8095", format!("127.0.0.1:{tcp}"));
    admission::devices(page.folder.path())?;
    admission::tokens(page.folder.path())?;
    let at = |name: &str| page.path(name);
    let keys = at("jwks.json");
    let settings = json!({
        "trust_domain": "example.org",
        "data_dir": at("lib/data"),
        "grpc": format!("127.0.0.1:{}", page.grpc),
        "admin": format!("127.0.0.1:{}", page.admin),
        "admin_socket": at("lib/run/ca-admin.sock"),
        "bundle_file": at("lib/run/bundle.pem"),
        "bundle_endpoint": format!("127.0.0.1:{endpoint}"),
        "node_attestors": {
            "x509pop": {"ca_bundles": [at("roots.pem")]},
            "k8s_psat": {"clusters": {"prod": {
                "issuer": "https://kubernetes.example", "jwks_file": keys, "service_accounts": ["spire:agent"],
            }}},
            "oidc_jwt": {"issuers": {"ci": {
                "issuer": "https://token.example.com", "jwks_file": keys, "audiences": ["kasbah"],
                "required_claims": {"repository_owner": ["our-org"]},
            }}},
            "http_challenge": {"allowed_dns_patterns": ["localhost"], "allowed_networks": ["127.0.0.0/8", "::1/128"]},
        },
    });
    std::fs::write(page.path("ca.yaml"), settings.to_string())?;
    page.start()?;
    Ok(page)
}

impl Page {
    fn expect_ready(&self, agent: &str) -> Result<()> {
        let url = curl::url("http", &format!("127.0.0.1:{}", self.agent_admin), "/healthz/ready");
        let ready = || curl::get(url.clone()).send()?.expect_status(200).map(drop);
        wait::until("the agent", START_MAX, ready).with_context(|| self.log(agent))
    }

    /// An entry for this user's processes on the node of the page.
    fn entry(&self, name: &str, more: &str) -> Result<()> {
        let uid = own_uid()?;
        let id = format!("--spiffe-id spiffe://example.org/{name} --parent-id spiffe://example.org/node/web-1");
        self.type_in(&format!("kasbah entry create {id} --selector unix:uid:{uid} {more}")).map(drop)
    }

    /// The agent that the page leaves behind after joining by token, with more settings.
    fn agent(&self, more: &[String]) -> Result<Running> {
        let commands = self.commands("Joining")?;
        for command in
            commands.iter().filter(|command| command.contains(" > bundle.pem") || command.contains("> token"))
        {
            self.type_in(command)?;
        }
        let [variable, join, ..] = joins(&commands)?;
        self.type_in(&format!("{variable}; {join}"))?;
        let file = self.path("node/agent.yaml");
        // What `agent join` leaves is JSON, which is YAML too; blocks of the page are YAML only.
        let settings: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        let lines = settings.as_object().into_iter().flatten().map(|(name, value)| format!("{name}: {value}"));
        std::fs::write(&file, lines.chain(more.iter().cloned()).collect::<Vec<_>>().join("\n"))?;
        let agent = self.role("agent", "node/agent")?;
        self.expect_ready("node/agent")?;
        Ok(agent)
    }
}

/// `JOIN=…` and the lines that use it.
fn joins(commands: &[String]) -> Result<[&String; 7]> {
    let joins: Vec<&String> = commands.iter().filter(|command| command.contains("JOIN")).collect();
    joins.try_into().map_err(|joins| anyhow::anyhow!("{joins:?}"))
}

fn joining() -> Result<()> {
    let mut page = open()?;
    let commands = page.commands("Joining")?;
    let [variable, ways @ ..] = joins(&commands)?;
    let mut fingerprint = String::new();
    for command in commands.iter().filter(|command| !command.contains("JOIN")) {
        match command.split_whitespace().nth(1) {
            Some("agent") => continue,
            _ if command.contains("-fingerprint") => fingerprint = page.type_in(command)?,
            _ => drop(page.type_in(command)?),
        }
    }
    let fingerprint = fingerprint.trim().rsplit('=').next().unwrap_or_default();
    let run = commands.iter().find(|command| command.contains("agent run")).context("nothing is run")?.clone();
    for (at, way) in ways.into_iter().enumerate() {
        let node = page.path(&format!("node-{at}"));
        let here = |text: &str| text.replace(&page.path("node").display().to_string(), &node.display().to_string());
        let token = page.type_in("kasbah token create")?;
        let way = way.replace("AB:CD:…", fingerprint).replace("TOKEN", token.trim());
        let command = format!("{}; {way}", here(variable));
        let answer = if way.contains("--k8s-psat") { in_a_pod(&page, &command) } else { page.type_in(&command) };
        let joined = answer.with_context(|| way.clone())?;
        ensure!(joined.contains("joined as spiffe://example.org/spire/agent/"), "{joined}");
        ensure!(joined.contains(&here(run.split('#').next().unwrap_or_default().trim())), "{joined}");
        let name = format!("node-{at}/agent");
        let _agent = page.role("agent", &name)?;
        page.expect_ready(&name).with_context(|| way)?;
    }
    page.stop()
}

/// Where Kubernetes puts a pod's token, for this command alone.
fn in_a_pod(page: &Page, command: &str) -> Result<String> {
    let namespace = tools::system("unshare")?.args(["--mount", "true"]).run()?;
    if namespace.code != 0 {
        return Err(harness::Skipped(format!("no mounts of one's own: {}", namespace.said().trim())).into());
    }
    let script = page.path("pod");
    let place = "mount -t tmpfs none /run && mkdir -p /run/secrets/tokens && cp psat /run/secrets/tokens/spire-agent";
    std::fs::write(&script, format!("{place} && {command}"))?;
    page.type_in("unshare --mount bash -eu pod")
}

fn host_name() -> Result<()> {
    let mut page = open()?;
    page.replace("0.0.0.0:80\"", format!("127.0.0.1:{}\"", free_port()?));
    page.replace("node1.example.org", "localhost");
    std::fs::copy(page.path("lib/run/bundle.pem"), page.path("etc/bundle.pem"))?;
    std::fs::write(page.path("agent.yaml"), page.block_with("Joining", "yaml", "http_challenge")?)?;
    let _agent = page.role("agent", "agent")?;
    page.expect_ready("agent")?;
    let nodes = page.type_in("kasbah node list")?;
    ensure!(nodes.contains("/spire/agent/http_challenge/localhost"), "{nodes}");
    page.stop()
}

fn identities() -> Result<()> {
    let mut page = open()?;
    let _agent = page.agent(&[])?;
    page.entry("hand", "")?;
    std::fs::write(page.path("cart"), "#!/bin/sh\nkasbah agent fetch x509 -o json\n")?;
    std::fs::set_permissions(page.path("cart"), std::fs::Permissions::from_mode(0o755))?;
    page.replace("/run/svid", page.path("run/svid").display());
    let whoami = page.commands("Who is who")?.remove(0).replace("--pid PID", "--pid $$");
    wait::until("the entry", START_MAX, || {
        let known = page.type_in(&whoami)?;
        ensure!(known.contains("spiffe://example.org/hand"), "{known}");
        Ok(())
    })?;
    let (mut export, mut token) = (String::new(), String::new());
    for command in page.commands("Getting identities")? {
        let (words, _) = command.split_once(" # ").unwrap_or((&command, ""));
        let typed = |command: &str| page.type_in(&format!("{export}\n{command}"));
        match words.trim() {
            words if words.starts_with('#') || words.contains("--sidecar") || words.contains("cluster.local") => (),
            words if words.starts_with("export ") => words.clone_into(&mut export),
            words if words.contains("kasbah run ") => {
                let said = wait::until("the cart's SVID", START_MAX, || typed(words))?;
                ensure!(said.contains("spiffe://example.org/cart"), "{said}");
            }
            words if words.contains("fetch jwt") => token = typed(words)?.trim().to_owned(),
            words if words.contains("TOKEN") => drop(typed(&words.replace("TOKEN", &token))?),
            // It goes on for ever.
            words if words.contains("agent watch") => {
                let said = typed(&format!("timeout 3 {words} || test $? = 124"))?;
                ensure!(said.contains("spiffe://example.org/hand"), "{said}");
            }
            words if words.contains("--owner") && own_uid()? != 0 => {
                bail!(harness::Skipped("only root gives files to others".into()))
            }
            words => drop(typed(words)?),
        }
    }
    let modes = |name: &str| std::fs::metadata(page.path(name)).map(|file| file.mode() & 0o777);
    ensure!(modes("svid/svid.key")? == 0o600 && modes("run/svid/svid.key")? == 0o400, "modes of keys");
    let owner = std::fs::metadata(page.path("run/svid/svid.key"))?.uid();
    let www = tools::system("id")?.args(["-u", "www-data"]).ok()?.stdout;
    ensure!(owner.to_string() == www.trim(), "{owner} owns the key");
    page.stop()
}

fn job_with_a_sidecar(mesh: &Mesh) -> Result<()> {
    let mut page = Page::open("agent.md")?;
    mesh.dir().clone_into(&mut page.dir);
    std::fs::write(page.path("job"), "#!/bin/sh\ntest -n \"$KASBAH_SIDECAR_ADDRESS\" || exit 3\nexit 1\n")?;
    std::fs::set_permissions(page.path("job"), std::fs::Permissions::from_mode(0o755))?;
    let block = page.block_with("Getting identities", "sh", "--sidecar")?;
    let (_, commands) = block.split_once("# in a mesh of `kasbah up`").context("no such remark")?;
    let commands: Vec<&str> = commands.lines().skip(1).collect();
    let [create, run] = commands[..] else { bail!("{commands:?}") };
    let entry = page.type_in(create)?;
    // The job's exit code is 1.
    let ran = page.type_in(&format!("{run} # exit 1"));
    page.type_in(&format!("kasbah entry delete {}", entry.trim()))?;
    ran.map(drop)
}

/// A server in front of which nobody stands but Envoy, and a client with files.
fn stock_envoy() -> Result<()> {
    let (mut page, envoy) = (open()?, tools::python_program("envoy")?);
    let _agent = page.agent(&[])?;
    for name in ["client", "server", "other"] {
        let id = format!("--spiffe-id spiffe://example.org/{name} --parent-id spiffe://example.org/node/web-1");
        page.type_in(&format!("kasbah entry create {id} --selector launch:name:{name}"))?;
    }
    for name in ["client", "other"] {
        let fetch =
            format!("kasbah run --socket node/launch.sock --name {name} -- kasbah agent fetch x509 --write {name}");
        wait::until(name, START_MAX, || page.type_in(&fetch))?;
    }
    let block = page.block_with("Getting identities", "yaml", "common_tls_context")?;
    let (clusters, tls) = block.split_once("# in a Downstream").context("the second half")?;
    let indented = |text: &str, by: usize| {
        let lines = text.lines().map(|line| format!("{}{line}", " ".repeat(by)));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (_, tls) = tls.split_once('\n').context("one line")?;
    let [port, admin] = [free_port()?, free_port()?];
    let bootstrap = format!(
        "node: {{id: server, cluster: server}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n\
         static_resources:\n{}\n{}\n{}\n",
        indented(clusters, 2),
        indented(&LISTENER.replace("PORT", &port.to_string()), 2),
        indented(tls, 10),
    );
    std::fs::write(page.path("envoy.yaml"), bootstrap)?;
    let server = Program::new(tools::kasbah()).args(["run", "--name", "server", "--socket"]);
    let server = server.arg(page.path("node/launch.sock")).arg("--").arg(envoy).arg("-c").arg(page.path("envoy.yaml"));
    let server = server.args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning"]);
    let _envoy = server.background(&page.path("envoy.log"))?;
    let ask = format!("curl -sS --fail -k https://127.0.0.1:{port}/");
    let named = format!("{ask} --cert client/svid.pem --key client/svid.key");
    let answer = wait::until("an answer", START_MAX, || page.type_in(&named)).with_context(|| page.log("envoy"))?;
    ensure!(answer.contains("behind Envoy"), "{answer}");
    let shown = format!(
        "openssl s_client -connect 127.0.0.1:{port} -verify_return_error -CAfile client/bundle.pem < /dev/null"
    );
    ensure!(page.type_in(&format!("{shown} 2>&1 || true"))?.contains("Verification: OK"), "another root");
    ensure!(page.type_in(&ask).is_err(), "without a certificate");
    let other = format!("{ask} --cert other/svid.pem --key other/svid.key");
    ensure!(page.type_in(&other).is_err(), "with another identity");
    page.stop()
}

const LISTENER: &str = "listeners:
- name: listener
  address: {socket_address: {address: 127.0.0.1, port_value: PORT}}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: http
        route_config: {virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: behind Envoy}}}]}]}
        http_filters: [{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        require_client_certificate: true";

fn files() -> Result<()> {
    tools::system("nginx")?;
    if own_uid()? != 0 {
        bail!(harness::Skipped("only root gives files to others".into()));
    }
    let (postgres, mut page) = (Postgres::start()?, open()?);
    std::fs::set_permissions(page.folder.path(), std::fs::Permissions::from_mode(0o711))?;
    let data = postgres.sql("postgres", "SHOW data_directory")?;
    let owner = std::fs::metadata(&data)?.uid();
    page.replace("/var/lib/postgresql/data", &data);
    page.replace("owner: postgres", format!("owner: \"{owner}\""));
    page.replace("/run/nginx.pid", page.path("run/nginx.pid").display());
    std::fs::write(page.path("etc/p12-password"), "secret\n")?;
    let block = page.block_with("Getting identities", "yaml", "files:")?;
    let _agent = page.agent(&[block])?;
    for name in ["web", "db", "java"] {
        page.entry(name, "--x509-svid-ttl 8s")?;
    }
    let run = |name: &str| page.path("run").join(name);
    for file in ["web/svid.key", "db/svid.key", "java/svid.p12", "java/db.jwt"] {
        wait::until(file, START_MAX, || Ok(std::fs::metadata(run(file))?)).with_context(|| page.log("node/agent"))?;
    }
    for statement in page.block_with("Getting identities", "sql", "ALTER SYSTEM")?.lines() {
        postgres.sql("postgres", statement)?;
    }
    postgres.sql("postgres", "SELECT pg_reload_conf()")?;
    let port = free_port()?;
    let config = format!(
        "daemon off; pid {}; error_log stderr; events {{}} http {{ access_log off; server {{ listen 127.0.0.1:{port} ssl;\n{}\n\
         location / {{ return 200 'ok'; }} }} }}",
        run("nginx.pid").display(),
        page.block_with("Getting identities", "nginx", "ssl_certificate")?,
    );
    std::fs::write(page.path("nginx.conf"), config)?;
    let server = tools::system("nginx")?.arg("-p").arg(page.folder.path()).arg("-c").arg(page.path("nginx.conf"));
    let _nginx = server.background(&page.path("nginx.log"))?;
    let rotated = |name: &str, port: u16, starttls: &[&str]| {
        let bundle = run(name).join("bundle.pem");
        wait::until(name, START_MAX, || agent::serials_shown(port, &bundle, starttls, 1))?;
        agent::serials_shown(port, &bundle, starttls, 2).with_context(|| page.log("node/agent"))
    };
    rotated("web", port, &[]).with_context(|| page.log("nginx"))?;
    rotated("db", postgres.port, &["-starttls", "postgres"])?;
    key_store(&page, &run("java"))?;
    drop(postgres);
    page.stop()
}

fn key_store(page: &Page, folder: &Path) -> Result<()> {
    let opened =
        page.type_in(&format!("openssl pkcs12 -in {}/svid.p12 -passin pass:secret -nodes", folder.display()))?;
    ensure!(opened.contains("PRIVATE KEY") && opened.contains("CERTIFICATE"), "{opened}");
    let judge = "kasbah agent validate --socket unix://$PWD/node/agent.sock --audience db";
    page.type_in(&format!("{judge} $(cat {}/db.jwt)", folder.display())).map(drop)
}

fn other_settings() -> Result<()> {
    let page = open()?;
    let key: Vec<u8> = identity::digest::random::<32>().to_vec();
    let mut page = page;
    page.replace("/run/credentials/kasbah-agent", page.path("etc").display());
    std::fs::write(page.path("etc/cache-key"), key)?;
    page.replace("/etc/kubernetes/kubelet-ca.pem", page.path("roots.pem").display());
    page.replace("/var/run/secrets/kubernetes.io/serviceaccount/token", page.path("psat").display());
    let getting = |words: &str| page.block_with("Getting identities", "yaml", words);
    let blocks = [
        page.block_with("Who is who", "yaml", "kubelet:")?,
        getting("workload_api_tcp:")?,
        getting("broker:")?,
        page.block_with("While the CA is away", "yaml", "cache:")?,
    ];
    let agent = page.agent(&blocks)?;
    page.entry("hand", "")?;
    let tcp = blocks[1].split_whitespace().nth(1).unwrap_or_default().to_owned();
    let fetch = format!("kasbah agent fetch x509 -o json --socket tcp://{tcp}");
    wait::until("an SVID over TCP", START_MAX, || page.type_in(&fetch))?;
    for socket in ["broker.sock", "delegated.sock"] {
        std::os::unix::net::UnixStream::connect(page.path("run").join(socket)).with_context(|| socket.to_owned())?;
    }
    wait::until("the cache", START_MAX, || Ok(std::fs::metadata(page.path("node/cache.sealed"))?))?;
    ensure!(!page.path("node/cache.key").exists(), "a key of its own lies beside the cache");
    drop(agent);
    let _agent = page.role("agent", "node/agent")?;
    page.expect_ready("node/agent")?;
    ensure!(page.log("node/agent").contains("serving from the offline cache"), "{}", page.log("node/agent"));
    page.stop()
}
