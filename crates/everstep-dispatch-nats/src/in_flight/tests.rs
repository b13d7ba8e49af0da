//! Tokens, and that old ones go.

use super::*;

#[tokio::test(start_paused = true)]
async fn tokens_are_good_once_and_not_for_ever() {
    let in_flight = InFlight::new(Duration::from_secs(10));
    let (a, b) = (in_flight.insert("a"), in_flight.insert("b"));
    assert_eq!(in_flight.remove(a), Some("a"));
    assert_eq!(in_flight.remove(a), None);
    assert_eq!(in_flight.remove(99), None);

    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(in_flight.remove(b), None, "the redelivery is due by now");

    let c = in_flight.insert("c");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(in_flight.len(), 1);
    let d = in_flight.insert("d");
    assert_eq!(in_flight.len(), 1, "what is never acknowledged is forgotten");
    assert_eq!((in_flight.remove(c), in_flight.remove(d)), (None, Some("d")));
}
