//! `kasbah explain`: what becomes of a request, decision by decision, with the document behind each; or what holds for a
//! workload.
//!
//! Documents are compiled by discovery's compiler and judged by the proxies' engine, so that the answer is theirs. A running
//! proxy is asked what it holds, and that is judged instead.

mod follow;
mod print;
mod question;
mod report;
mod workload;
pub(super) mod world;

use crate::args::ExplainMeshArgs;
use crate::exit::Failure;
use crate::output;
use question::Question;
use world::World;

pub(crate) fn run(args: &ExplainMeshArgs) -> Result<(), Failure> {
    let question = Question::parse(args)?;
    let world = World::gather(args)?;
    match question {
        Question::Workload(name) => {
            let report = workload::report(&world, &name)?;
            output::print(args.output.output, &report, || print::workload(&report))
        }
        Question::Request(asked) => {
            let report = follow::follow(&world, args, &asked)?;
            output::print(args.output.output, &report, || print::request(&report))?;
            if report.is_allowed() { Ok(()) } else { Err(Failure::quiet()) }
        }
    }
}

#[cfg(test)]
mod tests;
