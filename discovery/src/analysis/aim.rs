//! Whom a policy of the security kinds is for: by namespace and labels, or by reference.

use super::resource::Resource;
use super::set::Set;
use super::workloads::{Workload, selected};
use crate::documents::shapes::Labels;

/// The workloads that a policy means.
#[derive(Clone, Debug)]
pub(crate) struct Aim<'a> {
    namespace: &'a str,
    /// Whether it holds in all namespaces.
    is_root: bool,
    pub(crate) labels: Labels,
    /// It names what it is for, and labels do not count.
    pub(crate) is_by_reference: bool,
}

impl<'a> Aim<'a> {
    pub(crate) fn of(set: &Set, policy: &'a Resource) -> Self {
        let spec = policy.spec();
        Self {
            namespace: &policy.namespace,
            is_root: policy.namespace == set.root_namespace(),
            labels: spec.path("selector.matchLabels").labels(),
            is_by_reference: ["targetRef", "targetRefs"].iter().any(|field| spec.get(field).exists()),
        }
    }

    /// The workloads of the set that are meant.
    pub(crate) fn workloads<'w, 'b>(&'b self, workloads: &'b [Workload<'w>]) -> impl Iterator<Item = &'b Workload<'w>> {
        let namespace = (!self.is_root).then_some(self.namespace);
        selected(workloads, namespace, &self.labels).filter(|_| !self.is_by_reference)
    }

    /// Whether some workload can be meant by both.
    pub(crate) fn may_meet(&self, other: &Self) -> bool {
        let is_near = self.is_root || other.is_root || self.namespace == other.namespace;
        let agree = self.labels.iter().all(|(name, value)| other.labels.get(name).is_none_or(|theirs| theirs == value));
        is_near && (self.is_by_reference || other.is_by_reference || agree)
    }

    /// Whether every workload that the other means is meant, too.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let is_near = self.is_root || self.namespace == other.namespace;
        let is_wider = self.labels.iter().all(|(name, value)| other.labels.get(name) == Some(value));
        is_near && is_wider && !self.is_by_reference && !other.is_by_reference
    }
}
