//! Asking a keeper of keys elsewhere, from any thread, without ever waiting for long.
//!
//! A keeper may block, hang or be away. It therefore works on threads of its own; who asks waits for a bounded time. At most
//! [`WAITING_MAX`] wait at once. A keeper that failed is left alone for a while, longer each time, and everybody is
//! refused at once meanwhile; one look at it then and there, by [`Desk::look`], finds out that it is back.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use identity::key::KeyKind;
use identity::signing_key::{RemoteKey, RemoteKeyError, SigningKey};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::Place;

/// Who keeps keys. Each of the desk's threads has one of its own.
pub(crate) trait Keeper: Send {
    /// Makes a key and answers its public half (SubjectPublicKeyInfo).
    fn create(&mut self, name: &str, kind: KeyKind) -> Result<Vec<u8>, KeeperError>;

    /// Signs as the kind says.
    fn sign(&mut self, name: &str, kind: KeyKind, message: &[u8]) -> Result<Vec<u8>, KeeperError>;

    /// Answers when keys can be used.
    fn check(&mut self) -> Result<(), KeeperError>;
}

/// Why a keeper did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// It is away, or takes too long; it may come back.
    #[error("{0}")]
    Away(String),
    /// It refuses, and would refuse again.
    #[error("{0}")]
    Refused(String),
}

/// The keeper of a place.
pub(crate) struct Desk {
    place: Place,
    asks: SyncSender<Ask>,
    state: Mutex<State>,
    patience: Duration,
}

#[derive(Default)]
struct State {
    /// Why it is left alone.
    trouble: Option<KeeperError>,
    until: Option<Instant>,
    failures: u32,
}

/// Work, and where its outcome goes.
type Ask = Box<dyn FnOnce(&mut dyn Keeper) + Send>;

impl Desk {
    /// Opens a desk with `threads` keepers.
    pub(crate) fn open(place: Place, threads: usize, keeper: impl Fn() -> Box<dyn Keeper>) -> Arc<Self> {
        Self::open_with(place, threads, PATIENCE, keeper)
    }

    fn open_with(place: Place, threads: usize, patience: Duration, keeper: impl Fn() -> Box<dyn Keeper>) -> Arc<Self> {
        let (asks, waiting) = sync_channel(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads {
            let (waiting, keeper) = (waiting.clone(), keeper());
            std::thread::spawn(move || work(&waiting, keeper));
        }
        Arc::new(Self { place, asks, state: Mutex::default(), patience })
    }

    /// Where its keys are.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Makes a key.
    pub(crate) fn create(self: &Arc<Self>, name: &str, kind: KeyKind) -> Result<SigningKey, KeeperError> {
        let of_keeper = name.to_owned();
        let spki = self.ask("create", move |keeper| keeper.create(&of_keeper, kind))?;
        self.key(name, spki)
    }

    /// A key that was made before, with its public half.
    pub(crate) fn key(self: &Arc<Self>, name: &str, spki: Vec<u8>) -> Result<SigningKey, KeeperError> {
        let key = KeptKey { desk: self.clone(), name: name.to_owned(), spki };
        SigningKey::elsewhere(Box::new(key))
            .map_err(|_| KeeperError::Refused("its public key is of a kind that is not accepted".into()))
    }

    /// Looks whether the keeper is there, also while it is left alone.
    pub(crate) fn look(&self) -> Result<(), KeeperError> {
        self.state().until = None;
        self.ask(CHECK, |keeper| keeper.check())
    }

    /// Why keys cannot be used at this moment.
    pub(crate) fn trouble(&self) -> Option<KeeperError> {
        self.state().trouble.clone()
    }

    fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut dyn Keeper) -> Result<T, KeeperError> + Send + 'static,
    ) -> Result<T, KeeperError> {
        if let Some(trouble) = self.left_alone() {
            return Err(trouble);
        }
        let outcome = off_the_async_threads(|| self.ask_and_wait(work));
        self.note(what, outcome.as_ref().err());
        outcome
    }

    fn ask_and_wait<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Keeper) -> Result<T, KeeperError> + Send + 'static,
    ) -> Result<T, KeeperError> {
        let (answer, answered) = sync_channel(1);
        let ask: Ask = Box::new(move |keeper| {
            // Who asked may have given up.
            let _ = answer.try_send(work(keeper));
        });
        self.asks.try_send(ask).map_err(|error| match error {
            TrySendError::Full(_) => KeeperError::Away("too many signatures wait for the keeper of the keys".into()),
            TrySendError::Disconnected(_) => KeeperError::Away("the keeper of the keys has ended".into()),
        })?;
        answered.recv_timeout(self.patience).unwrap_or_else(|error| {
            Err(KeeperError::Away(match error {
                RecvTimeoutError::Timeout => format!("no answer within {} s", self.patience.as_secs_f32()),
                RecvTimeoutError::Disconnected => "the keeper of the keys failed".into(),
            }))
        })
    }

    fn left_alone(&self) -> Option<KeeperError> {
        let state = self.state();
        state.until.filter(|until| Instant::now() < *until).and_then(|_| state.trouble.clone())
    }

    /// Remembers how it went. A refusal is an answer, and others may sign; a keeper that refuses the check knows us no more.
    fn note(&self, what: &'static str, error: Option<&KeeperError>) {
        let mut state = self.state();
        let (place, reason) = (self.place.as_str(), "AUTHORITY_KEY_UNAVAILABLE");
        match error {
            Some(KeeperError::Away(why)) => {
                tracing::error!(reason, place, what, why, "keeper of keys is away");
                state.failures = state.failures.saturating_add(1);
                state.until = Some(Instant::now() + wait(state.failures));
                state.trouble = error.cloned();
                return;
            }
            Some(KeeperError::Refused(why)) => {
                let known = state.trouble.as_ref() == error;
                if !known {
                    tracing::error!(reason, place, what, why, "keeper of keys refuses");
                }
                if what == CHECK {
                    *state = State { trouble: error.cloned(), ..State::default() };
                }
                if matches!(state.trouble, Some(KeeperError::Refused(_))) {
                    return;
                }
            }
            None if state.trouble.is_some() => tracing::info!(place, what, "keeper of keys is back"),
            None => (),
        }
        *state = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until the desk is gone.
fn work(waiting: &Mutex<Receiver<Ask>>, mut keeper: Box<dyn Keeper>) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(ask) = next else { return };
        ask(&mut *keeper);
    }
}

/// How long a keeper is left alone after so many failures in a row.
fn wait(failures: u32) -> Duration {
    (WAIT_MIN * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(WAIT_MAX)
}

/// Lets the runtime give this thread's other work to another one, where there are others.
fn off_the_async_threads<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// A key of the keeper.
struct KeptKey {
    desk: Arc<Desk>,
    name: String,
    spki: Vec<u8>,
}

impl RemoteKey for KeptKey {
    fn public_key_spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, kind: KeyKind, message: &[u8]) -> Result<Vec<u8>, RemoteKeyError> {
        let (name, message) = (self.name.clone(), message.to_owned());
        let signed = self.desk.ask("sign", move |keeper| keeper.sign(&name, kind, &message));
        signed.map_err(|_| RemoteKeyError)
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("place", &self.place).field("trouble", &self.trouble()).finish_non_exhaustive()
    }
}

const CHECK: &str = "check";
/// The most signatures that wait for a keeper.
const WAITING_MAX: usize = 64;
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
