//! Which bundle and which revocation lists this node enforces: the one that everything on it verifies by, and by which nothing that it presents is
//! tainted. The CA goes on with a rotation when every node enforces what the next step needs, so this never runs ahead.
//!
//! Each open stream stands for a workload. It enforces what it was sent, an SDS stream once it has acknowledged that.
//! The node enforces the least of all of them. A workload that has gone away but still runs counts on for a while, and
//! after a start the agent waits for those that were there before: their streams come back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::shutdown::Shutdown;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::attest::Process;
use crate::ca::Report;
use crate::node::NodeIdentity;
use crate::state::State;

/// All open streams, and those that may come back.
#[derive(Debug)]
pub(crate) struct Streams {
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    next: u64,
    open: BTreeMap<u64, Stream>,
    gone: Vec<(Stream, Instant)>,
}

#[derive(Debug)]
struct Stream {
    process: Arc<Process>,
    name: String,
    standing: Standing,
    /// By kind of resource, the version that its proxy says is in force.
    configured: Versions,
}

/// By kind of resource, discovery's version of it.
pub(crate) type Versions = BTreeMap<String, String>;

/// The configuration that is in force in a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configured {
    /// Whose stream says so.
    pub(crate) workload: String,
    pub(crate) versions: Versions,
}

impl Stream {
    /// Whether it is known to enforce less than `settled`.
    fn lags(&self, settled: Level) -> bool {
        matches!(self.standing, Standing::Enforces(level) | Standing::Drains(level) if level.least(settled) != settled)
    }

    /// Its name, with what it is waited for beyond an acknowledgement.
    fn called(&self) -> String {
        match self.standing {
            Standing::Drains(_) => format!("{}: drains connections of the tainted root", self.name),
            Standing::Idle | Standing::Unknown | Standing::Enforces(_) => self.name.clone(),
        }
    }
}

/// What is known of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It wants nothing, so it enforces nothing.
    Idle,
    /// It has not got, or not acknowledged, anything from this agent yet.
    Unknown,
    /// It enforces the bundle and the revocation lists of these numbers.
    Enforces(Level),
    /// It has acknowledged everything, and counts for this until connections are drained that rest on a tainted root.
    Drains(Level),
}

/// How new what is enforced is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Level {
    /// The number of the own bundle.
    pub(crate) bundle: u64,
    /// The generation of the revocation lists.
    pub(crate) revocations: u64,
}

impl Level {
    /// The lesser of each.
    fn least(self, other: Self) -> Self {
        Self { bundle: self.bundle.min(other.bundle), revocations: self.revocations.min(other.revocations) }
    }
}

/// One open stream; dropping it closes it.
#[derive(Debug)]
pub(crate) struct Presence {
    streams: Arc<Streams>,
    key: u64,
}

