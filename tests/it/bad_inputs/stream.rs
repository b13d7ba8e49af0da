//! A worker's stream with one field broken: what a worker that is not ours may say. Its run is not harmed by it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use everstep::RunHandle;
use everstep_core::{BlockKind, EventBody};
use everstep_proto::api;
use everstep_proto::api::command::Command;
use everstep_proto::api::server_message::Message as Out;
use everstep_proto::api::worker_message::Message as In;
use everstep_server::REASONS;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::answers::{self, Answers};
use super::breaks::{Break, breaks, contract};
use super::raw::Raw;
use super::samples::{self, QUEUE};
use super::world::{World, json, seconds};
use crate::stores;

/// Nothing in these tests takes this long unless it hangs.
const HANGS: Duration = Duration::from_secs(20);
const BEAT: u64 = 77;

/// A worker by hand.
struct Foreign {
    outbound: mpsc::Sender<Bytes>,
    inbound: Streaming<Bytes>,
    gathered: VecDeque<Out>,
    /// Claims that came while something else was waited for.
    claims: Vec<api::HeldRun>,
    token: String,
}

fn frame(message: In) -> Bytes {
    let messages = vec![api::WorkerMessage { message: Some(message) }];
    api::ConnectRequest { messages }.encode_to_vec().into()
}

fn held(activate: api::Activate) -> api::HeldRun {
    let seen_seq = activate.events.last().map(|event| event.seq).unwrap_or_default();
    api::HeldRun { run_id: activate.run_id, epoch: activate.epoch, seen_seq }
}

impl Foreign {
    /// Opens a session; the status when it is refused.
    async fn connect(channel: &Channel, hello: api::Hello) -> anyhow::Result<Result<Self, Status>> {
        let (outbound, messages) = mpsc::channel(16);
        outbound.send(frame(In::Hello(hello))).await?;
        let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(8 << 20);
        client.ready().await?;
        let path =
            tonic::codegen::http::uri::PathAndQuery::from_static("/everstep.api.v1.WorkerService/Connect");
        let answer = client.streaming(Request::new(ReceiverStream::new(messages)), path, Raw).await;
        let inbound = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        let mut worker =
            Self { outbound, inbound, gathered: VecDeque::new(), claims: Vec::new(), token: String::new() };
        Ok(match worker.next().await? {
            Ok(Out::Welcome(welcome)) => {
                worker.token = welcome.session_token;
                Ok(worker)
            }
            Ok(other) => anyhow::bail!("{other:?}"),
            Err(status) => Err(status),
        })
    }

    /// The next message, or how the stream ended.
    async fn next(&mut self) -> anyhow::Result<Result<Out, Status>> {
        loop {
            if let Some(message) = self.gathered.pop_front() {
                return Ok(Ok(message));
            }
            let frame = match tokio::time::timeout(HANGS, self.inbound.message()).await? {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(Err(Status::ok("the end"))),
                Err(status) => return Ok(Err(status)),
            };
            let messages = api::ConnectResponse::decode(frame)?.messages;
            self.gathered.extend(messages.into_iter().filter_map(|m| m.message));
        }
    }

    /// The claim on a run, once it is given.
    async fn claim(&mut self, run_id: &str) -> anyhow::Result<api::HeldRun> {
        loop {
            if let Some(at) = self.claims.iter().position(|held| held.run_id == run_id) {
                return Ok(self.claims.remove(at));
            }
            match self.next().await? {
                Ok(Out::Activate(activate)) => self.claims.push(held(activate)),
                Ok(_) => {}
                Err(status) => anyhow::bail!("the stream ended: {status:?}"),
            }
        }
    }

    /// What becomes of a commit: recorded, refused, or the end of the stream.
    async fn outcome(&mut self, run: &api::HeldRun) -> anyhow::Result<Result<Option<api::Rejected>, Status>> {
        loop {
            match self.next().await? {
                Ok(Out::Rejected(refused)) if refused.run_id == run.run_id => return Ok(Ok(Some(refused))),
                Ok(Out::RunEvents(e)) if e.run_id == run.run_id && e.committed > 0 => return Ok(Ok(None)),
                Ok(Out::Evict(evict)) if evict.run_id == run.run_id => return Ok(Ok(None)),
                Ok(Out::Activate(activate)) => self.claims.push(held(activate)),
                Ok(_) => {}
                Err(status) => return Ok(Err(status)),
            }
        }
    }
}

