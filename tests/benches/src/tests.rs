//! The counted paths do what they are counted for.

use everstep_core::RunStatus;

use super::*;

#[test]
fn the_history_has_every_step_and_folds_to_the_run() -> anyhow::Result<()> {
    let Script { run, history, .. } = decide_all(script()?)?;
    assert_eq!(history.len(), STEPS as usize + 2);
    let folded = fold(&history)?;
    assert_eq!((folded.seq(), folded.status()), (u64::from(STEPS) + 2, RunStatus::Running));
    assert_eq!(folded, run);
    Ok(())
}

#[test]
fn rows_hold_the_same_history() -> anyhow::Result<()> {
    let history = history()?;
    assert_eq!(decode(encode(&history))?, history);
    Ok(())
}

#[test]
fn the_code_takes_all_of_the_history_and_nothing_else() -> anyhow::Result<()> {
    let mut history = history()?;
    assert_eq!(replay(&history)?, u64::from(STEPS) + 2);
    if let Some(EventBody::StepCompleted { name, .. }) = history.last_mut().map(|event| &mut event.body) {
        "another".clone_into(name);
    }
    assert!(replay(&history).is_err(), "a step of another name was taken");
    Ok(())
}
