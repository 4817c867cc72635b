//! Signing the lists: inside the transaction that gives them their number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::authority::{CrlProfile, RevokedSerial, X509Authority};
use identity::revocation::{RevocationReason, serial_bytes};
use runtime::clock::from_unix_secs;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::{COLUMNS, Revoked, read};
use crate::certifier::secs;
use crate::registry::Change;
use crate::store::{Done, Store, StoreError, meta, number};

/// How lists are made.
#[derive(Clone, Debug)]
pub(crate) struct ListPlan {
    pub(crate) now: i64,
    /// For how long a list is good.
    pub(crate) life: i64,
    /// The most entries of a list before it comes in parts too.
    pub(crate) part_max: usize,
    /// What the distribution points of parts begin with.
    pub(crate) url: String,
}

impl ListPlan {
    /// Whether a list is to be replaced although nothing was revoked: at half of its life.
    pub(crate) fn is_due(&self, next_update: i64) -> bool {
        next_update - self.now <= self.life / 2
    }
}

impl Store {
    /// Signs the lists of those `issuers` of which something new is revoked, that have none, or whose list is due; whether
    /// there were any. All that is signed together has the same number.
    pub(crate) async fn publish_lists(
        &self,
        issuers: Arc<Vec<Arc<X509Authority>>>,
        plan: ListPlan,
    ) -> Result<bool, StoreError> {
        self.write(move |conn| Box::pin(async move { publish(conn, &issuers, &plan).await })).await
    }
}

async fn publish(
    conn: &mut AnyConnection,
    issuers: &[Arc<X509Authority>],
    plan: &ListPlan,
) -> Result<Done<bool>, StoreError> {
    let unlisted = unlisted(conn).await?;
    let standing = standing(conn).await?;
    let due = |issuer: &&Arc<X509Authority>| {
        let id = issuer.subject_key_id();
        unlisted.contains(id) || standing.get(id).is_none_or(|next_update| plan.is_due(*next_update))
    };
    let due: Vec<&Arc<X509Authority>> = issuers.iter().filter(due).collect();
    drop_ended(conn, issuers, plan.now).await?;
    if due.is_empty() && unlisted.is_empty() {
        return Ok(Done::quiet(false));
    }
    let next = meta::count_up(conn, meta::CRL_NUMBER).await?;
    for issuer in due {
        publish_one(conn, issuer, next, plan).await?;
    }
    let sql = "UPDATE revocation SET number = $1 WHERE number = 0";
    sqlx::query(sql).bind(number(next)).execute(conn).await?;
    Ok(Done::new(true, vec![Change::Revocations]))
}

/// Authorities of which something is revoked that no list holds.
async fn unlisted(conn: &mut AnyConnection) -> Result<BTreeSet<String>, StoreError> {
    let rows = sqlx::query("SELECT DISTINCT authority_id FROM revocation WHERE number = 0").fetch_all(conn).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, sqlx::Error>>()?)
}

