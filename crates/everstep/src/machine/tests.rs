//! Recorded histories in, work out.
