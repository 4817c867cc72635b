//! The authorities of one kind and the steps that replace one by the next. No clock, no database, no keys: the time, the
//! nodes and the next number of the bundle are arguments.
//!
//! What always holds: an authority signs only after every node that counts and is not waived enforces a bundle that has
//! it, and leaves the bundle only after every such node said that it presents nothing which that authority signed. One
//! authority is active at any time; what never signed can be withdrawn; what is still trusted can sign again.

use std::collections::BTreeSet;

use crate::store::AuthorityState as Stage;

/// The authorities of a kind, oldest first, and what is being done with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) members: Vec<Member>,
    pub(crate) running: Option<Running>,
    /// Nodes that this rotation does not wait for.
    pub(crate) waived: BTreeSet<String>,
}

/// An authority without its key. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) stage: Stage,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// The bundle's number that first held it.
    pub(crate) published: u64,
    /// The bundle's number that first marked it; 0: it is not tainted.
    pub(crate) tainted: u64,
}

/// A rotation under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) mode: Mode,
    /// The authority that is being replaced.
    pub(crate) old: String,
    pub(crate) started_at: i64,
}

/// Who takes the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// An operator, one by one.
    Steps,
    /// The server, each as soon as it is safe.
    Auto,
    /// The server, because the authority grows old: it ends with the activation, and the old one serves out its life.
    Age,
    /// As `Auto`, for an authority that is in wrong hands: what it signed is revoked when it goes.
    Compromised,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing is under way.
    Idle,
    /// The next authority is published and signs nothing yet.
    Prepared,
    /// It signs; the old one is still trusted.
    Activated,
    /// What the old one signed is being replaced.
    Tainted,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Publish a new authority. Its `published` is set by the machine.
    Prepare(Member, Mode),
    /// Let the prepared one sign.
    Activate(String),
    /// Have everything replaced that an old one signed.
    Taint(String),
    /// Drop a tainted one from the bundle.
    Revoke(String),
    /// Go back to where the rotation began.
    Abort,
    /// Go on without waiting for a node.
    Waive(String),
    /// Let the server take the steps that remain.
    Resume,
    /// Forget authorities whose life is over.
    Forget(Vec<String>),
}

/// What a step depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World<'a> {
    /// The nodes that count.
    pub(crate) nodes: &'a [Node],
    /// The number that the bundle gets if it changes.
    pub(crate) next_sequence: u64,
    pub(crate) now: i64,
    /// Until when something is in use that a tainted authority signed and that no node can replace.
    pub(crate) in_use_until: i64,
}

/// A node that counts: attested, not banned, not expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) id: String,
    /// The newest bundle that everything on it verifies by.
    pub(crate) enforced: u64,
}

/// A step that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) line: Line,
    /// Whether the bundle changes by it.
    pub(crate) publishes: bool,
}

/// A step that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("there is no authority `{0}`")]
    Unknown(String),
    #[error("only a prepared authority can be activated")]
    NotPrepared,
    #[error("the authority is active; activate another one first")]
    IsActive,
    #[error("only an old authority can be tainted")]
    NotOld,
    #[error("only a tainted authority can be revoked")]
    NotTainted,
    #[error("an authority is prepared already; activate it, or abort")]
    AlreadyPrepared,
    #[error("{MEMBERS_MAX} authorities are still trusted; revoke old ones first")]
    TooMany,
    #[error("the authority's life is over")]
    Ended,
    #[error("{} of {total} nodes have not acknowledged bundle {needed}: {}", laggards.len(), shown(laggards))]
    NotAcknowledged { needed: u64, total: usize, laggards: Vec<String> },
    #[error("no rotation is under way")]
    Idle,
    #[error("no such node counts, so there is nothing to waive")]
    NodeUnknown,
}

impl Line {
    /// No authority at all.
    pub(crate) const EMPTY: Self = Self { members: Vec::new(), running: None, waived: BTreeSet::new() };

    /// The authority that signs.
    pub(crate) fn active(&self) -> Option<&Member> {
        self.newest(Stage::Active)
    }

    /// The newest in a stage.
    pub(crate) fn newest(&self, stage: Stage) -> Option<&Member> {
        self.members.iter().rev().find(|member| member.stage == stage)
    }

