//! Between the messages of the wire and the types of this crate; everything that comes in is checked here.

use std::collections::BTreeSet;

use identity::spiffe_id::{SpiffeId, TrustDomain};
use proto::spire::api::types;

use crate::agent::Agent;
use crate::entry::{self, Entry, Selector};
use crate::names;
use crate::refusal::Refusal;

/// The ID in `message`, of any trust domain.
pub(crate) fn id_of(field: &'static str, message: Option<&types::Spiffeid>) -> Result<SpiffeId, Refusal> {
    let message = message.ok_or(Refusal::IdRefused { field, problem: "is missing" })?;
    let domain = message.trust_domain.strip_prefix("spiffe://").unwrap_or(&message.trust_domain);
    let domain = TrustDomain::parse(domain).map_err(|source| Refusal::Id { field, source })?;
    domain.with_path(&message.path).map_err(|source| Refusal::Id { field, source })
}

/// The same, with a path, within `domain`.
pub(crate) fn member_of(
    field: &'static str,
    message: Option<&types::Spiffeid>,
    domain: &TrustDomain,
) -> Result<SpiffeId, Refusal> {
    let id = id_of(field, message)?;
    let refused = |problem| Err(Refusal::IdRefused { field, problem });
    if !id.is_member_of(domain) {
        return refused("is not in the trust domain of this server");
    }
    if id.path().is_empty() {
        return refused("has no path");
    }
    Ok(id)
}

/// The same, free for workloads: `/spire/…` is reserved for servers and agents.
pub(crate) fn workload_of(
    field: &'static str,
    message: Option<&types::Spiffeid>,
    domain: &TrustDomain,
) -> Result<SpiffeId, Refusal> {
    let id = member_of(field, message, domain)?;
    check_not_reserved(field, &id)?;
    Ok(id)
}

/// Refuses an ID below `/spire`.
pub(crate) fn check_not_reserved(field: &'static str, id: &SpiffeId) -> Result<(), Refusal> {
    if id.path() == "/spire" || id.path().starts_with("/spire/") {
        return Err(Refusal::IdRefused { field, problem: "begins with /spire, which is reserved" });
    }
    Ok(())
}

pub(crate) fn id_message(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}

pub(crate) fn selectors_of(messages: &[types::Selector]) -> Result<BTreeSet<Selector>, Refusal> {
    let refused = |problem| Err(Refusal::Entry { field: "selectors", problem });
    if messages.is_empty() {
        return refused("must name at least one");
    }
    if messages.len() > entry::SELECTORS_MAX {
        return refused("are too many");
    }
    let mut selectors = BTreeSet::new();
    for types::Selector { r#type, value } in messages {
        if r#type.is_empty() || r#type.len() > entry::SELECTOR_TYPE_BYTES_MAX || r#type.contains(':') {
            return refused("need a type, without a colon");
        }
        if value.is_empty() || value.len() > entry::SELECTOR_VALUE_BYTES_MAX {
            return refused("need a value");
        }
        if r#type.chars().chain(value.chars()).any(char::is_control) {
            return refused("hold a control character");
        }
        selectors.insert(Selector::new(r#type.clone(), value.clone()));
    }
    Ok(selectors)
}

