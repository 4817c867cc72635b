//! `kasbah agent join|fetch|watch|validate|whoami`: how a node comes in, what a workload gets from the agent, and why.

mod join;
mod written;

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use agent::client::{ClientError, WhoAmI};
use ca::explain::{Explanation, Question};
use identity::spiffe_id::SpiffeId;
use serde_json::{Value, json};

use super::{ca, registration, wait};
use crate::args::{AgentCommand, CaArg, FetchCommand, OutputArg, SocketArg, WatchArgs, X509Args};
use crate::exit::{Exit, Failure, chain, is_denied};
use crate::output;
use crate::up::layout::{Layout, write_atomically};

/// The verbs but `run`, which is a role.
pub(crate) fn run(command: &AgentCommand) -> Result<(), Failure> {
    match command {
        AgentCommand::Run(args) => crate::roles::agent(args),
        AgentCommand::Join(args) => join::run(args),
        AgentCommand::Fetch(FetchCommand::X509(args)) => fetch_x509(args),
        AgentCommand::Fetch(FetchCommand::Jwt { socket, audience, spiffe_id, output }) => {
            fetch_jwt(socket, audience, spiffe_id.as_deref(), *output)
        }
        AgentCommand::Fetch(FetchCommand::Wit { socket, spiffe_id, write, output }) => {
            fetch_wit(socket, spiffe_id.as_deref(), write.as_deref(), *output)
        }
        AgentCommand::Watch(args) => watch(args),
        AgentCommand::Validate { socket, audience, token, output } => validate(socket, audience, token, *output),
        AgentCommand::Whoami { dir, pid, admin, output } => whoami(dir, *admin, *pid, *output),
    }
}

fn address(arg: &SocketArg) -> Result<String, Failure> {
    match &arg.socket {
        Some(address) => Ok(address.clone()),
        None => Ok(format!("unix://{}", Layout::of(&arg.dir.dir)?.socket("agent.sock").display())),
    }
}

fn fetch_x509(args: &X509Args) -> Result<(), Failure> {
    let address = address(&args.socket)?;
    let began = Instant::now();
    let context = wait(async {
        loop {
            match agent::client::fetch_x509(&address).await {
                Ok(context) => return Ok(context),
                // An entry may be on its way, as the agent may be.
                Err(_) if args.wait.is_some_and(|wait| began.elapsed() < wait) => tokio::time::sleep(WAIT_PAUSE).await,
                Err(error) => return Err(failure(error)),
            }
        }
    })?;
    if let Some(folder) = &args.write {
        written::write(folder, &context, &args.access)?;
    }
    output::print(args.output.output, &document(&context), || table(&context))
}

fn document(context: &agent::client::X509Context) -> Value {
    let svids: Vec<Value> = context
        .svids
        .iter()
        .map(|svid| {
            json!({
                "spiffe_id": svid.id().to_string(),
                "serial": svid.serial(),
                "not_before": time(svid.not_before()),
                "not_after": time(svid.not_after()),
                "fingerprint_sha256": hex(&svid.fingerprint_sha256()),
                "hint": svid.hint(),
            })
        })
        .collect();
    let bundles: Vec<Value> = context
        .bundles
        .iter()
        .map(|(_, bundle)| json!({"trust_domain": bundle.trust_domain.as_str(), "x509_authorities": bundle.x509_authorities.len()}))
        .collect();
    json!({"svids": svids, "bundles": bundles})
}

