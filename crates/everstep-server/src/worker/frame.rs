//! From the engine's messages to frames: coalesced, split where they are large, and without the bytes that
//! the worker has just sent itself.

use std::collections::HashSet;

use everstep_core::{CommandId, Epoch, Event, EventBody, NodeId, Rejection, RunId, Seq};
use everstep_engine::WorkerOut;
use everstep_proto::api::{self, server_message::Message};
use everstep_proto::history;
use everstep_proto::wire::{encode_duration, encode_event};
use prost::Message as _;

use super::hello::PROTOCOL;
use super::{asks, steps, token};
use crate::status;
use crate::steps::token::TaskTokens;

/// A frame is closed once it has this many bytes.
pub(super) const FRAME_BYTES: usize = 1 << 20;
/// Most messages in one frame.
pub(super) const FRAME_MESSAGES: usize = 256;

/// Makes frames of one worker's stream.
#[derive(Debug)]
pub(super) struct Framer {
    node_id: NodeId,
    /// Runs that the worker brought along from an earlier stream. What it still has of the commits that it
    /// made there is not known, so nothing is left out of their events.
    held: HashSet<(RunId, Epoch)>,
    /// For workers that run queued steps.
    tokens: Option<TaskTokens>,
    messages: Vec<api::ServerMessage>,
    bytes: usize,
    frames: Vec<api::ConnectResponse>,
}

impl Framer {
    pub(super) fn new(node_id: NodeId, held: HashSet<(RunId, Epoch)>) -> Self {
        Self { node_id, held, tokens: None, messages: Vec::new(), bytes: 0, frames: Vec::new() }
    }

    /// With these tokens for queued steps.
    pub(super) fn with_tokens(self, tokens: Option<TaskTokens>) -> Self {
        Self { tokens, ..self }
    }

    /// Takes the frames of all that was pushed.
    pub(super) fn take(&mut self) -> Vec<api::ConnectResponse> {
        self.close();
        std::mem::take(&mut self.frames)
    }

    /// Adds what the engine says.
    pub(super) fn push(&mut self, out: WorkerOut) {
        match out {
            WorkerOut::Welcome { session_id, lease, resumed } => {
                if !resumed {
                    self.held.clear();
                }
                self.add(Message::Welcome(api::Welcome {
                    protocol: PROTOCOL,
                    session_id: session_id.to_string(),
                    session_token: token::of(session_id),
                    lease: Some(encode_duration(lease)),
                    resumed,
                    node_id: self.node_id.to_string(),
                    capabilities: [asks::CAPABILITY, asks::CHECKS, steps::CAPABILITY]
                        .map(str::to_owned)
                        .to_vec(),
                }));
            }
            WorkerOut::HeartbeatAck { number } => {
                self.add(Message::HeartbeatAck(api::HeartbeatAck { number }))
            }
            WorkerOut::Activate { run_id, epoch, events, base } => {
                self.activate(run_id, epoch, &events, base)
            }
            WorkerOut::Events { run_id, epoch, events, from, committed } => {
                let new = events.iter().position(|e| e.seq >= from).unwrap_or(events.len());
                self.events(run_id, epoch, &events[new..], committed);
            }
            WorkerOut::Rejected { run_id, epoch, number, rejection } => {
                self.add(Message::Rejected(api::Rejected {
                    run_id: run_id.to_string(),
                    epoch,
                    number,
                    reason: status::reason_of(&rejection).word.to_owned(),
                    message: rejection.to_string(),
                    evicted: !matches!(rejection, Rejection::UnseenEvents { .. }),
                }));
            }
            WorkerOut::Evict { run_id, epoch, reason } => {
                self.held.remove(&(run_id, epoch));
                self.add(Message::Evict(api::Evict {
                    run_id: run_id.to_string(),
                    epoch,
                    reason: reason.to_owned(),
                }));
            }
            ask @ WorkerOut::Ask { .. } => asks::encode(ask).into_iter().for_each(|piece| self.add(piece)),
            check @ WorkerOut::Check { .. } => {
                asks::encode_check(check).into_iter().for_each(|piece| self.add(piece));
            }
            step @ (WorkerOut::StepTask(_)
            | WorkerOut::StepCancel { .. }
            | WorkerOut::StepAsk(_)
            | WorkerOut::StepAck { .. }) => {
                if let Some(message) = steps::encode(step, self.tokens.as_ref()) {
                    self.add(message);
                }
            }
            WorkerOut::Drain => self.add(Message::Drain(api::Drain {})),
            WorkerOut::SessionClosed { reason } => {
                self.add(Message::SessionClosed(api::SessionClosed { reason: reason.to_owned() }));
            }
        }
    }

