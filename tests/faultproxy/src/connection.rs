//! One connection: two ways, each with a half that reads and judges, and one that writes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::grpc::Frames;
use crate::nats::Lines;
use crate::proxy::Core;
use crate::table::{Fate, Plan, Way};
use crate::unit::{Fact, Parser, Raw, Unit};
use crate::{Mode, pace, postgres};

/// Units that wait to be written at most.
const WAITING_MAX: usize = 256;
/// A message that waits for one to change places with goes alone after this long.
const SWAP_MS: u64 = 500;

/// Why a connection is over.
#[derive(Debug)]
enum End {
    /// One side has closed it.
    Closed,
    /// It is reset on both sides.
    Reset,
    /// The client is reset, and the server gets this later.
    Late { ms: u64, bytes: Vec<Bytes> },
}

#[derive(Debug)]
enum Item {
    Bytes { bytes: Bytes, at: Option<Instant>, bytes_per_s: Option<u64> },
    End(End),
}

/// A message that waits for the next one of such a subject.
#[derive(Debug)]
struct Waiting {
    number: u64,
    rule: u64,
    subject: String,
    bytes: Bytes,
}

/// The reading half of a way.
struct Reader<'a> {
    core: &'a Arc<Core>,
    way: Way,
    random: ChaCha8Rng,
    parser: Box<dyn Parser>,
    talk: postgres::Shared,
    out: mpsc::Sender<Item>,
    waiting: Arc<Mutex<Option<Waiting>>>,
    /// Messages that have waited.
    waited: u64,
    /// A request that is to come late, so far.
    late: Option<(u64, Vec<Bytes>)>,
    /// What was delayed keeps its order.
    last: Option<Instant>,
}

