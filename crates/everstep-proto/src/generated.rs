//! What the build script made of `proto/`.
#![expect(missing_docs, reason = "the generator writes no docs for some items")]

include!(concat!(env!("OUT_DIR"), "/packages.rs"));

/// The compiled contract, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
