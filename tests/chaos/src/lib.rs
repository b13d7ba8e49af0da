//! Chaos and crash enumeration on real processes.
