//! Digests as registries write them: `sha256:` or `sha512:`, and hexadecimal digits.

use base16ct::lower::encode_string as hex;
use sha2::{Digest, Sha256, Sha512};
use std::fmt;

/// A digest in the making.
#[derive(Clone)]
pub enum Hash {
    /// What nearly all are.
    Sha256(Sha256),
    /// The other kind that the OCI image specification names.
    Sha512(Sha512),
}

impl Hash {
    /// Of no bytes yet, as SHA-256.
    #[must_use]
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Of no bytes yet, of the kind that `digest` is; `None` if it is no digest, or of a kind that is not known.
    #[must_use]
    pub fn like(digest: &str) -> Option<Self> {
        let (kind, digits) = digest.split_once(':')?;
        match (kind, digits.len()) {
            ("sha256", 64) if is_hex(digits) => Some(Self::sha256()),
            ("sha512", 128) if is_hex(digits) => Some(Self::Sha512(Sha512::new())),
            _ => None,
        }
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn finish(self) -> String {
        match self {
            Self::Sha256(hash) => format!("sha256:{}", hex(&hash.finalize())),
            Self::Sha512(hash) => format!("sha512:{}", hex(&hash.finalize())),
        }
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Sha256(_) => "Sha256",
            Self::Sha512(_) => "Sha512",
        })
    }
}

/// The SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// The hexadecimal digits of a SHA-256, which nothing else is: they may become a file's name.
#[must_use]
pub fn sha256_hex(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|digits| digits.len() == 64 && is_hex(digits))
}

fn is_hex(digits: &str) -> bool {
    digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_NOTHING: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_kind_is_that_of_the_digest() {
        let longer = format!("sha512:{}", "0".repeat(128));

        assert_eq!(Hash::like(OF_NOTHING).unwrap().finish(), OF_NOTHING);
        assert_eq!(Hash::like(&longer).unwrap().finish().len(), longer.len());
        assert_eq!(sha256(b""), OF_NOTHING);
    }

    #[test]
    fn what_is_added_bit_by_bit_has_the_digest_of_the_whole() {
        let mut hash = Hash::sha256();
        hash.update(b"ab");
        hash.update(b"c");

        assert_eq!(hash.finish(), sha256(b"abc"));
    }

    #[test]
    fn what_is_no_known_digest_is_none() {
        for text in ["", "sha256", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e", &OF_NOTHING[..70]] {
            assert!(Hash::like(text).is_none(), "{text}");
            assert_eq!(sha256_hex(text), None);
        }
        let shouted = OF_NOTHING.replace("e3b0", "E3B0");
        assert!(Hash::like(&shouted).is_none());
        assert_eq!(sha256_hex(&format!("sha256:../../{}", "0".repeat(58))), None);
        assert_eq!(sha256_hex(OF_NOTHING).map(str::len), Some(64));
    }
}
