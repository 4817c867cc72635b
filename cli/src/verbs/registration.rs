//! `kasbah entry plan|apply|convert|explain`: documents against the CA, and why a workload gets what it gets.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use ca::explain::{Explanation, Question, explain};
use identity::spiffe_id::TrustDomain;
use proto::kasbah::ca::v1::ApplyEntriesRequest;
use proto::spire::api::types::Entry;

use super::{ca, spiffe_id as spiffe_id_of};
use crate::args::{CaArg, DocumentsArg};
use crate::ca_client::{CaClient, EntryFilter, NodeFilter, to_selector};
use crate::exit::{Exit, Failure, chain};
use crate::output::{self, Format};
use crate::registration::plan::Plan;
use crate::registration::spire::{self, Conversion};
use crate::registration::{Problem, document, expand};

pub(crate) async fn plan(arg: &DocumentsArg, exit_code: bool) -> Result<(), Failure> {
    let plan = make(arg, &ca(&arg.ca).await?).await?;
    output::print(arg.output.output, &plan.document(), || plan.text())?;
    if exit_code && plan.is_pending() {
        return Err(Failure::failed("changes are pending"));
    }
    Ok(())
}

pub(crate) async fn apply(arg: &DocumentsArg) -> Result<(), Failure> {
    let ca = ca(&arg.ca).await?;
    let plan = make(arg, &ca).await?;
    let parts = parts(&plan);
    for (at, part) in parts.iter().enumerate() {
        let Some(refused) = ca.apply_entries(part.clone()).await? else { return apply_singly(arg, &ca, &plan).await };
        if refused.is_empty() {
            continue;
        }
        refused.iter().for_each(|line| output::message(line));
        let done =
            if at == 0 { "nothing was changed".to_owned() } else { format!("{at} parts of {} are made", parts.len()) };
        return Err(Failure::failed(format!("{} changes are refused; {done}", refused.len())));
    }
    output::print(arg.output.output, &plan.document(), || plan.text())?;
    output::message("applied");
    Ok(())
}

