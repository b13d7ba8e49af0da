//! The test kit for users, tested as users use it.

mod env;
mod guide;
mod replay;
mod simulate;
