//! The operator's verbs, one file per noun.

pub(crate) mod agent;
pub(crate) mod analyze;
pub(crate) mod audit;
pub(crate) mod blast_radius;
pub(crate) mod bug_report;
pub(crate) mod bundle;
pub(crate) mod ca_keys;
pub(crate) mod cert;
pub(crate) mod check;
pub(crate) mod database;
pub(crate) mod documents;
pub(crate) mod down;
pub(crate) mod edges;
pub(crate) mod entry;
pub(crate) mod explain;
pub(crate) mod federation;
pub(crate) mod filters;
pub(crate) mod help;
pub(crate) mod jwt;
pub(crate) mod launch;
pub(crate) mod log;
pub(crate) mod node;
pub(crate) mod policy;
pub(crate) mod registration;
pub(crate) mod revoke;
pub(crate) mod rights;
pub(crate) mod rotate;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod top;
mod traffic;

use std::future::Future;
use std::io::{BufRead, IsTerminal};

use identity::spiffe_id::SpiffeId;

use crate::args::CaArg;
use crate::ca_client::{CaClient, remote};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::up::layout::Layout;

/// Runs a verb's asynchronous work on this thread.
pub(crate) fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The CA that the options name.
pub(crate) async fn ca(arg: &CaArg) -> Result<CaClient, Failure> {
    if let Some(server) = &arg.server {
        return remote::connect(server, arg).await;
    }
    let socket = match &arg.socket {
        Some(path) => path.clone(),
        None => Layout::of(&arg.dir.dir)?.socket("ca-admin.sock"),
    };
    CaClient::connect(&socket).await
}

/// An ID that somebody typed.
pub(crate) fn spiffe_id(text: &str) -> Result<SpiffeId, Failure> {
    SpiffeId::parse(text)
        .map_err(|error| Failure::refused(Exit::Usage, error.reason(), format!("`{text}` is no SPIFFE ID: {error}")))
}

/// Asks once on the terminal whether to go on; who cannot be asked has not agreed.
pub(crate) fn confirm(question: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "nothing was changed: there is no terminal to ask at")
            .remedy("look at what it changes, then give --yes"));
    }
    output::message(&format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        Ok(())
    } else {
        Err(Failure::failed("nothing was changed").remedy("answer `y`, or give --yes"))
    }
}

/// Seconds since the epoch as RFC 3339 UTC; 0 is "never".
pub(crate) fn time_text(secs: i64) -> String {
    if secs == 0 {
        return "never".to_owned();
    }
    jiff::Timestamp::from_second(secs).map_or_else(|_| secs.to_string(), |t| t.to_string())
}
