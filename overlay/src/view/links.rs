//! Hard links of the image that were copied up under some of their names only.

use super::{Ino, Layer, View};
use crate::error::Error;
use rustix::io::Errno;
use siphon_image::tree::Kind;

impl View {
    /// Gives files that the layer has under some of the names that they have in the image all the others there too. Every
    /// name is looked at. Nobody may change anything meanwhile.
    pub(super) fn write_out_links(&self, layer: &Layer) -> Result<(), Error> {
        let mut pending = vec![Ino::ROOT];
        while let Some(directory) = pending.pop() {
            for entry in self.entries(directory)? {
                let (ino, attr) = match self.lookup(directory, &entry.name) {
                    Err(error) if error.errno() == Errno::NOENT.raw_os_error() => continue,
                    other => other?,
                };
                if attr.kind == Kind::Directory {
                    pending.push(ino);
                    continue;
                }
                let mut state = layer.state.write();
                let node = state.node(ino)?;
                let has_name =
                    node.names.iter().any(|name| name.up && name.parent == directory && name.name == entry.name);
                if node.up && !has_name {
                    state.epoch += 1;
                    self.bring_up(layer, &mut state, directory, &entry.name)?;
                }
                drop(state);
                self.forget(ino, 1);
            }
            if directory != Ino::ROOT {
                self.forget(directory, 1);
            }
        }
        Ok(())
    }
}
