//! Every field of every call, broken in every way that its kind allows: refused with a reason and the field's name, or
//! taken for what it is. Never with an error of ours, never with harm to a run beside it.
//!
//! What each broken field leads to stands in `bad_inputs/*.txt`, on every store alike. `EVERSTEP_WRITE_EXPECTED=1`
//! writes these files anew: read what changed before you keep it.

mod answers;
mod breaks;
mod calls;
mod cases;
mod raw;
mod samples;
mod stream;
mod world;
