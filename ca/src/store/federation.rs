//! Rows of foreign bundles and of the relationships by which they are fetched.
//!
//! A change of a bundle counts as one of the entries: agents are woken by it and fetch what their entries federate with.

use std::sync::Arc;

use identity::bundle::TrustBundle;
use identity::spiffe_id::TrustDomain;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe};

use super::{Done, Store, StoreError, column, meta, number};
use crate::federation::{EndpointUrl, FetchError, PollState, Profile, RELATIONSHIPS_MAX, Relationship, Schedule};
use crate::registry::Change;

/// What became of a relationship that was to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Related {
    /// It is there.
    Done(Arc<Relationship>),
    /// One with this trust domain was there before.
    Exists,
    /// There is none.
    Unknown,
    /// There are as many as there may be.
    TooMany,
}

/// What a fetch led to.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// Another bundle than before.
    New { sequence: u64 },
    /// The known one.
    Same,
    /// Nothing; the known one stays.
    Failed(FetchError),
    /// The relationship is another one by now, or gone.
    Gone,
}

impl Store {
    /// Creates or replaces the bundle of a foreign trust domain.
    pub(crate) async fn set_federated(&self, bundle: TrustBundle, now: i64) -> Result<(), StoreError> {
        self.write(move |conn| Box::pin(async move { Ok(Done::new((), put_bundle(conn, bundle, now).await?)) })).await
    }

    /// Forgets the bundle of a foreign trust domain; `false` when it is not known.
    pub(crate) async fn delete_federated(&self, domain: &TrustDomain) -> Result<bool, StoreError> {
        let domain = domain.clone();
        self.write(move |conn| {
            Box::pin(async move {
                let changes = drop_bundle(conn, &domain).await?;
                Ok(if changes.is_empty() { Done::quiet(false) } else { Done::new(true, changes) })
            })
        })
        .await
    }

    /// Creates a relationship, with the first bundle of its trust domain if one is given.
    pub(crate) async fn create_relationship(
        &self,
        relationship: Relationship,
        bundle: Option<TrustBundle>,
    ) -> Result<Related, StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                if self::relationship(conn, &relationship.trust_domain).await?.is_some() {
                    return Ok(Done::quiet(Related::Exists));
                }
                let (count,): (i64,) =
                    sqlx::query_as("SELECT COUNT(*) FROM federation_relationship").fetch_one(&mut *conn).await?;
                if count.unsigned_abs() >= RELATIONSHIPS_MAX as u64 {
                    return Ok(Done::quiet(Related::TooMany));
                }
                put(conn, relationship, bundle).await
            })
        })
        .await
    }

    /// Changes a relationship by `change`, which sees it as it is in the database; it is fetched anew at once.
    pub(crate) async fn update_relationship(
        &self,
        domain: &TrustDomain,
        bundle: Option<TrustBundle>,
        change: impl FnOnce(&mut Relationship) + Send + 'static,
    ) -> Result<Related, StoreError> {
        let domain = domain.clone();
        self.write(move |conn| {
            Box::pin(async move {
                let Some(mut found) = relationship(conn, &domain).await? else {
                    return Ok(Done::quiet(Related::Unknown));
                };
                change(&mut found);
                found.state = PollState { succeeded_at: found.state.succeeded_at, ..PollState::default() };
                put(conn, found, bundle).await
            })
        })
        .await
    }

    /// Forgets a relationship and the bundle that came by it; `false` when it is not known.
    pub(crate) async fn delete_relationship(&self, domain: &TrustDomain) -> Result<bool, StoreError> {
        let domain = domain.clone();
        self.write(move |conn| {
            Box::pin(async move {
                let sql = "DELETE FROM federation_relationship WHERE trust_domain = $1";
                let gone = sqlx::query(sql).bind(domain.to_string()).execute(&mut *conn).await?;
                if gone.rows_affected() == 0 {
                    return Ok(Done::quiet(false));
                }
                let mut changes = drop_bundle(conn, &domain).await?;
                changes.push(Change::RelationshipGone(domain));
                Ok(Done::new(true, changes))
            })
        })
        .await
    }

    /// Writes down what a fetch for `asked` brought. A bundle with a lower sequence number than the known one is not taken
    /// (SPIFFE Federation, section 5.1). Only a new bundle leaves a record in the audit trail.
    pub(crate) async fn record_fetch(
        &self,
        asked: &Relationship,
        outcome: Result<TrustBundle, FetchError>,
        now: i64,
        dice: f64,
    ) -> Result<Fetched, StoreError> {
        let asked = asked.clone();
        self.write(move |conn| {
            Box::pin(async move {
                let Some(mut found) = relationship(conn, &asked.trust_domain).await?.filter(|one| one.is_like(&asked))
                else {
                    return Ok(Done::quiet(Fetched::Gone));
                };
                let known = one(conn, &asked.trust_domain).await?;
                let (fetched, mut changes) = match judge(outcome, known.as_ref()) {
                    Ok(Some(bundle)) => {
                        let sequence = bundle.sequence;
                        (Fetched::New { sequence }, put_bundle(conn, bundle, now).await?)
                    }
                    Ok(None) => (Fetched::Same, Vec::new()),
                    Err(error) => (Fetched::Failed(error), Vec::new()),
                };
                let hint = one(conn, &asked.trust_domain).await?.and_then(|bundle| bundle.refresh_hint);
                found.state = state_after(&found.state, &fetched, Schedule::of(hint), now, dice);
                write(conn, &found).await?;
                let effect = !changes.is_empty();
                changes.push(Change::RelationshipSet(Arc::new(found)));
                Ok(Done { effect, ..Done::new(fetched, changes) })
            })
        })
        .await
    }
}