    pub(crate) fn member(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.newest(Stage::Prepared).is_some() {
            return Phase::Prepared;
        }
        let old = self.running.as_ref().and_then(|running| self.member(&running.old));
        match old.map(|old| old.stage) {
            Some(Stage::Old) => Phase::Activated,
            Some(Stage::Tainted) => Phase::Tainted,
            _ => Phase::Idle,
        }
    }

    /// The step that leads on, where one does.
    pub(crate) fn next(&self) -> Option<Step> {
        let old = || self.running.as_ref().map(|running| running.old.clone());
        match self.phase() {
            Phase::Idle => None,
            Phase::Prepared => self.newest(Stage::Prepared).map(|member| Step::Activate(member.id.clone())),
            Phase::Activated => old().map(Step::Taint),
            Phase::Tainted => old().map(Step::Revoke),
        }
    }

    /// The bundle's number that every node must enforce before `step`; 0 where nothing must be known.
    pub(crate) fn needed(&self, step: &Step) -> u64 {
        match step {
            Step::Activate(id) => self.member(id).map_or(0, |member| member.published),
            Step::Taint(_) => self.active().map_or(0, |member| member.published),
            Step::Revoke(id) => self.member(id).map_or(0, |member| member.tainted),
            _ => 0,
        }
    }

