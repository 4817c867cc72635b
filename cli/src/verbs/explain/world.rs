//! What is explained from: documents, and what running proxies hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use discovery::{Explainer, Proxy};
use futures_util::future::join_all;
use identity::TrustDomain;
use routing::explain::Configuration;
use serde_json::Value;

use crate::args::ExplainMeshArgs;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::up::layout::Layout;
use crate::verbs::{status, wait};

/// Everything that is known.
pub(super) struct World {
    pub(super) explainer: Explainer,
    pub(super) held: Vec<Held>,
    pub(super) paths: Vec<PathBuf>,
}

/// A proxy with its configuration.
pub(super) struct Held {
    pub(super) proxy: Proxy,
    pub(super) configuration: Configuration,
    /// Its admin address, if the configuration is what it holds and not what documents say.
    pub(super) admin: Option<SocketAddr>,
    /// Resources that the documents would make otherwise.
    pub(super) differs: Vec<String>,
    pub(super) spiffe_id: Option<String>,
}

impl World {
    pub(super) fn gather(args: &ExplainMeshArgs) -> Result<Self, Failure> {
        let layout = Layout::of(&args.dir)?;
        let live = wait(live(args, &layout))?;
        let trust_domain = trust_domain(args, &live)?;
        let own = layout.config();
        let paths = match args.config.as_slice() {
            [] if own.is_dir() => vec![own],
            [] if !live.is_empty() => Vec::new(),
            [] => {
                let text = format!("{} does not exist", own.display());
                return Err(Failure::new(Exit::Unavailable, text).remedy("name the documents with --config PATH"));
            }
            paths => paths.to_vec(),
        };
        let explainer = Explainer::new(documents(&paths)?, &trust_domain);
        let mut held = Vec::new();
        for (admin, page) in &live {
            held.push(of_page(&explainer, *admin, page)?);
        }
        for proxy in explainer.proxies() {
            if !held.iter().any(|known| is_same(&known.proxy, &proxy)) {
                held.push(of_documents(&explainer, proxy, &trust_domain)?);
            }
        }
        Ok(Self { explainer, held, paths })
    }

    /// The proxy of this name.
    pub(super) fn named(&self, name: &str, wanted: impl Fn(&Held) -> bool) -> Result<&Held, Failure> {
        let by_id = |held: &&Held| held.spiffe_id.as_deref() == Some(name);
        let found = self.held.iter().filter(|held| wanted(held));
        let found = found.clone().find(by_id).or_else(|| found.clone().find(|held| held.proxy.is_called(name)));
        found.ok_or_else(|| {
            let known: Vec<String> = self.held.iter().filter(|held| wanted(held)).map(full_name).collect();
            Failure::new(Exit::Usage, format!("no proxy is called `{name}`"))
                .remedy(format!("known are: {}", known.join(", ")))
        })
    }
}

/// `namespace/name`.
pub(super) fn full_name(held: &Held) -> String {
    format!("{}/{}", held.proxy.namespace(), held.proxy.name())
}

fn is_same(known: &Proxy, other: &Proxy) -> bool {
    let same_labels = other.labels().iter().all(|(name, value)| known.labels().get(name) == Some(value));
    known.namespace() == other.namespace()
        && known.kind() == other.kind()
        && match known.is_gateway() {
            true => same_labels,
            false => known.address() == other.address() && known.name() == other.name(),
        }
}

fn documents(paths: &[PathBuf]) -> Result<Vec<discovery::documents::Document>, Failure> {
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(Failure::new(Exit::Unavailable, format!("{} does not exist", missing.display())));
    }
    let (documents, findings) = discovery::documents::load(paths);
    let errors: Vec<String> = findings.iter().filter(|finding| finding.is_error()).map(ToString::to_string).collect();
    match errors.is_empty() {
        true => Ok(documents),
        false => Err(Failure::new(Exit::Data, errors.join("\n")).remedy("see `kasbah validate` for all that is wrong")),
    }
}

