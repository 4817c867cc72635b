//! `kasbah ca rotate`: a whole rotation, or one step of it.

mod compromised;
mod plan;
mod receipt;

use std::time::Duration;

use proto::kasbah::ca::v1::{Kind, Laggard, StatusResponse};
use serde_json::{Value, json};

use super::{ca, confirm, time_text, wait};
use crate::args::{RotateArgs, RotateKind, RotateStep};
use crate::ca_client::CaClient;
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn run(args: &RotateArgs) -> Result<(), Failure> {
    wait(dispatch(args))
}

async fn dispatch(args: &RotateArgs) -> Result<(), Failure> {
    if let Some(misfit) = args.misfit() {
        return Err(Failure::new(Exit::Usage, misfit).remedy("see the examples in `kasbah ca rotate --help`"));
    }
    if args.step == Some(RotateStep::Receipt)
        && let Some(file) = &args.verify
    {
        return receipt::verify(file, args.output);
    }
    let client = ca(&args.ca).await?;
    let kind = match args.kind {
        RotateKind::X509 => Kind::X509,
        RotateKind::Jwt => Kind::Jwt,
        RotateKind::Wit => Kind::Wit,
    };
    let status = match args.step {
        None if args.plan => return plan::print(&client, kind, args.output).await,
        None => whole(args, &client, kind).await?,
        Some(RotateStep::Receipt) => return receipt::print(&client, kind, args.output).await,
        Some(RotateStep::Status) => client.rotation(kind).await?,
        Some(step) => {
            waive(args, &client, kind).await?;
            take(args, &client, kind, step).await?
        }
    };
    output::print(args.output.output, &document(&status), || text(&status))
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::X509 => "x509",
        Kind::Jwt => "jwt",
        Kind::Wit => "wit",
    }
}

async fn take(args: &RotateArgs, client: &CaClient, kind: Kind, step: RotateStep) -> Result<StatusResponse, Failure> {
    let before = client.rotation(kind).await?;
    let chosen = |states: &[&str]| {
        let found = before.authorities.iter().rev().find(|authority| states.contains(&authority.state.as_str()));
        args.authority.clone().or_else(|| found.map(|authority| authority.id.clone()))
    };
    let replaced = |states: &[&str]| {
        let old = before.authorities.iter().find(|authority| authority.id == before.old_id);
        let old = old.filter(|authority| states.contains(&authority.state.as_str()));
        args.authority.clone().or_else(|| old.map(|old| old.id.clone())).or_else(|| chosen(states))
    };
    let nothing =
        |what: &str| Failure::failed(format!("there is no {what} authority")).remedy("see `kasbah ca rotate status`");
    let taken = match step {
        RotateStep::Prepare => client.prepare_authority(kind).await,
        RotateStep::Activate => {
            client.activate_authority(kind, chosen(&["prepared"]).ok_or_else(|| nothing("prepared"))?).await
        }
        RotateStep::Taint => client.taint_authority(kind, replaced(&["old"]).ok_or_else(|| nothing("old"))?).await,
        RotateStep::Revoke => {
            client.revoke_authority(kind, replaced(&["tainted"]).ok_or_else(|| nothing("tainted"))?).await
        }
        RotateStep::Abort => client.abort_rotation(kind).await.map(drop),
        RotateStep::Status | RotateStep::Receipt => Ok(()),
    };
    if let Err(failure) = taken {
        return Err(explained(client, kind, failure).await);
    }
    client.rotation(kind).await
}

/// A refusal together with those whom the step waits for.
async fn explained(client: &CaClient, kind: Kind, failure: Failure) -> Failure {
    match client.rotation(kind).await {
        Ok(status) if failure.exit == Exit::Failed && !status.laggards.is_empty() => failure
            .and(&status.laggards.iter().map(|one| format!("\n  {}", laggard(one))).collect::<String>())
            .remedy("wait for them, mend them, or go on without one by --waive NAME"),
        _ => failure,
    }
}

async fn waive(args: &RotateArgs, client: &CaClient, kind: Kind) -> Result<(), Failure> {
    for name in &args.waive {
        let nodes = client.list_nodes(&crate::ca_client::NodeFilter::default()).await?;
        let ids = nodes.iter().map(|node| crate::ca_client::id_text(node.id.as_ref()));
        let ending = format!("/{name}");
        let found: Vec<String> = ids.filter(|id| id == name || id.ends_with(&ending)).collect();
        match found.as_slice() {
            [id] => drop(client.waive_node(kind, id).await?),
            [] => return Err(Failure::failed(format!("no node is called {name}")).remedy("see `kasbah node list`")),
            _ => {
                return Err(Failure::new(Exit::Usage, format!("{name} is the end of {} nodes' IDs", found.len()))
                    .remedy("give the whole SPIFFE ID"));
            }
        }
        output::message(&format!("going on without {name}"));
    }
    Ok(())
}

