//! `kasbah token`: join tokens for node agents.

use serde_json::json;

use super::{ca, time_text, wait};
use crate::args::TokenCommand;
use crate::exit::Failure;
use crate::output;

pub(crate) fn run(command: &TokenCommand) -> Result<(), Failure> {
    let TokenCommand::Create { ca: ca_arg, spiffe_id, ttl, output } = command;
    let token = wait(async { ca(ca_arg).await?.create_join_token(spiffe_id.as_deref(), *ttl).await })?;
    let value = json!({"token": token.value, "expires_at": time_text(token.expires_at)});
    output::print(output.output, &value, || token.value.clone())
}
