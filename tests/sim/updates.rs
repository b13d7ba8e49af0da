//! Updates in the world: somebody asks runs for them, workers agree, and each acceptance is held against who agreed to it,
//! and after which event.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{
    Actor, AskId, Command, CommandBody, CommandId, Duration, Event, EventBody, Payload, RunId, Seq,
    UpdateOutcome,
};
use everstep_engine::node::Input;
use everstep_engine::{Error, Said, WorkerIn};
use everstep_tests::program::{REFUSED, UPDATE_NAME, agrees};
use uuid::Uuid;

use crate::check::Watched;
use crate::verdict::Totals;
use crate::world::{Coming, World};

/// How long somebody waits for the code to agree.
const WAIT: Duration = Duration::from_secs(5);
/// Runs are asked so often, on average.
const EVERY_US: u64 = 1_500_000;
/// From then on nobody asks for updates: what is lost has to be found without them.
const LAST_US: u64 = 50_000_000;
/// Ids of one run's updates: few, so that some are asked for again.
const IDS: u64 = 4;
/// The share of updates that somebody asks for which the code does not agree to.
const REFUSED_SHARE: f64 = 0.2;
/// The share of those that a client asks for, too.
const REPEATED_SHARE: f64 = 0.3;

/// What is known of all updates.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    asked: BTreeMap<u64, (RunId, String)>,
    questions: BTreeMap<AskId, (RunId, String)>,
    /// After which event the code of which run has agreed to which update.
    agreed: BTreeSet<(RunId, String, Seq)>,
    acked: BTreeMap<(RunId, String), Seq>,
}

