//! `everstep migrate`.

use crate::fail::Fail;
use crate::node::Database;
use crate::out;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database: postgres://USER@HOST/NAME (a SQLite file migrates itself when it is opened)
    #[arg(long, env = "EVERSTEP_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Database,
}

pub(crate) async fn run(args: Args) -> Result<(), Fail> {
    match args.database_url {
        Database::Sqlite(path) => {
            Database::Sqlite(path).open(false).await?;
            out::note("the file is at this version's schema");
        }
        Database::Postgres(url) => {
            let report = everstep_store_postgres::migrate(&url).await?;
            out::note(&format!("{report}"));
        }
    }
    Ok(())
}
