//! Made once, sealed, replaced in time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::clock::from_unix_secs;
use runtime::tasks::TaskSet;

use super::append::FOREIGN_ROOTS_MAX;
use super::token_keys::FOREIGN_KEYS_MAX;
use super::*;
use crate::certifier::secs;
use crate::key_file;
use crate::rotation::machine::{Mode, Phase, Refused, Step};
use crate::store::{self, AuthoritiesChange, AuthorityRow, AuthorityState};
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

/// Roots and keys that sign elsewhere stand in the bundle until they are tainted and revoked; none of them ever signs here.
async fn authorities_that_sign_elsewhere_are_trusted_until_they_are_dropped() {
    let fixture = Fixture::new().await;
    let (authorities, store) = (fixture.load(0).await.unwrap(), &fixture.store);
    let own = authorities.current().bundle.x509_authorities.clone();
    let life = Duration::from_secs(100 * DAY);
    let root = |from| X509Authority::generate_root(&trust_domain(), life, at(from)).unwrap().certificate().clone();
    let mut theirs = TrustBundle::from_x509_authorities(trust_domain(), [root(0)]).unwrap();
    let key = JwtAuthorityKey::of(identity::PrivateKey::generate_p256().unwrap(), Some("theirs")).unwrap();
    theirs.jwt_authorities.push(key.public(None));
    authorities.append(store, &theirs, at(1)).await.unwrap();
    let after = authorities.current();
    let both = [own.clone(), theirs.x509_authorities.clone()].concat();
    assert!(
        after.bundle.x509_authorities.len() == 2
            && both.iter().all(|root| after.bundle.x509_authorities.contains(root))
    );
    assert_eq!((after.bundle.jwt_authorities.len(), after.bundle.sequence), (2, 2));
    let old = ids(&authorities, AuthorityKind::Root, AuthorityState::Old);
    let [old] = old.as_slice() else { panic!("{old:?}") };
    assert_ne!(after.server_root(&[]), *old, "it cannot sign for the server");
    assert!(after.issuer_ids(secs(at(1))).all(|id| id != old), "nor revocation lists");
    // What is known, and what has ended, changes nothing.
    authorities.append(store, &theirs, at(2)).await.unwrap();
    let ended = X509Authority::generate_root(&trust_domain(), Duration::from_secs(DAY), at(0)).unwrap();
    let ended = TrustBundle::from_x509_authorities(trust_domain(), [ended.certificate().clone()]).unwrap();
    authorities.append(store, &ended, at(3)).await.unwrap();
    assert_eq!(authorities.current().bundle.sequence, 2);
    assert_eq!(fixture.load(3).await.unwrap().current().bundle, authorities.current().bundle, "a restart keeps it");
    for step in [Step::Taint(old.clone()), Step::Revoke(old.clone())] {
        authorities.step(store, AuthorityKind::Root, &Asked::Step(step), at(3)).await.unwrap();
    }
    assert_eq!(authorities.current().bundle.x509_authorities, own);
}