pub(crate) fn selector_messages(selectors: &BTreeSet<Selector>) -> Vec<types::Selector> {
    selectors.iter().map(|s| types::Selector { r#type: s.kind.clone(), value: s.value.clone() }).collect()
}

/// What of an entry is to be set; everything in it is checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct EntryPatch {
    spiffe_id: Option<SpiffeId>,
    parent_id: Option<SpiffeId>,
    selectors: Option<BTreeSet<Selector>>,
    federates_with: Option<BTreeSet<TrustDomain>>,
    dns_names: Option<Vec<String>>,
    hint: Option<String>,
    x509_svid_ttl: Option<i64>,
    jwt_svid_ttl: Option<i64>,
    admin: Option<bool>,
    downstream: Option<bool>,
    store_svid: Option<bool>,
    expires_at: Option<i64>,
    attributes: Option<(bool, bool)>,
}

impl EntryPatch {
    /// Reads those fields of `message` that `mask` names.
    pub(crate) fn read(
        message: &types::Entry,
        mask: &types::EntryMask,
        domain: &TrustDomain,
        ttl_max: i64,
    ) -> Result<Self, Refusal> {
        let ttl = |field, ttl: i32| check_ttl(field, ttl, ttl_max);
        let spiffe_id = || workload_of("spiffe_id", message.spiffe_id.as_ref(), domain);
        let parent_id = || member_of("parent_id", message.parent_id.as_ref(), domain);
        let attributes = message.additional_attributes.unwrap_or_default();
        let attributes = (attributes.disable_x509_svid_prefetch, attributes.jwt_svid_include_jti);
        Ok(Self {
            spiffe_id: mask.spiffe_id.then(spiffe_id).transpose()?,
            parent_id: mask.parent_id.then(parent_id).transpose()?,
            selectors: mask.selectors.then(|| selectors_of(&message.selectors)).transpose()?,
            federates_with: mask.federates_with.then(|| domains_of(&message.federates_with, domain)).transpose()?,
            dns_names: mask.dns_names.then(|| dns_names_of(&message.dns_names)).transpose()?,
            hint: mask.hint.then(|| hint_of(&message.hint)).transpose()?,
            x509_svid_ttl: mask.x509_svid_ttl.then(|| ttl("x509_svid_ttl", message.x509_svid_ttl)).transpose()?,
            jwt_svid_ttl: mask.jwt_svid_ttl.then(|| ttl("jwt_svid_ttl", message.jwt_svid_ttl)).transpose()?,
            admin: mask.admin.then_some(message.admin),
            downstream: mask.downstream.then_some(message.downstream),
            store_svid: mask.store_svid.then_some(message.store_svid),
            expires_at: mask.expires_at.then(|| check_moment(message.expires_at)).transpose()?,
            attributes: mask.additional_attributes.then_some(attributes),
        })
    }

    /// The foreign trust domains that the entry will name.
    pub(crate) fn federates_with(&self) -> impl Iterator<Item = &TrustDomain> {
        self.federates_with.iter().flatten()
    }

    /// A new entry; the patch must have been read with [`whole_mask`].
    pub(crate) fn into_entry(self, id: String, now: i64) -> Result<Entry, Refusal> {
        let missing = |field| Refusal::Entry { field, problem: "is missing" };
        let mut entry = Entry {
            id,
            spiffe_id: self.spiffe_id.clone().ok_or_else(|| missing("spiffe_id"))?,
            parent_id: self.parent_id.clone().ok_or_else(|| missing("parent_id"))?,
            selectors: BTreeSet::new(),
            federates_with: BTreeSet::new(),
            dns_names: Vec::new(),
            hint: String::new(),
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            admin: false,
            downstream: false,
            store_svid: false,
            no_prefetch: false,
            jwt_jti: false,
            expires_at: 0,
            revision: 0,
            created_at: now,
        };
        self.apply(&mut entry);
        Ok(entry)
    }

    pub(crate) fn apply(self, entry: &mut Entry) {
        fn set<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        set(&mut entry.spiffe_id, self.spiffe_id);
        set(&mut entry.parent_id, self.parent_id);
        set(&mut entry.selectors, self.selectors);
        set(&mut entry.federates_with, self.federates_with);
        set(&mut entry.dns_names, self.dns_names);
        set(&mut entry.hint, self.hint);
        set(&mut entry.x509_svid_ttl, self.x509_svid_ttl);
        set(&mut entry.jwt_svid_ttl, self.jwt_svid_ttl);
        set(&mut entry.admin, self.admin);
        set(&mut entry.downstream, self.downstream);
        set(&mut entry.store_svid, self.store_svid);
        set(&mut entry.expires_at, self.expires_at);
        if let Some((no_prefetch, jwt_jti)) = self.attributes {
            (entry.no_prefetch, entry.jwt_jti) = (no_prefetch, jwt_jti);
        }
    }
}

/// The id of a new entry: the creator's choice, or a random one.
pub(crate) fn entry_id_of(id: &str) -> Result<String, Refusal> {
    if id.is_empty() {
        return Ok(crate::random::uuid());
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if id.len() > entry::ENTRY_ID_BYTES_MAX || !id.bytes().all(allowed) {
        return Err(Refusal::Entry { field: "id", problem: "may hold letters, digits, dash, dot and underscore only" });
    }
    Ok(id.to_owned())
}

/// A mask that names everything.
pub(crate) const fn whole_mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        parent_id: true,
        selectors: true,
        x509_svid_ttl: true,
        federates_with: true,
        admin: true,
        downstream: true,
        expires_at: true,
        dns_names: true,
        revision_number: true,
        store_svid: true,
        jwt_svid_ttl: true,
        hint: true,
        created_at: true,
        additional_attributes: true,
    }
}

