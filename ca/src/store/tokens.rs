//! Join tokens: used once, by deleting their row in the transaction that admits the node.

use std::sync::Arc;

use sqlx::{AnyConnection, Row};

use super::{Done, Issuance, Lane, Store, StoreError, agents, entries};
use crate::agent::Agent;
use crate::entry::Entry;
use crate::random::sha256_hex;
use crate::registry::Change;

/// What became of an attempt to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenUse {
    /// The node is admitted; the token is gone.
    Joined,
    /// Nobody knows the token: never made, or used.
    Unknown,
    /// The token came too late; it is gone.
    Expired,
    /// The node was banned.
    Banned,
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

    /// Uses `token` for `agent`: of any number of attempts with one token, one succeeds.
    /// The record of the node's SVID is written with it, or the token stays good.
    pub(crate) async fn join(
        &self,
        token: &str,
        agent: Agent,
        record: Issuance,
        now: i64,
    ) -> Result<TokenUse, StoreError> {
        let digest = sha256_hex(token.as_bytes());
        self.write_in(Lane::New, move |conn| Box::pin(join(conn, digest, agent, record, now))).await
    }

    /// Why `token` would be refused now, if it would. Only [`Store::join`] decides.
    pub(crate) async fn token_problem(&self, token: &str, now: i64) -> Result<Option<TokenUse>, StoreError> {
        let sql = "SELECT expires_at FROM join_token WHERE digest = $1";
        let found = sqlx::query(sql).bind(sha256_hex(token.as_bytes())).fetch_optional(&self.pool).await?;
        let Some(found) = found else { return Ok(Some(TokenUse::Unknown)) };
        Ok((found.try_get::<i64, _>(0)? <= now).then_some(TokenUse::Expired))
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

async fn join(
    conn: &mut AnyConnection,
    digest: String,
    agent: Agent,
    record: Issuance,
    now: i64,
) -> Result<Done<TokenUse>, StoreError> {
    let sql = "DELETE FROM join_token WHERE digest = $1 RETURNING expires_at";
    let Some(used) = sqlx::query(sql).bind(digest).fetch_optional(&mut *conn).await? else {
        return Ok(Done::quiet(TokenUse::Unknown));
    };
    if used.try_get::<i64, _>(0)? <= now {
        return Ok(Done::quiet(TokenUse::Expired));
    }
    if agents::one(conn, &agent.id).await?.is_some_and(|known| known.banned) {
        return Ok(Done::quiet(TokenUse::Banned));
    }
    agents::put(conn, &agent).await?;
    Ok(Done::new(TokenUse::Joined, vec![Change::AgentSet(Arc::new(agent))]).issuing(record))
}
