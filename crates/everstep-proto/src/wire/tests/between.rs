//! Events between runs, and what workflows ask for, on the wire.

use super::*;
use crate::samples::Leaves;

/// What may stand in a message.
fn leaves() -> Leaves {
    Leaves {
        name: text().boxed(),
        text: text().boxed(),
        payload: payload().boxed(),
        failure: failure().boxed(),
        duration: duration().boxed(),
    }
}

pub(super) fn bodies() -> impl Strategy<Value = EventBody> {
    leaves().bodies()
}

pub(super) fn commands() -> impl Strategy<Value = CommitCommand> {
    leaves().commands()
}
