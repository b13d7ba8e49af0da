//! What others carry out for a program, as the model has it: asked for once by whoever owns the run, recorded by one
//! event and ended by another.

use std::panic::Location;

use everstep_core::replay::OpKind;
use everstep_core::{
    Attribute, ChildOutcome, ChildScheduled, CommitCommand, EventBody, ExternalAction, ExternalRequested,
    ExternalTarget, Failure, Notes, NotesChange, OpId, ParentClose, Payload, Resolution, ReusePolicy, RunId,
    StepScheduled,
};
use everstep_tests::program::{
    self, By, QUEUED_STEP, QueuedStep, SIGNAL_NAME, Source, Tell, UPSERTED, failure_line, nobody, untold_line,
};

use super::{Core, Operation, Waits, line_of};

/// An operation that is asked for with one command.
pub(super) struct CommandOp {
    wanted: Option<CommitCommand>,
    /// What is asked for when the code lets go of it.
    on_drop: Option<CommitCommand>,
    /// The activation in which it was built; `None` once nobody ever wanted it.
    built: Option<u64>,
    emitted: bool,
    recorded: bool,
    dropped: bool,
    drop_emitted: bool,
    /// Of a child: its run, and whether its start was told.
    run: Option<RunId>,
    started: bool,
    never_began: bool,
    ended: Option<Result<Payload, Failure>>,
}

impl CommandOp {
    /// What the server has to be told now: once per owner, and never what is recorded.
    pub(super) fn next(&mut self) -> Option<CommitCommand> {
        self.built?;
        let known = self.emitted || self.recorded;
        if self.ended.is_some() {
            return None;
        }
        if self.dropped {
            let first = known && !std::mem::replace(&mut self.drop_emitted, true);
            return self.on_drop.clone().filter(|_| first);
        }
        if known {
            return None;
        }
        self.emitted = true;
        self.wanted.clone()
    }

    /// Its end is somebody else's, and may come at any time.
    pub(super) fn is_awaited(&self) -> bool {
        let said = matches!(self.wanted, Some(CommitCommand::Upsert { .. }));
        self.ended.is_none() && !said && (self.emitted || self.recorded)
    }
}

/// A child that is told something, on its way.
pub(super) struct Telling {
    tell: Tell,
    child: OpId,
    stage: Stage,
    lines: Vec<String>,
}

enum Stage {
    Starting,
    Sending(Vec<OpId>),
    Ending,
    Late(OpId),
}

impl Telling {
    /// Everything that it holds.
    pub(super) fn ops(&self) -> impl Iterator<Item = OpId> {
        let sent = match &self.stage {
            Stage::Starting | Stage::Ending => Vec::new(),
            Stage::Sending(ops) => ops.clone(),
            Stage::Late(op) => vec![*op],
        };
        std::iter::once(self.child).chain(sent)
    }

    /// What it waits for now.
    pub(super) fn waits(&self) -> Vec<Waits> {
        match &self.stage {
            Stage::Starting => vec![Waits::Start(self.child)],
            Stage::Ending => vec![Waits::Child(self.child)],
            Stage::Sending(ops) => ops.iter().map(|op| Waits::External(*op)).collect(),
            Stage::Late(op) => vec![Waits::External(*op)],
        }
    }
}

impl Core {
    fn command(&mut self, id: OpId) -> Option<&mut CommandOp> {
        match self.operations.get_mut((id.0 as usize).checked_sub(1)?) {
            Some(Operation::Command(op)) => Some(op),
            _ => None,
        }
    }

    pub(super) fn has_ended(&self, id: OpId) -> bool {
        let op = (id.0 as usize).checked_sub(1).and_then(|at| self.operations.get(at));
        matches!(op, Some(Operation::Command(op)) if op.ended.is_some())
    }