/// What the node enforces, and whom it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    enforced: Level,
    waiting_for: Vec<String>,
    /// When a workload that went away stops to count.
    look_again: Option<Instant>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { known: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Streams {
    /// A new stream of a process.
    pub(crate) fn open(self: &Arc<Self>, process: Arc<Process>) -> Presence {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.next += 1;
        let key = known.next;
        let name = format!("process {}", process.pid());
        known.open.insert(key, Stream { process, name, standing: Standing::Idle, configured: Versions::new() });
        Presence { streams: self.clone(), key }
    }

    /// The least of what is enforced, of bundle and lists each, not more than `settled`; nothing rises above `before` while somebody is unknown.
    fn verdict(&self, settled: Level, before: Level, now: Instant) -> Verdict {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has what is wanted need not be looked at; there may be thousands.
        known
            .gone
            .retain(|(stream, until)| *until > now && (!stream.lags(settled) || stream.process.check_alive().is_ok()));
        let mut verdict = Verdict { enforced: settled, waiting_for: Vec::new(), look_again: None };
        let gone = known.gone.iter().map(|(stream, until)| (stream, Some(*until)));
        for (stream, until) in known.open.values().map(|stream| (stream, None)).chain(gone) {
            let enforced = match stream.standing {
                Standing::Idle => continue,
                Standing::Unknown => before,
                Standing::Enforces(level) | Standing::Drains(level) => level,
            };
            if enforced.least(settled) == settled {
                continue;
            }
            verdict.enforced = verdict.enforced.least(enforced);
            // It may also end before, which nobody tells.
            let look_again = until.map(|until| until.min(now + ALIVE_PAUSE));
            verdict.look_again = [verdict.look_again, look_again].into_iter().flatten().min();
            let name = stream.called();
            if verdict.waiting_for.len() < NAMED_MAX && !verdict.waiting_for.contains(&name) {
                verdict.waiting_for.push(name);
            }
        }
        verdict
    }

    /// What proxies say of their configuration, in the order of their names.
    fn configured(&self) -> Vec<Configured> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let saying = known.open.values().filter(|stream| !stream.configured.is_empty());
        let mut configured: Vec<_> = saying
            .map(|stream| Configured { workload: stream.name.clone(), versions: stream.configured.clone() })
            .collect();
        configured.sort_unstable_by(|one, other| one.workload.cmp(&other.workload));
        configured.truncate(CONFIGURED_MAX);
        configured
    }

    /// For tests of what sends: the node's bundle as soon as it is `wanted`.
    #[cfg(test)]
    pub(crate) async fn until(&self, wanted: u64, settled: u64) {
        let mut changed = self.changed.subscribe();
        let settled = Level { bundle: settled, revocations: 0 };
        while self.verdict(settled, Level::default(), Instant::now()).enforced.bundle != wanted {
            changed.changed().await.unwrap();
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Presence {
    /// What the stream enforces now.
    pub(crate) fn set(&self, standing: Standing) {
        self.change(|stream| std::mem::replace(&mut stream.standing, standing) != standing);
    }

    /// Something was asked for or is on its way, and nothing is known of it yet.
    pub(crate) fn expect(&self) {
        self.change(|stream| {
            let first = stream.standing == Standing::Idle;
            if first {
                stream.standing = Standing::Unknown;
            }
            first
        });
    }

    /// What its proxy says of its configuration.
    pub(crate) fn configured(&self, versions: &Versions) {
        self.change(|stream| {
            let changed = stream.configured != *versions;
            if changed {
                stream.configured.clone_from(versions);
            }
            changed
        });
    }

    /// Whose stream it is, once that is known.
    pub(crate) fn name(&self, name: &str) {
        self.change(|stream| {
            if !stream.name.starts_with(name) {
                stream.name = format!("{name} (process {})", stream.process.pid());
            }
            false
        });
    }

    fn change(&self, change: impl FnOnce(&mut Stream) -> bool) {
        let mut known = self.streams.known.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = known.open.get_mut(&self.key).is_some_and(change);
        drop(known);
        if changed {
            self.streams.tell();
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut known = self.streams.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = known.open.remove(&self.key)
            && matches!(stream.standing, Standing::Enforces(_) | Standing::Drains(_))
            && known.gone.len() < GONE_MAX
        {
            known.gone.push((stream, Instant::now() + RETURN_WAIT));
        }
        drop(known);
        self.streams.tell();
    }
}

/// Follows everything that decides what the node enforces, and keeps the report to the CA up to date.
pub(crate) struct Reporter {
    pub(crate) state: Arc<State>,
    pub(crate) own: Arc<NodeIdentity>,
    pub(crate) streams: Arc<Streams>,
    /// The entries revision that was synced.
    pub(crate) revision: watch::Receiver<u64>,
    pub(crate) report: watch::Sender<Report>,
    /// Workloads of an earlier run may still enforce an older bundle.
    pub(crate) has_run_before: bool,
}

impl Reporter {
    /// Reports until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let (mut state, mut streams) = (self.state.subscribe(), self.streams.changed.subscribe());
        let mut own = self.own.changes();
        let begun = Instant::now();
        loop {
            let now = Instant::now();
            let returned = if self.has_run_before { begun + RETURN_WAIT } else { begun };
            state.borrow_and_update();
            streams.borrow_and_update();
            own.borrow_and_update();
            let look_again = if now >= returned { self.judge(now) } else { Some(returned) };
            let look_again = look_again.unwrap_or(now + IDLE_WAIT).max(now + LOOK_AGAIN_MIN);
            // Workloads come and go in swarms, and each look goes through all that are there.
            if shutdown.unless(tokio::time::sleep(LOOK_PAUSE)).await.is_none() {
                return;
            }
            tokio::select! {
                () = shutdown.requested() => return,
                _ = state.changed() => (),
                _ = streams.changed() => (),
                _ = own.changed() => (),
                changed = self.revision.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(look_again) => (),
            }
        }
    }

    /// Writes the report of now; answers when another look is due without a change.
    fn judge(&mut self, now: Instant) -> Option<Instant> {
        let snapshot = self.state.current();
        if !snapshot.synced {
            return None;
        }
        let before = self.report.borrow().level();
        let mut verdict = self.streams.verdict(snapshot.level(), before, now);
        if self.own.svid().is_some_and(|svid| !snapshot.is_clean(&svid)) {
            verdict.enforced = verdict.enforced.least(before);
            verdict.waiting_for.insert(0, "the agent's own SVID".into());
        }
        let report = Report {
            enforced: verdict.enforced.bundle,
            revocations: verdict.enforced.revocations,
            entries_revision: *self.revision.borrow_and_update(),
            fetched: snapshot.own_sequence(self.state.trust_domain()),
            waiting_for: verdict.waiting_for,
            configured: self.streams.configured(),
        };
        self.report.send_if_modified(|told| {
            let changed = *told != report;
            *told = report;
            changed
        });
        verdict.look_again
    }
}

/// How long a workload whose stream has ended is expected back; proxies try again after ten seconds at most.
pub(crate) const RETURN_WAIT: Duration = Duration::from_secs(15);
const ALIVE_PAUSE: Duration = Duration::from_secs(1);
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(50);
/// Between two looks: short beside the steps of a rotation.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(20);
const IDLE_WAIT: Duration = Duration::from_secs(60);
const NAMED_MAX: usize = 8;
/// Proxies whose configuration is reported.
const CONFIGURED_MAX: usize = 64;
/// Streams that went away and are remembered; one that is not makes the report early, never wrong for those open.
const GONE_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn own_process() -> Arc<Process> {
        Arc::new(Process::open(i32::try_from(std::process::id()).unwrap()).unwrap())
    }

    fn level(bundle: u64) -> Level {
        Level { bundle, revocations: 0 }
    }

    fn enforced(streams: &Streams, settled: u64, before: u64) -> u64 {
        streams.verdict(level(settled), level(before), Instant::now()).enforced.bundle
    }

    #[tokio::test(start_paused = true)]
    async fn the_node_enforces_the_least_of_its_streams() {
        let streams = Arc::new(Streams::default());
        assert_eq!(enforced(&streams, 5, 0), 5, "nobody is there");
        let (one, two, idle) = (streams.open(own_process()), streams.open(own_process()), streams.open(own_process()));
        assert_eq!(enforced(&streams, 5, 4), 5, "nobody wants anything");
        one.set(Standing::Enforces(level(5)));
        two.expect();
        assert_eq!(enforced(&streams, 5, 4), 4, "what is unknown does not lift the node");
        two.set(Standing::Enforces(level(3)));
        two.name("spiffe://example.org/two");
        let verdict = streams.verdict(level(5), level(4), Instant::now());
        assert_eq!(verdict.enforced.bundle, 3);
        assert!(verdict.waiting_for[0].starts_with("spiffe://example.org/two (process "), "{verdict:?}");
        two.set(Standing::Enforces(level(5)));
        assert_eq!(enforced(&streams, 5, 4), 5);
        drop(idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_that_went_away_counts_until_it_had_time_to_come_back() {
        let streams = Arc::new(Streams::default());
        let stream = streams.open(own_process());
        stream.set(Standing::Enforces(level(3)));
        drop(stream);
        assert_eq!(enforced(&streams, 5, 3), 3);
        tokio::time::advance(RETURN_WAIT).await;
        assert_eq!(enforced(&streams, 5, 3), 5);
    }

    #[tokio::test]
    async fn a_workload_that_has_ended_is_not_waited_for() {
        let streams = Arc::new(Streams::default());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Arc::new(Process::open(i32::try_from(child.id()).unwrap()).unwrap());
        let stream = streams.open(process);
        stream.set(Standing::Enforces(level(3)));
        drop(stream);
        assert_eq!(enforced(&streams, 5, 3), 3);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(enforced(&streams, 5, 3), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn bundle_and_lists_are_counted_each_by_itself() {
        let streams = Arc::new(Streams::default());
        let (one, two) = (streams.open(own_process()), streams.open(own_process()));
        one.set(Standing::Enforces(Level { bundle: 5, revocations: 8 }));
        two.set(Standing::Enforces(Level { bundle: 4, revocations: 9 }));
        let settled = Level { bundle: 5, revocations: 9 };
        let verdict = streams.verdict(settled, Level::default(), Instant::now());
        assert_eq!(verdict.enforced, Level { bundle: 4, revocations: 8 });
        one.set(Standing::Enforces(settled));
        two.set(Standing::Enforces(settled));
        assert_eq!(streams.verdict(settled, Level::default(), Instant::now()).enforced, settled);
    }

    #[tokio::test(start_paused = true)]
    async fn what_proxies_say_of_their_configuration_is_told_by_name_as_long_as_they_are_there() {
        let streams = Arc::new(Streams::default());
        let (silent, b, a) = (streams.open(own_process()), streams.open(own_process()), streams.open(own_process()));
        let versions = |version: &str| Versions::from([("listener".to_owned(), version.to_owned())]);
        for (stream, name) in
            [(&silent, "spiffe://example.org/s"), (&b, "spiffe://example.org/b"), (&a, "spiffe://example.org/a")]
        {
            stream.name(name);
        }
        b.configured(&versions("1"));
        a.configured(&versions("1"));
        a.configured(&versions("2"));
        let told = streams.configured();
        let told: Vec<_> =
            told.iter().map(|proxy| (&proxy.workload[..22], proxy.versions["listener"].as_str())).collect();
        assert_eq!(told, [("spiffe://example.org/a", "2"), ("spiffe://example.org/b", "1")]);
        drop(a);
        assert_eq!(streams.configured().len(), 1);
        let many: Vec<_> = (0..=CONFIGURED_MAX).map(|_| streams.open(own_process())).collect();
        many.iter().for_each(|stream| stream.configured(&versions("1")));
        assert_eq!(streams.configured().len(), CONFIGURED_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn who_drains_connections_is_waited_for_and_says_so() {
        let streams = Arc::new(Streams::default());
        let stream = streams.open(own_process());
        stream.name("spiffe://example.org/cart");
        stream.set(Standing::Drains(Level { bundle: 4, revocations: 9 }));
        let settled = Level { bundle: 5, revocations: 9 };
        let verdict = streams.verdict(settled, settled, Instant::now());
        assert_eq!(verdict.enforced, Level { bundle: 4, revocations: 9 }, "lists count at once");
        assert!(verdict.waiting_for[0].ends_with(": drains connections of the tainted root"), "{verdict:?}");
        stream.set(Standing::Enforces(settled));
        assert_eq!(streams.verdict(settled, settled, Instant::now()).enforced, settled);
    }
}
