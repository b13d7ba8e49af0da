//! The default build id.

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// A short hash of the running executable's bytes, computed once.
pub(super) fn of_executable() -> &'static str {
    static BUILD_ID: OnceLock<String> = OnceLock::new();
    BUILD_ID.get_or_init(|| {
        let bytes = std::env::current_exe().and_then(std::fs::read);
        match bytes {
            Ok(bytes) => Sha256::digest(&bytes).iter().take(6).map(|b| format!("{b:02x}")).collect(),
            Err(error) => {
                tracing::warn!(%error, "executable not readable: the build id is 'unknown'");
                "unknown".to_owned()
            }
        }
    })
}
