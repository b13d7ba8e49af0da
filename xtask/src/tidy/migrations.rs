//! Migrations: the same numbers and names for both databases, and none edited once it is recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::bail;
use sha2::{Digest as _, Sha256};

use super::{File, Problems};

/// The checked-in list: `<sha256>  <path>`, one migration a line.
pub(super) const CHECKSUMS: &str = "migrations/checksums.txt";
const FOLDERS: [&str; 2] = ["migrations/postgres/", "migrations/sqlite/"];

pub(super) fn check(files: &[File]) -> Problems {
    let mut problems = Problems::new();
    check_names(files, &mut problems);
    check_pairs(files, &mut problems);
    check_numbers(files, &mut problems);
    check_recorded(files, &mut problems);
    check_unrecorded(files, &mut problems);
    problems
}

fn check_names(files: &[File], problems: &mut Problems) {
    for file in migrations(files) {
        let (number, name) = file.name().trim_end_matches(".sql").split_once('_').unwrap_or_default();
        let numbered = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
        let named = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte));
        if !numbered || !named || !file.path.ends_with(".sql") {
            problems.push(format!("{}: a migration is named NNNN_what_it_does.sql", file.path));
        }
    }
}

fn check_pairs(files: &[File], problems: &mut Problems) {
    let [postgres, sqlite] = FOLDERS.map(|folder| names_in(files, folder));
    for (here, there, folder) in [(&postgres, &sqlite, FOLDERS[1]), (&sqlite, &postgres, FOLDERS[0])] {
        for name in here.difference(there) {
            problems.push(format!(
                "{folder}{name}: is missing; both databases have the same migrations (a comment alone will do \
                 where one needs no change)"
            ));
        }
    }
}

fn check_numbers(files: &[File], problems: &mut Problems) {
    for folder in FOLDERS {
        for (index, name) in names_in(files, folder).into_iter().enumerate() {
            let expected = format!("{:04}", index + 1);
            if !name.starts_with(&expected) {
                problems.push(format!(
                    "{folder}{name}: the next number is {expected}; two branches may have collided"
                ));
            }
        }
    }
}

fn check_recorded(files: &[File], problems: &mut Problems) {
    for (path, recorded) in recorded(files) {
        match files.iter().find(|file| file.path == path) {
            None => problems
                .push(format!("{path}: was removed; databases that ran it still need it, so restore it")),
            Some(file) if checksum(file) != recorded => problems.push(format!(
                "{path}: was edited after it was recorded; restore it and write the change as a new migration"
            )),
            Some(_) => {}
        }
    }
}

fn check_unrecorded(files: &[File], problems: &mut Problems) {
    let recorded = recorded(files);
    for file in migrations(files).filter(|file| !recorded.contains_key(&file.path)) {
        problems.push(format!("{}: is not in {CHECKSUMS}; run `cargo xtask tidy --bless`", file.path));
    }
}

/// The list with the new migrations added; what is recorded stays as it is.
pub(super) fn bless(files: &[File]) -> anyhow::Result<String> {
    let mut problems = Problems::new();
    check_recorded(files, &mut problems);
    check_names(files, &mut problems);
    if let Some(problem) = problems.first() {
        bail!("{problem}");
    }
    let mut list = recorded(files);
    for file in migrations(files) {
        list.entry(file.path.clone()).or_insert_with(|| checksum(file));
    }
    Ok(list.iter().map(|(path, sum)| format!("{sum}  {path}\n")).collect())
}

fn migrations(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| FOLDERS.iter().any(|folder| file.path.starts_with(folder)))
}

fn names_in(files: &[File], folder: &str) -> BTreeSet<String> {
    files.iter().filter_map(|file| file.path.strip_prefix(folder)).map(str::to_owned).collect()
}

fn recorded(files: &[File]) -> BTreeMap<String, String> {
    let list = files.iter().find(|file| file.path == CHECKSUMS);
    let lines = list.into_iter().flat_map(|file| file.text.lines());
    lines
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, path)| (path.to_owned(), sum.to_owned()))
        .collect()
}

fn checksum(file: &File) -> String {
    Sha256::digest(file.text.as_bytes()).iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
