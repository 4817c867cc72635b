//! Rows of signing authorities, with their sealed keys.

use std::collections::BTreeSet;
use std::time::SystemTime;

use identity::authority::{RevokedSerial, X509Authority};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::{Done, Store, StoreError, TakenStep, column, meta, number, revocations, rotation_steps};
use crate::custody::Place;
use crate::registry::Change;

/// What an authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AuthorityKind {
    /// Intermediates; it is the trust anchor.
    Root,
    /// X.509-SVIDs.
    X509,
    /// JWT-SVIDs.
    Jwt,
    /// WIT-SVIDs.
    Wit,
}

/// Where an authority is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorityState {
    /// Published, not yet signing.
    Prepared,
    /// Signing.
    Active,
    /// Still trusted, no longer signing.
    Old,
    /// Still trusted, and everything that it signed is to be replaced.
    Tainted,
}

/// A signing authority as it is stored. An X.509 authority that is prepared and has no issuer is a key that waits for its
/// certificate.
#[derive(Clone)]
pub(crate) struct AuthorityRow {
    pub(crate) id: String,
    pub(crate) kind: AuthorityKind,
    pub(crate) state: AuthorityState,
    /// PEM: the authority's own and those up to its root; empty for JWT and WIT authorities, and for a key that waits for
    /// its certificate.
    pub(crate) certificate: String,
    /// Where the key is.
    pub(crate) place: Place,
    /// What its keeper calls it.
    pub(crate) key_name: String,
    /// Empty unless the key is on the disk.
    pub(crate) sealed_key: String,
    /// SubjectPublicKeyInfo, base64; empty in rows of older versions.
    pub(crate) public_key: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) created_at: i64,
    /// The root that signed an intermediate; empty for others.
    pub(crate) issuer_id: String,
    /// The bundle's number that first held it.
    pub(crate) published: u64,
    /// The bundle's number that first marked it; 0: it is not tainted.
    pub(crate) tainted: u64,
}

/// The rotation of a kind of authority as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RotationRow {
    pub(crate) kind: AuthorityKind,
    /// Empty: none runs.
    pub(crate) mode: String,
    pub(crate) old_id: String,
    pub(crate) started_at: i64,
    pub(crate) waived: BTreeSet<String>,
}

/// What changes, all or nothing.
#[derive(Default)]
pub(crate) struct AuthoritiesChange {
    /// New or changed.
    pub(crate) put: Vec<AuthorityRow>,
    pub(crate) gone: Vec<String>,
    pub(crate) rotation: Option<RotationRow>,
    /// Whether the trust bundle changes by it.
    pub(crate) publishes: bool,
    pub(crate) key_check: Option<String>,
    /// The step that it is, for the receipt.
    pub(crate) taken: Option<TakenStep>,
    /// Roots that go, with the intermediates below them: their last lists.
    pub(crate) last_lists: Vec<(X509Authority, Vec<RevokedSerial>)>,
    /// When that is.
    pub(crate) now: Option<SystemTime>,
}

/// What is stored about the authority as a whole.
#[derive(Clone)]
pub(crate) struct Authorities {
    pub(crate) rows: Vec<AuthorityRow>,
    pub(crate) rotations: Vec<RotationRow>,
    pub(crate) bundle_sequence: u64,
    /// Grows with every change of any of this.
    pub(crate) revision: u64,
    /// The known text, sealed; none in a new database.
    pub(crate) key_check: Option<String>,
}

impl Store {
    /// Reads all authorities, oldest first.
    pub(crate) async fn authorities(&self) -> Result<Authorities, StoreError> {
        let mut conn = self.pool.acquire().await?;
        let sql = format!("SELECT {COLUMNS} FROM authority ORDER BY created_at, id");
        // The number first: what is read after it is at least as new, so that a change by others is never missed.
        let revision = meta::number(&mut conn, meta::AUTHORITIES_REVISION).await?;
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *conn).await?;
        let rotations = sqlx::query("SELECT kind, mode, old_id, started_at, waived FROM rotation ORDER BY kind");
        Ok(Authorities {
            rows: rows.iter().map(read).collect::<Result<_, _>>()?,
            rotations: rotations.fetch_all(&mut *conn).await?.iter().map(read_rotation).collect::<Result<_, _>>()?,
            bundle_sequence: meta::number(&mut conn, meta::BUNDLE_SEQUENCE).await?,
            revision,
            key_check: meta::read(&mut conn, meta::KEY_CHECK).await?,
        })
    }

    /// The number of the newest change of the authorities.
    pub(crate) async fn authorities_revision(&self) -> Result<u64, StoreError> {
        let mut conn = self.pool.acquire().await?;
        meta::number(&mut conn, meta::AUTHORITIES_REVISION).await
    }

    /// Writes a change, all or nothing.
    ///
    /// Refused with [`StoreError::AuthorityChanged`] when somebody, perhaps on another replica, changed an authority
    /// since `based_on` was read.
    pub(crate) async fn change_authorities(&self, change: AuthoritiesChange, based_on: u64) -> Result<(), StoreError> {
        let mut change = change;
        let now = change.now.unwrap_or(SystemTime::UNIX_EPOCH);
        let last_lists = self.last_lists(std::mem::take(&mut change.last_lists), now).await?;
        self.write(move |conn| {
            Box::pin(async move {
                if meta::number(conn, meta::AUTHORITIES_REVISION).await? != based_on {
                    return Err(StoreError::AuthorityChanged);
                }
                meta::count_up(conn, meta::AUTHORITIES_REVISION).await?;
                let mut changes = vec![Change::Authorities];
                for id in change.gone {
                    sqlx::query("DELETE FROM authority WHERE id = $1").bind(id).execute(&mut *conn).await?;
                }
                for row in change.put {
                    write(conn, row).await?;
                }
                if let Some(row) = change.rotation {
                    write_rotation(conn, row).await?;
                }
                if let Some(step) = change.taken {
                    rotation_steps::insert(conn, step).await?;
                }
                for list in last_lists {
                    // Other lists took its number meanwhile: it is signed anew.
                    if !revocations::write_last(conn, &list).await? {
                        return Err(StoreError::AuthorityChanged);
                    }
                    changes.push(Change::Revocations);
                }
                if let Some(text) = change.key_check {
                    meta::write(conn, meta::KEY_CHECK, &text).await?;
                }
                if change.publishes {
                    meta::count_up(conn, meta::BUNDLE_SEQUENCE).await?;
                }
                Ok(Done::new((), changes))
            })
        })
        .await
    }

    /// Until when something is valid that this authority signed; 0 when nothing is.
    pub(crate) async fn in_use_until(&self, authority_id: &str, now: i64) -> Result<i64, StoreError> {
        let sql = "SELECT COALESCE(MAX(not_after), 0) AS ends FROM issuance WHERE authority_id = $1 AND not_after > $2";
        let row = sqlx::query(sql).bind(authority_id.to_owned()).bind(now).fetch_one(&self.pool).await?;
        column(&row, "ends", "record")
    }
}

