//! `kasbah help`: topics that are no command (`exit-codes`, `reasons`), manual pages, and any command's help; and the
//! completion scripts of shells, which come from the same definitions.

use std::path::Path;

use clap::CommandFactory;
use serde_json::{Value, json};

use super::check::CHECKS;
use crate::args::{Cli, OutputArg};
use crate::exit::{EXIT_CODES, Exit, Failure};
use crate::{output, reasons};

pub(crate) fn run(topic: &[String], write: Option<&Path>, output: OutputArg) -> Result<(), Failure> {
    let first = topic.first().map(String::as_str);
    if let Some(folder) = write {
        return if first == Some("man") && topic.len() == 1 { write_pages(folder) } else { Err(only_with_man()) };
    }
    match first {
        None => command_help(&[]),
        Some("man") => page(topic.get(1..).unwrap_or_default()),
        Some("exit-codes") => exit_codes(output),
        Some("reasons") => reasons(output),
        Some("checks") => checks(output),
        Some(_) => command_help(topic),
    }
}

/// `kasbah completions SHELL`.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kasbah", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

fn command_help(path: &[String]) -> Result<(), Failure> {
    output::line(command(path)?.render_long_help().to_string().trim_end());
    Ok(())
}

/// The command that the words lead to.
fn command(path: &[String]) -> Result<clap::Command, Failure> {
    let mut command = Cli::command();
    command.build();
    for name in path {
        let Some(inner) = command.find_subcommand(name) else {
            return Err(Failure::new(Exit::Usage, format!("there is no help on `{}`", path.join(" ")))
                .remedy("see `kasbah help`, `kasbah help exit-codes`, `kasbah help reasons`, `kasbah help checks`"));
        };
        command = inner.clone();
    }
    Ok(command)
}

/// A manual page on stdout, for `man -l -`.
fn page(path: &[String]) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command(path)?).render(&mut text)?;
    output::line(String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

fn write_pages(folder: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(failed)?;
    output::message(&format!("wrote the manual pages to {}; see `man -l {0}/kasbah.1`", folder.display()));
    Ok(())
}

fn only_with_man() -> Failure {
    Failure::new(Exit::Usage, "--write goes with `kasbah help man` alone").remedy("kasbah help man --write FOLDER")
}

fn exit_codes(output: OutputArg) -> Result<(), Failure> {
    let value: Vec<Value> =
        EXIT_CODES.iter().map(|(code, meaning)| json!({"code": code, "meaning": meaning})).collect();
    output::print(output.output, &value, || {
        output::table(["CODE", "MEANING"], EXIT_CODES.iter().map(|(code, text)| [code.to_string(), (*text).to_owned()]))
    })
}

fn checks(output: OutputArg) -> Result<(), Failure> {
    let value: Vec<Value> =
        CHECKS.iter().map(|check| json!({"id": check.id, "title": check.title, "remedy": check.remedy})).collect();
    output::print(output.output, &value, || {
        CHECKS
            .iter()
            .map(|check| format!("{}  {}\n  remedy: {}", check.id, check.title, check.remedy))
            .collect::<Vec<_>>()
            .join("\n")
    })
}

fn reasons(output: OutputArg) -> Result<(), Failure> {
    let docs = reasons::all();
    let value: Vec<Value> =
        docs.iter().map(|doc| json!({"code": doc.code, "cause": doc.cause, "remedy": doc.remedy})).collect();
    output::print(output.output, &value, || {
        docs.iter()
            .map(|doc| format!("{}\n  cause:  {}\n  remedy: {}", doc.code, doc.cause, doc.remedy))
            .collect::<Vec<_>>()
            .join("\n")
    })
}
