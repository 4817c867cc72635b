//! Admission of nodes, and join tokens: used once, by deleting their row in the transaction that admits the node.

use std::sync::Arc;

use identity::spiffe_id::SpiffeId;
use sqlx::{AnyConnection, Row};

use super::{Done, Issuance, Lane, Store, StoreError, agents, entries};
use crate::agent::Agent;
use crate::entry::Entry;
use crate::random::sha256_hex;
use crate::registry::Change;

/// What became of a node that has attested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is known now; its token, if there was one, is gone.
    Admitted,
    /// Nobody knows the token: never made, or used.
    Unknown,
    /// The token came too late; it is gone.
    Expired,
    /// The node was banned.
    Banned,
    /// The node is known, and its attestor admits a node once.
    Known,
}

impl Store {
    /// Remembers a token, and the alias entry of the node that will use it; `false` when the token is known.
    pub(crate) async fn add_token(
        &self,
        token: &str,
        expires_at: i64,
        alias: Option<Entry>,
        now: i64,
    ) -> Result<bool, StoreError> {
        let digest = sha256_hex(token.as_bytes());
        self.write_in(Lane::New, move |conn| {
            Box::pin(async move {
                let sql = "INSERT INTO join_token (digest, expires_at, created_at) VALUES ($1, $2, $3) \
                           ON CONFLICT (digest) DO NOTHING";
                let added = sqlx::query(sql).bind(digest).bind(expires_at).bind(now).execute(&mut *conn).await?;
                if added.rows_affected() == 0 {
                    return Ok(Done::quiet(false));
                }
                let changes = match alias {
                    Some(alias) => entries::create(conn, alias).await?.1,
                    None => Vec::new(),
                };
                Ok(Done::new(true, changes))
            })
        })
        .await
    }

    /// Admits a node that has attested, under its new SVID. Of any number of attempts with one token, one succeeds; a node
    /// that is known comes again only where `agent.can_reattest`; a ban outlives everything. The record of
    /// the node's SVID is written with it, or nothing is.
    pub(crate) async fn admit(
        &self,
        agent: Agent,
        token: Option<&str>,
        record: Issuance,
        now: i64,
    ) -> Result<Admission, StoreError> {
        let digest = token.map(|token| sha256_hex(token.as_bytes()));
        self.write_in(Lane::New, move |conn| Box::pin(admit(conn, agent, digest, record, now))).await
    }

    /// Why a node would not be admitted now, if so: nobody without a chance costs us a signature. Only [`Store::admit`]
    /// decides.
    pub(crate) async fn admission_problem(
        &self,
        id: &SpiffeId,
        can_reattest: bool,
        token: Option<&str>,
        now: i64,
    ) -> Result<Option<Admission>, StoreError> {
        let known = self.registry().agent(id).and_then(|known| problem_of(&known, can_reattest));
        let Some(token) = token else { return Ok(known) };
        // A used token is told as such, although its node is known.
        let sql = "SELECT expires_at FROM join_token WHERE digest = $1";
        let found = sqlx::query(sql).bind(sha256_hex(token.as_bytes())).fetch_optional(&self.pool).await?;
        let Some(found) = found else { return Ok(Some(Admission::Unknown)) };
        Ok(if found.try_get::<i64, _>(0)? <= now { Some(Admission::Expired) } else { known })
    }

    /// Forgets tokens that ran out.
    pub(crate) async fn forget_tokens(&self, now: i64) -> Result<u64, StoreError> {
        self.write(move |conn| {
            Box::pin(async move {
                let sql = "DELETE FROM join_token WHERE expires_at <= $1";
                Ok(Done::quiet(sqlx::query(sql).bind(now).execute(conn).await?.rows_affected()))
            })
        })
        .await
    }
}

async fn admit(
    conn: &mut AnyConnection,
    agent: Agent,
    digest: Option<String>,
    record: Issuance,
    now: i64,
) -> Result<Done<Admission>, StoreError> {
    if let Some(digest) = digest {
        let sql = "DELETE FROM join_token WHERE digest = $1 RETURNING expires_at";
        let Some(used) = sqlx::query(sql).bind(digest).fetch_optional(&mut *conn).await? else {
            return Ok(Done::quiet(Admission::Unknown));
        };
        if used.try_get::<i64, _>(0)? <= now {
            return Ok(Done::quiet(Admission::Expired));
        }
    }
    let known = agents::one(conn, &agent.id).await?;
    if let Some(problem) = known.and_then(|known| problem_of(&known, agent.can_reattest)) {
        return Ok(Done::quiet(problem));
    }
    // Two authorities on one database may both have found nobody: of a node that is admitted once, one row wins.
    match agent.can_reattest {
        true => agents::put(conn, &agent).await?,
        false if agents::put_new(conn, &agent).await? => (),
        false => return Ok(Done::quiet(Admission::Known)),
    }
    Ok(Done::new(Admission::Admitted, vec![Change::AgentSet(Arc::new(agent))]).issuing(record))
}

fn problem_of(known: &Agent, can_reattest: bool) -> Option<Admission> {
    match (known.banned, can_reattest) {
        (true, _) => Some(Admission::Banned),
        (false, true) => None,
        (false, false) => Some(Admission::Known),
    }
}
