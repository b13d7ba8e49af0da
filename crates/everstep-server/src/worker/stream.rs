//! One worker's stream while it lasts: a reading half and a writing half that end together.

use std::collections::VecDeque;
use std::time::Duration;

use everstep_engine::{WorkerIn, WorkerLink, WorkerOut};
use everstep_proto::api::{self, worker_message::Message};
use everstep_proto::wire::{decode_commit, parse_id};
use everstep_proto::{InvalidKind, InvalidMessage};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::frame::{FRAME_MESSAGES, Framer};
use super::{asks, steps};
use crate::{reason, status};

/// A worker that takes no frame for this long is cut off.
const WRITE_WAIT: Duration = Duration::from_secs(20);
/// How long the engine may take to open a session.
const WELCOME_WAIT: Duration = Duration::from_secs(15);
/// How long a worker that has said goodbye is still sent what is on its way.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// A stream whose Hello was accepted.
pub(super) struct Session {
    pub(super) inbound: Streaming<api::ConnectRequest>,
    /// Messages that came in one frame with Hello.
    pub(super) rest: VecDeque<api::WorkerMessage>,
    pub(super) frames: mpsc::Sender<Result<api::ConnectResponse, Status>>,
    pub(super) framer: Framer,
    pub(super) draining: CancellationToken,
}

/// Why a stream is over.
#[derive(Debug)]
enum End {
    /// The worker hung up, or can be told nothing more.
    Gone,
    /// The session is closed, and the worker has been told.
    Closed,
    /// The engine let go of the worker while its session lives.
    LetGo,
    /// The worker took no frame for too long.
    Slow,
    /// The worker sent something that it must not.
    Invalid(Status),
}

impl Session {
    /// Carries messages both ways until one side is done. The link is dropped at the end, which tells the
    /// engine.
    pub(super) async fn run(self, mut link: WorkerLink) {
        let Self { inbound, rest, frames, framer, draining } = self;
        // Each half has its own direction; an ended channel stays behind in the link.
        let from_engine = std::mem::replace(&mut link.from_engine, mpsc::channel(1).1);
        let end = tokio::select! {
            end = read(inbound, rest, &link) => end,
            end = write(from_engine, framer, &frames) => end,
            () = frames.closed() => End::Gone,
        };
        tracing::debug!(?end, "worker stream over");
        let last_word = match end {
            End::Gone | End::Closed => return,
            End::Invalid(status) => status,
            End::LetGo if draining.is_cancelled() => status::stopping(),
            End::LetGo => status::of(reason::DISCONNECTED, "the node let go of this stream; connect again"),
            End::Slow => {
                status::of(reason::DISCONNECTED, "the worker took no message for 20 s; connect again")
            }
        };
        // A worker that does not read gets no last word either; then it sees the end of the stream.
        drop(link);
        let _ = tokio::time::timeout(WRITE_WAIT, frames.send(Err(last_word))).await;
    }
}

/// From the worker to the engine, until the worker hangs up or breaks a rule.
async fn read(
    mut inbound: Streaming<api::ConnectRequest>,
    mut messages: VecDeque<api::WorkerMessage>,
    link: &WorkerLink,
) -> End {
    loop {
        for (index, message) in messages.drain(..).enumerate() {
            let message = match decode(message) {
                Ok(message) => message,
                Err(error) => {
                    return End::Invalid(status::of_invalid(error.within(&format!("messages[{index}]"))));
                }
            };
            let goodbye = matches!(message, WorkerIn::Goodbye);
            if link.to_engine.send(message).await.is_err() {
                return End::LetGo;
            }
            if goodbye {
                // The writing half ends the stream as soon as the engine has let go; what a worker sends
                // after its goodbye does not count.
                tokio::time::sleep(GOODBYE_WAIT).await;
                return End::Closed;
            }
        }
        match inbound.message().await {
            Ok(Some(frame)) => messages = frame.messages.into(),
            Ok(None) => return End::Gone,
            // Of ours, from below: there is no room for the message.
            Err(error) if !error.details().is_empty() => return End::Invalid(error),
            Err(error) => return status::of_framework(&error).map_or(End::Gone, End::Invalid),
        }
    }
}

fn decode(wire: api::WorkerMessage) -> Result<WorkerIn, InvalidMessage> {
    let api::WorkerMessage { message } = wire;
    match message {
        Some(Message::Heartbeat(api::Heartbeat { number })) => Ok(WorkerIn::Heartbeat { number }),
        Some(Message::Commit(commit)) => {
            let (run_id, commit) = decode_commit(commit).map_err(|e| e.within("commit"))?;
            Ok(WorkerIn::Commit { run_id, commit })
        }
        Some(Message::NeedHistory(api::NeedHistory { run_id, epoch })) => {
            Ok(WorkerIn::NeedHistory { run_id: parse_id("need_history.run_id", &run_id)?, epoch })
        }
        Some(Message::Answer(answer)) => asks::decode(answer).map_err(|e| e.within("answer")),
        Some(Message::StepResult(result)) => {
            steps::decode_result(result).map_err(|e| e.within("step_result"))
        }
        Some(Message::StepBeat(beat)) => steps::decode_beat(beat).map_err(|e| e.within("step_beat")),
        Some(Message::Limits(limits)) => steps::decode_limits(limits).map_err(|e| e.within("limits")),
        Some(Message::Draining(api::Draining {})) => Ok(WorkerIn::Draining),
        Some(Message::Goodbye(api::Goodbye {})) => Ok(WorkerIn::Goodbye),
        Some(Message::Hello(_)) => {
            Err(InvalidMessage::new(InvalidKind::Value, "hello", "may only be the first message of a stream"))
        }
        None => Err(InvalidMessage::missing("message")),
    }
}

/// From the engine to the worker: takes what has gathered, frames it, hands the frames on.
async fn write(
    mut from_engine: mpsc::Receiver<WorkerOut>,
    mut framer: Framer,
    frames: &mpsc::Sender<Result<api::ConnectResponse, Status>>,
) -> End {
    let mut gathered = Vec::with_capacity(FRAME_MESSAGES);
    let welcome = tokio::time::timeout(WELCOME_WAIT, from_engine.recv()).await;
    let Ok(Some(welcome)) = welcome else { return End::LetGo };
    gathered.push(welcome);
    loop {
        let mut closed = false;
        for out in gathered.drain(..) {
            closed |= matches!(out, WorkerOut::SessionClosed { .. });
            framer.push(out);
        }
        for frame in framer.take() {
            match tokio::time::timeout(WRITE_WAIT, frames.send(Ok(frame))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return End::Gone,
                Err(_) => return End::Slow,
            }
        }
        if closed {
            return End::Closed;
        }
        if from_engine.recv_many(&mut gathered, FRAME_MESSAGES).await == 0 {
            return End::LetGo;
        }
    }
}

#[cfg(test)]
mod tests;
