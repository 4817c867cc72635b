//! `kasbah log`: reading and checking the transparency log. Every answer of the CA is verified here; nothing is believed.

mod document;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use identity::transparency::{Frontier, Hash, SignedTreeHead, TransparencyError, verify_consistency, verify_inclusion};
use proto::kasbah::ca::v1::get_inclusion_proof_request::Leaf;
use proto::kasbah::ca::v1::log_client::LogClient;
use proto::kasbah::ca::v1::{
    GetConsistencyProofRequest, GetEntriesRequest, GetInclusionProofRequest, GetSignedTreeHeadRequest,
};
use serde_json::json;
use tonic::transport::Channel;

use super::{ca, wait};
use crate::args::{CaArg, LogCommand, OutputArg};
use crate::exit::{Exit, Failure};
use crate::output;
use document::{EntryDocument, HeadDocument, Header, hash_of};

pub(crate) fn run(command: &LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Head { ca, output } => wait(head(ca, *output)),
        LogCommand::Prove { ca, serial, output } => wait(prove(ca, serial, *output)),
        LogCommand::Export { ca, file } => wait(export(ca, file)),
        LogCommand::Verify { file: Some(file), since, output, .. } => {
            verify_file(file, since.as_deref()).and_then(|told| told.print(*output))
        }
        LogCommand::Verify { ca, since: Some(since), output, .. } => wait(verify_since(ca, since, *output)),
        LogCommand::Verify { ca, output, .. } => wait(verify_all(ca, *output)),
    }
}

/// What a verification found out.
struct Told {
    head: HeadDocument,
    leaves: u64,
    records: u64,
    since: Option<u64>,
}

impl Told {
    fn print(&self, output: OutputArg) -> Result<(), Failure> {
        let value = json!({
            "verified": true,
            "leaves_checked": self.leaves,
            "records_checked": self.records,
            "since_size": self.since,
            "head": self.head,
        });
        output::print(output.output, &value, || {
            let since = self.since.map(|size| format!(", continues the head of {size} leaves")).unwrap_or_default();
            let HeadDocument { tree_size, root_hash, .. } = &self.head;
            format!(
                "ok: {tree_size} leaves, root {root_hash}{since}; checked {} leaves and {} records",
                self.leaves, self.records
            )
        })
    }
}

async fn client(arg: &CaArg) -> Result<LogClient<Channel>, Failure> {
    Ok(LogClient::new(ca(arg).await?.channel()))
}

/// The newest head, its signature verified.
async fn newest(client: &mut LogClient<Channel>) -> Result<(HeadDocument, SignedTreeHead), Failure> {
    let message = client.get_signed_tree_head(GetSignedTreeHeadRequest {}).await?.into_inner();
    let document = HeadDocument::from(message);
    let head = document.verified()?;
    Ok((document, head))
}

async fn head(arg: &CaArg, output: OutputArg) -> Result<(), Failure> {
    let (document, _) = newest(&mut client(arg).await?).await?;
    output::print(output.output, &document, || {
        let rows = [[
            document.tree_size.to_string(),
            document.root_hash.clone(),
            document.timestamp.clone(),
            document.log_id.clone(),
        ]];
        output::table(["SIZE", "ROOT", "TIME", "LOG"], rows)
    })
}

async fn prove(arg: &CaArg, serial: &str, output: OutputArg) -> Result<(), Failure> {
    let leaf = Some(Leaf::Serial(serial.to_ascii_lowercase()));
    let proof = client(arg).await?.get_inclusion_proof(GetInclusionProofRequest { leaf }).await?.into_inner();
    let head = HeadDocument::from(proof.head.unwrap_or_default());
    let entry = EntryDocument::from(proof.entry.unwrap_or_default());
    let hashes = hashes(&proof.hashes)?;
    let signed = head.verified()?;
    let leaf = entry.verified()?;
    verify_inclusion(&leaf, entry.index, signed.head.size, &hashes, &signed.head.root)?;
    let shown: Vec<String> = hashes.iter().map(|hash| identity::digest::hex(hash)).collect();
    let value = json!({"verified": true, "entry": entry, "hashes": shown, "head": head});
    output::print(output.output, &value, || {
        let record = entry.record.as_ref();
        let (kind, id) = record.map(|record| (record.kind.as_str(), record.spiffe_id.as_str())).unwrap_or_default();
        format!("ok: {serial} ({kind} {id}) is leaf {} of {}, root {}", entry.index, head.tree_size, head.root_hash)
    })
}

/// Everything that the log says, in a file that can be verified without the CA.
async fn export(arg: &CaArg, file: &Path) -> Result<(), Failure> {
    let mut client = client(arg).await?;
    let (head, _) = newest(&mut client).await?;
    let mut out = BufWriter::new(File::create(file).map_err(|error| unusable(file, &error))?);
    let size = head.tree_size;
    write_line(&mut out, &Header::new(head))?;
    let mut next = 0;
    while next < size {
        let entries = page(&mut client, next, size).await?;
        for entry in &entries {
            write_line(&mut out, entry)?;
        }
        next += entries.len() as u64;
    }
    out.into_inner().map_err(|error| unusable(file, error.error()))?.sync_all()?;
    output::message(&format!("{size} leaves written to {}", file.display()));
    Ok(())
}

fn write_line(out: &mut impl Write, value: &impl serde::Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(writeln!(out, "{line}")?)
}

