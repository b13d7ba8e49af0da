//! The one connection that writes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use everstep_store::Error;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{Mutex, MutexGuard};

use crate::error::{at_commit, before_commit, is_full};
use crate::lock::FileLock;

/// Work inside a transaction.
pub(crate) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'c>>;

/// The connection, while nobody uses it. `None` after an error that left it in doubt: the next user opens
/// a new one.
#[derive(Debug)]
pub(crate) struct Writer {
    options: SqliteConnectOptions,
    connection: Mutex<Option<SqliteConnection>>,
    /// The last that was written did not fit: it is tried again and again, and the log hears of it once.
    full: AtomicBool,
    /// Let go of after the connection: writing tasks keep both.
    _lock: FileLock,
}

/// Where a transaction failed.
#[derive(Debug)]
pub(crate) enum TxError {
    /// Before COMMIT: nothing was written.
    Before(sqlx::Error),
    /// At COMMIT.
    AtCommit(sqlx::Error),
}

impl TxError {
    pub(crate) fn to_store(&self) -> Error {
        match self {
            Self::Before(e) => before_commit(e),
            Self::AtCommit(e) => at_commit(e),
        }
    }

    /// The disk has no room: nothing was written, wherever it failed.
    pub(crate) fn is_full(&self) -> bool {
        let (Self::Before(e) | Self::AtCommit(e)) = self;
        is_full(e)
    }
}

impl Writer {
    pub(crate) fn new(options: SqliteConnectOptions, connection: SqliteConnection, lock: FileLock) -> Self {
        let full = AtomicBool::new(false);
        Self { options, connection: Mutex::new(Some(connection)), full, _lock: lock }
    }

    /// Waits for the connection, and opens a new one if the last was thrown away.
    pub(crate) async fn lock(&self) -> Result<Held<'_>, sqlx::Error> {
        let mut held = Held { slot: self.connection.lock().await, writer: self };
        held.connection().await?;
        Ok(held)
    }

    /// Runs `work` in a transaction of its own task: it ends even if the caller is gone.
    pub(crate) async fn transact<T, F>(self: &Arc<Self>, work: F) -> Result<T, Error>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
        T: Send + 'static,
    {
        let writer = Arc::clone(self);
        let task = tokio::spawn(async move {
            let mut held = writer.lock().await.map_err(|e| before_commit(&e))?;
            let result = async {
                let connection = held.begin().await.map_err(TxError::Before)?;
                let done = work(connection).await.map_err(TxError::Before)?;
                held.commit().await?;
                Ok(done)
            }
            .await;
            match result {
                Ok(done) => Ok(done),
                Err(e) => {
                    held.abandon(&e).await;
                    Err(e.to_store())
                }
            }
        });
        task.await
            .unwrap_or_else(|e| Err(Error::OutcomeUnknown(format!("the writing task ended early: {e}"))))
    }

    /// Closes the connection; the next user would open another.
    pub(crate) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            close(connection).await;
        }
    }
}

/// The writing connection, held for one transaction.
pub(crate) struct Held<'w> {
    slot: MutexGuard<'w, Option<SqliteConnection>>,
    writer: &'w Writer,
}

impl Held<'_> {
    /// The connection itself; a new one, if the last was thrown away.
    pub(crate) async fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        let connection = match self.slot.take() {
            Some(connection) => connection,
            None => self.writer.options.connect().await?,
        };
        Ok(self.slot.insert(connection))
    }

    async fn begin(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        let connection = self.connection().await?;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
        Ok(connection)
    }

    pub(crate) async fn commit(&mut self) -> Result<(), TxError> {
        // Without a connection there is no transaction: nothing of it can be durable.
        let connection = self.slot.as_mut().ok_or(TxError::Before(sqlx::Error::WorkerCrashed))?;
        sqlx::query("COMMIT").execute(connection).await.map_err(TxError::AtCommit)?;
        self.wrote();
        Ok(())
    }

    /// Something was committed.
    pub(crate) fn wrote(&self) {
        if self.writer.full.load(Ordering::Relaxed) && self.writer.full.swap(false, Ordering::Relaxed) {
            tracing::info!("the database has room again");
        }
    }

    /// Leaves the transaction without a trace.
    pub(crate) async fn rollback(&mut self) {
        let Some(connection) = self.slot.as_mut() else { return };
        let rolled_back = sqlx::query("ROLLBACK").execute(connection).await;
        if rolled_back.is_err_and(|e| !has_no_transaction(&e)) {
            self.discard().await;
        }
    }

    /// After an error: leaves no transaction open, and no connection in doubt.
    pub(crate) async fn abandon(&mut self, e: &TxError) {
        match e {
            e if e.is_full() => {
                if !self.writer.full.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error = %e.to_store(), "the database has no room; trying again");
                }
                self.rollback().await;
            }
            TxError::Before(_) => self.rollback().await,
            TxError::AtCommit(e) => {
                tracing::warn!(error = %e, "commit failed; reopening the database");
                self.discard().await;
            }
        }
    }

    async fn discard(&mut self) {
        if let Some(connection) = self.slot.take() {
            close(connection).await;
        }
    }
}

async fn close(connection: SqliteConnection) {
    // What a connection says on its way out changes nothing any more: what was committed is in the file.
    if let Err(e) = connection.close().await {
        tracing::debug!(error = %e, "closing a database connection");
    }
}

/// What ROLLBACK answers when the failed statement has ended the transaction by itself (a full disk), or
/// none was begun. SQLite has no code of its own for it.
fn has_no_transaction(e: &sqlx::Error) -> bool {
    e.as_database_error().is_some_and(|e| e.message().contains("no transaction is active"))
}
