//! What every service of the authority stands on: the store, the signing authorities, the clock and the rules of time.

use std::time::{Duration, SystemTime};

use identity::spiffe_id::{SpiffeId, TrustDomain};
use runtime::clock::{self, Clock};
use runtime::shutdown::Shutdown;

use crate::address_limits::AddressLimits;
use crate::attest::Attestors;
use crate::audit::Refusals;
use crate::authorities::{Authorities, counted};
use crate::clock_watch::ClockWatch;
use crate::document::InForce;
use crate::federation;
use crate::log::TransparencyLog;
use crate::metrics::Counts;
use crate::policy::{Ask, KeyType, PolicyInForce};
use crate::refusal::Refusal;
use crate::renewals::Renewals;
use crate::revocation::Revocations;
use crate::rights::Rights;
use crate::rotation::contacts::Contacts;
use crate::service_account::SUBJECT_PREFIX;
use crate::settings::Settings;
use crate::store::{IssuanceKind, Store};

/// Shared by all services of one process.
#[derive(Debug)]
pub(crate) struct Certifier {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) server_id: SpiffeId,
    pub(crate) ttls: Ttls,
    /// `iss` of JWT-SVIDs.
    pub(crate) jwt_issuer: Option<String>,
    pub(crate) attestors: Attestors,
    /// What strangers may ask for.
    pub(crate) address_limits: AddressLimits,
    pub(crate) store: Store,
    pub(crate) authorities: Authorities,
    pub(crate) log: TransparencyLog,
    pub(crate) policy: PolicyInForce,
    /// Other names of the mesh.
    pub(crate) aliases: Vec<TrustDomain>,
    /// Who may administer what.
    pub(crate) rights: InForce<Rights>,
    /// Fetches foreign bundles.
    pub(crate) federation: federation::Client,
    /// How the certificate of the bundle endpoint of the web is.
    pub(crate) web_health: federation::acme::WebHealth,
    pub(crate) revocations: Revocations,
    /// Waiting for the audit trail.
    pub(crate) refusals: Refusals,
    pub(crate) contacts: Contacts,
    /// When agents are advised to come again.
    pub(crate) renewals: Renewals,
    pub(crate) counts: Counts,
    pub(crate) clock: Clock,
    pub(crate) clock_watch: ClockWatch,
    pub(crate) shutdown: Shutdown,
}

/// How long things live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ttls {
    pub(crate) x509_svid: Duration,
    pub(crate) jwt_svid: Duration,
    pub(crate) wit_svid: Duration,
    pub(crate) agent_svid: Duration,
    pub(crate) max: Duration,
    /// Of intermediates.
    pub(crate) ca: Duration,
    pub(crate) backdate: Duration,
    /// See [`crate::custody::CustodySettings::renewal_lead`].
    pub(crate) renewal_lead: f64,
}

impl Ttls {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            x509_svid: settings.x509_svid_ttl,
            jwt_svid: settings.jwt_svid_ttl,
            wit_svid: settings.wit_svid_ttl,
            agent_svid: settings.agent_svid_ttl,
            max: settings.svid_ttl_max,
            ca: settings.ca_ttl,
            backdate: settings.backdate,
            renewal_lead: settings.custody.renewal_lead,
        }
    }

    /// What was asked for (seconds, 0 for the default), never more than the maximum.
    pub(crate) fn or_default(&self, asked_secs: i64, default: Duration) -> Duration {
        match u64::try_from(asked_secs) {
            Ok(secs) if secs > 0 => Duration::from_secs(secs).min(self.max),
            _ => default,
        }
    }

    /// How far before its issue a certificate of this life begins. Short lives are backdated less, so that half of the
    /// life still lies ahead.
    pub(crate) fn backdate(&self, ttl: Duration) -> Duration {
        self.backdate.min(ttl / 10)
    }
}

/// What the issuance policy is to judge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) kind: IssuanceKind,
    pub(crate) id: &'a SpiffeId,
    pub(crate) caller: &'a str,
    pub(crate) dns_names: &'a [String],
    /// None for tokens.
    pub(crate) key: Option<KeyType>,
}

impl Certifier {
    /// Asks the issuance policy; answers how long the SVID may live. Nodes' own SVIDs and the server's are not judged.
    pub(crate) fn judge(&self, wanted: &Wanted<'_>, ttl: Duration) -> Result<Duration, Refusal> {
        let Wanted { kind, id, caller, dns_names, key } = *wanted;
        if matches!(kind, IssuanceKind::Server | IssuanceKind::Agent) || self.policy.is_open() {
            return Ok(ttl);
        }
        let mut callers = self.names_of(caller);
        if kind == IssuanceKind::Csr {
            // Who shows the token of a service account is that workload, also when it asks for another's certificate.
            callers.extend(self.workload_of(caller).map(|id| id.to_string()));
        }
        let ask = Ask { id, callers: &callers, kind: kind.as_str(), ttl, dns_names, key };
        Ok(self.policy.judge(&ask, self.now())?)
    }

    /// The identity of the service account that a token's subject names.
    fn workload_of(&self, subject: &str) -> Option<SpiffeId> {
        let (namespace, name) = subject.strip_prefix(SUBJECT_PREFIX)?.split_once(':')?;
        self.trust_domain.workload(namespace, name).ok()
    }

    /// All that a caller is called: a node by its aliases, too.
    pub(crate) fn names_of(&self, caller: &str) -> Vec<String> {
        let mut names = vec![caller.to_owned()];
        if let Ok(id) = SpiffeId::parse(caller) {
            names.extend(self.store.registry().aliases_of(&id, self.now_secs()).map(ToString::to_string));
        }
        names
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// The root below which the server's own certificate is to be.
    pub(crate) fn server_root(&self) -> String {
        let signing = self.authorities.current();
        // Many nodes need not be looked through where there is nothing to choose.
        if signing.signs_below_one_root() {
            return signing.server_root(&[]);
        }
        let nodes = counted(self.store.registry().agents().map(AsRef::as_ref), self.now_secs());
        signing.server_root(&nodes)
    }

    /// Unix seconds.
    pub(crate) fn now_secs(&self) -> i64 {
        secs(self.now())
    }
}

/// Unix seconds, as the database and the wire carry them.
pub(crate) fn secs(moment: SystemTime) -> i64 {
    i64::try_from(clock::unix_secs(moment)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trust_domain;

    #[test]
    fn a_wish_is_limited_and_no_wish_is_the_default() {
        let ttls = Ttls::of(&Settings::new(trust_domain(), "/d".into()));
        let check = |asked, expected| assert_eq!(ttls.or_default(asked, ttls.x509_svid).as_secs(), expected, "{asked}");
        check(0, 3600);
        check(-5, 3600);
        check(20, 20);
        check(86_400, 86_400);
        check(86_401, 86_400);
        check(i64::MAX, 86_400);
    }

    #[test]
    fn short_lives_are_backdated_less() {
        let ttls = Ttls::of(&Settings::new(trust_domain(), "/d".into()));
        assert_eq!(ttls.backdate(Duration::from_secs(20)), Duration::from_secs(2));
        assert_eq!(ttls.backdate(Duration::from_secs(86_400)), Duration::from_secs(120));
    }
}
