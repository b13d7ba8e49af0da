//! What the code says about its run.

use std::panic::Location;

use everstep_core::CommitCommand;
use everstep_core::replay::OpKind;

use super::Ctx;
use super::command::CommandOp;
use crate::Notes;

impl Ctx {
    /// Sets search attributes, by which runs are listed, and entries of the memo, which is shown with the run. Nothing
    /// waits for it: it is recorded with what the code does next.
    ///
    /// An attribute that the namespace has not declared, or with another type, is shown but not found; a later
    /// declaration finds it. A run that has more to say than it may (64 attributes, 256 KiB of memo) fails with kind
    /// `LimitExceeded`, and with `InvalidNotes` when a name is none.
    ///
    /// ```
    /// # use everstep::{Ctx, Notes, attributes};
    /// # async fn example(ctx: Ctx) {
    /// ctx.upsert(attributes! { "stage" => "shipped", "left" => 3 });
    /// ctx.upsert(Notes::new().memo("parcel", &("DE", 4711)));
    /// # }
    /// ```
    ///
    /// # Panics
    /// When a value for the memo does not encode.
    #[track_caller]
    pub fn upsert(&self, notes: Notes) {
        let notes = match notes.into_change() {
            Ok(change) => Box::new(change),
            Err(problem) => std::panic::panic_any(problem),
        };
        let command = |op| CommandOp::new(CommitCommand::Upsert { op, notes }, None);
        let id = self.shared.build_command(OpKind::Upsert, Location::caller(), command);
        self.shared.lock().request_command(id);
    }
}
