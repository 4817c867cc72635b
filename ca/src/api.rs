//! The services of the SPIRE server API, with Kasbah's node stream and rotation service beside them.
//!
//! | who | may |
//! |---|---|
//! | anyone | `GetBundle`, `AttestAgent` |
//! | holder of an SVID of the trust domain | see tree heads of the transparency log, and that they continue each other |
//! | holder of an SVID whose entry says `downstream` | get an intermediate, publish keys of tokens |
//! | agent (attested, not banned, with its current or newest SVID) | issue for its own entries, renew itself, report, watch |
//! | administrator | what his rights say ([`crate::rights`]); all with an SVID whose entry says `admin`, as root or as our own user |
//!
//! Every request passes [`crate::rights::gate`], which knows the right that its call needs. Every method begins by asking
//! [`Api::admin`] (the whole right), [`Api::permit`] (the right for certain IDs, each of which is then checked) or
//! [`Api::agent`] or [`Api::downstream`] for the caller, or has a comment saying why not.

mod agent;
mod attestation;
mod audit;
mod bundle;
mod convert;
mod custody;
mod downstream;
mod entry;
mod filter;
mod local_authority;
mod log;
mod node;
mod policy;
mod registration;
mod revocation;
mod rights;
mod rotation;
mod server;
mod svid;
mod trust_domain;
mod wit;

pub(crate) use convert::{EntryPatch, id_of, selectors_of, whole_mask};
#[cfg(test)]
pub(crate) use convert::{agent_message, entry_message};
pub(crate) use server::ServerFacts;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use identity::VerifiedPeer;
use runtime::mtls::PeerIdentity;
use runtime::shutdown::Shutdown;
use tonic::service::Routes;
use tonic::{Extensions, Response, Status, Streaming};

use proto::kasbah::ca::v1::audit_server::AuditServer;
use proto::kasbah::ca::v1::custody_server::CustodyServer;
use proto::kasbah::ca::v1::federation_server::FederationServer;
use proto::kasbah::ca::v1::issuance_policy_server::IssuancePolicyServer;
use proto::kasbah::ca::v1::log_server::LogServer;
use proto::kasbah::ca::v1::registration_server::RegistrationServer;
use proto::kasbah::ca::v1::revocation_server::RevocationServer;
use proto::kasbah::ca::v1::rights_server::RightsServer;
use proto::kasbah::ca::v1::rotation_server::RotationServer;
use proto::kasbah::node::v1::node_server::NodeServer;
use proto::spire::api::server::agent::v1::agent_server::AgentServer;
use proto::spire::api::server::bundle::v1::bundle_server::BundleServer;
use proto::spire::api::server::debug::v1::debug_server::DebugServer;
use proto::spire::api::server::entry::v1::entry_server::EntryServer;
use proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use proto::spire::api::server::logger::v1::logger_server::LoggerServer;
use proto::spire::api::server::svid::v1::svid_server::SvidServer;
use proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomainServer;

use crate::agent::Agent;
use crate::audit::Source;
use crate::certifier::{Certifier, secs};
use crate::custody::own_uid;
use crate::refusal::Refusal;
use crate::rights::table::{self, Call};
use crate::rights::{Permit, Rights, Subject, Verb, gate};

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// TLS.
    Network,
    /// The local socket; the kernel says who is at its other end.
    Local,
}

/// All services, for one origin.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    certifier: Arc<Certifier>,
    origin: Origin,
    facts: Arc<ServerFacts>,
}

/// Who sends a request, and from where.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) who: Who,
    pub(crate) source: Source,
    /// What is called; none when the request did not come through the gate.
    pub(crate) call: Option<&'static Call>,
}

/// Who sends a request.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// A process of root or of our own user, at the local socket.
    Local,
    /// A process of another user there.
    User { uid: u32, gid: u32 },
    /// A holder of an SVID of the trust domain.
    Peer(VerifiedPeer),
    /// Nobody in particular.
    Unknown,
}

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Caller {
    /// As logs and records name it.
    pub(crate) fn name(&self) -> String {
        match &self.who {
            Who::Local => "local".into(),
            Who::User { uid, .. } => format!("uid:{uid}"),
            Who::Peer(peer) => peer.spiffe_id().to_string(),
            Who::Unknown => "-".into(),
        }
    }

    /// Whether it shows the SVID of a node.
    pub(crate) fn is_node(&self) -> bool {
        matches!(&self.who, Who::Peer(peer) if peer.spiffe_id().path().starts_with(AGENT_PATH))
    }
}

impl Api {
    pub(crate) fn new(certifier: Arc<Certifier>, origin: Origin, facts: Arc<ServerFacts>) -> Self {
        Self { certifier, origin, facts }
    }

