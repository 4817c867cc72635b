//! Made once, sealed, replaced in time.

use runtime::tasks::TaskSet;

use super::*;
use crate::store;
use crate::testing::running::settings;
use crate::testing::{database, id, trust_domain};

const DAY: u64 = 24 * 3600;

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    _writer: TaskSet,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        std::fs::create_dir_all(&settings.data_dir).unwrap();
        let url = database::url_in(dir.path()).await;
        let opened = store::open(&url, &trust_domain(), id("/spire/server")).await;
        let (store, writing) = opened.unwrap();
        let mut writer = TaskSet::new();
        writer.spawn("writer", writing);
        Self { dir, store, _writer: writer }
    }

    fn settings(&self) -> Settings {
        Settings { ca_ttl: Duration::from_secs(30 * DAY), ..settings(self.dir.path()) }
    }

    async fn load(&self, day: u64) -> Result<Authorities, AuthoritiesError> {
        Authorities::load(&self.store, &self.settings(), at(day)).await
    }
}

fn at(day: u64) -> SystemTime {
    from_unix_secs(1_700_000_000) + Duration::from_secs(day * DAY)
}

fn ids(authorities: &Authorities, kind: AuthorityKind, state: AuthorityState) -> Vec<String> {
    let current = authorities.current();
    let of = current.facts.iter().filter(|facts| facts.kind == kind && facts.state == state);
    of.map(|facts| facts.id.clone()).collect()
}

async fn authorities_are_made_once_and_read_again() {
    let fixture = Fixture::new().await;
    let first = fixture.load(0).await.unwrap().current();
    let again = fixture.load(1).await.unwrap().current();
    assert_eq!(first.facts, again.facts);
    assert_eq!(first.bundle, again.bundle);
    assert_eq!((first.bundle.x509_authorities.len(), first.bundle.jwt_authorities.len()), (1, 1));
    assert_eq!(first.bundle.sequence, 1);
    assert!(!first.x509.is_root(), "leaves are signed by an intermediate");
}

async fn without_the_right_key_file_nothing_starts() {
    let fixture = Fixture::new().await;
    fixture.load(0).await.unwrap();
    let key_file = fixture.settings().key_file();
    let right = std::fs::read(&key_file).unwrap();
    std::fs::remove_file(&key_file).unwrap();
    let error = fixture.load(0).await.unwrap_err();
    assert_eq!(error.reason(), "KEY_FILE_MISSING");
    assert!(error.to_string().contains("restore it"), "{error}");
    assert!(!key_file.exists(), "no new key is made for old secrets");
    key_file::load(&key_file, true).unwrap();
    assert_eq!(fixture.load(0).await.unwrap_err().reason(), "KEY_FILE_WRONG");
    std::fs::write(&key_file, right).unwrap();
    fixture.load(0).await.unwrap();
}

async fn keys_are_sealed_and_cannot_change_places() {
    let fixture = Fixture::new().await;
    let authorities = fixture.load(0).await.unwrap();
    let plain = authorities.current().x509.key().pkcs8_der().to_vec();
    let rows = fixture.store.authorities().await.unwrap().rows;
    for row in &rows {
        let sealed = STANDARD.decode(&row.sealed_key).unwrap();
        assert!(!sealed.windows(32).any(|bytes| plain.windows(32).any(|secret| secret == bytes)));
    }
    let root = rows.iter().find(|row| row.kind == AuthorityKind::Root).unwrap();
    let x509 = rows.iter().find(|row| row.kind == AuthorityKind::X509).unwrap();
    let swapped = AuthorityRow { sealed_key: root.sealed_key.clone(), ..x509.clone() };
    assert!(matches!(open_key(&swapped, &authorities.seal_key).err(), Some(AuthoritiesError::Seal(_))));
}

async fn an_intermediate_is_replaced_at_half_life_under_the_same_root() {
    let fixture = Fixture::new().await;
    let authorities = fixture.load(0).await.unwrap();
    let before = authorities.current();
    authorities.keep_fresh(&fixture.store, at(14)).await.unwrap();
    assert_eq!(authorities.current().x509_id, before.x509_id, "not yet");
    authorities.keep_fresh(&fixture.store, at(16)).await.unwrap();
    let after = authorities.current();
    assert_ne!(after.x509_id, before.x509_id);
    assert_eq!(after.bundle.x509_authorities, before.bundle.x509_authorities);
    assert_eq!(ids(&authorities, AuthorityKind::X509, AuthorityState::Old), std::slice::from_ref(&before.x509_id));
    authorities.keep_fresh(&fixture.store, at(31)).await.unwrap();
    assert!(
        !ids(&authorities, AuthorityKind::X509, AuthorityState::Old).contains(&before.x509_id),
        "ended and dropped"
    );
}

async fn a_jwt_key_is_published_long_before_it_signs() {
    let fixture = Fixture::new().await;
    let authorities = fixture.load(0).await.unwrap();
    let first = authorities.current().jwt.key_id().to_owned();
    let mut sequence = authorities.bundle_sequence();
    authorities.keep_fresh(&fixture.store, at(16)).await.unwrap();
    let prepared = ids(&authorities, AuthorityKind::Jwt, AuthorityState::Prepared);
    assert_eq!((prepared.len(), authorities.current().jwt.key_id()), (1, first.as_str()), "published, not yet signing");
    assert_eq!((*sequence.borrow_and_update(), authorities.current().bundle.jwt_authorities.len()), (2, 2));
    authorities.keep_fresh(&fixture.store, at(26)).await.unwrap();
    assert_eq!(authorities.current().jwt.key_id(), prepared[0]);
    assert_eq!(authorities.current().bundle.jwt_authorities.len(), 2, "the old key still verifies");
    authorities.keep_fresh(&fixture.store, at(30)).await.unwrap();
    assert_eq!(authorities.current().bundle.jwt_authorities.len(), 1);
    assert!(*sequence.borrow_and_update() > 2);
    let again = fixture.load(30).await.unwrap();
    assert_eq!(again.current().bundle, authorities.current().bundle);
}

async fn an_authority_that_slept_for_months_recovers_by_itself() {
    let fixture = Fixture::new().await;
    fixture.load(0).await.unwrap();
    let authorities = fixture.load(100).await.unwrap();
    authorities.keep_fresh(&fixture.store, at(100)).await.unwrap();
    authorities.keep_fresh(&fixture.store, at(100)).await.unwrap();
    let current = authorities.current();
    assert!(current.x509.not_after() > at(100) && current.jwt_not_after > at(100));
    assert_eq!(current.bundle.jwt_authorities.len(), 1);
}

async fn nothing_is_written_when_nothing_is_due() {
    let fixture = Fixture::new().await;
    let authorities = fixture.load(0).await.unwrap();
    for day in 0..14 {
        assert_eq!(Plan::new(&authorities.current().facts, secs(at(day))), Plan::default(), "day {day}");
    }
}

async fn secrets_never_show_in_debug() {
    let fixture = Fixture::new().await;
    let shown = format!("{:?}", fixture.load(0).await.unwrap());
    assert!(shown.contains("facts") && !shown.contains("seal_key"), "{shown}");
}

crate::testing::database::on_each_database! {
    authorities_are_made_once_and_read_again,
    without_the_right_key_file_nothing_starts,
    keys_are_sealed_and_cannot_change_places,
    an_intermediate_is_replaced_at_half_life_under_the_same_root,
    a_jwt_key_is_published_long_before_it_signs,
    an_authority_that_slept_for_months_recovers_by_itself,
    nothing_is_written_when_nothing_is_due,
    secrets_never_show_in_debug,
}