fn table(context: &agent::client::X509Context) -> String {
    let rows = context
        .svids
        .iter()
        .map(|svid| [svid.id().to_string(), svid.serial().to_owned(), time(svid.not_after()), svid.hint().to_owned()]);
    output::table(["SPIFFE ID", "SERIAL", "NOT AFTER", "HINT"], rows)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn time(at: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}

fn fetch_jwt(
    socket: &SocketArg,
    audiences: &[String],
    spiffe_id: Option<&str>,
    output: OutputArg,
) -> Result<(), Failure> {
    let address = address(socket)?;
    let svids = wait(async { agent::client::fetch_jwt(&address, audiences, spiffe_id).await.map_err(failure) })?;
    let value: Vec<Value> =
        svids.iter().map(|svid| json!({"spiffe_id": svid.spiffe_id, "token": svid.token, "hint": svid.hint})).collect();
    output::print(output.output, &value, || svids.iter().map(|svid| svid.token.clone()).collect::<Vec<_>>().join("\n"))
}

/// The tokens. Their keys are secrets that go nowhere but into a file.
fn fetch_wit(
    socket: &SocketArg,
    spiffe_id: Option<&str>,
    write: Option<&Path>,
    output: OutputArg,
) -> Result<(), Failure> {
    let address = address(socket)?;
    let svids = wait(async { agent::client::fetch_wit(&address, spiffe_id).await.map_err(failure) })?;
    if let Some(folder) = write {
        let Some(svid) = svids.first() else { return Err(Failure::failed("the agent gave no identity")) };
        std::fs::create_dir_all(folder)?;
        write_atomically(&folder.join("wit.key.jwk"), svid.key.as_bytes(), 0o600)?;
        write_atomically(&folder.join("wit.jwt"), svid.token.as_bytes(), 0o644)?;
        output::message(&format!("wrote wit.jwt and wit.key.jwk to {}", folder.display()));
    }
    let value: Vec<Value> = svids
        .iter()
        .map(|svid| json!({"spiffe_id": svid.id.to_string(), "token": svid.token, "hint": svid.hint}))
        .collect();
    output::print(output.output, &value, || svids.iter().map(|svid| svid.token.clone()).collect::<Vec<_>>().join("\n"))
}

fn watch(args: &WatchArgs) -> Result<(), Failure> {
    let address = address(&args.socket)?;
    wait(async {
        let mut updates = agent::client::watch_x509(&address).await.map_err(failure)?;
        let mut seen = 0;
        while let Some(update) = updates.next().await {
            let context = update.map_err(failure)?;
            if let Some(folder) = &args.write
                && written::write(folder, &context, &args.access)?
            {
                written::tell(&args.tell).await;
            }
            output::print(args.output.output, &document(&context), || table(&context))?;
            seen += 1;
            if output::is_closed() || args.count.is_some_and(|count| seen >= count) {
                return Ok(());
            }
        }
        Err(Failure::new(Exit::Unavailable, "the agent has closed the stream")
            .remedy("see whether it runs: kasbah status"))
    })
}

fn validate(socket: &SocketArg, audience: &str, token: &str, output: OutputArg) -> Result<(), Failure> {
    let address = address(socket)?;
    let token = match token {
        "-" => std::io::read_to_string(std::io::stdin().take(TOKEN_BYTES_MAX))?,
        token => token.to_owned(),
    };
    let answer = wait(async { Ok(agent::client::validate_jwt(&address, audience, token.trim()).await) })?;
    match answer {
        Ok(valid) => {
            let value = json!({"valid": true, "spiffe_id": valid.id.to_string(), "claims": valid.claims});
            output::print(output.output, &value, || format!("valid: {}", valid.id))
        }
        Err(error) if error.is_unreachable() || error.is_no_identity() => Err(failure(error)),
        Err(error) => Err(Failure::refused(Exit::Failed, error.reason(), format!("not valid: {}", chain(&error)))),
    }
}

fn whoami(dir: &crate::args::DirArg, admin: Option<SocketAddr>, pid: u32, output: OutputArg) -> Result<(), Failure> {
    let layout = Layout::of(&dir.dir)?;
    let endpoints = std::fs::read(layout.endpoints()).ok().and_then(|t| serde_json::from_slice::<Value>(&t).ok());
    let known = || endpoints.as_ref()?.pointer("/agent/admin")?.as_str()?.parse::<SocketAddr>().ok();
    let admin = admin.or_else(known).ok_or_else(|| {
        Failure::refused(Exit::Unavailable, "MESH_NOT_RUNNING", format!("no mesh is known in {}", layout.dir.display())).remedy(
            "start one with `kasbah up`, name its folder with --dir DIR or KASBAH_DIR, or the agent with --admin IP:PORT",
        )
    })?;
    let pid = i32::try_from(pid).map_err(|_| Failure::new(Exit::Usage, format!("{pid} is no process id")))?;
    let (answer, explained) = wait(async {
        let answer = agent::client::whoami(admin, pid).await.map_err(failure)?;
        let explained = explain(dir, &answer).await;
        Ok((answer, explained))
    })?;
    let mut value = serde_json::to_value(&answer).map_err(anyhow::Error::from)?;
    value["explained"] = serde_json::to_value(&explained).map_err(anyhow::Error::from)?;
    output::print(output.output, &value, || {
        let explained = explained.iter().map(|found| format!("\nas the CA sees it:\n{}", registration::text(found)));
        explained.fold(whoami_text(&answer), |text, more| text + &more)
    })
}

/// Why entries that the agent does not know are not for this process; nothing when no CA runs here.
async fn explain(dir: &crate::args::DirArg, answer: &WhoAmI) -> Option<Explanation> {
    let ca = ca(&CaArg { dir: dir.clone(), ..CaArg::default() }).await.ok()?;
    let split = |text: &String| text.split_once(':').map(|(kind, value)| (kind.to_owned(), value.to_owned()));
    let question = Question {
        selectors: answer.selectors.iter().filter_map(split).collect(),
        node: answer.node.as_deref().and_then(|id| SpiffeId::parse(id).ok()),
        spiffe_id: None,
    };
    registration::ask(&ca, &question).await.ok()
}

fn whoami_text(answer: &WhoAmI) -> String {
    let mut lines: Vec<String> = answer.selectors.iter().map(|selector| format!("selector  {selector}")).collect();
    for identity in &answer.identities {
        let asked = identity.selectors.join(", ");
        lines.push(format!("identity  {}  (entry {} asks for {asked})", identity.spiffe_id, identity.entry_id));
    }
    if answer.identities.is_empty() {
        lines.push("identity  none: no entry's selectors are all among these".to_owned());
    }
    for miss in &answer.near_misses {
        let missing = miss.missing.join(", ");
        lines.push(format!("not       {}  (entry {} also asks for {missing})", miss.spiffe_id, miss.entry_id));
    }
    lines.join("\n")
}

pub(super) fn failure(error: ClientError) -> Failure {
    if is_denied(&error) {
        return Failure::refused(Exit::Denied, "LOCAL_ACCESS_DENIED", chain(&error));
    }
    let exit = match &error {
        _ if error.is_unreachable() => Exit::Unavailable,
        ClientError::Endpoint(_) | ClientError::SpiffeId { .. } => Exit::Usage,
        ClientError::Answer(_) => Exit::Failed,
        _ => Exit::Denied,
    };
    Failure::refused(exit, error.reason(), chain(&error))
}

const WAIT_PAUSE: Duration = Duration::from_millis(200);
/// The longest token that is read from standard input.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