    /// The services behind the gate.
    pub(crate) fn router(self) -> axum::Router {
        let gate = axum::middleware::from_fn_with_state(self.clone(), gate::gate);
        let (health, health_service) = tonic_health::server::health_reporter();
        // All live and die together; health is asked by name as well as for the whole.
        let told = async move {
            for service in table::services() {
                health.set_service_status(service, tonic_health::ServingStatus::Serving).await;
            }
        };
        // Nothing in it waits: the status is a value in memory.
        futures_util::FutureExt::now_or_never(told);
        let routes = self.routes().add_service(health_service);
        let routes = with_reflection(routes);
        routes.prepare().into_axum_router().layer(gate)
    }

    fn routes(self) -> Routes {
        Routes::new(AgentServer::new(self.clone()))
            .add_service(EntryServer::new(self.clone()))
            .add_service(SvidServer::new(self.clone()))
            .add_service(BundleServer::new(self.clone()))
            .add_service(TrustDomainServer::new(self.clone()))
            .add_service(LocalAuthorityServer::new(self.clone()))
            .add_service(LogServer::new(self.clone()))
            .add_service(AuditServer::new(self.clone()))
            .add_service(IssuancePolicyServer::new(self.clone()))
            .add_service(RotationServer::new(self.clone()))
            .add_service(CustodyServer::new(self.clone()))
            .add_service(FederationServer::new(self.clone()))
            .add_service(RegistrationServer::new(self.clone()))
            .add_service(RevocationServer::new(self.clone()))
            .add_service(RightsServer::new(self.clone()))
            .add_service(DebugServer::new(self.clone()))
            .add_service(LoggerServer::new(self.clone()))
            .add_service(NodeServer::new(self))
    }

    /// Who sends a request with these extensions.
    pub(crate) fn caller(&self, extensions: &Extensions) -> Caller {
        let source = Source::of(extensions);
        let call = extensions.get::<&'static Call>().copied();
        let who = match (self.origin, source) {
            (Origin::Local, Source::Process(peer)) if peer.uid == 0 || peer.uid == own_uid() => Who::Local,
            (Origin::Local, Source::Process(peer)) => Who::User { uid: peer.uid, gid: peer.gid },
            (Origin::Local, _) => Who::Unknown,
            (Origin::Network, _) => {
                let peer = extensions.get::<PeerIdentity>().and_then(|identity| identity.0.clone());
                peer.map_or(Who::Unknown, Who::Peer)
            }
        };
        Caller { who, source, call }
    }

    pub(crate) fn certifier(&self) -> &Certifier {
        &self.certifier
    }

    /// The rights in force.
    pub(crate) fn rights(&self) -> Arc<Rights> {
        self.certifier.rights.current()
    }

