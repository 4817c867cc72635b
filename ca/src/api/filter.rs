//! Which entries and nodes a list asks for.

use std::collections::BTreeSet;

use identity::spiffe_id::{SpiffeId, TrustDomain};
use proto::spire::api::server::{agent::v1 as agent_api, entry::v1 as entry_api};
use proto::spire::api::types::{FederatesWithMatch, SelectorMatch, federates_with_match, selector_match};

use super::convert::{id_of, selectors_of};
use crate::agent::Agent;
use crate::entry::{Entry, Selector};
use crate::refusal::Refusal;

/// How two sets must relate.
#[derive(Clone, Copy, Debug)]
enum Relation {
    Exact,
    Subset,
    Superset,
    Any,
}

impl Relation {
    fn holds<T: Ord>(self, stored: &BTreeSet<T>, wanted: &BTreeSet<T>) -> bool {
        match self {
            Self::Exact => stored == wanted,
            Self::Subset => stored.is_subset(wanted),
            Self::Superset => stored.is_superset(wanted),
            Self::Any => !stored.is_disjoint(wanted),
        }
    }
}

/// Which entries are wanted.
#[derive(Debug, Default)]
pub(crate) struct EntryFilter {
    spiffe_id: Option<SpiffeId>,
    parent_id: Option<SpiffeId>,
    selectors: Option<(Relation, BTreeSet<Selector>)>,
    federates_with: Option<(Relation, BTreeSet<TrustDomain>)>,
    hint: Option<String>,
    /// Only those that sign for servers below.
    downstream: bool,
}

impl EntryFilter {
    pub(crate) fn of_list(filter: Option<entry_api::list_entries_request::Filter>) -> Result<Self, Refusal> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        Ok(Self {
            spiffe_id: filter.by_spiffe_id.map(|id| id_of("by_spiffe_id", Some(&id))).transpose()?,
            parent_id: filter.by_parent_id.map(|id| id_of("by_parent_id", Some(&id))).transpose()?,
            selectors: filter.by_selectors.as_ref().map(by_selectors).transpose()?,
            federates_with: filter.by_federates_with.as_ref().map(by_domains).transpose()?,
            hint: filter.by_hint,
            // SPIRE's command line always says one of both: `false` is no wish.
            downstream: filter.by_downstream == Some(true),
        })
    }

    pub(crate) fn of_count(filter: Option<entry_api::count_entries_request::Filter>) -> Result<Self, Refusal> {
        Self::of_list(filter.map(|filter| entry_api::list_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        }))
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        self.spiffe_id.as_ref().is_none_or(|id| *id == entry.spiffe_id)
            && self.parent_id.as_ref().is_none_or(|id| *id == entry.parent_id)
            && self.selectors.as_ref().is_none_or(|(relation, wanted)| relation.holds(&entry.selectors, wanted))
            && self.federates_with.as_ref().is_none_or(|(relation, set)| relation.holds(&entry.federates_with, set))
            && self.hint.as_ref().is_none_or(|hint| *hint == entry.hint)
            && (entry.downstream || !self.downstream)
    }
}

/// Which nodes are wanted.
#[derive(Debug, Default)]
pub(crate) struct AgentFilter {
    attestation_type: Option<String>,
    selectors: Option<(Relation, BTreeSet<Selector>)>,
    banned: Option<bool>,
    can_reattest: Option<bool>,
    expires_before: Option<i64>,
}

impl AgentFilter {
    pub(crate) fn of_list(filter: Option<agent_api::list_agents_request::Filter>) -> Result<Self, Refusal> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        let text = Some(filter.by_expires_before).filter(|text| !text.is_empty());
        Ok(Self {
            attestation_type: Some(filter.by_attestation_type).filter(|text| !text.is_empty()),
            selectors: filter.by_selector_match.as_ref().map(by_selectors).transpose()?,
            banned: filter.by_banned,
            can_reattest: filter.by_can_reattest,
            expires_before: text.map(|text| moment_of(&text)).transpose()?,
        })
    }

    pub(crate) fn of_count(filter: Option<agent_api::count_agents_request::Filter>) -> Result<Self, Refusal> {
        Self::of_list(filter.map(|filter| agent_api::list_agents_request::Filter {
            by_attestation_type: filter.by_attestation_type,
            by_selector_match: filter.by_selector_match,
            by_banned: filter.by_banned,
            by_can_reattest: filter.by_can_reattest,
            by_expires_before: filter.by_expires_before,
        }))
    }

    pub(crate) fn matches(&self, agent: &Agent) -> bool {
        self.attestation_type.as_ref().is_none_or(|kind| *kind == agent.attestation_type)
            && self.selectors.as_ref().is_none_or(|(relation, wanted)| relation.holds(&agent.selectors, wanted))
            && self.banned.is_none_or(|banned| banned == agent.banned)
            && self.can_reattest.is_none_or(|can| can == agent.can_reattest)
            && self.expires_before.is_none_or(|moment| agent.expires_at < moment)
    }
}

fn by_selectors(filter: &SelectorMatch) -> Result<(Relation, BTreeSet<Selector>), Refusal> {
    use selector_match::MatchBehavior as M;
    let relation = match M::try_from(filter.r#match).map_err(|_| Refusal::Filter("match"))? {
        M::MatchExact => Relation::Exact,
        M::MatchSubset => Relation::Subset,
        M::MatchSuperset => Relation::Superset,
        M::MatchAny => Relation::Any,
    };
    Ok((relation, selectors_of(&filter.selectors)?))
}