/// The next update of each issuer's list.
async fn standing(conn: &mut AnyConnection) -> Result<BTreeMap<String, i64>, StoreError> {
    let rows = sqlx::query("SELECT issuer_id, next_update FROM crl WHERE part = 0").fetch_all(conn).await?;
    let read = |row: &sqlx::any::AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

/// Lists of authorities that are gone, once they say nothing any more.
async fn drop_ended(conn: &mut AnyConnection, issuers: &[Arc<X509Authority>], now: i64) -> Result<(), StoreError> {
    let rows = sqlx::query("SELECT DISTINCT issuer_id FROM crl WHERE next_update < $1").bind(now);
    for row in rows.fetch_all(&mut *conn).await? {
        let id: String = row.try_get(0)?;
        if !issuers.iter().any(|issuer| issuer.subject_key_id() == id) {
            sqlx::query("DELETE FROM crl WHERE issuer_id = $1").bind(id).execute(&mut *conn).await?;
        }
    }
    Ok(())
}

async fn publish_one(
    conn: &mut AnyConnection,
    issuer: &X509Authority,
    next: u64,
    plan: &ListPlan,
) -> Result<(), StoreError> {
    let id = issuer.subject_key_id();
    let sql = format!(
        "SELECT {COLUMNS} FROM revocation WHERE authority_id = $1 AND kind = 'x509' AND not_after >= $2 ORDER BY serial"
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(id.to_owned()).bind(plan.now - KEPT_AFTER_END_SECS);
    let rows: Vec<Revoked> = rows.fetch_all(&mut *conn).await?.iter().map(read).collect::<Result<_, _>>()?;
    let revoked: Vec<RevokedSerial> = rows.iter().filter_map(entry).collect();
    write_lists(conn, issuer, next, revoked, plan).await
}

/// Replaces the lists of an issuer.
pub(super) async fn write_lists(
    conn: &mut AnyConnection,
    issuer: &X509Authority,
    next: u64,
    revoked: Vec<RevokedSerial>,
    plan: &ListPlan,
) -> Result<(), StoreError> {
    let id = issuer.subject_key_id();
    sqlx::query("DELETE FROM crl WHERE issuer_id = $1").bind(id.to_owned()).execute(&mut *conn).await?;
    let (this_update, next_update) = (plan.now - BACKDATE_SECS, plan.now + plan.life);
    for (part, revoked) in parts(revoked, plan.part_max) {
        let profile = CrlProfile {
            number: next,
            this_update: from_unix_secs(this_update),
            next_update: from_unix_secs(next_update),
            revoked,
            distribution_point: (part > 0).then(|| format!("{}/crl/{id}-{part}.crl", plan.url)),
        };
        write_list(conn, issuer, part, &profile).await?;
    }
    Ok(())
}

/// Signs and stores one list.
async fn write_list(
    conn: &mut AnyConnection,
    issuer: &X509Authority,
    part: i64,
    profile: &CrlProfile,
) -> Result<(), StoreError> {
    let id = issuer.subject_key_id();
    let der = issuer.sign_crl(profile).map_err(|error| {
        tracing::error!(error = ?error, issuer = id, "revocation list not signed");
        StoreError::Damaged { what: "revocation" }
    })?;
    let sql = "INSERT INTO crl (issuer_id, part, number, this_update, next_update, der) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let query = sqlx::query(sql).bind(id.to_owned()).bind(part).bind(number(profile.number));
    let query = query.bind(secs(profile.this_update)).bind(secs(profile.next_update));
    query.bind(STANDARD.encode(der)).execute(conn).await?;
    Ok(())
}

/// The last list of a root that is about to go, with everything below it. Its key is gone with it, so that the list is
/// good until the root's end.
pub(in crate::store) async fn write_last(
    conn: &mut AnyConnection,
    root: &X509Authority,
    revoked: Vec<RevokedSerial>,
    now: SystemTime,
) -> Result<(), StoreError> {
    let id = root.subject_key_id().to_owned();
    sqlx::query("DELETE FROM crl WHERE issuer_id = $1").bind(id).execute(&mut *conn).await?;
    let profile = CrlProfile {
        number: meta::count_up(conn, meta::CRL_NUMBER).await?,
        this_update: now - Duration::from_secs(BACKDATE_SECS.unsigned_abs()),
        next_update: root.not_after(),
        revoked,
        distribution_point: None,
    };
    write_list(conn, root, LAST_PART, &profile).await
}

fn entry(row: &Revoked) -> Option<RevokedSerial> {
    let reason = u8::try_from(row.reason).ok().and_then(RevocationReason::from_code);
    Some(RevokedSerial {
        serial: serial_bytes(&row.serial)?,
        at: from_unix_secs(row.revoked_at),
        // The standard wants `unspecified` left out.
        reason: reason.filter(|reason| *reason != RevocationReason::Unspecified),
    })
}

/// The whole list as part 0, and, when it is longer than `part_max`, its parts by the last byte of the serial number.
fn parts(revoked: Vec<RevokedSerial>, part_max: usize) -> Vec<(i64, Vec<RevokedSerial>)> {
    let wanted = revoked.len().div_ceil(part_max.max(1));
    let count = wanted.next_power_of_two().min(PARTS_MAX);
    let mut all = vec![(0, revoked)];
    if wanted <= 1 {
        return all;
    }
    let mut split: Vec<(i64, Vec<RevokedSerial>)> = (1..).zip(vec![Vec::new(); count]).collect();
    for one in &all[0].1 {
        let last = one.serial.last().copied().unwrap_or_default();
        split[usize::from(last) % count].1.push(one.clone());
    }
    all.append(&mut split);
    all
}

/// What stands for the last list of an authority that is gone: nodes do not need it, others may ask.
pub(crate) const LAST_PART: i64 = -1;
/// The most entries of a list before it comes in parts too: about 3 MB.
pub(crate) const CRL_PARTITION_MAX: usize = 50_000;
/// The most parts; readers hold 64 lists of all issuers together.
const PARTS_MAX: usize = 8;
/// How long an expired SVID stays on the list: clocks differ.
const KEPT_AFTER_END_SECS: i64 = 600;
/// For clocks that are behind.
const BACKDATE_SECS: i64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn serials(count: usize) -> Vec<RevokedSerial> {
        let one = |n: usize| RevokedSerial {
            serial: u32::try_from(n).unwrap().to_be_bytes().to_vec(),
            at: from_unix_secs(1),
            reason: None,
        };
        (1..=count).map(one).collect()
    }

    #[test]
    fn a_list_comes_in_parts_when_it_is_longer_than_the_limit() {
        let lengths = |count, most| parts(serials(count), most).iter().map(|(_, p)| p.len()).collect::<Vec<_>>();
        assert_eq!(lengths(0, 10), [0]);
        assert_eq!(lengths(10, 10), [10], "at the edge it is one");
        assert_eq!(lengths(11, 10), [11, 5, 6]);
        assert_eq!(lengths(40, 10), [40, 10, 10, 10, 10]);
        let many = parts(serials(10_000), 10);
        assert_eq!(many.len(), 1 + PARTS_MAX);
        assert_eq!(many[1..].iter().map(|(_, part)| part.len()).sum::<usize>(), 10_000);
        assert_eq!(many.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..=8).collect::<Vec<i64>>());
    }

    #[test]
    fn lists_are_due_at_half_of_their_life() {
        let plan = ListPlan { now: 1_000, life: 100, part_max: 10, url: String::new() };
        assert!(!plan.is_due(1_051) && plan.is_due(1_050) && plan.is_due(900));
    }
}
