//! A node: its agent, which may be down, and its proxies, which live on while it is.

use std::collections::VecDeque;

/// What a proxy was sent: the bundle's number, who signed its certificate, and how far the node is once it has it.
#[derive(Clone, Debug)]
pub(super) struct Push {
    pub(super) bundle: u64,
    pub(super) signer: String,
    pub(super) settled: u64,
}

/// A proxy: it verifies by one bundle and presents one certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxy {
    pub(super) bundle: Option<u64>,
    pub(super) signer: Option<String>,
    /// Whether its stream to the agent is open, and what is on the way to it.
    pub(super) open: bool,
    pub(super) inbox: VecDeque<Push>,
    /// What the agent knows that it enforces; `None` while it has acknowledged nothing to this agent.
    pub(super) acknowledged: Option<u64>,
    /// The certificate that the agent holds for it.
    pub(super) held: Option<String>,
}

/// A node of the trust domain.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) id: String,
    pub(super) up: bool,
    /// Counts the agent's lives: what was asked for by an earlier one comes to nothing.
    pub(super) life: u64,
    /// The bundle that the agent has, also across restarts.
    pub(super) bundle: u64,
    /// The newest bundle under which everything the agent holds is good.
    pub(super) settled: u64,
    /// Who signed the agent's own SVID.
    pub(super) signer: String,
    /// After a start the agent waits for the proxies that were there before.
    pub(super) awaits_return: bool,
    pub(super) proxies: Vec<Proxy>,
    pub(super) expired: bool,
    /// Waived and not caught up: what it meets is the operator's decision.
    pub(super) exempt: bool,
}

impl Host {
    pub(super) fn new(id: String, bundle: u64, signer: &str) -> Self {
        Self {
            id,
            up: true,
            life: 0,
            bundle,
            settled: 0,
            signer: signer.into(),
            awaits_return: false,
            proxies: vec![Proxy::default(); 2],
            expired: false,
            exempt: false,
        }
    }

    /// What the agent would report: the least of what its proxies enforce, and never more than what it settled.
    pub(super) fn enforced(&self) -> Option<u64> {
        if self.awaits_return && self.proxies.iter().any(|proxy| proxy.bundle.is_some() && !proxy.open) {
            return None;
        }
        let wanting = self.proxies.iter().filter(|proxy| proxy.open || proxy.acknowledged.is_some());
        let least = wanting.map(|proxy| proxy.acknowledged.unwrap_or(0)).min();
        Some(least.unwrap_or(self.settled).min(self.settled))
    }

    /// The agent dies: streams break, and with them what was on the way and what it remembered.
    pub(super) fn crash(&mut self) {
        self.up = false;
        for proxy in &mut self.proxies {
            proxy.open = false;
            proxy.inbox.clear();
            (proxy.acknowledged, proxy.held) = (None, None);
        }
    }

    pub(super) fn start(&mut self) {
        (self.up, self.awaits_return, self.settled) = (true, true, 0);
        self.life += 1;
    }
}