async fn what_is_unfit_or_too_much_is_not_trusted() {
    let fixture = Fixture::new().await;
    let (authorities, store) = (fixture.load(0).await.unwrap(), &fixture.store);
    let life = Duration::from_secs(100 * DAY);
    let refused = async |bundle: &TrustBundle| authorities.append(store, bundle, at(1)).await.unwrap_err();
    let of = |roots: Vec<identity::CertificateDer<'static>>| {
        TrustBundle::from_x509_authorities(trust_domain(), roots).unwrap()
    };
    let other = identity::spiffe_id::TrustDomain::parse("other.org").unwrap();
    let foreign = X509Authority::generate_root(&other, life, at(0)).unwrap();
    let StepError::Authorities(error) = refused(&of(vec![foreign.certificate().clone()])).await else { panic!() };
    assert_eq!(error.reason(), "IMPORT_FOREIGN_TRUST_DOMAIN");
    let root = X509Authority::generate_root(&trust_domain(), life, at(0)).unwrap();
    let below = root.generate_intermediate(life, at(0)).unwrap();
    let StepError::Authorities(error) = refused(&of(vec![below.certificate().clone()])).await else { panic!() };
    assert_eq!(error.reason(), "IMPORT_CHAIN_INCOMPLETE");
    let another = |_| X509Authority::generate_root(&trust_domain(), life, at(0)).unwrap().certificate().clone();
    let error = refused(&of((0..=FOREIGN_ROOTS_MAX).map(another).collect())).await;
    assert!(matches!(error, StepError::Refused(Refused::TooMany)), "{error:?}");
    let active = ids(&authorities, AuthorityKind::Jwt, AuthorityState::Active).pop().unwrap();
    let taken = JwtAuthorityKey::of(identity::PrivateKey::generate_p256().unwrap(), Some(&active)).unwrap();
    let mut bundle = of(Vec::new());
    bundle.jwt_authorities.push(taken.public(None));
    let StepError::Authorities(error) = refused(&bundle).await else { panic!() };
    assert_eq!(error.reason(), "BUNDLE_INVALID");
    assert_eq!(authorities.current().bundle.sequence, 1, "nothing has changed");
    // As many as fit are taken, and then no other.
    let key = |number: usize| {
        let key =
            JwtAuthorityKey::of(identity::PrivateKey::generate_p256().unwrap(), Some(&format!("theirs-{number}")));
        key.unwrap().public(None)
    };
    let mut full = of((0..FOREIGN_ROOTS_MAX).map(another).collect());
    full.jwt_authorities.extend((0..FOREIGN_KEYS_MAX).map(key));
    authorities.append(store, &full, at(1)).await.unwrap();
    let error = refused(&of(vec![another(0)])).await;
    assert!(matches!(error, StepError::Refused(Refused::TooMany)), "{error:?}");
    let mut one = of(Vec::new());
    one.jwt_authorities.push(key(FOREIGN_KEYS_MAX));
    let StepError::Authorities(error) = refused(&one).await else { panic!() };
    assert_eq!(error.reason(), "BUNDLE_INVALID");
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
    let plain = authorities.current().x509.key().here().unwrap().pkcs8_der().to_vec();
    let rows = fixture.store.authorities().await.unwrap().rows;
    for row in &rows {
        let sealed = STANDARD.decode(&row.sealed_key).unwrap();
        assert!(!sealed.windows(32).any(|bytes| plain.windows(32).any(|secret| secret == bytes)));
    }
    let root = rows.iter().find(|row| row.kind == AuthorityKind::Root).unwrap();
    let x509 = rows.iter().find(|row| row.kind == AuthorityKind::X509).unwrap();
    let swapped = AuthorityRow { sealed_key: root.sealed_key.clone(), ..x509.clone() };
    assert!(matches!(authorities.keys.open_key(&swapped).err(), Some(AuthoritiesError::Seal(_))));
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
    // The WIT key of the same age is published by another change.
    assert_eq!((*sequence.borrow_and_update(), authorities.current().bundle.jwt_authorities.len()), (3, 2));
    authorities.keep_fresh(&fixture.store, at(26)).await.unwrap();
    assert_eq!(authorities.current().jwt.key_id(), prepared[0]);
    assert_eq!(authorities.current().bundle.jwt_authorities.len(), 2, "the old key still verifies");
    authorities.keep_fresh(&fixture.store, at(30)).await.unwrap();
    assert_eq!(authorities.current().bundle.jwt_authorities.len(), 1);
    assert!(*sequence.borrow_and_update() > 2);
    let again = fixture.load(30).await.unwrap();
    assert_eq!(again.current().bundle, authorities.current().bundle);
}

async fn a_database_from_before_wit_svids_gets_their_key_once() {
    let fixture = Fixture::new().await;
    let before = fixture.load(0).await.unwrap().current();
    let stored = fixture.store.authorities().await.unwrap();
    let wit = before.wit.key_id().to_owned();
    let change = AuthoritiesChange { gone: vec![wit.clone()], publishes: true, ..AuthoritiesChange::default() };
    fixture.store.change_authorities(change, stored.revision).await.unwrap();
    let after = fixture.load(1).await.unwrap().current();
    assert_ne!(after.wit.key_id(), wit);
    assert_eq!(after.bundle.wit_authorities.len(), 1);
    assert_eq!(after.bundle.sequence, before.bundle.sequence + 2, "everybody fetches it");
    assert_eq!(after.bundle.jwt_authorities, before.bundle.jwt_authorities);
    assert_eq!(fixture.load(2).await.unwrap().current().bundle, after.bundle);
}

async fn a_wit_key_is_published_long_before_it_signs() {
    let fixture = Fixture::new().await;
    let authorities = fixture.load(0).await.unwrap();
    let first = authorities.current().wit.key_id().to_owned();
    authorities.keep_fresh(&fixture.store, at(16)).await.unwrap();
    let prepared = ids(&authorities, AuthorityKind::Wit, AuthorityState::Prepared);
    assert_eq!((prepared.len(), authorities.current().wit.key_id()), (1, first.as_str()), "published, not yet signing");
    authorities.keep_fresh(&fixture.store, at(26)).await.unwrap();
    assert_eq!(authorities.current().wit.key_id(), prepared[0]);
    assert_eq!(authorities.current().bundle.wit_authorities.len(), 2, "the old key still verifies");
    authorities.keep_fresh(&fixture.store, at(30)).await.unwrap();
    assert_eq!(authorities.current().bundle.wit_authorities.len(), 1);
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
    let revision = fixture.store.authorities_revision().await.unwrap();
    for day in 0..14 {
        authorities.keep_fresh(&fixture.store, at(day)).await.unwrap();
    }
    assert_eq!(fixture.store.authorities_revision().await.unwrap(), revision);
}

