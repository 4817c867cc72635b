//! `kasbah node`: the machines whose agents have joined.

use std::time::Duration;

use proto::spire::api::types::Agent;
use serde_json::{Value, json};

use super::{ca, time_text, wait};
use crate::args::{NodeCommand, NodeFilterArgs};
use crate::ca_client::{CaClient, NodeFilter, id_text};
use crate::exit::Failure;
use crate::output;

pub(crate) fn run(command: &NodeCommand) -> Result<(), Failure> {
    wait(dispatch(command))
}

async fn dispatch(command: &NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List { ca: arg, filter, output } => {
            let nodes = ca(arg).await?.list_nodes(&filter_of(filter)).await?;
            let value: Vec<Value> = nodes.iter().map(document).collect();
            output::print(output.output, &value, || table(&nodes))
        }
        NodeCommand::Show { ca: arg, id, output } => {
            let node = ca(arg).await?.node(id).await?;
            output::print(output.output, &document(&node), || table(std::slice::from_ref(&node)))
        }
        NodeCommand::Evict { ca: arg, id } => {
            ca(arg).await?.evict_node(id).await?;
            output::message(&format!("evicted {id}: its agent must attest again"));
            Ok(())
        }
        NodeCommand::Purge { ca: arg, expired_for, include_tofu, dry_run, output } => {
            let ca = ca(arg).await?;
            let nodes = purgeable(&ca, *expired_for, *include_tofu).await?;
            if !dry_run {
                for node in &nodes {
                    ca.evict_node(&id_text(node.id.as_ref())).await?;
                }
            }
            let value: Vec<Value> = nodes.iter().map(document).collect();
            output::print(output.output, &value, || table(&nodes))?;
            let word = if *dry_run { "would be forgotten" } else { "forgotten" };
            output::message(&format!("{} nodes {word}", nodes.len()));
            Ok(())
        }
        NodeCommand::Ban { ca: arg, id } => {
            ca(arg).await?.ban_node(id).await?;
            output::message(&format!("banned {id}: its agent is refused from now on"));
            Ok(())
        }
    }
}

fn filter_of(args: &NodeFilterArgs) -> NodeFilter<'_> {
    let now = args.expired.then(|| jiff::Timestamp::now().as_second());
    NodeFilter {
        attestation_type: args.attestation_type.as_deref(),
        selectors: &args.selectors,
        banned: args.banned,
        can_reattest: args.can_reattest,
        expires_before: args.expires_before.or(now),
    }
}

/// Nodes that ended long ago and whose name means nothing without new evidence. A used join token is worth nothing, so
/// its node goes too; a host that trusted on first use would be open to whoever comes first.
async fn purgeable(ca: &CaClient, expired_for: Duration, include_tofu: bool) -> Result<Vec<Agent>, Failure> {
    let ago = i64::try_from(expired_for.as_secs()).unwrap_or(i64::MAX);
    let before = jiff::Timestamp::now().as_second().saturating_sub(ago).max(1);
    let filter = NodeFilter { banned: Some(false), expires_before: Some(before), ..NodeFilter::default() };
    let mut nodes = ca.list_nodes(&filter).await?;
    nodes.retain(|node| include_tofu || node.can_reattest || node.attestation_type == "join_token");
    Ok(nodes)
}

fn document(node: &Agent) -> Value {
    json!({
        "id": id_text(node.id.as_ref()),
        "attestation_type": node.attestation_type,
        "serial": node.x509svid_serial_number,
        "expires_at": time_text(node.x509svid_expires_at),
        "banned": node.banned,
        "can_reattest": node.can_reattest,
        "agent_version": node.agent_version,
        "proxies": node.kasbah_configured.iter().map(|proxy| json!({
            "workload": proxy.workload,
            "configuration": proxy.versions,
        })).collect::<Vec<_>>(),
        "selectors": node.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect::<Vec<_>>(),
    })
}

fn state(node: &Agent) -> &'static str {
    match node.banned {
        true => "banned",
        false if node.x509svid_expires_at <= jiff::Timestamp::now().as_second() => "expired",
        false => "active",
    }
}

fn table(nodes: &[Agent]) -> String {
    let rows = nodes.iter().map(|node| {
        [
            id_text(node.id.as_ref()),
            node.attestation_type.clone(),
            node.x509svid_serial_number.clone(),
            time_text(node.x509svid_expires_at),
            state(node).to_owned(),
            if node.can_reattest { "by itself".to_owned() } else { "evict first".to_owned() },
        ]
    });
    output::table(["ID", "ATTESTATION", "SERIAL", "EXPIRES", "STATE", "COMES AGAIN"], rows)
}
