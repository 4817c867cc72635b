//! What an address may make the authority work on before its callers have proven anything.
//!
//! Each address (IPv6: each /64) has three buckets of a minute: one for handshakes, one for requests, one for refusals of what was
//! shown as a proof. Whoever proves what it is gets its handshake and its request back, so that a fleet behind one address never
//! meets the limits, and whoever guesses does. The same goes for the number of connections at once.
//!
//! The table has a fixed number of places and addresses find theirs by a keyed hash: however many addresses come, it does not
//! grow, and nobody is forgotten for another. Two addresses that meet in one place share its buckets.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use runtime::mtls::{Door, Pass};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::audit::Source;
use crate::certifier::Certifier;
use crate::refusal::Refusal;

/// How much an address may ask for without a certificate.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AddressLimitSettings {
    /// Requests, at once and in a minute; 0: any number. What proves itself does not count.
    pub requests_per_minute: u32,
    /// Evidence and tokens that prove nothing, at once and in a minute; 0: any number.
    pub refusals_per_minute: u32,
    /// Connections that are opened, at once and in a minute; 0: any number. Those with a certificate do not count.
    pub handshakes_per_minute: u32,
    /// Connections without a certificate, or in the handshake, that are open at once; 0: any number.
    pub connections: u32,
}

impl Default for AddressLimitSettings {
    fn default() -> Self {
        let (requests_per_minute, refusals_per_minute) = (6_000, 60);
        // Half of all that a service holds at once.
        let (handshakes_per_minute, connections) = (6_000, 512);
        Self { requests_per_minute, refusals_per_minute, handshakes_per_minute, connections }
    }
}

/// The limits, and how far they are used.
#[derive(Debug)]
pub(crate) struct AddressLimits {
    hasher: RandomState,
    begun: Instant,
    requests: Buckets,
    refusals: Buckets,
    handshakes: Buckets,
    /// How many may be open, and how many are, by place.
    connections_max: u32,
    open: Mutex<Vec<u32>>,
    said: Mutex<Said>,
}

/// An address has used up its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limited {
    /// Which limit, as metrics know it.
    limit: &'static str,
    /// How long until there is room again.
    wait: Duration,
}

impl AddressLimits {
    pub(crate) fn new(settings: AddressLimitSettings) -> Self {
        Self {
            hasher: RandomState::new(),
            begun: Instant::now(),
            requests: Buckets::new("requests", settings.requests_per_minute),
            refusals: Buckets::new("refusals", settings.refusals_per_minute),
            handshakes: Buckets::new("handshakes", settings.handshakes_per_minute),
            connections_max: settings.connections,
            open: Mutex::new(vec![0; PLACES]),
            said: Mutex::default(),
        }
    }

    /// Counts a request.
    fn request(&self, source: Source) -> Result<(), Limited> {
        self.place(source).map_or(Ok(()), |place| self.requests.take(place, self.now()))
    }

    /// Whether what this source shows is looked at.
    fn judge(&self, source: Source) -> Result<(), Limited> {
        self.place(source).map_or(Ok(()), |place| self.refusals.check(place, self.now()))
    }

    /// Counts a connection, before its handshake.
    fn connect(&self, source: Source) -> Result<(), Limited> {
        let Some(place) = self.place(source) else { return Ok(()) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.connections_max > 0 && open[place] >= self.connections_max {
            return Err(Limited { limit: "connections", wait: Duration::from_secs(1) });
        }
        self.handshakes.take(place, self.now())?;
        open[place] += 1;
        Ok(())
    }

    /// It is closed, or has shown a certificate: then it was no stranger's.
    fn leave(&self, source: Source, proved: bool) {
        let Some(place) = self.place(source) else { return };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open[place] = open[place].saturating_sub(1);
        if proved {
            self.handshakes.give_back(place);
        }
    }

    /// Gives a request back: it came from somebody after all.
    pub(crate) fn proved(&self, source: Source) {
        if let Some(place) = self.place(source) {
            self.requests.give_back(place);
        }
    }

    /// What this source showed proves nothing.
    pub(crate) fn refused(&self, source: Source) {
        if let Some(place) = self.place(source) {
            self.refusals.owe(place, self.now());
        }
    }

    #[cfg(test)]
    pub(crate) fn open_at(&self, ip: IpAddr) -> u32 {
        self.place(Source::Address((ip, 0).into())).map_or(0, |place| self.open.lock().unwrap()[place])
    }

    /// None for those that come over no network.
    fn place(&self, source: Source) -> Option<usize> {
        let Source::Address(address) = source else { return None };
        let hash = match address.ip().to_canonical() {
            IpAddr::V4(v4) => self.hasher.hash_one((4_u8, u64::from(v4.to_bits()))),
            IpAddr::V6(v6) => self.hasher.hash_one((6_u8, (v6.to_bits() >> 64) as u64)),
        };
        // The remainder is below a number of type usize.
        Some((hash % PLACES as u64) as usize)
    }

    fn now(&self) -> u64 {
        nanos(self.begun.elapsed())
    }

    /// How many refusals nobody has read of, when it is time for a line in the log.
    fn say(&self) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.unsaid += 1;
        if said.last.is_some_and(|last| last.elapsed() < SAY_EVERY) {
            return None;
        }
        said.last = Some(Instant::now());
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    unsaid: u64,
}

/// One bucket for each place.
#[derive(Debug)]
struct Buckets {
    name: &'static str,
    /// 0: no limit.
    per_minute: u32,
    /// When each is full again, in nanoseconds. Zeros take no memory before they are touched.
    full_at: Mutex<Vec<u64>>,
}

impl Buckets {
    fn new(name: &'static str, per_minute: u32) -> Self {
        Self { name, per_minute, full_at: Mutex::new(vec![0; PLACES]) }
    }

