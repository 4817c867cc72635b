//! What the open mesh connections rest on: the root above our own certificate and the one above the peer's.
//!
//! A connection cannot change its certificates (TLS 1.3 has new keys for it, never a new identity), so one that is to rest on
//! another root has to be opened anew. When our own SVID comes from another root than the one before, that one is on its way
//! out: whatever rests on it is left, and until it is gone the agent is told so, which keeps the last step of the rotation
//! back. A root that our own SVID never came from is none of this: two roots may be in use side by side for years.
//!
//! Peers get theirs at about the same time. Those that still come with the old root are given [`PEERS_WAIT`] to change; who
//! comes with it later has nothing better, is not waited for, and keeps the connection until the root leaves the bundle.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use identity::VerifiedPeer;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// The open connections, counted by what they rest on.
#[derive(Debug, Default)]
pub(crate) struct Rests {
    known: Mutex<Known>,
    /// Whether something rests on a root that our own SVID has left.
    resting: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Known {
    /// The root above our own SVID.
    own: Option<Arc<str>>,
    /// Those that it has left, the newest last.
    left: Vec<Arc<str>>,
    left_at: Option<Instant>,
    counts: BTreeMap<Base, u64>,
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Downstream,
    Upstream,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Base {
    side: Side,
    own: Arc<str>,
    /// Empty without a peer.
    peer: Arc<str>,
    /// The peer came with a root that had been left for a while.
    late: bool,
}

/// One open connection, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Rest {
    base: Base,
    rests: Arc<Rests>,
}

/// The roots to leave at one moment.
#[derive(Debug, Default)]
pub(crate) struct Left {
    roots: Vec<Arc<str>>,
    /// Peers have had their time.
    peers: bool,
}

impl Rests {
    /// Our own SVID comes from `root` from now on.
    pub(crate) fn move_to(&self, root: &Arc<str>) {
        let mut known = self.known();
        if known.own.as_ref() == Some(root) {
            return;
        }
        known.left.retain(|left| left != root);
        if let Some(before) = known.own.replace(root.clone()) {
            tracing::info!(from = &*before, to = &**root, "our SVID comes from another root, connections follow");
            known.left.push(before);
            known.left_at = Some(Instant::now());
        }
        let too_many = known.left.len().saturating_sub(LEFT_MAX);
        known.left.drain(..too_many);
        self.tell(&known);
    }

    /// Counts a connection. `own` is the root above the certificate that we showed, where that is known.
    pub(crate) fn enter(self: &Arc<Self>, side: Side, own: Option<Arc<str>>, peer: Option<&VerifiedPeer>) -> Rest {
        let mut known = self.known();
        let own = own.or_else(|| known.own.clone()).unwrap_or_default();
        let peer = peer.map(|peer| peer.root_id().clone()).unwrap_or_default();
        let late = known.left.contains(&peer) && known.peers_are_due();
        let base = Base { side, own, peer, late };
        *known.counts.entry(base.clone()).or_default() += 1;
        self.tell(&known);
        Rest { base, rests: self.clone() }
    }

    /// What is to be left now.
    pub(crate) fn left(&self) -> Left {
        let known = self.known();
        Left { roots: known.left.clone(), peers: known.peers_are_due() }
    }

    /// Follows whether something rests on a root that our own SVID has left.
    pub(crate) fn resting(&self) -> watch::Receiver<bool> {
        self.resting.subscribe()
    }

    fn leave(&self, base: &Base) {
        let mut known = self.known();
        if let Some(count) = known.counts.get_mut(base) {
            *count -= 1;
            if *count == 0 {
                known.counts.remove(base);
            }
        }
        self.tell(&known);
    }

    fn tell(&self, known: &Known) {
        let resting = known.resting() > 0;
        self.resting.send_if_modified(|told| std::mem::replace(told, resting) != resting);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `/connections`: how many rest on which roots.
    pub(crate) fn page(&self) -> Value {
        let known = self.known();
        let rows = known.counts.iter().map(|(base, count)| {
            json!({
                "side": base.side.word(),
                "own_authority": &*base.own,
                "peer_authority": &*base.peer,
                "count": count,
                "rests_on_left": base.rests_on(&known.left),
            })
        });
        json!({
            "own_authority": known.own.as_deref(),
            "left_authorities": known.left,
            "waited_for": known.resting(),
            "connections": rows.collect::<Vec<_>>(),
        })
    }

    /// Writes the family as OpenMetrics text.
    pub(crate) fn render(&self, out: &mut String) {
        let known = self.known();
        let _ = writeln!(out, "# TYPE kasbah_mtls_connections gauge");
        let mut sums: BTreeMap<(Side, &str, &str), u64> = BTreeMap::new();
        for (base, count) in &known.counts {
            *sums.entry((base.side, &*base.own, &*base.peer)).or_default() += count;
        }
        for ((side, own, peer), count) in sums {
            let side = side.word();
            // Identifiers are hexadecimal: nothing to be escaped.
            let _ = writeln!(
                out,
                "kasbah_mtls_connections{{side=\"{side}\",own_authority=\"{own}\",peer_authority=\"{peer}\"}} {count}"
            );
        }
    }
}

impl Known {
    fn peers_are_due(&self) -> bool {
        self.left_at.is_some_and(|at| at.elapsed() >= PEERS_WAIT)
    }

