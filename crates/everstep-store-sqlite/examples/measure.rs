//! Temporary measurement.
use everstep_core::*;
use everstep_store::*;
use everstep_store_sqlite::SqliteStore;
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    for (runs, per) in [(1usize, 1u64), (8, 1), (64, 1), (64, 2)] {
        let path = dir.join(format!("m{runs}x{per}.db"));
        let store = SqliteStore::open(&path).await.unwrap();
        let mut ids: Vec<RunId> = (0..runs).map(|_| RunId::from_uuid(Uuid::now_v7())).collect();
        let mut seq = 1u64;
        let mut made = |ids: &Vec<RunId>, seq: u64| -> Vec<Append> {
            ids.iter()
                .map(|run| {
                    let events = (seq..seq + per)
                        .map(|s| Event {
                            seq: s,
                            at: Timestamp::from_micros(1_700_000_000_000_000),
                            epoch: 1,
                            command_id: CommandId::from_uuid(Uuid::now_v7()),
                            actor: Actor::Worker("worker@host:1234".into()),
                            body: EventBody::StepCompleted {
                                step: OpId(s as u32),
                                name: "charge_card".into(),
                                attempt: 1,
                                elapsed: Duration::from_micros(1234),
                                result: Payload::json(vec![b'x'; 128]),
                            },
                        })
                        .collect();
                    Append::of(RunAppend {
                        run_id: *run,
                        start: None,
                        events: Arc::new(events),
                        writes: vec![],
                    })
                })
                .collect()
        };
        for warm in [true, false] {
            let n = if warm { 50 } else { 2000 / (1 + runs / 16) };
            let t = Instant::now();
            let mut lat = vec![];
            for _ in 0..n {
                if seq > 20 {
                    ids = (0..runs).map(|_| RunId::from_uuid(Uuid::now_v7())).collect();
                    seq = 1;
                }
                let b = made(&ids, seq);
                let t1 = Instant::now();
                let r = store.append(b).await;
                lat.push(t1.elapsed());
                assert!(r.verdicts.iter().all(|v| matches!(v, Verdict::Committed)), "{:?}", r.verdicts);
                seq += per;
            }
            lat.sort();
            if !warm {
                let ev = n as u64 * runs as u64 * per;
                println!(
                    "{runs:3} runs x {per}: batch p50 {:?} p99 {:?}; {:.0} events/s; db {} KiB wal {} KiB",
                    lat[lat.len() / 2],
                    lat[lat.len() * 99 / 100],
                    ev as f64 / t.elapsed().as_secs_f64(),
                    std::fs::metadata(&path).unwrap().len() / 1024,
                    std::fs::metadata(path.with_file_name(format!("m{runs}x{per}.db-wal")))
                        .map(|m| m.len() / 1024)
                        .unwrap_or(0)
                );
            }
        }
        // reading
        let t = Instant::now();
        let mut c = 0;
        for id in &ids {
            c += store.read_events(*id, 0, 1000).await.unwrap().len();
        }
        println!(
            "      read {c} events of {} runs in {:?}; written bytes {}",
            ids.len(),
            t.elapsed(),
            std::fs::read_to_string("/proc/self/io")
                .unwrap()
                .lines()
                .find(|l| l.starts_with("write_bytes"))
                .unwrap()
        );
    }
}
