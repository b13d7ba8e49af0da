//! The event codec of the log.
