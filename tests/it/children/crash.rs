//! A node dies over what runs have to hear of each other, and another goes on.

use std::path::Path;

use everstep_core::{
    Actor, Attach, ChildScheduled, Command, CommandBody, CommandId, CommitCommand, Event, OpId, Outbound,
    Payload, Run, SessionId, StartDecision, StartRun, WorkerCommit, WorkerInfo, Write, WriteBasis, decide,
    decide_start, start_body_hash,
};
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use everstep_store::{Append, RunAppend, StartClaim, Verdict};
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_store_sqlite::SqliteStore;
use everstep_tests::servers::{NatsServer, PostgresServer, require};
use uuid::Uuid;

use super::*;

/// A run as a node writes it that dies right after each append: it tells nobody anything.
struct Doomed<'a> {
    store: &'a dyn Store,
    run: Run,
}

impl<'a> Doomed<'a> {
    async fn start(store: &'a dyn Store, start: &StartRun, ids: (RunId, u64)) -> anyhow::Result<Self> {
        let now = store.now().await?;
        let Ok(StartDecision::Start { event, expected, .. }) = decide_start(start, ids, None, None, now)
        else {
            anyhow::bail!("not started");
        };
        let run = Run::begin(ids.0, &event)?;
        let claim = StartClaim {
            namespace: start.namespace.clone(),
            workflow_id: start.workflow_id.clone(),
            expected,
            request_id: start.request_id.clone(),
            body_hash: start_body_hash(start),
        };
        let writes = WriteBasis::NEW.writes(&run, std::slice::from_ref(&*event));
        let it = Self { store, run };
        it.append(Some(claim), vec![*event], writes).await?;
        Ok(it)
    }

    async fn append(
        &self,
        start: Option<StartClaim>,
        events: Vec<Event>,
        writes: Vec<Write>,
    ) -> anyhow::Result<()> {
        let append = RunAppend { run_id: self.run.id(), start, events: Arc::new(events), writes };
        let reply = self.store.append(vec![Append::of(append)]).await;
        anyhow::ensure!(matches!(reply.verdicts[..], [Verdict::Committed]), "{:?}", reply.verdicts);
        Ok(())
    }

    async fn send(&mut self, body: CommandBody) -> anyhow::Result<Vec<Event>> {
        let id = match &body {
            CommandBody::Commit(c) => CommandId::of_worker(self.run.id(), c.epoch, c.number),
            _ => CommandId::from_uuid(Uuid::new_v4()),
        };
        let basis = WriteBasis::of(&self.run);
        let command = Command { id, actor: Actor::Worker("doomed".to_owned()), body };
        let events = decide(&self.run, &command, self.store.now().await?)?.events;
        events.iter().try_for_each(|event| self.run.apply(event))?;
        let writes = basis.writes(&self.run, &events);
        self.append(None, events.clone(), writes).await?;
        Ok(events)
    }

    /// What a worker did before it died with its node.
    async fn commit(&mut self, commands: Vec<CommitCommand>) -> anyhow::Result<Vec<Event>> {
        if self.run.owner().is_none() {
            let worker = WorkerInfo { identity: "doomed".to_owned(), build_id: "1".to_owned() };
            let attach = Attach::by(SessionId::from_uuid(Uuid::new_v4()), worker);
            self.send(CommandBody::Attach(attach)).await?;
        }
        let (epoch, number, seen) = (self.run.epoch(), self.run.committed() + 1, self.run.seq());
        self.send(CommandBody::Commit(WorkerCommit { epoch, number, seen, commands, ahead: None })).await
    }
}

fn request(workflow_type: &str, input: &str) -> StartRun {
    StartRun {
        namespace: "default".to_owned(),
        workflow_id: Uuid::new_v4().to_string(),
        workflow_type: workflow_type.to_owned(),
        task_queue: "default".to_owned(),
        input: Payload::json(input.to_owned()),
        request_id: "1".to_owned(),
        ..StartRun::default()
    }
}

async fn ids(store: &dyn Store) -> anyhow::Result<(RunId, u64)> {
    Ok((RunId::derived(store.now().await?, &[Uuid::new_v4().as_bytes()]), 1))
}

fn child(op: u32, workflow_type: &str, input: &str, on_parent_close: ParentClose) -> CommitCommand {
    CommitCommand::StartChild(Box::new(ChildScheduled {
        child: OpId(op),
        run_id: RunId::from_uuid(Uuid::nil()),
        workflow_type: workflow_type.to_owned(),
        workflow_id: String::new(),
        task_queue: String::new(),
        input: Payload::json(input.to_owned()),
        run_timeout: None,
        retry: None,
        reuse: everstep::ReusePolicy::default(),
        on_parent_close,
        report_start: false,
        notes: everstep_core::Notes::default(),
    }))
}

/// A parent whose node died between the commit that asks for a child and the child's start.
async fn asked_for(store: &dyn Store) -> anyhow::Result<Doomed<'_>> {
    let mut parent = Doomed::start(store, &request("tells", "\"result\""), ids(store).await?).await?;
    parent.commit(vec![child(1, "double", "21", ParentClose::Terminate), CommitCommand::Park]).await?;
    Ok(parent)
}

/// The child that the parent's last node was to start.
fn to_start(parent: &Run, events: &[Event]) -> anyhow::Result<(StartRun, (RunId, u64))> {
    let told = events.iter().flat_map(|e| parent.outbound(e)).next();
    let Some(Outbound::Start(start)) = told else { anyhow::bail!("no child: {told:?}") };
    Ok((start.start, (start.run_id, start.seed)))
}

