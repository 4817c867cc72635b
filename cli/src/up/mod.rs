//! `kasbah up`: the whole mesh on one machine. Prepares the folder, starts every role as a process of its own, waits
//! until a request passes through all of them, and keeps them running until it is told to stop.

mod addresses;
mod background;
mod documents;
mod endpoints;
mod ingress_cert;
pub(crate) mod layout;
pub(crate) mod probe;
mod settings;
pub(crate) mod supervise;

use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use addresses::{Addresses, WORKLOAD_PORT, loopback};
use layout::Layout;
use supervise::{Probe, Process, Supervisor};

use crate::args::UpArgs;
use crate::ca_client::{CaClient, EntrySpec};
use crate::demo::token::Issuers;
use crate::exit::Failure;
use crate::output;

pub(crate) use addresses::{OUTBOUND_PORT, free_host, free_port_near};
pub(crate) use settings::join_token_file;
pub(crate) use supervise::{MeshState, end_with_supervisor, supervised};

/// Runs the verb: in the foreground, or (`--detach`) starts a background one and waits until it is ready.
pub(crate) fn run(args: &UpArgs) -> Result<(), Failure> {
    let layout = Layout::of(&args.dir.dir)?;
    if args.detach && !background::is_background() {
        return background::start(&layout);
    }
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    executor.block_on(local.run_until(supervise(args, &layout)))
}

async fn supervise(args: &UpArgs, layout: &Layout) -> Result<(), Failure> {
    let began = Instant::now();
    background::leave_terminal();
    let shutdown = runtime::shutdown::Shutdown::on_signals()?;
    layout.create()?;
    let _lock = lock(layout)?;
    let _ = std::fs::remove_file(layout.state());
    let addresses = prepare(args, layout)?;

    let mut supervisor = Supervisor::new(layout)?;
    let started = tokio::select! {
        result = start(args, layout, &addresses, &mut supervisor) => Some(result),
        () = shutdown.requested() => None,
    };
    match started {
        None => supervisor.stop().await,
        Some(Err(failure)) => {
            supervisor.stop().await;
            return Err(failure);
        }
        Some(Ok(())) => {
            endpoints::write(layout, &addresses)?;
            supervisor.mark_ready(began.elapsed());
            if !background::is_background() {
                output::line(&summary(layout, &supervisor.state())?);
            }
            shutdown.requested().await;
            output::message("stopping the mesh …");
            supervisor.stop().await;
        }
    }
    Ok(())
}

/// Everything on disk that the roles need before the first of them starts.
fn prepare(args: &UpArgs, layout: &Layout) -> Result<Addresses, Failure> {
    let addresses = Addresses::choose(layout, args.ingress_port)?;
    let issuers = Issuers::open_or_create(&layout.data("demo")).map_err(anyhow::Error::from)?;
    layout::write_atomically(&layout.run("jwks.json"), issuers.user_jwks().as_bytes(), 0o644)?;
    layout::write_atomically(
        &layout.run("service-account-jwks.json"),
        issuers.service_account_jwks().as_bytes(),
        0o644,
    )?;
    ingress_cert::ensure(layout)?;
    documents::copy(layout, &addresses, &layout.run("jwks.json"))?;
    settings::write_all(layout, &addresses, args.database.as_deref())?;
    Ok(addresses)
}

/// Starts the roles in the order in which they need each other and waits for the whole.
async fn start(
    args: &UpArgs,
    layout: &Layout,
    addresses: &Addresses,
    supervisor: &mut Supervisor,
) -> Result<(), Failure> {
    let mut progress = probe::Progress::new(layout);
    let ca = role("ca", "ca", None, addresses.ca_admin, layout);
    supervisor.start(ca);
    progress.wait_for(supervisor, &["ca"]).await?;
    register(args, layout).await?;

    supervisor.start(role("agent", "agent", None, addresses.agent_admin, layout));
    for process in mesh(layout, addresses) {
        supervisor.start(process);
    }
    let names: Vec<String> = supervisor.state().processes.iter().map(|p| p.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    progress.wait_for(supervisor, &names).await?;
    let _ = std::fs::remove_file(join_token_file(layout));
    progress.wait_for_first_request(loopback(addresses.ingress_http)).await
}

/// The entries of the demo and the agent's join token.
async fn register(args: &UpArgs, layout: &Layout) -> Result<(), Failure> {
    let ca = CaClient::connect(&layout.socket("ca-admin.sock")).await?;
    let specs: Vec<EntrySpec> = settings::IDENTITIES
        .iter()
        .map(|identity| EntrySpec {
            spiffe_id: identity.spiffe_id(),
            parent_id: settings::NODE_ID.to_owned(),
            selectors: vec![format!("launch:name:{}", identity.launch_name)],
            x509_svid_ttl: settings::ttl_secs(args.leaf_ttl),
            ..EntrySpec::default()
        })
        .collect();
    ca.ensure_entries(&specs).await?;
    // A fresh token at every start: an agent that slept past the end of its own SVID can join again.
    let token = ca.create_join_token(Some(settings::NODE_ID), JOIN_TOKEN_TTL).await?;
    layout::write_atomically(&join_token_file(layout), token.value.as_bytes(), 0o600)?;
    Ok(())
}

fn mesh(layout: &Layout, addresses: &Addresses) -> Vec<Process> {
    let serve = |name: &'static str, launch_name, kind: &str, ip: std::net::IpAddr, extra: &[String]| {
        let mut arguments: Vec<String> =
            ["demo", "serve", kind, "--address", &ip.to_string()].iter().map(|s| (*s).to_owned()).collect();
        arguments.extend_from_slice(extra);
        Process { name, arguments, launch_name, ready: Probe::Tcp((ip, WORKLOAD_PORT).into()) }
    };
    let outbound = ["--outbound".to_owned(), format!("{}:{OUTBOUND_PORT}", addresses.test)];
    vec![
        role("discovery", "discovery", Some("discovery"), addresses.discovery_admin, layout),
        role("policy", "policy", Some("policy"), addresses.policy_admin, layout),
        role("helloworld-sidecar", "proxy", Some("helloworld"), addresses.helloworld_admin, layout),
        role("test-sidecar", "proxy", Some("test"), addresses.test_admin, layout),
        role("ingress", "proxy", Some("istio-ingressgateway"), addresses.ingress_admin, layout),
        role("egress", "proxy", Some("istio-egressgateway"), addresses.egress_admin, layout),
        serve("helloworld", Some("helloworld"), "helloworld", addresses.helloworld, &[]),
        serve("test", Some("test"), "test", addresses.test, &outbound),
        serve("external", None, "external", addresses.external, &[]),
    ]
}

