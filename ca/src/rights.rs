//! Who may administer what: roles are verbs, some of them for certain SPIFFE IDs only; grants give roles to holders of SVIDs
//! and to local users.
//!
//! Every call of every API needs exactly one right, by the table in [`table`]; a call that is not in it is not served. A
//! verb for certain IDs opens only calls that ask [`Permit::check`] for each ID; every other call wants the whole verb. Holders
//! of `admin` entries, root and the authority's own user have every right, with a rights file and without.

pub(crate) mod approvals;
mod document;
pub(crate) mod gate;
pub(crate) mod table;
mod text;
mod verb;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use identity::spiffe_id::SpiffeId;

pub use verb::Verb;

use crate::document::{DocumentError, FollowedFile};
use crate::policy::pattern::PathPattern;
use crate::refusal::Refusal;

/// Roles and grants, checked. [`Rights::load`] makes one; the default grants nothing to anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    grants: Vec<Grant>,
    two_person: BTreeSet<Verb>,
    /// How long a request for a second person's approval waits.
    approval_life: Duration,
    roles: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    ids: Vec<PathPattern>,
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
    rights: Vec<Right>,
}

/// One line of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Right {
    role: String,
    verb: Verb,
    scope: Scope,
}

/// For which IDs a verb is given.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Whole,
    Ids(Vec<PathPattern>),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The holder of an SVID of the trust domain.
    Id(SpiffeId),
    /// A local user, by uid and primary gid.
    User {
        /// User id.
        uid: u32,
        /// Primary group id.
        gid: u32,
    },
}

/// What rights say to somebody who wants something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether he may.
    pub allowed: bool,
    /// The role that says so; empty when none does.
    pub role: String,
    /// One sentence.
    pub text: String,
    /// Whether another person has to approve it.
    pub two_person: bool,
}

/// A verb that somebody has, and for which IDs. Only [`Rights::permit`] and [`Permit::whole`] make one.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    who: String,
    verb: Verb,
    /// None: for all.
    ids: Option<Vec<PathPattern>>,
}

impl Rights {
    /// Follows a rights file.
    ///
    /// # Errors
    /// When it is refused as it stands.
    pub(crate) fn follow(file: PathBuf) -> Result<FollowedFile<Self>, DocumentError> {
        let load = |file: &Path| {
            let rights = Self::load(file)?;
            let (roles, grants) = rights.counts();
            tracing::info!(file = %file.display(), roles, grants, "rights in force");
            Ok(rights)
        };
        FollowedFile::open(file, Box::new(load))
    }

    /// How many roles and grants there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.roles, self.grants.len())
    }

    /// Whether a second person has to approve calls of this verb.
    pub(crate) fn wants_two(&self, verb: Verb) -> bool {
        self.two_person.contains(&verb)
    }

    /// How long a request for approval waits.
    pub(crate) fn approval_life(&self) -> Duration {
        self.approval_life
    }

    /// Whether anybody but the administrators may use the local socket.
    pub(crate) fn has_local_users(&self) -> bool {
        self.grants.iter().any(|grant| !grant.users.is_empty() || !grant.groups.is_empty())
    }

    /// What of `verb` the subject has; `None` when nothing.
    pub(crate) fn permit(&self, subject: &Subject, who: &str, verb: Verb) -> Option<Permit> {
        let mut ids = Vec::new();
        let mut found = false;
        for right in self.rights_of(subject).filter(|right| right.verb == verb) {
            found = true;
            match &right.scope {
                Scope::Whole => return Some(Permit::whole(who, verb)),
                Scope::Ids(patterns) => ids.extend(patterns.iter().cloned()),
            }
        }
        found.then(|| Permit { who: who.to_owned(), verb, ids: Some(ids) })
    }

    /// Whether the subject has any right at all.
    pub(crate) fn knows(&self, subject: &Subject) -> bool {
        self.rights_of(subject).next().is_some()
    }

    /// Judges, and says why.
    pub fn explain(&self, subject: &Subject, verb: Verb, id: Option<&SpiffeId>) -> Verdict {
        let two_person = self.wants_two(verb);
        let mut scoped = None;
        for right in self.rights_of(subject).filter(|right| right.verb == verb) {
            let fits = match (&right.scope, id) {
                (Scope::Whole, _) => true,
                (Scope::Ids(patterns), Some(id)) => covers(patterns, id),
                (Scope::Ids(_), None) => false,
            };
            if fits {
                let text = format!("the role `{}` gives `{verb}`", right.role);
                return Verdict { allowed: true, role: right.role.clone(), text, two_person };
            }
            scoped = Some(right);
        }
        let text = match (scoped, id) {
            (Some(right), Some(id)) => format!("the role `{}` gives `{verb}`, but not for {id}", right.role),
            (Some(right), None) => format!("the role `{}` gives `{verb}` for certain IDs only; name one", right.role),
            (None, _) if self.knows(subject) => format!("no role of the subject gives `{verb}`"),
            (None, _) => "nothing is granted to the subject".to_owned(),
        };
        Verdict { allowed: false, role: String::new(), text, two_person }
    }

    fn rights_of<'a>(&'a self, subject: &'a Subject) -> impl Iterator<Item = &'a Right> {
        self.grants.iter().filter(move |grant| grant.is_for(subject)).flat_map(|grant| &grant.rights)
    }
}

