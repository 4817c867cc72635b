//! Running a role in the foreground: settings, logs, then the role's own `run` until it is told to stop.

use std::fmt::Debug;
use std::future::Future;

use serde::Serialize;
use serde::de::DeserializeOwned;

use runtime::logs::{LogControl, LogFormat};
use runtime::shutdown::Shutdown;

use crate::args::{CaSignerArgs, RoleArgs};
use crate::exit::{Exit, Failure, chain};
use crate::memory;
use crate::output;

/// `kasbah ca run`.
pub(crate) fn ca(args: &RoleArgs) -> Result<(), Failure> {
    serve("ca", args, Threads::Few, |settings: &ca::Settings| settings.check().map_err(|e| chain(&e)), ca::run)
}

/// `kasbah agent run`. One thread answers thousands of workloads; each further one would keep memory of its own.
pub(crate) fn agent(args: &RoleArgs) -> Result<(), Failure> {
    memory::give_back_at_once();
    serve("agent", args, Threads::One, |s: &agent::Settings| s.validate().map_err(|e| chain(&e)), agent::run)
}

/// `kasbah proxy run`. The proxy starts its own workers; this thread is its control thread.
pub(crate) fn proxy(args: &RoleArgs) -> Result<(), Failure> {
    serve("proxy", args, Threads::One, |s: &proxy::Settings| s.validate().map_err(|e| chain(&e)), proxy::run)
}

/// `kasbah discovery run`.
pub(crate) fn discovery(args: &RoleArgs) -> Result<(), Failure> {
    serve("discovery", args, Threads::Few, |_| Ok(()), discovery::run)
}

/// `kasbah policy run`.
pub(crate) fn policy(args: &RoleArgs) -> Result<(), Failure> {
    serve("policy", args, Threads::Few, |_| Ok(()), policy::run)
}

/// `kasbah ca signer`.
pub(crate) fn signer(args: &CaSignerArgs) -> Result<(), Failure> {
    runtime::logs::init("signer", LogFormat::Text).map_err(|e| Failure::new(Exit::Usage, chain(&e)))?;
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    executor.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        let served = ca::serve_signer(&args.keys, &args.socket, args.mode, shutdown).await;
        served.map_err(|e| Failure::refused(Exit::Failed, e.reason(), chain(&e)))
    })
}

enum Threads {
    One,
    Few,
}

fn serve<S, F, E>(
    role: &str,
    args: &RoleArgs,
    threads: Threads,
    check: impl FnOnce(&S) -> Result<(), String>,
    run: impl FnOnce(S, LogControl, Shutdown) -> F,
) -> Result<(), Failure>
where
    S: DeserializeOwned + Serialize + Debug,
    F: Future<Output = Result<(), E>>,
    E: std::error::Error,
{
    let settings: S = runtime::settings::load(role, &args.config).map_err(|e| {
        Failure::refused(Exit::Data, e.reason(), chain(&e)).remedy(format!("correct {}", args.config.display()))
    })?;
    if args.check {
        check(&settings)
            .map_err(|e| Failure::new(Exit::Data, e).remedy(format!("correct {}", args.config.display())))?;
        output::message(&format!("{}: the settings are valid", args.config.display()));
        return Ok(());
    }
    let logs = runtime::logs::init(role, LogFormat::Text).map_err(|e| Failure::new(Exit::Usage, chain(&e)))?;
    let mut builder = match threads {
        Threads::One => {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.max_blocking_threads(BLOCKING_THREADS);
            builder
        }
        Threads::Few => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(CONTROL_THREADS);
            builder
        }
    };
    let executor = builder.enable_all().build()?;
    executor.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        match role {
            "agent" => tokio::spawn(memory::forget_what_rests()),
            _ => tokio::spawn(memory::forget_the_start()),
        };
        run(settings, logs, shutdown).await.map_err(|e| Failure::failed(chain(&e)))
    })
}

/// Control roles share two threads; their work is small and mostly waiting.
const CONTROL_THREADS: usize = 2;
/// Beside a single thread: for reading files and waiting for commands.
const BLOCKING_THREADS: usize = 16;
