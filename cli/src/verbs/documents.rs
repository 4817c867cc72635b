//! `kasbah validate`: operator documents against schema and semantic rules, without a server.

use std::path::PathBuf;

use crate::args::OutputArg;
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn validate(paths: &[PathBuf], output: OutputArg) -> Result<(), Failure> {
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(Failure::new(Exit::Data, format!("{} does not exist", missing.display())));
    }
    let findings = discovery::validate(paths);
    let value: Vec<_> = findings.iter().map(discovery::Finding::to_json).collect();
    output::print(output.output, &value, || {
        findings.iter().filter(|f| f.is_error()).map(ToString::to_string).collect::<Vec<_>>().join("\n")
    })?;
    for warning in findings.iter().filter(|finding| !finding.is_error()) {
        output::message(&format!("note: {warning}"));
    }
    match findings.iter().filter(|finding| finding.is_error()).count() {
        0 => Ok(()),
        refused => Err(Failure::new(Exit::Data, format!("{refused} finding(s) refuse a document"))),
    }
}