/// What a message of this type becomes when it is broken.
fn broken<M: Message + Default>(
    contract: &DescriptorPool,
    name: &str,
    good: &M,
) -> anyhow::Result<Vec<(Break, M)>> {
    let kind = contract.get_message_by_name(&format!("everstep.api.v1.{name}"));
    let kind = kind.ok_or_else(|| anyhow::anyhow!("no message {name}"))?;
    let good = DynamicMessage::decode(kind, &good.encode_to_vec()[..])?;
    let all = std::iter::once(Break::none()).chain(breaks(&good));
    all.map(|one| Ok((one.clone(), M::decode(&one.broken(&good).encode_to_vec()[..])?))).collect()
}

/// Answers, and what does not hold of them.
#[derive(Default)]
struct Seen {
    answers: Answers,
    problems: Vec<String>,
}

impl Seen {
    fn ended(&mut self, what: &str, one: &Break, status: &Status) {
        self.problems.extend(answers::check(what, one, status).err());
        self.answers.add(what, one, answers::words(status));
    }
}

async fn hellos(contract: &DescriptorPool, channel: &Channel, seen: &mut Seen) -> anyhow::Result<()> {
    for (one, hello) in broken(contract, "Hello", &samples::hello())? {
        let one = one.called("hello");
        match Foreign::connect(channel, hello).await? {
            Ok(worker) => {
                let _ = worker.outbound.send(frame(In::Goodbye(api::Goodbye {}))).await;
                seen.answers.add("hello", &one, "ok".to_owned());
            }
            Err(status) => seen.ended("hello", &one, &status),
        }
    }
    Ok(())
}

/// Messages about nothing that there is: the session goes on, or ends with a reason.
async fn messages(contract: &DescriptorPool, channel: &Channel, seen: &mut Seen) -> anyhow::Result<()> {
    let kind = contract.get_message_by_name("everstep.api.v1.WorkerMessage");
    let kind = kind.ok_or_else(|| anyhow::anyhow!("no WorkerMessage"))?;
    let mut untried: Vec<_> = kind.fields().map(|field| field.name().to_owned()).collect();
    untried.retain(|name| !["hello", "commit", "goodbye"].contains(&name.as_str()));
    for (name, message) in samples::messages() {
        untried.retain(|field| Some(field.as_str()) != name.split('#').next());
        let good = api::WorkerMessage { message: Some(message) };
        for (one, message) in broken(contract, "WorkerMessage", &good)? {
            if one.how == "instead" && !one.path.contains('.') {
                continue;
            }
            let one = one.called("messages[0]");
            let mut worker = Foreign::connect(channel, samples::taking()).await??;
            let bytes = api::ConnectRequest { messages: vec![message] }.encode_to_vec();
            worker.outbound.send(bytes.into()).await?;
            // The stream may be over before it.
            let _ = worker.outbound.send(frame(In::Heartbeat(api::Heartbeat { number: BEAT }))).await;
            loop {
                match worker.next().await? {
                    Ok(Out::HeartbeatAck(ack)) if ack.number == BEAT => {
                        seen.answers.add(&name, &one, "ok".to_owned());
                        break;
                    }
                    Ok(_) => {}
                    Err(status) => {
                        seen.ended(&name, &one, &status);
                        break;
                    }
                }
            }
            // A session that is over takes no runs of the tests that follow.
            let _ = worker.outbound.send(frame(In::Goodbye(api::Goodbye {}))).await;
        }
    }
    anyhow::ensure!(untried.is_empty(), "no sample of {untried:?}: add one to samples.rs");
    Ok(())
}

/// A world with a worker that is not ours.
struct Bench<'a> {
    world: &'a World,
    channel: Channel,
    worker: Foreign,
}

