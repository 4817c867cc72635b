//! Authorities and their rows: keys are sealed on the way into the database and opened on the way out, and the rows of a
//! kind are the line that the rotation works on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::CertificateDer;
use identity::authority::X509Authority;
use identity::bundle::{BundleSet, JwtAuthority, TrustBundle};
use identity::jwk::Jwk;
use identity::jwt::JwtAuthorityKey;
use identity::key::PrivateKey;
use identity::pem;
use identity::seal::SealKey;
use identity::signing_key::SigningKey;
use identity::spiffe_id::TrustDomain;
use identity::wit::WitAuthorityKey;
use runtime::clock::from_unix_secs;

use super::{AuthoritiesError, Signing};
use crate::certifier::secs;
use crate::custody::{Made, Place, Places};
use crate::rotation::machine::{Line, Member, Mode, Running};
use crate::store::{AuthorityKind, AuthorityRow, AuthorityState, RotationRow, StoredAuthorities};

/// What opens and seals the keys of one trust domain's authorities.
pub(crate) struct Keys {
    pub(crate) seal: SealKey,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) places: Places,
}

/// An authority without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) kind: AuthorityKind,
    pub(crate) state: AuthorityState,
    pub(crate) place: Place,
    /// A key that waits for its certificate.
    pub(crate) requested: bool,
    /// The root of an intermediate; empty for others.
    pub(crate) issuer: String,
    /// A root or an intermediate that may sign revocation lists, with a key that is not offline.
    pub(crate) signs_lists: bool,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

impl Facts {
    /// How much of the life is over, 0 to 1 and beyond.
    pub(super) fn spent(&self, now: i64) -> f64 {
        let life = (self.not_after - self.not_before).max(1);
        (now - self.not_before) as f64 / life as f64
    }
}

impl Keys {
    pub(super) fn keep_root(
        &self,
        root: &X509Authority,
        made: &Made,
        state: AuthorityState,
        published: u64,
        now: SystemTime,
    ) -> Result<AuthorityRow, AuthoritiesError> {
        Ok(AuthorityRow { state, published, ..self.keep_x509(root, made, AuthorityKind::Root, now)? })
    }

    /// An active intermediate below a root.
    pub(super) fn keep_intermediate(
        &self,
        intermediate: &X509Authority,
        made: &Made,
        root_id: &str,
        now: SystemTime,
    ) -> Result<AuthorityRow, AuthoritiesError> {
        let row = self.keep_x509(intermediate, made, AuthorityKind::X509, now)?;
        Ok(AuthorityRow { issuer_id: root_id.to_owned(), ..row })
    }

    fn keep_x509(
        &self,
        authority: &X509Authority,
        made: &Made,
        kind: AuthorityKind,
        now: SystemTime,
    ) -> Result<AuthorityRow, AuthoritiesError> {
        let row = AuthorityRow {
            certificate: pem::certificates(authority.chain()),
            not_before: secs(authority.not_before()),
            not_after: secs(authority.not_after()),
            ..blank(kind, authority.subject_key_id().to_owned(), now)
        };
        self.keep(row, made)
    }

    /// A root whose key is not here.
    pub(super) fn keep_offline_root(
        &self,
        root: &CertificateDer<'static>,
        id: String,
        (not_before, not_after): (SystemTime, SystemTime),
        state: AuthorityState,
        published: u64,
        now: SystemTime,
    ) -> AuthorityRow {
        AuthorityRow {
            state,
            published,
            certificate: pem::certificate(root),
            place: Place::Offline,
            not_before: secs(not_before),
            not_after: secs(not_after),
            ..blank(AuthorityKind::Root, id, now)
        }
    }

