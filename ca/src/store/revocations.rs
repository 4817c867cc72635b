//! Rows of what was revoked, and of the lists that say so.
//!
//! A revocation, its effect on entry or node and its audit record are one transaction. Lists are signed before the
//! transaction that gives them their number, and thrown away when that number is taken by then: numbers only grow whichever
//! replica signs, no two lists of an issuer have the same one, and nobody waits for a signature in order to write.

mod fence;
mod publish;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::spiffe_id::SpiffeId;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::issuance::{HASH_DIGITS, serial_condition};
use super::{Done, Store, StoreError, agents, column, entries, meta};
use crate::registry::Change;
use crate::rights::Permit;

pub(super) use fence::{Fence, fence};
pub(super) use publish::write_last;
pub(crate) use publish::{CRL_PARTITION_MAX, LAST_PART, ListPlan};

/// What an administrator revokes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RevokeTarget {
    /// One SVID by serial number, or by the SHA-256 of certificate or token; hexadecimal.
    Serial(String),
    /// All SVIDs of an identity.
    Identity(SpiffeId),
    /// All SVIDs of an entry, which ends.
    Entry(String),
    /// A node's own SVIDs and all that it had issued; it is banned.
    Node(SpiffeId),
}

/// What came of asking for a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RevokeAnswer {
    /// Nothing of the target is known.
    Unknown,
    /// It would hit an identity that the right is not for; nothing was done.
    Beyond,
    /// It counts.
    Done(RevokeOutcome),
}

/// What a revocation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RevokeOutcome {
    /// SVIDs revoked now.
    pub(crate) revoked: u64,
    /// SVIDs that were revoked before.
    pub(crate) already: u64,
    /// An entry ended, or a node was banned.
    pub(crate) source_ended: bool,
}

/// A revoked SVID, or one that would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revoked {
    pub(crate) serial: String,
    /// `x509` or `token`.
    pub(crate) kind: String,
    pub(crate) authority_id: String,
    pub(crate) spiffe_id: String,
    pub(crate) entry_id: String,
    pub(crate) caller: String,
    pub(crate) not_after: i64,
    pub(crate) reason: i64,
    /// 0: it is not revoked.
    pub(crate) revoked_at: i64,
    pub(crate) target: String,
    /// The number of the first lists that hold it; 0: none yet.
    pub(crate) number: u64,
}

/// A signed list as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredList {
    pub(crate) issuer_id: String,
    /// 0: the whole list; from 1 on its parts.
    pub(crate) part: i64,
    pub(crate) number: u64,
    pub(crate) this_update: i64,
    pub(crate) next_update: i64,
    pub(crate) der: Vec<u8>,
}

/// All that is revoked, and all lists.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    /// The newest number of any list.
    pub(crate) number: u64,
    pub(crate) lists: Vec<StoredList>,
    /// By serial.
    pub(crate) revoked: BTreeMap<String, Revoked>,
}

impl RevokeTarget {
    /// As the audit trail and the rows name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Serial(serial) => format!("serial {serial}"),
            Self::Identity(id) => format!("identity {id}"),
            Self::Entry(id) => format!("entry {id}"),
            Self::Node(id) => format!("node {id}"),
        }
    }

    /// The condition on records of issue, with its value as `$1`.
    fn condition(&self) -> (&'static str, String) {
        match self {
            Self::Serial(hash) if hash.len() == HASH_DIGITS => ("(serial = $1 OR fingerprint = $1)", hash.clone()),
            Self::Serial(serial) => (serial_condition(serial), serial.clone()),
            Self::Identity(id) => ("spiffe_id = $1", id.to_string()),
            Self::Entry(id) => ("entry_id = $1", id.clone()),
            Self::Node(id) => ("(caller = $1 OR spiffe_id = $1)", id.to_string()),
        }
    }
}

impl Store {
    /// Revokes what is live of `target`, if `permit` is for every identity that this hits: what the target names, and those of
    /// all its live SVIDs.
    pub(crate) async fn revoke(
        &self,
        target: RevokeTarget,
        reason: u8,
        now: i64,
        permit: &Permit,
    ) -> Result<RevokeAnswer, StoreError> {
        self.revoke_up_to(target, reason, now, permit, REVOKED_MAX).await
    }

    pub(super) async fn revoke_up_to(
        &self,
        target: RevokeTarget,
        reason: u8,
        now: i64,
        permit: &Permit,
        most: i64,
    ) -> Result<RevokeAnswer, StoreError> {
        let permit = permit.clone();
        self.write(move |conn| {
            Box::pin(async move {
                if !reaches(conn, &target, now, &permit).await? {
                    return Ok(Done::quiet(RevokeAnswer::Beyond));
                }
                let live = count_live(conn, &target, now).await?;
                let revoked = insert_live(conn, &target, reason, now).await?;
                let source = end_source(conn, &target, now).await?;
                if live == 0 && source.is_none() {
                    return Ok(Done::quiet(RevokeAnswer::Unknown));
                }
                check_room(conn, most).await?;
                let mut changes = source.unwrap_or_default();
                let source_ended = !changes.is_empty();
                let outcome = RevokeOutcome { revoked, already: live.saturating_sub(revoked), source_ended };
                if revoked == 0 && !source_ended {
                    return Ok(Done::quiet(RevokeAnswer::Done(outcome)));
                }
                changes.push(Change::Revocations);
                Ok(Done::new(RevokeAnswer::Done(outcome), changes))
            })
        })
        .await
    }

