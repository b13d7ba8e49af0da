//! Data on stdout, everything else on stderr; a closed pipe is no error.

use std::io::{self, ErrorKind, Write};

use clap::ValueEnum;

use crate::fail::Fail;

/// How data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON document
    Json,
    /// One JSON document a line
    Jsonl,
}

/// Writes data.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Fail> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        // `everstep … | head` has what it wanted.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Fail::refused(format!("stdout: {e}"))),
    }
}

/// Writes a line of data.
pub(crate) fn line(text: &str) -> Result<(), Fail> {
    write(format!("{text}\n").as_bytes())
}

/// Writes a JSON value, indented.
pub(crate) fn json(value: &serde_json::Value) -> Result<(), Fail> {
    line(&serde_json::to_string_pretty(value).unwrap_or_default())
}

/// Says something that is not data.
pub(crate) fn note(text: &str) {
    // Nobody is left to hear that stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
