//! The SPIFFE Broker API (`SPIFFE_Broker_API.md`).

use std::collections::BTreeMap;
use std::sync::Arc;

use identity::{SpiffeId, TrustBundle};
use prost::Message;
use proto::spiffe::broker as wire;
use proto::spiffe::broker::api_server::{Api, ApiServer};
use runtime::refusal;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::{Answers, Broker, ReferenceKind, entries, subscribe};
use crate::attest::{PodReference, Process};
use crate::caller::{Caller, Desk};
use crate::workload_api::{self, bundles, check_audience, jwt_svids, parse_wanted, select};

/// The service.
pub(super) struct Service {
    desk: Arc<Desk>,
    brokers: Vec<Broker>,
}

impl Service {
    pub(super) fn server(desk: Arc<Desk>, brokers: Vec<Broker>) -> ApiServer<Self> {
        ApiServer::new(Self { desk, brokers }).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// The workload that a call is about, as far as the caller may name it in this way.
    fn workload<T>(&self, request: &Request<T>, of: Option<&wire::WorkloadReference>) -> Result<Caller, Status> {
        check_header(request.metadata())?;
        let peer = runtime::mtls::peer_of(request).ok_or_else(|| Status::unauthenticated("an SVID is needed"))?;
        let broker = self.brokers.iter().find(|broker| broker.id == peer.spiffe_id().as_str());
        let broker = broker.ok_or_else(|| Status::permission_denied("this identity is no broker here"))?;
        let reference = of.and_then(|reference| reference.reference.as_ref());
        let reference = reference.ok_or_else(|| invalid("a reference is needed"))?;
        let (kind, workload) = self.decode(&reference.type_url, &reference.value)?;
        if !broker.references.contains(&kind) {
            return Err(Status::permission_denied("this broker may not name workloads in this way"));
        }
        tracing::debug!(broker = broker.id, ?kind, "workload named");
        workload
    }

    /// The kind of a reference, and the workload if it is there.
    fn decode(&self, type_url: &str, value: &[u8]) -> Result<(ReferenceKind, Result<Caller, Status>), Status> {
        match type_url.strip_prefix(TYPES) {
            Some("WorkloadPIDReference") => {
                let sent = wire::WorkloadPidReference::decode(value).map_err(|_| invalid("it cannot be read"))?;
                if sent.pid <= 0 {
                    return Err(invalid("pid must be positive"));
                }
                let found = Process::open(sent.pid).map(Caller::delegated_process);
                Ok((ReferenceKind::Pid, found.map_err(|_| not_found())))
            }
            Some("KubernetesObjectReference") if self.desk.attestor.knows_pods() => {
                let sent = wire::KubernetesObjectReference::decode(value).map_err(|_| invalid("it cannot be read"))?;
                Ok((ReferenceKind::Kubernetes, Ok(Caller::delegated_pod(pod(sent)?))))
            }
            _ => Err(invalid("this type of reference is not known here")),
        }
    }
}

#[tonic::async_trait]
impl Api for Service {
    type SubscribeToX509SVIDStream = Answers<wire::SubscribeToX509svidResponse>;
    type SubscribeToX509BundlesStream = Answers<wire::SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Answers<wire::SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svid(
        &self,
        request: Request<wire::SubscribeToX509svidRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDStream>, Status> {
        let caller = self.workload(&request, request.get_ref().reference.as_ref())?;
        let answers = subscribe(
            &self.desk,
            caller,
            true,
            |desk, snapshot, entries| {
                let same = workload_api::x509_svids(desk, snapshot, entries);
                wire::SubscribeToX509svidResponse {
                    svids: same.svids.into_iter().map(x509_svid).collect(),
                    crl: same.crl,
                    federated_bundles: same.federated_bundles,
                }
            },
            translate,
        )?;
        Ok(Response::new(answers))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<wire::SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let caller = self.workload(&request, request.get_ref().reference.as_ref())?;
        let answers = subscribe(
            &self.desk,
            caller,
            false,
            |desk, snapshot, entries| wire::SubscribeToX509BundlesResponse {
                bundles: bundles(desk, snapshot, entries, TrustBundle::to_concatenated_der),
                ..wire::SubscribeToX509BundlesResponse::default()
            },
            translate,
        )?;
        Ok(Response::new(answers))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::FetchJwtsvidRequest>,
    ) -> Result<Response<wire::FetchJwtsvidResponse>, Status> {
        let mut caller = self.workload(&request, request.get_ref().reference.as_ref())?;
        let audience = check_audience(&request.get_ref().audience)?;
        let wanted: Option<SpiffeId> = parse_wanted(&request.get_ref().spiffe_id)?;
        let (_, known) = entries(&self.desk, &mut caller).await.map_err(translate)?;
        let known =
            select(known, wanted.as_ref()).map_err(|refused| translate(self.desk.refuse(&refused, Some(&caller))))?;
        let svids = jwt_svids(&self.desk, &caller, &known, &audience).await.map_err(translate)?;
        let svid = |svid: proto::workload::Jwtsvid| wire::Jwtsvid {
            spiffe_id: svid.spiffe_id,
            svid: svid.svid,
            hint: svid.hint,
        };
        Ok(Response::new(wire::FetchJwtsvidResponse { svids: svids.into_iter().map(svid).collect() }))
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<wire::SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let caller = self.workload(&request, request.get_ref().reference.as_ref())?;
        let answers = subscribe(
            &self.desk,
            caller,
            false,
            |desk, snapshot, entries| {
                let keys = |bundle: &TrustBundle| bundle.jwt_jwks().to_string().into_bytes();
                let bundles: BTreeMap<String, Vec<u8>> = bundles(desk, snapshot, entries, keys);
                wire::SubscribeToJwtBundlesResponse { bundles }
            },
            translate,
        )?;
        Ok(Response::new(answers))
    }
}

fn x509_svid(svid: proto::workload::X509svid) -> wire::X509svid {
    let proto::workload::X509svid { spiffe_id, x509_svid, x509_svid_key, bundle, hint } = svid;
    wire::X509svid { spiffe_id, x509_svid, x509_svid_key, bundle, hint }
}

/// A pod by key, by UID, or by both.
fn pod(sent: wire::KubernetesObjectReference) -> Result<PodReference, Status> {
    let kind = sent.r#type.ok_or_else(|| invalid("a type is needed"))?;
    if kind.plural.is_empty() || kind.group.is_empty() {
        return Err(invalid("the type needs plural and group (`core` for those without one)"));
    }
    if (kind.plural.as_str(), kind.group.as_str()) != ("pods", "core") {
        return Err(invalid("only pods of the group core are known here"));
    }
    let key = sent.key.map(|key| (key.namespace, key.name));
    if key.as_ref().is_some_and(|(namespace, name)| namespace.is_empty() || name.is_empty()) {
        return Err(invalid("the key of a pod needs namespace and name"));
    }
    let uid = Some(sent.uid).filter(|uid| !uid.is_empty());
    if key.is_none() && uid.is_none() {
        return Err(invalid("a key or a uid is needed"));
    }
    Ok(PodReference { key, uid })
}

/// The standard asks for this header so that a web page cannot reach the API through a careless HTTP client.
fn check_header(metadata: &MetadataMap) -> Result<(), Status> {
    let mut values = metadata.get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes() == b"true" => Ok(()),
        _ => Err(Status::invalid_argument("the metadata `broker.spiffe.io: true` is missing")),
    }
}

/// The standard's codes for what this agent has to say about a workload.
fn translate(status: Status) -> Status {
    match refusal::reason_of(&status).as_deref() {
        Some("ATTEST_PROCESS_GONE" | "ATTEST_PROGRAM_CHANGED" | "ATTEST_NO_CREDENTIALS") => not_found(),
        Some("NO_IDENTITY_ISSUED" | "IDENTITY_NOT_ENTITLED") => {
            standard(Code::PermissionDenied, "WORKLOAD_NOT_ENTITLED", "the workload has no such identity")
        }
        _ => status,
    }
}

fn not_found() -> Status {
    standard(Code::NotFound, "WORKLOAD_NOT_FOUND", "there is no such workload on this node")
}

fn invalid(problem: &str) -> Status {
    standard(Code::InvalidArgument, "WORKLOAD_REFERENCE_INVALID", &format!("the reference is not usable: {problem}"))
}

fn standard(code: Code, reason: &str, message: &str) -> Status {
    refusal::status_of(DOMAIN, code, reason, message)
}

const HEADER: &str = "broker.spiffe.io";
const TYPES: &str = "type.googleapis.com/spiffe.broker.";
/// The domain of the standard's codes.
const DOMAIN: &str = "spiffe.io";
const REQUEST_BYTES_MAX: usize = 128 << 10;