impl Bench<'_> {
    /// A run whose owner sends a broken commit, and then, if that was refused, one that ends the run well.
    async fn try_one(
        &mut self,
        change: impl FnOnce(api::Commit) -> anyhow::Result<api::Commit>,
    ) -> anyhow::Result<Tried> {
        let (run_id, start) = self.start().await?;
        let mut run = self.worker.claim(&run_id).await?;
        let commit = change(samples::commit(&run, Vec::new()))?;
        self.worker.outbound.send(frame(In::Commit(commit))).await?;
        let (mut number, tried) = match self.worker.outcome(&run).await? {
            Ok(None) => {
                // However far it came; it may be over.
                let _ = start.terminate("tried").await;
                return Ok(Tried::Recorded);
            }
            Ok(Some(refused)) => (2, Tried::Refused(refused)),
            Err(status) => (1, Tried::Ended(status)),
        };
        match &tried {
            // It was somebody else's: the run is still here.
            Tried::Refused(refused) if refused.reason == "FENCED" => number = 1,
            Tried::Refused(refused) if refused.evicted => {
                run = self.worker.claim(&run_id).await?;
                number = 1;
            }
            Tried::Ended(_) => {
                let (session_token, held) = (self.worker.token.clone(), vec![run.clone()]);
                let hello = api::Hello { session_token, held, ..samples::taking() };
                self.worker = Foreign::connect(&self.channel, hello).await??;
            }
            _ => {}
        }
        let commit = api::Commit { number, ..samples::commit(&run, vec![complete()]) };
        self.worker.outbound.send(frame(In::Commit(commit))).await?;
        anyhow::ensure!(start.result().await? == 7, "{run_id} ended otherwise");
        Ok(tried)
    }
}

enum Tried {
    Recorded,
    Refused(api::Rejected),
    Ended(Status),
}

