//! `kasbah cert revoke` and `kasbah cert revocations`: SVIDs that end before their time.

use std::path::Path;

use identity::revocation::RevocationReason;
use identity::summary::CertificateSummary;
use proto::kasbah::ca::v1::revocation_client::RevocationClient;
use proto::kasbah::ca::v1::revocation_target::Target;
use proto::kasbah::ca::v1::{
    ListRevocationsRequest, ListRevocationsResponse, PreviewRequest, PreviewResponse, RevocationItem, RevocationTarget,
    RevokeRequest, RevokeResponse,
};
use serde_json::{Value, json};

use super::{ca, confirm, time_text, wait};
use crate::args::{RevocationsCommand, RevokeArgs};
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn run(args: &RevokeArgs) -> Result<(), Failure> {
    let target = target(args)?;
    wait(async {
        let mut client = RevocationClient::new(ca(&args.ca).await?.channel());
        let target = Some(RevocationTarget { target: Some(target) });
        if !args.yes {
            let preview = client.preview(PreviewRequest { target: target.clone() }).await?.into_inner();
            output::message(&preview_text(&preview));
            confirm("revoke?")?;
        }
        let request = RevokeRequest { target, reason: args.reason.code().into() };
        let done = client.revoke(request).await?.into_inner();
        tell(&done);
        output::print(args.output.output, &outcome(&done), || summary(&done))
    })
}

pub(crate) fn list(command: &RevocationsCommand) -> Result<(), Failure> {
    let RevocationsCommand::List { spiffe_id, limit, ca: arg, output } = command;
    wait(async {
        let mut client = RevocationClient::new(ca(arg).await?.channel());
        let request = ListRevocationsRequest { limit: *limit, spiffe_id: spiffe_id.clone().unwrap_or_default() };
        let found = client.list_revocations(request).await?.into_inner();
        output::print(output.output, &listed(&found), || table(&found))
    })
}

fn target(args: &RevokeArgs) -> Result<Target, Failure> {
    if let Some(id) = &args.spiffe_id {
        return Ok(Target::SpiffeId(id.clone()));
    }
    if let Some(id) = &args.entry {
        return Ok(Target::EntryId(id.clone()));
    }
    if let Some(id) = &args.node {
        return Ok(Target::NodeId(id.clone()));
    }
    // The options are a group of which one is required.
    let what = args.what.clone().unwrap_or_default();
    if Path::new(&what).is_file() { serial_in(Path::new(&what)).map(Target::Serial) } else { Ok(Target::Serial(what)) }
}

/// The serial number of the first certificate in a file, or the hash of the token in it. The token itself stays here.
fn serial_in(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read(file)
        .map_err(|error| Failure::new(Exit::Data, format!("{} cannot be read: {error}", file.display())))?;
    if let Ok(chain) = identity::pem::decode_certificates(&text)
        && let Some(leaf) = chain.first()
    {
        let unread = |_| Failure::new(Exit::Data, format!("{}: the certificate cannot be read", file.display()));
        return Ok(CertificateSummary::decode(leaf).map_err(unread)?.serial);
    }
    let text = String::from_utf8_lossy(&text);
    let token = text.trim();
    if token.split('.').count() == 3 && !token.contains(char::is_whitespace) {
        return Ok(identity::digest::hex(&identity::digest::sha256(token.as_bytes())));
    }
    Err(Failure::new(Exit::Data, format!("{} holds neither a certificate nor a token", file.display()))
        .remedy("give a PEM file, a file with a JWT-SVID or WIT-SVID, or a serial number"))
}

fn preview_text(preview: &PreviewResponse) -> String {
    let svids = if preview.total == 1 { "SVID" } else { "SVIDs" };
    let mut text = format!("{} {svids} would be revoked", preview.total);
    if preview.already > 0 {
        text.push_str(&format!(", already revoked: {}", preview.already));
    }
    let block = |title: &str, lines: &[String]| match lines {
        [] => String::new(),
        lines => format!("\n{title}:\n  {}", lines.join("\n  ")),
    };
    text.push_str(&block("identities", &preview.spiffe_ids));
    let items: Vec<String> = preview.items.iter().map(item_line).collect();
    text.push_str(&block("SVIDs (the first of them)", &items));
    text.push_str(&block("entries that would issue these identities again", &preview.entries));
    text.push_str(&block("nodes that would ask them to", &preview.nodes));
    text
}