    /// A key that waits for its certificate.
    pub(super) fn keep_request(&self, made: &Made, now: SystemTime) -> Result<AuthorityRow, AuthoritiesError> {
        let digest = identity::digest::sha256(&made.key.public_key_spki());
        let id = format!("csr-{}", identity::digest::hex(&digest[..20]));
        let row = AuthorityRow {
            state: AuthorityState::Prepared,
            not_after: secs(now + REQUEST_LIFE),
            ..blank(AuthorityKind::X509, id, now)
        };
        self.keep(row, made)
    }

    /// The key of an authority of tokens.
    pub(super) fn keep_token_key(
        &self,
        kind: AuthorityKind,
        id: &str,
        made: &Made,
        state: AuthorityState,
        published: u64,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<AuthorityRow, AuthoritiesError> {
        let not_after = secs(now + ttl);
        self.keep(AuthorityRow { state, published, not_after, ..blank(kind, id.to_owned(), now) }, made)
    }

    fn keep(&self, row: AuthorityRow, made: &Made) -> Result<AuthorityRow, AuthoritiesError> {
        let sealed_key = match (made.place, made.key.here()) {
            (Place::Disk, Some(key)) => self.seal_key(row.kind, &row.id, key.pkcs8_der())?,
            _ => String::new(),
        };
        let public_key = STANDARD.encode(made.key.public_key_spki());
        Ok(AuthorityRow { sealed_key, public_key, place: made.place, key_name: made.name.clone(), ..row })
    }

    /// The key of a row, to be put into another.
    pub(super) fn made(&self, row: &AuthorityRow) -> Result<Made, AuthoritiesError> {
        Ok(Made { key: self.signing_key(row)?, place: row.place, name: row.key_name.clone() })
    }

    fn seal_key(&self, kind: AuthorityKind, id: &str, pkcs8_der: &[u8]) -> Result<String, AuthoritiesError> {
        Ok(STANDARD.encode(self.seal.seal(&purpose(kind, id), pkcs8_der)?))
    }

    /// What signs and what is published, of what is stored.
    pub(super) fn open(&self, stored: &StoredAuthorities, now: SystemTime) -> Result<Signing, AuthoritiesError> {
        let rows = &stored.rows;
        let active = |kind, name| {
            let found = rows.iter().rev().find(|row| row.kind == kind && row.state == AuthorityState::Active);
            found.ok_or(AuthoritiesError::Missing(name))
        };
        let root = active(AuthorityKind::Root, "root")?;
        if root.place != Place::Offline {
            self.open_x509(root)?;
        }
        let x509 = self.open_x509(active(AuthorityKind::X509, "signing authority")?)?;
        let jwt_row = active(AuthorityKind::Jwt, "JWT authority")?;
        let wit_row = active(AuthorityKind::Wit, "WIT authority")?;
        let bundle = Arc::new(self.publish(stored, secs(now))?);
        Ok(Signing {
            x509_id: x509.subject_key_id().to_owned(),
            x509,
            jwt: self.open_jwt(jwt_row)?,
            jwt_not_after: from_unix_secs(jwt_row.not_after),
            wit: self.open_wit(wit_row)?,
            wit_not_after: from_unix_secs(wit_row.not_after),
            bundles: Arc::new(BundleSet::new([bundle.clone()])),
            bundle,
            facts: rows.iter().map(facts).collect(),
            lines: AuthorityKind::ROTATING.into_iter().map(|kind| (kind, line(stored, kind))).collect(),
            former: self.open_former(rows, secs(now))?,
            root_place: root.place,
            revision: stored.revision,
        })
    }

    /// The newest intermediate of each root that signs no more.
    fn open_former(
        &self,
        rows: &[AuthorityRow],
        now: i64,
    ) -> Result<BTreeMap<String, X509Authority>, AuthoritiesError> {
        let old = |row: &&AuthorityRow| {
            row.kind == AuthorityKind::X509 && row.state == AuthorityState::Old && row.not_after > now
        };
        let signs_no_more = |id: &str| {
            let root = rows.iter().find(|row| row.id == id && row.kind == AuthorityKind::Root);
            root.is_some_and(|root| matches!(root.state, AuthorityState::Old | AuthorityState::Tainted))
        };
        let former = rows.iter().filter(old).filter(|row| signs_no_more(&row.issuer_id));
        former.map(|row| Ok((row.issuer_id.clone(), self.open_x509(row)?))).collect()
    }

    pub(super) fn publish(&self, stored: &StoredAuthorities, now: i64) -> Result<TrustBundle, AuthoritiesError> {
        let mut bundle = TrustBundle::new(self.trust_domain.clone());
        bundle.sequence = stored.bundle_sequence;
        bundle.refresh_hint = Some(REFRESH_HINT);
        for row in stored.rows.iter().filter(|row| row.not_after > now || row.state == AuthorityState::Active) {
            let tainted = row.state == AuthorityState::Tainted;
            match row.kind {
                AuthorityKind::Root => {
                    for certificate in pem::decode_certificates(row.certificate.as_bytes())? {
                        if tainted {
                            bundle.taint_x509_authority(&certificate);
                        }
                        bundle.add_x509_authority(certificate)?;
                    }
                }
                AuthorityKind::Jwt => {
                    let public = self.public_of(row)?;
                    if tainted {
                        bundle.taint_key(&public.key_id);
                    }
                    bundle.jwt_authorities.push(public);
                }
                AuthorityKind::Wit => {
                    let public = self.public_of(row)?;
                    if tainted {
                        bundle.taint_key(&public.key_id);
                    }
                    bundle.wit_authorities.push(public);
                }
                AuthorityKind::X509 => (),
            }
        }
        Ok(bundle)
    }

    /// The public half of a key of tokens; its private half may be gone.
    fn public_of(&self, row: &AuthorityRow) -> Result<JwtAuthority, AuthoritiesError> {
        let expires_at = Some(from_unix_secs(row.not_after));
        if row.public_key.is_empty() {
            return Ok(JwtAuthorityKey::of(self.signing_key(row)?, Some(&row.id))?.public(expires_at));
        }
        let unusable = || AuthoritiesError::Unusable("public key");
        let spki = STANDARD.decode(&row.public_key).map_err(|_| unusable())?;
        let jwk = Jwk::from_spki_der(Some(&row.id), &spki).map_err(|_| unusable())?;
        Ok(JwtAuthority { key_id: row.id.clone(), jwk, expires_at })
    }

    pub(super) fn open_x509(&self, row: &AuthorityRow) -> Result<X509Authority, AuthoritiesError> {
        let chain = pem::decode_certificates(row.certificate.as_bytes())?;
        Ok(X509Authority::from_parts(&self.trust_domain, chain, self.signing_key(row)?)?)
    }

    pub(super) fn open_jwt(&self, row: &AuthorityRow) -> Result<JwtAuthorityKey, AuthoritiesError> {
        Ok(JwtAuthorityKey::of(self.signing_key(row)?, Some(&row.id))?)
    }

    pub(super) fn open_wit(&self, row: &AuthorityRow) -> Result<WitAuthorityKey, AuthoritiesError> {
        Ok(WitAuthorityKey::of(self.signing_key(row)?, Some(&row.id))?)
    }

    /// Whether the authority's key is at hand: not offline, and not lost with the memory of an earlier process.
    pub(super) fn holds(&self, row: &AuthorityRow) -> bool {
        match row.place {
            // Whether the keeper answers is found out when it is asked.
            Place::Disk | Place::Pkcs11 | Place::ExternalSigner | Place::VaultTransit => true,
            Place::Memory => self.places.held_key(&row.key_name).is_some(),
            Place::Offline => false,
        }
    }

    fn signing_key(&self, row: &AuthorityRow) -> Result<SigningKey, AuthoritiesError> {
        match row.place {
            Place::Disk => Ok(PrivateKey::from_pkcs8_der(&self.open_key(row)?)?.into()),
            Place::Memory => {
                let held = self.places.held_key(&row.key_name);
                held.map(SigningKey::from).ok_or(AuthoritiesError::KeyLost("authority"))
            }
            Place::Pkcs11 | Place::VaultTransit | Place::ExternalSigner => {
                let spki = STANDARD.decode(&row.public_key).map_err(|_| AuthoritiesError::Unusable("public key"))?;
                self.places.remote(row.place, &row.key_name, spki)
            }
            Place::Offline => Err(AuthoritiesError::Offline),
        }
    }

    pub(super) fn open_key(
        &self,
        row: &AuthorityRow,
    ) -> Result<impl std::ops::Deref<Target = Vec<u8>> + use<>, AuthoritiesError> {
        let sealed = STANDARD.decode(&row.sealed_key).map_err(|_| AuthoritiesError::Unusable("sealed key"))?;
        Ok(self.seal.open(&purpose(row.kind, &row.id), &sealed)?)
    }
}

/// The authorities of a kind, with the rotation that runs.
pub(super) fn line(stored: &StoredAuthorities, kind: AuthorityKind) -> Line {
    let members = stored.rows.iter().filter(|row| row.kind == kind).map(|row| Member {
        id: row.id.clone(),
        stage: row.state,
        not_before: row.not_before,
        not_after: row.not_after,
        published: row.published,
        tainted: row.tainted,
    });
    let mut members: Vec<Member> = members.collect();
    members.sort_by_key(|member| member.published);
    let rotation = stored.rotations.iter().find(|row| row.kind == kind);
    let running = rotation.and_then(|row| {
        let mode = Mode::parse(&row.mode)?;
        Some(Running { mode, old: row.old_id.clone(), started_at: row.started_at })
    });
    let waived = rotation.map(|row| row.waived.clone()).unwrap_or_default();
    Line { members, running, waived }
}

/// The rotation of a line as it is stored.
pub(super) fn rotation_row(kind: AuthorityKind, line: &Line) -> RotationRow {
    let running = line.running.as_ref();
    RotationRow {
        kind,
        mode: running.map_or("", |running| running.mode.as_str()).to_owned(),
        old_id: running.map(|running| running.old.clone()).unwrap_or_default(),
        started_at: running.map_or(0, |running| running.started_at),
        waived: line.waived.clone(),
    }
}

fn facts(row: &AuthorityRow) -> Facts {
    Facts {
        id: row.id.clone(),
        kind: row.kind,
        state: row.state,
        place: row.place,
        issuer: row.issuer_id.clone(),
        requested: row.kind == AuthorityKind::X509 && row.certificate.is_empty(),
        signs_lists: row.place != Place::Offline && may_sign_lists(row),
        not_before: row.not_before,
        not_after: row.not_after,
    }
}

/// Whether its certificate has the key usage cRLSign; keys of tokens have no certificate.
pub(super) fn may_sign_lists(row: &AuthorityRow) -> bool {
    let own = pem::decode_certificates(row.certificate.as_bytes()).ok().and_then(|chain| chain.into_iter().next());
    own.is_some_and(|own| identity::revocation::may_sign_lists(&own))
}

fn blank(kind: AuthorityKind, id: String, now: SystemTime) -> AuthorityRow {
    AuthorityRow {
        id,
        kind,
        state: AuthorityState::Active,
        certificate: String::new(),
        place: Place::Disk,
        key_name: String::new(),
        sealed_key: String::new(),
        public_key: String::new(),
        not_before: secs(now),
        not_after: secs(now),
        created_at: secs(now),
        issuer_id: String::new(),
        published: 0,
        tainted: 0,
    }
}

/// Binds a sealed key to its row, so that keys cannot be exchanged in the database.
fn purpose(kind: AuthorityKind, id: &str) -> Vec<u8> {
    format!("authority/{}/{id}", kind.as_str()).into_bytes()
}

/// How long a key waits for its certificate.
const REQUEST_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often others should fetch the bundle.
const REFRESH_HINT: Duration = Duration::from_secs(300);
