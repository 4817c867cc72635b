//! The one way in which verbs talk to a certificate authority: SPIRE's server API over the CA's local admin socket, or over
//! mTLS to one elsewhere ([`remote`]).

mod custody;
mod federation;
pub(crate) mod remote;
mod rotation;

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::kasbah::ca::v1::registration_client::RegistrationClient;
use proto::kasbah::ca::v1::{ApplyEntriesRequest, RefusedEntry};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    list_agents_request,
};
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, GetEntryRequest, ListEntriesRequest,
    list_entries_request,
};
use proto::spire::api::types::{
    Agent, Bundle, Entry, FederatesWithMatch, JoinToken, Selector, SelectorMatch, Spiffeid, Status,
    federates_with_match, selector_match,
};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::exit::{Exit, Failure, chain, is_denied};

/// A connection to the CA.
pub(crate) struct CaClient {
    channel: Channel,
}

/// What a registration entry shall say.
#[derive(Clone, Debug, Default)]
pub(crate) struct EntrySpec {
    pub(crate) spiffe_id: String,
    pub(crate) parent_id: String,
    /// `TYPE:VALUE`.
    pub(crate) selectors: Vec<String>,
    /// Seconds; 0 is the CA's default.
    pub(crate) x509_svid_ttl: i32,
    /// Seconds; 0 is the CA's default.
    pub(crate) jwt_svid_ttl: i32,
    pub(crate) dns_names: Vec<String>,
    pub(crate) federates_with: Vec<String>,
    pub(crate) hint: String,
    pub(crate) admin: bool,
    pub(crate) downstream: bool,
    pub(crate) store_svid: bool,
    /// Seconds since the epoch; 0 is never.
    pub(crate) expires_at: i64,
}

/// Which entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct EntryFilter<'a> {
    pub(crate) spiffe_id: Option<&'a str>,
    pub(crate) parent_id: Option<&'a str>,
    /// All of them, `TYPE:VALUE`.
    pub(crate) selectors: &'a [String],
    pub(crate) hint: Option<&'a str>,
    /// All of them.
    pub(crate) federates_with: &'a [String],
    pub(crate) downstream: Option<bool>,
}

/// Which nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeFilter<'a> {
    pub(crate) attestation_type: Option<&'a str>,
    /// All of them, `TYPE:VALUE`.
    pub(crate) selectors: &'a [String],
    pub(crate) banned: Option<bool>,
    pub(crate) can_reattest: Option<bool>,
    /// Seconds since the epoch.
    pub(crate) expires_before: Option<i64>,
}

