//! `kasbah cert verify FILE` and `kasbah cert lint FILE`: judged offline.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use identity::profile::{self, Profile};
use identity::revocation::Crl;
use serde_json::json;

use super::judge::Trust;
use super::source;
use crate::args::{OutputArg, VerifyArgs};
use crate::exit::{Exit, Failure, chain};
use crate::output;

pub(super) fn run(args: &VerifyArgs, output: OutputArg) -> Result<(), Failure> {
    let file = args.file.as_deref().unwrap_or_else(|| Path::new("-"));
    let lists = args.crl.iter().map(|file| lists(file)).collect::<Result<Vec<_>, _>>()?.concat();
    let trust = Trust::of(&args.trust)?.with_lists(lists);
    let found = source::read(&file.to_string_lossy())?;
    let verdict = trust.judge(&found.chain, SystemTime::now());
    let document = json!({
        "source": found.source,
        "holds": verdict.holds(),
        "verdict": verdict.code(),
        "explanation": verdict.text(),
        "defects": verdict.defects,
    });
    output::print(output.output, &document, || {
        let mut text = format!("{}: {}: {}", found.source, verdict.code(), verdict.text());
        if !verdict.defects.is_empty() {
            text.push_str(&format!("\nprofile: {} (see `kasbah help reasons`)", verdict.defects.join(", ")));
        }
        text
    })?;
    if verdict.holds() { Ok(()) } else { Err(Failure::quiet()) }
}

fn lists(file: &Path) -> Result<Vec<Crl>, Failure> {
    let bad = |why: String| Failure::new(Exit::Data, format!("{} is no revocation list: {why}", file.display()));
    let text = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
    if text.starts_with(b"-----") {
        return Crl::decode_pem(&text).map_err(|error| bad(chain(&error)));
    }
    Crl::decode(&text).map(|list| vec![list]).map_err(|error| bad(chain(&error)))
}

/// One answer a file, as `--lines` has one a line. Exit code 1 when any has a defect.
pub(super) fn lint(files: &[PathBuf]) -> Result<(), Failure> {
    let mut clean = true;
    for file in files {
        let text = std::fs::read(file)
            .map_err(|error| Failure::new(Exit::Data, format!("{} cannot be read: {error}", file.display())))?;
        let answer = match profile::lint(&text, Profile::Svid) {
            Ok(defects) if defects.is_empty() => "ok".to_owned(),
            Ok(defects) => {
                clean = false;
                format!("err {}", defects.iter().map(|defect| defect.code()).collect::<Vec<_>>().join(","))
            }
            Err(error) => {
                return Err(Failure::new(Exit::Data, format!("{}: {}", file.display(), chain(&error))));
            }
        };
        output::line(&format!("{}: {answer}", file.display()));
    }
    if clean { Ok(()) } else { Err(Failure::quiet()) }
}
