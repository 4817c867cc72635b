//! Identities of the calling process as files, swapped as a whole.

use std::path::Path;

use agent::client::X509Context;
use agent::files::{self, Access, AfterChange, Names};

use crate::args::{AccessArg, TellArg};
use crate::exit::{Exit, Failure, chain};
use crate::output;

/// Writes the default identity into `folder`; says whether anything is new.
pub(super) fn write(folder: &Path, context: &X509Context, access: &AccessArg) -> Result<bool, Failure> {
    let Some(svid) = context.svids.first() else { return Err(Failure::failed("the agent gave no identity")) };
    let bundle = context.bundles.get(&svid.id().trust_domain());
    let bundle = bundle.ok_or_else(|| Failure::failed("the agent gave no bundle"))?;
    let mut contents = files::pem_files(&Names::default(), svid, bundle);
    let access_of = Access { owner: access.owner.clone(), group: access.group.clone(), mode: access.mode.clone() };
    if let Some(problem) = access_of.problem() {
        return Err(Failure::new(Exit::Usage, problem));
    }
    // A PKCS#12 file differs each time by its salts, so the rest says whether anything is new.
    let same = files::shows(folder, &contents);
    if let Some(file) = access.pkcs12_password_file.as_ref().filter(|_| !same) {
        let password = std::fs::read_to_string(file).map_err(|error| {
            Failure::new(Exit::Data, format!("{}: the password cannot be read: {error}", file.display()))
        })?;
        let password = password.lines().next().unwrap_or_default();
        let made = files::pkcs12_file("svid.p12", svid, bundle, password);
        contents.push(made.map_err(|error| Failure::failed(error.to_string()))?);
    }
    if same {
        return Ok(false);
    }
    files::write(folder, &contents, &access_of)
        .map_err(|error| Failure::refused(Exit::Failed, error.reason(), chain(&error)))?;
    let names: Vec<&str> = contents.iter().map(|content| content.name.as_str()).collect();
    output::message(&format!("wrote {} to {}", names.join(", "), folder.display()));
    Ok(true)
}

/// Tells whoever is to be told; a failure is a message, for the files are there and the next change tells again.
pub(super) async fn tell(arg: &TellArg) {
    if arg.exec.is_empty() && arg.pid_file.is_none() {
        return;
    }
    let after = AfterChange { command: arg.exec.clone(), pid_file: arg.pid_file.clone(), signal: arg.signal.clone() };
    if let Err(error) = after.tell().await {
        output::message(&format!("nobody was told of the change: {} ({})", chain(&error), error.reason()));
    }
}
