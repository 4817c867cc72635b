//! Nodes: attestation, renewal, reports, administration.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt;
use identity::csr::Csr;
use identity::spiffe_id::SpiffeId;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, BanAgentRequest, CountAgentsRequest,
    CountAgentsResponse, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    ListAgentsResponse, PostStatusRequest, PostStatusResponse, RenewAgentRequest, RenewAgentResponse, agent_server,
};
use proto::spire::api::types;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{agent_message, member_of, workload_of};
use super::filter::AgentFilter;
use super::svid::x509_message;
use super::{AGENT_PATH, Answers, Api, Caller, attestation, page};
use crate::agent::Agent;
use crate::attest::token_agent_id;
use crate::audit::Act;
use crate::certifier::Certifier;
use crate::entry::{Entry, Selector};
use crate::issue::{IssuedX509, X509Order};
use crate::refusal::Refusal;
use crate::rights::Permit;
use crate::rotation::contacts::{Configured, Contact};
use crate::store::{Issuance, IssuanceKind};

#[tonic::async_trait]
impl agent_server::Agent for Api {
    async fn count_agents(
        &self,
        request: Request<CountAgentsRequest>,
    ) -> Result<Response<CountAgentsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let filter = AgentFilter::of_count(request.into_inner().filter)?;
            let wanted = |agent: &&Arc<Agent>| permit.covers(&agent.id) && filter.matches(agent);
            let count = self.certifier.store.registry().agents().filter(wanted).count();
            Ok(CountAgentsResponse { count: i32::try_from(count).unwrap_or(i32::MAX) })
        };
        self.answer("CountAgents", &caller, work).await
    }

    async fn list_agents(&self, request: Request<ListAgentsRequest>) -> Result<Response<ListAgentsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let ListAgentsRequest { filter, output_mask, page_size, page_token } = request.into_inner();
            let filter = AgentFilter::of_list(filter)?;
            let registry = self.certifier.store.registry();
            let wanted = |agent: &&Arc<Agent>| permit.covers(&agent.id) && filter.matches(agent);
            let found = registry.agents().filter(|agent| agent.id.as_str() > page_token.as_str()).filter(wanted);
            let (agents, next_page_token) = page(found, page_size, |agent| agent.id.to_string());
            let agents = agents.into_iter().map(|agent| self.message(agent, output_mask.as_ref())).collect();
            Ok(ListAgentsResponse { agents, next_page_token })
        };
        self.answer("ListAgents", &caller, work).await
    }

    async fn get_agent(&self, request: Request<GetAgentRequest>) -> Result<Response<types::Agent>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let GetAgentRequest { id, output_mask } = request.into_inner();
            let id = self.agent_id(id.as_ref())?;
            permit.check(&id)?;
            let agent = self.certifier.store.registry().agent(&id).ok_or(Refusal::AgentUnknown)?;
            Ok(self.message(&agent, output_mask.as_ref()))
        };
        self.answer("GetAgent", &caller, work).await
    }

    async fn delete_agent(&self, request: Request<DeleteAgentRequest>) -> Result<Response<()>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let id = self.agent_id(request.into_inner().id.as_ref())?;
            permit.check(&id)?;
            let store = self.certifier.acting(&caller, Act::new("node.evict", &id).of(&id));
            if !store.delete_agent(&id).await? {
                return Err(Refusal::AgentUnknown);
            }
            tracing::warn!(agent = %id, caller = caller.name(), "agent deleted");
            Ok(())
        };
        self.answer("DeleteAgent", &caller, work).await
    }

    async fn ban_agent(&self, request: Request<BanAgentRequest>) -> Result<Response<()>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let id = self.agent_id(request.into_inner().id.as_ref())?;
            permit.check(&id)?;
            let store = self.certifier.acting(&caller, Act::new("node.ban", &id).of(&id));
            let ban = store.change_agent(&id, |agent| {
                agent.banned = true;
                agent.serial.clear();
                agent.new_serial.clear();
            });
            ban.await?.ok_or(Refusal::AgentUnknown)?;
            tracing::warn!(agent = %id, caller = caller.name(), "agent banned");
            Ok(())
        };
        self.answer("BanAgent", &caller, work).await
    }

    type AttestAgentStream = Answers<AttestAgentResponse>;

    /// Open to everyone: the evidence is the proof.
    async fn attest_agent(
        &self,
        request: Request<Streaming<AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let caller = self.caller(request.extensions());
        let mut answers = Box::pin(attestation::serve(self.clone(), caller, request.into_inner()));
        // A refusal at the first step is the answer to the call, and not the first message of a stream.
        let first = answers.next().await.transpose()?;
        let first = tokio_stream::iter(first.map(Ok));
        Ok(Response::new(Box::pin(first.chain(answers))))
    }

    async fn renew_agent(&self, request: Request<RenewAgentRequest>) -> Result<Response<RenewAgentResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let agent = self.agent(&caller).await?;
            let csr = csr_of(request.into_inner().params.as_ref())?;
            let (issued, record) = sign(&self.certifier, &agent.id, &csr)?;
            let (serial, not_after) = (issued.serial.clone(), issued.not_after);
            let now = self.certifier.now_secs();
            let renewal = self.certifier.store.renew_agent(&agent.id, record.clone(), move |agent| {
                agent.new_serial = serial;
                agent.seen_at = now;
                agent.new_expires_at = not_after;
            });
            if renewal.await?.is_none() {
                let banned = self.certifier.store.registry().agent(&agent.id).is_some_and(|agent| agent.banned);
                return Err(if banned { Refusal::AgentBanned } else { Refusal::AgentNotAttested });
            }
            self.certifier.recorded(&record);
            Ok(RenewAgentResponse { svid: Some(x509_message(&agent.id, issued, "")) })
        };
        self.answer("RenewAgent", &caller, work).await
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            create_join_token(&self.certifier, &caller, &permit, request.into_inner()).await
        };
        self.answer("CreateJoinToken", &caller, work).await
    }

    async fn post_status(&self, request: Request<PostStatusRequest>) -> Result<Response<PostStatusResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let agent = self.agent(&caller).await?;
            let PostStatusRequest { current_bundle_serial, agent_version } = request.into_inner();
            let version: String = agent_version.chars().filter(|c| !c.is_control()).take(VERSION_CHARS_MAX).collect();
            report(&self.certifier, &agent, current_bundle_serial, Some(version)).await?;
            Ok(PostStatusResponse {})
        };
        self.answer("PostStatus", &caller, work).await
    }
}

