//! Signing the lists, in three parts: what is due is read, its lists are signed with the number that comes next, and one
//! transaction writes them if that number is still free.
//!
//! A signature may take seconds where a key is kept elsewhere; the writer, and with it issuance, does not wait for it. When
//! another list took the number meanwhile, what was signed is thrown away unseen. Who dies in between has changed nothing:
//! what is revoked stays unlisted, and whoever comes next signs it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::authority::{AuthorityError, CrlProfile, RevokedSerial, X509Authority};
use identity::revocation::{RevocationReason, serial_bytes};
use runtime::clock::from_unix_secs;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::{COLUMNS, Revoked, StoredList, read};
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

/// Lists that are to be signed.
#[derive(Debug)]
pub(crate) struct DueLists {
    /// Their number.
    number: u64,
    plan: ListPlan,
    issuers: Vec<Arc<X509Authority>>,
    due: Vec<(Arc<X509Authority>, Vec<RevokedSerial>)>,
    unlisted: Vec<Unlisted>,
}

/// Lists that are signed, and not yet told to anybody.
#[derive(Debug)]
pub(crate) struct SignedLists {
    number: u64,
    now: i64,
    /// Authorities that may have lists.
    issuers: BTreeSet<String>,
    lists: Vec<StoredList>,
    /// What they hold, and what needs no list, by serial.
    listed: Vec<String>,
    /// Why those of some authorities are not among them.
    pub(crate) failed: Option<AuthorityError>,
}

/// A revocation that has no number yet.
#[derive(Debug)]
struct Unlisted {
    serial: String,
    authority_id: String,
}

impl Store {
    /// The lists of those `issuers` of which something new is revoked, that have none, or whose list is due; none when there
    /// is nothing to tell. `newest` is the number of the newest lists, read before the issuers were.
    pub(crate) async fn due_lists(
        &self,
        newest: u64,
        issuers: Vec<Arc<X509Authority>>,
        plan: ListPlan,
    ) -> Result<Option<DueLists>, StoreError> {
        let mut conn = self.pool.acquire().await?;
        // What comes after this is revoked later and stays unlisted, whether a list holds it or not.
        let unlisted = unlisted(&mut conn).await?;
        let standing = standing(&mut conn).await?;
        let is_due = |id: &str| {
            let has_news = unlisted.iter().any(|one| one.authority_id == id);
            has_news || standing.get(id).is_none_or(|next_update| plan.is_due(*next_update))
        };
        let mut due = Vec::new();
        for issuer in issuers.iter().filter(|issuer| is_due(issuer.subject_key_id())) {
            due.push((issuer.clone(), revoked_of(&mut conn, issuer.subject_key_id(), plan.now).await?));
        }
        let nothing = due.is_empty() && unlisted.is_empty();
        Ok((!nothing).then_some(DueLists { number: newest + 1, plan, issuers, due, unlisted }))
    }

    /// Writes signed lists, all with the same number, if that is still free; whether it was.
    pub(crate) async fn publish_lists(&self, signed: SignedLists) -> Result<bool, StoreError> {
        self.write(move |conn| Box::pin(async move { publish(conn, signed).await })).await
    }

    /// Signs the last lists of roots that are about to go, with everything below them, apart from the writer. Their keys are
    /// gone with them, so that a list is good until its root's end.
    pub(in crate::store) async fn last_lists(
        &self,
        roots: Vec<(X509Authority, Vec<RevokedSerial>)>,
        now: SystemTime,
    ) -> Result<Vec<StoredList>, StoreError> {
        if roots.is_empty() {
            return Ok(Vec::new());
        }
        let newest = self.crl_number().await?;
        let sign = move || {
            let one = |(number, (root, revoked))| sign_last(number, &root, revoked, now);
            (newest + 1..).zip(roots).map(one).collect::<Result<_, _>>()
        };
        let signed = tokio::task::spawn_blocking(sign).await.map_err(|_| StoreError::Closed)?;
        signed.map_err(|error| {
            tracing::error!(error = ?error, "last revocation list not signed");
            StoreError::Damaged { what: "revocation" }
        })
    }
}

impl DueLists {
    /// Signs them. This takes as long as the keepers of keys take: not for where others wait. Authorities whose key is away
    /// hold up no others; what they are to list stays unlisted.
    pub(crate) fn sign(self) -> SignedLists {
        let (mut lists, mut failed, mut unsigned) = (Vec::new(), None, BTreeSet::new());
        for (issuer, revoked) in self.due {
            match sign_all(&issuer, self.number, revoked, &self.plan) {
                Ok(mut signed) => lists.append(&mut signed),
                Err(error) => {
                    let id = issuer.subject_key_id();
                    tracing::error!(reason = error.reason(), error = ?error, issuer = id, "revocation list not signed");
                    unsigned.insert(id.to_owned());
                    failed = Some(error);
                }
            }
        }
        let listed = self.unlisted.into_iter().filter(|one| !unsigned.contains(&one.authority_id));
        SignedLists {
            number: self.number,
            now: self.plan.now,
            issuers: self.issuers.iter().map(|issuer| issuer.subject_key_id().to_owned()).collect(),
            lists,
            listed: listed.map(|one| one.serial).collect(),
            failed,
        }
    }
}

impl SignedLists {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.lists.is_empty() && self.listed.is_empty()
    }
}

