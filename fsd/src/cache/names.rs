//! Which object an address led to: for a start when the server cannot be asked, or is not to be.

use base16ct::lower::encode_string as hex;
use std::fs;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::packs::write_whole;
use super::{Cache, CacheError, Description};

/// Below the directory of objects; no key is spelt so.
pub(super) const NAMES: &str = "names";

/// A record is a few hundred bytes.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// What an address led to when its server was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The object's key.
    pub key: String,
    /// What it is.
    pub description: Description,
}

impl Named {
    /// The bytes that have a digest, which is what they are known by, wherever they come from.
    pub fn of_digest(digest: &str, url: &str, len_bytes: u64) -> Self {
        let description = Description { url: url.to_owned(), len_bytes, validator: digest.to_owned() };
        Self { key: key_of_digest(digest), description }
    }
}

/// The key of bytes with this digest: the same, from whichever server they come.
fn key_of_digest(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").filter(|hex| super::entries::is_key(hex));
    hex.map_or_else(|| file_name(digest), str::to_owned)
}

impl Cache {
    /// What `address` led to, if that object is still here. The address, which may hold a signature, is only kept as a
    /// digest.
    pub fn named(&self, address: &str) -> Option<Named> {
        let path = self.objects().join(NAMES).join(file_name(address));
        let is_short = fs::metadata(&path).ok()?.len() <= MAX_RECORD_BYTES;
        let named: Named = is_short.then(|| serde_json::from_slice(&fs::read(&path).ok()?).ok())??;
        let is_here = super::entries::is_key(&named.key) && self.objects().join(&named.key).is_dir();
        is_here.then_some(named)
    }

    /// Remembers what `address` led to.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remember(&self, address: &str, named: &Named) -> Result<(), CacheError> {
        if self.named(address).as_ref() == Some(named) {
            return Ok(());
        }
        let directory = self.objects().join(NAMES);
        let path = directory.join(file_name(address));
        let write = || {
            super::make_private(&directory)?;
            write_whole(&path, &serde_json::to_vec(named)?)
        };
        write().map_err(|source| CacheError::Directory { path: path.clone(), source })
    }
}

fn file_name(address: &str) -> String {
    hex(&Sha256::digest(address))
}
