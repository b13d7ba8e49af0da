//! Attempts that fail and films that nobody wants; no server is needed for it.

use std::sync::{Mutex, PoisonError};

use everstep::testing::{Error, Mock, Scenario, SimulationFailed, TestEnv, simulate};

use super::*;

/// Notes the parts that it is asked for, and breaks once.
struct Desk {
    asked: Mutex<Vec<u32>>,
    breaks_at: Option<u32>,
}

impl Encoder for Desk {
    async fn make(&self, _: &Film, part: u32) -> Result<(), StepError> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !asked.contains(&part);
        asked.push(part);
        if first && self.breaks_at == Some(part) {
            return Err(StepError::new("Broken", "out of film"));
        }
        Ok(())
    }
}

fn env(desk: &Arc<Desk>) -> TestEnv {
    let desk = Arc::clone(desk);
    TestEnv::new()
        .register(WORKFLOW, publish)
        .register_step::<Transcode, _, _>(move |step, film| transcode(step, Arc::clone(&desk), film))
}

fn desk(breaks_at: Option<u32>) -> Arc<Desk> {
    Arc::new(Desk { asked: Mutex::default(), breaks_at })
}

fn film() -> Film {
    Film { name: "Metropolis".to_owned(), parts: 5 }
}

#[tokio::test]
async fn the_next_attempt_goes_on_behind_the_last_heartbeat() -> Result<(), Error> {
    let desk = desk(Some(3));
    let mut env = env(&desk);
    let run = env.start(WORKFLOW, &film()).await?;
    assert_eq!(env.result::<u32>(run).await?, 5);
    assert_eq!(*desk.asked.lock().unwrap_or_else(PoisonError::into_inner), [0, 1, 2, 3, 3, 4]);
    Ok(())
}

#[tokio::test]
async fn an_attempt_that_is_too_slow_is_tried_again() -> Result<(), Error> {
    let day = Duration::from_secs(24 * 3_600);
    let mut env = env(&desk(None)).mock(Transcode::NAME, Mock::returns(5).takes(day));
    env.start(WORKFLOW, &film()).await?;
    env.skip(day / 2).await?;
    assert_eq!(env.effects().of(Transcode::NAME).len(), 2, "8 hours are over");
    Ok(())
}

#[tokio::test]
async fn no_crash_keeps_a_film_from_being_made() -> Result<(), SimulationFailed> {
    simulate(|| env(&desk(Some(2))), Scenario::new(WORKFLOW, &film()))
        .seeds(0..100)
        .same_result()
        .run()
        .await?;
    Ok(())
}
