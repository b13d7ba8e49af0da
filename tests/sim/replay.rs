//! Playing a seed without the test ending, and files from which a failure is repeated.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Once;

use anyhow::Context as _;
use everstep_fault::Bug;
use everstep_tests::program::Profile;
use serde::{Deserialize, Serialize};

use crate::verdict::Totals;
use crate::world::{Trace, World};

/// Lines of a failure's story that are kept: the last ones.
const TRACE_LINES: usize = 5_000;
/// Characters of each that are kept.
const TRACE_CHARS: usize = 2_000;

/// What repeats a world exactly.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Replay {
    pub(crate) seed: u64,
    pub(crate) profile: Profile,
    /// The name of the bug that is planted.
    pub(crate) planted_bug: Option<String>,
}

/// A world that did not end well.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) replay: Replay,
    pub(crate) problem: String,
}

/// A replay file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    replay: Replay,
    problem: String,
    trace: Vec<String>,
}

impl Replay {
    pub(crate) fn of(seed: u64) -> Self {
        Self { seed, profile: Profile::Sim, planted_bug: None }
    }

    pub(crate) fn with_bug(seed: u64, bug: Bug) -> Self {
        Self { planted_bug: Some(bug.name()), ..Self::of(seed) }
    }

    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let kept: Kept =
            serde_json::from_str(&text).with_context(|| format!("{}: no replay file", path.display()))?;
        Ok(kept.replay)
    }

    pub(crate) fn describe(&self) -> String {
        let bug = self.planted_bug.as_deref().unwrap_or("none");
        format!("seed {}, planted bug: {bug}", self.seed)
    }

    /// The world of the seed, with the bug planted; gives what is wrong with it.
    pub(crate) fn play(&self, trace: Trace) -> Result<Totals, String> {
        let named = |name: &String| Bug::ALL.into_iter().find(|bug| bug.name() == *name);
        let bug = match &self.planted_bug {
            None => None,
            Some(name) => Some(named(name).ok_or_else(|| format!("there is no bug {name}"))?),
        };
        let _planted = bug.map(everstep_fault::plant);
        quietly(|| World::new(self.seed, trace).play())
    }
}

impl Failed {
    /// Writes the replay file, with the story of the failure, and says where and what.
    pub(crate) fn keep(&self, tests: &Path) -> anyhow::Result<String> {
        let lines = Rc::new(RefCell::new(Vec::new()));
        // The same seed takes the same way, this time with its story.
        let again = self.replay.play(Trace::Keep(Rc::clone(&lines)));
        let lines = lines.take();
        let from = lines.len().saturating_sub(TRACE_LINES);
        let cut = |line: &String| line.chars().take(TRACE_CHARS).collect();
        let kept = Kept {
            replay: self.replay.clone(),
            problem: self.problem.clone(),
            trace: lines[from..].iter().map(cut).collect(),
        };
        let folder =
            std::env::var_os("CARGO_TARGET_DIR").map_or(tests.join("../target"), Into::into).join("sim");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("seed-{}.json", self.replay.seed));
        std::fs::write(&path, serde_json::to_string_pretty(&kept)?)?;
        let path = path.canonicalize().unwrap_or(path);
        let twice = if again.is_err() { "" } else { " (but not when it was played again)" };
        let replay = format!("cargo xtask sim --replay {}", path.display());
        Ok(format!("{}{twice}\n  repeat it with: {replay}", self.problem.lines().next().unwrap_or_default()))
    }
}

thread_local! {
    /// The message and place of a panic that is expected on this thread, once it came.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it is no news for the screen, but comes back as its message.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if QUIET.get() {
                let at = panic.location().map(ToString::to_string).unwrap_or_default();
                let text = panic.payload_as_str().unwrap_or("no message");
                PANIC.set(Some(format!("{text} [{at}]")));
            } else {
                loud(panic);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    result.map_err(|_| PANIC.take().unwrap_or_else(|| "a panic without a message".to_owned()))
}
