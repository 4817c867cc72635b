//! What replicas on one database tell each other: the lines of the table `change`, in the order of the commits.
//!
//! A line is a hint which row to read again, so that reading it twice does no harm. Whoever missed lines that are
//! removed by now reads everything.

use std::collections::BTreeSet;
use std::sync::Arc;

use identity::spiffe_id::{SpiffeId, TrustDomain};
use sqlx::{AnyConnection, AssertSqlSafe, Executor, Row};

use super::{StoreError, agents, entries, federation, load, meta};
use crate::registry::{Change, Registry};

/// How far one replica has read.
#[derive(Debug)]
pub(super) struct Feed {
    server_id: SpiffeId,
    position: u64,
}

/// What other replicas did.
#[derive(Debug)]
pub(super) enum News {
    /// Row by row.
    Changes {
        changes: Vec<Change>,
        /// The signing authorities changed too.
        authorities: bool,
        /// What is revoked, or the lists of it, too.
        revocations: bool,
    },
    /// Too much to tell: this is all there is.
    Everything(Box<Registry>),
}

impl Feed {
    /// Begins at `position`, which was read before the rows were.
    pub(super) fn new(server_id: SpiffeId, position: u64) -> Self {
        Self { server_id, position }
    }

    /// What is new since the last time.
    pub(super) async fn news(&mut self, conn: &mut AnyConnection) -> Result<News, StoreError> {
        let sql = "SELECT number, kind, name FROM change WHERE number > $1 ORDER BY number LIMIT $2";
        let rows = sqlx::query(sql).bind(super::number(self.position)).bind(LINES_MAX).fetch_all(&mut *conn).await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return Ok(News::Changes { changes: Vec::new(), authorities: false, revocations: false });
        };
        let last: i64 = last.try_get(0)?;
        let missed = first.try_get::<i64, _>(0)?.unsigned_abs() != self.position + 1;
        if missed || rows.len() == usize::try_from(LINES_MAX).unwrap_or(usize::MAX) {
            self.position = meta::number(conn, meta::CHANGE_NUMBER).await?;
            return Ok(News::Everything(Box::new(load::registry(conn, self.server_id.clone()).await?)));
        }
        let mut named: BTreeSet<(String, String)> = BTreeSet::new();
        for row in &rows {
            named.insert((row.try_get(1)?, row.try_get(2)?));
        }
        let news = self.read(conn, named).await?;
        self.position = last.unsigned_abs();
        Ok(news)
    }

    async fn read(&self, conn: &mut AnyConnection, named: BTreeSet<(String, String)>) -> Result<News, StoreError> {
        let (mut changes, mut authorities, mut revocations) = (Vec::new(), false, false);
        for (kind, name) in named {
            match kind.as_str() {
                ENTRY => changes.push(match entries::one(conn, "id", &name).await? {
                    Some(entry) => Change::EntrySet(Arc::new(entry)),
                    None => Change::EntryGone(name),
                }),
                AGENT => {
                    let id = SpiffeId::parse(&name).map_err(|_| damaged())?;
                    changes.push(match agents::one(conn, &id).await? {
                        Some(agent) => Change::AgentSet(Arc::new(agent)),
                        None => Change::AgentGone(id),
                    });
                }
                BUNDLE => {
                    let domain = TrustDomain::parse(&name).map_err(|_| damaged())?;
                    changes.push(match federation::one(conn, &domain).await? {
                        Some(bundle) => Change::FederatedSet(Arc::new(bundle)),
                        None => Change::FederatedGone(domain),
                    });
                }
                RELATIONSHIP => {
                    let domain = TrustDomain::parse(&name).map_err(|_| damaged())?;
                    changes.push(match federation::relationship(conn, &domain).await? {
                        Some(relationship) => Change::RelationshipSet(Arc::new(relationship)),
                        None => Change::RelationshipGone(domain),
                    });
                }
                AUTHORITY => authorities = true,
                REVOCATION => revocations = true,
                // A newer version runs beside this one; what it added does not concern us.
                _ => tracing::debug!(kind, "change of an unknown kind"),
            }
        }
        changes.push(Change::EntriesRevision(meta::number(conn, meta::ENTRIES_REVISION).await?));
        Ok(News::Changes { changes, authorities, revocations })
    }

    /// Tells the others, inside the transaction that changes something; answers where the feed ends then.
    pub(super) async fn publish(&self, conn: &mut AnyConnection, changes: &[Change]) -> Result<u64, StoreError> {
        let lines: BTreeSet<(&'static str, String)> = changes.iter().filter_map(line).collect();
        if lines.is_empty() {
            return Ok(self.position);
        }
        let mut number = meta::number(conn, meta::CHANGE_NUMBER).await?;
        let made_at = super::number(runtime::clock::unix_secs(runtime::clock::now()));
        for lines in lines.into_iter().collect::<Vec<_>>().chunks(INSERT_MAX) {
            let mut query = sqlx::query(AssertSqlSafe(insert_sql(lines.len())));
            for (kind, name) in lines {
                number += 1;
                query = query.bind(super::number(number)).bind(*kind).bind(name.clone()).bind(made_at);
            }
            query.execute(&mut *conn).await?;
        }
        meta::write(conn, meta::CHANGE_NUMBER, &number.to_string()).await?;
        conn.execute(NOTIFY).await?;
        Ok(number)
    }

    /// The lines up to here are our own, or read.
    pub(super) fn advance(&mut self, position: u64) {
        self.position = position;
    }
}

