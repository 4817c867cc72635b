//! `kasbah ca rights` and `kasbah ca approvals`: who may administer what, and the second person's word.

use std::path::Path;

use ca::document::DocumentError;
use ca::rights::{Rights, Subject, Verb};
use proto::kasbah::ca::v1::rights_client::RightsClient;
use proto::kasbah::ca::v1::{
    Approval, DecideApprovalRequest, ExplainRightsRequest, ExplainRightsResponse, ListApprovalsRequest,
};
use serde_json::{Value, json};

use super::{ca as authority, spiffe_id, time_text, wait};
use crate::args::{ApprovalsCommand, CaArg, ExplainRightsArgs, RightsCommand};
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn run(command: &RightsCommand) -> Result<(), Failure> {
    match command {
        RightsCommand::Check { file } => check(file),
        RightsCommand::Explain(args) => explain(args),
    }
}

pub(crate) fn approvals(command: &ApprovalsCommand) -> Result<(), Failure> {
    wait(async {
        match command {
            ApprovalsCommand::List { ca, output } => {
                let approvals = RightsClient::new(authority(ca).await?.channel())
                    .list_approvals(ListApprovalsRequest {})
                    .await?
                    .into_inner()
                    .approvals;
                let value: Vec<Value> = approvals.iter().map(document).collect();
                output::print(output.output, &value, || table(&approvals))
            }
            ApprovalsCommand::Approve { ca, id } => {
                decide(ca, id, true).await?;
                output::message(&format!("approved {id}: its requester makes the call again"));
                Ok(())
            }
            ApprovalsCommand::Deny { ca, id } => {
                decide(ca, id, false).await?;
                output::message(&format!("denied {id}"));
                Ok(())
            }
        }
    })
}

async fn decide(ca: &CaArg, id: &str, approve: bool) -> Result<(), Failure> {
    let request = DecideApprovalRequest { id: id.to_owned(), approve };
    RightsClient::new(authority(ca).await?.channel()).decide_approval(request).await?;
    Ok(())
}

fn check(file: &Path) -> Result<(), Failure> {
    match Rights::load(file) {
        Ok(rights) => {
            let (roles, grants) = rights.counts();
            output::line(&format!("{}: ok, {roles} roles and {grants} grants", file.display()));
            Ok(())
        }
        Err(error) => {
            // As `validate` prints what it refuses: on stdout, with its place in front.
            output::line(&format!("{error} ({})", error.reason()));
            Err(refused(&error))
        }
    }
}

fn refused(error: &DocumentError) -> Failure {
    Failure::refused(Exit::Data, error.reason(), format!("the rights are refused: {error}"))
}

/// The answer is yes (exit code 0) or no (1), and in both cases why.
fn explain(args: &ExplainRightsArgs) -> Result<(), Failure> {
    let answer = match &args.file {
        Some(file) => explain_file(file, args)?,
        None => wait(ask(args))?,
    };
    let value = json!({
        "allowed": answer.allowed,
        "role": answer.role,
        "text": answer.text,
        "two_person": answer.two_person,
    });
    output::print(args.output.output, &value, || {
        let word = if answer.allowed { "allowed" } else { "refused" };
        let second = if answer.allowed && answer.two_person { "; a second person has to approve it" } else { "" };
        format!("{word}: {}{second}", answer.text)
    })?;
    if answer.allowed { Ok(()) } else { Err(Failure::failed("not allowed")) }
}

async fn ask(args: &ExplainRightsArgs) -> Result<ExplainRightsResponse, Failure> {
    let request = ExplainRightsRequest {
        subject: args.subject.clone(),
        verb: args.verb.clone(),
        spiffe_id: args.spiffe_id.clone().unwrap_or_default(),
    };
    Ok(RightsClient::new(authority(&args.ca).await?.channel()).explain(request).await?.into_inner())
}

fn explain_file(file: &Path, args: &ExplainRightsArgs) -> Result<ExplainRightsResponse, Failure> {
    let rights = Rights::load(file).map_err(|error| refused(&error))?;
    let usage = |text: String| Failure::new(Exit::Usage, text);
    let subject = Subject::parse(&args.subject).ok_or_else(|| {
        usage(format!("`{}` is no subject", args.subject)).remedy("write a SPIFFE ID, uid:N or gid:N")
    })?;
    let verb = Verb::parse(&args.verb).ok_or_else(|| {
        let verbs: Vec<&str> = Verb::ALL.into_iter().map(Verb::as_str).collect();
        usage(format!("there is no verb `{}`", args.verb)).remedy(format!("one of {}", verbs.join(", ")))
    })?;
    let id = args.spiffe_id.as_deref().map(spiffe_id).transpose()?;
    let verdict = rights.explain(&subject, verb, id.as_ref());
    Ok(ExplainRightsResponse {
        allowed: verdict.allowed,
        role: verdict.role,
        text: verdict.text,
        two_person: verdict.two_person,
    })
}

fn document(approval: &Approval) -> Value {
    json!({
        "id": approval.id,
        "verb": approval.verb,
        "call": approval.call,
        "request": approval.request,
        "digest": approval.digest,
        "requester": approval.requester,
        "source": approval.source,
        "approver": approval.approver,
        "requested_at": time_text(approval.requested_at),
        "expires_at": time_text(approval.expires_at),
    })
}

fn table(approvals: &[Approval]) -> String {
    let rows = approvals.iter().map(|approval| {
        let call = approval.call.rsplit('/').next().unwrap_or_default();
        let state = if approval.approver.is_empty() {
            "waits".to_owned()
        } else {
            format!("approved by {}", approval.approver)
        };
        [
            approval.id.clone(),
            approval.requester.clone(),
            approval.verb.clone(),
            format!("{call} {}", approval.request).trim_end().to_owned(),
            time_text(approval.expires_at),
            state,
        ]
    });
    output::table(["ID", "REQUESTER", "VERB", "CALL", "UNTIL", "STATE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_is_shown_the_same_way_each_time() {
        let approval = Approval {
            id: "7c".into(),
            verb: "authority.rotate".into(),
            call: "/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority".into(),
            request: "authority_id: \"ab\"".into(),
            requester: "spiffe://td/ops/one".into(),
            expires_at: 1_800_000_000,
            ..Approval::default()
        };
        let golden = "ID  REQUESTER            VERB              CALL                                      UNTIL                 STATE\n\
                      7c  spiffe://td/ops/one  authority.rotate  ActivateX509Authority authority_id: \"ab\"  2027-01-15T08:00:00Z  waits";
        assert_eq!(table(std::slice::from_ref(&approval)), golden);
        let value = document(&approval);
        assert_eq!(
            (&value["id"], &value["approver"], &value["expires_at"]),
            (&json!("7c"), &json!(""), &json!("2027-01-15T08:00:00Z"))
        );
    }
}
