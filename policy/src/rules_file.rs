//! The rules in force, kept up to date with their file.
//!
//! A file that is refused (or gone) changes nothing: the last good rules stay in force, and log, metric and status say
//! so with line and column.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use runtime::shutdown::Shutdown;
use tokio::sync::watch;

use crate::metrics::PolicyMetrics;
use crate::rules::{Rules, RulesError};

/// One good version of the rules.
#[derive(Debug)]
pub struct RulesVersion {
    /// What it says.
    pub rules: Rules,
    /// Counts good versions since the start, from 1.
    pub generation: u64,
    /// When it was read.
    pub loaded_at: SystemTime,
}

/// Gives the rules in force. Clones share them.
#[derive(Clone, Debug)]
pub struct RulesInForce {
    current: watch::Receiver<Arc<RulesVersion>>,
    refusal: Arc<Mutex<Option<Refusal>>>,
}

/// Why the file as it stands now is not in force.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The stable code.
    pub reason: &'static str,
    /// File, line, column and what is wrong.
    pub text: String,
    /// When it was seen.
    pub at: SystemTime,
}

/// Watches the file.
#[derive(Debug)]
pub struct RulesFile {
    file: PathBuf,
    seen: Option<Stamp>,
    current: watch::Sender<Arc<RulesVersion>>,
    refusal: Arc<Mutex<Option<Refusal>>>,
    metrics: PolicyMetrics,
}

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
    /// The file may change again without a visible change of time.
    fresh: bool,
}

impl RulesInForce {
    /// The rules in force.
    pub fn current(&self) -> Arc<RulesVersion> {
        self.current.borrow().clone()
    }

    /// Why the file as it stands is not in force, if so.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl RulesFile {
    /// Reads `file` for the first time.
    ///
    /// # Errors
    /// When it is refused: a service does not begin with rules nobody wrote.
    pub fn open(file: PathBuf, metrics: PolicyMetrics) -> Result<(Self, RulesInForce), RulesError> {
        let seen = Stamp::of(&file);
        let rules = Rules::load(&file)?;
        let (current, receiver) =
            watch::channel(Arc::new(RulesVersion { rules, generation: 1, loaded_at: runtime::clock::now() }));
        metrics.rules_generation.set(1);
        let refusal = Arc::new(Mutex::new(None));
        let in_force = RulesInForce { current: receiver, refusal: refusal.clone() };
        Ok((Self { file, seen, current, refusal, metrics }, in_force))
    }

    /// Looks at the file every [`LOOK_EVERY`] until `shutdown`.
    pub async fn run(mut self, shutdown: Shutdown) {
        while shutdown.unless(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            self.look().await;
        }
    }

    /// Takes over what the file says now, if it has changed.
    async fn look(&mut self) {
        let file = self.file.clone();
        let seen = self.seen;
        let looked = tokio::task::spawn_blocking(move || {
            let stamp = Stamp::of(&file);
            if stamp == seen && !stamp.is_some_and(|stamp| stamp.fresh) {
                None
            } else {
                Some((stamp, Rules::load(&file)))
            }
        });
        let Ok(Some((stamp, loaded))) = looked.await else { return };
        self.seen = stamp;
        match loaded {
            Ok(rules) => self.accept(rules),
            Err(error) => self.refuse(&error),
        }
    }

    fn accept(&self, rules: Rules) {
        let before = self.current.borrow().clone();
        if self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::info!(file = %self.file.display(), "policy rules are good again");
            self.metrics.rules_stale.set(0);
        }
        if before.rules == rules {
            return;
        }
        let generation = before.generation + 1;
        tracing::info!(generation, file = %self.file.display(), "policy rules changed");
        self.metrics.rules_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.current.send_replace(Arc::new(RulesVersion { rules, generation, loaded_at: runtime::clock::now() }));
    }

    fn refuse(&self, error: &RulesError) {
        let text = chain(error);
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if refusal.as_ref().is_some_and(|known| known.text == text) {
            return;
        }
        let in_force = self.current.borrow().generation;
        tracing::warn!(
            reason = error.reason(),
            error = text,
            generation = in_force,
            "policy rules refused, the last good ones stay"
        );
        self.metrics.rules_refused.inc();
        self.metrics.rules_stale.set(1);
        *refusal = Some(Refusal { reason: error.reason(), text, at: runtime::clock::now() });
    }
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(file).ok()?;
        let modified = found.modified().ok();
        let age = modified.and_then(|modified| runtime::clock::now().duration_since(modified).ok());
        Some(Self { modified, bytes: found.len(), inode: found.ino(), fresh: age.is_none_or(|age| age < FRESH_MAX) })
    }
}

fn chain(error: &RulesError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

/// How often the file is looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a changed file is read again although its time and size stay the same.
const FRESH_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "authorization: {rules: [{name: one, action: deny}]}\n";
    const TWO: &str = "authorization: {rules: [{name: two, action: deny}]}\n";

    struct Fixture {
        file: PathBuf,
        watch: RulesFile,
        rules: RulesInForce,
    }

    fn open(name: &str) -> Fixture {
        let file = std::env::temp_dir().join(format!("kasbah-rules-{}-{name}.yaml", std::process::id()));
        std::fs::write(&file, ONE).unwrap();
        let (watch, rules) = RulesFile::open(file.clone(), PolicyMetrics::default()).unwrap();
        Fixture { file, watch, rules }
    }

    impl Fixture {
        async fn after(&mut self, text: Option<&str>) -> (u64, String) {
            match text {
                Some(text) => std::fs::write(&self.file, text).unwrap(),
                None => std::fs::remove_file(&self.file).unwrap(),
            }
            self.watch.look().await;
            let version = self.rules.current();
            let name = version.rules.authorization.names().next().map(|(name, _)| name.to_owned());
            (version.generation, name.unwrap_or_default())
        }
    }

    #[tokio::test]
    async fn a_changed_file_comes_into_force_even_within_one_tick_of_its_clock() {
        let mut fixture = open("change");
        assert_eq!(fixture.after(Some(TWO)).await, (2, "two".into()));
        assert_eq!(fixture.after(Some(ONE)).await, (3, "one".into()));
        assert_eq!(fixture.after(Some(ONE)).await, (3, "one".into()), "nothing changed");
    }

    #[tokio::test]
    async fn a_bad_or_missing_file_keeps_the_last_good_rules_and_says_why() {
        let mut fixture = open("bad");
        assert_eq!(fixture.after(Some("authorization:\n  default: perhaps\n")).await, (1, "one".into()));
        let refusal = fixture.rules.refusal().unwrap();
        assert_eq!(refusal.reason, "POLICY_RULES_INVALID");
        assert!(refusal.text.contains(".yaml:2:12: "), "{}", refusal.text);
        assert_eq!(fixture.after(None).await, (1, "one".into()));
        assert_eq!(fixture.rules.refusal().unwrap().reason, "POLICY_RULES_UNREADABLE");
        assert_eq!(fixture.watch.metrics.rules_refused.get(), 2);
        assert_eq!(fixture.after(Some(TWO)).await, (2, "two".into()));
        assert!(fixture.rules.refusal().is_none());
    }

    #[test]
    fn a_service_does_not_begin_with_bad_rules() {
        assert!(RulesFile::open("/nonexistent/rules.yaml".into(), PolicyMetrics::default()).is_err());
    }
}