/// Leaves from `first` on, none at or behind `size`.
async fn page(client: &mut LogClient<Channel>, first: u64, size: u64) -> Result<Vec<EntryDocument>, Failure> {
    let limit = u32::try_from(size - first).unwrap_or(0);
    let entries = client.get_entries(GetEntriesRequest { first, limit }).await?.into_inner().entries;
    if entries.is_empty() {
        return Err(Failure::failed(format!("the CA gives no leaf {first}, but says that there are {size}")));
    }
    Ok(entries.into_iter().map(EntryDocument::from).collect())
}

async fn verify_all(arg: &CaArg, output: OutputArg) -> Result<(), Failure> {
    let mut client = client(arg).await?;
    let (head, signed) = newest(&mut client).await?;
    let mut walk = Walk::new(None);
    while walk.frontier.size() < signed.head.size {
        for entry in page(&mut client, walk.frontier.size(), signed.head.size).await? {
            walk.add(&entry)?;
        }
    }
    walk.finish(head, &signed)?.print(output)
}

async fn verify_since(arg: &CaArg, since: &Path, output: OutputArg) -> Result<(), Failure> {
    let old = saved_head(since)?;
    let request = GetConsistencyProofRequest { old_size: old.head.size };
    let proof = client(arg).await?.get_consistency_proof(request).await?.into_inner();
    let head = HeadDocument::from(proof.head.unwrap_or_default());
    let new = head.verified()?;
    check_same_log(&old, &new)?;
    let hashes = hashes(&proof.hashes)?;
    verify_consistency(old.head.size, &old.head.root, new.head.size, &new.head.root, &hashes)?;
    Told { head, leaves: 0, records: 0, since: Some(old.head.size) }.print(output)
}

fn verify_file(file: &Path, since: Option<&Path>) -> Result<Told, Failure> {
    let old = since.map(saved_head).transpose()?;
    let mut lines = BufReader::new(File::open(file).map_err(|error| unusable(file, &error))?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let header: Header = parse_line(file, 1, &first)?;
    let head = header.head()?;
    let signed = head.verified()?;
    if let Some(old) = &old {
        check_same_log(old, &signed)?;
    }
    let mut walk = Walk::new(old);
    for (number, line) in (2..).zip(lines) {
        walk.add(&parse_line(file, number, &line?)?)?;
    }
    walk.finish(head, &signed)
}

fn parse_line<T: serde::de::DeserializeOwned>(file: &Path, number: u64, line: &str) -> Result<T, Failure> {
    serde_json::from_str(line).map_err(|error| {
        Failure::new(Exit::Data, format!("{}:{number}: not a line of an exported log: {error}", file.display()))
    })
}

/// A head saved by `log head -o json`, or the one that an exported log begins with.
fn saved_head(file: &Path) -> Result<SignedTreeHead, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| unusable(file, &error))?;
    let head = serde_json::from_str::<HeadDocument>(&text).or_else(|error| {
        let first = text.lines().next().unwrap_or_default();
        let header: Result<Header, _> = serde_json::from_str(first);
        let bad = |_| Failure::new(Exit::Data, format!("{}: not a saved tree head: {error}", file.display()));
        header.map_err(bad)?.head()
    })?;
    head.verified()
}

fn check_same_log(old: &SignedTreeHead, new: &SignedTreeHead) -> Result<(), Failure> {
    if old.log_id == new.log_id { Ok(()) } else { Err(TransparencyError::OtherLog.into()) }
}

/// Goes through all leaves in their order.
struct Walk {
    frontier: Frontier,
    since: Option<SignedTreeHead>,
    records: u64,
}

impl Walk {
    fn new(since: Option<SignedTreeHead>) -> Self {
        Self { frontier: Frontier::new(), since, records: 0 }
    }

    fn add(&mut self, entry: &EntryDocument) -> Result<(), Failure> {
        let at = self.frontier.size();
        if entry.index != at {
            return Err(Failure::failed(format!("leaf {} stands where leaf {at} should", entry.index)));
        }
        self.check_since()?;
        let leaf = entry.verified()?;
        self.records += u64::from(entry.record.is_some());
        self.frontier.append(leaf, |_, _| ());
        Ok(())
    }

    /// The tree once was what the earlier head says.
    fn check_since(&self) -> Result<(), Failure> {
        match &self.since {
            Some(old) if old.head.size == self.frontier.size() && old.head.root != self.frontier.root() => {
                Err(TransparencyError::Consistency.into())
            }
            _ => Ok(()),
        }
    }

    fn finish(self, head: HeadDocument, signed: &SignedTreeHead) -> Result<Told, Failure> {
        self.check_since()?;
        if let Some(old) = &self.since
            && old.head.size > self.frontier.size()
        {
            return Err(TransparencyError::Shrunk { old: old.head.size, new: self.frontier.size() }.into());
        }
        if self.frontier.size() != signed.head.size || self.frontier.root() != signed.head.root {
            return Err(TransparencyError::Root.into());
        }
        let since = self.since.map(|old| old.head.size);
        Ok(Told { head, leaves: self.frontier.size(), records: self.records, since })
    }
}

fn hashes(bytes: &[Vec<u8>]) -> Result<Vec<Hash>, Failure> {
    bytes.iter().map(|bytes| hash_of(bytes)).collect()
}

impl From<TransparencyError> for Failure {
    fn from(error: TransparencyError) -> Self {
        Self::refused(Exit::Failed, error.reason(), error.to_string())
    }
}

fn unusable(file: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Data, format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests;
