//! The figures, and what they should be.

use std::time::Duration;

use super::Fetch;
use super::changes::Changes;
use super::streams::Streams;
use crate::ca::Usage;
use crate::measure::Environment;

/// Everything that was measured.
pub(super) struct Report {
    pub(super) idle: Usage,
    pub(super) full: Usage,
    pub(super) workloads: usize,
    pub(super) fetch: Fetch,
    pub(super) streams: Streams,
    pub(super) changes: Changes,
    pub(super) warm_start: Duration,
}

/// A figure with its limit.
pub(super) struct Goal {
    name: &'static str,
    value: f64,
    max: f64,
    unit: &'static str,
}

impl Goal {
    pub(super) fn is_met(&self) -> bool {
        self.value <= self.max
    }
}

impl Report {
    #[allow(clippy::cast_precision_loss, reason = "counts of a few thousand")]
    pub(super) fn goals(&self) -> Vec<Goal> {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let goal = |name, value, max, unit| Goal { name, value, max, unit };
        let per_entry = (self.full.own_mib - self.idle.own_mib).max(0.0) * 1024.0 / self.workloads.max(1) as f64;
        let changes = &self.changes;
        vec![
            goal("memory at rest, one workload", self.idle.resident_mib, 12.0, "MiB"),
            goal("memory per entry with its SVID", per_entry, 4.0, "kB"),
            goal("memory per open stream", self.streams.kb_each, 10.0, "kB"),
            goal("connect, first SVID, close: agent's CPU", self.fetch.cpu_micros, 200.0, "µs"),
            goal("entry created → SVID on a stream, p99", millis(changes.created.percentile(0.99)), 500.0, "ms"),
            goal("entry deleted → gone from a stream, p99", millis(changes.deleted.percentile(0.99)), 500.0, "ms"),
            goal("start → first SVID, CA away", millis(self.warm_start), 30.0, "ms"),
        ]
    }

    pub(super) fn table(&self, workloads: usize, streams: usize, rounds: usize) -> String {
        let mut text = format!(
            "The node agent: {workloads} workloads, {streams} streams, {rounds} rounds; {}.\n\n\
             | what | measured | goal | met |\n|---|---|---|---|\n",
            Environment::read().line()
        );
        for goal in self.goals() {
            let met = if goal.is_met() { "yes" } else { "no" };
            text.push_str(&format!(
                "| {} | {:.1} {} | {} {} | {met} |\n",
                goal.name, goal.value, goal.unit, goal.max, goal.unit
            ));
        }
        let (created, deleted) = (&self.changes.created, &self.changes.deleted);
        text.push_str(&format!(
            "| memory of closed streams given back | {:.0} % | | |\n| connect, first SVID, close: p50 / p99 | {:?} / {:?} | | |\n\
             | created → SVID, p50 | {:?} | | |\n| deleted → gone, p50 | {:?} | | |\n",
            self.streams.given_back * 100.0,
            self.fetch.times.percentile(0.5),
            self.fetch.times.percentile(0.99),
            created.percentile(0.5),
            deleted.percentile(0.5),
        ));
        text
    }
}
