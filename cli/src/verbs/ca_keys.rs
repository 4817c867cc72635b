//! `kasbah ca keys|import|csr|install`: keys and certificates of the authority that come from elsewhere.

use std::path::Path;

use ca::Settings;
use identity::import::{FILE_BYTES_MAX, Offer};
use identity::key::{KEY_FILE_BYTES_MAX, PrivateKey};
use proto::kasbah::ca::v1::{
    AdoptResponse, GetCustodyResponse, ImportAuthorityRequest, InstallCertificateRequest, KeptAuthority,
};
use serde_json::{Value, json};

use super::{ca, time_text, wait};
use crate::args::{CaCsrArgs, CaImportArgs, CaInstallArgs, CaKeysArgs, OutputArg, WayArgs};
use crate::exit::{Exit, Failure, chain};
use crate::output;

pub(crate) fn keys(args: &CaKeysArgs) -> Result<(), Failure> {
    let mut found = wait(async { ca(&args.ca).await?.custody().await })?;
    found.authorities.sort_by(|a, b| (&a.kind, a.not_before, &a.id).cmp(&(&b.kind, b.not_before, &b.id)));
    output::print(args.output.output, &document(&found), || text(&found))
}

pub(crate) fn import(args: &CaImportArgs) -> Result<(), Failure> {
    let passphrase = args.passphrase_file.as_deref().map(|path| read(path, KEY_FILE_BYTES_MAX)).transpose()?;
    let passphrase = passphrase.as_ref().map(|text| text.trim_ascii());
    let pem = read(&args.key, KEY_FILE_BYTES_MAX)?;
    let key = PrivateKey::from_pem(&pem, passphrase).map_err(|error| {
        Failure::refused(Exit::Data, error.reason(), format!("{}: {}", args.key.display(), chain(&error)))
            .remedy("give a key in PEM: PKCS#8, PKCS#1 or SEC1; an encrypted one with --passphrase-file FILE")
    })?;
    let (certificate, (chain, root)) = (read(&args.cert, FILE_BYTES_MAX)?, way(&args.way)?);
    let signs_lists = may_sign_lists(&certificate);
    let request = ImportAuthorityRequest { certificate, chain, root, private_key: key.pkcs8_der().to_vec() };
    let adopted = wait(async { ca(&args.ca).await?.import_authority(request).await })?;
    tell(args.output, &adopted, signs_lists)
}

pub(crate) fn csr(args: &CaCsrArgs) -> Result<(), Failure> {
    let csr = match &args.config {
        Some(file) => {
            let settings = settings(file)?;
            wait(async { ca::offline_csr(&settings, args.new_key).await.map_err(|e| failure(&e, e.reason())) })?
        }
        None => {
            let der = wait(async { ca(&args.ca).await?.make_csr(args.new_key).await })?;
            identity::pem::encode("CERTIFICATE REQUEST", &der)
        }
    };
    let Some(out) = &args.out else {
        output::line(csr.trim_end());
        return Ok(());
    };
    std::fs::write(out, csr)?;
    output::message(&format!("the CSR is in {}; have the root sign it, then run `kasbah ca install`", out.display()));
    Ok(())
}

pub(crate) fn install(args: &CaInstallArgs) -> Result<(), Failure> {
    let (certificate, (chain, root)) = (read(&args.cert, FILE_BYTES_MAX)?, way(&args.way)?);
    if let Some(file) = &args.config {
        let settings = settings(file)?;
        let offer = Offer { certificate: &certificate, chain: &chain, root: &root };
        let installed =
            wait(async { ca::offline_install(&settings, offer).await.map_err(|e| failure(&e, e.reason())) });
        let root_id = installed?;
        let value = json!({ "root_id": root_id, "signs": true });
        return output::print(args.output.output, &value, || {
            format!("installed below root {root_id}; start the authority")
        });
    }
    let signs_lists = may_sign_lists(&certificate);
    let request = InstallCertificateRequest { certificate, chain, root };
    let adopted = wait(async { ca(&args.ca).await?.install_certificate(request).await })?;
    tell(args.output, &adopted, signs_lists)
}

fn may_sign_lists(certificate: &[u8]) -> bool {
    let own = identity::pem::decode_certificates(certificate).ok().and_then(|all| all.into_iter().next());
    own.is_none_or(|own| identity::revocation::may_sign_lists(&own))
}

fn way(args: &WayArgs) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let optional =
        |path: &Option<std::path::PathBuf>| path.as_deref().map_or(Ok(Vec::new()), |p| read(p, FILE_BYTES_MAX));
    Ok((optional(&args.chain)?, optional(&args.root)?))
}

fn read(path: &Path, max: usize) -> Result<Vec<u8>, Failure> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::new(Exit::Data, format!("{} cannot be read: {error}", path.display())))?;
    if bytes.len() > max {
        return Err(Failure::new(Exit::Data, format!("{} is longer than {max} bytes", path.display())));
    }
    Ok(bytes)
}

fn settings(file: &Path) -> Result<Settings, Failure> {
    runtime::settings::load("ca", file)
        .map_err(|e| Failure::refused(Exit::Data, e.reason(), chain(&e)).remedy(format!("correct {}", file.display())))
}

fn failure(error: &dyn std::error::Error, reason: &str) -> Failure {
    let exit = if reason.starts_with("IMPORT_") { Exit::Data } else { Exit::Failed };
    Failure::refused(exit, reason, chain(error))
}

fn tell(output: OutputArg, adopted: &AdoptResponse, signs_lists: bool) -> Result<(), Failure> {
    let AdoptResponse { authority_id, root_id, signs } = adopted;
    if !signs_lists {
        output::message(NO_LISTS);
    }
    if !signs {
        output::message("the root is prepared; `kasbah ca rotate` moves over to it once every node knows it");
    }
    let value = json!({ "authority_id": authority_id, "root_id": root_id, "signs": signs });
    output::print(output.output, &value, || {
        let state = if *signs { "signs" } else { "prepared" };
        format!("{authority_id} {state}, root {root_id}")
    })
}

fn document(found: &GetCustodyResponse) -> Value {
    let authorities = found.authorities.iter().map(|one| {
        json!({
            "id": one.id, "kind": one.kind, "state": one.state, "place": one.place,
            "not_before": time_text(one.not_before), "not_after": time_text(one.not_after),
        })
    });
    json!({
        "keys": found.keys,
        "renewal": found.renewal,
        "remedy": found.remedy,
        "authorities": authorities.collect::<Vec<_>>(),
    })
}

fn text(found: &GetCustodyResponse) -> String {
    let row = |one: &KeptAuthority| {
        [one.kind.clone(), one.state.clone(), one.place.clone(), time_text(one.not_after), one.id.clone()]
    };
    let table = output::table(["KIND", "STATE", "KEY", "UNTIL", "ID"], found.authorities.iter().map(row));
    let remedy = if found.remedy.is_empty() { String::new() } else { format!("\n{}: {}", found.renewal, found.remedy) };
    format!("{table}{remedy}")
}

const NO_LISTS: &str = "its key usage lacks cRLSign: no revocation list is signed with it, so that nothing which it signs itself can be revoked; \
                        move on to one that may";