impl Api {
    /// A node, with what its proxies say where no mask leaves that out.
    fn message(&self, agent: &Agent, mask: Option<&types::AgentMask>) -> types::Agent {
        let contact = if mask.is_none() { self.certifier.contacts.of(&agent.id) } else { Contact::default() };
        let message = |configured: &Configured| {
            let Configured { workload, versions } = configured.clone();
            types::KasbahConfigured { workload, versions }
        };
        let kasbah_configured = contact.configured.iter().map(message).collect();
        types::Agent { kasbah_configured, ..agent_message(agent, mask) }
    }

    fn agent_id(&self, id: Option<&types::Spiffeid>) -> Result<SpiffeId, Refusal> {
        let id = member_of("id", id, &self.certifier.trust_domain)?;
        if !id.path().starts_with(AGENT_PATH) {
            return Err(Refusal::IdRefused { field: "id", problem: "is not the ID of an agent" });
        }
        Ok(id)
    }
}

/// Remembers what a node says that it enforces and runs; writes only what changes.
pub(super) async fn report(
    certifier: &Certifier,
    agent: &Agent,
    bundle: u64,
    version: Option<String>,
) -> Result<(), Refusal> {
    let version = version.unwrap_or_else(|| agent.version.clone());
    // A node cannot enforce what was never published.
    let bundle = bundle.min(certifier.authorities.current().bundle.sequence);
    if agent.bundle_sequence == bundle && agent.version == version {
        return Ok(());
    }
    let now = certifier.now_secs();
    let change = certifier.store.change_agent(&agent.id, move |agent| {
        if agent.bundle_sequence != bundle {
            (agent.bundle_sequence, agent.bundle_since) = (bundle, now);
        }
        agent.version = version;
        agent.seen_at = now;
    });
    change.await?;
    certifier.contacts.reported();
    Ok(())
}

async fn create_join_token(
    certifier: &Certifier,
    caller: &Caller,
    permit: &Permit,
    request: CreateJoinTokenRequest,
) -> Result<types::JoinToken, Refusal> {
    let now = certifier.now_secs();
    let ttl = match request.ttl {
        ttl if ttl < 1 => return Err(Refusal::Ttl),
        ttl => i64::from(ttl).min(TOKEN_TTL_SECS_MAX),
    };
    let token = if request.token.is_empty() { crate::random::uuid() } else { request.token };
    let id = token_agent_id(&certifier.trust_domain, &token)?;
    let alias = match request.agent_id {
        Some(alias) => Some(alias_of(certifier, &id, &alias, now)?),
        None => None,
    };
    match &alias {
        Some(alias) => permit.check(&alias.spiffe_id)?,
        None => permit.check_whole()?,
    }
    // The token itself is a secret: the node that will be is named by its alias only.
    let act = Act::new("token.create", "").detail(format_args!("valid for {ttl} s"));
    let act = alias.iter().fold(act, |act, alias| act.of(&alias.spiffe_id));
    if !certifier.acting(caller, act).add_token(&token, now + ttl, alias, now).await? {
        return Err(Refusal::JoinTokenExists);
    }
    Ok(types::JoinToken { value: token, expires_at: now + ttl })
}

/// The entry that gives the node of a token a name of the operator's choice.
fn alias_of(certifier: &Certifier, agent: &SpiffeId, alias: &types::Spiffeid, now: i64) -> Result<Entry, Refusal> {
    let spiffe_id = workload_of("agent_id", Some(alias), &certifier.trust_domain)?;
    Ok(Entry {
        id: crate::random::uuid(),
        spiffe_id,
        parent_id: certifier.server_id.clone(),
        selectors: BTreeSet::from([Selector::new("spiffe_id", agent.to_string())]),
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
    })
}

pub(super) fn csr_of(params: Option<&AgentX509svidParams>) -> Result<Csr, Refusal> {
    let params = params.filter(|params| !params.csr.is_empty());
    Csr::decode_der(&params.ok_or(Refusal::AttestationIncomplete("csr"))?.csr).map_err(Refusal::Csr)
}

pub(super) fn sign(certifier: &Certifier, id: &SpiffeId, csr: &Csr) -> Result<(IssuedX509, Issuance), Refusal> {
    let order = X509Order {
        kind: IssuanceKind::Agent,
        id: id.clone(),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        ttl: certifier.ttls.agent_svid,
        entry_id: String::new(),
        caller: id.to_string(),
    };
    certifier.sign_x509(&order, csr)
}

const TOKEN_TTL_SECS_MAX: i64 = 30 * 24 * 3600;
const VERSION_CHARS_MAX: usize = 128;
