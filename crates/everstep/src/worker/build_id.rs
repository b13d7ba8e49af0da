//! The default build id.

use std::fs::File;
use std::io::{self, Read};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// A short hash of the running executable's bytes, computed once.
pub(super) fn of_executable() -> &'static str {
    static BUILD_ID: OnceLock<String> = OnceLock::new();
    BUILD_ID.get_or_init(|| match std::env::current_exe().and_then(File::open).and_then(digest) {
        Ok(digest) => digest.iter().take(6).map(|b| format!("{b:02x}")).collect(),
        Err(error) => {
            tracing::warn!(%error, "executable not readable: the build id is 'unknown'");
            "unknown".to_owned()
        }
    })
}

/// In pieces: an executable with its debug information is large.
fn digest(mut file: File) -> io::Result<[u8; 32]> {
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finalize().into()),
            bytes => hasher.update(&piece[..bytes]),
        }
    }
}
