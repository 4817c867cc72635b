//! `kasbah run`: tells the agent who this process is, then becomes the program. The process id stays the same, so
//! output, signals and exit code are the program's own. With a sidecar this process stays and watches over both.

mod sidecar;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use agent::client::Launched;

use super::wait;
use crate::args::RunArgs;
use crate::exit::{Exit, Failure, chain, is_denied};
use crate::up::layout::Layout;

pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::new(Exit::Usage, "no program was named").remedy("kasbah run --name NAME -- CMD"));
    };
    let launched = register(args)?;
    let mut command = Command::new(program);
    command.args(arguments).env("SPIFFE_ENDPOINT_SOCKET", launched.workload_api);
    if args.sidecar {
        return sidecar::run(args, command);
    }
    let error = command.exec();
    Err(not_started(program, &error))
}

/// Tells the agent who this process is, once the agent is there.
fn register(args: &RunArgs) -> Result<Launched, Failure> {
    let socket = match &args.socket {
        Some(path) => path.clone(),
        None => Layout::of(&args.dir.dir)?.socket("launch.sock"),
    };
    let began = Instant::now();
    wait(async {
        loop {
            match agent::client::register_launch(&socket, &args.name).await {
                Ok(launched) => return Ok(launched),
                Err(error) if is_denied(&error) || !error.is_unreachable() => return Err(super::agent::failure(error)),
                Err(_) if began.elapsed() < args.wait => {
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => {
                    return Err(Failure::refused(Exit::Unavailable, error.reason(), chain(&error))
                        .remedy("start the mesh with `kasbah up`, or name its folder with --dir DIR or KASBAH_DIR"));
                }
            }
        }
    })
}

fn not_started(program: &OsStr, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{} cannot be started: {error}", program.to_string_lossy()))
}

const POLL: Duration = Duration::from_millis(20);
