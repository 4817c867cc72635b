//! `AttestAgent`: evidence, at most a few challenges with their answers, and the node's first SVID.
//!
//! Whoever calls is a stranger until the end. The whole exchange has a time limit, each message a size limit, and nothing
//! is signed for a node that would not be admitted.

use std::time::Duration;

use futures_util::Stream;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, attest_agent_request, attest_agent_response,
};
use runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::agent::{csr_of, sign};
use super::svid::x509_message;
use super::{Api, Caller, Who, next_message};
use crate::agent::Agent;
use crate::attest::{AttestError, Attested, Respondent, World, old_svid};
use crate::audit::Act;
use crate::certifier::Certifier;
use crate::issue::IssuedX509;
use crate::refusal::Refusal;
use crate::store::Admission;

use attest_agent_response::Step;

/// Serves one attestation.
pub(super) fn serve(
    api: Api,
    caller: Caller,
    messages: Streaming<AttestAgentRequest>,
) -> impl Stream<Item = Result<AttestAgentResponse, Status>> {
    async_stream::stream! {
        let (ask, mut asked) = mpsc::channel(1);
        let work = tokio::time::timeout(ATTESTATION_WAIT_MAX, attempt(&api.certifier, &caller, messages, ask));
        tokio::pin!(work);
        let outcome = loop {
            let challenge = tokio::select! {
                biased;
                Some(challenge) = asked.recv() => challenge,
                outcome = &mut work => break outcome.unwrap_or(Err(AttestError::Unanswered.into())),
            };
            yield Ok(AttestAgentResponse { step: Some(Step::Challenge(challenge)) });
        };
        held_against(&api.certifier, &caller, outcome.as_ref().err());
        api.note("AttestAgent", &caller, outcome.as_ref().err());
        yield outcome.map(|result| AttestAgentResponse { step: Some(Step::Result(result)) }).map_err(Status::from);
    }
}

/// The other side of the stream.
struct Peer {
    messages: Streaming<AttestAgentRequest>,
    ask: mpsc::Sender<Vec<u8>>,
    asked: usize,
    shutdown: Shutdown,
}

impl Peer {
    async fn next(&mut self) -> Option<attest_agent_request::Step> {
        let message = tokio::time::timeout(MESSAGE_WAIT_MAX, next_message(&mut self.messages, &self.shutdown)).await;
        message.ok()?.ok()??.step
    }
}

#[tonic::async_trait]
impl Respondent for Peer {
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        self.asked += 1;
        if self.asked > CHALLENGES_MAX || self.ask.send(challenge).await.is_err() {
            return Err(AttestError::Unanswered);
        }
        match self.next().await {
            Some(attest_agent_request::Step::ChallengeResponse(answer)) if answer.len() <= ANSWER_BYTES_MAX => {
                Ok(answer)
            }
            Some(attest_agent_request::Step::ChallengeResponse(_)) => Err(AttestError::AnswerMalformed("is too large")),
            Some(attest_agent_request::Step::Params(_)) | None => Err(AttestError::Unanswered),
        }
    }
}

/// Evidence is looked at as long as not too much from the same address proved nothing.
async fn attempt(
    certifier: &Certifier,
    caller: &Caller,
    messages: Streaming<AttestAgentRequest>,
    ask: mpsc::Sender<Vec<u8>>,
) -> Result<attest_agent_response::Result, Refusal> {
    certifier.may_try(caller.source)?;
    admit(certifier, caller, messages, ask).await
}

fn held_against(certifier: &Certifier, caller: &Caller, refusal: Option<&Refusal>) {
    match refusal {
        Some(refusal) if refusal.disproves() => certifier.address_limits.refused(caller.source),
        // Only a stranger's request was counted.
        None if matches!(caller.who, Who::Unknown) => certifier.address_limits.proved(caller.source),
        _ => (),
    }
}