fn by_domains(filter: &FederatesWithMatch) -> Result<(Relation, BTreeSet<TrustDomain>), Refusal> {
    use federates_with_match::MatchBehavior as M;
    let relation = match M::try_from(filter.r#match).map_err(|_| Refusal::Filter("match"))? {
        M::MatchExact => Relation::Exact,
        M::MatchSubset => Relation::Subset,
        M::MatchSuperset => Relation::Superset,
        M::MatchAny => Relation::Any,
    };
    let parse = |name: &String| TrustDomain::parse(name.strip_prefix("spiffe://").unwrap_or(name));
    let domains: Result<BTreeSet<_>, _> = filter.trust_domains.iter().map(parse).collect();
    Ok((relation, domains.map_err(|_| Refusal::Filter("by_federates_with"))?))
}

/// RFC 3339, or as SPIRE's command line writes it: `2006-01-02 15:04:05 -0700 MST`.
fn moment_of(text: &str) -> Result<i64, Refusal> {
    let refused = || Refusal::Filter("by_expires_before");
    let spire = text.split(' ').take(3).collect::<Vec<_>>();
    let spaced = if let [date, time, zone] = spire[..] { format!("{date}T{time}{zone}") } else { text.to_owned() };
    let parsed: jiff::Timestamp = text.parse().or_else(|_| spaced.parse()).map_err(|_| refused())?;
    Ok(parsed.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agent, entry};
    use proto::spire::api::types;

    fn set(values: &[&str]) -> BTreeSet<Selector> {
        values.iter().map(|value| Selector::new("unix", *value)).collect()
    }

    fn found(relation: selector_match::MatchBehavior, wanted: &[&str]) -> Vec<usize> {
        let selectors = wanted.iter().map(|v| types::Selector { r#type: "unix".into(), value: (*v).into() }).collect();
        let by_selectors = Some(SelectorMatch { selectors, r#match: relation.into() });
        let filter = entry_api::list_entries_request::Filter { by_selectors, ..Default::default() };
        let filter = EntryFilter::of_list(Some(filter)).unwrap();
        let stored = [set(&["a"]), set(&["a", "b"]), set(&["a", "b", "c"]), set(&["x"])];
        let matches = |stored: &BTreeSet<Selector>| {
            filter.matches(&Entry { selectors: stored.clone(), ..entry("e", "/w", "/p") })
        };
        (0..stored.len()).filter(|at| matches(&stored[*at])).collect()
    }

    #[test]
    fn sets_of_selectors_relate_in_four_ways() {
        use selector_match::MatchBehavior as M;
        assert_eq!(found(M::MatchExact, &["a", "b"]), [1]);
        assert_eq!(found(M::MatchSubset, &["a", "b"]), [0, 1]);
        assert_eq!(found(M::MatchSuperset, &["a", "b"]), [1, 2]);
        assert_eq!(found(M::MatchAny, &["a", "b"]), [0, 1, 2]);
    }

    /// SPIRE's `entry show` asks with `by_downstream: false`; entries that make authorities were missing from its list.
    #[test]
    fn a_list_leaves_no_downstream_entry_out_unless_only_those_are_wanted() {
        let both = [entry("e", "/w", "/p"), Entry { downstream: true, ..entry("d", "/d", "/p") }];
        for (by_downstream, expected) in [(None, "ed"), (Some(false), "ed"), (Some(true), "d")] {
            let filter = entry_api::count_entries_request::Filter { by_downstream, ..Default::default() };
            let filter = EntryFilter::of_count(Some(filter)).unwrap();
            let found: String = both.iter().filter(|entry| filter.matches(entry)).map(|e| e.id.as_str()).collect();
            assert_eq!(found, expected, "{by_downstream:?}");
        }
    }

    #[test]
    fn an_unknown_relation_is_refused() {
        let selectors = vec![types::Selector { r#type: "unix".into(), value: "a".into() }];
        assert!(by_selectors(&SelectorMatch { selectors, r#match: 9 }).is_err());
    }

    #[test]
    fn nodes_are_found_by_what_they_are() {
        let check = |filter: agent_api::list_agents_request::Filter, expected: bool| {
            let node = agent("/spire/agent/join_token/a");
            assert_eq!(AgentFilter::of_list(Some(filter)).unwrap().matches(&node), expected);
        };
        check(agent_api::list_agents_request::Filter { by_banned: Some(true), ..Default::default() }, false);
        check(
            agent_api::list_agents_request::Filter { by_attestation_type: "join_token".into(), ..Default::default() },
            true,
        );
        for (moment, expected) in
            [("2033-05-18T03:33:20Z", false), ("2033-05-18T03:33:21Z", true), ("2033-05-18 03:33:21 +0000 UTC", true)]
        {
            check(
                agent_api::list_agents_request::Filter { by_expires_before: moment.into(), ..Default::default() },
                expected,
            );
        }
        let bad = agent_api::list_agents_request::Filter { by_expires_before: "soon".into(), ..Default::default() };
        assert!(AgentFilter::of_list(Some(bad)).is_err());
    }
}