/// What goes into one transaction each: all of it, unless it is very much. What changes first and what is new next, so that no
/// identity is missing between.
fn parts(plan: &Plan) -> Vec<ApplyEntriesRequest> {
    enum One<'a> {
        Update(&'a Entry),
        Create(&'a Entry),
        Delete(&'a Entry),
    }
    let updates = plan.update.iter().map(|update| One::Update(&update.entry));
    let creates = plan.create.iter().map(One::Create);
    let all: Vec<One<'_>> = updates.chain(creates).chain(plan.delete.iter().map(One::Delete)).collect();
    let part = |ones: &[One<'_>]| {
        let mut part = ApplyEntriesRequest::default();
        for one in ones {
            match one {
                One::Update(entry) => part.update.push((*entry).clone()),
                One::Create(entry) => part.create.push((*entry).clone()),
                One::Delete(entry) => part.delete.push(entry.id.clone()),
            }
        }
        part
    };
    all.chunks(PART_ITEMS_MAX).map(part).collect()
}

/// With a CA that changes entries only one by one.
async fn apply_singly(arg: &DocumentsArg, ca: &CaClient, plan: &Plan) -> Result<(), Failure> {
    let updates: Vec<Entry> = plan.update.iter().map(|update| update.entry.clone()).collect();
    let deleted: Vec<String> = plan.delete.iter().map(|entry| entry.id.clone()).collect();
    let mut failures = named(&updates, ca.try_update_entries(&updates).await?);
    failures.extend(named(&plan.create, ca.try_create_entries(&plan.create).await?));
    failures.extend(named(&plan.delete, ca.try_delete_entries(&deleted).await?));
    output::print(arg.output.output, &plan.document(), || plan.text())?;
    if failures.is_empty() {
        output::message("applied");
        return Ok(());
    }
    failures.iter().for_each(|failure| output::message(failure));
    Err(Failure::failed(format!("{} changes failed; the others are made", failures.len())))
}

fn named<T>(entries: &[Entry], outcomes: Vec<Result<T, Failure>>) -> Vec<String> {
    let failed = entries.iter().zip(outcomes).filter_map(|(entry, outcome)| Some((entry, outcome.err()?)));
    failed.map(|(entry, failure)| format!("{}: {}", entry.id, failure.brief())).collect()
}

async fn make(arg: &DocumentsArg, ca: &CaClient) -> Result<Plan, Failure> {
    let documents = document::read(&arg.files).map_err(|problems| refused(&problems))?;
    let owners: BTreeSet<String> = documents.iter().map(|document| document.owner.value.clone()).collect();
    let (domain, nodes) = (trust_domain(ca).await?, ca.list_nodes(&NodeFilter::default()).await?);
    let desired = expand::expand(&documents, &domain, &nodes).map_err(|problems| refused(&problems))?;
    let existing = ca.list_entries(&EntryFilter::default()).await?;
    Ok(Plan::make(desired, &existing, &owners, arg.prune))
}

fn refused(problems: &[Problem]) -> Failure {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Failure::new(Exit::Data, lines.join("\n")).remedy("correct the documents; nothing was changed")
}

async fn trust_domain(ca: &CaClient) -> Result<TrustDomain, Failure> {
    let name = ca.bundle().await?.trust_domain;
    TrustDomain::parse(name.trim_start_matches("spiffe://"))
        .map_err(|error| Failure::failed(format!("the CA names a trust domain that is none: {error}")))
}

pub(crate) fn convert(file: Option<&Path>, owner: &str, parents: &[(String, String)]) -> Result<(), Failure> {
    let shown = file.map_or_else(|| "stdin".to_owned(), |file| file.display().to_string());
    let bad = |error: &dyn std::error::Error| Failure::new(Exit::Data, format!("{shown}: {}", chain(error)));
    let mut text = Vec::new();
    match file {
        Some(file) => std::fs::File::open(file).and_then(|file| file.take(SPIRE_BYTES_MAX + 1).read_to_end(&mut text)),
        None => std::io::stdin().lock().take(SPIRE_BYTES_MAX + 1).read_to_end(&mut text),
    }
    .map_err(|error| bad(&error))?;
    if text.len() as u64 > SPIRE_BYTES_MAX {
        return Err(Failure::new(Exit::Data, format!("{shown} is longer than {SPIRE_BYTES_MAX} bytes")));
    }
    let conversion = Conversion { owner: owner.to_owned(), parents: parents.iter().cloned().collect() };
    let converted = spire::convert(&text, &conversion)
        .map_err(|error| bad(&error).remedy("give what `spire-server entry show -output json` prints"))?;
    converted.notes.iter().for_each(|note| output::message(note));
    let document = serde_saphyr::to_string(&converted.document).map_err(anyhow::Error::from)?;
    output::line(document.trim_end());
    Ok(())
}

pub(crate) async fn explain_verb(
    arg: &CaArg,
    selectors: &[String],
    parent: Option<&str>,
    spiffe_id: Option<&str>,
    format: Format,
) -> Result<(), Failure> {
    let selectors = selectors.iter().map(|text| to_selector(text)).collect::<Result<Vec<_>, _>>()?;
    let question = Question {
        selectors: selectors.into_iter().map(|selector| (selector.r#type, selector.value)).collect(),
        node: parent.map(spiffe_id_of).transpose()?,
        spiffe_id: spiffe_id.map(spiffe_id_of).transpose()?,
    };
    let found = ask(&ca(arg).await?, &question).await?;
    output::print(format, &found, || text(&found))?;
    if found.given { Ok(()) } else { Err(Failure::failed("no identity is given")) }
}

/// The explanation of the CA as it is now.
pub(crate) async fn ask(ca: &CaClient, question: &Question) -> Result<Explanation, Failure> {
    let domain = trust_domain(ca).await?;
    let entries = ca.list_entries(&EntryFilter::default()).await?;
    let nodes = ca.list_nodes(&NodeFilter::default()).await?;
    Ok(explain(question, &entries, &nodes, &domain, jiff::Timestamp::now().as_second()))
}

pub(crate) fn text(found: &Explanation) -> String {
    let mut lines: Vec<String> =
        found.remarks.iter().map(|remark| format!("{}  ({})", remark.text, remark.code)).collect();
    for verdict in &found.entries {
        let word = if verdict.given { "gets" } else { "not " };
        lines.push(format!(
            "{word}  {}  (entry {} asks for {})",
            verdict.spiffe_id,
            verdict.entry_id,
            verdict.selectors.join(", ")
        ));
        lines.extend(verdict.grounds.iter().map(|ground| format!("        {}  ({})", ground.text, ground.code)));
        if verdict.given {
            lines.push(format!("        served by {}", verdict.nodes.join(", ")));
        }
    }
    lines.join("\n")
}

/// As many changes as the CA makes in one transaction.
const PART_ITEMS_MAX: usize = 500;
/// The longest text of a SPIRE server's entries.
const SPIRE_BYTES_MAX: u64 = 64 * 1024 * 1024;
