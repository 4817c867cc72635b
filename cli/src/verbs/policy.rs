//! `kasbah ca policy`: trying out an issuance policy without issuing anything.

use std::path::Path;

use ca::document::DocumentError;
use ca::policy::{Ask, KeyType, Policy, Verdict};
use proto::kasbah::ca::v1::issuance_policy_client::IssuancePolicyClient;
use proto::kasbah::ca::v1::{ExplainRequest, ExplainResponse};
use serde_json::json;

use super::{ca as authority, wait};
use crate::args::{ExplainArgs, PolicyCommand};
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn run(command: &PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Check { file, trust_domain } => check(file, trust_domain),
        PolicyCommand::Explain(args) => explain(args),
    }
}

fn check(file: &Path, trust_domain: &str) -> Result<(), Failure> {
    match Policy::load(file, trust_domain) {
        Ok(policy) => {
            let (rules, quotas) = policy.counts();
            output::line(&format!("{}: ok, {rules} rules and {quotas} quotas", file.display()));
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
    Failure::refused(Exit::Data, error.reason(), format!("the policy is refused: {error}"))
}

/// The answer is yes (exit code 0) or no (1), and in both cases why.
fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let answer = match &args.file {
        Some(file) => explain_file(file, args)?,
        None => wait(ask(args))?,
    };
    let value = json!({
        "allowed": answer.allowed,
        "rule": answer.rule,
        "reason": answer.reason,
        "text": answer.text,
        "ttl": output::duration(std::time::Duration::from_secs(answer.ttl.unsigned_abs())),
    });
    output::print(args.output.output, &value, || {
        let ttl = output::duration(std::time::Duration::from_secs(answer.ttl.unsigned_abs()));
        match answer.allowed {
            true => format!("allowed for {ttl}: {}", answer.text),
            false => format!("refused ({}): {}", answer.reason, answer.text),
        }
    })?;
    if answer.allowed { Ok(()) } else { Err(Failure::failed("the policy does not allow it")) }
}

async fn ask(args: &ExplainArgs) -> Result<ExplainResponse, Failure> {
    let request = ExplainRequest {
        spiffe_id: args.spiffe_id.clone(),
        caller: args.node.clone(),
        kind: args.kind.clone(),
        ttl: i64::try_from(args.ttl.as_secs()).unwrap_or(i64::MAX),
        dns_names: args.dns_names.clone(),
        key_type: args.key_type.clone(),
    };
    let mut client = IssuancePolicyClient::new(authority(&args.ca).await?.channel());
    Ok(client.explain(request).await?.into_inner())
}

fn explain_file(file: &Path, args: &ExplainArgs) -> Result<ExplainResponse, Failure> {
    let bad = |what: &str| Failure::new(Exit::Data, format!("`{what}` is not understood"));
    let id = super::spiffe_id(&args.spiffe_id)?;
    let key = KeyType::parse(&args.key_type).ok_or_else(|| bad(&args.key_type))?;
    let policy = Policy::load(file, id.trust_domain_name()).map_err(|error| refused(&error))?;
    let token = args.kind.ends_with("jwt") || args.kind.ends_with("wit");
    let verdict = policy.judge(&Ask {
        id: &id,
        callers: std::slice::from_ref(&args.node),
        kind: &args.kind,
        ttl: args.ttl,
        dns_names: &args.dns_names,
        key: (!token).then_some(key),
    });
    Ok(match verdict {
        Verdict::Allowed { rule, ttl } => ExplainResponse {
            allowed: true,
            text: rule.as_ref().map_or_else(
                || "no rule speaks of it, and the default is to allow".to_owned(),
                |rule| format!("rule `{rule}` allows it"),
            ),
            rule: rule.unwrap_or_default(),
            ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            ..Default::default()
        },
        Verdict::Refused(refusal) => ExplainResponse {
            reason: refusal.reason().into(),
            text: refusal.to_string(),
            rule: refusal.rule.unwrap_or_default(),
            ..Default::default()
        },
    })
}
