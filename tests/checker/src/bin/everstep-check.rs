//! `everstep-check FOLDER…`: judges cases and writes what came of it beside them. Exits with 1 when one
//! fails, with 2 when one does not count, with 3 when one cannot be read.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use everstep_checker::{Verdict, Word};

fn main() -> ExitCode {
    let folders: Vec<_> = std::env::args_os().skip(1).collect();
    let mut worst = 0;
    if folders.is_empty() {
        worst = 3;
        let _ = writeln!(std::io::stderr(), "usage: everstep-check FOLDER…");
    }
    for folder in folders {
        let folder = Path::new(&folder);
        let code = match everstep_checker::judge(folder).and_then(|v| {
            everstep_checker::write(&v, folder)?;
            tell(folder, &v)?;
            Ok(v)
        }) {
            Ok(verdict) => match verdict.verdict {
                Word::Pass => 0,
                Word::Fail => 1,
                Word::Invalid => 2,
            },
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "{}: {error:#}", folder.display());
                3
            }
        };
        // A failure is worse than a case that does not count.
        worst = if worst == 1 || code == 1 { 1 } else { worst.max(code) };
    }
    ExitCode::from(worst)
}

fn tell(folder: &Path, verdict: &Verdict) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}: {:?}", folder.display(), verdict.verdict)?;
    for reason in &verdict.invalid {
        writeln!(out, "  does not count: {reason}")?;
    }
    for check in &verdict.checks {
        let word = if check.ok { "ok  " } else { "FAIL" };
        writeln!(out, "  {word} {} ({}): {} checked", check.name, check.inv.join(", "), check.checked)?;
        for note in &check.notes {
            writeln!(out, "         {note}")?;
        }
        for problem in &check.problems {
            writeln!(out, "       - {problem}")?;
        }
        if check.more_problems > 0 {
            writeln!(out, "       - and {} more", check.more_problems)?;
        }
    }
    Ok(())
}