async fn admit(
    certifier: &Certifier,
    caller: &Caller,
    messages: Streaming<AttestAgentRequest>,
    ask: mpsc::Sender<Vec<u8>>,
) -> Result<attest_agent_response::Result, Refusal> {
    let mut peer = Peer { messages, ask, asked: 0, shutdown: certifier.shutdown.clone() };
    let Some(attest_agent_request::Step::Params(params)) = peer.next().await else {
        return Err(Refusal::AttestationIncomplete("params in the first message"));
    };
    let data = params.data.ok_or(Refusal::AttestationIncomplete("data"))?;
    let signing = certifier.authorities.current();
    let world =
        World { trust_domain: &certifier.trust_domain, roots: &signing.bundle.x509_authorities, now: certifier.now() };
    if data.r#type == old_svid::NAME {
        return come_back(certifier, caller, &data.payload, params.params.as_ref(), &world, &mut peer).await;
    }
    let attested = certifier.attestors.attest(&data.r#type, &data.payload, &world, &mut peer).await?;
    let csr = csr_of(params.params.as_ref())?;
    let (token, now) = (attested.token().map(|token| token.reveal()), certifier.now_secs());
    let problem = certifier.store.admission_problem(attested.id(), attested.can_reattest(), token, now).await?;
    if let Some(problem) = problem {
        check(problem)?;
    }
    let (issued, record) = sign(certifier, attested.id(), &csr)?;
    let act = Act::new("node.attest", attested.id()).of(attested.id()).detail(attested.kind());
    let store = certifier.acting(caller, act);
    check(store.admit(node(&attested, &issued, now), token, record.clone(), now).await?)?;
    certifier.recorded(&record);
    tracing::info!(agent = %attested.id(), attestation_type = attested.kind(), "agent attested");
    let svid = Some(x509_message(attested.id(), issued, ""));
    Ok(attest_agent_response::Result { svid, reattestable: attested.can_reattest() })
}

/// Lets a known node in again by its last SVID, under the facts that attestation once found. Of any number of attempts with one
/// SVID, one succeeds.
async fn come_back(
    certifier: &Certifier,
    caller: &Caller,
    payload: &[u8],
    params: Option<&AgentX509svidParams>,
    world: &World<'_>,
    peer: &mut Peer,
) -> Result<attest_agent_response::Result, Refusal> {
    let _place = certifier.attestors.place()?;
    let old = certifier.attestors.read_old_svid(payload, world)?;
    let known = certifier.store.registry().agent(&old.id).ok_or(AttestError::OldSvidUnknown)?;
    if known.banned {
        return Err(Refusal::AgentBanned);
    }
    let record = certifier.store.issued_one(&old.serial).await?;
    let recorded = record.is_some_and(|record| {
        let issued = &record.issuance;
        issued.fingerprint == old.fingerprint && issued.spiffe_id == old.id.as_str() && record.kind == AGENT_KIND
    });
    if !recorded || !is_last(&known, &old.serial) {
        return Err(AttestError::OldSvidUnknown.into());
    }
    old.prove(peer).await?;
    let (issued, record) = sign(certifier, &old.id, &csr_of(params)?)?;
    let act = Act::new("node.attest", &old.id).of(&old.id).detail(old_svid::NAME);
    let (serial, not_after, now) = (issued.serial.clone(), issued.not_after, certifier.now_secs());
    let last = old.serial.clone();
    let store = certifier.acting(caller, act);
    let admitted = store.renew_agent_if(
        &old.id,
        record.clone(),
        move |agent| is_last(agent, &last),
        move |agent| {
            (agent.serial, agent.expires_at) = (serial, not_after);
            (agent.new_serial, agent.new_expires_at) = (String::new(), 0);
            agent.seen_at = now;
        },
    );
    let admitted = admitted.await?.ok_or(AttestError::OldSvidUnknown)?;
    certifier.recorded(&record);
    tracing::info!(agent = %old.id, attestation_type = old_svid::NAME, "agent came back with its last SVID");
    Ok(attest_agent_response::Result {
        svid: Some(x509_message(&old.id, issued, "")),
        reattestable: admitted.can_reattest,
    })
}

fn is_last(agent: &Agent, serial: &str) -> bool {
    !serial.is_empty() && (agent.serial == serial || agent.new_serial == serial)
}

fn check(admission: Admission) -> Result<(), Refusal> {
    match admission {
        Admission::Admitted => Ok(()),
        Admission::Unknown => Err(AttestError::JoinTokenUnknown.into()),
        Admission::Expired => Err(Refusal::JoinTokenExpired),
        Admission::Banned => Err(Refusal::AgentBanned),
        Admission::Known => Err(Refusal::AgentAlreadyAttested),
    }
}

fn node(attested: &Attested, issued: &IssuedX509, now: i64) -> Agent {
    Agent {
        id: attested.id().clone(),
        attestation_type: attested.kind().into(),
        serial: issued.serial.clone(),
        expires_at: issued.not_after,
        new_serial: String::new(),
        new_expires_at: 0,
        selectors: attested.selectors().clone(),
        banned: false,
        can_reattest: attested.can_reattest(),
        version: String::new(),
        bundle_sequence: 0,
        attested_at: now,
        bundle_since: now,
        seen_at: now,
    }
}

/// How long one message of somebody unknown is waited for.
const MESSAGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a whole attestation may take.
const ATTESTATION_WAIT_MAX: Duration = Duration::from_secs(30);
/// Of the records of nodes' SVIDs.
const AGENT_KIND: &str = "agent";
const CHALLENGES_MAX: usize = 4;
const ANSWER_BYTES_MAX: usize = 64 << 10;
