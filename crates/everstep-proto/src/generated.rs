//! What the build script made of `proto/`.
#![expect(missing_docs, reason = "the generator writes no docs for some items")]
#![expect(clippy::allow_attributes, reason = "the generator writes some")]
#![expect(clippy::too_many_lines, reason = "the generator puts the dispatch of a service into one function")]
#![expect(
    clippy::large_enum_variant,
    reason = "the generator boxes nothing, and these values are short-lived"
)]
#![expect(unreachable_pub, reason = "the generator nests a module per word of a package name")]

include!(concat!(env!("OUT_DIR"), "/packages.rs"));

/// The compiled contract, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
