//! Calls with one field broken.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::answers::{self, Answers};
use super::breaks::{Break, breaks, contract, unset};
use super::raw::Raw;
use super::world::{World, plan};
use crate::stores;

/// How long a call may wait for something that does not come.
const DEADLINE: Duration = Duration::from_secs(1);
/// Fields that a good first request leaves as they are.
const LEFT_UNSET: [&str; 4] = ["page_token", "workflow_id", "start.start_delay", "cause"];

/// How the call ends, or that an answer without end has begun.
async fn call(channel: &Channel, rpc: &str, messages: Vec<Vec<u8>>) -> anyhow::Result<Status> {
    let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(8 << 20);
    client.ready().await?;
    let messages = futures::stream::iter(messages.into_iter().map(Bytes::from));
    let mut request = Request::new(messages);
    request.set_timeout(DEADLINE);
    let path = tonic::codegen::http::uri::PathAndQuery::try_from(format!("/everstep.api.v1.{rpc}"))?;
    let answer = async {
        let mut answer = client.streaming(request, path, Raw).await?.into_inner();
        while answer.message().await?.is_some() {}
        Ok(())
    };
    Ok(match tokio::time::timeout(2 * DEADLINE, answer).await {
        Ok(ended) => ended.err().unwrap_or_else(|| Status::ok("")),
        Err(_) => Status::ok("it goes on"),
    })
}

fn calls(contract: &DescriptorPool) -> Vec<(String, MethodDescriptor)> {
    let services = contract.services().filter(|s| s.package_name() == "everstep.api.v1");
    let methods = services.flat_map(|service| {
        let name = service.name().to_owned();
        service.methods().map(|m| (format!("{name}/{}", m.name()), m)).collect::<Vec<_>>()
    });
    methods.collect()
}

/// What is sent: a piece of a file comes behind the message that says what to do with it.
fn messages(rpc: &str, variant: usize, last: Vec<u8>) -> Vec<Vec<u8>> {
    match (rpc, variant) {
        ("BuildService/CheckHistories", 1) => vec![plan().encode_to_vec(), last],
        _ => vec![last],
    }
}

/// What has been sent, and what came back.
#[derive(Default)]
struct Sent {
    n: usize,
    answers: Answers,
    problems: Vec<String>,
}

/// Breaks every field of a call's good requests. What another store has refused for its form is not sent again: no
/// store has seen it.
async fn broken(
    world: &World,
    channel: &Channel,
    (rpc, method): (&str, &MethodDescriptor),
    sent: &mut Sent,
    before: Option<&Answers>,
) -> anyhow::Result<()> {
    let mut left = Vec::new();
    for variant in 0.. {
        sent.n += 1;
        let Some(sample) = world.good(rpc, variant, sent.n).await? else {
            anyhow::ensure!(variant > 0, "{rpc} has no good request: add one to world.rs");
            break;
        };
        let sample = DynamicMessage::decode(method.input(), &sample[..])?;
        left.push(unset(&sample));
        let name = if variant == 0 { rpc.to_owned() } else { format!("{rpc}#{variant}") };
        for one in std::iter::once(Break::none()).chain(breaks(&sample)) {
            let before = before.and_then(|before| before.of(&name, &one));
            if before.is_some_and(|words| words.contains(" (")) {
                continue;
            }
            sent.n += 1;
            let good = world.good(rpc, variant, sent.n).await?.unwrap_or_default();
            let bytes = one.broken(&DynamicMessage::decode(method.input(), &good[..])?).encode_to_vec();
            let status = call(channel, rpc, messages(rpc, variant, bytes)).await?;
            sent.problems.extend(answers::check(&name, &one, &status).err());
            let words = answers::words(&status);
            if before.is_some_and(|before| before != words) {
                sent.problems
                    .push(format!("{name} {} {}: {words}, and before {before:?}", one.path, one.how));
            }
            sent.answers.add(&name, &one, words);
        }
    }
    let first = left.first().cloned().unwrap_or_default();
    let never = |path: &String| left.iter().all(|of| of.contains(path));
    let ends = |path: &String| LEFT_UNSET.iter().any(|end| path.ends_with(end));
    let forgotten: Vec<_> = first.iter().filter(|path| never(path) && !ends(path)).collect();
    if !forgotten.is_empty() {
        sent.problems.push(format!("good requests of {rpc} leave fields unset: {forgotten:?}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_field_of_any_call_is_refused_by_name_or_taken_for_what_it_is() -> anyhow::Result<()> {
    let (contract, mut before) = (contract()?, None);
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let world = World::on(&store).await?;
        let channel = Endpoint::from_shared(world.node.address.clone())?.connect_lazy();
        let (neighbour, mut sent) = (world.run("waiting").await?, Sent::default());
        for (rpc, method) in calls(&contract).iter().filter(|(rpc, _)| rpc != "WorkerService/Connect") {
            broken(&world, &channel, (rpc, method), &mut sent, before.as_ref()).await?;
        }
        let Sent { answers, problems, .. } = sent;
        anyhow::ensure!(problems.is_empty(), "on {}: {problems:#?}", store.name);
        if before.is_none() {
            answers.compare("calls.txt")?;
            before = Some(answers);
        }
        let neighbour = world.node.client()?.handle::<()>(neighbour.parse()?);
        neighbour.signal("go", &()).await?;
        neighbour.result().await?;
        world.all_are_whole().await?;
    }
    Ok(())
}
