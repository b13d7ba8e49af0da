//! The stream and the session behind it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use everstep_core::{Epoch, RunId};
use everstep_proto::api::worker_service_client::WorkerServiceClient;
use everstep_proto::api::{self, server_message, worker_message};
use everstep_proto::wire;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tonic::Code;

use super::Settings;
use super::asks::{self, Asks, Question};
use super::checks;
use super::lease::Lease;
use super::limits::StepLimits;
use super::outbox::{Frames, Outbox};
use super::run::{RunMessage, RunTask};
use super::steps::{self, Steps};
use crate::client::{pause, refused};
use crate::{ClientError, WorkerError};

/// How long a server may take to greet.
const WELCOME: Duration = Duration::from_secs(10);
/// Largest frame read.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

struct Held {
    epoch: Epoch,
    to_run: mpsc::UnboundedSender<RunMessage>,
    seen: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // What still runs belongs to a claim that is over.
        self.task.abort();
    }
}

struct Session {
    settings: Arc<Settings>,
    outbox: Arc<Outbox>,
    lease: Arc<Lease>,
    token: String,
    runs: HashMap<RunId, Held>,
    /// Histories that come in several messages.
    partial: HashMap<RunId, Vec<everstep_proto::history::Event>>,
    asks: Asks,
    steps: Steps,
    heartbeats: HashMap<u64, Instant>,
    next_heartbeat: u64,
    ended: mpsc::UnboundedSender<(RunId, Epoch)>,
    draining: bool,
}

enum Ended {
    /// Connect again with the token.
    Lost(String),
    /// Never connect again.
    Refused(ClientError),
    /// The worker was asked to stop, and has.
    Stopped,
}

/// Works until `stop`.
pub(super) async fn work(
    settings: Arc<Settings>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), WorkerError> {
    let mut stop = std::pin::pin!(stop);
    let (ended, mut ended_runs) = mpsc::unbounded_channel();
    let (outbox, lease) = (Arc::<Outbox>::default(), Arc::new(Lease::new()));
    let mut session = Session {
        steps: Steps::new(Arc::clone(&settings), Arc::clone(&outbox), Arc::clone(&lease)),
        outbox,
        lease,
        token: String::new(),
        runs: HashMap::new(),
        partial: HashMap::new(),
        asks: Asks::default(),
        heartbeats: HashMap::new(),
        next_heartbeat: 0,
        ended,
        draining: false,
        settings,
    };
    let mut tries = 0;
    loop {
        let began = Instant::now();
        let end = session.connect(stop.as_mut(), &mut ended_runs).await;
        session.outbox.close();
        match end {
            Ended::Stopped => return Ok(()),
            Ended::Refused(error) => return Err(error.into()),
            Ended::Lost(reason) => tracing::info!(reason, "stream lost, connecting again"),
        }
        tries = if began.elapsed() > Duration::from_secs(5) { 0 } else { tries + 1 };
        tokio::select! {
            biased;
            () = stop.as_mut() => return Ok(()),
            () = session.wait_out(pause(tries)) => {}
        }
    }
}

impl Session {
    /// Waits before the next try; ends what runs if the lease ends meanwhile.
    async fn wait_out(&mut self, pause: Duration) {
        tokio::time::sleep(pause).await;
        if self.lease.is_over() && !self.token.is_empty() {
            self.forget("the lease ended without a connection");
        }
    }

    /// The session is over: nothing that this worker holds is its own any more.
    fn forget(&mut self, reason: &str) {
        if !self.runs.is_empty() {
            tracing::warn!(reason, runs = self.runs.len(), "runs given up");
        }
        self.runs.clear();
        self.steps.forget();
        self.partial.clear();
        self.heartbeats.clear();
        self.token.clear();
        self.lease.end();
    }

    /// Runs may have been given up: the session that owns them is not taken up again, so that it ends and others
    /// get them.
    fn lapsed(&mut self) -> Ended {
        self.forget("the lease ended");
        Ended::Lost("the lease ended".to_owned())
    }