    /// Whether `permit` is for everything that revoking `target` would hit now.
    pub(crate) async fn may_revoke(
        &self,
        target: &RevokeTarget,
        now: i64,
        permit: &Permit,
    ) -> Result<bool, StoreError> {
        reaches(&mut *self.pool.acquire().await?, target, now, permit).await
    }

    /// What is live of `target`, revoked or not; at most `limit` rows, those that expire last first.
    pub(crate) async fn live(&self, target: &RevokeTarget, now: i64, limit: u32) -> Result<Vec<Revoked>, StoreError> {
        let (condition, value) = target.condition();
        let sql = format!(
            "SELECT i.serial, {KIND} AS kind, i.authority_id, i.spiffe_id, i.entry_id, i.caller, i.not_after, \
             COALESCE(r.reason, 0) AS reason, COALESCE(r.revoked_at, 0) AS revoked_at, \
             COALESCE(r.target, '') AS target, COALESCE(r.number, 0) AS number \
             FROM (SELECT serial, kind, authority_id, spiffe_id, entry_id, caller, not_after FROM issuance \
             WHERE {condition} AND {LIVE}) AS i LEFT JOIN revocation AS r ON r.serial = i.serial \
             ORDER BY i.not_after DESC, i.serial LIMIT $3"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(value).bind(now).bind(i64::from(limit));
        query.fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// How many SVIDs of `target` are live.
    pub(crate) async fn live_count(&self, target: &RevokeTarget, now: i64) -> Result<u64, StoreError> {
        let mut conn = self.pool.acquire().await?;
        count_live(&mut conn, target, now).await
    }

    /// What is revoked, newest first, at most `limit`; of one identity, or of all when it is empty.
    pub(crate) async fn revoked(&self, spiffe_id: &str, limit: u32) -> Result<Vec<Revoked>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM revocation WHERE ($1 = '' OR spiffe_id = $1) \
             ORDER BY revoked_at DESC, serial LIMIT $2"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(spiffe_id.to_owned()).bind(i64::from(limit));
        query.fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// Whether something was revoked that no list holds yet.
    pub(crate) async fn has_unlisted(&self) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT serial FROM revocation WHERE number = 0 LIMIT 1");
        Ok(row.fetch_optional(&self.pool).await?.is_some())
    }

    /// The number of the newest lists.
    pub(crate) async fn crl_number(&self) -> Result<u64, StoreError> {
        let mut conn = self.pool.acquire().await?;
        meta::number(&mut conn, meta::CRL_NUMBER).await
    }

    /// Reads all of it.
    pub(crate) async fn lists(&self) -> Result<Lists, StoreError> {
        let mut conn = self.pool.acquire().await?;
        // The number first: what is read after it is at least as new.
        let number = meta::number(&mut conn, meta::CRL_NUMBER).await?;
        let sql = "SELECT issuer_id, part, number, this_update, next_update, der FROM crl ORDER BY issuer_id, part";
        let lists = sqlx::query(sql).fetch_all(&mut *conn).await?;
        let sql = format!("SELECT {COLUMNS} FROM revocation");
        let revoked = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *conn).await?;
        let revoked = revoked.iter().map(|row| read(row).map(|one| (one.serial.clone(), one)));
        Ok(Lists {
            number,
            lists: lists.iter().map(read_list).collect::<Result<_, _>>()?,
            revoked: revoked.collect::<Result<_, _>>()?,
        })
    }

    /// Forgets revocations of what expired before `moment`.
    pub(crate) async fn forget_revoked_before(&self, moment: i64) -> Result<u64, StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                let sql = "DELETE FROM revocation WHERE not_after < $1 AND number > 0";
                let gone = sqlx::query(sql).bind(moment).execute(&mut *conn).await?.rows_affected();
                let sql = "DELETE FROM revoked_source WHERE at < $1";
                sqlx::query(sql).bind(moment - fence::KEPT_SECS).execute(conn).await?;
                Ok(Done::quiet(gone))
            })
        })
        .await
    }
}

