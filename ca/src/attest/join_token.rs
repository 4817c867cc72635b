//! `join_token`: the payload is the token. It is used up where the node is admitted, in the same transaction.

use std::collections::BTreeSet;

use identity::spiffe_id::{SpiffeId, TrustDomain};

use super::{AttestError, Attested, JoinToken, World};
use crate::refusal::Refusal;

pub(super) fn attest(payload: &[u8], world: &World<'_>) -> Result<Attested, AttestError> {
    let token = std::str::from_utf8(payload).map_err(|_| AttestError::JoinTokenUnknown)?;
    let id = token_agent_id(world.trust_domain, token).map_err(|_| AttestError::JoinTokenUnknown)?;
    let token = Some(JoinToken(token.to_owned()));
    Ok(Attested { id, kind: NAME, selectors: BTreeSet::new(), can_reattest: false, token })
}

/// `/spire/agent/join_token/TOKEN`; the token must be one segment of a path.
pub(crate) fn token_agent_id(domain: &TrustDomain, token: &str) -> Result<SpiffeId, Refusal> {
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::JoinTokenInvalid("is empty or too long"));
    }
    let refused = Refusal::JoinTokenInvalid("may hold letters, digits, dash, dot and underscore only");
    if token.contains('/') {
        return Err(refused);
    }
    domain.with_path(&format!("{}{NAME}/{token}", crate::api::AGENT_PATH)).map_err(|_| refused)
}

pub(super) const NAME: &str = "join_token";
/// The longest join token.
const TOKEN_BYTES_MAX: usize = 255;
