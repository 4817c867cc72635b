//! End to end: real processes, one module per promise of the README.
//!
//! Most tests share one mesh; those that change or hurt it have their own. Every mesh is stopped at the end, and a
//! failed test shows the end of its mesh's logs. `KASBAH_BIN` names another binary to test.

mod administration;
mod admission;
mod agent;
mod agent_clients;
mod agent_clock;
mod agent_docs;
mod agent_hardship;
mod agent_writes;
mod authority_rotation;
mod ca_docs;
mod cert_verbs;
mod certificates;
mod check;
mod cli;
mod config;
mod csr;
mod database;
mod demo;
mod docs_authority;
mod docs_commands;
mod docs_keys;
mod docs_operator;
mod drill;
mod exit_codes;
mod explain;
mod failures;
mod federation;
mod foreign;
mod golden;
mod interop;
mod migration;
mod mtls;
mod operator;
mod page;
mod policy;
mod recovery;
mod revocation;
mod rotation;
mod site;
mod terminals;
mod trial;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(THREADS));
    let modules: &[fn() -> Vec<Trial>] = &[
        // The longest first: it mostly waits, and the others run beside it.
        rotation::trials,
        admission::trials,
        agent_clients::trials,
        agent::trials,
        agent_clock::trials,
        agent_docs::trials,
        agent_hardship::trials,
        agent_writes::trials,
        authority_rotation::trials,
        demo::trials,
        drill::trials,
        explain::trials,
        mtls::trials,
        operator::trials,
        policy::trials,
        csr::trials,
        ca_docs::trials,
        docs_authority::trials,
        docs_commands::trials,
        docs_keys::trials,
        docs_operator::trials,
        cert_verbs::trials,
        check::trials,
        administration::trials,
        certificates::trials,
        cli::trials,
        config::trials,
        interop::trials,
        exit_codes::trials,
        failures::trials,
        federation::trials,
        migration::trials,
        golden::trials,
        recovery::trials,
        revocation::trials,
        database::trials,
        terminals::trials,
    ];
    let conclusion = libtest_mimic::run(&arguments, modules.iter().flat_map(|trials| trials()).collect());
    trial::stop_shared_mesh();
    conclusion.exit_code()
}

/// One for the test that waits, one for the others: more would only disturb those that measure times.
const THREADS: usize = 2;