/// The entry as a message, with those fields that `mask` names (all without one). The id always stands.
pub(crate) fn entry_message(entry: &Entry, mask: Option<&types::EntryMask>) -> types::Entry {
    let whole = whole_mask();
    let mask = mask.unwrap_or(&whole);
    let ttl = |wanted: bool, ttl: i64| if wanted { i32::try_from(ttl).unwrap_or(i32::MAX) } else { 0 };
    let attributes = types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: entry.no_prefetch,
        jwt_svid_include_jti: entry.jwt_jti,
    };
    let has_attributes = entry.no_prefetch || entry.jwt_jti;
    types::Entry {
        id: entry.id.clone(),
        spiffe_id: mask.spiffe_id.then(|| id_message(&entry.spiffe_id)),
        parent_id: mask.parent_id.then(|| id_message(&entry.parent_id)),
        selectors: if mask.selectors { selector_messages(&entry.selectors) } else { Vec::new() },
        x509_svid_ttl: ttl(mask.x509_svid_ttl, entry.x509_svid_ttl),
        federates_with: match mask.federates_with {
            true => entry.federates_with.iter().map(|domain| domain.as_str().to_owned()).collect(),
            false => Vec::new(),
        },
        admin: mask.admin && entry.admin,
        downstream: mask.downstream && entry.downstream,
        expires_at: if mask.expires_at { entry.expires_at } else { 0 },
        dns_names: if mask.dns_names { entry.dns_names.clone() } else { Vec::new() },
        revision_number: if mask.revision_number { entry.revision } else { 0 },
        store_svid: mask.store_svid && entry.store_svid,
        jwt_svid_ttl: ttl(mask.jwt_svid_ttl, entry.jwt_svid_ttl),
        hint: if mask.hint { entry.hint.clone() } else { String::new() },
        created_at: if mask.created_at { entry.created_at } else { 0 },
        additional_attributes: (mask.additional_attributes && has_attributes).then_some(attributes),
    }
}

/// The node as a message, with those fields that `mask` names (all without one). The id always stands.
pub(crate) fn agent_message(agent: &Agent, mask: Option<&types::AgentMask>) -> types::Agent {
    let wants = |field: fn(&types::AgentMask) -> bool| mask.is_none_or(field);
    let text = |wanted: bool, text: &str| if wanted { text.to_owned() } else { String::new() };
    types::Agent {
        id: Some(id_message(&agent.id)),
        attestation_type: text(wants(|mask| mask.attestation_type), &agent.attestation_type),
        x509svid_serial_number: text(wants(|mask| mask.x509svid_serial_number), &agent.serial),
        x509svid_expires_at: if wants(|mask| mask.x509svid_expires_at) { agent.expires_at } else { 0 },
        selectors: match wants(|mask| mask.selectors) {
            true => selector_messages(&agent.selectors),
            false => Vec::new(),
        },
        banned: wants(|mask| mask.banned) && agent.banned,
        can_reattest: wants(|mask| mask.can_reattest) && agent.can_reattest,
        agent_version: text(wants(|mask| mask.agent_version), &agent.version),
        kasbah_configured: Vec::new(),
    }
}

