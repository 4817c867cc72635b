//! Rotations as a whole: how far each is, who holds it up, and what an operator can decide about it.

use proto::kasbah::ca::v1::{
    self as wire, AbortRequest, Kind, ReceiptRequest, ReceiptResponse, ResumeRequest, StartRequest, StatusRequest,
    StatusResponse, WaiveRequest, rotation_server,
};
use tonic::{Request, Response, Status};

use super::{Api, Caller};
use crate::authorities::Asked;
use crate::refusal::Refusal;
use crate::rotation::machine::{Mode, Step};
use crate::rotation::receipt::Receipt;
use crate::rotation::report::{Laggard, Report};
use crate::store::AuthorityKind;

#[tonic::async_trait]
impl rotation_server::Rotation for Api {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            self.rotation_status(request.get_ref().kind()).await
        };
        self.answer("Rotation.Status", &caller, work).await
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StatusResponse>, Status> {
        let caller = self.caller(request.extensions());
        let mode = if request.get_ref().compromised { Mode::Compromised } else { Mode::Auto };
        let asked = Asked::Prepare(mode);
        self.answer("Rotation.Start", &caller, self.decide(&caller, request.get_ref().kind(), asked)).await
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<StatusResponse>, Status> {
        let caller = self.caller(request.extensions());
        let asked = Asked::Step(Step::Resume);
        self.answer("Rotation.Resume", &caller, self.decide(&caller, request.get_ref().kind(), asked)).await
    }

    async fn waive(&self, request: Request<WaiveRequest>) -> Result<Response<StatusResponse>, Status> {
        let caller = self.caller(request.extensions());
        let asked = Asked::Step(Step::Waive(request.get_ref().node_id.clone()));
        self.answer("Rotation.Waive", &caller, self.decide(&caller, request.get_ref().kind(), asked)).await
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<StatusResponse>, Status> {
        let caller = self.caller(request.extensions());
        let asked = Asked::Step(Step::Abort);
        self.answer("Rotation.Abort", &caller, self.decide(&caller, request.get_ref().kind(), asked)).await
    }

    async fn receipt(&self, request: Request<ReceiptRequest>) -> Result<Response<ReceiptResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let ReceiptRequest { started_at, .. } = *request.get_ref();
            let receipt = self.certifier.receipt(kind_of(request.get_ref().kind()), started_at).await?;
            let Receipt { document, signature, log_key } = receipt;
            Ok(ReceiptResponse { document, signature, log_key })
        };
        self.answer("Rotation.Receipt", &caller, work).await
    }
}

impl Api {
    /// Carries out what an administrator decided, and answers how things stand then.
    async fn decide(&self, caller: &Caller, kind: Kind, asked: Asked) -> Result<StatusResponse, Refusal> {
        self.admin(caller)?;
        self.rotate(caller, kind_of(kind), asked).await?;
        self.rotation_status(kind).await
    }

    async fn rotation_status(&self, kind: Kind) -> Result<StatusResponse, Refusal> {
        Ok(message(kind, self.certifier.rotation(kind_of(kind)).await?))
    }
}

fn kind_of(kind: Kind) -> AuthorityKind {
    match kind {
        Kind::X509 => AuthorityKind::Root,
        Kind::Jwt => AuthorityKind::Jwt,
        Kind::Wit => AuthorityKind::Wit,
    }
}

fn message(kind: Kind, report: Report) -> StatusResponse {
    let authorities = report.line.members.iter().map(|member| wire::Authority {
        id: member.id.clone(),
        state: member.stage.as_str().into(),
        not_before: member.not_before,
        not_after: member.not_after,
        published: member.published,
    });
    let running = report.line.running.as_ref();
    StatusResponse {
        kind: kind.into(),
        phase: report.line.phase().as_str().into(),
        mode: running.map_or("", |running| running.mode.as_str()).into(),
        next_step: report.next_step().into(),
        safe_to_proceed: report.is_safe(),
        authorities: authorities.collect(),
        bundle_sequence: report.bundle_sequence,
        bundle_sequence_needed: report.needed,
        acknowledged: report.acknowledged as u64,
        total: report.total as u64,
        started_at: running.map_or(0, |running| running.started_at),
        old_id: running.map(|running| running.old.clone()).unwrap_or_default(),
        waived: report.line.waived.iter().cloned().collect(),
        in_use_until: report.in_use_until,
        laggards: report.laggards.into_iter().map(laggard).collect(),
    }
}

fn laggard(laggard: Laggard) -> wire::Laggard {
    let Laggard { id, enforced, since, last_contact, reason, waiting_for } = laggard;
    wire::Laggard { id, enforced, since, last_contact, reason: reason.into(), waiting_for }
}
