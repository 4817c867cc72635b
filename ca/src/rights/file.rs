//! The rights in force, kept up to date with their file.
//!
//! A file that is refused, or gone, changes nothing: the last good rights stay, and log and status say so.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{Rights, RightsError};
use crate::stamp::Stamp;

/// What decides now. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RightsInForce(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    rights: ArcSwap<Rights>,
    problem: Mutex<Option<RightsError>>,
}

impl RightsInForce {
    /// The rights themselves.
    pub(crate) fn current(&self) -> Arc<Rights> {
        self.0.rights.load_full()
    }

    /// Why the file as it stands is not in force, if so.
    pub(crate) fn problem(&self) -> Option<RightsError> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_problem(&self, problem: Option<RightsError>) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// The file, looked at again and again.
#[derive(Debug)]
pub(crate) struct RightsFile {
    file: PathBuf,
    seen: Option<Stamp>,
    in_force: RightsInForce,
}

impl RightsFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// When it is refused: an authority does not begin with rights that nobody wrote.
    pub(crate) fn open(file: PathBuf) -> Result<(Self, RightsInForce), RightsError> {
        let seen = Stamp::of(&file);
        let rights = Rights::load(&file)?;
        let in_force = RightsInForce::default();
        in_force.0.rights.store(Arc::new(rights));
        Ok((Self { file, seen, in_force: in_force.clone() }, in_force))
    }

    /// Follows the file for ever.
    pub(crate) async fn keep_read(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    /// Takes over what the file says now, if it has changed.
    pub(crate) fn look(&mut self) {
        let now = Stamp::of(&self.file);
        if now == self.seen {
            return;
        }
        self.seen = now;
        match Rights::load(&self.file) {
            Ok(rights) => {
                let (roles, grants) = rights.counts();
                tracing::info!(file = %self.file.display(), roles, grants, "rights in force");
                self.in_force.0.rights.store(Arc::new(rights));
                self.in_force.set_problem(None);
            }
            Err(error) => {
                tracing::error!(reason = error.reason(), %error, "rights refused, the last good ones stay in force");
                self.in_force.set_problem(Some(error));
            }
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
