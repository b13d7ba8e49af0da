//! Tests that the documentation names as proof: a link ``[`name`](../path/file.rs)`` must lead to a test of that name.

use super::{File, Problems};

/// The page that says what Everstep can do: all of its links to code are such links.
const COMPARISON: &str = "docs/comparison.md";

pub(super) fn check(files: &[File]) -> Problems {
    let mut problems = Problems::new();
    for page in files.iter().filter(|file| file.path.starts_with("docs/") && file.path.ends_with(".md")) {
        for (number, line) in page.text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            for (text, target) in links(line).filter(|(_, target)| target.ends_with(".rs")) {
                let name = text.trim_matches('`');
                let names_a_test = text.starts_with('`') && is_identifier(name);
                if !names_a_test && page.path != COMPARISON {
                    continue;
                }
                let path = resolve(&page.path, target);
                let found = files.iter().find(|file| file.path == path);
                if !found.is_some_and(|file| has_test(&file.text, name)) {
                    problems.push(format!(
                        "{}:{number}: there is no test `{name}` in {path}; name the test that shows it, or take the \
                         claim back",
                        page.path
                    ));
                }
            }
        }
    }
    problems
}

/// Text and target of each link of a line.
fn links(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.match_indices("](").filter_map(|(at, _)| {
        let (text, target) = (&line[..at], &line[at + 2..]);
        Some((&text[text.rfind('[')? + 1..], &target[..target.find(')')?]))
    })
}

fn is_identifier(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

/// The path that a link of a page leads to, from the root.
fn resolve(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Whether the file has a function of this name with an attribute that makes it a test.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let head = format!("fn {name}(");
    lines.iter().enumerate().filter(|(_, line)| line.contains(&head)).any(|(at, _)| {
        let mut above =
            lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        above.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    })
}
