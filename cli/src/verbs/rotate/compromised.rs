//! `kasbah ca rotate --compromised`: the same steps in the same order, but none waits longer than the grace time; those who
//! lag then are waived, and what breaks is said first.

use std::time::Duration;

use proto::kasbah::ca::v1::{Kind, StatusResponse};
use tokio::time::Instant;

use super::{IDLE, laggard, plan};
use crate::ca_client::CaClient;
use crate::exit::Failure;
use crate::output;

/// Says what will break.
pub(super) async fn warn(client: &CaClient, kind: Kind, grace: Duration) -> Result<(), Failure> {
    let status = client.rotation(kind).await?;
    let grace = output::duration(grace);
    output::message(&format!(
        "each step waits {grace} for {} nodes and then goes on without those who lag:",
        status.total
    ));
    for one in &status.laggards {
        output::message(&format!("  {}: {}", laggard(one), plan::breaks(client, &one.id).await?));
    }
    if status.laggards.is_empty() {
        output::message("  nobody lags now; who is away when its turn comes must join again");
    }
    if kind != Kind::X509 {
        output::message("  tokens of the old key are refused as soon as it is dropped, though they have not ended");
    }
    Ok(())
}

/// How long a step may still wait.
pub(super) struct Patience {
    grace: Option<Duration>,
    phase: String,
    until: Instant,
}

impl Patience {
    /// Endless without a grace time.
    pub(super) fn new(grace: Option<Duration>) -> Self {
        Self { grace, phase: String::new(), until: Instant::now() }
    }

    /// Waives the laggards of a step whose time is over.
    pub(super) async fn lose(&mut self, client: &CaClient, kind: Kind, status: &StatusResponse) -> Result<(), Failure> {
        let Some(grace) = self.grace else { return Ok(()) };
        if self.phase != status.phase {
            self.phase.clone_from(&status.phase);
            self.until = Instant::now() + grace;
        }
        if Instant::now() < self.until || status.phase == IDLE {
            return Ok(());
        }
        for one in &status.laggards {
            output::message(&format!("going on without {}", laggard(one)));
            client.waive_node(kind, &one.id).await?;
        }
        if status.in_use_until > 0 {
            // By itself the server waits for the last token to end.
            client.revoke_authority(kind, status.old_id.clone()).await?;
        }
        Ok(())
    }
}