fn item_line(item: &RevocationItem) -> String {
    let revoked = if item.revoked_at > 0 { ", revoked" } else { "" };
    format!("{} {} until {}{revoked}", item.serial, item.spiffe_id, time_text(item.not_after))
}

fn tell(done: &RevokeResponse) {
    match (done.revoked, done.already) {
        (0, 0) if done.source_ended => output::message("it issues no more; nothing of it was live"),
        (0, 0) => output::message("nothing of it was live"),
        (0, already) => output::message(&format!("revoked already ({already}); nothing was changed")),
        _ if done.crl_number == 0 => {
            output::message("revoked and stored; the lists are not signed yet, the CA goes on trying");
        }
        _ => (),
    }
}

fn summary(done: &RevokeResponse) -> String {
    let ended = if done.source_ended { "yes" } else { "no" };
    let row = [done.revoked.to_string(), done.already.to_string(), ended.to_owned(), done.crl_number.to_string()];
    output::table(["REVOKED", "BEFORE", "SOURCE ENDED", "CRL NUMBER"], [row])
}

fn outcome(done: &RevokeResponse) -> Value {
    json!({
        "revoked": done.revoked,
        "already_revoked": done.already,
        "source_ended": done.source_ended,
        "crl_number": done.crl_number,
    })
}

fn listed(found: &ListRevocationsResponse) -> Value {
    let items = found.items.iter().map(|item| {
        json!({
            "serial": item.serial,
            "kind": item.kind,
            "spiffe_id": item.spiffe_id,
            "entry_id": item.entry_id,
            "caller": item.caller,
            "authority_id": item.authority_id,
            "reason": reason_name(item.reason),
            "revoked_at": time_text(item.revoked_at),
            "not_after": time_text(item.not_after),
            "target": item.target,
        })
    });
    json!({
        "crl_number": found.crl_number,
        "nodes_enforcing": found.enforced,
        "nodes": found.nodes,
        "revocations": items.collect::<Vec<_>>(),
    })
}

fn table(found: &ListRevocationsResponse) -> String {
    let rows = found.items.iter().map(|item| {
        [
            item.serial.clone(),
            item.kind.clone(),
            item.spiffe_id.clone(),
            reason_name(item.reason).to_owned(),
            time_text(item.revoked_at),
            time_text(item.not_after),
        ]
    });
    let table = output::table(["SERIAL", "KIND", "SPIFFE ID", "REASON", "REVOKED", "WOULD EXPIRE"], rows);
    format!("{table}\n\nlists of number {}, enforced by {} of {} nodes", found.crl_number, found.enforced, found.nodes)
}

fn reason_name(code: u32) -> &'static str {
    u8::try_from(code).ok().and_then(RevocationReason::from_code).map_or("unknown", RevocationReason::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |content: &str| {
            let file = dir.path().join("f");
            std::fs::write(&file, content).unwrap();
            serial_in(&file).map_err(|failure| failure.exit)
        };
        let hash = identity::digest::hex(&identity::digest::sha256(b"a.b.c"));
        assert_eq!(file("a.b.c\n"), Ok(hash));
        assert_eq!(file("neither"), Err(Exit::Data));
        assert_eq!(file("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), Err(Exit::Data));
    }

    #[test]
    fn the_preview_says_what_is_hit_and_what_comes_back() {
        let preview = PreviewResponse {
            total: 2,
            already: 1,
            spiffe_ids: vec!["spiffe://td/cart".into()],
            entries: vec!["e1".into()],
            nodes: vec!["spiffe://td/spire/agent/join_token/a".into()],
            ..PreviewResponse::default()
        };
        let text = preview_text(&preview);
        for part in ["2 SVIDs", "already revoked: 1", "spiffe://td/cart", "e1", "join_token/a"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
