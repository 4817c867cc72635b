//! The server, the wire and the dice.

use std::collections::{BTreeMap, BTreeSet};

use super::agent::{Host, Proxy, Push};
use crate::rotation::machine::{Line, Member, Mode, Node, Step, World};
use crate::rotation::schedule::{Ages, Due};
use crate::store::AuthorityState as Stage;

/// A mistake to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The server activates at once.
    ActivateEarly,
    /// The server revokes at once.
    RevokeEarly,
    /// The agent reports what it fetched, not what its proxies acknowledged.
    ReportOnFetch,
    /// The agent accepts a certificate that was signed by what is tainted by now.
    AcceptTainted,
    /// An agent that was restarted does not wait for its proxies.
    NoReturnWait,
    /// The server's own certificate follows every activation.
    ServerFirst,
}

impl Flaw {
    pub(super) const ALL: [Self; 6] = [
        Self::ActivateEarly,
        Self::RevokeEarly,
        Self::ReportOnFetch,
        Self::AcceptTainted,
        Self::NoReturnWait,
        Self::ServerFirst,
    ];
}

/// What is on the way.
enum Message {
    Report { host: usize, enforced: u64 },
    Acknowledge { host: usize, life: u64, proxy: usize, settled: u64 },
    Issued { host: usize, life: u64, proxy: usize, signer: String },
}

#[derive(Clone, Default)]
struct Bundle {
    trusted: BTreeSet<String>,
    tainted: BTreeSet<String>,
}

/// Everything.
pub(super) struct Sim {
    dice: u64,
    flaw: Option<Flaw>,
    line: Line,
    bundles: Vec<Bundle>,
    hosts: Vec<Host>,
    /// What the server has stored of each node.
    stored: BTreeMap<String, u64>,
    server_signer: String,
    wire: Vec<Message>,
    now: i64,
    made: u64,
    /// When each authority ends: what it signed is void from then on.
    ends: BTreeMap<String, i64>,
    life: i64,
    /// Rotations that went to their end.
    pub(super) revoked: u64,
}

