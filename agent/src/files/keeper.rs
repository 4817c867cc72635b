//! Keeps the directories of the settings as fresh as the SVIDs are.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::TrustDomain;
use runtime::clock::Clock;
use runtime::shutdown::Shutdown;
use zeroize::Zeroizing;

use super::{Content, FilesSettings, directory, pem_files, pkcs12_file};
use crate::ca::{Ca, TokenSvid};
use crate::entry::Entry;
use crate::metrics::Numbers;
use crate::state::{Held, Snapshot, State};
use crate::store;

/// Keeps one directory.
pub(crate) struct Keeper {
    pub(crate) settings: FilesSettings,
    pub(crate) state: Arc<State>,
    pub(crate) ca: Arc<dyn Ca>,
    pub(crate) clock: Clock,
    pub(crate) numbers: Numbers,
}

/// What was written last.
#[derive(Default)]
struct Written {
    serial: String,
    /// The tokens in force, in the order of the settings.
    tokens: Vec<Option<TokenSvid>>,
    /// Certificate, key and bundle as they were told to others.
    told: Option<[u8; 32]>,
}

impl Keeper {
    /// Writes at each change until `shutdown`.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut changes = self.state.subscribe();
        let mut written = Written::default();
        loop {
            let snapshot = changes.borrow_and_update().clone();
            let Some(next) = shutdown.unless(self.write(&snapshot, &mut written)).await else { return };
            tokio::select! {
                () = shutdown.requested() => return,
                _ = changes.changed() => (),
                () = self.clock.sleep_until(next) => (),
            }
        }
    }

    /// Brings the directory up to date; answers when to look again without a change.
    async fn write(&self, snapshot: &Snapshot, written: &mut Written) -> SystemTime {
        let now = self.clock.now();
        let later = now + IDLE_WAIT;
        if !snapshot.is_known() {
            return later;
        }
        let own = self.state.trust_domain();
        let Some((entry, held)) = self.held(snapshot, now) else {
            self.withdraw(snapshot, written);
            return later;
        };
        let next = self.renew_tokens(entry, written, now).await;
        let contents = match self.contents(snapshot, own, held, written) {
            Ok(contents) => contents,
            Err(problem) => {
                self.numbers.not_written("FILES_NOT_WRITTEN");
                tracing::error!(dir = %self.settings.dir.display(), problem, reason = "FILES_NOT_WRITTEN", "files not written");
                return now + RETRY_WAIT;
            }
        };
        let (settings, copy) = (self.settings.clone(), contents.clone());
        let work = move || directory::write(&settings.dir, &copy, &settings.access);
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(changed)) => {
                if changed && written.serial != held.svid.serial() {
                    written.serial = held.svid.serial().to_owned();
                    tracing::info!(dir = %self.settings.dir.display(), serial = written.serial, "files written");
                }
                self.tell(&contents, written).await;
                next.min(later)
            }
            Ok(Err(error)) => {
                let dir = self.settings.dir.display();
                self.numbers.not_written(error.reason());
                tracing::error!(%dir, error = chain_text(&error), reason = error.reason(), "files not written, trying again");
                now + RETRY_WAIT
            }
            Err(_) => now + RETRY_WAIT,
        }
    }

    fn held<'a>(&self, snapshot: &'a Snapshot, now: SystemTime) -> Option<(&'a Arc<Entry>, &'a Held)> {
        let mut entries = snapshot.entries.iter().filter(|entry| entry.spiffe_id.as_str() == self.settings.spiffe_id);
        entries.find_map(|entry| Some((entry, snapshot.held.get(&entry.id).filter(|held| held.is_valid(now))?)))
    }

    /// An identity that is no longer given leaves the disk: the bundle stays, key and certificate go.
    fn withdraw(&self, snapshot: &Snapshot, written: &mut Written) {
        let gone = !snapshot.entries.iter().any(|entry| entry.spiffe_id.as_str() == self.settings.spiffe_id);
        if !gone || !snapshot.synced || written.serial.is_empty() {
            return;
        }
        let Some(bundle) = snapshot.bundles.get(self.state.trust_domain()) else { return };
        let bytes = Zeroizing::new(bundle.to_pem().into_bytes());
        let rest = Content { name: self.settings.names.bundle.clone(), bytes, is_secret: false };
        let dir = self.settings.dir.display();
        match directory::write(&self.settings.dir, &[rest], &self.settings.access) {
            Ok(_) => {
                tracing::warn!(%dir, reason = "NO_IDENTITY_ISSUED", "no entry gives this identity any more, files removed");
                *written = Written::default();
            }
            Err(error) => {
                self.numbers.not_written(error.reason());
                tracing::error!(%dir, error = chain_text(&error), reason = error.reason(), "files not removed");
            }
        }
    }

    /// Gets the tokens that are due; one that cannot be had keeps its former one while that is valid.
    async fn renew_tokens(&self, entry: &Entry, written: &mut Written, now: SystemTime) -> SystemTime {
        written.tokens.resize(self.settings.jwt.len(), None);
        let mut next = now + IDLE_WAIT;
        for (jwt, token) in self.settings.jwt.iter().zip(&mut written.tokens) {
            if token.as_ref().is_none_or(|token| half_life(token) <= now) {
                let issued = self.ca.new_jwt_svid(&entry.id, jwt.audience.clone()).await;
                match issued.and_then(|issued| issued.checked(now)) {
                    Ok(fresh) => *token = Some(fresh),
                    Err(error) => {
                        tracing::warn!(file = jwt.file, %error, reason = error.reason(), "JWT-SVID not renewed");
                        token.take_if(|token| token.expires_at <= now);
                        next = next.min(now + RETRY_WAIT);
                        continue;
                    }
                }
            }
            if let Some(token) = token {
                next = next.min(half_life(token));
            }
        }
        next
    }

    fn contents(
        &self,
        snapshot: &Snapshot,
        own: &TrustDomain,
        held: &Held,
        written: &Written,
    ) -> Result<Vec<Content>, String> {
        let bundle = snapshot.bundles.get(own).ok_or("there is no bundle yet")?;
        let mut contents = pem_files(&self.settings.names, &held.svid, bundle);
        if let Some(pkcs12) = &self.settings.pkcs12 {
            let same = written.serial == held.svid.serial();
            contents.push(
                match self.present(&pkcs12.file).filter(|_| same && written.told == Some(digest(&contents))) {
                    // It would differ in its salts only.
                    Some(present) => present,
                    None => {
                        let password = password(&pkcs12.password_file)?;
                        let made = pkcs12_file(&pkcs12.file, &held.svid, bundle, &password);
                        made.map_err(|error| error.to_string())?
                    }
                },
            );
        }
        let tokens = self.settings.jwt.iter().zip(&written.tokens);
        contents.extend(tokens.filter_map(|(jwt, token)| {
            let bytes = Zeroizing::new(token.as_ref()?.token.clone().into_bytes());
            Some(Content { name: jwt.file.clone(), bytes, is_secret: true })
        }));
        Ok(contents)
    }

    fn present(&self, name: &str) -> Option<Content> {
        let bytes = store::read(&self.settings.dir.join(name), FILE_BYTES_MAX).ok()??;
        Some(Content { name: name.to_owned(), bytes: Zeroizing::new(bytes), is_secret: true })
    }

    /// Tells others of a change of certificate, key or bundle; tokens alone are read anew anyway.
    async fn tell(&self, contents: &[Content], written: &mut Written) {
        let now = digest(&contents[..PEM_FILES]);
        if written.told.replace(now) == Some(now) {
            return;
        }
        let Some(after) = &self.settings.after_change else { return };
        let dir = self.settings.dir.display();
        match after.tell().await {
            Ok(()) => tracing::info!(%dir, "told of the change"),
            Err(error) => tracing::error!(%dir, %error, reason = error.reason(), "nobody was told of the change"),
        }
    }
}

fn digest(contents: &[Content]) -> [u8; 32] {
    let mut digest = identity::digest::Sha256::new();
    for content in contents {
        digest.update(&identity::digest::sha256(&content.bytes));
    }
    digest.finish()
}

fn half_life(token: &TokenSvid) -> SystemTime {
    token.issued_at + token.expires_at.duration_since(token.issued_at).unwrap_or_default() / 2
}

/// The first line of a password file.
fn password(file: &std::path::Path) -> Result<Zeroizing<String>, String> {
    let text = store::read(file, FILE_BYTES_MAX).map_err(|error| format!("{}: {error}", file.display()))?;
    let text = Zeroizing::new(text.ok_or_else(|| format!("{}: there is no such file", file.display()))?);
    let text = std::str::from_utf8(&text).map_err(|_| format!("{}: holds no text", file.display()))?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

fn chain_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

const PEM_FILES: usize = 3;
const FILE_BYTES_MAX: u64 = 1 << 20;
const RETRY_WAIT: Duration = Duration::from_secs(5);
const IDLE_WAIT: Duration = Duration::from_secs(3600);
