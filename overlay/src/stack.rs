//! Read-only layers, one over the other, as a tree: what lies between an image and the layer that takes writes.
//!
//! A directory of the host is merged by a [`View`], as a layer that is written to is, so that all its forms are understood.
//! An image has the marks of the kernel's overlayfs: character devices 0:0 and `opaque` xattrs, as `mksquashfs` finds them in
//! a layer's directory.
//!
//! Numbers of nodes have to be the same each time the stack is made, since a layer above writes them down: see
//! `Numbers`.

mod merged;
mod numbers;
mod renumbered;

use crate::error::Error;
use crate::upper::Upper;
use crate::view::View;
use merged::Merged;
use numbers::Numbers;
use renumbered::Renumbered;
use rustix::io::Errno;
use siphon_image::tree::Tree;
use std::sync::Arc;

/// More layers than this are refused: each has a range of numbers of its own.
pub const MAX_LAYERS: u8 = 200;

/// Trees that are put on top of each other.
#[derive(Debug, Clone)]
pub struct Stack {
    top: Arc<dyn Tree>,
    layers: u8,
}

impl Stack {
    /// A stack of one image.
    pub fn new(image: Arc<dyn Tree>) -> Self {
        Self { top: image, layers: 0 }
    }

    /// Puts the layer `upper` on top, which is not written to.
    ///
    /// # Errors
    /// If its root cannot be read; `E2BIG` for more than [`MAX_LAYERS`].
    pub fn push_directory(&mut self, upper: Upper) -> Result<(), Error> {
        let numbers = self.next()?;
        let view = View::new(self.top.clone(), Some(upper))?;
        self.top = Arc::new(Renumbered::new(Arc::new(view), numbers));
        Ok(())
    }

    /// Puts the tree of an image on top.
    ///
    /// # Errors
    /// `E2BIG` for more than [`MAX_LAYERS`].
    pub fn push_tree(&mut self, upper: Arc<dyn Tree>) -> Result<(), Error> {
        let numbers = self.next()?;
        self.top = Arc::new(Merged::new(upper, self.top.clone(), numbers));
        Ok(())
    }

    /// What they look like together.
    pub fn tree(&self) -> Arc<dyn Tree> {
        self.top.clone()
    }

    fn next(&mut self) -> Result<Numbers, Errno> {
        if self.layers == MAX_LAYERS {
            return Err(Errno::TOOBIG);
        }
        self.layers += 1;
        Ok(Numbers::of_layer(self.layers))
    }
}

#[cfg(test)]
mod tests;
