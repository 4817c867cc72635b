//! Who may call the policy service: workloads of the own trust domain that have proven their identity.

use identity::TrustDomain;
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use crate::metrics::PolicyMetrics;

/// Stands in front of every service.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) metrics: PolicyMetrics,
}

/// The SPIFFE ID of the calling proxy, as its SVID proved it. Only [`Door`] puts it into a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) String);

impl Interceptor for Door {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<runtime::mtls::PeerIdentity>().and_then(|peer| peer.0.as_ref());
        let refusal = match peer {
            None => "POLICY_PEER_UNVERIFIED",
            Some(peer) if peer.spiffe_id().trust_domain() != self.trust_domain => "POLICY_PEER_FOREIGN",
            Some(peer) => {
                let caller = Caller(peer.spiffe_id().as_str().to_owned());
                request.extensions_mut().insert(caller);
                return Ok(request);
            }
        };
        self.metrics.refused_calls.inc();
        tracing::warn!(reason = refusal, "call refused");
        let what = format!("the policy service answers workloads of {}", self.trust_domain);
        Err(runtime::refusal::status(Code::PermissionDenied, refusal, what))
    }
}
