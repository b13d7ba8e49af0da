//! Clients: each starts a run, signals it, and keeps asking until it is answered.

use everstep_core::{
    CommandBody, CommandId, ConflictPolicy, Duration, Payload, Rejection, ReusePolicy, RunId, StartRun,
    TraceContext,
};
use everstep_engine::{Error, Started};
use uuid::Uuid;

use crate::program;

/// One client and the run it cares for.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) index: usize,
    pub(crate) program: u64,
    pub(crate) run: Option<RunId>,
    /// Signals that were acknowledged.
    pub(crate) acked: usize,
    pub(crate) signals: usize,
    pub(crate) terminate: bool,
    pub(crate) terminated: bool,
    pub(crate) cancel: bool,
    pub(crate) canceled: bool,
}

/// What a client asks next.
pub(crate) enum Ask {
    Start(Box<StartRun>),
    Command { run: RunId, id: CommandId, body: CommandBody },
    Nothing,
}

impl Client {
    pub(crate) fn new(index: usize, program: u64, terminate: bool, cancel: bool) -> Self {
        let signals = program::signals(&program::generate(program));
        Self {
            index,
            program,
            run: None,
            acked: 0,
            signals,
            terminate,
            terminated: false,
            cancel,
            canceled: false,
        }
    }

    pub(crate) fn ask(&self) -> Ask {
        let Some(run) = self.run else {
            return Ask::Start(Box::new(StartRun {
                namespace: "default".into(),
                workflow_id: format!("w{}", self.index),
                workflow_type: format!("p{}", self.program),
                task_queue: "default".into(),
                input: Payload::default(),
                request_id: format!("start-{}", self.index),
                run_timeout: Some(Duration::from_secs(100_000)),
                reuse: ReusePolicy::Reject,
                conflict: ConflictPolicy::Fail,
                trace: TraceContext::default(),
                identity: "sim".into(),
            }));
        };
        let command = |n: usize, body| Ask::Command { run, id: self.command_id(n), body };
        if self.cancel && !self.canceled {
            return command(1_000, CommandBody::Cancel { reason: "sim".into() });
        }
        if self.acked < self.signals {
            let signal_id = format!("{}-{}", self.index, self.acked);
            let body = CommandBody::Signal { name: "go".into(), signal_id, input: Payload::default() };
            return command(self.acked, body);
        }
        if self.terminate && !self.terminated {
            return command(2_000, CommandBody::Terminate { reason: "sim".into() });
        }
        Ask::Nothing
    }

    fn command_id(&self, n: usize) -> CommandId {
        CommandId::from_uuid(Uuid::from_u128(((self.index as u128) << 64) | n as u128 | (0xc11e << 100)))
    }

    pub(crate) fn started(&mut self, result: Result<Started, Error>) {
        match result {
            Ok(started) => {
                if let Some(before) = self.run {
                    assert_eq!(before, started.run_id, "one request id, two runs");
                }
                self.run = Some(started.run_id);
            }
            Err(error) => retryable(&error),
        }
    }

    pub(crate) fn answered(&mut self, result: Result<(), Error>) {
        match result {
            Ok(()) if self.cancel && !self.canceled => self.canceled = true,
            Ok(()) if self.acked < self.signals => self.acked += 1,
            Ok(()) => self.terminated = true,
            // It may end before the request reaches it: a cancel or terminate then has nothing to do.
            Err(Error::Rejected(Rejection::RunClosed { .. })) => {
                if self.cancel && !self.canceled {
                    self.canceled = true;
                } else {
                    assert!(self.acked == self.signals, "a run that waits for signals has ended");
                    self.terminated = true;
                }
            }
            Err(error) => retryable(&error),
        }
    }
}

fn retryable(error: &Error) {
    assert!(
        matches!(error, Error::Store(_) | Error::Contention { .. } | Error::Stopping),
        "a good request was refused: {error}"
    );
}