/// Has the server run a rotation to its end, and watches.
async fn whole(args: &RotateArgs, client: &CaClient, kind: Kind) -> Result<StatusResponse, Failure> {
    let before = client.rotation(kind).await?;
    if before.phase == IDLE {
        if args.compromised {
            compromised::warn(client, kind, args.grace).await?;
        }
        if !args.yes {
            confirm(&question(args, &before))?;
        }
        client.start_rotation(kind, args.compromised).await?;
    } else {
        output::message(&format!("a rotation is under way ({}); going on with it", before.phase));
        client.resume_rotation(kind).await?;
    }
    waive(args, client, kind).await?;
    let until = tokio::time::Instant::now() + args.wait;
    let mut told = String::new();
    let mut patience = compromised::Patience::new(args.compromised.then_some(args.grace));
    loop {
        let status = client.rotation(kind).await?;
        patience.lose(client, kind, &status).await?;
        let line = progress(&status);
        if line != told {
            output::message(&line);
            told = line;
        }
        if status.phase == IDLE {
            output::message("receipt: `kasbah ca rotate receipt -o json` (signed; keep it for the auditor)");
            return Ok(status);
        }
        if tokio::time::Instant::now() > until {
            let who = status.laggards.iter().map(|one| format!("\n  {}", laggard(one))).collect::<String>();
            return Err(Failure::failed(format!("the rotation is not at its end yet ({}){who}", status.phase)).remedy(
                "the server goes on by itself: see `kasbah ca rotate status`, waive a node by --waive NAME, or `kasbah ca rotate abort`",
            ));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The question before the whole.
fn question(args: &RotateArgs, before: &StatusResponse) -> String {
    let what = match args.kind {
        RotateKind::X509 => "root",
        RotateKind::Jwt => "JWT key",
        RotateKind::Wit => "WIT key",
    };
    format!("this replaces the {what} of the whole trust domain, on {} nodes; go on?", before.total)
}

fn progress(status: &StatusResponse) -> String {
    let waiting = match status.laggards.as_slice() {
        _ if status.phase == IDLE => "the old authority is gone everywhere".to_owned(),
        [] if status.phase == "tainted" && status.in_use_until > 0 => {
            format!("tokens of the old key are in use until {}", time_text(status.in_use_until))
        }
        laggards => {
            let names: Vec<String> = laggards.iter().take(NAMED_MAX).map(laggard).collect();
            let done = format!("{} of {} nodes have acknowledged", status.acknowledged, status.total);
            if names.is_empty() { done } else { format!("{done}; waiting for {}", names.join(", ")) }
        }
    };
    let phase = if status.phase == IDLE { "done" } else { status.phase.as_str() };
    format!("{phase}: {waiting}")
}

fn laggard(laggard: &Laggard) -> String {
    let mut text = format!("{} ({}", laggard.id, laggard.reason);
    match laggard.reason.as_str() {
        "NODE_OFFLINE" => text.push_str(&format!(", last heard {}", time_text(laggard.last_contact))),
        _ if !laggard.waiting_for.is_empty() => text.push_str(&format!(": {}", laggard.waiting_for.join(", "))),
        _ => (),
    }
    text + ")"
}

fn document(status: &StatusResponse) -> Value {
    let time = |secs: i64| (secs > 0).then(|| time_text(secs));
    let authorities = status.authorities.iter().map(|authority| {
        json!({
            "id": authority.id,
            "state": authority.state,
            "not_before": time(authority.not_before),
            "not_after": time(authority.not_after),
            "published": authority.published,
        })
    });
    let laggards = status.laggards.iter().map(|laggard| {
        json!({
            "id": laggard.id,
            "enforced": laggard.enforced,
            "since": time(laggard.since),
            "last_contact": time(laggard.last_contact),
            "reason": laggard.reason,
            "waiting_for": laggard.waiting_for,
        })
    });
    json!({
        "kind": kind_name(status.kind()),
        "phase": status.phase,
        "mode": status.mode,
        "next_step": status.next_step,
        "safe_to_proceed": status.safe_to_proceed,
        "authorities": authorities.collect::<Vec<_>>(),
        "bundle_sequence": status.bundle_sequence,
        "bundle_sequence_needed": status.bundle_sequence_needed,
        "acknowledged": status.acknowledged,
        "total": status.total,
        "laggards": laggards.collect::<Vec<_>>(),
        "waived": status.waived,
        "started_at": time(status.started_at),
        "in_use_until": time(status.in_use_until),
    })
}

fn text(status: &StatusResponse) -> String {
    let rows = status.authorities.iter().map(|authority| {
        [authority.id.clone(), authority.state.clone(), time_text(authority.not_after), authority.published.to_string()]
    });
    let mut text = output::table(["AUTHORITY", "STATE", "EXPIRES", "SINCE BUNDLE"], rows);
    let next = if status.safe_to_proceed { "safe" } else { "not yet safe" };
    text.push_str(&format!(
        "\n\nphase {}, {} of {} nodes have acknowledged bundle {}; next step: {} ({next})",
        status.phase, status.acknowledged, status.total, status.bundle_sequence_needed, status.next_step
    ));
    for one in &status.laggards {
        text.push_str(&format!("\nwaiting for {}", laggard(one)));
    }
    for id in &status.waived {
        text.push_str(&format!("\nwaived: {id}"));
    }
    text
}

const IDLE: &str = "idle";
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const NAMED_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> StatusResponse {
        let laggard = Laggard {
            id: "spiffe://td/spire/agent/join_token/a".into(),
            reason: "WORKLOAD_NOT_ACKNOWLEDGED".into(),
            waiting_for: vec!["spiffe://td/cart (process 7)".into()],
            ..Laggard::default()
        };
        StatusResponse {
            phase: "prepared".into(),
            next_step: "activate".into(),
            acknowledged: 1,
            total: 2,
            laggards: vec![laggard],
            ..StatusResponse::default()
        }
    }

    #[test]
    fn the_document_has_the_promised_members() {
        let document = document(&status());
        for member in ["phase", "authorities", "acknowledged", "total", "laggards", "safe_to_proceed"] {
            assert!(document.get(member).is_some(), "{member} in {document}");
        }
        assert_eq!(document["laggards"][0]["reason"], "WORKLOAD_NOT_ACKNOWLEDGED");
    }

    #[test]
    fn progress_names_whom_it_waits_for() {
        let line = progress(&status());
        assert!(line.contains("1 of 2 nodes") && line.contains("spiffe://td/cart (process 7)"), "{line}");
        let idle = StatusResponse { phase: IDLE.into(), ..status() };
        assert!(progress(&idle).starts_with("done: "));
    }
}
