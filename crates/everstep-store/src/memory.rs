//! The in-memory store.

/// Placeholder until the store is written.
#[derive(Debug)]
pub struct MemoryStore;
