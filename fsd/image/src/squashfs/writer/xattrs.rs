//! The xattr table: each distinct set of attributes once.

use super::Error;
use super::compress::Codec;
use super::metadata::MetadataStream;
use crate::squashfs::format::{NONE_U32, XATTR_ID_BYTES};
use crate::tree::Xattr;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;

/// The name spaces that squashfs knows, by their numbers.
const NAME_SPACES: [(u16, &[u8]); 3] = [(0, b"user."), (1, b"trusted."), (2, b"security.")];

/// The sets collected so far.
#[derive(Debug, Default)]
pub(super) struct Xattrs {
    sets: Vec<Set>,
    by_content: HashMap<Vec<u8>, u32>,
    /// Attributes of other name spaces.
    pub(super) left_out: u64,
}

#[derive(Debug)]
struct Set {
    encoded: Vec<u8>,
    count: u32,
}

impl Xattrs {
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// The index that an inode with these attributes has: [`NONE_U32`] without any.
    pub(super) fn add(&mut self, mut attributes: Vec<Xattr>) -> Result<u32, Error> {
        attributes.sort();
        let mut set = Set { encoded: Vec::new(), count: 0 };
        for (name, value) in &attributes {
            if set.push(name.as_bytes(), value)? {
                set.count += 1;
            } else {
                self.left_out += 1;
            }
        }
        if set.count == 0 {
            return Ok(NONE_U32);
        }
        if let Some(index) = self.by_content.get(&set.encoded) {
            return Ok(*index);
        }
        let index = u32::try_from(self.sets.len()).map_err(|_| too_many())?;
        self.by_content.insert(set.encoded.clone(), index);
        self.sets.push(set);
        Ok(index)
    }

    /// The compressed attributes, the start of each of their blocks, and the entries of the id table.
    pub(super) fn encode(&self, codec: Codec) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let mut stream = MetadataStream::new(codec)?;
        let mut ids = Vec::with_capacity(self.sets.len() * XATTR_ID_BYTES);
        for set in &self.sets {
            let size = u32::try_from(set.encoded.len()).map_err(|_| too_many())?;
            ids.extend(stream.place().reference().to_le_bytes());
            ids.extend(set.count.to_le_bytes());
            ids.extend(size.to_le_bytes());
            stream.write(&set.encoded)?;
        }
        Ok((stream.finish()?.0, ids))
    }

    /// How many sets there are.
    pub(super) fn count(&self) -> Result<u32, Error> {
        u32::try_from(self.sets.len()).map_err(|_| too_many())
    }
}

impl Set {
    /// Appends one attribute, unless squashfs cannot hold it.
    fn push(&mut self, name: &[u8], value: &[u8]) -> Result<bool, Error> {
        let known = NAME_SPACES.iter().find_map(|(id, prefix)| Some((*id, name.strip_prefix(*prefix)?)));
        let Some((name_space, rest)) = known else { return Ok(false) };
        let name_size = u16::try_from(rest.len()).map_err(|_| too_many())?;
        let value_size = u32::try_from(value.len()).map_err(|_| too_many())?;
        self.encoded.extend(name_space.to_le_bytes());
        self.encoded.extend(name_size.to_le_bytes());
        self.encoded.extend(rest);
        self.encoded.extend(value_size.to_le_bytes());
        self.encoded.extend(value);
        Ok(true)
    }
}

fn too_many() -> Error {
    Error::TooMany { what: "bytes of extended attributes", limit: u64::from(u32::MAX) }
}
