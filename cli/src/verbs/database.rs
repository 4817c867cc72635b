//! `kasbah ca backup` and `kasbah ca restore`: the authority's database as a file.

use ca::{BackupError, BackupReport, RestoreOptions, Settings};
use serde_json::json;

use super::wait;
use crate::args::{CaCommand, DatabaseArg, OutputArg};
use crate::exit::{Exit, Failure, chain};
use crate::output;
use crate::up::layout::Layout;

pub(crate) fn run(command: &CaCommand) -> Result<(), Failure> {
    match command {
        CaCommand::Backup { file, place, output } => {
            let settings = settings(place)?;
            let made = wait(async { ca::backup(&settings, file).await.map_err(|e| failure(e, Exit::Failed)) })?;
            print(*output, &made, &format!("{} rows written to {}", made.rows, file.display()))
        }
        CaCommand::Restore { file, place, force, moved, output } => {
            let (settings, options) = (settings(place)?, RestoreOptions { force: *force, moved: *moved });
            let restored =
                wait(async { ca::restore(&settings, file, options).await.map_err(|e| failure(e, Exit::Data)) })?;
            if !moved {
                output::message(AFTERWARDS);
            }
            print(*output, &restored, &format!("{} rows restored, as of {}", restored.rows, restored.made_at))
        }
        _ => Err(Failure::new(Exit::Usage, "not about the database")),
    }
}

fn settings(place: &DatabaseArg) -> Result<Settings, Failure> {
    let file = match &place.config {
        Some(file) => file.clone(),
        None => Layout::of(&place.dir.dir)?.settings_of("ca"),
    };
    let settings: Settings = runtime::settings::load("ca", &file).map_err(|e| {
        Failure::refused(Exit::Data, e.reason(), chain(&e)).remedy(format!("correct {}", file.display()))
    })?;
    Ok(Settings { database: place.database.clone().or(settings.database), ..settings })
}

fn print(output: OutputArg, report: &BackupReport, text: &str) -> Result<(), Failure> {
    let value = json!({
        "trust_domain": report.trust_domain,
        "schema": report.schema,
        "made_at": report.made_at,
        "rows": report.rows,
    });
    output::print(output.output, &value, || text.to_owned())
}

/// A file that cannot be read is bad input, one that cannot be written is not: `unusable` says which.
fn failure(error: BackupError, unusable: Exit) -> Failure {
    let exit = match error.reason() {
        "BACKUP_DAMAGED" | "BACKUP_UNPROVEN" | "BACKUP_OTHER_VERSION" => Exit::Data,
        "BACKUP_FILE_UNUSABLE" => unusable,
        _ => Exit::Failed,
    };
    Failure::refused(exit, error.reason(), chain(&error))
}

const AFTERWARDS: &str = "What was done after the backup is unknown to it: make new join tokens, ban and delete again what was banned and deleted \
                          since, and let nodes that are refused join again.";
