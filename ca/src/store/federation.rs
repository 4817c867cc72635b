//! Rows of foreign bundles.

use std::sync::Arc;

use identity::bundle::TrustBundle;
use identity::spiffe_id::TrustDomain;
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use super::{Done, Store, StoreError, column};
use crate::registry::Change;

impl Store {
    /// Creates or replaces the bundle of a foreign trust domain.
    pub(crate) async fn set_federated(&self, bundle: TrustBundle, now: i64) -> Result<(), StoreError> {
        let document = bundle.to_spiffe_json();
        self.write(move |conn| {
            Box::pin(async move {
                let sql = "INSERT INTO federated_bundle (trust_domain, document, updated_at) VALUES ($1, $2, $3) \
                           ON CONFLICT (trust_domain) DO UPDATE SET document = excluded.document, \
                           updated_at = excluded.updated_at";
                let name = bundle.trust_domain.to_string();
                sqlx::query(sql).bind(name).bind(document).bind(now).execute(conn).await?;
                Ok(Done::new((), vec![Change::FederatedSet(Arc::new(bundle))]))
            })
        })
        .await
    }

    /// Forgets the bundle of a foreign trust domain; `false` when it is not known.
    pub(crate) async fn delete_federated(&self, domain: &TrustDomain) -> Result<bool, StoreError> {
        let domain = domain.clone();
        self.write(move |conn| {
            Box::pin(async move {
                let sql = "DELETE FROM federated_bundle WHERE trust_domain = $1";
                let gone = sqlx::query(sql).bind(domain.to_string()).execute(conn).await?;
                if gone.rows_affected() == 0 {
                    return Ok(Done::quiet(false));
                }
                Ok(Done::new(true, vec![Change::FederatedGone(domain)]))
            })
        })
        .await
    }
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

fn read(row: &AnyRow) -> Result<TrustBundle, StoreError> {
    let domain = TrustDomain::parse(&column::<String>(row, "trust_domain", WHAT)?).map_err(|_| damaged())?;
    let document: String = column(row, "document", WHAT)?;
    TrustBundle::parse_spiffe_json(domain, document.as_bytes()).map_err(|_| damaged())
}

fn damaged() -> StoreError {
    StoreError::Damaged { what: WHAT }
}

const WHAT: &str = "foreign bundle";