    /// What an event says of such an operation, if it is about one.
    pub(super) fn note_command(&mut self, body: &EventBody) {
        match body {
            EventBody::StepScheduled(scheduled) => self.recorded(scheduled.step, |_| {}),
            EventBody::ExternalRequested(requested) => self.recorded(requested.op, |_| {}),
            EventBody::ChildScheduled(scheduled) => {
                self.recorded(scheduled.child, |op| op.run = Some(scheduled.run_id));
            }
            EventBody::ChildStarted { child, .. } => self.recorded(*child, |op| op.started = true),
            EventBody::StepCancelRequested { step } => self.recorded(*step, |op| op.drop_emitted = true),
            EventBody::AttributesUpserted { op, .. } => self.ended(*op, Ok(Payload::default())),
            EventBody::StepCompleted { step, result, .. } => self.ended(*step, Ok(result.clone())),
            EventBody::StepFailed { step, failure, retry_at: None, .. } => {
                self.ended(*step, Err(failure.clone()));
            }
            EventBody::StepResolved(said) => match &said.resolution {
                Resolution::Completed(result) => self.ended(said.step, Ok(result.clone())),
                Resolution::Failed(failure) => self.ended(said.step, Err(failure.clone())),
                Resolution::Retry => {}
            },
            EventBody::ChildClosed(closed) => {
                let ended = match &closed.outcome {
                    ChildOutcome::Completed(result) => Ok(result.clone()),
                    ChildOutcome::Ended { failure, .. } | ChildOutcome::NotStarted(failure) => {
                        Err(failure.clone())
                    }
                };
                let never_began = matches!(closed.outcome, ChildOutcome::NotStarted(_));
                self.recorded(closed.child, |op| op.never_began = never_began);
                self.ended(closed.child, ended);
            }
            EventBody::ExternalResolved { op, failure, .. } => {
                self.ended(*op, failure.clone().map_or(Ok(Payload::default()), Err));
            }
            _ => {}
        }
    }

    fn recorded(&mut self, id: OpId, note: impl FnOnce(&mut CommandOp)) {
        if let Some(op) = self.command(id) {
            op.recorded = true;
            note(op);
        }
    }

    fn ended(&mut self, id: OpId, ended: Result<Payload, Failure>) {
        self.recorded(id, |op| op.ended = Some(ended));
    }

    /// Nobody waits for it any more.
    pub(super) fn drop_command(&mut self, id: OpId) {
        let activation = self.activation;
        let Some(op) = self.command(id) else { return };
        op.dropped = true;
        if op.built == Some(activation) && !op.emitted && !op.recorded {
            // Built and dropped between two events: nobody ever asked for it.
            op.built = None;
        } else if op.ended.is_none() {
            self.fresh.push(id);
        }
    }

    #[track_caller]
    fn begin_command(
        &mut self,
        kind: OpKind,
        wanted: impl FnOnce(OpId) -> (CommitCommand, Option<CommitCommand>),
    ) -> OpId {
        let id = self.replay.build(kind, Location::caller());
        let (wanted, on_drop) = wanted(id);
        self.operations.push(Operation::Command(Box::new(CommandOp {
            wanted: Some(wanted),
            on_drop,
            built: Some(self.activation),
            emitted: false,
            recorded: false,
            dropped: false,
            drop_emitted: false,
            run: None,
            started: false,
            never_began: false,
            ended: None,
        })));
        self.fresh.push(id);
        id
    }

    pub(super) fn begin_child(
        &mut self,
        (source, workflow_id): (Source, &str),
        abandoned: bool,
        report_start: bool,
    ) -> OpId {
        let kind = OpKind::Child(program::WORKFLOW_TYPE.to_owned());
        self.begin_command(kind, |child| {
            let wanted = ChildScheduled {
                child,
                run_id: RunId::from_uuid(uuid::Uuid::nil()),
                workflow_type: program::WORKFLOW_TYPE.to_owned(),
                workflow_id: workflow_id.to_owned(),
                task_queue: String::new(),
                input: Payload::json(serde_json::to_vec(&source).unwrap_or_default()),
                run_timeout: None,
                retry: None,
                reuse: ReusePolicy::default(),
                on_parent_close: if abandoned { ParentClose::Abandon } else { ParentClose::Terminate },
                report_start,
                notes: Notes::default(),
            };
            (CommitCommand::StartChild(Box::new(wanted)), None)
        })
    }

    pub(super) fn begin_queued(&mut self, queued: &QueuedStep) -> OpId {
        let options = queued.options(self.program.source.profile);
        let input = Payload::json(serde_json::to_vec(queued).unwrap_or_default());
        self.begin_command(OpKind::Queued(QUEUED_STEP.to_owned()), |step| {
            let scheduled = StepScheduled { step, name: QUEUED_STEP.to_owned(), input, options };
            (CommitCommand::ScheduleStep(Box::new(scheduled)), Some(CommitCommand::CancelStep { step }))
        })
    }

    pub(super) fn begin_upsert(&mut self, n: i64) {
        self.begin_command(OpKind::Upsert, |op| {
            let mut notes = NotesChange::default();
            notes.attributes.insert(UPSERTED.to_owned(), Some(Attribute::Int(n)));
            (CommitCommand::Upsert { op, notes: Box::new(notes) }, None)
        });
    }

