//! What every service of the authority stands on: the store, the signing authorities, the clock and the rules of time.

use std::time::{Duration, SystemTime};

use identity::spiffe_id::{SpiffeId, TrustDomain};
use runtime::clock::{self, Clock};
use runtime::shutdown::Shutdown;

use crate::audit::Refusals;
use crate::authorities::Authorities;
use crate::log::TransparencyLog;
use crate::metrics::Counts;
use crate::settings::Settings;
use crate::store::Store;

/// Shared by all services of one process.
#[derive(Debug)]
pub(crate) struct Certifier {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) server_id: SpiffeId,
    pub(crate) ttls: Ttls,
    /// `iss` of JWT-SVIDs.
    pub(crate) jwt_issuer: Option<String>,
    pub(crate) store: Store,
    pub(crate) authorities: Authorities,
    pub(crate) log: TransparencyLog,
    /// Waiting for the audit trail.
    pub(crate) refusals: Refusals,
    pub(crate) counts: Counts,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
}

/// How long things live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ttls {
    pub(crate) x509_svid: Duration,
    pub(crate) jwt_svid: Duration,
    pub(crate) agent_svid: Duration,
    pub(crate) max: Duration,
    pub(crate) backdate: Duration,
}

impl Ttls {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            x509_svid: settings.x509_svid_ttl,
            jwt_svid: settings.jwt_svid_ttl,
            agent_svid: settings.agent_svid_ttl,
            max: settings.svid_ttl_max,
            backdate: settings.backdate,
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

impl Certifier {
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
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