    /// The nodes that `step` waits for.
    pub(crate) fn laggards<'a>(&self, step: &Step, nodes: &'a [Node]) -> Vec<&'a Node> {
        let needed = self.needed(step);
        nodes.iter().filter(|node| node.enforced < needed && !self.waived.contains(&node.id)).collect()
    }

    /// Who signs for the server itself: the newest authority that every node that counts knows, waived or not, so that a
    /// node that was away still finds a server it can trust.
    pub(crate) fn signs_for_server(&self, nodes: &[Node]) -> Option<&Member> {
        // A node that has never reported has just joined, by the bundle of the day.
        let known_to_all = nodes.iter().map(|node| node.enforced).filter(|n| *n > 0).min().unwrap_or(u64::MAX);
        let known = |member: &&Member| member.stage != Stage::Prepared && member.published <= known_to_all;
        self.active().filter(known).or_else(|| self.members.iter().rev().find(known)).or_else(|| self.active())
    }

    /// Takes a step, or says why not.
    pub(crate) fn take(&self, step: &Step, world: World<'_>) -> Result<Moved, Refused> {
        let mut line = self.clone();
        let publishes = match step {
            Step::Prepare(member, mode) => line.prepare(member.clone(), *mode, world)?,
            Step::Activate(id) => line.activate(id, world)?,
            Step::Taint(id) => line.taint(id, world)?,
            Step::Revoke(id) => line.revoke(id, world)?,
            Step::Abort => line.abort(world)?,
            Step::Waive(node) => line.waive(node, world)?,
            Step::Resume => line.resume()?,
            Step::Forget(ids) => line.forget(ids),
        };
        Ok(Moved { line, publishes })
    }

    fn prepare(&mut self, member: Member, mode: Mode, world: World<'_>) -> Result<bool, Refused> {
        if self.newest(Stage::Prepared).is_some() {
            return Err(Refused::AlreadyPrepared);
        }
        if self.members.len() >= MEMBERS_MAX {
            return Err(Refused::TooMany);
        }
        let old = self.active().map(|active| active.id.clone()).unwrap_or_default();
        self.running = Some(Running { mode, old, started_at: world.now });
        self.waived.clear();
        self.members.push(Member { stage: Stage::Prepared, published: world.next_sequence, tainted: 0, ..member });
        Ok(true)
    }

    fn activate(&mut self, id: &str, world: World<'_>) -> Result<bool, Refused> {
        let member = self.member(id).ok_or_else(|| Refused::Unknown(id.into()))?;
        if member.stage != Stage::Prepared {
            return Err(Refused::NotPrepared);
        }
        if member.not_after <= world.now {
            return Err(Refused::Ended);
        }
        self.acknowledged(&Step::Activate(id.into()), world)?;
        for member in &mut self.members {
            if member.stage == Stage::Active {
                member.stage = Stage::Old;
            }
        }
        self.set(id, Stage::Active, 0);
        if self.running.as_ref().is_some_and(|running| running.mode == Mode::Age) {
            self.end();
        }
        Ok(false)
    }

    fn taint(&mut self, id: &str, world: World<'_>) -> Result<bool, Refused> {
        match self.member(id).ok_or_else(|| Refused::Unknown(id.into()))?.stage {
            Stage::Old => (),
            Stage::Active => return Err(Refused::IsActive),
            Stage::Prepared | Stage::Tainted => return Err(Refused::NotOld),
        }
        self.acknowledged(&Step::Taint(id.into()), world)?;
        self.set(id, Stage::Tainted, world.next_sequence);
        Ok(true)
    }

    fn revoke(&mut self, id: &str, world: World<'_>) -> Result<bool, Refused> {
        match self.member(id).ok_or_else(|| Refused::Unknown(id.into()))?.stage {
            Stage::Tainted => (),
            Stage::Active => return Err(Refused::IsActive),
            Stage::Prepared | Stage::Old => return Err(Refused::NotTainted),
        }
        self.acknowledged(&Step::Revoke(id.into()), world)?;
        self.members.retain(|member| member.id != id);
        let other = self.running.as_ref().is_some_and(|running| running.old != id);
        let more = self.running.is_none() && self.newest(Stage::Tainted).is_some();
        if !other && !more {
            self.end();
        }
        Ok(true)
    }

    /// What is prepared is withdrawn, for it signed nothing. What was activated becomes an old one, for its certificates
    /// are in use, and the one before it signs again.
    fn abort(&mut self, world: World<'_>) -> Result<bool, Refused> {
        match self.phase() {
            Phase::Idle => return Err(Refused::Idle),
            Phase::Prepared => {
                self.members.retain(|member| member.stage != Stage::Prepared);
                self.end();
                return Ok(true);
            }
            Phase::Activated | Phase::Tainted => (),
        }
        let old = self.running.as_ref().and_then(|running| self.member(&running.old)).ok_or(Refused::Idle)?.clone();
        if old.not_after <= world.now {
            return Err(Refused::Ended);
        }
        for member in &mut self.members {
            if member.stage == Stage::Active {
                member.stage = Stage::Old;
            }
        }
        self.set(&old.id, Stage::Active, 0);
        self.end();
        Ok(old.stage == Stage::Tainted)
    }

    fn waive(&mut self, node: &str, world: World<'_>) -> Result<bool, Refused> {
        if !world.nodes.iter().any(|known| known.id == node) {
            return Err(Refused::NodeUnknown);
        }
        if self.running.is_none() && self.newest(Stage::Tainted).is_none() && self.newest(Stage::Old).is_none() {
            return Err(Refused::Idle);
        }
        self.waived.insert(node.into());
        Ok(false)
    }

    fn resume(&mut self) -> Result<bool, Refused> {
        if self.phase() == Phase::Idle {
            return Err(Refused::Idle);
        }
        if let Some(running) = &mut self.running {
            running.mode = if running.mode == Mode::Compromised { running.mode } else { Mode::Auto };
        }
        Ok(false)
    }

    fn forget(&mut self, ids: &[String]) -> bool {
        let before = self.members.len();
        self.members.retain(|member| member.stage == Stage::Active || !ids.contains(&member.id));
        if self.phase() == Phase::Idle {
            self.end();
        }
        self.members.len() != before
    }

    fn acknowledged(&self, step: &Step, world: World<'_>) -> Result<(), Refused> {
        let laggards = self.laggards(step, world.nodes);
        if laggards.is_empty() {
            return Ok(());
        }
        let laggards = laggards.into_iter().map(|node| node.id.clone()).collect();
        Err(Refused::NotAcknowledged { needed: self.needed(step), total: world.nodes.len(), laggards })
    }

    fn set(&mut self, id: &str, stage: Stage, tainted: u64) {
        if let Some(member) = self.members.iter_mut().find(|member| member.id == id) {
            (member.stage, member.tainted) = (stage, tainted);
        }
    }

    fn end(&mut self) {
        self.running = None;
        self.waived.clear();
    }
}

impl Phase {
    /// The stable word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Prepared => "prepared",
            Self::Activated => "activated",
            Self::Tainted => "tainted",
        }
    }
}

impl Mode {
    /// The stable word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Auto => "auto",
            Self::Age => "age",
            Self::Compromised => "compromised",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Steps, Self::Auto, Self::Age, Self::Compromised].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// The first names of a list, for a sentence.
fn shown(names: &[String]) -> String {
    let mut text = names.iter().take(NAMES_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN {
        text.push_str(", …");
    }
    text
}

/// The most authorities of a kind at once: each costs every verifier.
pub(crate) const MEMBERS_MAX: usize = 16;
const NAMES_SHOWN: usize = 10;

#[cfg(test)]
mod tests;