    /// The caller, when it has the whole right that its call needs.
    fn admin<'a>(&self, caller: &'a Caller) -> Result<&'a Caller, Refusal> {
        self.permit(caller)?.check_whole()?;
        Ok(caller)
    }

    /// What the caller has of the right that its call needs. Whoever asks this must check each ID that is concerned.
    fn permit(&self, caller: &Caller) -> Result<Permit, Refusal> {
        match caller.call.and_then(|call| call.need.verb()) {
            Some(verb) => self.permit_for(caller, verb),
            // A call that the table does not open for administrators is not theirs.
            None => Err(Refusal::NotOffered("this call")),
        }
    }

    /// What the caller has of a verb.
    pub(crate) fn permit_for(&self, caller: &Caller, verb: Verb) -> Result<Permit, Refusal> {
        let who = caller.name();
        let subject = match &caller.who {
            Who::Local => return Ok(Permit::whole(&who, verb)),
            Who::Unknown => return Err(Refusal::CallerUnknown),
            Who::User { uid, gid } => Subject::User { uid: *uid, gid: *gid },
            Who::Peer(peer) => {
                self.unrevoked(peer)?;
                let now = self.certifier.now();
                let live = peer.not_after() > now;
                if live && self.certifier.store.registry().is_admin(peer.spiffe_id(), secs(now)) {
                    return Ok(Permit::whole(&who, verb));
                }
                // Patterns are of paths: the same path in another trust domain is somebody else.
                if !live || !peer.spiffe_id().is_member_of(&self.certifier.trust_domain) {
                    return Err(Refusal::CallerNotAdmin { who, verb });
                }
                Subject::Id(peer.spiffe_id().clone())
            }
        };
        let rights = self.rights();
        match rights.permit(&subject, &who, verb) {
            Some(permit) => Ok(permit),
            None if rights.knows(&subject) => Err(Refusal::RightMissing { who, verb, what: String::new() }),
            None => Err(Refusal::CallerNotAdmin { who, verb }),
        }
    }

    /// The caller, when it is anybody of the trust domain.
    pub(crate) fn member<'a>(&self, caller: &'a Caller) -> Result<&'a Caller, Refusal> {
        match &caller.who {
            Who::Local | Who::User { .. } => Ok(caller),
            Who::Peer(peer) if peer.not_after() > self.certifier.now() => self.unrevoked(peer).map(|()| caller),
            Who::Peer(_) | Who::Unknown => Err(Refusal::CallerUnknown),
        }
    }

    /// The node that calls, when it may act: known, not banned, and with its current SVID or the one that replaces it.
    /// The first use of a new SVID retires the old one.
    async fn agent(&self, caller: &Caller) -> Result<Arc<Agent>, Refusal> {
        let peer = match &caller.who {
            Who::Peer(peer) => peer,
            Who::Local | Who::User { .. } => return Err(Refusal::CallerNotAgent),
            Who::Unknown => return Err(Refusal::CallerUnknown),
        };
        let id = peer.spiffe_id();
        if !id.path().starts_with(AGENT_PATH) {
            return Err(Refusal::CallerNotAgent);
        }
        if peer.not_after() <= self.certifier.now() {
            return Err(Refusal::AgentExpired);
        }
        let agent = self.certifier.store.registry().agent(id).ok_or(Refusal::AgentNotAttested)?;
        if agent.banned {
            return Err(Refusal::AgentBanned);
        }
        self.unrevoked(peer)?;
        self.certifier.contacts.seen(id, self.certifier.now_secs());
        let serial = peer.leaf_serial().to_owned();
        if serial == agent.serial {
            return Ok(agent);
        }
        if agent.new_serial.is_empty() || serial != agent.new_serial {
            return Err(Refusal::AgentNotActive);
        }
        let activated = self.certifier.store.change_agent(id, move |agent| {
            if agent.new_serial == serial {
                agent.serial = std::mem::take(&mut agent.new_serial);
                agent.expires_at = std::mem::take(&mut agent.new_expires_at);
            }
        });
        // Boxed, as it is rare: each call would carry the space for it.
        let agent = Box::pin(activated).await?.ok_or(Refusal::AgentNotAttested)?;
        if agent.banned { Err(Refusal::AgentBanned) } else { Ok(agent) }
    }

    /// Whether the certificate of a connection that is open already still counts.
    fn unrevoked(&self, peer: &VerifiedPeer) -> Result<(), Refusal> {
        let revoked = self.certifier.revocations.current().is_revoked(peer.leaf_serial());
        if revoked { Err(Refusal::CertificateRevoked) } else { Ok(()) }
    }

    /// Turns the outcome of `work` into an answer; refusals are logged and counted.
    async fn answer<T>(
        &self,
        rpc: &'static str,
        caller: &Caller,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response<T>, Status> {
        let outcome = work.await;
        self.note(rpc, caller, outcome.as_ref().err());
        Ok(Response::new(outcome?))
    }

    pub(crate) fn note(&self, rpc: &'static str, caller: &Caller, refusal: Option<&Refusal>) {
        self.certifier.counts.request(rpc, refusal.map_or("", Refusal::reason));
        match refusal {
            None => tracing::debug!(rpc, caller = caller.name(), "request answered"),
            // Its own log line speaks for many.
            Some(refusal @ Refusal::AddressLimited { .. }) => {
                self.certifier.refusals.add(caller, audit::action_of(rpc), "", refusal.reason(), self.certifier.now());
            }
            Some(Refusal::Store(error)) => {
                tracing::error!(rpc, caller = caller.name(), reason = error.reason(), error = ?error, "request failed");
            }
            Some(refusal) => {
                self.certifier.refusals.add(caller, audit::action_of(rpc), "", refusal.reason(), self.certifier.now());
                tracing::info!(rpc, caller = caller.name(), reason = refusal.reason(), error = %refusal, "request refused");
            }
        }
    }
}

/// Adds gRPC reflection over what is served here, in both versions: older tools know the first only.
fn with_reflection(routes: Routes) -> Routes {
    let described = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        table::services().into_iter().fold(builder, tonic_reflection::server::Builder::with_service_name)
    };
    match (described().build_v1(), described().build_v1alpha()) {
        (Ok(current), Ok(alpha)) => routes.add_service(current).add_service(alpha),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(reason = "REFLECTION_UNAVAILABLE", %error, "reflection not served");
            routes
        }
    }
}

/// The next message of a caller; none when it has no more to say, or when the authority is ending: who keeps a stream open must
/// not keep the process.
async fn next_message<T>(messages: &mut Streaming<T>, shutdown: &Shutdown) -> Result<Option<T>, Status> {
    shutdown.unless(messages.message()).await.unwrap_or(Ok(None))
}

/// Takes a page out of everything found: at most `page_size` items (all when it is not positive) and, when more
/// follow, the token that continues after the last.
fn page<T>(found: impl Iterator<Item = T>, page_size: i32, key: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let size = usize::try_from(page_size).ok().filter(|size| *size > 0).unwrap_or(usize::MAX);
    let mut items: Vec<T> = found.take(size.saturating_add(1)).collect();
    if items.len() <= size {
        return (items, String::new());
    }
    items.truncate(size);
    let next = items.last().map(key).unwrap_or_default();
    (items, next)
}

/// What the SPIFFE IDs of nodes begin with.
pub(crate) const AGENT_PATH: &str = "/spire/agent/";
/// The most items of a batch request.
pub(crate) const BATCH_ITEMS_MAX: usize = 1_000;

#[cfg(test)]
mod tests;
