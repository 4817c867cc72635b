//! The receipt of a rotation: who acknowledged which bundle and when, who was not waited for and by whose decision, signed
//! with the key of the transparency log so that an auditor can keep it.

use runtime::clock::{from_unix_secs, rfc3339};
use serde_json::{Value, json};

use crate::certifier::Certifier;
use crate::refusal::Refusal;
use crate::store::{AuthorityKind, TakenStep};

/// A signed receipt.
#[derive(Debug)]
pub(crate) struct Receipt {
    /// JSON, exactly as it was signed.
    pub(crate) document: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    /// The key of the transparency log (SubjectPublicKeyInfo).
    pub(crate) log_key: Vec<u8>,
}

impl Certifier {
    /// The receipt of the newest rotation of a kind, or of the one that began at `started_at`; also of one that still runs.
    pub(crate) async fn receipt(&self, kind: AuthorityKind, started_at: i64) -> Result<Receipt, Refusal> {
        let steps = newest(self.store.rotation_steps(kind, started_at).await?);
        let first = steps.first().ok_or(Refusal::NoRotation)?;
        let document = json!({
            "type": TYPE,
            "trust_domain": self.trust_domain,
            "kind": kind.as_str(),
            "started_at": time(first.started_at),
            "result": if self.is_running(kind, first.started_at) { "under way" } else { result(&steps) },
            "steps": steps.iter().map(step).collect::<Vec<_>>(),
            "signed_at": rfc3339(self.now()),
        });
        let document = document.to_string().into_bytes();
        let key = &self.log.key;
        let signature = key.sign_statement(&document).map_err(|_| Refusal::Signing)?;
        Ok(Receipt { document, signature, log_key: key.public().spki_der().to_vec() })
    }

    fn is_running(&self, kind: AuthorityKind, started_at: i64) -> bool {
        let signing = self.authorities.current();
        signing.line(kind).running.as_ref().is_some_and(|running| running.started_at == started_at)
    }
}

/// The last of several rotations that began in the same second: an abort ends one.
fn newest(mut steps: Vec<TakenStep>) -> Vec<TakenStep> {
    let ended = steps.iter().rev().skip(1).position(|step| step.step == "abort");
    match ended {
        Some(after) => steps.split_off(steps.len() - 1 - after),
        None => steps,
    }
}

/// How a rotation ended.
fn result(steps: &[TakenStep]) -> &'static str {
    if steps.last().is_some_and(|step| step.step == "abort") { "aborted" } else { "done" }
}

fn step(step: &TakenStep) -> Value {
    let acknowledged = step
        .acknowledged
        .iter()
        .map(|one| json!({"node": one.node, "bundle_sequence": one.bundle_sequence, "since": time(one.since)}));
    json!({
        "step": step.step,
        "at": time(step.at),
        "by": step.actor,
        "target": step.target,
        "bundle_sequence": step.bundle_sequence,
        "acknowledged": acknowledged.collect::<Vec<_>>(),
        "waived": step.waived,
    })
}

fn time(secs: i64) -> String {
    rfc3339(from_unix_secs(secs))
}

/// What the document says that it is.
const TYPE: &str = "kasbah.rotation-receipt.v1";

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(steps: &[&str]) -> Vec<TakenStep> {
        let step = |step: &&str| TakenStep {
            kind: AuthorityKind::Root,
            started_at: 7,
            step: (*step).to_owned(),
            at: 7,
            actor: String::new(),
            target: String::new(),
            bundle_sequence: 0,
            acknowledged: Vec::new(),
            waived: Vec::new(),
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn of_rotations_that_began_in_one_second_the_last_counts() {
        let check = |steps: &[&str], expected: &[&str]| {
            let found: Vec<String> = newest(taken(steps)).into_iter().map(|step| step.step).collect();
            assert_eq!(found, expected, "{steps:?}");
        };
        check(&[], &[]);
        check(&["abort"], &["abort"]);
        check(&["prepare", "activate", "taint", "revoke"], &["prepare", "activate", "taint", "revoke"]);
        check(&["prepare", "abort"], &["prepare", "abort"]);
        check(&["prepare", "abort", "prepare"], &["prepare"]);
        check(&["prepare", "abort", "prepare", "abort"], &["prepare", "abort"]);
        check(&["prepare", "abort", "prepare", "abort", "prepare", "activate"], &["prepare", "activate"]);
    }
}
