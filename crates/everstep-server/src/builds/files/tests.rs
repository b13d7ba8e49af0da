//! Pieces of files, in order and out of it.

use everstep_core::RunId;
use tonic_types::StatusExt;
use uuid::Uuid;

use super::*;

fn piece(label: &str, data: &[u8], last: bool) -> api::CheckHistoriesRequest {
    let data = data.to_vec().into();
    api::CheckHistoriesRequest { label: label.to_owned(), data, last, ..Default::default() }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

#[test]
fn a_file_is_gathered_until_its_last_piece() {
    let mut gathered = Gathered::default();
    assert!(!gathered.add(piece("a", b"1", false)).unwrap());
    assert!(!gathered.add(piece("", b"2", false)).unwrap(), "the label need not be said again");
    assert!(gathered.add(piece("a", b"3", true)).unwrap());
    assert_eq!((gathered.label.as_str(), gathered.data.as_slice()), ("a", b"123".as_slice()));
}

#[test]
fn a_second_file_within_the_first_is_refused() {
    let mut gathered = Gathered::default();
    gathered.add(piece("a", b"1", false)).unwrap();
    let error = gathered.add(piece("b", b"1", false)).unwrap_err();
    assert_eq!(reason(&error), "INVALID_HISTORY");
    assert!(error.message().starts_with("a:"), "{error}");
}

#[test]
fn a_file_has_a_limit() {
    let mut gathered = Gathered { label: "a".to_owned(), data: vec![0; FILE_BYTES_MAX] };
    let error = gathered.add(piece("a", b"1", true)).unwrap_err();
    assert_eq!(reason(&error), "LIMIT_EXCEEDED");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_says_nothing_is_not_waited_for_for_ever() {
    let began = tokio::time::Instant::now();
    for (said, problem) in [(None, "what is to be checked"), (Some(piece("a", b"1", false)), "the rest of a")]
    {
        let inbound = futures::stream::iter(said.map(Ok)).chain(futures::stream::pending());
        let error = Files::new(inbound).next().await.map(|_| ()).unwrap_err();
        assert_eq!(reason(&error), "CALLER_SILENT");
        assert!(error.message().starts_with(problem), "{error}");
    }
    assert_eq!(began.elapsed(), 2 * SILENCE_MAX);
    // One that has said all it has is not silent.
    assert!(Files::new(futures::stream::empty()).next().await.unwrap().is_none());
}

#[test]
fn what_is_no_history_is_refused_with_its_label_made_safe() {
    let run = RunId::from_uuid(Uuid::from_u128(1));
    for data in [Vec::new(), vec![0xff; 40], file::header(run, "n", 0, None), file::header(run, "n", 2, None)]
    {
        let Err(error) = read("bad\u{1b}[31m", &data) else { panic!("{data:?} was taken") };
        assert_eq!(reason(&error), "INVALID_HISTORY");
        assert!(error.message().starts_with("bad\\u{1b}[31m: "), "{error}");
    }
}