impl Subject {
    /// A SPIFFE ID, `uid:N` or `gid:N` (a user of that group of whom nothing else is known).
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(uid) = text.strip_prefix("uid:") {
            return uid.parse().ok().map(|uid| Self::User { uid, gid: NOBODY });
        }
        if let Some(gid) = text.strip_prefix("gid:") {
            return gid.parse().ok().map(|gid| Self::User { uid: NOBODY, gid });
        }
        SpiffeId::parse(text).ok().map(Self::Id)
    }
}

impl Grant {
    /// Servers and nodes (`/spire/…`) are nobody's administrators, whatever a pattern covers.
    fn is_for(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Id(id) => covers(&self.ids, id) && !id.path().starts_with("/spire/"),
            Subject::User { uid, gid } => self.users.contains(uid) || self.groups.contains(gid),
        }
    }
}

fn covers(patterns: &[PathPattern], id: &SpiffeId) -> bool {
    patterns.iter().any(|pattern| pattern.matches(id.path()))
}

impl Permit {
    /// For all IDs.
    pub(crate) fn whole(who: &str, verb: Verb) -> Self {
        Self { who: who.to_owned(), verb, ids: None }
    }

    /// For tests of what asks it.
    #[cfg(test)]
    pub(crate) fn of_paths(who: &str, verb: Verb, patterns: &[&str]) -> Self {
        let ids = patterns.iter().map(|pattern| PathPattern::parse(pattern).unwrap()).collect();
        Self { who: who.to_owned(), verb, ids: Some(ids) }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.ids.is_none()
    }

    /// Whether it is for this ID.
    pub(crate) fn covers(&self, id: &SpiffeId) -> bool {
        self.ids.as_ref().is_none_or(|patterns| covers(patterns, id))
    }

    /// # Errors
    /// When it is not for this ID.
    pub(crate) fn check(&self, id: &SpiffeId) -> Result<(), Refusal> {
        if self.covers(id) { Ok(()) } else { Err(self.missing(&format!(" for {id}"))) }
    }

    /// # Errors
    /// When it is for certain IDs only.
    pub(crate) fn check_whole(&self) -> Result<(), Refusal> {
        if self.is_whole() { Ok(()) } else { Err(self.missing(" for all identities")) }
    }

    /// Why something is refused that concerns identities which it is not for, without naming them.
    pub(crate) fn too_narrow(&self) -> Refusal {
        self.missing(" for all identities that this concerns")
    }

    /// Refuses its holder another verb.
    pub(crate) fn refuse(&self, verb: Verb, what: &str) -> Result<(), Refusal> {
        Err(Refusal::RightMissing { who: self.who.clone(), verb, what: what.to_owned() })
    }

    fn missing(&self, what: &str) -> Refusal {
        Refusal::RightMissing { who: self.who.clone(), verb: self.verb, what: what.to_owned() }
    }
}

/// No user and no group has this number: it is the kernel's -1.
const NOBODY: u32 = u32::MAX;

#[cfg(test)]
mod tests;