    /// Connections that are waited for.
    fn resting(&self) -> u64 {
        let waited = |base: &Base| self.left.contains(&base.own) || (!base.late && self.left.contains(&base.peer));
        self.counts.iter().filter(|(base, _)| waited(base)).map(|(_, count)| count).sum()
    }
}

impl Base {
    fn rests_on(&self, roots: &[Arc<str>]) -> bool {
        roots.contains(&self.own) || roots.contains(&self.peer)
    }
}

impl Side {
    fn word(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
        }
    }
}

impl Left {
    /// Whether there is nothing to leave.
    pub(crate) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

impl Rest {
    /// Whether the connection is to be left.
    pub(crate) fn is_on(&self, left: &Left) -> bool {
        let Base { own, peer, late, .. } = &self.base;
        left.roots.contains(own) || (left.peers && !late && left.roots.contains(peer))
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.rests.leave(&self.base);
    }
}

/// How long peers that still show the old root have to change, once we have.
pub(crate) const PEERS_WAIT: Duration = Duration::from_secs(5);
/// Roots that are remembered as left; older ones are long out of every bundle.
const LEFT_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use identity::unix_time;

    use super::*;
    use crate::tests::harness::{Authority, HOUR};

    fn root(name: &str) -> Arc<str> {
        name.into()
    }

    fn peer_of(authority: &Authority) -> VerifiedPeer {
        let now = unix_time(std::time::SystemTime::now());
        identity::verify::verify_peer(&authority.svid("cart", HOUR).to_chain(), &authority.bundles(), now).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_rests_on_the_root_that_our_own_svid_left_is_waited_for_until_it_is_gone() {
        let rests = Arc::new(Rests::default());
        let resting = rests.resting();
        rests.move_to(&root("a"));
        let old = rests.enter(Side::Upstream, Some(root("a")), None);
        assert!(!*resting.borrow() && rests.left().is_empty());
        rests.move_to(&root("b"));
        let new = rests.enter(Side::Downstream, Some(root("b")), None);
        assert!(*resting.borrow() && old.is_on(&rests.left()) && !new.is_on(&rests.left()));
        assert_eq!(rests.page()["waited_for"], 1);
        drop(old);
        assert!(!*resting.borrow());
        rests.move_to(&root("a"));
        assert!(*resting.borrow() && new.is_on(&rests.left()), "the way back is a move as well");
    }

    #[tokio::test(start_paused = true)]
    async fn peers_have_time_to_change_and_who_comes_late_is_not_waited_for() {
        let (rests, authority) = (Arc::new(Rests::default()), Authority::new());
        let peer = peer_of(&authority);
        rests.move_to(peer.root_id());
        rests.move_to(&root("b"));
        let early = rests.enter(Side::Downstream, None, Some(&peer));
        assert!(!early.is_on(&rests.left()), "it may change by itself");
        assert!(*rests.resting().borrow());
        tokio::time::advance(PEERS_WAIT).await;
        assert!(early.is_on(&rests.left()));
        let late = rests.enter(Side::Downstream, None, Some(&peer));
        assert!(!late.is_on(&rests.left()));
        drop(early);
        assert!(!*rests.resting().borrow(), "nobody can leave what the peer has nothing better for");
        assert_eq!(rests.page()["connections"][0]["rests_on_left"], true, "but it is told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_that_was_never_ours_is_left_alone() {
        let rests = Arc::new(Rests::default());
        rests.move_to(&root("a"));
        let foreign = rests.enter(Side::Downstream, None, Some(&peer_of(&Authority::new())));
        rests.move_to(&root("a"));
        tokio::time::advance(PEERS_WAIT).await;
        assert!(!foreign.is_on(&rests.left()) && !*rests.resting().borrow());
        rests.move_to(&root("b"));
        assert!(foreign.is_on(&rests.left()), "our own side of it was shown under the root that is left");
    }

    #[tokio::test(start_paused = true)]
    async fn roots_that_were_left_long_ago_are_forgotten() {
        let rests = Rests::default();
        for number in 0..LEFT_MAX + 3 {
            rests.move_to(&root(&number.to_string()));
        }
        let left = rests.left().roots;
        assert_eq!((left.len(), &*left[0]), (LEFT_MAX, "2"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_metric_counts_both_sides() {
        let rests = Arc::new(Rests::default());
        rests.move_to(&root("a"));
        let _two = [rests.enter(Side::Upstream, None, None), rests.enter(Side::Upstream, None, None)];
        let mut out = String::new();
        rests.render(&mut out);
        let line = "kasbah_mtls_connections{side=\"upstream\",own_authority=\"a\",peer_authority=\"\"} 2\n";
        assert!(out.contains(line), "{out}");
    }
}