async fn children_of(client: &Client, parent: RunId) -> anyhow::Result<Vec<(String, RunStatus)>> {
    let filter = RunListFilter { parent: Some(parent), ..RunListFilter::default() };
    let page = client.list(&filter, "").await?;
    Ok(page.runs.into_iter().map(|r| (r.run.run_id, r.status)).collect())
}

/// All that a node can leave undone when it dies.
async fn leave_undone(store: &dyn Store) -> anyhow::Result<Vec<RunId>> {
    let before_start = asked_for(store).await?.run.id();

    let mut parent = asked_for(store).await?;
    let events = store.read_events(parent.run.id(), 0, 100).await?;
    let (start, ids) = to_start(&parent.run, &events)?;
    Doomed::start(store, &start, ids).await?;
    let after_start = parent.run.id();

    parent = asked_for(store).await?;
    let events = store.read_events(parent.run.id(), 0, 100).await?;
    let (start, ids) = to_start(&parent.run, &events)?;
    let mut begun = Doomed::start(store, &start, ids).await?;
    let result = Payload::json("42");
    begun.commit(vec![CommitCommand::CompleteRun { result, unconsumed: Vec::new() }]).await?;
    Ok(vec![before_start, after_start, parent.run.id()])
}

/// The next node does what was left undone, once.
async fn is_done(store: &Arc<dyn Store>, parents: Vec<RunId>) -> anyhow::Result<()> {
    let (node, _worker) = node_on(store).await?;
    let client = node.client()?;
    for parent in parents {
        let run = client.handle::<String>(parent);
        assert_eq!(run.result().await?, "42", "{:?}", kinds(&run).await?);
        let kinds = kinds(&run).await?;
        assert_eq!(kinds.iter().filter(|k| *k == "ChildClosed").count(), 1, "{kinds:?}");
        let children = children_of(&client, parent).await?;
        assert!(matches!(children[..], [(_, RunStatus::Completed)]), "{children:?}");
    }
    quiet(store).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_node_was_to_tell_is_told_once() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        let parents = leave_undone(&**store).await?;
        is_done(store, parents).await.map_err(|e| e.context(*name))?;
    }
    Ok(())
}

/// The same with a file that is closed and opened again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_node_was_to_tell_is_in_its_file() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path: &Path = &folder.path().join("everstep.db");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(path).await?);
    let parents = leave_undone(&*store).await?;
    store.close().await;
    drop(store);
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(path).await?);
    is_done(&store, parents).await
}

/// The node dies over a parent that has ended while its child was still to begin, and over one whose child has.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_ended_leaves_no_orphan() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        let mut parents = Vec::new();
        for started in [false, true] {
            let start = request("tells", "\"cancel\"");
            let mut parent = Doomed::start(&**store, &start, ids(&**store).await?).await?;
            let wanted = child(1, "waits", "null", ParentClose::Terminate);
            let events = parent.commit(vec![wanted, CommitCommand::Park]).await?;
            if started {
                let (start, ids) = to_start(&parent.run, &events)?;
                Doomed::start(&**store, &start, ids).await?;
            }
            parent.send(CommandBody::Terminate { reason: "x".to_owned() }).await?;
            parents.push(parent.run.id());
        }
        let (node, _worker) = node_on(store).await?;
        quiet(store).await?;
        let client = node.client()?;
        for parent in parents {
            let children = children_of(&client, parent).await?;
            assert!(matches!(children[..], [(_, RunStatus::Terminated)]), "{name}: {children:?}");
        }
    }
    Ok(())
}

/// Parents on one node, children on the other, with news between them and without.
#[tokio::test(flavor = "multi_thread")]
async fn children_run_on_other_nodes() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let mut nats = NatsServer::start()?;
    let connect = async || -> anyhow::Result<(Arc<dyn Store>, RunningNode)> {
        let store = PostgresStore::connect(&database, stores::postgres_options()).await?;
        let store: Arc<dyn Store> = Arc::new(store);
        let dispatch = NatsDispatch::connect(&nats.url(), NatsOptions::default()).await?;
        let settings = NodeSettings::default();
        let node = RunningNode::start(Arc::clone(&store), Arc::new(dispatch), settings).await?;
        Ok((store, node))
    };
    let ((store, here), (_, there)) = (connect().await?, connect().await?);
    let park_late = Duration::from_secs(60);
    let parents = here.worker().park_after(park_late).register("tells", tells).register("fan", fan);
    let _parents = RunningWorker::start(parents)?;
    let children = there.worker().park_after(park_late).register("double", double).register("waits", waits);
    let _children = RunningWorker::start(children)?;
    let client = there.client()?;
    for nats_is_dead in [false, true] {
        if nats_is_dead {
            nats.kill_9()?;
        }
        for (what, expected) in [("result", "42"), ("signal", "sent 5"), ("cancel", "sent canceled Canceled")]
        {
            let run = client.workflow::<String>("tells").start(&what).await?;
            assert_eq!(run.result().await?, expected, "{what}, NATS dead: {nats_is_dead}");
        }
        let count = if nats_is_dead { 5 } else { 50 };
        let fan = client.workflow::<u32>("fan").start(&count).await?;
        assert_eq!(fan.result().await?, count * (count - 1));
    }
    quiet(&store).await
}
