//! F13: one write in ten meets another transaction: a serialization failure, or a deadlock.

use anyhow::ensure;
use everstep_tests::servers::require;

use super::world::{Plan, World, within};

const RUNS: u32 = 10;
/// A sequence counts what a rolled back transaction cannot.
const HARM: &str = "
    CREATE SEQUENCE harms;
    CREATE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF random() < 0.1 THEN
            IF nextval('harms') % 2 = 0 THEN
                RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';
            ELSE
                RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01';
            END IF;
        END IF;
        RETURN coalesce(NEW, OLD);
    END $$;
    CREATE TRIGGER harm BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION harm();
    CREATE TRIGGER harm BEFORE INSERT OR UPDATE OR DELETE ON runs FOR EACH ROW EXECUTE FUNCTION harm();
    CREATE TRIGGER harm BEFORE INSERT OR UPDATE OR DELETE ON timers FOR EACH ROW EXECUTE FUNCTION harm();
    CREATE TRIGGER harm BEFORE INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION harm();
    CREATE TRIGGER harm BEFORE INSERT OR UPDATE OR DELETE ON wakes FOR EACH ROW EXECUTE FUNCTION harm();
    CREATE TRIGGER harm BEFORE INSERT OR UPDATE OR DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION harm();";

#[tokio::test(flavor = "multi_thread")]
async fn serialization_failures_and_deadlocks_are_tried_again() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("conflicts in the database", async {
        let world = World::new(Plan { nodes: 2, ..Plan::default() }).await?;
        sqlx::raw_sql(HARM).execute(&world.truth.pool).await?;
        let (_here, _there) = (world.worker(0)?, world.worker(1)?);
        world.open_gate();
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.signal(&runs).await?;
        world.finish(&runs).await?;
        let harms = world.truth.count("SELECT last_value FROM harms").await?;
        ensure!(harms >= 10, "only {harms} conflicts");
        Ok(())
    })
    .await
}