    fn cost(&self) -> u64 {
        MINUTE_NANOS / u64::from(self.per_minute.max(1))
    }

    /// Takes one out, if there is one.
    fn take(&self, place: usize, now: u64) -> Result<(), Limited> {
        self.with(place, |full_at| {
            self.room(*full_at, now)?;
            *full_at = self.less_one(*full_at, now);
            Ok(())
        })
    }

    /// Whether there is one.
    fn check(&self, place: usize, now: u64) -> Result<(), Limited> {
        self.with(place, |full_at| self.room(*full_at, now))
    }

    /// Takes one out, of an empty bucket too: many can be judged at the same moment. It is made up for by waiting.
    fn owe(&self, place: usize, now: u64) {
        self.with(place, |full_at| *full_at = self.less_one(*full_at, now));
    }

    fn give_back(&self, place: usize) {
        self.with(place, |full_at| *full_at = full_at.saturating_sub(self.cost()));
    }

    fn less_one(&self, full_at: u64, now: u64) -> u64 {
        (full_at.max(now) + self.cost()).min(now + DEBT_NANOS_MAX)
    }

    fn room(&self, full_at: u64, now: u64) -> Result<(), Limited> {
        let over = (full_at.max(now) + self.cost()).saturating_sub(now + MINUTE_NANOS);
        if over == 0 || self.per_minute == 0 {
            return Ok(());
        }
        Err(Limited { limit: self.name, wait: Duration::from_secs(over.div_ceil(SECOND_NANOS)) })
    }

    fn with<T>(&self, place: usize, work: impl FnOnce(&mut u64) -> T) -> T {
        work(&mut self.full_at.lock().unwrap_or_else(PoisonError::into_inner)[place])
    }
}

/// The door of a service: counts connections until they have proven themselves.
pub(crate) struct ByAddress(pub(crate) Arc<Certifier>);

struct Counted {
    certifier: Arc<Certifier>,
    source: Source,
    is_proved: AtomicBool,
}

impl Door for ByAddress {
    fn enter(&self, remote: SocketAddr) -> Option<Arc<dyn Pass>> {
        let (certifier, source) = (self.0.clone(), Source::Address(remote));
        match certifier.address_limits.connect(source) {
            Ok(()) => Some(Arc::new(Counted { certifier, source, is_proved: AtomicBool::new(false) })),
            Err(limited) => {
                // It hears nothing of it: an answer would be the work that is to be spared.
                let _ = certifier.limited(source, limited);
                None
            }
        }
    }
}

impl Pass for Counted {
    fn proved(&self) {
        if !self.is_proved.swap(true, Ordering::Relaxed) {
            self.certifier.address_limits.leave(self.source, true);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.is_proved.load(Ordering::Relaxed) {
            self.certifier.address_limits.leave(self.source, false);
        }
    }
}

impl Certifier {
    /// Counts a request of somebody without a certificate.
    ///
    /// # Errors
    /// When its address has used up its share.
    pub(crate) fn stranger(&self, source: Source) -> Result<(), Refusal> {
        self.address_limits.request(source).map_err(|limited| self.limited(source, limited))
    }