fn role(name: &'static str, verb: &str, launch_name: Option<&'static str>, admin: u16, layout: &Layout) -> Process {
    let settings = layout.settings_of(name).display().to_string();
    let arguments = [verb, "run", "--config", &settings].iter().map(|s| (*s).to_owned()).collect();
    Process { name, arguments, launch_name, ready: Probe::Admin(loopback(admin)) }
}

/// One mesh per folder: the lock is held as long as the supervisor lives.
fn lock(layout: &Layout) -> Result<File, Failure> {
    let path = layout.lock();
    let file = File::options().create(true).truncate(false).write(true).read(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => {
            std::fs::write(&path, std::process::id().to_string())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            let dir = layout.dir.display();
            Err(Failure::failed(format!("a mesh already runs in {dir} (process {})", pid.trim())).remedy(format!(
                "look at it with `kasbah status --dir {dir}`, stop it with `kasbah down --dir {dir}`, or start another with --dir OTHER"
            )))
        }
        Err(TryLockError::Error(error)) => {
            Err(Failure::failed(format!("{} cannot be locked: {error}", path.display()))
                .remedy("choose a folder on a local file system with --dir DIR"))
        }
    }
}

/// What `up` prints when all is ready: addresses and what to try.
fn summary(layout: &Layout, state: &MeshState) -> Result<String, Failure> {
    let text = std::fs::read(layout.endpoints())?;
    let endpoints: serde_json::Value = serde_json::from_slice(&text).map_err(anyhow::Error::from)?;
    let at = |pointer: &str| endpoints.pointer(pointer).and_then(|v| v.as_str()).unwrap_or("-").to_owned();
    let ready = output::duration(Duration::from_millis(state.ready_after_ms.unwrap_or_default()));
    let rows = [
        ("ingress", format!("http://{}", at("/ingress/http")), "HTTP/1.1 and HTTP/2; routes /helloworld and /test"),
        ("ingress tls", format!("https://{}", at("/ingress/https")), "the same with TLS; trust ingress.ca_file"),
        ("ingress tcp", at("/ingress/tcp"), "a TCP echo behind mTLS"),
        ("ca", at("/ca/grpc"), "SPIRE server API; Istio CSR API at its own port"),
        ("workload api", at("/agent/workload_api"), "any SPIFFE client"),
        ("discovery", at("/discovery/xds"), "xDS for any Envoy or gRPC client"),
        ("documents", layout.config().display().to_string(), "Istio YAML; edit and see"),
        ("ready after", ready, "from the start to the first request through the mesh"),
    ];
    let rows = rows.map(|(part, address, note)| [part.to_owned(), address, note.to_owned()]);
    let table = output::table(["PART", "ADDRESS", "WHAT"], rows);
    let http = at("/ingress/http");
    let dir = dir_option(layout);
    Ok(format!(
        "{table}\n\nTry:
  curl http://{http}/helloworld
  curl -i http://{http}/test                                  # 401: no token
  curl -H \"authorization: Bearer $(kasbah demo token{dir} --group testers)\" http://{http}/test
  kasbah status{dir}
  kasbah down{dir}"
    ))
}

fn dir_option(layout: &Layout) -> String {
    let default = std::path::absolute(".kasbah").unwrap_or_default();
    if layout.dir == default { String::new() } else { format!(" --dir {}", layout.dir.display()) }
}

const JOIN_TOKEN_TTL: Duration = Duration::from_secs(600);
