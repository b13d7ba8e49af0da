//! What it picks, and what it refuses.

use super::*;

const TEXT: &str = "# Storms\n\nStorms form over warm oceans when moist air rises. Warm moist air feeds storms with \
    energy. Dr. Gray said so, e.g. in lectures. The weather was nice. Storms lose energy over land, because land \
    offers no moist air.\n\n```\nlet storms = 1;\n```\n- A list item about moist air and warm oceans and storms.\n";

#[test]
fn it_picks_whole_sentences_about_the_subject_in_their_own_order() {
    let summary = summarize(TEXT, 2).unwrap();
    let all = split(TEXT);
    assert!(all.iter().any(|s| s == "Dr. Gray said so, e.g. in lectures."), "{all:?}");
    assert!(all.iter().all(|s| !s.contains("let storms")), "code is not prose: {all:?}");
    let picked: Vec<usize> =
        all.iter().enumerate().filter(|(_, s)| summary.contains(*s)).map(|(i, _)| i).collect();
    assert_eq!(picked.len(), 2, "{summary}");
    assert!(summary.find(&*all[picked[0]]) < summary.find(&*all[picked[1]]));
    assert!(!summary.contains("nice"), "{summary}");
    assert_eq!(summary, summarize(TEXT, 2).unwrap());
}

#[test]
fn it_does_not_say_the_same_thing_twice() {
    let text = "The engine appends events to the log. The engine appends events to the log again. \
        Workers replay history after crashes.";
    let summary = summarize(text, 2).unwrap();
    assert!(summary.contains("Workers replay"), "{summary}");
}

#[test]
fn repetition_and_indented_code_crowd_nothing_out() {
    let text = "# Log\n\n    cargo run -- the log of events and the events of the log\n\n".to_owned()
        + &"The log holds events of the log. ".repeat(1_000)
        + "Workers replay them after crashes.\n";
    assert_eq!(
        summarize(&text, 2).unwrap(),
        "The log holds events of the log. Workers replay them after crashes."
    );
}

#[test]
fn a_short_text_is_its_own_summary() {
    for text in ["Some text. It is short.", "Done.", "It is."] {
        assert!(text.starts_with(&summarize(text, 3).unwrap()), "{text}");
    }
}

#[test]
fn nothing_to_summarize_is_said() {
    for (text, why) in
        [("", "empty"), (" \n\t", "empty"), ("\u{1}\u{2}\u{fffd}ab", "binary"), ("12 34", "sentences")]
    {
        match summarize(text, 3) {
            Err(ProviderError::NothingToSummarize(reason)) => assert!(reason.contains(why), "{reason}"),
            other => panic!("{text:?}: {other:?}"),
        }
    }
}

#[test]
fn long_and_foreign_texts_work() {
    let long = "Many different sentences about oceans follow each other here number. ".repeat(16_000);
    assert!(long.len() > 1_000_000);
    assert!(!summarize(&long, 5).unwrap().is_empty());
    let line = "x".repeat(1_000_000);
    assert!(summarize(&line, 5).is_err(), "a megabyte without a sentence");
    let foreign = "東京 は 大きい 都市 です。 大きい 都市 には 人 が 多い です。 Москва большой город и столица страны.";
    assert!(!summarize(foreign, 1).unwrap().is_empty());
}