impl CaClient {
    /// Connects to the admin socket; an absent mesh is said plainly.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, Failure> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://ca.admin").timeout(CALL_WAIT_MAX);
        match endpoint.connect_with_connector(connector).await {
            Ok(channel) => Ok(Self { channel }),
            Err(error) => Err(unconnected(socket, &error)),
        }
    }

    /// For the services of Kasbah's own.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Creates the entries that are not there, and corrects the TTL of those that are.
    pub(crate) async fn ensure_entries(&self, specs: &[EntrySpec]) -> Result<(), Failure> {
        let have = self.list_entries(&EntryFilter::default()).await?;
        let mut missing = Vec::new();
        let mut changed = Vec::new();
        for spec in specs {
            let wanted = to_entry(spec)?;
            match have.iter().find(|e| e.spiffe_id == wanted.spiffe_id && same_source(e, &wanted)) {
                None => missing.push(wanted),
                Some(old) if old.x509_svid_ttl != wanted.x509_svid_ttl => {
                    changed.push(Entry { id: old.id.clone(), ..wanted });
                }
                Some(_) => {}
            }
        }
        if !missing.is_empty() {
            self.create_entries(missing).await?;
        }
        if !changed.is_empty() {
            self.update_entries(changed).await?;
        }
        Ok(())
    }

    pub(crate) async fn create_entry(&self, spec: &EntrySpec) -> Result<Entry, Failure> {
        let mut created = self.create_entries(vec![to_entry(spec)?]).await?;
        created.pop().ok_or_else(|| Failure::failed("the CA answered without an entry"))
    }

    async fn create_entries(&self, entries: Vec<Entry>) -> Result<Vec<Entry>, Failure> {
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        let response = EntryClient::new(self.channel.clone()).batch_create_entry(request).await?.into_inner();
        response.results.into_iter().map(|r| item(r.status, r.entry)).collect()
    }

    async fn update_entries(&self, entries: Vec<Entry>) -> Result<Vec<Entry>, Failure> {
        let request = BatchUpdateEntryRequest { entries, input_mask: None, output_mask: None };
        let response = EntryClient::new(self.channel.clone()).batch_update_entry(request).await?.into_inner();
        response.results.into_iter().map(|r| item(r.status, r.entry)).collect()
    }

    pub(crate) async fn update_entry(&self, id: &str, spec: &EntrySpec) -> Result<Entry, Failure> {
        let entry = Entry { id: id.to_owned(), ..to_entry(spec)? };
        let mut updated = self.update_entries(vec![entry]).await?;
        updated.pop().ok_or_else(|| Failure::failed("the CA answered without an entry"))
    }

    /// Makes all of these changes or none; answers what is refused, by the entry's id. Nothing when this CA does not offer it.
    pub(crate) async fn apply_entries(&self, changes: ApplyEntriesRequest) -> Result<Option<Vec<String>>, Failure> {
        let refused = match RegistrationClient::new(self.channel.clone()).apply_entries(changes).await {
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            answer => answer?.into_inner().refused,
        };
        let line = |refused: RefusedEntry| {
            let why = item(refused.status, Some(())).err().map(|failure| failure.to_string());
            format!("{}: {}", refused.id, why.unwrap_or_else(|| "refused".to_owned()))
        };
        Ok(Some(refused.into_iter().map(line).collect()))
    }

    /// Creates many; one outcome for each.
    pub(crate) async fn try_create_entries(&self, entries: &[Entry]) -> Result<Vec<Result<Entry, Failure>>, Failure> {
        let mut outcomes = Vec::with_capacity(entries.len());
        for entries in entries.chunks(BATCH_ENTRIES) {
            let request = BatchCreateEntryRequest { entries: entries.to_vec(), output_mask: None };
            let answer = EntryClient::new(self.channel.clone()).batch_create_entry(request).await?.into_inner();
            outcomes.extend(answer.results.into_iter().map(|r| item(r.status, r.entry)));
        }
        Ok(outcomes)
    }

    /// Replaces the content of many; one outcome for each.
    pub(crate) async fn try_update_entries(&self, entries: &[Entry]) -> Result<Vec<Result<Entry, Failure>>, Failure> {
        let mut outcomes = Vec::with_capacity(entries.len());
        for entries in entries.chunks(BATCH_ENTRIES) {
            let request = BatchUpdateEntryRequest { entries: entries.to_vec(), input_mask: None, output_mask: None };
            let answer = EntryClient::new(self.channel.clone()).batch_update_entry(request).await?.into_inner();
            outcomes.extend(answer.results.into_iter().map(|r| item(r.status, r.entry)));
        }
        Ok(outcomes)
    }

    /// Deletes many; one outcome for each.
    pub(crate) async fn try_delete_entries(&self, ids: &[String]) -> Result<Vec<Result<(), Failure>>, Failure> {
        let mut outcomes = Vec::with_capacity(ids.len());
        for ids in ids.chunks(BATCH_ENTRIES) {
            let request = BatchDeleteEntryRequest { ids: ids.to_vec() };
            let answer = EntryClient::new(self.channel.clone()).batch_delete_entry(request).await?.into_inner();
            outcomes.extend(answer.results.into_iter().map(|r| item(r.status, Some(()))));
        }
        Ok(outcomes)
    }

    pub(crate) async fn delete_entry(&self, id: &str) -> Result<(), Failure> {
        let request = BatchDeleteEntryRequest { ids: vec![id.to_owned()] };
        let response = EntryClient::new(self.channel.clone()).batch_delete_entry(request).await?.into_inner();
        response.results.into_iter().try_for_each(|r| item(r.status, Some(())))
    }

    pub(crate) async fn entry(&self, id: &str) -> Result<Entry, Failure> {
        let request = GetEntryRequest { id: id.to_owned(), output_mask: None };
        Ok(EntryClient::new(self.channel.clone()).get_entry(request).await?.into_inner())
    }

    /// Entries, page by page.
    pub(crate) async fn list_entries(&self, filter: &EntryFilter<'_>) -> Result<Vec<Entry>, Failure> {
        let federates = (!filter.federates_with.is_empty()).then(|| FederatesWithMatch {
            trust_domains: filter.federates_with.to_vec(),
            r#match: federates_with_match::MatchBehavior::MatchSuperset.into(),
        });
        let filter = list_entries_request::Filter {
            by_spiffe_id: filter.spiffe_id.map(to_id).transpose()?,
            by_parent_id: filter.parent_id.map(to_id).transpose()?,
            by_selectors: with_all(filter.selectors)?,
            by_federates_with: federates,
            by_hint: filter.hint.map(str::to_owned),
            by_downstream: filter.downstream,
        };
        let mut client = EntryClient::new(self.channel.clone());
        let mut entries = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListEntriesRequest {
                filter: Some(filter.clone()),
                page_size: PAGE_ENTRIES,
                page_token,
                ..Default::default()
            };
            let page = client.list_entries(request).await?.into_inner();
            entries.extend(page.entries);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(entries);
            }
        }
    }

    pub(crate) async fn create_join_token(&self, alias: Option<&str>, ttl: Duration) -> Result<JoinToken, Failure> {
        let request = CreateJoinTokenRequest {
            ttl: i32::try_from(ttl.as_secs().max(1)).unwrap_or(i32::MAX),
            token: String::new(),
            agent_id: alias.map(to_id).transpose()?,
        };
        Ok(AgentClient::new(self.channel.clone()).create_join_token(request).await?.into_inner())
    }

    /// Nodes, page by page.
    pub(crate) async fn list_nodes(&self, filter: &NodeFilter<'_>) -> Result<Vec<Agent>, Failure> {
        let filter = list_agents_request::Filter {
            by_attestation_type: filter.attestation_type.unwrap_or_default().to_owned(),
            by_selector_match: with_all(filter.selectors)?,
            by_banned: filter.banned,
            by_can_reattest: filter.can_reattest,
            by_expires_before: filter.expires_before.map(crate::verbs::time_text).unwrap_or_default(),
        };
        let mut client = AgentClient::new(self.channel.clone());
        let mut nodes = Vec::new();
        let mut page_token = String::new();
        loop {
            let filter = Some(filter.clone());
            let request = ListAgentsRequest { filter, page_size: PAGE_ENTRIES, page_token, ..Default::default() };
            let page = client.list_agents(request).await?.into_inner();
            nodes.extend(page.agents);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(nodes);
            }
        }
    }

    pub(crate) async fn node(&self, id: &str) -> Result<Agent, Failure> {
        let request = GetAgentRequest { id: Some(to_id(id)?), output_mask: None };
        Ok(AgentClient::new(self.channel.clone()).get_agent(request).await?.into_inner())
    }

    pub(crate) async fn evict_node(&self, id: &str) -> Result<(), Failure> {
        let request = DeleteAgentRequest { id: Some(to_id(id)?) };
        AgentClient::new(self.channel.clone()).delete_agent(request).await?;
        Ok(())
    }

    pub(crate) async fn ban_node(&self, id: &str) -> Result<(), Failure> {
        let request = BanAgentRequest { id: Some(to_id(id)?) };
        AgentClient::new(self.channel.clone()).ban_agent(request).await?;
        Ok(())
    }

    pub(crate) async fn bundle(&self) -> Result<Bundle, Failure> {
        let request = GetBundleRequest { output_mask: None };
        Ok(BundleClient::new(self.channel.clone()).get_bundle(request).await?.into_inner())
    }
}

