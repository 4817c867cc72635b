//! `kasbah analyze`: what is wrong with operator documents as one set, without a server.

use std::collections::BTreeSet;
use std::time::SystemTime;

use discovery::analysis::{ANALYZERS, Analysis, Code, Level, Message, Options, analyze, codes};
use serde_json::json;

use crate::args::{AnalyzeArgs, OutputArg};
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn run(args: &AnalyzeArgs) -> Result<(), Failure> {
    if args.list {
        return list(args.output);
    }
    check(args)?;
    let options =
        Options { now: SystemTime::now(), mesh: args.mesh_config.as_deref(), analyzers: args.analyzer.as_slice() };
    let mut analysis = analyze(&args.paths, &options);
    analysis.messages.retain(|message| !args.suppress.iter().any(|one| one.is_for(message)));
    if args.ignore_unknown {
        analysis.unreadable.clear();
    }
    print(args, &analysis)?;
    judge(args, &analysis)
}

fn check(args: &AnalyzeArgs) -> Result<(), Failure> {
    if let Some(wrong) = args.analyzer.iter().find(|name| !ANALYZERS.iter().any(|known| known.name == name.as_str())) {
        return Err(
            Failure::new(Exit::Usage, format!("no analyzer is called {wrong}")).remedy("see `kasbah analyze -L`")
        );
    }
    match args.paths.iter().chain(&args.mesh_config).find(|path| !path.exists()) {
        Some(missing) => Err(Failure::new(Exit::Data, format!("{} does not exist", missing.display()))),
        None => Ok(()),
    }
}

fn print(args: &AnalyzeArgs, analysis: &Analysis) -> Result<(), Failure> {
    let least = args.output_threshold.level();
    let shown: Vec<&Message> = analysis.messages.iter().filter(|message| message.level >= least).collect();
    let value: Vec<_> = shown.iter().map(|message| message.to_json()).collect();
    output::print(args.output.output, &value, || page(&shown))?;
    for finding in &analysis.unreadable {
        output::message(&finding.to_string());
    }
    if analysis.left_out > 0 {
        output::message(&format!("{} more findings are left out", analysis.left_out));
    }
    output::message(&summary(analysis));
    Ok(())
}

/// A line a finding, and below them what to do about each code.
fn page(messages: &[&Message]) -> String {
    let mut lines: Vec<String> = messages.iter().map(ToString::to_string).collect();
    let remedies: BTreeSet<String> =
        messages.iter().map(|message| format!("{} to mend it: {}", message.code, message.fix)).collect();
    if !remedies.is_empty() {
        lines.push(String::new());
        lines.extend(remedies);
    }
    lines.join("\n")
}

/// How much was read and found.
fn summary(analysis: &Analysis) -> String {
    let of = |level: Level| analysis.messages.iter().filter(|message| message.level == level).count();
    let counts = [Level::Error, Level::Warning, Level::Info].map(|level| (of(level), level.name()));
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    let found = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
    format!("{} documents analysed: {found}", analysis.documents)
}

fn judge(args: &AnalyzeArgs, analysis: &Analysis) -> Result<(), Failure> {
    let threshold = args.failure_threshold.level();
    let reached = analysis.messages.iter().filter(|message| message.level >= threshold).count();
    if reached > 0 {
        let text = format!("{reached} finding(s) reach the threshold {}", threshold.name());
        return Err(Failure::new(Exit::Findings, text));
    }
    match analysis.unreadable.len() {
        0 => Ok(()),
        bad => Err(Failure::new(Exit::Data, format!("{bad} document(s) could not be read"))),
    }
}

/// `kasbah analyze -L`.
fn list(output: OutputArg) -> Result<(), Failure> {
    let known = || {
        ANALYZERS.iter().flat_map(|analyzer| {
            let told = codes().filter(|code| analyzer.codes.contains(&code.code));
            told.map(move |code| (analyzer.name, code))
        })
    };
    let document = |(analyzer, code): (&str, &Code)| {
        json!({"analyzer": analyzer, "code": code.code, "name": code.name, "level": code.level.name(),
            "when": code.when, "fix": code.fix})
    };
    let value: Vec<_> = known().map(document).collect();
    output::print(output.output, &value, || {
        let row = |(analyzer, code): (&str, &Code)| {
            [code.code.to_owned(), code.level.name().to_owned(), analyzer.to_owned(), code.when.to_owned()]
        };
        output::table(["CODE", "LEVEL", "ANALYZER", "TOLD WHEN"], known().map(row))
    })
}