    /// Whether evidence, or a token, from this source is looked at.
    ///
    /// # Errors
    /// When too much from there proved nothing.
    pub(crate) fn may_try(&self, source: Source) -> Result<(), Refusal> {
        self.address_limits.judge(source).map_err(|limited| self.limited(source, limited))
    }

    fn limited(&self, source: Source, Limited { limit, wait }: Limited) -> Refusal {
        self.counts.address_limited(limit);
        if let Some(refused) = self.address_limits.say() {
            tracing::warn!(reason = REASON, address = %source, limit, refused, "an address without a certificate is limited");
        }
        Refusal::AddressLimited { wait }
    }
}

/// Public pages, with the same limit.
pub(crate) fn pages(certifier: Arc<Certifier>, pages: Router) -> Router {
    pages.layer(middleware::from_fn_with_state(certifier, page))
}

async fn page(State(certifier): State<Arc<Certifier>>, request: Request, next: Next) -> Response {
    match certifier.stranger(Source::of(request.extensions())) {
        Err(Refusal::AddressLimited { wait }) => {
            let head = [(RETRY_AFTER.as_str(), wait.as_secs().to_string()), ("x-kasbah-reason", REASON.to_owned())];
            (StatusCode::TOO_MANY_REQUESTS, head, format!("{REASON}: try again in {} s\n", wait.as_secs()))
                .into_response()
        }
        _ => next.run(request).await,
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

pub(crate) const REASON: &str = "ADDRESS_RATE_LIMITED";
/// Half a mebibyte for each limit, a quarter for the connections.
const PLACES: usize = 1 << 16;
const SECOND_NANOS: u64 = 1_000_000_000;
const MINUTE_NANOS: u64 = 60 * SECOND_NANOS;
/// How far ahead refusals of one moment can be held against an address.
const DEBT_NANOS_MAX: u64 = 10 * MINUTE_NANOS;
/// Between two lines in the log.
const SAY_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn from(ip: &str) -> Source {
        Source::Address((ip.parse::<IpAddr>().unwrap(), 4711).into())
    }

    fn limits(requests_per_minute: u32, refusals_per_minute: u32) -> AddressLimits {
        let settings = AddressLimitSettings { requests_per_minute, refusals_per_minute, ..Default::default() };
        AddressLimits::new(settings)
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_let_in_up_to_the_limit_and_those_that_prove_themselves_do_not_count() {
        let settings = AddressLimitSettings { handshakes_per_minute: 6, connections: 3, ..Default::default() };
        let (limits, a) = (AddressLimits::new(settings), from("192.0.2.1"));
        for _ in 0..3 {
            assert_eq!(limits.connect(a), Ok(()));
        }
        let limit = |outcome: Result<(), Limited>| outcome.map_err(|limited| limited.limit);
        assert_eq!(limit(limits.connect(a)), Err("connections"));
        assert_eq!(limits.connect(from("192.0.2.2")), Ok(()));
        // One goes, one proves itself.
        limits.leave(a, false);
        limits.leave(a, true);
        assert_eq!((limits.connect(a), limits.connect(a)), (Ok(()), Ok(())));
        assert_eq!(limit(limits.connect(a)), Err("connections"));
        (0..3).for_each(|_| limits.leave(a, false));
        for _ in 0..100 {
            assert_eq!(limits.connect(a), Ok(()));
            limits.leave(a, true);
        }
        // Four of six were used.
        for _ in 0..2 {
            assert_eq!(limits.connect(a), Ok(()));
            limits.leave(a, false);
        }
        assert_eq!(limit(limits.connect(a)), Err("handshakes"));
        later(10_000).await;
        assert_eq!(limits.connect(a), Ok(()));
    }

    async fn later(millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_let_in_up_to_the_limit_and_as_time_goes_by() {
        let (limits, a, b) = (limits(60, 60), from("192.0.2.1"), from("192.0.2.2"));
        for n in 0..60 {
            assert_eq!(limits.request(a), Ok(()), "{n}");
        }
        let refused = Limited { limit: "requests", wait: Duration::from_secs(1) };
        assert_eq!(limits.request(a), Err(refused));
        assert_eq!(limits.request(a), Err(refused), "who is refused is not held off for longer");
        assert_eq!((limits.request(b), limits.judge(a)), (Ok(()), Ok(())));
        later(999).await;
        assert_eq!(limits.request(a), Err(refused));
        later(1).await;
        assert_eq!((limits.request(a), limits.request(a)), (Ok(()), Err(refused)));
        later(3_600_000).await;
        assert_eq!((0..100).filter(|_| limits.request(a).is_ok()).count(), 60, "however long it was quiet");
    }

    #[tokio::test(start_paused = true)]
    async fn what_proves_itself_does_not_count() {
        let (limits, a) = (limits(3, 3), from("192.0.2.1"));
        for _ in 0..1_000 {
            assert_eq!((limits.request(a), limits.judge(a)), (Ok(()), Ok(())));
            limits.proved(a);
        }
        assert_eq!((0..10).filter(|_| limits.request(a).is_ok()).count(), 3, "and nothing is gained by it");
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_are_looked_at_up_to_the_limit() {
        let (limits, a) = (limits(0, 60), from("192.0.2.1"));
        for n in 0..60 {
            assert_eq!(limits.judge(a), Ok(()), "{n}");
            limits.refused(a);
        }
        assert_eq!(limits.judge(a), Err(Limited { limit: "refusals", wait: Duration::from_secs(1) }));
        later(1_000).await;
        assert_eq!(limits.judge(a), Ok(()));
        // All those that were let in at this moment.
        (0..100).for_each(|_| limits.refused(a));
        assert_eq!(limits.judge(a).unwrap_err().wait, Duration::from_secs(100));
        (0..100_000).for_each(|_| limits.refused(a));
        let wait = limits.judge(a).unwrap_err().wait;
        assert_eq!(wait, Duration::from_secs(9 * 60 + 1), "nobody is locked out for longer");
        later(541_000).await;
        assert_eq!(limits.judge(a), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_a_network_of_ipv6_has_one_share() {
        let limits = limits(1, 1);
        assert_eq!(limits.request(from("2001:db8:1:2::1")), Ok(()));
        assert!(limits.request(from("2001:db8:1:2:ffff:ffff:ffff:ffff")).is_err());
        assert_eq!(limits.request(from("2001:db8:1:3::1")), Ok(()));
        assert_eq!(limits.request(from("192.0.2.1")), Ok(()));
        assert!(limits.request(from("::ffff:192.0.2.1")).is_err(), "the same address, as a socket for both says it");
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_where_none_is_wanted_and_none_for_local_processes() {
        let settings = AddressLimitSettings {
            requests_per_minute: 0,
            refusals_per_minute: 0,
            handshakes_per_minute: 0,
            connections: 0,
        };
        let off = AddressLimits::new(settings);
        let local = Source::Process(crate::audit::LocalPeer { pid: 1, uid: 1, gid: 1 });
        for (limits, source) in [(&off, from("192.0.2.1")), (&limits(1, 1), local), (&limits(1, 1), Source::Unknown)] {
            for _ in 0..1_000 {
                assert_eq!((limits.request(source), limits.judge(source)), (Ok(()), Ok(())));
                assert_eq!(limits.connect(source), Ok(()));
                limits.refused(source);
            }
        }
    }

    /// The table stays as large as it is, nobody who used up a share gets a new one, and somebody new is still let in.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_addresses_neither_grows_the_table_nor_opens_the_gate() {
        let (limits, guesser) = (limits(6_000, 60), from("192.0.2.1"));
        (0..600).for_each(|_| limits.refused(guesser));
        for n in 0..1_000_000_u128 {
            let address = IpAddr::V6(((0x2001_0db8 << 96) | (n << 64)).into());
            let _ = limits.request(Source::Address((address, 1).into()));
        }
        assert!(limits.judge(guesser).is_err());
        assert_eq!(limits.request(from("198.51.100.7")), Ok(()));
        for buckets in [&limits.requests, &limits.refusals] {
            let full_at = buckets.full_at.lock().unwrap();
            assert_eq!((full_at.len(), full_at.capacity()), (PLACES, PLACES));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_line_in_ten_seconds_says_how_many_it_stands_for() {
        let limits = limits(1, 1);
        assert_eq!(limits.say(), Some(1));
        assert_eq!((0..500).filter_map(|_| limits.say()).count(), 0);
        later(10_000).await;
        assert_eq!(limits.say(), Some(501));
    }

    proptest::proptest! {
        #[test]
        fn never_more_than_the_limit_and_what_time_brings(steps in proptest::collection::vec(0_u64..3_000, 1..200)) {
            let buckets = Buckets::new("requests", 5);
            let (mut now, mut granted) = (0, 0);
            for step in steps {
                now += step;
                granted += u64::from(buckets.take(7, now * 1_000_000).is_ok());
                proptest::prop_assert!(granted <= 5 + now / 12_000, "{granted} by {now} ms");
            }
        }
    }
}