/// Audiences of a JWT-SVID.
pub(crate) fn audiences_of(audiences: Vec<String>) -> Result<Vec<String>, Refusal> {
    if audiences.is_empty() || audiences.iter().all(String::is_empty) {
        return Err(Refusal::Audience("is missing"));
    }
    if audiences.iter().any(String::is_empty) {
        return Err(Refusal::Audience("holds an empty value"));
    }
    if audiences.len() > AUDIENCES_MAX || audiences.iter().any(|audience| audience.len() > AUDIENCE_BYTES_MAX) {
        return Err(Refusal::Audience("is too long"));
    }
    Ok(audiences)
}

fn domains_of(names: &[String], own: &TrustDomain) -> Result<BTreeSet<TrustDomain>, Refusal> {
    let field = "federates_with";
    if names.len() > entry::FEDERATES_WITH_MAX {
        return Err(Refusal::Entry { field, problem: "are too many" });
    }
    let mut domains = BTreeSet::new();
    for name in names {
        let name = name.strip_prefix("spiffe://").unwrap_or(name);
        let domain = TrustDomain::parse(name).map_err(|source| Refusal::Id { field, source })?;
        if domain == *own {
            return Err(Refusal::Entry { field, problem: "names the own trust domain" });
        }
        domains.insert(domain);
    }
    Ok(domains)
}

fn dns_names_of(names: &[String]) -> Result<Vec<String>, Refusal> {
    let field = "dns_names";
    if names.len() > entry::DNS_NAMES_MAX {
        return Err(Refusal::Entry { field, problem: "are too many" });
    }
    let mut seen = BTreeSet::new();
    for name in names {
        if !names::is_dns_name(name) {
            return Err(Refusal::Entry { field, problem: "hold something that is no DNS name" });
        }
        if !seen.insert(name) {
            return Err(Refusal::Entry { field, problem: "hold a name twice" });
        }
    }
    Ok(names.to_vec())
}

fn hint_of(hint: &str) -> Result<String, Refusal> {
    if hint.len() > entry::HINT_BYTES_MAX || hint.chars().any(char::is_control) {
        return Err(Refusal::Entry { field: "hint", problem: "is too long or holds a control character" });
    }
    Ok(hint.to_owned())
}

fn check_ttl(field: &'static str, ttl: i32, ttl_max: i64) -> Result<i64, Refusal> {
    match i64::from(ttl) {
        ttl if ttl < 0 => Err(Refusal::Entry { field, problem: "is negative" }),
        ttl if ttl > ttl_max => Err(Refusal::Entry { field, problem: "is above the setting svid_ttl_max" }),
        ttl => Ok(ttl),
    }
}

fn check_moment(moment: i64) -> Result<i64, Refusal> {
    if moment < 0 { Err(Refusal::Entry { field: "expires_at", problem: "is negative" }) } else { Ok(moment) }
}