impl Sim {
    pub(super) fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        // In some schedules authorities grow old, in most they are replaced by hand.
        let life = if seed.is_multiple_of(4) { 300 } else { 1_000_000 };
        let first =
            Member { id: "r0".into(), stage: Stage::Active, not_before: 0, not_after: life, published: 1, tainted: 0 };
        let line = Line { members: vec![first], ..Line::default() };
        let mut sim = Self {
            dice: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            flaw,
            line,
            bundles: vec![Bundle::default()],
            hosts: Vec::new(),
            stored: BTreeMap::new(),
            server_signer: "r0".into(),
            wire: Vec::new(),
            now: 0,
            made: 0,
            ends: BTreeMap::from([("r0".to_owned(), life)]),
            life,
            revoked: 0,
        };
        sim.publish();
        for _ in 0..3 {
            sim.join();
        }
        sim
    }

    fn roll(&mut self, below: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        usize::try_from((self.dice >> 11) % below.max(1) as u64).unwrap_or(0)
    }

    fn publish(&mut self) {
        let ids = |stage: fn(&Member) -> bool, line: &Line| {
            line.members.iter().filter(|member| stage(member)).map(|member| member.id.clone()).collect()
        };
        self.bundles.push(Bundle {
            trusted: ids(|_| true, &self.line),
            tainted: ids(|member| member.stage == Stage::Tainted, &self.line),
        });
    }

    fn sequence(&self) -> u64 {
        self.bundles.len() as u64 - 1
    }

    fn bundle(&self, number: u64) -> &Bundle {
        &self.bundles[usize::try_from(number).unwrap_or(0)]
    }

    fn active(&self) -> String {
        self.line.active().map(|active| active.id.clone()).unwrap_or_default()
    }

    fn counted(&self) -> Vec<Node> {
        let counted = self.hosts.iter().filter(|host| !host.expired);
        counted.map(|host| Node { id: host.id.clone(), enforced: self.stored[&host.id] }).collect()
    }

    /// One thing happens.
    pub(super) fn event(&mut self) {
        self.now += 1;
        let host = self.roll(self.hosts.len());
        let proxy = self.roll(self.hosts[host].proxies.len());
        match self.roll(100) {
            0..=7 => self.step(),
            8..=15 => self.tick(),
            16..=23 => self.arrive(),
            24..=29 => self.fetch(host),
            30..=37 => self.renew(host, proxy),
            38..=45 => self.push(host, proxy),
            46..=53 => self.deliver(host, proxy),
            54..=60 => self.report(host),
            61..=92 => self.bustle(host),
            93 => self.hosts[host].crash(),
            94..=95 => (0..self.hosts.len()).for_each(|host| self.revive(host)),
            96 => self.break_stream(host, proxy),
            97 => self.hosts[host].proxies[proxy] = Proxy::default(),
            98 => self.lose(),
            _ => self.come_and_go(host),
        }
        self.sign_own();
        self.catch_up();
    }

    /// A node does most of what it should.
    fn bustle(&mut self, host: usize) {
        for act in [
            Self::fetch,
            Self::renew_all,
            Self::arrive_all,
            Self::push_all,
            Self::deliver_all,
            Self::arrive_all,
            Self::report,
            Self::arrive_all,
        ] {
            if self.roll(12) > 0 {
                act(self, host);
            }
        }
    }

    fn come_and_go(&mut self, host: usize) {
        if self.hosts.len() < 4 && self.roll(2) == 0 {
            self.join();
        } else if self.roll(4) == 0 {
            // Its SVID ran out: it does not count any more.
            self.hosts[host].crash();
            (self.hosts[host].expired, self.hosts[host].exempt) = (true, true);
        }
    }

    fn join(&mut self) {
        let (id, signer) = (format!("n{}", self.hosts.len()), self.active());
        self.stored.insert(id.clone(), 0);
        // What it serves begins with its first fetch.
        let mut host = Host::new(id, self.sequence(), &signer);
        host.settled = 0;
        self.hosts.push(host);
    }

    /// An operator tries something, sensible or not.
    fn step(&mut self) {
        let any = self.roll(self.line.members.len());
        let any = self.line.members[any].id.clone();
        let host = self.roll(self.hosts.len());
        let next = self.line.next();
        let step = match (self.roll(24), next) {
            (0..=1, _) => self.successor(Mode::Auto),
            (2..=3, _) => self.successor(Mode::Steps),
            (4..=15, Some(next)) => next,
            (16, _) => Step::Activate(any),
            (17..=18, _) => Step::Taint(any),
            (19..=20, _) => Step::Revoke(any),
            (21, _) => Step::Abort,
            (22, _) => Step::Waive(self.hosts[host].id.clone()),
            _ => Step::Resume,
        };
        self.take(&step);
    }

    fn successor(&mut self, mode: Mode) -> Step {
        self.made += 1;
        self.ends.insert(format!("r{}", self.made), self.now + self.life);
        let member = Member {
            id: format!("r{}", self.made),
            stage: Stage::Prepared,
            not_before: self.now,
            not_after: self.now + self.life,
            published: 0,
            tainted: 0,
        };
        Step::Prepare(member, mode)
    }

    /// What the server does by itself.
    fn tick(&mut self) {
        let nodes = self.counted();
        let world = World { nodes: &nodes, next_sequence: self.sequence() + 1, now: self.now, in_use_until: 0 };
        match (Ages { signs: 1 }).due(&self.line, world) {
            Some(Due::Step(step)) => self.take(&step),
            Some(Due::Prepare) => {
                let step = self.successor(Mode::Age);
                self.take(&step);
            }
            Some(Due::Overdue(nodes)) => nodes.into_iter().for_each(|node| self.take(&Step::Waive(node))),
            None => (),
        }
    }

    fn take(&mut self, step: &Step) {
        let mut nodes = self.counted();
        let blind = match step {
            Step::Activate(_) => self.flaw == Some(Flaw::ActivateEarly),
            Step::Revoke(_) => self.flaw == Some(Flaw::RevokeEarly),
            _ => false,
        };
        if blind {
            nodes.clear();
        }
        let world = World { nodes: &nodes, next_sequence: self.sequence() + 1, now: self.now, in_use_until: 0 };
        let Ok(moved) = self.line.take(step, world) else { return };
        self.line = moved.line;
        if moved.publishes {
            self.publish();
        }
        self.revoked += u64::from(matches!(step, Step::Revoke(_)));
        for host in &mut self.hosts {
            host.exempt |= self.line.waived.contains(&host.id);
        }
    }

    fn sign_own(&mut self) {
        let nodes = if self.flaw == Some(Flaw::ServerFirst) { Vec::new() } else { self.counted() };
        self.server_signer = self.line.signs_for_server(&nodes).map(|member| member.id.clone()).unwrap_or_default();
    }

    /// A waived node that enforces the present bundle is as good as any.
    fn catch_up(&mut self) {
        let sequence = self.sequence();
        for host in self.hosts.iter_mut().filter(|host| !host.expired) {
            let caught_up = self.stored[&host.id] == sequence && host.enforced() == Some(sequence);
            host.exempt &= !caught_up || self.line.waived.contains(&host.id);
        }
    }

    fn arrive(&mut self) {
        if self.wire.is_empty() {
            return;
        }
        let at = self.roll(self.wire.len());
        match self.wire.remove(at) {
            Message::Report { host, enforced } => {
                self.stored.insert(self.hosts[host].id.clone(), enforced);
            }
            Message::Acknowledge { host, life, proxy, settled } => {
                let host = &mut self.hosts[host];
                if host.up && host.life == life && host.proxies[proxy].open {
                    host.proxies[proxy].acknowledged = Some(settled);
                }
            }
            Message::Issued { host, life, proxy, signer } => self.accept(host, life, proxy, signer),
        }
    }

    fn arrive_all(&mut self, _: usize) {
        for _ in 0..self.wire.len() {
            // Some is later than the rest.
            if self.roll(12) > 0 {
                self.arrive();
            }
        }
    }

    /// What is tainted is replaced at once, what is not now and then.
    fn renew_all(&mut self, host: usize) {
        for proxy in 0..self.hosts[host].proxies.len() {
            let held = self.hosts[host].proxies[proxy].held.clone();
            if held.is_none_or(|signer| !self.is_clean(self.hosts[host].bundle, &signer)) || self.roll(4) == 0 {
                self.renew(host, proxy);
            }
        }
    }

    fn push_all(&mut self, host: usize) {
        (0..self.hosts[host].proxies.len()).for_each(|proxy| self.push(host, proxy));
    }

    fn deliver_all(&mut self, host: usize) {
        for proxy in 0..self.hosts[host].proxies.len() {
            while !self.hosts[host].proxies[proxy].inbox.is_empty() {
                self.deliver(host, proxy);
            }
        }
    }

    /// The server or the network dies: half of what is on the way is lost.
    fn lose(&mut self) {
        let mut keep = Vec::new();
        for message in std::mem::take(&mut self.wire) {
            if self.roll(2) == 0 {
                keep.push(message);
            }
        }
        self.wire = keep;
    }

    /// The agent fetches the bundle, and replaces its own SVID if that is tainted.
    fn fetch(&mut self, at: usize) {
        let (sequence, active) = (self.sequence(), self.active());
        let host = &mut self.hosts[at];
        // A server that cannot be trusted, or that does not trust us, is not reached.
        if !host.up || !self.bundles[usize::try_from(host.bundle).unwrap_or(0)].trusted.contains(&self.server_signer) {
            return;
        }
        host.bundle = sequence;
        if self.bundles.last().is_some_and(|bundle| bundle.tainted.contains(&host.signer)) {
            host.signer = active;
        }
        self.settle(at);
    }

    fn is_clean(&self, bundle: u64, signer: &str) -> bool {
        let bundle = self.bundle(bundle);
        bundle.trusted.contains(signer) && !bundle.tainted.contains(signer)
    }

    fn settle(&mut self, at: usize) {
        let host = &self.hosts[at];
        let held = host.proxies.iter().filter_map(|proxy| proxy.held.as_ref()).chain([&host.signer]);
        let clean = held.into_iter().all(|signer| self.is_clean(host.bundle, signer));
        if clean {
            self.hosts[at].settled = self.hosts[at].bundle;
        }
    }

    /// The agent asks for a certificate; the server signs now, the answer comes whenever it comes.
    fn renew(&mut self, host: usize, proxy: usize) {
        if self.hosts[host].up {
            let (life, signer) = (self.hosts[host].life, self.active());
            self.wire.push(Message::Issued { host, life, proxy, signer });
        }
    }

    fn accept(&mut self, at: usize, life: u64, proxy: usize, signer: String) {
        let host = &self.hosts[at];
        let lenient = self.flaw == Some(Flaw::AcceptTainted);
        if !host.up || host.life != life || !(lenient || self.is_clean(host.bundle, &signer)) {
            return;
        }
        self.hosts[at].proxies[proxy].held = Some(signer);
        self.settle(at);
    }

    /// The agent sends a proxy the present state.
    fn push(&mut self, at: usize, proxy: usize) {
        let host = &mut self.hosts[at];
        if !host.up {
            return;
        }
        let (bundle, settled) = (host.bundle, host.settled);
        let proxy = &mut host.proxies[proxy];
        proxy.open = true;
        // Without a certificate there is no answer yet.
        if let Some(signer) = proxy.held.clone() {
            proxy.inbox.push_back(Push { bundle, signer, settled });
        }
    }

    fn deliver(&mut self, at: usize, number: usize) {
        let (life, proxy) = (self.hosts[at].life, &mut self.hosts[at].proxies[number]);
        let Some(push) = proxy.inbox.pop_front() else { return };
        (proxy.bundle, proxy.signer) = (Some(push.bundle), Some(push.signer));
        // An answer that a newer one has overtaken is not acknowledged.
        if proxy.inbox.is_empty() {
            self.wire.push(Message::Acknowledge { host: at, life, proxy: number, settled: push.settled });
        }
    }

    /// A stream breaks and comes back; the agent remembers what it enforced.
    fn break_stream(&mut self, at: usize, proxy: usize) {
        let proxy = &mut self.hosts[at].proxies[proxy];
        proxy.open = false;
        proxy.inbox.clear();
    }

    fn report(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if !host.up {
            return;
        }
        host.awaits_return &= host.proxies.iter().any(|proxy| proxy.bundle.is_some() && !proxy.open);
        let enforced = match self.flaw {
            Some(Flaw::ReportOnFetch) => Some(host.bundle),
            Some(Flaw::NoReturnWait) => {
                let mut hasty = host.clone();
                hasty.awaits_return = false;
                hasty.enforced()
            }
            _ => host.enforced(),
        };
        if let Some(enforced) = enforced {
            self.wire.retain(|message| !matches!(message, Message::Report { host, .. } if *host == at));
            self.wire.push(Message::Report { host: at, enforced });
        }
    }

    fn revive(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if !host.up && !host.expired {
            host.start();
            self.settle(at);
        }
    }

    /// Whether an authority is left that every node knows: then the server must be signed by it, also for waived nodes.
    fn is_anything_known_to_all(&self) -> bool {
        let reported = self.counted().into_iter().map(|node| node.enforced).filter(|enforced| *enforced > 0);
        let least = reported.min().unwrap_or(u64::MAX);
        self.line.members.iter().any(|member| member.stage != Stage::Prepared && member.published <= least)
    }

    fn covers(&self, bundle: u64, signer: &String) -> bool {
        self.ends[signer] <= self.now || self.bundle(bundle).trusted.contains(signer)
    }

    /// The invariant.
    pub(super) fn check(&self) -> Result<(), String> {
        let there = |host: &&Host| !host.exempt;
        let proxies = || self.hosts.iter().filter(there).flat_map(|host| host.proxies.iter().map(move |p| (host, p)));
        for (verifying, bundle) in proxies().filter_map(|(host, proxy)| Some((host, proxy.bundle?))) {
            for (presenting, signer) in proxies().filter_map(|(host, proxy)| Some((host, proxy.signer.as_ref()?))) {
                if !self.covers(bundle, signer) {
                    return Err(format!(
                        "{} presents a certificate of {signer} to {}, which enforces bundle {bundle}",
                        presenting.id, verifying.id
                    ));
                }
            }
        }
        for host in self.hosts.iter().filter(|host| !host.expired) {
            let findable = !host.exempt || (self.stored[&host.id] > 0 && self.is_anything_known_to_all());
            if findable && !self.covers(host.bundle, &self.server_signer) {
                return Err(format!("{} cannot trust the server, signed by {}", host.id, self.server_signer));
            }
        }
        for host in self.hosts.iter().filter(there) {
            if !self.covers(self.sequence(), &host.signer) {
                return Err(format!("the server does not know {}, which signed {}", host.signer, host.id));
            }
        }
        Ok(())
    }
}
