//! The `kasbah` binary: every role and every verb. Composition only; what a role does is in its own crate.

mod args;
mod bundle_message;
mod ca_client;
mod demo;
mod exit;
mod memory;
mod output;
mod reasons;
mod registration;
mod roles;
mod screen;
mod up;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use args::{AgentCommand, AuthzCommand, CaCommand, Cli, Command, DemoCommand, JwsCommand, RoleCommand};
use exit::{Exit, Failure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    up::end_with_supervisor();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_quiet() {
                output::message(&format!("error: {failure}"));
            }
            failure.into()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up::run(&args),
        Command::Status { dir, output } => verbs::status::run(&dir, output),
        Command::Down { dir } => verbs::down::run(&dir),
        Command::Run(args) => verbs::launch::run(&args),
        Command::Ca(CaCommand::Run(args)) => roles::ca(&args),
        Command::Ca(CaCommand::Policy(command)) => verbs::policy::run(&command),
        Command::Ca(CaCommand::Rights(command)) => verbs::rights::run(&command),
        Command::Ca(CaCommand::Approvals(command)) => verbs::rights::approvals(&command),
        Command::Ca(CaCommand::Rotate(args)) => verbs::rotate::run(&args),
        Command::Ca(CaCommand::Keys(args)) => verbs::ca_keys::keys(&args),
        Command::Ca(CaCommand::Signer(args)) => roles::signer(&args),
        Command::Ca(CaCommand::Import(args)) => verbs::ca_keys::import(&args),
        Command::Ca(CaCommand::Csr(args)) => verbs::ca_keys::csr(&args),
        Command::Ca(CaCommand::Install(args)) => verbs::ca_keys::install(&args),
        Command::Ca(command) => verbs::database::run(&command),
        Command::Agent(AgentCommand::Run(args)) => roles::agent(&args),
        Command::Agent(command) => verbs::agent::run(&command),
        Command::Proxy(RoleCommand::Run(args)) => roles::proxy(&args),
        Command::Discovery(RoleCommand::Run(args)) => roles::discovery(&args),
        Command::Policy(RoleCommand::Run(args)) => roles::policy(&args),
        Command::Token(command) => verbs::token::run(&command),
        Command::Entry(command) => verbs::entry::run(&command),
        Command::Node(command) => verbs::node::run(&command),
        Command::Bundle(command) => verbs::bundle::run(&command),
        Command::Federation(command) => verbs::federation::run(&command),
        Command::Log(command) => verbs::log::run(&command),
        Command::Audit(command) => verbs::audit::run(&command),
        Command::Demo(DemoCommand::Token(args)) => demo::token_verb(&args),
        Command::Demo(DemoCommand::Serve(args)) => demo::serve_verb(&args),
        Command::Validate { paths, output } => verbs::documents::validate(&paths, output),
        Command::Analyze(args) => verbs::analyze::run(&args),
        Command::Authz(AuthzCommand::Eval { .. }) => verbs::filters::authz::eval(),
        Command::SpiffeId { .. } => verbs::filters::spiffe_id(),
        Command::Jws(JwsCommand::Verify { .. }) => verbs::filters::jws::verify(),
        Command::Jwt(command) => verbs::jwt::run(&command),
        Command::Check(args) => verbs::check::run(&args),
        Command::Cert(command) => verbs::cert::run(&command),
        Command::Edges(args) => verbs::edges::run(&args),
        Command::Top(args) => verbs::top::run(&args),
        Command::BlastRadius(args) => verbs::blast_radius::run(&args),
        Command::Explain(args) => verbs::explain::run(&args),
        Command::BugReport(args) => verbs::bug_report::run(&args),
        Command::Completions { shell } => verbs::help::completions(shell),
        Command::Help { topic, write, output } => verbs::help::run(&topic, write.as_deref(), output),
    }
}
