//! The connections that append, and nothing else: no ping before or after use, because an append that
//! meets a dead connection is settled by position like any other whose outcome is unknown.

use std::sync::{Arc, Mutex, PoisonError};

use everstep_store::Error;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connect::{CONNECT, Place, STANDBY, leads_to, not_connected};

/// Connections made as they are needed, up to a limit, and kept.
#[derive(Debug)]
pub(crate) struct Appenders {
    options: PgConnectOptions,
    idle: Mutex<Vec<PgConnection>>,
    permits: Arc<Semaphore>,
}

/// A connection for one append. One that is dropped instead of given back is closed.
#[derive(Debug)]
pub(crate) struct Appender {
    pub(crate) connection: PgConnection,
    _permit: OwnedSemaphorePermit,
}

impl Appenders {
    pub(crate) fn new(options: PgConnectOptions, limit: u32) -> Self {
        let permits = Arc::new(Semaphore::new(usize::try_from(limit.max(1)).unwrap_or(1)));
        Self { options, idle: Mutex::default(), permits }
    }

    /// A connection; waits while all are in use.
    ///
    /// # Errors
    /// As [`before`]: nothing was sent.
    pub(crate) async fn take(&self) -> Result<Appender, Error> {
        let busy = || Error::Unavailable("all connections to Postgres are busy".to_owned());
        let permit = tokio::time::timeout(CONNECT, Arc::clone(&self.permits).acquire_owned());
        let permit = permit.await.map_err(|_| busy())?.map_err(|_| busy())?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => tokio::time::timeout(CONNECT, self.connect())
                .await
                .map_err(|_| Error::Unavailable(format!("Postgres did not answer within {CONNECT:?}")))?
                .map_err(|e| match e {
                    exhausted @ Error::Exhausted(_) => exhausted,
                    // Whatever keeps it from connecting is not the fault of what is to be appended.
                    other => Error::Unavailable(other.to_string()),
                })?,
        };
        Ok(Appender { connection, _permit: permit })
    }

    async fn connect(&self) -> Result<PgConnection, Error> {
        let mut connection = PgConnection::connect_with(&self.options).await.map_err(not_connected)?;
        match leads_to(&mut connection).await? {
            Place::Primary => Ok(connection),
            Place::Standby => Err(Error::Unavailable(STANDBY.to_owned())),
        }
    }

    /// Keeps a connection on which all went well.
    pub(crate) fn give_back(&self, appender: Appender) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(appender.connection);
    }

    /// Closes a connection on which something failed: whatever state it is in, nobody else gets it. When the
    /// server may be gone, the idle ones go as well, so that it costs one append and not one each.
    pub(crate) async fn discard(&self, appender: Appender, error: &Error) {
        if matches!(error, Error::OutcomeUnknown(_) | Error::Unavailable(_)) {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let _ = appender.connection.close_hard().await;
    }
}
