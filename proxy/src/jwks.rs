//! Key sets of token issuers that have to be fetched, kept for as long as they are good and refreshed in the background.
//!
//! Each source is fetched by one task, with a back-off of its own; a source that fails keeps its last good keys, and one
//! that never answered makes its tokens be refused.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use http::header::{self, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri};
use http_body_util::{BodyExt, Limited};
use identity::jwk::JwkSet;
use routing::jwt::KeySource;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::http::body::Body;
use crate::upstream::pool::Speak;
use crate::upstream::send::{Outgoing, send};
use crate::worker::state::Worker;

/// One key set to be fetched.
#[derive(Debug)]
pub(crate) struct RemoteKey {
    uri: Arc<str>,
    cluster: Arc<str>,
    timeout: Duration,
    cache: Duration,
    keys: ArcSwapOption<JwkSet>,
    last: Mutex<Last>,
    asked: Notify,
    begun: AtomicBool,
}

/// How fetching went.
#[derive(Debug, Default)]
struct Last {
    fetched: Option<SystemTime>,
    /// Why the last try failed; none if it did not.
    error: Option<String>,
}

/// Every key set to be fetched, by where it is.
#[derive(Debug, Default)]
pub(crate) struct RemoteKeys(Mutex<BTreeMap<(Arc<str>, Arc<str>), Arc<RemoteKey>>>);

impl RemoteKeys {
    /// The entry of a source; it is fetched from now on.
    pub(crate) fn of(&self, source: &KeySource) -> Option<Arc<RemoteKey>> {
        let KeySource::Remote { uri, cluster, timeout, cache } = source else { return None };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry((uri.clone(), cluster.clone())).or_insert_with(|| {
            Arc::new(RemoteKey {
                uri: uri.clone(),
                cluster: cluster.clone(),
                timeout: *timeout,
                cache: *cache,
                keys: ArcSwapOption::empty(),
                last: Mutex::default(),
                asked: Notify::new(),
                begun: AtomicBool::new(false),
            })
        });
        Some(entry.clone())
    }

    /// Every source with the number of its keys, when they came, and why the last try failed, for `/status`.
    pub(crate) fn status(&self) -> Value {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |key: &Arc<RemoteKey>| {
            let last = key.last.lock().unwrap_or_else(PoisonError::into_inner);
            json!({
                "uri": &*key.uri,
                "keys": key.keys().map(|keys| keys.len()),
                "cache_secs": key.cache.as_secs(),
                "fetched_at": last.fetched.map(runtime::clock::rfc3339),
                "error": last.error,
            })
        };
        known.values().map(of).collect()
    }
}

impl RemoteKey {
    /// The keys of now.
    pub(crate) fn keys(&self) -> Option<Arc<JwkSet>> {
        self.keys.load_full()
    }

    fn note(&self, error: Option<String>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if error.is_none() {
            last.fetched = Some(runtime::clock::now());
        }
        last.error = error;
    }

    /// A token named a key that is not there: the issuer may have a new one.
    pub(crate) fn refresh(&self) {
        self.asked.notify_one();
    }

    /// Fetches for ever, on the worker that asks first.
    pub(crate) fn begin(self: &Arc<Self>, worker: &Rc<Worker>) {
        if self.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        let (key, worker) = (self.clone(), worker.clone());
        tokio::task::spawn_local(async move {
            let mut failures = 0_u32;
            loop {
                let fetched = tokio::time::timeout(key.timeout, key.fetch(&worker)).await;
                let pause = match fetched.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                    Ok(keys) => {
                        failures = 0;
                        key.keys.store(Some(Arc::new(keys)));
                        key.note(None);
                        key.cache.max(REFRESH_MIN)
                    }
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(
                            reason = crate::refusal::JWKS_UNAVAILABLE,
                            uri = &*key.uri,
                            error = error.as_str(),
                            "keys cannot be fetched"
                        );
                        key.note(Some(error));
                        (RETRY_MIN * 2_u32.saturating_pow(failures.min(8))).min(RETRY_MAX)
                    }
                };
                tokio::time::sleep(REFRESH_MIN.min(pause)).await;
                let rest = pause.saturating_sub(REFRESH_MIN);
                let _ = tokio::time::timeout(rest, key.asked.notified()).await;
            }
        });
    }

    async fn fetch(&self, worker: &Rc<Worker>) -> Result<JwkSet, String> {
        let uri: Uri = self.uri.parse().map_err(|_| "the address is no URI".to_owned())?;
        let authority = uri.authority().cloned().ok_or("the address names no host")?;
        let cluster = worker.config().cluster(&self.cluster).ok_or("there is no such cluster")?;
        let chosen = cluster.pick(worker.random.next(), None, &[], None).ok_or("no endpoint can be used")?;
        let pool = cluster.pool(worker, &chosen, authority.host());
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("kasbah-proxy"));
        let outgoing = Outgoing {
            method: Method::GET,
            scheme: uri.scheme().cloned().unwrap_or(Scheme::HTTPS),
            authority,
            path: uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
            headers,
        };
        let speak = match cluster.speak(false) {
            Speak::Negotiated => Speak::Http1,
            speak => speak,
        };
        let answered = send(&pool, speak, &outgoing, Body::Empty).await.map_err(|failure| failure.details)?;
        if answered.head.status != http::StatusCode::OK {
            return Err(format!("status {}", answered.head.status));
        }
        let body = Limited::new(answered.body, JWKS_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        if let Some(lease) = answered.hold.lease {
            lease.give_back();
        }
        JwkSet::parse(&body.to_bytes()).map_err(|error| error.to_string())
    }
}

/// The largest key set that is read.
const JWKS_BYTES_MAX: usize = 1024 * 1024;
/// The shortest time between two fetches.
const REFRESH_MIN: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
