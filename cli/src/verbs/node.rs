//! `kasbah node`: the machines whose agents have joined.

use proto::spire::api::types::Agent;
use serde_json::{Value, json};

use super::{ca, time_text, wait};
use crate::args::NodeCommand;
use crate::ca_client::id_text;
use crate::exit::Failure;
use crate::output;

pub(crate) fn run(command: &NodeCommand) -> Result<(), Failure> {
    wait(dispatch(command))
}

async fn dispatch(command: &NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List { ca: arg, output } => {
            let nodes = ca(arg).await?.list_nodes().await?;
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
        NodeCommand::Ban { ca: arg, id } => {
            ca(arg).await?.ban_node(id).await?;
            output::message(&format!("banned {id}: its agent is refused from now on"));
            Ok(())
        }
    }
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
        "selectors": node.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect::<Vec<_>>(),
    })
}

fn table(nodes: &[Agent]) -> String {
    let rows = nodes.iter().map(|node| {
        [
            id_text(node.id.as_ref()),
            node.attestation_type.clone(),
            node.x509svid_serial_number.clone(),
            time_text(node.x509svid_expires_at),
            if node.banned { "banned".to_owned() } else { "active".to_owned() },
        ]
    });
    output::table(["ID", "ATTESTATION", "SERIAL", "EXPIRES", "STATE"], rows)
}
