//! How far a rotation is and who holds it up, for people and programs.

use super::machine::{Line, Step};
use crate::agent::Agent;
use crate::authorities::Signing;
use crate::certifier::Certifier;
use crate::rotation::contacts::Contact;
use crate::store::{AuthorityKind, StoreError};

/// The whole picture of one kind of authority.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) line: Line,
    pub(crate) bundle_sequence: u64,
    /// The bundle that the next step needs everywhere; the present one while nothing is under way.
    pub(crate) needed: u64,
    pub(crate) acknowledged: usize,
    pub(crate) total: usize,
    /// Nodes that are waited for.
    pub(crate) laggards: Vec<Laggard>,
    /// Until when something is in use that the tainted authority signed and that nobody can replace; 0: nothing is.
    pub(crate) in_use_until: i64,
}

/// A node that has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Laggard {
    pub(crate) id: String,
    pub(crate) enforced: u64,
    /// Unix seconds.
    pub(crate) since: i64,
    /// Unix seconds.
    pub(crate) last_contact: i64,
    pub(crate) reason: &'static str,
    pub(crate) waiting_for: Vec<String>,
}

impl Report {
    /// The step that leads on, as a word.
    pub(crate) fn next_step(&self) -> &'static str {
        match self.line.next() {
            Some(Step::Activate(_)) => "activate",
            Some(Step::Taint(_)) => "taint",
            Some(Step::Revoke(_)) => "revoke",
            _ => "prepare",
        }
    }

    /// Whether the next step would be taken.
    pub(crate) fn is_safe(&self) -> bool {
        self.line.next().is_none() || self.laggards.is_empty()
    }
}

impl Certifier {
    /// Where the rotation of a kind stands, as the database has it.
    pub(crate) async fn rotation(&self, kind: AuthorityKind) -> Result<Report, StoreError> {
        let now = self.now_secs();
        let agents = self.store.agents_now().await?;
        let signing = self.authorities.current();
        let running = signing.line(kind).running.as_ref();
        let in_use_until = match running.filter(|_| kind.signs_tokens()) {
            Some(running) => self.store.in_use_until(&running.old, now).await?,
            None => 0,
        };
        let counted: Vec<Agent> = agents.into_iter().filter(|agent| agent.counts(now)).collect();
        Ok(report(&signing, kind, &counted, in_use_until, |agent| (self.contacts.of(&agent.id), now)))
    }
}

fn report(
    signing: &Signing,
    kind: AuthorityKind,
    counted: &[Agent],
    in_use_until: i64,
    contact: impl Fn(&Agent) -> (Contact, i64),
) -> Report {
    let line = signing.line(kind).clone();
    let bundle_sequence = signing.bundle.sequence;
    let needed = line.next().map_or(bundle_sequence, |step| line.needed(&step));
    let behind = || counted.iter().filter(|agent| agent.bundle_sequence < needed);
    let waited_for = behind().filter(|agent| !line.waived.contains(agent.id.as_str()));
    let laggards = waited_for.map(|agent| {
        let (contact, now) = contact(agent);
        laggard(agent, &contact, needed, now)
    });
    Report {
        laggards: laggards.collect(),
        acknowledged: counted.len() - behind().count(),
        total: counted.len(),
        line,
        bundle_sequence,
        needed,
        in_use_until,
    }
}

fn laggard(agent: &Agent, contact: &Contact, needed: u64, now: i64) -> Laggard {
    let last_contact = contact.seen_at.max(agent.seen_at).max(agent.attested_at);
    let reason = if now - last_contact > OFFLINE_SECS {
        "NODE_OFFLINE"
    } else if contact.fetched < needed {
        "BUNDLE_NOT_FETCHED"
    } else if !contact.reports && agent.bundle_sequence == 0 {
        "NODE_REPORTS_NOTHING"
    } else if contact.waiting_for.is_empty() {
        "SVID_NOT_REISSUED"
    } else {
        "WORKLOAD_NOT_ACKNOWLEDGED"
    };
    Laggard {
        id: agent.id.to_string(),
        enforced: agent.bundle_sequence,
        since: agent.bundle_since.max(agent.attested_at),
        last_contact,
        reason,
        waiting_for: contact.waiting_for.clone(),
    }
}

/// Agents call every few seconds: who was silent for so long is away.
const OFFLINE_SECS: i64 = 15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agent;

    #[test]
    fn a_laggard_is_told_with_its_reason() {
        let node = Agent { bundle_sequence: 4, ..agent("/spire/agent/join_token/a") };
        let check = |seen_at, fetched, waiting: &[&str], reason| {
            let waiting_for = waiting.iter().map(ToString::to_string).collect();
            let contact = Contact { seen_at, fetched, waiting_for, reports: true, ..Contact::default() };
            assert_eq!(laggard(&node, &contact, 5, 1_000).reason, reason);
        };
        check(900, 5, &["x"], "NODE_OFFLINE");
        check(999, 4, &[], "BUNDLE_NOT_FETCHED");
        check(999, 5, &["spiffe://example.org/cart"], "WORKLOAD_NOT_ACKNOWLEDGED");
        check(999, 5, &[], "SVID_NOT_REISSUED");
    }

    /// An agent of SPIRE fetches bundles and never says more: its rotation seemed to wait for an SVID.
    #[test]
    fn a_laggard_that_never_reports_is_told_apart() {
        let silent = Agent { bundle_sequence: 0, ..agent("/spire/agent/join_token/a") };
        let fetched = |fetched| Contact { seen_at: 999, fetched, ..Contact::default() };
        assert_eq!(laggard(&silent, &fetched(4), 5, 1_000).reason, "BUNDLE_NOT_FETCHED");
        assert_eq!(laggard(&silent, &fetched(5), 5, 1_000).reason, "NODE_REPORTS_NOTHING");
        let reported = Agent { bundle_sequence: 4, ..silent };
        assert_eq!(laggard(&reported, &fetched(5), 5, 1_000).reason, "SVID_NOT_REISSUED");
    }
}
