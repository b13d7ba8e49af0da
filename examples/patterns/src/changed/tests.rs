//! What each build makes of runs that another one began; no server is needed for it.

use everstep::RunId;
use everstep::testing::{History, ReplayError, Replayer, TestEnv};

use super::*;

type Tested = Result<(), Box<dyn std::error::Error>>;

fn order() -> Order {
    Order { id: "7".to_owned(), cents: 1_000 }
}

/// Runs of [`v1`]: one that waits for its confirmation, one that is charged, and one that has ended.
async fn recorded() -> Result<[History; 3], Box<dyn std::error::Error>> {
    let mut env = TestEnv::new().register(WORKFLOW, v1);
    let mut runs: Vec<RunId> = Vec::new();
    for signals in [&[][..], &["confirm"], &["confirm", "delivered"]] {
        let run = env.start(WORKFLOW, &order()).await?;
        for signal in signals {
            env.signal(run, signal, &()).await?;
        }
        runs.push(run);
    }
    assert_eq!(env.result::<Receipt>(runs[2]).await?, Receipt { goods: 1_000, fee: 0 });
    Ok([env.history(runs[0])?, env.history(runs[1])?, env.history(runs[2])?])
}

#[tokio::test]
async fn the_marked_change_fits_every_run() -> Tested {
    let replayer = Replayer::new().register(WORKFLOW, v2);
    for history in recorded().await? {
        replayer.check(&history)?;
    }
    Ok(())
}

#[tokio::test]
async fn the_unmarked_change_fits_only_runs_that_were_not_charged() -> Tested {
    let replayer = Replayer::new().register(WORKFLOW, v2_unmarked);
    let [waiting, charged, ended] = recorded().await?;
    replayer.check(&waiting)?;
    for history in [charged, ended] {
        let Err(ReplayError::Differs(difference)) = replayer.check(&history) else { panic!("{history}") };
        assert_eq!(difference.expected, "step 'charge' #1");
        assert_eq!(difference.produced, "step 'fee' #1");
        assert!(difference.source.contains("changed.rs"), "{difference}");
    }
    Ok(())
}

#[tokio::test]
async fn new_runs_pay_the_fee() -> Tested {
    let mut env = TestEnv::new().register(WORKFLOW, v2);
    let run = env.start(WORKFLOW, &order()).await?;
    env.signal(run, "confirm", &()).await?;
    env.signal(run, "delivered", &()).await?;
    assert_eq!(env.result::<Receipt>(run).await?, Receipt { goods: 1_000, fee: 250 });
    Ok(())
}
