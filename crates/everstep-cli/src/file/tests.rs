//! Which setting wins, and what a wrong file is told.

use super::*;

#[test]
fn a_wrong_file_names_its_line() {
    assert_eq!(parse("address = \"x\"\nport = 1\n").unwrap().len(), 2);
    assert_eq!(parse("\nadress = \"x\"\n").unwrap_err().0, 2);
    assert!(parse("address = [1]").unwrap_err().1.contains("array"));
    assert_eq!(parse("db = \"x\"\nnamespace = \u{201c}default\u{201d}\n").unwrap_err().0, 2);
    assert_eq!(parse("db = \"x\"\ndb = \"y\"\n").unwrap_err().0, 2);
}

#[test]
fn a_flag_wins_over_the_file() {
    let command = clap::Command::new("everstep").subcommand(
        clap::Command::new("dev")
            .arg(clap::Arg::new("port").long("port").num_args(1))
            .arg(clap::Arg::new("demo").long("demo").action(clap::ArgAction::SetTrue)),
    );
    let settings = parse("port = 1\ndb = \"ignored by dev here\"").unwrap();
    let args = |words: &[&str]| {
        let got = with_settings(words.iter().map(OsString::from), &settings, &command);
        got.into_iter().map(|a| a.into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(args(&["everstep", "dev"]), ["everstep", "dev", "--port=1"]);
    assert_eq!(args(&["everstep", "dev", "--port", "2"]), ["everstep", "dev", "--port", "2"]);
    assert_eq!(args(&["everstep", "dev", "--", "x"]), ["everstep", "dev", "--port=1", "--", "x"]);
}
