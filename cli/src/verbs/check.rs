//! `kasbah check`: everything that can go wrong with identity in a mesh, looked at once, with values, causes and remedies.
//!
//! Facts come from the roles' admin pages and the CA's API (`facts`), the judgement is pure (`rules`). An id never changes
//! its meaning; `kasbah help checks` prints them all.

mod before;
mod facts;
mod print;
mod rules;
mod written;

use std::time::{Duration, Instant, SystemTime};

use super::wait;
use crate::args::{CheckArgs, FailOn};
use crate::exit::{Exit, Failure};
use crate::output;
use rules::Outcome;

pub(crate) use rules::CHECKS;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Found {
    Ok,
    /// It could not be looked at.
    Unknown,
    Warn,
    Fail,
}

impl Found {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    if let Some(wrong) = args.only.iter().find(|only| !CHECKS.iter().any(|check| check.id.starts_with(only.as_str()))) {
        return Err(Failure::new(Exit::Usage, format!("no check is called {wrong}")).remedy("see `kasbah help checks`"));
    }
    let begun = Instant::now();
    let outcomes = loop {
        let outcomes = look(args)?;
        let again = args.wait.is_some_and(|limit| begun.elapsed() < limit);
        if !again || !is_bad(&outcomes, args.fail_on) {
            break outcomes;
        }
        progress(&outcomes, begun.elapsed());
        std::thread::sleep(LOOK_AGAIN);
    };
    print::print(&outcomes, begun.elapsed(), args.output)?;
    if is_bad(&outcomes, args.fail_on) { Err(Failure::quiet()) } else { Ok(()) }
}

/// What `kasbah top` and `kasbah bug-report` show of a look.
pub(super) struct Look {
    /// Every check, as `check -o json` prints it.
    pub(super) checks: Vec<serde_json::Value>,
    /// Rotations by kind; empty when the CA could not be asked.
    pub(super) rotations: Vec<proto::kasbah::ca::v1::StatusResponse>,
    /// The agent's SVIDs.
    pub(super) svids: Vec<serde_json::Value>,
}

pub(super) async fn look_at(dir: &crate::args::DirArg) -> Result<Look, Failure> {
    let facts = facts::gather(dir).await?;
    let checks = rules::judge(&facts, SystemTime::now()).iter().map(print::document).collect();
    let svids = facts.page("agent", "/certs").and_then(|page| page["svids"].as_array().cloned()).unwrap_or_default();
    Ok(Look { checks, svids, rotations: facts.rotations })
}

fn look(args: &CheckArgs) -> Result<Vec<Outcome>, Failure> {
    let mut outcomes = if args.pre {
        before::look(&args.dir)?
    } else {
        let facts = wait(facts::gather(&args.dir))?;
        rules::judge(&facts, SystemTime::now())
    };
    outcomes.retain(|outcome| args.only.is_empty() || args.only.iter().any(|only| outcome.check.id.starts_with(only)));
    Ok(outcomes)
}

fn is_bad(outcomes: &[Outcome], fail_on: FailOn) -> bool {
    let limit = if fail_on == FailOn::Warn { Found::Warn } else { Found::Fail };
    outcomes.iter().any(|outcome| outcome.found >= limit)
}

fn progress(outcomes: &[Outcome], waited: Duration) {
    let bad = outcomes.iter().filter(|outcome| outcome.found == Found::Fail);
    let ids: Vec<&str> = bad.map(|outcome| outcome.check.id).collect();
    output::message(&format!(
        "waiting for {} ({})",
        ids.join(", "),
        output::duration(Duration::from_secs(waited.as_secs()))
    ));
}

const LOOK_AGAIN: Duration = Duration::from_secs(1);
