//! Putting single paths of a layer back to what the image below has.

use super::{Place, Upper};
use crate::error::Error;
use siphon_image::directory::host;
use siphon_image::tree::Kind;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// The layer had something there, which is gone now.
    Done,
    /// The layer has nothing there, so that the image shows already.
    Unchanged,
}

/// Why a path cannot be put back.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// One of the directories above it does not show what the image has.
    #[error("{} was removed or replaced as a whole in the layer; put that back", .0.display())]
    Replaced(PathBuf),
    /// It is one of several names of a file of the image.
    #[error("{} has other names in the image, which show the change too; write the former content to it", .0.display())]
    Linked(PathBuf),
    /// The layer failed.
    #[error(transparent)]
    Layer(#[from] Error),
}

impl Upper {
    /// Takes away what the layer has at the path `names` from its root, with all that is below it. The layer must be
    /// locked, and nothing may have a view of it that is written through.
    ///
    /// # Errors
    /// See [`ResetError`].
    pub fn reset(&self, names: &[OsString]) -> Result<Reset, ResetError> {
        let Some((last, parents)) = names.split_last() else { return Ok(Reset::Unchanged) };
        let mut directory = self.directory(&[]).map_err(Error::from)?;
        for (depth, name) in parents.iter().enumerate() {
            let replaced =
                || ResetError::Replaced(std::iter::once("/".into()).chain(names[..=depth].to_vec()).collect());
            match self.place(directory.as_fd(), name).map_err(Error::from)? {
                Place::Absent => return Ok(Reset::Unchanged),
                Place::Object(stat) if host::kind_of(&stat) == Kind::Directory => {}
                Place::Object(_) | Place::Whiteout => return Err(replaced()),
            }
            directory = host::open_directory(directory.as_fd(), name).map_err(Error::from)?;
            if self.is_opaque(directory.as_fd()).map_err(Error::from)? {
                return Err(replaced());
            }
        }
        if let Place::Absent = self.place(directory.as_fd(), last).map_err(Error::from)? {
            return Ok(Reset::Unchanged);
        }
        if let Some(node) = self.origin(directory.as_fd(), last).ok().and_then(|origin| origin.node)
            && self.links().map_err(Error::from)?.contains_key(&node)
        {
            return Err(ResetError::Linked(std::iter::once("/".into()).chain(names.to_vec()).collect()));
        }
        self.remove(directory.as_fd(), last).map_err(Error::from)?;
        self.unmark(directory.as_fd(), last).map_err(Error::from)?;
        Ok(Reset::Done)
    }
}
