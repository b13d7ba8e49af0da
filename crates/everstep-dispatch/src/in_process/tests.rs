//! What the conformance suite cannot see: the bounds, and that idle queues are forgotten.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use everstep_core::QueueKey;
use uuid::Uuid;

use super::*;

fn queue(name: &str) -> HintQueue {
    HintQueue::runs(QueueKey { namespace: "default".to_owned(), task_queue: name.to_owned() })
}

fn hint(number: u128, queue: &HintQueue) -> TaskHint {
    TaskHint::new(RunId::from_uuid(Uuid::from_u128(number)), queue.clone())
}

fn numbers(taken: &[Delivery]) -> Vec<u128> {
    taken.iter().map(|delivery| delivery.hint.run_id.uuid().as_u128()).collect()
}

#[test]
fn a_full_queue_drops_its_oldest_hint() {
    let (key, mut queues) = (queue("q"), Queues::default());
    for number in 1..=5 {
        queues.push(hint(number, &key), 3, 100);
    }
    assert_eq!(queues.total, 3);
    assert_eq!(numbers(&queues.take(&key, 10)), [3, 4, 5]);
    assert_eq!(queues.total, 0);
    // A run whose hint was dropped can be queued again.
    queues.push(hint(1, &key), 3, 100);
    assert_eq!(numbers(&queues.take(&key, 10)), [1]);
}

#[test]
fn a_full_process_drops_the_new_hint() {
    let mut queues = Queues::default();
    for number in 1..=5 {
        queues.push(hint(number, &queue(&format!("q{number}"))), 10, 3);
    }
    assert_eq!((queues.total, queues.by_key.len()), (3, 3));
    assert_eq!(queues.take(&queue("q4"), 1), []);
    assert_eq!(numbers(&queues.take(&queue("q3"), 1)), [3]);
}

#[test]
fn a_run_waits_once_however_often_it_is_published() {
    let (key, mut queues) = (queue("q"), Queues::default());
    for _ in 0..5 {
        queues.push(hint(7, &key), 10, 10);
    }
    assert_eq!(numbers(&queues.take(&key, 10)), [7]);
    // Taken: from now on the run may need another worker.
    queues.push(hint(7, &key), 10, 10);
    assert_eq!(numbers(&queues.take(&key, 10)), [7]);
}

#[tokio::test]
async fn an_idle_queue_is_forgotten() {
    let (key, dispatch) = (queue("q"), InProcess::new());
    {
        let mut waiting = pin!(dispatch.pull(&key, 1));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(waiting.as_mut().poll(&mut context), Poll::Pending));
        assert_eq!(dispatch.lock().by_key.len(), 1);
    }
    assert_eq!(dispatch.lock().by_key.len(), 0);

    dispatch.publish(hint(1, &key)).await.unwrap();
    assert_eq!(dispatch.lock().by_key.len(), 1);
    assert_eq!(numbers(&dispatch.pull(&key, 1).await.unwrap()), [1]);
    assert_eq!(dispatch.lock().by_key.len(), 0);
}

/// A wake-up that went to a pull which is then dropped must reach the other one.
#[tokio::test]
async fn a_dropped_pull_passes_its_wake_up_on() {
    let (key, dispatch) = (queue("q"), InProcess::new());
    let mut context = Context::from_waker(Waker::noop());
    let mut second = pin!(dispatch.pull(&key, 1));
    {
        let mut first = pin!(dispatch.pull(&key, 1));
        assert!(matches!(first.as_mut().poll(&mut context), Poll::Pending));
        assert!(matches!(second.as_mut().poll(&mut context), Poll::Pending));
        dispatch.publish(hint(1, &key)).await.unwrap();
    }
    let Poll::Ready(Ok(taken)) = second.as_mut().poll(&mut context) else { panic!("the hint is stuck") };
    assert_eq!(numbers(&taken), [1]);
}

mod conformance {
    //! The suite itself.

    use super::super::*;
    use crate::conformance::{Harness, Traits, suite};

    struct OneNode(Arc<InProcess>);

    #[async_trait]
    impl Harness for OneNode {
        fn traits(&self) -> Traits {
            Traits { redelivers: false, shared: false }
        }

        async fn node(&self) -> Arc<dyn Dispatch> {
            Arc::clone(&self.0) as Arc<dyn Dispatch>
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn passes_the_suite() {
        suite(&OneNode(Arc::new(InProcess::new()))).await;
    }
}
