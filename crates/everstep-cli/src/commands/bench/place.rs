//! Databases that a bench makes for itself, and removes.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};
use uuid::Uuid;

use crate::fail::Fail;
use crate::node::Database;

/// Databases that were made and not removed yet.
static MADE: Mutex<Vec<(String, PgConnectOptions)>> = Mutex::new(Vec::new());

fn made() -> MutexGuard<'static, Vec<(String, PgConnectOptions)>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bad(error: sqlx::Error) -> Fail {
    Fail::refused(format!("database of the bench: {error}"))
}

/// A database of its own.
pub(super) struct Place {
    pub(super) database: Database,
    _folder: Option<Folder>,
}

/// Removed with this value, after the processes that write into it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Place {
    /// A Postgres database without the schema.
    pub(super) async fn empty(server: &str) -> Result<Self, Fail> {
        Ok(Self { database: Database::Postgres(fresh_database(server).await?), _folder: None })
    }

    /// On the Postgres server, or else a SQLite file, which gets its schema from the first that opens it.
    pub(super) async fn make(server: Option<&Database>) -> Result<Self, Fail> {
        if let Some(Database::Postgres(server)) = server {
            let place = Self::empty(server).await?;
            everstep_store_postgres::migrate(&place.url()).await?;
            return Ok(place);
        }
        let folder = std::env::temp_dir().join(format!("everstep-bench-{}", Uuid::new_v4()));
        std::fs::create_dir_all(&folder).map_err(|e| Fail::refused(format!("{}: {e}", folder.display())))?;
        Ok(Self { database: Database::Sqlite(folder.join("bench.db")), _folder: Some(Folder(folder)) })
    }

    /// What `--database-url` takes.
    pub(super) fn url(&self) -> String {
        match &self.database {
            Database::Sqlite(path) => format!("sqlite:{}", path.display()),
            Database::Postgres(url) => url.clone(),
        }
    }

    /// Brings it to how a database is that grew slowly: looked over, and written out.
    pub(super) async fn settle(&self) -> Result<(), Fail> {
        let Database::Postgres(url) = &self.database else { return Ok(()) };
        let mut connection = connect(url).await?;
        sqlx::query("VACUUM (ANALYZE)").execute(&mut connection).await.map_err(bad)?;
        // Only some users may; the others' figures have its cost in them.
        let _ = sqlx::query("CHECKPOINT").execute(&mut connection).await;
        Ok(())
    }

    /// Its size on disk.
    pub(super) async fn bytes(&self) -> Result<Option<u64>, Fail> {
        Ok(match &self.database {
            Database::Sqlite(path) => std::fs::metadata(path).ok().map(|file| file.len()),
            Database::Postgres(url) => {
                let size: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
                    .fetch_one(&mut connect(url).await?)
                    .await
                    .map_err(bad)?;
                u64::try_from(size).ok()
            }
        })
    }

    pub(super) async fn remove(self) -> Result<(), Fail> {
        let Database::Postgres(url) = &self.database else { return Ok(()) };
        let options = PgConnectOptions::from_str(url).map_err(bad)?;
        let name = options.get_database().unwrap_or_default();
        let found = {
            let mut made = made();
            made.iter().position(|(n, _)| n == name).map(|at| made.swap_remove(at))
        };
        match found {
            Some((name, server)) => drop_database(&name, &server).await,
            None => Ok(()),
        }
    }
}

async fn connect(url: &str) -> Result<PgConnection, Fail> {
    PgConnectOptions::from_str(url).map_err(bad)?.connect().await.map_err(bad)
}

/// The URL of an empty database on the server that a URL names.
async fn fresh_database(url: &str) -> Result<String, Fail> {
    let name = format!("bench_{}", Uuid::new_v4().simple());
    let server = PgConnectOptions::from_str(url).map_err(bad)?;
    let mut connection = server.connect().await.map_err(bad)?;
    // The name is made above: letters and digits only.
    let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create).execute(&mut connection).await.map_err(bad)?;
    made().push((name.clone(), server));
    let (base, query) = url.split_once('?').map_or((url, ""), |(base, query)| (base, query));
    let base = base.rsplit_once('/').map_or(base, |(base, _)| base);
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    Ok(format!("{base}/{name}{query}"))
}

/// Drops whatever databases are left.
pub(super) async fn remove_all() -> Result<(), Fail> {
    loop {
        let Some((name, server)) = made().pop() else { return Ok(()) };
        drop_database(&name, &server).await?;
    }
}

/// Whoever is still connected.
async fn drop_database(name: &str, server: &PgConnectOptions) -> Result<(), Fail> {
    let mut connection = server.connect().await.map_err(bad)?;
    let drop = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
    sqlx::query(drop).execute(&mut connection).await.map_err(bad)?;
    Ok(())
}
