//! The test kit for users, tested as users use it.

mod builds;
mod chains;
mod children;
mod env;
mod guide;
mod queued;
mod replay;
mod simulate;
mod with_start;