/// The bundle to write, if another one than the known.
fn judge(
    outcome: Result<TrustBundle, FetchError>,
    known: Option<&TrustBundle>,
) -> Result<Option<TrustBundle>, FetchError> {
    let bundle = outcome?;
    match known {
        Some(known) if bundle.sequence < known.sequence => {
            Err(FetchError::Backwards { fetched: bundle.sequence, known: known.sequence })
        }
        Some(known) if *known == bundle => Ok(None),
        _ => Ok(Some(bundle)),
    }
}

fn state_after(before: &PollState, fetched: &Fetched, pace: Schedule, now: i64, dice: f64) -> PollState {
    let next_at = |failures| now + number(pace.wait(failures, dice).as_secs());
    match fetched {
        Fetched::Failed(error) => {
            let failures = before.failures.saturating_add(1);
            PollState {
                succeeded_at: before.succeeded_at,
                tried_at: now,
                next_at: next_at(failures),
                failures,
                reason: error.reason().into(),
                problem: error.text(),
            }
        }
        _ => PollState { succeeded_at: now, tried_at: now, next_at: next_at(0), ..PollState::default() },
    }
}

async fn put(
    conn: &mut AnyConnection,
    relationship: Relationship,
    bundle: Option<TrustBundle>,
) -> Result<Done<Related>, StoreError> {
    write(conn, &relationship).await?;
    let mut changes = match bundle {
        Some(bundle) => put_bundle(conn, bundle, relationship.created_at).await?,
        None => Vec::new(),
    };
    let relationship = Arc::new(relationship);
    changes.push(Change::RelationshipSet(relationship.clone()));
    Ok(Done::new(Related::Done(relationship), changes))
}

/// Writes a bundle; answers what the memory must learn.
async fn put_bundle(conn: &mut AnyConnection, bundle: TrustBundle, now: i64) -> Result<Vec<Change>, StoreError> {
    let sql = "INSERT INTO federated_bundle (trust_domain, document, updated_at) VALUES ($1, $2, $3) \
               ON CONFLICT (trust_domain) DO UPDATE SET document = excluded.document, \
               updated_at = excluded.updated_at";
    let (name, document) = (bundle.trust_domain.to_string(), bundle.to_spiffe_json());
    sqlx::query(sql).bind(name).bind(document).bind(now).execute(&mut *conn).await?;
    let revision = meta::count_up(conn, meta::ENTRIES_REVISION).await?;
    Ok(vec![Change::FederatedSet(Arc::new(bundle)), Change::EntriesRevision(revision)])
}