/// The most audiences of one token.
pub(crate) const AUDIENCES_MAX: usize = 32;
/// The most bytes of an audience.
pub(crate) const AUDIENCE_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trust_domain;

    fn spiffe_id(path: &str) -> Option<types::Spiffeid> {
        Some(types::Spiffeid { trust_domain: "example.org".into(), path: path.into() })
    }

    fn message() -> types::Entry {
        types::Entry {
            spiffe_id: spiffe_id("/web"),
            parent_id: spiffe_id("/spire/agent/join_token/x"),
            selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1".into() }],
            x509_svid_ttl: 60,
            jwt_svid_ttl: 30,
            federates_with: vec!["other.org".into()],
            admin: true,
            downstream: true,
            store_svid: true,
            expires_at: 99,
            dns_names: vec!["web.local".into()],
            hint: "h".into(),
            additional_attributes: Some(types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: true,
            }),
            ..types::Entry::default()
        }
    }

    fn read(message: &types::Entry) -> Result<Entry, Refusal> {
        EntryPatch::read(message, &whole_mask(), &trust_domain(), 3600)?.into_entry("e".into(), 7)
    }

    #[test]
    fn every_field_survives_the_way_in_and_out() {
        let out = entry_message(&read(&message()).unwrap(), None);
        assert_eq!(out, types::Entry { id: "e".into(), created_at: 7, ..message() });
        for (admin, downstream) in [(true, false), (false, true)] {
            let entry = read(&types::Entry { admin, downstream, ..message() }).unwrap();
            assert_eq!((entry.admin, entry.downstream), (admin, downstream), "one flag never becomes the other");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_field() {
        let check = |field: &str, change: fn(&mut types::Entry)| {
            let mut message = message();
            change(&mut message);
            let refusal = read(&message).unwrap_err();
            assert!(refusal.to_string().starts_with(field), "{field}: {refusal}");
            assert_eq!(refusal.code(), tonic::Code::InvalidArgument);
        };
        check("spiffe_id", |m| m.spiffe_id = None);
        check("spiffe_id", |m| m.spiffe_id = spiffe_id("/spire/server"));
        check("spiffe_id", |m| m.spiffe_id = spiffe_id("/a/../b"));
        check("spiffe_id", |m| m.spiffe_id = spiffe_id(""));
        check("spiffe_id", |m| m.spiffe_id = Some(types::Spiffeid { trust_domain: "b".into(), path: "/w".into() }));
        check("parent_id", |m| m.parent_id = None);
        check("selectors", |m| m.selectors.clear());
        check("selectors", |m| m.selectors[0].r#type = "a:b".into());
        check("selectors", |m| m.selectors[0].value = "a\nb".into());
        check("selectors", |m| m.selectors[0].value.clear());
        check("x509_svid_ttl", |m| m.x509_svid_ttl = -1);
        check("jwt_svid_ttl", |m| m.jwt_svid_ttl = 3601);
        check("federates_with", |m| m.federates_with = vec!["example.org".into()]);
        check("federates_with", |m| m.federates_with = vec!["A".into()]);
        check("dns_names", |m| m.dns_names = vec!["a b".into()]);
        check("dns_names", |m| m.dns_names = vec!["a".into(), "a".into()]);
        check("hint", |m| m.hint = "\u{7}".into());
        check("expires_at", |m| m.expires_at = -1);
    }

    #[test]
    fn limits_hold_at_their_edges() {
        let many = |count: usize| {
            (0..count).map(|n| types::Selector { r#type: "t".into(), value: n.to_string() }).collect::<Vec<_>>()
        };
        assert!(selectors_of(&many(entry::SELECTORS_MAX)).is_ok());
        assert!(selectors_of(&many(entry::SELECTORS_MAX + 1)).is_err());
        assert!(entry_id_of(&"i".repeat(entry::ENTRY_ID_BYTES_MAX)).is_ok());
        assert!(entry_id_of(&"i".repeat(entry::ENTRY_ID_BYTES_MAX + 1)).is_err());
        assert!(entry_id_of("a/b").is_err());
        assert!(audiences_of(vec!["a".repeat(AUDIENCE_BYTES_MAX); AUDIENCES_MAX]).is_ok());
        assert!(audiences_of(vec!["a".into(); AUDIENCES_MAX + 1]).is_err());
        assert!(audiences_of(vec![]).is_err() && audiences_of(vec![String::new()]).is_err());
    }

    #[test]
    fn a_mask_leaves_out_what_it_does_not_name() {
        let entry = read(&message()).unwrap();
        let mask = types::EntryMask { hint: true, ..types::EntryMask::default() };
        let expected = types::Entry { id: "e".into(), hint: "h".into(), ..types::Entry::default() };
        assert_eq!(entry_message(&entry, Some(&mask)), expected);
        let mut changed = entry.clone();
        let patch = EntryPatch::read(
            &types::Entry { hint: "new".into(), ..types::Entry::default() },
            &mask,
            &trust_domain(),
            1,
        );
        patch.unwrap().apply(&mut changed);
        assert_eq!(changed, Entry { hint: "new".into(), ..entry });
    }
}
