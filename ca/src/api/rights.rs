//! Who may what: asked, and decided for the calls that need a second person.

use identity::spiffe_id::SpiffeId;
use proto::kasbah::ca::v1::{
    Approval as Message, DecideApprovalRequest, DecideApprovalResponse, ExplainRightsRequest, ExplainRightsResponse,
    ListApprovalsRequest, ListApprovalsResponse, rights_server,
};
use tonic::{Request, Response, Status};

use super::{Api, Caller};
use crate::audit::Act;
use crate::refusal::Refusal;
use crate::rights::{Subject, Verb};
use crate::store::{Approval, Decided};

#[tonic::async_trait]
impl rights_server::Rights for Api {
    async fn explain(&self, request: Request<ExplainRightsRequest>) -> Result<Response<ExplainRightsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            self.rights_explained(&request.into_inner())
        };
        self.answer("ExplainRights", &caller, work).await
    }

    async fn list_approvals(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.member(&caller)?;
            let mut approvals = self.certifier.store.approvals(self.certifier.now_secs()).await?;
            approvals.retain(|approval| self.may_decide(&caller, approval).is_ok());
            Ok(ListApprovalsResponse { approvals: approvals.into_iter().map(message).collect() })
        };
        self.answer("ListApprovals", &caller, work).await
    }

    async fn decide_approval(
        &self,
        request: Request<DecideApprovalRequest>,
    ) -> Result<Response<DecideApprovalResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.member(&caller)?;
            self.decide_on(&caller, request.into_inner()).await
        };
        self.answer("DecideApproval", &caller, work).await
    }
}

impl Api {
    fn rights_explained(&self, request: &ExplainRightsRequest) -> Result<ExplainRightsResponse, Refusal> {
        let verb = Verb::parse(&request.verb).ok_or(Refusal::Filter("verb"))?;
        let field = "spiffe_id";
        let id = Some(&request.spiffe_id).filter(|id| !id.is_empty());
        let id = id.map(|id| SpiffeId::parse(id).map_err(|source| Refusal::Id { field, source })).transpose()?;
        let rights = self.rights();
        let full = |text: &str| ExplainRightsResponse {
            allowed: true,
            role: String::new(),
            text: text.into(),
            two_person: rights.wants_two(verb),
        };
        let subject = match request.subject.as_str() {
            "local" => return Ok(full("root and the authority's own user have every right")),
            text => Subject::parse(text).ok_or(Refusal::Filter("subject"))?,
        };
        if let Subject::Id(id) = &subject
            && self.certifier.store.registry().is_admin(id, self.certifier.now_secs())
        {
            return Ok(full("an entry makes the subject an administrator, who has every right"));
        }
        let verdict = rights.explain(&subject, verb, id.as_ref());
        let (allowed, role, text) = (verdict.allowed, verdict.role, verdict.text);
        Ok(ExplainRightsResponse { allowed, role, text, two_person: verdict.two_person })
    }

    /// Whoever could make the call himself may decide on it.
    fn may_decide(&self, caller: &Caller, approval: &Approval) -> Result<(), Refusal> {
        // A verb of another version is nobody's here.
        let verb = Verb::parse(&approval.verb).ok_or(Refusal::ApprovalUnknown)?;
        self.permit_for(caller, verb)?.check_whole()
    }

    async fn decide_on(
        &self,
        caller: &Caller,
        request: DecideApprovalRequest,
    ) -> Result<DecideApprovalResponse, Refusal> {
        let DecideApprovalRequest { id, approve } = request;
        let now = self.certifier.now_secs();
        let found = self.certifier.store.approvals(now).await?.into_iter().find(|approval| approval.id == id);
        let found = found.ok_or(Refusal::ApprovalUnknown)?;
        self.may_decide(caller, &found)?;
        let action = if approve { "approval.approve" } else { "approval.deny" };
        let act = Act::new(action, &id)
            .detail(format_args!("{} of {}: {} {}", found.verb, found.requester, found.call, found.request));
        let store = self.certifier.acting(caller, act);
        match store.decide_approval(&id, &caller.name(), approve, now).await? {
            Decided::Done => {
                tracing::warn!(id, caller = caller.name(), action, requester = found.requester, "call decided on");
                Ok(DecideApprovalResponse {})
            }
            Decided::Unknown => Err(Refusal::ApprovalUnknown),
            Decided::SamePerson => Err(Refusal::ApprovalSamePerson),
            Decided::Already => Err(Refusal::ApprovalDecided),
        }
    }
}

fn message(approval: Approval) -> Message {
    Message {
        id: approval.id,
        verb: approval.verb,
        call: approval.call,
        request: approval.request,
        digest: approval.digest,
        requester: approval.requester,
        source: approval.source,
        approver: approval.approver,
        requested_at: approval.requested_at,
        expires_at: approval.expires_at,
    }
}