/// As when the caller of a step goes away before what it wrote is read.
async fn what_was_written_and_not_read_is_followed() {
    let fixture = Fixture::new().await;
    let authorities = fixture.load(0).await.unwrap();
    let (before, mut changed) = (authorities.current().bundle.sequence, fixture.store.authorities_changed());
    changed.mark_unchanged();
    let revision = fixture.store.authorities_revision().await.unwrap();
    let change = AuthoritiesChange { publishes: true, ..AuthoritiesChange::default() };
    fixture.store.change_authorities(change, revision).await.unwrap();
    assert!(changed.has_changed().unwrap());
    assert_eq!(authorities.current().bundle.sequence, before);
    assert!(authorities.follow(&fixture.store, at(0)).await.unwrap());
    assert_eq!(authorities.current().bundle.sequence, before + 1);
    assert!(!authorities.follow(&fixture.store, at(0)).await.unwrap(), "it is known");
}

async fn secrets_never_show_in_debug() {
    let fixture = Fixture::new().await;
    let shown = format!("{:?}", fixture.load(0).await.unwrap());
    assert!(shown.contains("facts") && !shown.contains("seal_key"), "{shown}");
}

/// The bundle's roots.
fn roots(authorities: &Authorities) -> Vec<String> {
    authorities.current().bundle.x509_authorities.iter().map(identity::pem::certificate).collect()
}

async fn step(fixture: &Fixture, authorities: &Authorities, asked: Asked) -> Result<(), StepError> {
    authorities.step(&fixture.store, AuthorityKind::Root, &asked, at(1)).await
}

async fn next(fixture: &Fixture, authorities: &Authorities) {
    let next = authorities.current().line(AuthorityKind::Root).next().unwrap();
    step(fixture, authorities, Asked::Step(next)).await.unwrap();
}

async fn a_root_is_replaced_step_by_step_and_each_step_survives_a_restart() {
    let fixture = Fixture::new().await;
    let mut authorities = fixture.load(0).await.unwrap();
    let (first, intermediate) = (roots(&authorities), authorities.current().x509_id.clone());
    step(&fixture, &authorities, Asked::Prepare(Mode::Steps)).await.unwrap();
    authorities = fixture.load(1).await.unwrap();
    assert_eq!((roots(&authorities).len(), authorities.current().bundle.sequence), (2, 2), "published");
    assert_eq!(authorities.current().x509_id, intermediate, "not yet signing");
    next(&fixture, &authorities).await;
    authorities = fixture.load(1).await.unwrap();
    assert_eq!((roots(&authorities).len(), authorities.current().bundle.sequence), (2, 2), "the bundle stays");
    assert_ne!(authorities.current().x509_id, intermediate, "signing");
    next(&fixture, &authorities).await;
    authorities = fixture.load(1).await.unwrap();
    assert_eq!((authorities.current().bundle.tainted.len(), authorities.current().bundle.sequence), (1, 3), "marked");
    next(&fixture, &authorities).await;
    authorities = fixture.load(1).await.unwrap();
    assert_eq!((roots(&authorities).len(), authorities.current().bundle.sequence), (1, 4), "gone");
    assert_ne!(roots(&authorities), first, "another key");
    let rows = fixture.store.authorities().await.unwrap().rows;
    assert!(rows.iter().all(|row| row.id != intermediate), "the intermediate went with its root");
    assert_eq!(authorities.current().line(AuthorityKind::Root).phase(), Phase::Idle);
}

async fn an_aborted_rotation_leaves_the_old_root_signing() {
    let fixture = Fixture::new().await;
    let authorities = fixture.load(0).await.unwrap();
    let before = authorities.current();
    let active = || authorities.current().line(AuthorityKind::Root).active().unwrap().id.clone();
    let old = active();
    step(&fixture, &authorities, Asked::Prepare(Mode::Steps)).await.unwrap();
    step(&fixture, &authorities, Asked::Step(Step::Abort)).await.unwrap();
    assert_eq!(authorities.current().bundle.x509_authorities, before.bundle.x509_authorities, "withdrawn");
    assert_eq!(authorities.current().x509_id, before.x509_id, "nothing else changed");
    step(&fixture, &authorities, Asked::Prepare(Mode::Steps)).await.unwrap();
    next(&fixture, &authorities).await;
    assert_ne!(active(), old);
    step(&fixture, &authorities, Asked::Step(Step::Abort)).await.unwrap();
    assert_eq!((active(), roots(&authorities).len()), (old, 2), "what the new one signed stays good");
}