async fn reaches(
    conn: &mut AnyConnection,
    target: &RevokeTarget,
    now: i64,
    permit: &Permit,
) -> Result<bool, StoreError> {
    if permit.is_whole() {
        return Ok(true);
    }
    let named = match target {
        RevokeTarget::Identity(id) | RevokeTarget::Node(id) => Some(id.clone()),
        RevokeTarget::Entry(id) => entries::one(conn, "id", id).await?.map(|entry| entry.spiffe_id),
        RevokeTarget::Serial(_) => None,
    };
    if named.is_some_and(|id| !permit.covers(&id)) {
        return Ok(false);
    }
    let (condition, value) = target.condition();
    let sql = format!("SELECT DISTINCT spiffe_id FROM issuance WHERE {condition} AND {LIVE}");
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(value).bind(now).fetch_all(conn).await?;
    for row in rows {
        let id: String = row.try_get(0)?;
        if !SpiffeId::parse(&id).is_ok_and(|id| permit.covers(&id)) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn count_live(conn: &mut AnyConnection, target: &RevokeTarget, now: i64) -> Result<u64, StoreError> {
    let (condition, value) = target.condition();
    let sql = format!("SELECT count(*) FROM issuance WHERE {condition} AND {LIVE}");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(value).bind(now).fetch_one(conn).await?;
    Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
}

async fn insert_live(conn: &mut AnyConnection, target: &RevokeTarget, reason: u8, now: i64) -> Result<u64, StoreError> {
    let (condition, value) = target.condition();
    let sql = format!(
        "INSERT INTO revocation ({COLUMNS}) SELECT serial, {KIND}, authority_id, spiffe_id, entry_id, caller, \
         not_after, $3, $2, $4, 0 FROM issuance AS i WHERE {condition} AND {LIVE} ON CONFLICT (serial) DO NOTHING"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(value).bind(now).bind(i64::from(reason)).bind(target.name());
    Ok(query.execute(conn).await?.rows_affected())
}

/// Ends the entry or bans the node; `None` when there is no such.
async fn end_source(
    conn: &mut AnyConnection,
    target: &RevokeTarget,
    now: i64,
) -> Result<Option<Vec<Change>>, StoreError> {
    let (kind, name, changes) = match target {
        RevokeTarget::Serial(_) | RevokeTarget::Identity(_) => return Ok(None),
        RevokeTarget::Entry(id) => ("entry", id.clone(), entries::end(conn, id, now).await?),
        RevokeTarget::Node(id) => ("node", id.to_string(), agents::ban(conn, id).await?),
    };
    if changes.is_some() {
        let sql = "INSERT INTO revoked_source (kind, name, at) VALUES ($1, $2, $3) \
                   ON CONFLICT (kind, name) DO UPDATE SET at = excluded.at";
        sqlx::query(sql).bind(kind).bind(name).bind(now).execute(conn).await?;
    }
    Ok(changes)
}

/// A list that nobody would read protects nobody.
async fn check_room(conn: &mut AnyConnection, most: i64) -> Result<(), StoreError> {
    let sql = "SELECT COALESCE(MAX(n), 0) FROM (SELECT count(*) AS n FROM revocation GROUP BY authority_id) AS counts";
    let row = sqlx::query(sql).fetch_one(conn).await?;
    if row.try_get::<i64, _>(0)? > most { Err(StoreError::RevokedTooMany) } else { Ok(()) }
}

fn read(row: &AnyRow) -> Result<Revoked, StoreError> {
    let text = |name| column::<String>(row, name, WHAT);
    let int = |name| column::<i64>(row, name, WHAT);
    Ok(Revoked {
        serial: text("serial")?,
        kind: text("kind")?,
        authority_id: text("authority_id")?,
        spiffe_id: text("spiffe_id")?,
        entry_id: text("entry_id")?,
        caller: text("caller")?,
        not_after: int("not_after")?,
        reason: int("reason")?,
        revoked_at: int("revoked_at")?,
        target: text("target")?,
        number: int("number")?.unsigned_abs(),
    })
}

fn read_list(row: &AnyRow) -> Result<StoredList, StoreError> {
    let int = |name| column::<i64>(row, name, LIST);
    let der = STANDARD.decode(column::<String>(row, "der", LIST)?);
    Ok(StoredList {
        issuer_id: column(row, "issuer_id", LIST)?,
        part: int("part")?,
        number: int("number")?.unsigned_abs(),
        this_update: int("this_update")?,
        next_update: int("next_update")?,
        der: der.map_err(|_| StoreError::Damaged { what: LIST })?,
    })
}

/// The most revoked SVIDs of one authority: what readers of lists accept, with room for those that come meanwhile.
pub(crate) const REVOKED_MAX: i64 = 200_000;
const WHAT: &str = "revocation";
const LIST: &str = "revocation list";
const COLUMNS: &str =
    "serial, kind, authority_id, spiffe_id, entry_id, caller, not_after, reason, revoked_at, target, number";
/// Not expired at `$2`. The server's own SVID is replaced, not revoked.
const LIVE: &str = "not_after > $2 AND kind <> 'server'";
const KIND: &str = "CASE WHEN i.kind IN ('jwt', 'mint_jwt', 'wit', 'mint_wit') THEN 'token' ELSE 'x509' END";

#[cfg(test)]
mod tests;
