//! `docs/ca.md`, typed: its settings make an authority, and its commands do what it says, in the order of the page. Where the
//! page names folders and addresses, the test puts its own. The way to PostgreSQL and several replicas with real processes, one of
//! which is killed.

#![allow(clippy::print_stdout, reason = "what it took is told with the test's output")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::mesh::kill;
use harness::postgres::Postgres;
use harness::{curl, tools, wait};
use libtest_mimic::Trial;

use crate::page::Page;
use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("ca_docs::every_command_of_the_page_does_what_it_says", every_command),
        alone("ca_docs::an_authority_moves_to_postgresql_as_the_page_says", moves_to_postgresql),
        alone("ca_docs::replicas_hear_of_each_other_and_one_follows_a_killed_leader", replicas),
        alone("ca_docs::a_lost_root_is_replaced_as_the_page_says", a_lost_root),
    ]
}

/// The page with its addresses.
pub(crate) fn open() -> Result<Page> {
    let mut page = Page::open("ca.md")?;
    page.replace("/backup/", format!("{}/", page.path("backup").display()));
    page.replace("127.0.0.1:8081", format!("127.0.0.1:{}", page.grpc));
    page.replace("127.0.0.1:8082", format!("127.0.0.1:{}", page.admin));
    Ok(page)
}

impl Page {
    /// Writes the first block of settings as `ca.yaml`, with one more setting.
    pub(crate) fn settle(&self, more: &str) -> Result<()> {
        let settings = self.blocks("Running it", "yaml")?.remove(0);
        Ok(std::fs::write(self.path("ca.yaml"), format!("{settings}\n{more}\n"))?)
    }

    /// A node that has joined and went away again.
    fn join_a_node(&self) -> Result<String> {
        self.type_in("kasbah token create --spiffe-id spiffe://cluster.local/node/web-1 > token")?;
        let join = format!(
            "kasbah agent join --server 127.0.0.1:{} --trust-domain cluster.local --trust-bundle lib/run/bundle.pem \
             --token $(cat token) --data-dir agent -o json",
            self.grpc
        );
        let joined: serde_json::Value = serde_json::from_str(&self.type_in(&join)?)?;
        Ok(joined["spiffe_id"].as_str().context("no node")?.to_owned())
    }
}

fn every_command() -> Result<()> {
    let mut page = open()?;
    page.settle("policy_file: policy.yaml")?;
    std::fs::write(page.path("policy.yaml"), page.blocks("Issuance policy", "yaml")?.join("\n"))?;
    for command in page.commands("Running it")? {
        match command.split('#').next().unwrap_or_default().trim() {
            "kasbah ca run --config ca.yaml" => page.start()?,
            _ => drop(page.type_in(&command)?),
        }
    }
    for heading in ["Issuance policy", "Transparency log", "Audit", "Rotation"] {
        for command in page.commands(heading)? {
            let command = with_names(&page, &command)?;
            page.type_in(&command).with_context(|| format!("below {heading}"))?;
        }
    }
    let roots = page.type_in("kasbah bundle show")?;
    let kept = "kasbah entry create --spiffe-id spiffe://cluster.local/kept --parent-id spiffe://cluster.local/node/web-1 \
                --selector unix:uid:1";
    page.type_in(kept)?;
    let commands = page.commands("Backup and restore")?;
    let [backup, restore, ..] = &commands[..] else { bail!("{commands:?}") };
    page.type_in(backup)?;
    page.type_in(
        "kasbah entry delete $(kasbah entry list -o json | grep -o '\"id\": *\"[^\"]*\"' | head -1 | cut -d'\"' -f4)",
    )?;
    page.stop()?;
    page.type_in(&format!("{restore} # exit 1")).context("a database that is not empty")?;
    page.type_in("mkdir aside && mv lib/data/ca.sqlite* aside/")?;
    page.type_in(restore)?;
    page.start()?;
    ensure!(page.type_in("kasbah entry list")?.contains("spiffe://cluster.local/kept"), "the entry is not back");
    ensure!(page.type_in("kasbah bundle show")? == roots, "other roots");
    page.type_in("kasbah log verify")?;
    page.stop()
}

