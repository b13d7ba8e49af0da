//! A durable key-value store with a time to live: one file a key.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Largest value that is kept.
const VALUE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the cache at {} failed", path.display())]
pub struct CacheError {
    /// The file or folder.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Values in a folder; they survive the process and expire.
#[derive(Clone, Debug)]
pub struct FileCache {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// Milliseconds since 1970.
    expires_at: u64,
    value: serde_json::Value,
}

/// A key over everything that makes an answer the same answer.
pub fn cache_key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

impl FileCache {
    /// Uses a folder, making it if it is not there.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|source| CacheError { path: folder.clone(), source })?;
        Ok(Self { folder })
    }

    /// The value of a key of [`cache_key`], unless it has expired. A damaged entry reads as absent.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn get<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CacheError> {
        self.get_at(key, now())
    }

    fn get_at<T: serde::de::DeserializeOwned>(&self, key: &str, now: u64) -> Result<Option<T>, CacheError> {
        let path = self.path(key);
        let bytes = match fs::metadata(&path)
            .and_then(|m| if m.len() > VALUE_BYTES_MAX { Ok(Vec::new()) } else { fs::read(&path) })
        {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CacheError { path, source }),
        };
        match serde_json::from_slice::<Entry>(&bytes) {
            Ok(entry) if entry.expires_at > now => Ok(serde_json::from_value(entry.value).ok()),
            // Expired or damaged: room for a new one.
            _ => {
                let _ = fs::remove_file(&path);
                Ok(None)
            }
        }
    }

    /// Keeps a value for `ttl`. Durable when this returns: a crash leaves the old value or the new one.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn put<T: Serialize>(&self, key: &str, value: &T, ttl: Duration) -> Result<(), CacheError> {
        self.put_at(key, value, ttl, now())
    }

    fn put_at<T: Serialize>(&self, key: &str, value: &T, ttl: Duration, now: u64) -> Result<(), CacheError> {
        let path = self.path(key);
        let expires_at = now.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let write = || -> io::Result<()> {
            let entry = Entry { expires_at, value: serde_json::to_value(value)? };
            let temporary = self.folder.join(format!("{key}.{}.tmp", std::process::id()));
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&entry)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| CacheError { path: path.clone(), source })
    }

    fn path(&self, key: &str) -> PathBuf {
        // Keys are hashes; anything else is made one, so that no key can name another folder.
        let name = if key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit()) {
            key.to_owned()
        } else {
            cache_key(&[key])
        };
        Path::new(&self.folder).join(name)
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
