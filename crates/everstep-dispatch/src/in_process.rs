//! The implementation for a single node.
