//! Whether the database takes writes, and if not, why: readiness and metrics tell it, and callers are refused at once.

use tokio::sync::watch;

use super::StoreError;

/// What the writer last saw. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Health(watch::Sender<Option<StoreError>>);

impl Health {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Why nothing can be written.
    pub(crate) fn trouble(&self) -> Option<StoreError> {
        self.0.borrow().clone()
    }

    /// Changes when the database begins or ceases to take writes.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<StoreError>> {
        self.0.subscribe()
    }

    pub(super) fn ails(&self) -> bool {
        self.0.borrow().is_some()
    }

    pub(super) fn fails(&self, error: StoreError) {
        self.0.send_if_modified(|known| {
            let news = known.as_ref().map(StoreError::reason) != Some(error.reason());
            if news {
                tracing::error!(reason = error.reason(), error = ?error, "the database takes no writes");
                *known = Some(error);
            }
            news
        });
    }

    pub(super) fn recovers(&self) {
        self.0.send_if_modified(|known| {
            let news = known.take().is_some();
            if news {
                tracing::info!("the database takes writes again");
            }
            news
        });
    }
}