    fn begin_external(&mut self, target: ExternalTarget, action: ExternalAction) -> OpId {
        self.begin_command(OpKind::External, |op| {
            let requested = ExternalRequested { op, target, action };
            (CommitCommand::RequestExternal(Box::new(requested)), None)
        })
    }

    pub(super) fn begin_nobody(&mut self, nonce: &str) -> OpId {
        self.begin_external(ExternalTarget::Workflow(nobody(nonce)), signal(nonce))
    }

    pub(super) fn begin_tell(&mut self, tell: Tell) -> Telling {
        let named = if tell.by == By::Workflow { tell.workflow_id() } else { String::new() };
        let child = self.begin_child((tell.source, &named), false, true);
        Telling { tell, child, stage: Stage::Starting, lines: Vec::new() }
    }

    pub(super) fn poll_tell(&mut self, telling: &mut Telling) -> Option<Vec<String>> {
        loop {
            match &telling.stage {
                Stage::Starting => {
                    let op = self.command(telling.child)?;
                    if op.never_began {
                        return Some(vec![self.child_line(telling.child, &telling.tell.nonce)?]);
                    }
                    let run = op.run.filter(|_| op.started || op.ended.is_some())?;
                    telling.stage = Stage::Sending(self.begin_messages(&telling.tell, run));
                }
                Stage::Sending(ops) => {
                    if !ops.iter().all(|op| self.command(*op).is_some_and(|op| op.ended.is_some())) {
                        return None;
                    }
                    let failed = ops.iter().filter_map(|op| self.untold_line(*op, &telling.tell.nonce)?);
                    telling.lines = failed.collect();
                    telling.stage = Stage::Ending;
                }
                Stage::Ending => {
                    let line = self.child_line(telling.child, &telling.tell.nonce)?;
                    telling.lines.push(line);
                    let run = self.command(telling.child)?.run.filter(|_| telling.tell.late);
                    let Some(run) = run else { return Some(std::mem::take(&mut telling.lines)) };
                    telling.stage =
                        Stage::Late(self.begin_external(ExternalTarget::Run(run), signal("late")));
                }
                Stage::Late(op) => {
                    let line = self.untold_line(*op, &telling.tell.nonce)?;
                    telling.lines.extend(line);
                    return Some(std::mem::take(&mut telling.lines));
                }
            }
        }
    }

    fn begin_messages(&mut self, tell: &Tell, run: RunId) -> Vec<OpId> {
        let target = match tell.by {
            By::Run => ExternalTarget::Run(run),
            By::Workflow => ExternalTarget::Workflow(tell.workflow_id()),
        };
        let signals = tell.source.program().predict().signals;
        let mut actions: Vec<ExternalAction> = signals.iter().map(|planned| signal(&planned.id)).collect();
        if tell.source.waits_for_stop() {
            actions.push(ExternalAction::Cancel { reason: "as told".to_owned() });
        }
        actions.into_iter().map(|action| self.begin_external(target.clone(), action)).collect()
    }

    /// The line of a child that has ended.
    pub(super) fn child_line(&mut self, id: OpId, nonce: &str) -> Option<String> {
        Some(match self.command(id)?.ended.as_ref()? {
            Ok(result) => {
                let output: Vec<String> = serde_json::from_slice(&result.data).unwrap_or_default();
                program::child_line(nonce, &output)
            }
            Err(failure) => program::no_child_line(nonce, &failure.kind),
        })
    }

    /// The line of a queued step that has ended.
    pub(super) fn queued_line(&mut self, id: OpId) -> Option<String> {
        Some(match self.command(id)?.ended.as_ref()? {
            Ok(result) => line_of(result),
            Err(failure) => failure_line(&failure.kind, &failure.message),
        })
    }

    /// The line of a message whose end is known: none when it arrived.
    pub(super) fn untold_line(&mut self, id: OpId, nonce: &str) -> Option<Option<String>> {
        let ended = self.command(id)?.ended.as_ref()?;
        Some(ended.as_ref().err().map(|failure| untold_line(nonce, &failure.kind)))
    }
}

fn signal(text: &str) -> ExternalAction {
    let input = Payload::json(serde_json::Value::from(text).to_string());
    ExternalAction::Signal { name: SIGNAL_NAME.to_owned(), input }
}