/// Removes lines that every living replica has read.
pub(super) async fn forget(conn: &mut AnyConnection, now: i64) -> Result<u64, StoreError> {
    let gone = sqlx::query("DELETE FROM change WHERE made_at < $1").bind(now - KEPT_SECS).execute(conn).await?;
    Ok(gone.rows_affected())
}

fn line(change: &Change) -> Option<(&'static str, String)> {
    match change {
        Change::EntrySet(entry) => Some((ENTRY, entry.id.clone())),
        Change::EntryGone(id) => Some((ENTRY, id.clone())),
        Change::AgentSet(agent) => Some((AGENT, agent.id.to_string())),
        Change::AgentGone(id) => Some((AGENT, id.to_string())),
        Change::FederatedSet(bundle) => Some((BUNDLE, bundle.trust_domain.to_string())),
        Change::FederatedGone(domain) => Some((BUNDLE, domain.to_string())),
        Change::RelationshipSet(relationship) => Some((RELATIONSHIP, relationship.trust_domain.to_string())),
        Change::RelationshipGone(domain) => Some((RELATIONSHIP, domain.to_string())),
        Change::Authorities => Some((AUTHORITY, String::new())),
        Change::Revocations => Some((REVOCATION, String::new())),
        Change::EntriesRevision(_) => None,
    }
}

fn insert_sql(lines: usize) -> String {
    let mut sql = String::from("INSERT INTO change (number, kind, name, made_at) VALUES ");
    for line in 0..lines {
        let (comma, at) = (if line == 0 { "" } else { ", " }, line * 4);
        sql.push_str(&format!("{comma}(${}, ${}, ${}, ${})", at + 1, at + 2, at + 3, at + 4));
    }
    sql
}

fn damaged() -> StoreError {
    StoreError::Damaged { what: "line of changes" }
}

/// The channel on which PostgreSQL wakes the other replicas.
pub(super) const CHANNEL: &str = "kasbah_change";
const NOTIFY: &str = "NOTIFY kasbah_change";
const ENTRY: &str = "entry";
const AGENT: &str = "agent";
const BUNDLE: &str = "bundle";
const RELATIONSHIP: &str = "relationship";
const AUTHORITY: &str = "authority";
const REVOCATION: &str = "revocation";
/// Whoever is further behind reads everything instead.
const LINES_MAX: i64 = 10_000;
const INSERT_MAX: usize = 1_000;
/// How long lines are kept for replicas that were away.
const KEPT_SECS: i64 = 600;