    /// A history, in pieces of a frame at most.
    fn activate(&mut self, run_id: RunId, epoch: Epoch, events: &[Event], base: Option<(Seq, CommandId)>) {
        let (base_seq, base_command_id) =
            base.map_or((0, String::new()), |(seq, command)| (seq, command.to_string()));
        let mut pieces = pieces(events, |_| false).into_iter().peekable();
        while let Some((_, events)) = pieces.next() {
            self.add(Message::Activate(api::Activate {
                run_id: run_id.to_string(),
                epoch,
                events,
                base_seq,
                base_command_id: base_command_id.clone(),
                more: pieces.peek().is_some(),
            }));
        }
    }

    /// New events, in pieces of a frame at most. Only the last piece says what is committed by all of them:
    /// an earlier one may hold half a commit.
    fn events(&mut self, run_id: RunId, epoch: Epoch, events: &[Event], committed: u32) {
        let brought = self.held.contains(&(run_id, epoch));
        let omit = |event: &Event| !brought && sent_by_worker(event, run_id, epoch);
        let mut pieces = pieces(events, omit).into_iter().peekable();
        while let Some((until, piece)) = pieces.next() {
            let committed = if pieces.peek().is_some() { whole(events, until, run_id) } else { committed };
            self.add(Message::RunEvents(api::RunEvents {
                run_id: run_id.to_string(),
                epoch,
                events: piece,
                committed,
            }));
        }
    }

    fn add(&mut self, message: Message) {
        let message = api::ServerMessage { message: Some(message) };
        let bytes = message.encoded_len();
        if self.bytes + bytes > FRAME_BYTES || self.messages.len() >= FRAME_MESSAGES {
            self.close();
        }
        self.bytes += bytes;
        self.messages.push(message);
    }

    fn close(&mut self) {
        if !self.messages.is_empty() {
            self.bytes = 0;
            self.frames.push(api::ConnectResponse { messages: std::mem::take(&mut self.messages) });
        }
    }
}

/// True when the worker sent the event's payload in a commit of its present claim, and so has it.
fn sent_by_worker(event: &Event, run: RunId, epoch: Epoch) -> bool {
    matches!(event.body, EventBody::StepCompleted { .. })
        && event.command_id.worker_commit(run).is_some_and(|(committed_under, _)| committed_under == epoch)
}

/// Greatest commit number whose events all lie before `until`, as far as `events` tell; 0 when they do not.
fn whole(events: &[Event], until: usize, run: RunId) -> u32 {
    let number = |event: &Event| event.command_id.worker_commit(run).map(|(_, number)| number);
    let (before, after) = events.split_at(until);
    let last = before.iter().rev().find_map(number).unwrap_or(0);
    let goes_on = after.first().and_then(number).is_some_and(|next| next == last);
    if goes_on { last.saturating_sub(1) } else { last }
}

/// Cuts events into pieces of at most a frame, or of one event; each with the index that it ends before.
/// At least one piece, which may be empty.
pub(super) fn pieces(events: &[Event], omit: impl Fn(&Event) -> bool) -> Vec<(usize, Vec<history::Event>)> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    let mut bytes = 0;
    for (index, event) in events.iter().enumerate() {
        let encoded = encode_event(event, omit(event));
        let size = encoded.encoded_len();
        if bytes + size > FRAME_BYTES && !piece.is_empty() {
            pieces.push((index, std::mem::take(&mut piece)));
            bytes = 0;
        }
        bytes += size;
        piece.push(encoded);
    }
    pieces.push((events.len(), piece));
    pieces
}

#[cfg(test)]
mod tests;