    async fn connect(
        &mut self,
        mut stop: std::pin::Pin<&mut (impl Future<Output = ()> + Send)>,
        ended: &mut mpsc::UnboundedReceiver<(RunId, Epoch)>,
    ) -> Ended {
        // What the lost stream left half sent comes again whole.
        self.partial.clear();
        self.asks.clear();
        let (to_stream, messages) = mpsc::unbounded_channel();
        let _ = to_stream.send(worker_message::Message::Hello(self.hello()));
        let hello_sent = Instant::now();
        let channel = self.settings.endpoint.connect_lazy();
        let mut service = WorkerServiceClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
        let opening = async {
            let mut stream = service.connect(Frames { messages, left_over: None }).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        };
        let opened = tokio::select! {
            biased;
            () = stop.as_mut() => return Ended::Stopped,
            opened = tokio::time::timeout(WELCOME, opening) => opened,
        };
        let (mut stream, first) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => return self.ended_by(status),
            Err(_) => return Ended::Lost("the server does not greet".to_owned()),
        };
        let Some(first) = first else { return Ended::Lost("the server closed the stream".to_owned()) };
        if let Err(end) = self.welcome(first, hello_sent, to_stream) {
            return end;
        }
        let mut heartbeat = tokio::time::interval(self.lease.length() / 3);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        let mut limits = self.settings.limits.watch();
        loop {
            tokio::select! {
                biased;
                () = stop.as_mut() => {
                    self.drain(&mut stream, ended).await;
                    return Ended::Stopped;
                }
                _ = heartbeat.tick() => {
                    if self.lease.is_over() {
                        return self.lapsed();
                    }
                    self.heartbeat();
                }
                Some((run, epoch)) = ended.recv() => self.run_ended(run, epoch),
                end = self.steps.next_end() => self.steps.ended(end),
                Ok(()) = limits.changed() => self.say_limits(),
                frame = stream.message() => match frame {
                    Ok(Some(frame)) => {
                        if let Err(end) = self.frame(frame) {
                            return end;
                        }
                    }
                    Ok(None) => return Ended::Lost("the server closed the stream".to_owned()),
                    Err(status) => return self.ended_by(status),
                },
            }
        }
    }

    fn hello(&self) -> api::Hello {
        let s = &self.settings;
        let (hosts_steps, limits) = (!s.steps.is_empty() && !s.check_only, s.limits.get());
        api::Hello {
            protocol_min: 1,
            protocol_max: 1,
            namespace: s.namespace.clone(),
            task_queues: s.task_queues.clone(),
            workflow_types: s.workflows.keys().cloned().collect(),
            worker: Some(everstep_proto::history::WorkerInfo {
                identity: s.identity.clone(),
                build_id: s.build_id.clone(),
            }),
            run_slots: if s.check_only || s.workflows.is_empty() { 0 } else { s.run_slots },
            session_token: self.token.clone(),
            held: self
                .runs
                .iter()
                .filter(|(_, held)| !held.task.is_finished())
                .map(|(run, held)| api::HeldRun {
                    run_id: run.to_string(),
                    epoch: held.epoch,
                    seen_seq: held.seen.load(Ordering::Acquire),
                })
                .collect(),
            check_only: s.check_only,
            compatible_builds: s.continues.clone(),
            pinned_workflow_types: s.pinned.iter().cloned().collect(),
            step_types: if hosts_steps { s.steps.keys().cloned().collect() } else { Vec::new() },
            step_slots: if hosts_steps { limits.slots } else { 0 },
            steps_per_second: limits.per_second,
            held_steps: self.steps.held(),
            capabilities: [asks::CAPABILITY, checks::CAPABILITY, steps::CAPABILITY]
                .into_iter()
                .filter(|&word| !s.check_only || word == checks::CAPABILITY)
                .filter(|&word| hosts_steps || word != steps::CAPABILITY)
                .map(str::to_owned)
                .collect(),
        }
    }

    fn welcome(
        &mut self,
        first: api::ConnectResponse,
        hello_sent: Instant,
        to_stream: mpsc::UnboundedSender<worker_message::Message>,
    ) -> Result<(), Ended> {
        let mut messages = first.messages.into_iter();
        let Some(server_message::Message::Welcome(welcome)) = messages.next().and_then(|m| m.message) else {
            return Err(Ended::Lost("the server did not greet".to_owned()));
        };
        let lease =
            welcome.lease.and_then(|l| wire::decode_duration("lease", l).ok()).unwrap_or_default().to_std();
        if lease < Duration::from_millis(100) {
            return Err(Ended::Lost("the server's lease is too short to work with".to_owned()));
        }
        if !welcome.resumed {
            self.forget("the server knows nothing of the session");
            self.lease.begin(hello_sent, lease);
        } else if !self.lease.renew(hello_sent, lease) {
            return Err(self.lapsed());
        }
        let knows_steps = welcome.capabilities.iter().any(|word| word == steps::CAPABILITY);
        if !knows_steps && !self.settings.steps.is_empty() {
            let problem = "the server does not know queued steps, which this worker hosts: it is too old";
            return Err(Ended::Refused(ClientError::Protocol(problem.to_owned())));
        }
        tracing::info!(session = welcome.session_id, resumed = welcome.resumed, "connected");
        self.token = welcome.session_token;
        self.outbox.open(to_stream);
        for held in self.runs.values() {
            let _ = held.to_run.send(RunMessage::Resend);
        }
        self.steps.resend();
        messages.try_for_each(|m| self.message(m))
    }

    fn ended_by(&mut self, status: tonic::Status) -> Ended {
        let code = status.code();
        let error = refused(status);
        match code {
            // These do not change by asking again.
            Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated => Ended::Refused(error),
            _ => Ended::Lost(error.to_string()),
        }
    }

    fn say_limits(&self) {
        let StepLimits { slots: step_slots, per_second: steps_per_second } = self.settings.limits.get();
        self.outbox.send(worker_message::Message::Limits(api::Limits { step_slots, steps_per_second }));
    }

    fn heartbeat(&mut self) {
        self.next_heartbeat += 1;
        let number = self.next_heartbeat;
        self.heartbeats.insert(number, Instant::now());
        self.outbox.send(worker_message::Message::Heartbeat(api::Heartbeat { number }));
    }

    fn frame(&mut self, frame: api::ConnectResponse) -> Result<(), Ended> {
        frame.messages.into_iter().try_for_each(|m| self.message(m))
    }

    fn message(&mut self, message: api::ServerMessage) -> Result<(), Ended> {
        use server_message::Message;
        // A message of a newer server that this worker does not know concerns something it did not ask for.
        let Some(message) = message.message else { return Ok(()) };
        match message {
            Message::Welcome(_) => {}
            Message::HeartbeatAck(ack) => {
                if let Some(sent) = self.heartbeats.remove(&ack.number) {
                    self.heartbeats.retain(|&n, _| n > ack.number);
                    if !self.lease.renew(sent, self.lease.length()) {
                        return Err(self.lapsed());
                    }
                }
            }
            Message::Activate(activate) => self.activate(activate),
            Message::RunEvents(events) => {
                let (run, epoch) = (events.run_id.clone(), events.epoch);
                self.tell(&run, epoch, RunMessage::Events(events));
            }
            Message::Rejected(rejected) => {
                let (run, epoch) = (rejected.run_id.clone(), rejected.epoch);
                if rejected.evicted {
                    tracing::warn!(
                        run_id = run,
                        reason = rejected.reason,
                        message = rejected.message,
                        "run taken away"
                    );
                    self.evict(&run, epoch);
                } else {
                    self.tell(&run, epoch, RunMessage::Rejected { number: rejected.number });
                }
            }
            Message::Ask(ask) => self.ask(ask),
            Message::StepTask(task) => self.steps.take(task),
            Message::StepCancel(cancel) => self.steps.cancel(&cancel),
            Message::StepResultAck(ack) => self.steps.acked(&ack),
            Message::Evict(evict) => self.evict(&evict.run_id, evict.epoch),
            Message::Drain(_) => return Err(Ended::Lost("the node is going away".to_owned())),
            Message::SessionClosed(closed) => {
                self.forget(&closed.reason);
                return Err(Ended::Lost(closed.reason));
            }
        }
        Ok(())
    }

    fn activate(&mut self, activate: api::Activate) {
        let Ok(run) = activate.run_id.parse::<RunId>() else { return };
        let history = self.partial.entry(run).or_default();
        history.extend(activate.events);
        if activate.more {
            return;
        }
        let Some(history) = self.partial.remove(&run) else { return };
        if self.runs.get(&run).is_some_and(|held| held.epoch >= activate.epoch) {
            return;
        }
        if activate.base_seq > 0 {
            // Nothing is kept of parked runs.
            let need = api::NeedHistory { run_id: activate.run_id, epoch: activate.epoch };
            return self.outbox.send(worker_message::Message::NeedHistory(need));
        }
        let (to_run, messages) = mpsc::unbounded_channel();
        if self.draining {
            let _ = to_run.send(RunMessage::Drain);
        }
        let seen = Arc::new(AtomicU64::new(0));
        let task = RunTask::new(
            (run, activate.epoch),
            Arc::clone(&self.settings),
            Arc::clone(&self.outbox),
            Arc::clone(&self.lease),
            Arc::clone(&seen),
        );
        let ended = self.ended.clone();
        let epoch = activate.epoch;
        let task = tokio::spawn(async move {
            task.run(history, messages).await;
            let _ = ended.send((run, epoch));
        });
        self.runs.insert(run, Held { epoch, to_run, seen, task });
    }

    fn ask(&mut self, ask: api::Ask) {
        match self.asks.gather(ask, &self.outbox) {
            // A run that is not held any more says so when the question is dropped.
            Some(Question::Owned(run, epoch, asked)) => self.tell(&run, epoch, RunMessage::Ask(asked)),
            Some(Question::Foreign(run, history, asked)) => {
                tokio::spawn(asked.replayed(Arc::clone(&self.settings), run, history));
            }
            Some(Question::Check(run, history, asked)) => {
                tokio::spawn(asked.checked(Arc::clone(&self.settings), run, history));
            }
            None => {}
        }
    }

    fn tell(&mut self, run: &str, epoch: Epoch, message: RunMessage) {
        if let Ok(run) = run.parse::<RunId>()
            && let Some(held) = self.runs.get(&run)
            && held.epoch == epoch
        {
            // A run that has ended by itself needs no more news.
            let _ = held.to_run.send(message);
        }
    }

    fn evict(&mut self, run: &str, epoch: Epoch) {
        if let Ok(run) = run.parse::<RunId>() {
            self.run_ended(run, epoch);
        }
    }

    fn run_ended(&mut self, run: RunId, epoch: Epoch) {
        if self.runs.get(&run).is_some_and(|held| held.epoch == epoch) {
            self.runs.remove(&run);
        }
    }

    /// Lets running steps finish, gives back what is unfinished, and says goodbye. The lease goes on
    /// meanwhile: without it the last results would be refused.
    async fn drain(
        &mut self,
        stream: &mut tonic::Streaming<api::ConnectResponse>,
        ended: &mut mpsc::UnboundedReceiver<(RunId, Epoch)>,
    ) {
        self.draining = true;
        // What is given back must go to another worker, not come again.
        self.outbox.send(worker_message::Message::Draining(api::Draining {}));
        for held in self.runs.values() {
            let _ = held.to_run.send(RunMessage::Drain);
        }
        self.steps.drain();
        let mut grace = std::pin::pin!(tokio::time::sleep(self.settings.grace));
        let mut heartbeat = tokio::time::interval(self.lease.length() / 3);
        while !(self.runs.is_empty() && self.steps.is_idle()) {
            tokio::select! {
                biased;
                () = grace.as_mut() => {
                    tracing::warn!("steps still run at the end of the grace: they are given up");
                    break;
                }
                _ = heartbeat.tick() => self.heartbeat(),
                Some((run, epoch)) = ended.recv() => self.run_ended(run, epoch),
                end = self.steps.next_end() => self.steps.ended(end),
                frame = stream.message() => match frame {
                    Ok(Some(frame)) => {
                        if self.frame(frame).is_err() {
                            break;
                        }
                    }
                    _ => break,
                },
            }
        }
        self.runs.clear();
        self.steps.give_up();
        self.outbox.send(worker_message::Message::Goodbye(api::Goodbye {}));
        self.outbox.close();
        // The server closes its side once it has read the goodbye.
        let _ = tokio::time::timeout(Duration::from_secs(2), async {
            while let Ok(Some(_)) = stream.message().await {}
        })
        .await;
    }
}
