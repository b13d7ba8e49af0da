//! Holding a workflow against its history.