/// The pages of the proxies that are to be asked.
async fn live(args: &ExplainMeshArgs, layout: &Layout) -> Result<Vec<(SocketAddr, Value)>, Failure> {
    let mut pages = Vec::new();
    for admin in &args.proxy {
        let page = page(*admin).await.ok_or_else(|| {
            Failure::new(Exit::Unavailable, format!("{admin} does not say what it holds"))
                .remedy("give the admin address of a running proxy, as `kasbah status` shows it")
        })?;
        pages.push((*admin, page));
    }
    if !args.proxy.is_empty() || !args.config.is_empty() {
        return Ok(pages);
    }
    match status::running(layout) {
        Ok(state) => {
            let admins: Vec<SocketAddr> = state.processes.iter().filter_map(|process| process.admin).collect();
            let asked = join_all(admins.into_iter().map(|admin| async move { Some((admin, page(admin).await?)) }));
            pages.extend(asked.await.into_iter().flatten());
        }
        Err(_) => {
            output::message(&format!("no mesh runs in {}: explained by its documents only", layout.dir.display()));
        }
    }
    Ok(pages)
}

/// What a proxy holds; nothing from whoever is none.
async fn page(admin: SocketAddr) -> Option<Value> {
    let (status, body) = runtime::ask::get(admin, "/resources").await.ok()?;
    let page: Value = serde_json::from_slice(&body).ok()?;
    (status == http::StatusCode::OK && page["node"].is_string()).then_some(page)
}

fn trust_domain(args: &ExplainMeshArgs, live: &[(SocketAddr, Value)]) -> Result<TrustDomain, Failure> {
    let told = live.iter().find_map(|(_, page)| page["trust_domain"].as_str());
    let name = args.trust_domain.as_deref().or(told).unwrap_or("cluster.local");
    TrustDomain::parse(name).map_err(|error| Failure::new(Exit::Usage, format!("`{name}` is no trust domain: {error}")))
}

fn of_documents(explainer: &Explainer, proxy: Proxy, trust_domain: &TrustDomain) -> Result<Held, Failure> {
    let resources = explainer.resources(&proxy);
    let configuration = Configuration::compile(resources.iter().map(|one| (one.type_url, one.bytes.as_slice())))
        .map_err(|error| Failure::new(Exit::Data, format!("the documents cannot be followed: {error}")))?;
    let spiffe_id = proxy.spiffe_id(trust_domain);
    Ok(Held { proxy, configuration, admin: None, differs: Vec::new(), spiffe_id })
}

fn of_page(explainer: &Explainer, admin: SocketAddr, page: &Value) -> Result<Held, Failure> {
    let bad = |what: &str| Failure::failed(format!("what {admin} holds cannot be read: {what}"));
    let node = page["node"].as_str().and_then(bytes).ok_or_else(|| bad("its node"))?;
    let proxy = explainer.proxy_of_node(&node).ok_or_else(|| bad("its node"))?;
    let mut held = BTreeMap::new();
    for resource in page["resources"].as_array().into_iter().flatten() {
        let (Some(url), Some(name)) = (resource["type_url"].as_str(), resource["name"].as_str()) else {
            return Err(bad("a resource"));
        };
        match resource["body"].as_str() {
            Some(body) => {
                held.insert((url, name), bytes(body).ok_or_else(|| bad(name))?);
            }
            None => output::message(&format!("{admin} keeps {name} to itself: it holds a private key")),
        }
    }
    let configuration = Configuration::compile(held.iter().map(|((url, _), body)| (*url, body.as_slice())));
    let differs = differs(explainer, &proxy, &held);
    Ok(Held {
        configuration: configuration.map_err(|error| bad(&error.to_string()))?,
        differs,
        spiffe_id: page["spiffe_id"].as_str().map(str::to_owned),
        proxy,
        admin: Some(admin),
    })
}

/// Resources that documents make otherwise, or not at all.
fn differs(explainer: &Explainer, proxy: &Proxy, held: &BTreeMap<(&str, &str), Vec<u8>>) -> Vec<String> {
    let wanted = explainer.resources(proxy);
    let kind = |url: &str| url.rsplit('.').next().unwrap_or_default().to_owned();
    let mut differs: Vec<String> = Vec::new();
    for one in &wanted {
        match held.get(&(one.type_url, one.name.as_str())) {
            Some(body) if *body == one.bytes => {}
            Some(_) => differs.push(format!("{} {} is another one", kind(one.type_url), one.name)),
            None => differs.push(format!("{} {} is not there", kind(one.type_url), one.name)),
        }
    }
    for (url, name) in held.keys() {
        if !wanted.iter().any(|one| one.type_url == *url && one.name == *name) {
            differs.push(format!("{} {name} is in no document", kind(url)));
        }
    }
    differs.sort();
    differs
}

pub(in crate::verbs) fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    hex.len().is_multiple_of(2).then(|| (0..hex.len()).step_by(2).map(digit).collect())?
}