fn unconnected(socket: &Path, error: &tonic::transport::Error) -> Failure {
    let text = format!("the CA cannot be reached at {}: {}", socket.display(), chain(error));
    if is_denied(error) {
        return Failure::refused(Exit::Denied, "LOCAL_ACCESS_DENIED", text);
    }
    Failure::refused(Exit::Unavailable, "PEER_UNREACHABLE", text)
        .remedy("start the mesh with `kasbah up`, or name its folder with --dir DIR or KASBAH_DIR")
}

/// A SPIFFE ID as people write it.
pub(crate) fn id_text(id: Option<&Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default()
}

fn to_id(text: &str) -> Result<Spiffeid, Failure> {
    Ok(to_id_message(&crate::verbs::spiffe_id(text)?))
}

/// An ID as the wire carries it.
pub(crate) fn to_id_message(id: &identity::spiffe_id::SpiffeId) -> Spiffeid {
    Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}

/// A filter for what has all of `selectors`.
fn with_all(selectors: &[String]) -> Result<Option<SelectorMatch>, Failure> {
    if selectors.is_empty() {
        return Ok(None);
    }
    let selectors = selectors.iter().map(|text| to_selector(text)).collect::<Result<_, _>>()?;
    Ok(Some(SelectorMatch { selectors, r#match: selector_match::MatchBehavior::MatchSuperset.into() }))
}

fn to_entry(spec: &EntrySpec) -> Result<Entry, Failure> {
    let selectors = spec.selectors.iter().map(|text| to_selector(text)).collect::<Result<_, _>>()?;
    Ok(Entry {
        spiffe_id: Some(to_id(&spec.spiffe_id)?),
        parent_id: Some(to_id(&spec.parent_id)?),
        selectors,
        x509_svid_ttl: spec.x509_svid_ttl,
        jwt_svid_ttl: spec.jwt_svid_ttl,
        dns_names: spec.dns_names.clone(),
        federates_with: spec.federates_with.clone(),
        hint: spec.hint.clone(),
        admin: spec.admin,
        downstream: spec.downstream,
        store_svid: spec.store_svid,
        expires_at: spec.expires_at,
        ..Entry::default()
    })
}

pub(crate) fn to_selector(text: &str) -> Result<Selector, Failure> {
    match text.split_once(':') {
        Some((kind, value)) if !kind.is_empty() && !value.is_empty() => {
            Ok(Selector { r#type: kind.to_owned(), value: value.to_owned() })
        }
        _ => Err(Failure::new(Exit::Usage, format!("`{text}` is no selector"))
            .remedy("write TYPE:VALUE, such as unix:uid:1000 or launch:name:cart")),
    }
}

fn same_source(a: &Entry, b: &Entry) -> bool {
    let sorted = |entry: &Entry| {
        let mut selectors: Vec<_> = entry.selectors.iter().map(|s| (s.r#type.clone(), s.value.clone())).collect();
        selectors.sort();
        selectors
    };
    a.parent_id == b.parent_id && sorted(a) == sorted(b)
}

/// One item of a batch answer: its own status decides.
fn item<T>(status: Option<Status>, value: Option<T>) -> Result<T, Failure> {
    let status = status.unwrap_or_default();
    if status.code != 0 {
        return Err(Failure::of_item(Code::from_i32(status.code), &status.message));
    }
    value.ok_or_else(|| Failure::failed("the CA answered without the item"))
}

const CALL_WAIT_MAX: Duration = Duration::from_secs(15);
const PAGE_ENTRIES: i32 = 500;
const BATCH_ENTRIES: usize = 500;