/// Relays until one side closes, a rule ends it, or `reset` does.
pub(crate) async fn serve(core: Arc<Core>, mut client: TcpStream, number: u64, reset: Arc<Notify>) {
    let Ok(mut server) = TcpStream::connect(core.upstream()).await else {
        let _ = client.set_zero_linger();
        return core.forget(number);
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let end = relay(&core, (&mut client, &mut server), number, &reset).await;
    tracing::debug!(number, ?end, "connection over");
    match end {
        End::Closed => {}
        End::Reset => {
            let _ = (client.set_zero_linger(), server.set_zero_linger());
        }
        End::Late { ms, bytes } => {
            let _ = client.set_zero_linger();
            drop(client);
            pace::for_ms(ms).await;
            late(server, &bytes).await;
        }
    }
    core.forget(number);
}

async fn relay(
    core: &Arc<Core>,
    (client, server): (&mut TcpStream, &mut TcpStream),
    number: u64,
    reset: &Notify,
) -> End {
    let talk = postgres::Shared::default();
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = pass(core, Way { connection: number, up: true }, &talk, (from_client, to_server));
    let down = pass(core, Way { connection: number, up: false }, &talk, (from_server, to_client));
    let ends = async { tokio::try_join!(up, down).err().unwrap_or(End::Closed) };
    tokio::select! {
        biased;
        () = reset.notified() => End::Reset,
        end = ends => end,
    }
}

async fn pass(
    core: &Arc<Core>,
    way: Way,
    talk: &postgres::Shared,
    (source, target): (ReadHalf<'_>, WriteHalf<'_>),
) -> Result<(), End> {
    let (out, items) = mpsc::channel(WAITING_MAX);
    let parser: Box<dyn Parser> = match (core.mode(), way.up) {
        (Mode::Plain, _) => Box::new(Raw),
        (Mode::Postgres, true) => Box::new(postgres::Requests(talk.clone())),
        (Mode::Postgres, false) => Box::new(postgres::Answers(talk.clone())),
        (Mode::Nats, _) => Box::new(Lines),
        (Mode::Grpc, up) => Box::new(Frames::new(up)),
    };
    let reader = Reader {
        core,
        way,
        random: core.random(way),
        parser,
        talk: talk.clone(),
        out,
        waiting: Arc::default(),
        waited: 0,
        late: None,
        last: None,
    };
    tokio::try_join!(reader.read(source), write(target, items)).map(|_| ())
}

/// Gives the server what it was to get, and waits until it has done with it.
async fn late(mut server: TcpStream, bytes: &[Bytes]) {
    for part in bytes {
        if server.write_all(part).await.is_err() {
            return;
        }
    }
    let _ = server.shutdown().await;
    let mut rest = BytesMut::new();
    while let Ok(1..) = server.read_buf(&mut rest).await {
        rest.clear();
    }
}

async fn write(mut target: WriteHalf<'_>, mut items: mpsc::Receiver<Item>) -> Result<(), End> {
    while let Some(item) = items.recv().await {
        match item {
            Item::Bytes { bytes, at, bytes_per_s } => {
                if let Some(at) = at {
                    pace::until(at).await;
                }
                write_at(&mut target, bytes, bytes_per_s).await.map_err(|_| End::Closed)?;
            }
            Item::End(end) => return Err(end),
        }
    }
    let _ = target.shutdown().await;
    Ok(())
}

async fn write_at(target: &mut WriteHalf<'_>, bytes: Bytes, bytes_per_s: Option<u64>) -> std::io::Result<()> {
    let Some(rate) = bytes_per_s else { return target.write_all(&bytes).await };
    // A hundred pieces a second, so that a large unit trickles as well.
    let piece = usize::try_from(rate / 100).unwrap_or(usize::MAX).max(1);
    for piece in bytes.chunks(piece) {
        pace::for_bytes(piece.len(), rate).await;
        target.write_all(piece).await?;
    }
    Ok(())
}

impl Reader<'_> {
    async fn read(mut self, mut source: ReadHalf<'_>) -> Result<(), End> {
        let mut rules = self.core.rules();
        let mut buffer = BytesMut::new();
        let mut counted = BTreeSet::new();
        loop {
            rules.borrow_and_update();
            if let Some(rule) = self.core.held(self.way) {
                let first = !counted.contains(&rule);
                let parts = !buffer.is_empty();
                tokio::select! {
                    biased;
                    _ = rules.changed() => {}
                    // Held back is only what there is to hold back.
                    () = arrives(&mut source, parts), if first => {
                        counted.insert(rule);
                        self.core.held_back(rule);
                    }
                }
                continue;
            }
            if let Some(unit) = self.parser.next(&mut buffer) {
                self.take(unit).await?;
                continue;
            }
            tokio::select! {
                biased;
                _ = rules.changed() => {}
                read = source.read_buf(&mut buffer) => match read {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(_) => return Err(End::Reset),
                },
            }
        }
        // What never became whole goes as it is.
        if !buffer.is_empty() {
            self.send(buffer.freeze(), &Plan::default()).await?;
        }
        Ok(())
    }

    async fn take(&mut self, unit: Unit) -> Result<(), End> {
        if let Some((ms, mut bytes)) = self.late.take() {
            let whole = unit.fact == Fact::Sync;
            bytes.push(unit.bytes);
            if whole {
                return self.end(End::Late { ms, bytes }).await;
            }
            self.late = Some((ms, bytes));
            return Ok(());
        }
        match unit.fact {
            Fact::Answer if self.talk.swallow(&unit.bytes) => return Ok(()),
            Fact::Failed => {
                for bytes in self.talk.give_back() {
                    self.send(bytes, &Plan::default()).await?;
                }
            }
            Fact::Ready => {
                if let Some(rule) = self.talk.ready() {
                    self.core.note(rule);
                    return self.end(End::Reset).await;
                }
            }
            _ => {}
        }
        let plan = self.core.judge(self.way, &unit, &mut self.random);
        if let Some(rule) = plan.lose {
            self.talk.lose(rule);
        }
        self.carry_out(plan, unit).await
    }

    async fn carry_out(&mut self, plan: Plan, unit: Unit) -> Result<(), End> {
        for &ms in &plan.replays {
            self.again(unit.bytes.clone(), ms);
        }
        match &plan.fate {
            Fate::Pass => {
                let earlier = self.overtaken(&unit.fact);
                for _ in 0..=plan.copies {
                    self.send(unit.bytes.clone(), &plan).await?;
                }
                if let Some(earlier) = earlier {
                    self.core.note(earlier.rule);
                    self.send(earlier.bytes, &plan).await?;
                }
            }
            Fate::Swallow => {
                if plan.hole {
                    self.core.has_hole(self.way.connection);
                }
            }
            Fate::Swap { rule, subject } => match self.overtaken(&unit.fact) {
                Some(earlier) => {
                    self.core.note(earlier.rule);
                    self.send(unit.bytes, &plan).await?;
                    self.send(earlier.bytes, &plan).await?;
                }
                None => self.wait_for_next(*rule, subject.clone(), unit.bytes),
            },
            Fate::Reset => return self.end(End::Reset).await,
            Fate::Part(bytes) => {
                self.send(unit.bytes.slice(..*bytes), &plan).await?;
                return self.end(End::Reset).await;
            }
            Fate::Late(ms) if unit.bytes.first() == Some(&b'Q') => {
                return self.end(End::Late { ms: *ms, bytes: vec![unit.bytes] }).await;
            }
            Fate::Late(ms) => self.late = Some((*ms, vec![unit.bytes])),
        }
        if plan.reset_after {
            return self.end(End::Reset).await;
        }
        Ok(())
    }

    async fn send(&mut self, bytes: Bytes, plan: &Plan) -> Result<(), End> {
        let now = Instant::now();
        let at = (!plan.delay.is_zero()).then(|| now + plan.delay).max(self.last.filter(|last| *last > now));
        self.last = at;
        let item = Item::Bytes { bytes, at, bytes_per_s: plan.bytes_per_s };
        self.out.send(item).await.map_err(|_| End::Closed)
    }

    async fn end(&mut self, end: End) -> Result<(), End> {
        // The writing half ends the connection, once what came before is written.
        self.out.send(Item::End(end)).await.map_err(|_| End::Closed)?;
        std::future::pending().await
    }

    /// The message that this one overtakes.
    fn overtaken(&self, fact: &Fact) -> Option<Waiting> {
        let Fact::Message(subject) = fact else { return None };
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.take_if(|w| subject.starts_with(&w.subject))
    }

    fn wait_for_next(&mut self, rule: u64, subject: String, bytes: Bytes) {
        self.waited += 1;
        let number = self.waited;
        let waits = Waiting { number, rule, subject, bytes };
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(waits);
        let (waiting, out) = (Arc::clone(&self.waiting), self.out.downgrade());
        tokio::spawn(async move {
            pace::for_ms(SWAP_MS).await;
            let waiting =
                waiting.lock().unwrap_or_else(PoisonError::into_inner).take_if(|w| w.number == number);
            if let (Some(alone), Some(out)) = (waiting, out.upgrade()) {
                let _ = out.send(Item::Bytes { bytes: alone.bytes, at: None, bytes_per_s: None }).await;
            }
        });
    }

    fn again(&self, bytes: Bytes, ms: u64) {
        let out = self.out.downgrade();
        tokio::spawn(async move {
            pace::for_ms(ms).await;
            if let Some(out) = out.upgrade() {
                let _ = out.send(Item::Bytes { bytes, at: None, bytes_per_s: None }).await;
            }
        });
    }
}

/// Waits until something is there to read, or at once if something was read and not judged.
async fn arrives(source: &mut ReadHalf<'_>, parts: bool) {
    if !parts && source.peek(&mut [0]).await.is_err() {
        std::future::pending().await
    }
}