/// Puts what exists here in the place of the page's capital words.
fn with_names(page: &Page, command: &str) -> Result<String> {
    let mut command = command.to_owned();
    if command.contains("SERIAL") {
        let issued = page.type_in("kasbah audit list --action issue -o json")?;
        let issued: serde_json::Value = serde_json::from_str(&issued)?;
        command = command.replace("SERIAL", issued[0]["target"].as_str().context("nothing was issued")?);
    }
    if command.contains("NODE") {
        let node = page.join_a_node()?;
        page.type_in("kasbah ca rotate activate # exit 1").context("the node has acknowledged nothing")?;
        command = command.replace("NODE", &node);
    }
    Ok(command)
}

/// A database with an owner of its own, as the page says.
fn owned(server: &Postgres) -> Result<String> {
    server.sql("postgres", "CREATE ROLE kasbah_ca LOGIN PASSWORD 'secret'")?;
    server.sql("postgres", "CREATE DATABASE kasbah_ca OWNER kasbah_ca")?;
    Ok(format!("postgres://kasbah_ca:secret@127.0.0.1:{}/kasbah_ca", server.port))
}

fn moves_to_postgresql() -> Result<()> {
    let server = Postgres::start()?;
    let database = owned(&server)?;
    let mut page = open()?;
    page.settle("")?;
    page.start()?;
    let roots = page.type_in("kasbah bundle show")?;
    let token = page.type_in("kasbah token create")?;
    page.stop()?;
    let commands = page.commands("Backup and restore")?;
    let [backup, restore] = &commands[commands.len() - 2..] else { bail!("{commands:?}") };
    page.type_in(backup)?;
    page.type_in(&restore.replace("postgres://…", &database))?;
    page.settle(&format!("database: {database}"))?;
    page.start()?;
    ensure!(page.type_in("kasbah bundle show")? == roots, "another root");
    let join = format!(
        "kasbah agent join --server 127.0.0.1:{} --trust-domain cluster.local --trust-bundle lib/run/bundle.pem --token {} \
         --data-dir agent",
        page.grpc,
        token.trim()
    );
    page.type_in(&join).context("the old token is good after a move")?;
    page.stop()
}

/// The answer of `/status` of each replica that runs: whether it has the lease.
fn leaders(pages: &[Page]) -> Result<Vec<usize>> {
    let mut leaders = Vec::new();
    for (at, page) in pages.iter().enumerate().filter(|(_, page)| page.ca.is_some()) {
        let answer = curl::get(curl::url("http", &format!("127.0.0.1:{}", page.admin), "/status")).send()?;
        if answer.json()?["leads"] == true {
            leaders.push(at);
        }
    }
    Ok(leaders)
}

fn one_leader(pages: &[Page]) -> Result<usize> {
    match leaders(pages)?[..] {
        [one] => Ok(one),
        ref several => bail!("these lead: {several:?}"),
    }
}

fn replicas() -> Result<()> {
    let server = Postgres::start()?;
    let database = owned(&server)?;
    let mut pages = Vec::new();
    for _ in 0..REPLICAS {
        let mut page = open()?;
        page.settle(&format!("database: {database}"))?;
        if let Some(first) = pages.first() {
            share_key(first, &page)?;
        }
        page.start()?;
        pages.push(page);
    }
    let leader = wait::until("one leader", LEASE_MAX, || one_leader(&pages))?;
    known_at_once(&pages)?;
    let killed = pages[leader].ca.take().context("it runs")?;
    kill(u64::from(killed.id()))?;
    drop(killed);
    let took = wait::time_until("the next leader", LEASE_MAX, || one_leader(&pages).map(drop))?;
    println!("the lease was handed on {took:?} after its holder was killed");
    known_at_once(&pages)?;
    // What replaces a root is done by the leader that is left, and all follow.
    let alive: Vec<&Page> = pages.iter().filter(|page| page.ca.is_some()).collect();
    alive[0].type_in("kasbah ca rotate --yes")?;
    let roots = alive[0].type_in("kasbah bundle show")?;
    for page in &alive[1..] {
        wait::until("the same root", KNOWN_MAX, || {
            ensure!(page.type_in("kasbah bundle show")? == roots, "another root");
            Ok(())
        })?;
    }
    pages[leader].start().context("it comes back")?;
    known_at_once(&pages)?;
    wait::until("one leader", LEASE_MAX, || one_leader(&pages).map(drop))?;
    pages[leader].type_in("kasbah log verify")?;
    pages.iter_mut().try_for_each(Page::stop)
}

