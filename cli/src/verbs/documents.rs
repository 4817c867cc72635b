//! `kasbah validate`: operator documents against schema and semantic rules, without a server.

use std::path::PathBuf;

use crate::args::OutputArg;
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn validate(paths: &[PathBuf], output: OutputArg) -> Result<(), Failure> {
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(Failure::new(Exit::Unavailable, format!("{} does not exist", missing.display())));
    }
    let findings = discovery::validate(paths);
    output::print(output.output, &findings, || {
        findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    })?;
    if findings.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Data, format!("{} document(s) refused", findings.len())))
}