async fn publish(conn: &mut AnyConnection, signed: SignedLists) -> Result<Done<bool>, StoreError> {
    if !take_number(conn, signed.number).await? {
        return Ok(Done::quiet(false));
    }
    drop_ended(conn, &signed.issuers, signed.now).await?;
    let replaced: BTreeSet<&String> = signed.lists.iter().map(|list| &list.issuer_id).collect();
    for id in replaced {
        sqlx::query("DELETE FROM crl WHERE issuer_id = $1").bind(id.clone()).execute(&mut *conn).await?;
    }
    for list in &signed.lists {
        insert(conn, list).await?;
    }
    for serials in signed.listed.chunks(SERIALS_MAX) {
        let places: Vec<String> = (2..serials.len() + 2).map(|place| format!("${place}")).collect();
        let sql = format!("UPDATE revocation SET number = $1 WHERE number = 0 AND serial IN ({})", places.join(", "));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(number(signed.number));
        let query = serials.iter().fold(query, |query, serial| query.bind(serial.clone()));
        query.execute(&mut *conn).await?;
    }
    Ok(Done::new(true, vec![Change::Revocations]))
}

/// Takes the number that comes next, if it is this one.
async fn take_number(conn: &mut AnyConnection, wanted: u64) -> Result<bool, StoreError> {
    if meta::number(conn, meta::CRL_NUMBER).await? + 1 != wanted {
        return Ok(false);
    }
    meta::count_up(conn, meta::CRL_NUMBER).await?;
    Ok(true)
}

/// What is revoked and has no number.
async fn unlisted(conn: &mut AnyConnection) -> Result<Vec<Unlisted>, StoreError> {
    let rows = sqlx::query("SELECT serial, authority_id FROM revocation WHERE number = 0").fetch_all(conn).await?;
    let read = |row: &sqlx::any::AnyRow| Ok(Unlisted { serial: row.try_get(0)?, authority_id: row.try_get(1)? });
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

/// The next update of each issuer's list.
async fn standing(conn: &mut AnyConnection) -> Result<BTreeMap<String, i64>, StoreError> {
    let rows = sqlx::query("SELECT issuer_id, next_update FROM crl WHERE part = 0").fetch_all(conn).await?;
    let read = |row: &sqlx::any::AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

/// Lists of authorities that are gone, once they say nothing any more.
async fn drop_ended(conn: &mut AnyConnection, issuers: &BTreeSet<String>, now: i64) -> Result<(), StoreError> {
    let rows = sqlx::query("SELECT DISTINCT issuer_id FROM crl WHERE next_update < $1").bind(now);
    for row in rows.fetch_all(&mut *conn).await? {
        let id: String = row.try_get(0)?;
        if !issuers.contains(&id) {
            sqlx::query("DELETE FROM crl WHERE issuer_id = $1").bind(id).execute(&mut *conn).await?;
        }
    }
    Ok(())
}

/// What the list of an issuer has to hold.
async fn revoked_of(conn: &mut AnyConnection, issuer: &str, now: i64) -> Result<Vec<RevokedSerial>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM revocation WHERE authority_id = $1 AND kind = 'x509' AND not_after >= $2 ORDER BY serial"
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(issuer.to_owned()).bind(now - KEPT_AFTER_END_SECS);
    let rows: Vec<Revoked> = rows.fetch_all(conn).await?.iter().map(read).collect::<Result<_, _>>()?;
    Ok(rows.iter().filter_map(entry).collect())
}

/// The lists of an issuer: the whole, and its parts where it is long.
fn sign_all(
    issuer: &X509Authority,
    number: u64,
    revoked: Vec<RevokedSerial>,
    plan: &ListPlan,
) -> Result<Vec<StoredList>, AuthorityError> {
    let id = issuer.subject_key_id();
    let sign = |(part, revoked): (i64, Vec<RevokedSerial>)| {
        let profile = CrlProfile {
            number,
            this_update: from_unix_secs(plan.now - BACKDATE_SECS),
            next_update: from_unix_secs(plan.now + plan.life),
            revoked,
            distribution_point: (part > 0).then(|| format!("{}/crl/{id}-{part}.crl", plan.url)),
        };
        sign_list(issuer, part, &profile)
    };
    parts(revoked, plan.part_max).into_iter().map(sign).collect()
}

fn sign_last(
    number: u64,
    root: &X509Authority,
    revoked: Vec<RevokedSerial>,
    now: SystemTime,
) -> Result<StoredList, AuthorityError> {
    let profile = CrlProfile {
        number,
        this_update: now - Duration::from_secs(BACKDATE_SECS.unsigned_abs()),
        next_update: root.not_after(),
        revoked,
        distribution_point: None,
    };
    sign_list(root, LAST_PART, &profile)
}

fn sign_list(issuer: &X509Authority, part: i64, profile: &CrlProfile) -> Result<StoredList, AuthorityError> {
    Ok(StoredList {
        issuer_id: issuer.subject_key_id().to_owned(),
        part,
        number: profile.number,
        this_update: secs(profile.this_update),
        next_update: secs(profile.next_update),
        der: issuer.sign_crl(profile)?,
    })
}

async fn insert(conn: &mut AnyConnection, list: &StoredList) -> Result<(), StoreError> {
    let sql = "INSERT INTO crl (issuer_id, part, number, this_update, next_update, der) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let query = sqlx::query(sql).bind(list.issuer_id.clone()).bind(list.part).bind(number(list.number));
    let query = query.bind(list.this_update).bind(list.next_update).bind(STANDARD.encode(&list.der));
    query.execute(conn).await?;
    Ok(())
}

/// Writes the last list of a root in the place of all its others; whether its number was still free.
pub(in crate::store) async fn write_last(conn: &mut AnyConnection, list: &StoredList) -> Result<bool, StoreError> {
    if !take_number(conn, list.number).await? {
        return Ok(false);
    }
    sqlx::query("DELETE FROM crl WHERE issuer_id = $1").bind(list.issuer_id.clone()).execute(&mut *conn).await?;
    insert(conn, list).await?;
    Ok(true)
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
/// The most serials that one statement marks: far below the databases' limits on parameters.
const SERIALS_MAX: usize = 1_000;
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
