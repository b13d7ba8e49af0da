//! Rules for single files: what they open with, how long they get, what never appears in them.
//!
//! The words that are looked for are written in pieces here, so that this file keeps its own rules.

use super::{File, Problems};

const LINES_MAX: usize = 800;
const REQUIRED_FILES: [&str; 6] =
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "LICENSE", "docs/concepts.md", "docs/errors.md"];
const VAGUE_MODULES: [&str; 5] = ["utils", "util", "helpers", "misc", "common"];

/// Tests whose subject is a sleep that must be refused: workflow code that waits for a foreign timer. And the
/// proxy for tests, which delays what it passes on, and faults that last.
const SLEEP_IS_THE_SUBJECT: [&str; 3] =
    ["crates/everstep/src/machine/tests.rs", "tests/faultproxy/src/pace.rs", "tests/chaos/src/pace.rs"];

/// Notes to oneself: they become an issue, or are done before the merge.
const BANNED_WORDS: [&str; 4] =
    [concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK"), concat!("TO", "DO")];
const BANNED_MACROS: [&str; 2] = [concat!("to", "do!("), concat!("unimple", "mented!(")];
const IGNORED_TEST: &str = concat!("#[ig", "nore");
const MACHINE_PATHS: [&str; 5] = [
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/opt/wh", "eels"),
];
const REGISTRY_SETTINGS: [&str; 4] = [
    concat!("index", "-url"),
    concat!("PIP_", "INDEX"),
    concat!("replace", "-with"),
    concat!("trusted", "-host"),
];
const PUBLIC_REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(super) fn check(files: &[File]) -> Problems {
    let mut problems = Problems::new();
    check_required_files(files, &mut problems);
    for file in files {
        if file.is_rust() {
            check_module_doc(file, &mut problems);
            check_module_name(file, &mut problems);
            check_tests_run(file, &mut problems);
            check_no_sleep_in_tests(file, &mut problems);
        }
        check_length(file, &mut problems);
        check_words(file, &mut problems);
        check_places(file, &mut problems);
        check_lock_file(file, &mut problems);
    }
    problems
}

fn check_required_files(files: &[File], problems: &mut Problems) {
    for required in REQUIRED_FILES {
        if !files.iter().any(|file| file.path == required) {
            problems.push(format!("{required}: is missing; newcomers and tests look for it there"));
        }
    }
}

fn check_module_doc(file: &File, problems: &mut Problems) {
    let first = file.text.lines().find(|line| !line.trim().is_empty());
    if !first.is_some_and(|line| line.starts_with("//!")) {
        problems
            .push(format!("{}: must open with `//!`: what the file owns, and what is not in it", file.path));
    }
}

fn check_module_name(file: &File, problems: &mut Problems) {
    let vague = file.path.trim_end_matches(".rs").split('/').find(|part| VAGUE_MODULES.contains(part));
    if let Some(vague) = vague {
        problems.push(format!(
            "{}: `{vague}` says nothing; name the module after the concept it holds",
            file.path
        ));
    }
}

fn check_length(file: &File, problems: &mut Problems) {
    let code = [".rs", ".proto", ".sql", ".py", ".ts"].iter().any(|ending| file.path.ends_with(ending));
    let exempt = file.name() == "tests.rs" || is_generated(file);
    let lines = file.text.lines().count();
    if code && !exempt && lines > LINES_MAX {
        problems
            .push(format!("{}: has {lines} lines, more than {LINES_MAX}; split it by concept", file.path));
    }
}

fn is_generated(file: &File) -> bool {
    file.text.lines().take(5).any(|line| line.contains(concat!("@gener", "ated")))
}

fn check_words(file: &File, problems: &mut Problems) {
    if file.path == "Cargo.lock" || file.name() == "LICENSE" {
        return;
    }
    for (number, line) in numbered(file) {
        if let Some(word) = BANNED_WORDS.iter().find(|word| has_word(line, word)) {
            problems.push(format!(
                "{}:{number}: `{word}`: do it now, or open an issue and say why here",
                file.path
            ));
        }
        let code = file.is_rust() && !is_comment(line);
        if let Some(name) = BANNED_MACROS.iter().find(|name| code && line.contains(**name)) {
            problems
                .push(format!("{}:{number}: `{name}`: write the code, or return a typed error", file.path));
        }
    }
}

fn check_tests_run(file: &File, problems: &mut Problems) {
    for (number, _) in numbered(file).filter(|(_, line)| !is_comment(line) && line.contains(IGNORED_TEST)) {
        problems.push(format!(
            "{}:{number}: a test that never runs proves nothing; mend it or remove it",
            file.path
        ));
    }
}

fn check_no_sleep_in_tests(file: &File, problems: &mut Problems) {
    let test = file.path.starts_with("tests/") || file.path.contains("/tests/") || file.name() == "tests.rs";
    if !test || SLEEP_IS_THE_SUBJECT.contains(&file.path.as_str()) {
        return;
    }
    for (number, _) in numbered(file).filter(|(_, line)| !is_comment(line) && calls_sleep(line)) {
        problems.push(format!(
            "{}:{number}: tests do not sleep; wait for the event itself, or move a paused clock with \
             `tokio::time::advance`",
            file.path
        ));
    }
}

/// Whether the line calls a free function `sleep` or `sleep_until`: the methods of the SDK
/// (`ctx.sleep`) and of simulated clocks are no real waiting.
fn calls_sleep(line: &str) -> bool {
    ["sleep(", "sleep_until("].iter().any(|call| {
        line.match_indices(call).any(|(at, _)| {
            let before = &line[..at];
            let part_of_a_name = before.ends_with(|last: char| last.is_alphanumeric() || last == '_');
            !part_of_a_name && !before.ends_with('.') && !before.ends_with("fn ")
        })
    })
}

fn check_places(file: &File, problems: &mut Problems) {
    for (number, line) in numbered(file) {
        if let Some(place) = MACHINE_PATHS.iter().find(|place| line.contains(**place)) {
            let path = &file.path;
            problems
                .push(format!("{path}:{number}: `{place}` exists on one machine only; use a relative path"));
        }
        if let Some(setting) = REGISTRY_SETTINGS.iter().find(|setting| line.contains(**setting)) {
            problems.push(format!(
                "{}:{number}: `{setting}` names a package registry; that belongs into the machine's own settings",
                file.path
            ));
        }
    }
}

fn check_lock_file(file: &File, problems: &mut Problems) {
    if file.name() != "Cargo.lock" {
        return;
    }
    for (number, line) in numbered(file) {
        let source = line.strip_prefix("source = \"").and_then(|rest| rest.strip_suffix('"'));
        if let Some(source) = source.filter(|source| *source != PUBLIC_REGISTRY) {
            problems.push(format!(
                "{}:{number}: `{source}` is not the public registry; others cannot build from it",
                file.path
            ));
        }
    }
}

fn numbered(file: &File) -> impl Iterator<Item = (usize, &str)> {
    file.text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// Whether the word stands alone in the line, and not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let part =
            |character: Option<char>| character.is_some_and(|found| found.is_alphanumeric() || found == '_');
        !part(line[..at].chars().next_back()) && !part(line[at + word.len()..].chars().next())
    })
}