/// Deletes a bundle; answers what the memory must learn, nothing when there was none.
async fn drop_bundle(conn: &mut AnyConnection, domain: &TrustDomain) -> Result<Vec<Change>, StoreError> {
    let sql = "DELETE FROM federated_bundle WHERE trust_domain = $1";
    let gone = sqlx::query(sql).bind(domain.to_string()).execute(&mut *conn).await?;
    if gone.rows_affected() == 0 {
        return Ok(Vec::new());
    }
    let revision = meta::count_up(conn, meta::ENTRIES_REVISION).await?;
    Ok(vec![Change::FederatedGone(domain.clone()), Change::EntriesRevision(revision)])
}

async fn write(conn: &mut AnyConnection, relationship: &Relationship) -> Result<(), StoreError> {
    let sql = "DELETE FROM federation_relationship WHERE trust_domain = $1";
    sqlx::query(sql).bind(relationship.trust_domain.to_string()).execute(&mut *conn).await?;
    let sql = format!(
        "INSERT INTO federation_relationship ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
    );
    let state = &relationship.state;
    sqlx::query(AssertSqlSafe(sql))
        .bind(relationship.trust_domain.to_string())
        .bind(relationship.url.to_string())
        .bind(relationship.profile.as_str())
        .bind(relationship.profile.endpoint_id().to_owned())
        .bind(relationship.created_at)
        .bind(state.succeeded_at)
        .bind(state.tried_at)
        .bind(state.next_at)
        .bind(i64::from(state.failures))
        .bind(state.reason.clone())
        .bind(state.problem.clone())
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn all(conn: &mut AnyConnection) -> Result<Vec<TrustBundle>, StoreError> {
    let rows = sqlx::query("SELECT trust_domain, document FROM federated_bundle").fetch_all(conn).await?;
    rows.iter().map(read).collect()
}

pub(super) async fn one(conn: &mut AnyConnection, domain: &TrustDomain) -> Result<Option<TrustBundle>, StoreError> {
    let sql = "SELECT trust_domain, document FROM federated_bundle WHERE trust_domain = $1";
    let row = sqlx::query(sql).bind(domain.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn relationships(conn: &mut AnyConnection) -> Result<Vec<Relationship>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM federation_relationship");
    sqlx::query(AssertSqlSafe(sql)).fetch_all(conn).await?.iter().map(read_relationship).collect()
}

pub(super) async fn relationship(
    conn: &mut AnyConnection,
    domain: &TrustDomain,
) -> Result<Option<Relationship>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM federation_relationship WHERE trust_domain = $1");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(domain.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(read_relationship).transpose()
}

fn read(row: &AnyRow) -> Result<TrustBundle, StoreError> {
    let domain = TrustDomain::parse(&column::<String>(row, "trust_domain", WHAT)?).map_err(|_| damaged(WHAT))?;
    let document: String = column(row, "document", WHAT)?;
    TrustBundle::parse_spiffe_json(domain, document.as_bytes()).map_err(|_| damaged(WHAT))
}

fn read_relationship(row: &AnyRow) -> Result<Relationship, StoreError> {
    let text = |name| column::<String>(row, name, RELATIONSHIP);
    let int = |name| column::<i64>(row, name, RELATIONSHIP);
    let broken = || damaged(RELATIONSHIP);
    Ok(Relationship {
        trust_domain: TrustDomain::parse(&text("trust_domain")?).map_err(|_| broken())?,
        url: EndpointUrl::parse(&text("url")?).map_err(|_| broken())?,
        profile: Profile::read(&text("profile")?, &text("endpoint_id")?).ok_or_else(broken)?,
        created_at: int("created_at")?,
        state: PollState {
            succeeded_at: int("succeeded_at")?,
            tried_at: int("tried_at")?,
            next_at: int("next_at")?,
            failures: u32::try_from(int("failures")?).map_err(|_| broken())?,
            reason: text("reason")?,
            problem: text("problem")?,
        },
    })
}

fn damaged(what: &'static str) -> StoreError {
    StoreError::Damaged { what }
}

const WHAT: &str = "foreign bundle";
const RELATIONSHIP: &str = "federation relationship";
const COLUMNS: &str = "trust_domain, url, profile, endpoint_id, created_at, succeeded_at, tried_at, next_at, failures, \
                       reason, problem";
