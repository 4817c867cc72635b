//! Which step is due by itself: because an authority grows old, because the server was told to go on, or because a life
//! is over.
//!
//! An authority hands over while what it signs can still live its whole life. With `lead` = half of its life, but never
//! more than 30 days before it has to hand over:
//!
//! | remaining life | happens |
//! |---|---|
//! | `lead` | the next one is prepared: published, signs nothing |
//! | ⅔ `lead` | it is activated, if all nodes have acknowledged it; others had a third of `lead` to fetch the bundle |
//! | 1⁄12 `lead` | it is activated in any case: the nodes that lag are waived and named in the log |
//! | 0 | the old one leaves the bundle |

use super::machine::{Line, Mode, Phase, Step, World};
use crate::store::AuthorityState as Stage;

/// What is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// A new authority is to be prepared, because the active one grows old.
    Prepare,
    /// A step is safe and due.
    Step(Step),
    /// The active one ends: these nodes cannot be waited for any longer.
    Overdue(Vec<String>),
}

/// How early an authority is replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ages {
    /// The longest life of what it signs, seconds.
    pub(crate) signs: i64,
}

impl Ages {
    /// How long before its end the next authority is prepared.
    fn lead(self, not_before: i64, not_after: i64) -> i64 {
        ((not_after - not_before) / 2).min(self.signs.saturating_add(LEAD_SECS_MAX)).max(1)
    }

    /// The first thing that is due; after it is done there may be more.
    pub(crate) fn due(self, line: &Line, world: World<'_>) -> Option<Due> {
        let ended: Vec<String> = line
            .members
            .iter()
            .filter(|member| member.stage != Stage::Active && member.not_after <= world.now)
            .map(|member| member.id.clone())
            .collect();
        if !ended.is_empty() {
            return Some(Due::Step(Step::Forget(ended)));
        }
        self.by_age(line, world).or_else(|| by_order(line, world))
    }

    fn by_age(self, line: &Line, world: World<'_>) -> Option<Due> {
        let active = line.active()?;
        let lead = self.lead(active.not_before, active.not_after);
        let left = active.not_after - world.now;
        let Some(prepared) = line.newest(Stage::Prepared) else {
            return (left <= lead).then_some(Due::Prepare);
        };
        let activate = Step::Activate(prepared.id.clone());
        let laggards = line.laggards(&activate, world.nodes);
        if !laggards.is_empty() {
            let overdue = left <= lead / 12;
            return overdue.then(|| Due::Overdue(laggards.into_iter().map(|node| node.id.clone()).collect()));
        }
        let aging = line.running.as_ref().is_some_and(|running| {
            running.mode == Mode::Age && (world.now - running.started_at >= lead / 3 || left <= lead / 12)
        });
        (aging || left <= lead / 12).then_some(Due::Step(activate))
    }
}

/// The next step of a rotation that the server was told to take to its end.
fn by_order(line: &Line, world: World<'_>) -> Option<Due> {
    let running = line.running.as_ref().filter(|running| matches!(running.mode, Mode::Auto | Mode::Compromised))?;
    let next = line.next()?;
    let in_use = line.phase() == Phase::Tainted && world.in_use_until > world.now;
    let safe = !in_use && line.laggards(&next, world.nodes).is_empty() && !running.old.is_empty();
    safe.then_some(Due::Step(next))
}

const LEAD_SECS_MAX: i64 = 30 * 24 * 3600;

#[cfg(test)]
mod tests;
