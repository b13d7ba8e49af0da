//! Judges a finished run of a test from what it left behind.