impl Updates {
    /// An event about an update: it follows from what the code said, and only once. `open` are the updates of the run
    /// that had no answer before it.
    pub(crate) fn check(
        &self,
        totals: &mut Totals,
        (run, watched): (RunId, &Watched),
        event: &Event,
        open: &[Seq],
    ) -> Result<(), String> {
        match &event.body {
            EventBody::UpdateAccepted { update_id, .. } => {
                totals.updates += 1;
                let seen = event.seq - 1;
                if !agrees(update_id) {
                    return Err(format!("update {update_id} was accepted, and no code agrees to it"));
                }
                if !self.agreed.contains(&(run, update_id.clone(), seen)) {
                    return Err(format!(
                        "update {update_id} was accepted, and no code has agreed to it after event {seen}"
                    ));
                }
            }
            EventBody::UpdateCompleted { accepted, update_id, outcome } => {
                totals.updates_answered += 1;
                let answer = UpdateOutcome::Completed(watched.update_answer(update_id));
                if *outcome != answer {
                    return Err(format!("update {update_id} was answered {outcome:?}, not {answer:?}"));
                }
                if !open.contains(accepted) {
                    return Err(format!("event {accepted} accepted no update that waits for an answer"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn command(run: RunId, id: &str) -> Command {
    let input = Payload::json(format!("\"{id}\""));
    let (update_id, name) = (id.to_owned(), UPDATE_NAME.to_owned());
    let number = id
        .bytes()
        .fold(u128::from(run.as_bytes()[15]), |n, byte| (n << 7 ^ u128::from(byte)) & (u128::MAX >> 32));
    Command {
        id: CommandId::from_uuid(Uuid::from_u128(number | (0xadd << 100))),
        actor: Actor::Client("sim".to_owned()),
        body: CommandBody::AcceptUpdate { update_id, name, input, seen: 0 },
    }
}

impl World {
    /// Somebody wants something of some run's code.
    pub(crate) fn somebody_updates(&mut self) {
        if self.us() < LAST_US {
            let next = self.us() + self.dice.below(2 * EVERY_US);
            self.at(next, Coming::Update);
        }
        let alive = self.alive();
        // Not a run that waits for a worker: to find it is the sweep's work, and an update would do it instead.
        let goes_on = |w: &Watched| w.is_open() && !w.run.needs_worker();
        let open: Vec<RunId> = self.watched.iter().filter(|(_, w)| goes_on(w)).map(|(run, _)| *run).collect();
        if alive.is_empty() || open.is_empty() {
            return;
        }
        let node = alive[self.dice.below(alive.len() as u64) as usize];
        let run = open[self.dice.below(open.len() as u64) as usize];
        let id = self.some_update(run);
        self.ask_update(node, (run, id));
    }

    /// One of a few, so that some are asked for again: also some that a client asks for, too.
    fn some_update(&mut self, run: RunId) -> String {
        let planned = self.watched.get(&run).map(Watched::planned_updates).unwrap_or_default();
        let number = self.dice.below(IDS);
        if self.dice.chance(REFUSED_SHARE) {
            return format!("no-{number}");
        }
        let again = self.dice.chance(REPEATED_SHARE);
        let at = self.dice.below(planned.len() as u64) as usize;
        planned.get(at).filter(|_| again).cloned().unwrap_or_else(|| format!("u{number}"))
    }

    /// A client asks for an update that the run's program waits for.
    pub(crate) fn client_updates(&mut self, client: usize, node: usize, update: (RunId, String)) {
        self.ask_update(node, update);
        if self.hit(self.rates.client_dies) {
            self.totals.clients_died += 1;
            self.clients[client].die();
        }
    }

    fn ask_update(&mut self, node: usize, (run, id): (RunId, String)) {
        let request = self.request();
        let ask = AskId::from_uuid(Uuid::from_u128(u128::from(request) | (0xa5c << 100)));
        let command = Box::new(command(run, &id));
        self.updates.asked.insert(request, (run, id.clone()));
        self.updates.questions.insert(ask, (run, id));
        self.feed(node, Input::Update { request, ask, run, command, wait: WAIT });
        let life = self.nodes[node].life;
        let input = Box::new(Input::AskOver(ask));
        self.at(self.us() + WAIT.as_micros(), Coming::ToNode { node, life, input });
    }

    /// What a worker says to the question whether its code agrees.
    pub(crate) fn note_agreed(&mut self, message: &WorkerIn) {
        if let WorkerIn::Answer { ask, seq, said: Said::Passed } = message
            && let Some((run, id)) = self.updates.questions.get(ask)
        {
            self.updates.agreed.insert((*run, id.clone(), *seq));
        }
    }

    /// Somebody is told that an update is accepted.
    pub(crate) fn update_accepted(&mut self, request: u64, seq: Seq) {
        let Some((run, id)) = self.updates.asked.remove(&request) else { return };
        let event = self.store.truth().read_events_sync(run, seq - 1, 1).pop().map(|e| e.body);
        if !matches!(&event, Some(EventBody::UpdateAccepted { update_id, .. }) if *update_id == id) {
            self.fail(&format!(
                "update {id} of run {run} was acknowledged with event {seq}, which is {event:?}"
            ));
        }
        if let Some(before) =
            self.updates.acked.insert((run, id.clone()), seq).filter(|before| *before != seq)
        {
            self.fail(&format!("update {id} of run {run} was acknowledged with events {before} and {seq}"));
        }
        self.client_updated(&id, false);
    }

    /// The client that plans an update, if one does, need not ask for it again.
    fn client_updated(&mut self, id: &str, too_late: bool) {
        let Some(client) = self.clients.iter_mut().find(|client| client.plans(id)) else { return };
        if let Err(problem) = client.updated(id, too_late) {
            self.fail(&problem);
        }
    }

    /// Somebody is told that an update is not accepted. False when the request was another one.
    pub(crate) fn update_refused(&mut self, request: u64, result: &Result<(), Error>) -> bool {
        let Some((run, id)) = self.updates.asked.remove(&request) else { return false };
        match result {
            Err(Error::Rejected(everstep_core::Rejection::RunClosed { .. })) => {
                if self.updates.acked.contains_key(&(run, id.clone())) {
                    self.fail(&format!("update {id} of run {run} was acknowledged once and is unknown now"));
                }
                self.client_updated(&id, true);
            }
            Err(Error::UpdateRejected { kind, .. }) if kind == REFUSED && !agrees(&id) => {
                self.totals.updates_refused += 1;
                let asked = command(run, &id).id;
                let history = self.store.truth().read_events_sync(run, 0, usize::MAX);
                if history.iter().any(|event| event.command_id == asked) {
                    self.fail(&format!(
                        "update {id} of run {run} was refused, and has left something behind"
                    ));
                }
            }
            Err(
                Error::Contention { .. }
                | Error::NoWorker { .. }
                | Error::NoAnswer
                | Error::Overloaded
                | Error::Stopping
                | Error::Store(_),
            ) => {}
            // What its code says is yes; only those who would have said it were lost, one after the other.
            Err(Error::UpdateRejected { kind, .. }) if kind == "WorkerLost" => {}
            other => self.fail(&format!("update {id} of run {run}: {other:?}")),
        }
        true
    }

    /// At the end: what was acknowledged is there once, and answered unless its run ended first.
    pub(crate) fn check_updates(&self) {
        for ((run, id), seq) in &self.updates.acked {
            let history = self.store.truth().read_events_sync(*run, 0, usize::MAX);
            let accepted: Vec<Seq> = history
                .iter()
                .filter(|e| matches!(&e.body, EventBody::UpdateAccepted { update_id, .. } if update_id == id))
                .map(|e| e.seq)
                .collect();
            let answers = history.iter().filter(
                |e| matches!(&e.body, EventBody::UpdateCompleted { update_id, .. } if update_id == id),
            );
            let ended = history.last().is_some_and(|e| e.body.is_terminal());
            if accepted != [*seq] || answers.count() > 1 || !ended {
                self.fail(&format!(
                    "update {id} of run {run} was accepted with events {accepted:?}, not {seq}"
                ));
            }
        }
    }
}