async fn a_node_that_has_not_acknowledged_holds_the_activation_up() {
    let fixture = Fixture::new().await;
    let authorities = fixture.load(0).await.unwrap();
    let node = crate::testing::agent("/spire/agent/join_token/a");
    fixture.store.add_token("t", i64::MAX, None, 1).await.unwrap();
    let record = store::Issuance {
        serial: "n1".into(),
        kind: store::IssuanceKind::Agent,
        spiffe_id: node.id.to_string(),
        entry_id: String::new(),
        caller: node.id.to_string(),
        authority_id: authorities.current().x509.subject_key_id().to_owned(),
        fingerprint: String::new(),
        issued_at: 1,
        not_after: 2,
        log_index: -1,
    };
    fixture.store.admit(node.clone(), Some("t"), record, 1).await.unwrap();
    step(&fixture, &authorities, Asked::Prepare(Mode::Auto)).await.unwrap();
    authorities.keep_fresh(&fixture.store, at(1)).await.unwrap();
    let activate = authorities.current().line(AuthorityKind::Root).next().unwrap();
    let refused = step(&fixture, &authorities, Asked::Step(activate)).await.unwrap_err();
    assert!(matches!(&refused, StepError::Refused(Refused::NotAcknowledged { laggards, .. }) if laggards.len() == 1));
    let report = |sequence| fixture.store.change_agent(&node.id, move |agent| agent.bundle_sequence = sequence);
    report(2).await.unwrap();
    authorities.keep_fresh(&fixture.store, at(1)).await.unwrap();
    let phase = || authorities.current().line(AuthorityKind::Root).phase();
    assert_eq!(phase(), Phase::Tainted, "two steps were safe");
    report(3).await.unwrap();
    authorities.keep_fresh(&fixture.store, at(1)).await.unwrap();
    assert_eq!((phase(), roots(&authorities).len()), (Phase::Idle, 1));
}

async fn a_root_is_replaced_by_age_long_before_it_ends() {
    let fixture = Fixture::new().await;
    let settings = Settings { root_ttl: Duration::from_secs(200 * DAY), ..fixture.settings() };
    let authorities = Authorities::load(&fixture.store, &settings, at(0)).await.unwrap();
    let (mut seen, mut signers) = (Vec::new(), Vec::new());
    for day in 0..400 {
        authorities.keep_fresh(&fixture.store, at(day)).await.unwrap();
        let current = authorities.current();
        assert!(secs(current.x509.not_after()) > secs(at(day)) + 86_400, "day {day}: too little life is left to sign");
        if seen.last().is_none_or(|(_, count)| *count != current.bundle.x509_authorities.len()) {
            seen.push((day, current.bundle.x509_authorities.len()));
        }
        let root = current.line(AuthorityKind::Root).active().unwrap().id.clone();
        if signers.last().is_none_or(|(_, id)| *id != root) {
            signers.push((day, root));
        }
    }
    // 60 days (30 and the life of an intermediate) before the end it is published, a third of that later it signs.
    assert_eq!(seen, [(0, 1), (140, 2), (200, 1), (280, 2), (340, 1)]);
    assert_eq!(signers.iter().map(|(day, _)| *day).collect::<Vec<_>>(), [0, 160, 300]);
}

database::on_each_database! {
    authorities_are_made_once_and_read_again,
    without_the_right_key_file_nothing_starts,
    keys_are_sealed_and_cannot_change_places,
    an_intermediate_is_replaced_at_half_life_under_the_same_root,
    a_jwt_key_is_published_long_before_it_signs,
    a_database_from_before_wit_svids_gets_their_key_once,
    a_wit_key_is_published_long_before_it_signs,
    an_authority_that_slept_for_months_recovers_by_itself,
    nothing_is_written_when_nothing_is_due,
    what_was_written_and_not_read_is_followed,
    secrets_never_show_in_debug,
    a_root_is_replaced_step_by_step_and_each_step_survives_a_restart,
    an_aborted_rotation_leaves_the_old_root_signing,
    a_node_that_has_not_acknowledged_holds_the_activation_up,
    a_root_is_replaced_by_age_long_before_it_ends,
    authorities_that_sign_elsewhere_are_trusted_until_they_are_dropped,
    what_is_unfit_or_too_much_is_not_trusted,
}
