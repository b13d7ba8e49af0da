//! Ends a server and removes its folder when the test process dies without doing so itself.
//!
//! Statics are never dropped, and nothing runs after SIGKILL. The guard is a shell that reads pids
//! from a pipe; the pipe closes with the test process, however that ends.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, ensure};

/// `$1` is the folder. Lines on stdin: the pid to end, 0 for none, `done` to leave everything alone.
/// SIGQUIT first, because it lets Postgres give back its shared memory.
const SCRIPT: &str = r#"
pid=0
while read -r line; do
  case "$line" in
    done) exit 0 ;;
    *) pid=$line ;;
  esac
done
if [ "$pid" != 0 ] && kill -s QUIT "$pid" 2>/dev/null; then
  waited=0
  while kill -0 "$pid" 2>/dev/null && [ "$waited" -lt 50 ]; do sleep 0.1; waited=$((waited + 1)); done
  kill -s KILL "$pid" 2>/dev/null
fi
tries=0
until rm -rf "$1" || [ "$tries" -ge 20 ]; do sleep 0.1; tries=$((tries + 1)); done
"#;

/// A watch over one server, kept for as long as the server's value lives.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ensure!(
            folder.is_absolute() && name.starts_with("everstep-"),
            "refusing to guard {}",
            folder.display()
        );
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "everstep-guard"])
            .arg(folder)
            .current_dir("/")
            // A group of its own, so that Ctrl-C ends the tests and not the guard.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start `sh` to guard a test server")?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// From now on this process is the one to end.
    pub(super) fn watch(&mut self, pid: u32) -> anyhow::Result<()> {
        self.send(&pid.to_string())
    }

    /// The process that was watched has ended; its pid may belong to another one soon.
    pub(super) fn forget(&mut self) -> anyhow::Result<()> {
        self.send("0")
    }

    /// Does what the end of this process would do to the guard, and waits until it has acted.
    #[cfg(test)]
    pub(super) fn lose_pipe_and_wait(mut self) -> anyhow::Result<()> {
        drop(self.pipe.take());
        self.child.wait().context("cannot wait for the guard")?;
        Ok(())
    }

    fn send(&mut self, line: &str) -> anyhow::Result<()> {
        let pipe = self.pipe.as_mut().context("the guard of this test server has ended")?;
        writeln!(pipe, "{line}").context("the guard of this test server has died")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let dismissed = self.send("done").is_ok();
        drop(self.pipe.take());
        if !dismissed {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