/// As the page says, with a copy in the place of `scp`.
fn share_key(first: &Page, other: &Page) -> Result<()> {
    let commands = other.commands("Replicas")?;
    let copy = commands.iter().find(|command| command.starts_with("scp ")).context("no key is copied")?;
    let from = first.path("lib/data/").display().to_string();
    let to = other.path("lib/data/").display().to_string();
    std::fs::create_dir_all(&to)?;
    let words: Vec<&str> = copy.split_whitespace().take(4).collect();
    let [_, _, source, target] = words[..] else { bail!("{copy}") };
    let name = |word: &str| Path::new(word).file_name().map(|name| name.to_string_lossy().into_owned());
    ensure!(name(source) == name(target), "{copy}");
    std::fs::copy(Path::new(&from).join(name(source).unwrap_or_default()), Path::new(&to).join("key-encryption.key"))?;
    Ok(())
}

/// What is written at one replica is read at every other, soon.
fn known_at_once(pages: &[Page]) -> Result<()> {
    let alive: Vec<&Page> = pages.iter().filter(|page| page.ca.is_some()).collect();
    for (at, writer) in alive.iter().enumerate() {
        let id = format!("spiffe://cluster.local/w/{at}-{}", std::process::id());
        let parent = "spiffe://cluster.local/node/web-1";
        let create = format!("kasbah entry create --spiffe-id {id} --parent-id {parent} --selector unix:uid:1");
        let entry = writer.type_in(&create)?.trim().to_owned();
        let began = Instant::now();
        for reader in &alive {
            wait::until("the entry at another replica", KNOWN_MAX, || {
                reader.type_in(&format!("kasbah entry show {entry}")).map(drop)
            })?;
        }
        println!("{} replicas know what replica {at} wrote after {:?}", alive.len(), began.elapsed());
        writer.type_in(&format!("kasbah entry delete {entry}"))?;
    }
    Ok(())
}

/// A case of `docs/rotation.md`, "Recovering a lost root": the root's key is gone, the intermediate still signs.
fn a_lost_root() -> Result<()> {
    let mut page = open()?;
    page.settle("")?;
    page.start()?;
    let rotation = std::fs::read_to_string(tools::source("../docs/rotation.md"))?;
    let section = rotation.split("## Recovering a lost root").nth(1).context("no such section")?;
    let typed = section.lines().filter_map(|line| line.strip_prefix("$ "));
    let commands: Vec<&str> = typed.skip_while(|line| !line.starts_with("kasbah ca import ")).take(2).collect();
    ensure!(commands.len() == 2, "{commands:?}");
    let root = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.pem \
                -days 3650 -subj '/CN=new root' -addext 'keyUsage=critical,keyCertSign,cRLSign'";
    page.type_in(root)?;
    for command in commands {
        page.type_in(command)?;
    }
    ensure!(page.type_in("kasbah bundle show")? == std::fs::read_to_string(page.path("root.pem"))?, "not the new root");
    // The old key is of no use any more, and the authority goes on without it.
    page.stop()?;
    page.start()?;
    page.join_a_node()?;
    page.stop()
}

const REPLICAS: usize = 3;
/// The lease is free as soon as PostgreSQL sees the connection of a killed process end.
const LEASE_MAX: Duration = Duration::from_secs(10);
const KNOWN_MAX: Duration = Duration::from_secs(5);
