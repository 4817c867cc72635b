//! `kasbah ca rotate --plan`: what a rotation would do, what each step waits for, and what is at risk. Changes nothing.

use proto::kasbah::ca::v1::{Kind, StatusResponse};
use serde_json::{Value, json};

use super::{IDLE, kind_name, laggard};
use crate::args::OutputArg;
use crate::ca_client::{CaClient, EntryFilter, NodeFilter, id_text};
use crate::exit::Failure;
use crate::output;
use crate::verbs::time_text;

/// A step to come.
struct Step {
    name: &'static str,
    does: &'static str,
    waits_for: String,
}

pub(super) async fn print(client: &CaClient, kind: Kind, output: OutputArg) -> Result<(), Failure> {
    let status = client.rotation(kind).await?;
    let steps = steps(&status, kind);
    let risks = risks(client, &status, kind).await?;
    let document = json!({
        "kind": kind_name(kind),
        "phase": status.phase,
        "nodes": status.total,
        "steps": steps.iter().map(|step| json!({"step": step.name, "does": step.does, "waits_for": step.waits_for})).collect::<Vec<Value>>(),
        "risks": risks,
        "safe": risks.is_empty(),
    });
    output::print(output.output, &document, || text(&status, kind, &steps, &risks))
}

fn steps(status: &StatusResponse, kind: Kind) -> Vec<Step> {
    let nodes = format!("{} nodes to enforce the bundle of the step before", status.total);
    let reissued = match kind {
        Kind::X509 => format!("{} nodes to present nothing any more that the old one signed", status.total),
        Kind::Jwt | Kind::Wit => format!("{nodes}, and the last token of the old key to end"),
    };
    let all = [
        ("prepare", "publish a new authority, which signs nothing yet", "nobody".to_owned()),
        ("activate", "let it sign", nodes.clone()),
        ("taint", "have everything replaced that the old one signed", nodes),
        ("revoke", "drop the old one from the bundle", reissued),
    ];
    let done = ["idle", "prepared", "activated", "tainted"].iter().position(|phase| *phase == status.phase);
    let steps = all.into_iter().skip(done.unwrap_or(0));
    steps.map(|(name, does, waits_for)| Step { name, does, waits_for }).collect()
}

/// What would hold the rotation up, or suffer from it.
async fn risks(client: &CaClient, status: &StatusResponse, kind: Kind) -> Result<Vec<String>, Failure> {
    let mut risks = Vec::new();
    for one in &status.laggards {
        let breaks = breaks(client, &one.id).await?;
        risks.push(format!("{} holds it up; if forced: {breaks}", laggard(one)));
    }
    let now = jiff::Timestamp::now().as_second();
    for node in client.list_nodes(&NodeFilter::default()).await? {
        if node.x509svid_expires_at > 0 && node.x509svid_expires_at <= now {
            let id = id_text(node.id.as_ref());
            risks.push(format!(
                "{id} has been away since before {} and must join again",
                time_text(node.x509svid_expires_at)
            ));
        }
    }
    let old = status.authorities.iter().filter(|authority| ["old", "tainted"].contains(&authority.state.as_str()));
    risks.extend(old.map(|old| format!("{} ({}) is still trusted from an earlier rotation", old.id, old.state)));
    if kind == Kind::X509 {
        let entries = client.list_entries(&EntryFilter::default()).await?;
        let federated = entries.iter().filter(|entry| !entry.federates_with.is_empty()).count();
        if federated > 0 {
            risks.push(format!("{federated} entries federate: their partners learn the new root at the next poll of the bundle endpoint"));
        }
    }
    Ok(risks)
}

/// What a node that is not waited for would lose.
pub(super) async fn breaks(client: &CaClient, node: &str) -> Result<String, Failure> {
    let entries = client.list_entries(&EntryFilter { parent_id: Some(node), ..EntryFilter::default() }).await?;
    Ok(match entries.len() {
        0 => "its workloads are refused by those that know only the new authority, and refuse them".to_owned(),
        count => {
            format!("its {count} identities are refused by those that know only the new authority, and refuse them")
        }
    })
}

fn text(status: &StatusResponse, kind: Kind, steps: &[Step], risks: &[String]) -> String {
    let phase = if status.phase == IDLE { "none is under way".to_owned() } else { format!("one is {}", status.phase) };
    let mut text = format!("rotation of {}, {} nodes; {phase}\n\n", kind_name(kind), status.total);
    let rows = steps.iter().map(|step| [step.name.to_owned(), step.does.to_owned(), step.waits_for.clone()]);
    text.push_str(&output::table(["STEP", "DOES", "WAITS FOR"], rows));
    text.push_str("\n\neach step can be undone by `kasbah ca rotate abort` until the last");
    if risks.is_empty() {
        text.push_str("\nnothing is at risk");
    }
    for risk in risks {
        text.push_str(&format!("\nat risk: {risk}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_of_a_running_rotation_has_what_is_left() {
        let names = |phase: &str| {
            let status = StatusResponse { phase: phase.into(), total: 3, ..StatusResponse::default() };
            steps(&status, Kind::Jwt).iter().map(|step| step.name).collect::<Vec<_>>()
        };
        assert_eq!(names("idle"), ["prepare", "activate", "taint", "revoke"]);
        assert_eq!(names("tainted"), ["revoke"]);
    }
}