/// Commits of an owner: every command, broken.
async fn commits(
    contract: &DescriptorPool,
    bench: &mut Bench<'_>,
    seen: &mut Seen,
    before: Option<&Answers>,
) -> anyhow::Result<()> {
    for (i, commands) in samples::commands().into_iter().enumerate() {
        let sample =
            samples::commit(&api::HeldRun { epoch: 1, seen_seq: 2, ..api::HeldRun::default() }, commands);
        let last = format!("commands[{}]", sample.commands.len() - 1);
        for (one, commit) in broken(contract, "Commit", &sample)? {
            // The commit itself is broken with the first command, and of each command the last one.
            let of_commit = !one.path.starts_with("commands[");
            let other = one.how == "instead" && one.path.matches('.').count() == 1;
            if of_commit && i > 0
                || !of_commit && !one.path.starts_with(&last)
                || other
                || one.path == "run_id"
            {
                continue;
            }
            let what = format!("commit#{i}");
            let one = one.called("messages[0].commit");
            let before = before.and_then(|before| before.of(&what, &one));
            if before.is_some_and(|words| words != "ok") {
                continue;
            }
            let own = |base: api::Commit| {
                let same = |field: &str| one.path != format!("messages[0].commit.{field}");
                Ok(api::Commit {
                    run_id: base.run_id,
                    epoch: if same("epoch") { base.epoch } else { commit.epoch },
                    seen_seq: if same("seen_seq") { base.seen_seq } else { commit.seen_seq },
                    ..commit.clone()
                })
            };
            let tried = bench
                .try_one(own)
                .await
                .map_err(|e| e.context(format!("{what} {} {}", one.path, one.how)))?;
            match &tried {
                Tried::Recorded => seen.answers.add(&what, &one, "ok".to_owned()),
                Tried::Refused(refused) => {
                    if refused.message.is_empty() || REASONS.iter().all(|r| r.word != refused.reason) {
                        seen.problems.push(format!("{what} {} {}: {refused:?}", one.path, one.how));
                    }
                    seen.answers.add(&what, &one, format!("refused {}", refused.reason));
                }
                Tried::Ended(status) => seen.ended(&what, &one, status),
            }
            if before.is_some() && !matches!(tried, Tried::Recorded) {
                seen.problems.push(format!("{what} {} {} is not recorded here", one.path, one.how));
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_field_of_a_workers_stream_harms_no_run() -> anyhow::Result<()> {
    let (contract, mut before) = (contract()?, None);
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let channel = Endpoint::from_shared(world.node.address.clone())?.connect_lazy();
        let (neighbour, mut seen) = (world.run("waiting").await?, Seen::default());
        if before.is_none() {
            hellos(&contract, &channel, &mut seen).await?;
            messages(&contract, &channel, &mut seen).await?;
        }
        let worker = Foreign::connect(&channel, samples::taking()).await??;
        let mut bench = Bench { world: &world, channel, worker };
        commits(&contract, &mut bench, &mut seen, before.as_ref()).await?;
        let Seen { answers, problems } = seen;
        anyhow::ensure!(problems.is_empty(), "on {}: {problems:#?}", store.name);
        if before.is_none() {
            answers.compare("stream.txt")?;
            before = Some(answers);
        }
        let neighbour = world.node.client()?.handle::<()>(neighbour.parse()?);
        neighbour.signal("go", &()).await?;
        neighbour.result().await?;
        world.all_are_whole().await?;
    }
    Ok(())
}

impl Bench<'_> {
    async fn start(&self) -> anyhow::Result<(String, RunHandle<u32>)> {
        let start = self.world.node.client()?.workflow::<u32>("order").task_queue(QUEUE).start(&()).await?;
        Ok((start.run_id().map(|id| id.to_string()).unwrap_or_default(), start))
    }

    async fn say(&self, commits: Vec<api::Commit>) -> anyhow::Result<()> {
        let message = |commit| api::WorkerMessage { message: Some(In::Commit(commit)) };
        let messages = commits.into_iter().map(message).collect();
        Ok(self.worker.outbound.send(api::ConnectRequest { messages }.encode_to_vec().into()).await?)
    }
}

/// A commit that contradicts the run: its timer was never started.
fn contradiction(run: &api::HeldRun) -> api::Commit {
    samples::commit(run, vec![Command::CancelTimer(api::CancelTimer { timer_id: 9 })])
}

fn complete() -> Command {
    Command::CompleteRun(api::CompleteRun { result: json("7"), unconsumed: Vec::new() })
}

/// What stands on a refused commit is refused with it, and the run goes to a worker anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_refused_commit_is_refused_with_it() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let channel = Endpoint::from_shared(world.node.address.clone())?.connect_lazy();
        let worker = Foreign::connect(&channel, samples::taking()).await??;
        let mut bench = Bench { world: &world, channel, worker };
        let (run_id, handle) = bench.start().await?;
        let run = bench.worker.claim(&run_id).await?;
        let next = api::Commit { number: 2, ..samples::commit(&run, vec![complete()]) };
        bench.say(vec![contradiction(&run), next]).await?;
        for expected in ["INVALID_COMMANDS", "FENCED"] {
            let refused = bench.worker.outcome(&run).await??;
            anyhow::ensure!(
                refused.as_ref().is_some_and(|r| r.reason == expected && r.evicted),
                "{expected}: {refused:?}"
            );
        }
        let again = bench.worker.claim(&run_id).await?;
        anyhow::ensure!(again.epoch == run.epoch + 1, "{again:?}");
        // A number that is left out: what was in it is lost.
        let timer = Command::StartTimer(api::StartTimer { timer_id: 1, delay: seconds(60) });
        let gap = api::Commit { number: 3, ..samples::commit(&again, vec![complete()]) };
        bench.say(vec![samples::commit(&again, vec![timer]), gap]).await?;
        loop {
            match bench.worker.outcome(&again).await?? {
                Some(refused) if refused.reason == "INVALID_COMMANDS" && refused.number == 3 => break,
                Some(refused) => anyhow::bail!("{refused:?}"),
                None => {}
            }
        }
        // It may be shown the old claim once more, before that is over.
        let before = again.epoch;
        let again = loop {
            let claim = bench.worker.claim(&run_id).await?;
            if claim.epoch > before {
                break claim;
            }
        };
        bench.say(vec![samples::commit(&again, vec![complete()])]).await?;
        anyhow::ensure!(handle.result().await? == 7, "it ends well");
        world.all_are_whole().await?;
    }
    Ok(())
}

/// A run whose workers are refused again and again waits for other code, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_commits_are_refused_for_ever_is_blocked_and_says_why() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let channel = Endpoint::from_shared(world.node.address.clone())?.connect_lazy();
        let worker = Foreign::connect(&channel, samples::taking()).await??;
        let mut bench = Bench { world: &world, channel, worker };
        let (run_id, handle) = bench.start().await?;
        for _ in 0..everstep_core::limits::FRUITLESS_ATTACHES_MAX {
            let run = bench.worker.claim(&run_id).await?;
            bench.say(vec![contradiction(&run)]).await?;
        }
        let mut history = handle.history(0, true).await?;
        let blocked = loop {
            match history.next().await?.map(|event| event.body) {
                Some(EventBody::RunBlocked(blocked)) => break blocked,
                Some(_) => {}
                None => anyhow::bail!("the run ended"),
            }
        };
        anyhow::ensure!(blocked.kind == BlockKind::Poison, "{blocked:?}");
        anyhow::ensure!(blocked.produced.contains("timer #9 was never started"), "{blocked:?}");
        handle.terminate("enough").await?;
    }
    Ok(())
}
