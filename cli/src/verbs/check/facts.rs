//! What the parts of a mesh say of themselves, asked all at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use discovery::Explainer;
use futures_util::future::join_all;
use identity::TrustDomain;
use proto::kasbah::ca::v1::{Kind, StatusResponse};
use proto::spire::api::types::Entry;
use serde_json::Value;

use crate::args::{CaArg, DirArg};
use crate::ca_client::EntryFilter;
use crate::exit::{Exit, Failure};
use crate::up::layout::Layout;
use crate::up::probe;
use crate::verbs::{ca, status};

/// Everything that is judged.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) parts: Vec<Part>,
    /// Rotations by kind; absent when the CA could not be asked.
    pub(super) rotations: Vec<StatusResponse>,
    /// Bytes: free, and all.
    pub(super) disk: Option<(u64, u64)>,
    /// What operators wrote.
    pub(super) documents: Option<Explainer>,
    /// SPIFFE IDs that registration entries give; absent when the CA could not be asked.
    pub(super) identities: Option<Vec<String>>,
}

/// One process.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) running: bool,
    pub(super) restarts: u32,
    /// `Err` says what it waits for.
    pub(super) ready: Result<(), String>,
    /// Admin pages by path; a page that did not come is absent.
    pub(super) pages: BTreeMap<&'static str, Value>,
}

impl Facts {
    pub(super) fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// A page of a part.
    pub(super) fn page(&self, name: &str, path: &str) -> Option<&Value> {
        self.part(name)?.pages.get(path)
    }
}

pub(super) async fn gather(dir: &DirArg) -> Result<Facts, Failure> {
    let layout = Layout::of(&dir.dir)?;
    let state = status::running(&layout).map_err(|failure| match failure.exit {
        Exit::Unavailable => failure
            .remedy("start one with `kasbah up`, name its folder with --dir DIR, or look before a start with --pre"),
        _ => failure,
    })?;
    let parts = join_all(state.processes.iter().map(|process| async {
        let pages = match process.admin {
            Some(admin) => pages(admin).await,
            None => BTreeMap::new(),
        };
        let running = process.pid.is_some();
        let ready = if running { probe::ready(process).await } else { Err("it is not running".to_owned()) };
        Part { name: process.name.clone(), running, restarts: process.restarts, ready, pages }
    }));
    let (parts, rotations, identities) = tokio::join!(parts, rotations(dir), identities(dir));
    let documents = documents(&layout, &parts);
    Ok(Facts { parts, rotations, disk: disk(&layout.data("ca")), documents, identities })
}

async fn pages(admin: SocketAddr) -> BTreeMap<&'static str, Value> {
    let asked = join_all(PAGES.iter().map(|path| async move {
        let (status, body) = runtime::ask::get(admin, path).await.ok()?;
        let page = serde_json::from_slice(&body).ok()?;
        (status == http::StatusCode::OK).then_some((*path, page))
    }));
    asked.await.into_iter().flatten().collect()
}

async fn rotations(dir: &DirArg) -> Vec<StatusResponse> {
    let Ok(client) = ca(&CaArg { dir: dir.clone(), ..CaArg::default() }).await else { return Vec::new() };
    let asked = join_all([Kind::X509, Kind::Jwt, Kind::Wit].map(|kind| client.rotation(kind)));
    asked.await.into_iter().flatten().collect()
}

async fn identities(dir: &DirArg) -> Option<Vec<String>> {
    let client = ca(&CaArg { dir: dir.clone(), ..CaArg::default() }).await.ok()?;
    let entries = client.list_entries(&EntryFilter::default()).await.ok()?;
    let id = |entry: &Entry| {
        let id = entry.spiffe_id.as_ref()?;
        Some(format!("spiffe://{}{}", id.trust_domain, id.path))
    };
    Some(entries.iter().filter_map(id).collect())
}

/// The documents that hold; those that are refused are another check's.
fn documents(layout: &Layout, parts: &[Part]) -> Option<Explainer> {
    let mut pages = parts.iter().filter_map(|part| part.pages.get("/resources"));
    let trust_domain = TrustDomain::parse(pages.find_map(|page| page["trust_domain"].as_str())?).ok()?;
    let (documents, _) = discovery::documents::load(&[layout.config()]);
    Some(Explainer::new(documents, &trust_domain))
}

/// Free and whole space where a folder is.
pub(super) fn disk(folder: &std::path::Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

const PAGES: &[&str] = &["/status", "/certs", "/findings", "/resources"];