/// The ids of those that may sign.
pub(super) async fn active(conn: &mut AnyConnection) -> Result<BTreeSet<String>, StoreError> {
    let rows = sqlx::query("SELECT id FROM authority WHERE state = 'active'").fetch_all(conn).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, sqlx::Error>>()?)
}

async fn write_rotation(conn: &mut AnyConnection, row: RotationRow) -> Result<(), StoreError> {
    let sql = "INSERT INTO rotation (kind, mode, old_id, started_at, waived) VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT (kind) DO UPDATE SET mode = excluded.mode, old_id = excluded.old_id, \
               started_at = excluded.started_at, waived = excluded.waived";
    let waived = serde_json::to_string(&row.waived).map_err(|_| StoreError::Damaged { what: "rotation" })?;
    let query = sqlx::query(sql).bind(row.kind.as_str()).bind(row.mode).bind(row.old_id);
    query.bind(row.started_at).bind(waived).execute(conn).await?;
    Ok(())
}

fn read_rotation(row: &AnyRow) -> Result<RotationRow, StoreError> {
    let text = |name| column::<String>(row, name, "rotation");
    let damaged = || StoreError::Damaged { what: "rotation" };
    Ok(RotationRow {
        kind: AuthorityKind::parse(&text("kind")?).ok_or_else(damaged)?,
        mode: text("mode")?,
        old_id: text("old_id")?,
        started_at: column(row, "started_at", "rotation")?,
        waived: serde_json::from_str(&text("waived")?).map_err(|_| damaged())?,
    })
}

async fn write(conn: &mut AnyConnection, row: AuthorityRow) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO authority ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, published = excluded.published, \
         tainted = excluded.tainted"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(row.id)
        .bind(row.kind.as_str())
        .bind(row.state.as_str())
        .bind(row.certificate)
        .bind(row.sealed_key)
        .bind(row.not_before)
        .bind(row.not_after)
        .bind(row.created_at)
        .bind(row.issuer_id)
        .bind(number(row.published))
        .bind(number(row.tainted))
        .bind(row.place.as_str())
        .bind(row.key_name)
        .bind(row.public_key)
        .execute(conn)
        .await?;
    Ok(())
}

fn read(row: &AnyRow) -> Result<AuthorityRow, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    let int = |name| column::<i64>(row, name, WHAT);
    let damaged = StoreError::Damaged { what: WHAT };
    Ok(AuthorityRow {
        id: text("id")?,
        kind: AuthorityKind::parse(&text("kind")?).ok_or_else(|| damaged.clone())?,
        state: AuthorityState::parse(&text("state")?).ok_or_else(|| damaged.clone())?,
        certificate: text("certificate")?,
        place: Place::parse(&text("place")?).ok_or_else(|| damaged.clone())?,
        key_name: text("key_name")?,
        public_key: text("public_key")?,
        sealed_key: text("sealed_key")?,
        not_before: int("not_before")?,
        not_after: int("not_after")?,
        created_at: int("created_at")?,
        issuer_id: text("issuer_id")?,
        published: int("published")?.unsigned_abs(),
        tainted: int("tainted")?.unsigned_abs(),
    })
}

impl AuthorityKind {
    /// The kinds that stand in the bundle and are replaced by acknowledged steps.
    pub(crate) const ROTATING: [Self; 3] = [Self::Root, Self::Jwt, Self::Wit];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }

    /// Whether it signs tokens: who holds one cannot be told to replace it.
    pub(crate) fn signs_tokens(self) -> bool {
        matches!(self, Self::Jwt | Self::Wit)
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Root, Self::X509, Self::Jwt, Self::Wit].into_iter().find(|kind| kind.as_str() == text)
    }
}

impl AuthorityState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
            Self::Tainted => "tainted",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Prepared, Self::Active, Self::Old, Self::Tainted].into_iter().find(|state| state.as_str() == text)
    }
}

const WHAT: &str = "signing authority";
const COLUMNS: &str = "id, kind, state, certificate, sealed_key, not_before, not_after, created_at, \
                       issuer_id, published, tainted, place, key_name, public_key";
