//! What is known of hard links of the image: which of their names are gone, and whose copies the layer keeps a link of.

use super::super::{Ino, lower_node, number_of};
use super::{State, key_of};
use crate::error::Error;
use crate::upper::{Links, Upper};
use siphon_image::directory::host;
use std::ffi::OsStr;
use std::os::fd::AsFd;

impl State {
    /// Reads what an earlier view wrote down.
    pub(super) fn read_links(&mut self, upper: &Upper) -> Result<(), Error> {
        for (node, mut links) in upper.links()? {
            let ino = number_of(node);
            if let Ok(held) = upper.held(node) {
                self.numbers.own(key_of(&host::stat(held.as_fd())?), ino);
                let (directory, name) = upper.held_at(node)?;
                if upper.origin(directory, &name)?.content.is_some() {
                    self.held_stubs.insert(ino);
                }
            } else {
                links.held = false;
            }
            self.links.insert(ino, links);
        }
        Ok(())
    }

    /// Counts a name in the image that no longer stands for its file `ino`, which has `total` there.
    pub(in crate::view) fn name_gone(&mut self, upper: &Upper, ino: Ino, total: u32) -> Result<(), Error> {
        let links = self.links.entry(ino).or_insert(Links { total, gone: 0, held: false });
        links.gone = links.gone.saturating_add(1);
        let links = *links;
        if links.total > 1 {
            upper.count_gone(lower_node(ino), &links)?;
            if links.left() == 0 && !links.held {
                upper.forget_links(lower_node(ino), &links)?;
            }
        }
        Ok(())
    }

    /// What is known of the names of `ino` in the image.
    pub(in crate::view) fn links(&self, ino: Ino) -> Option<&Links> {
        self.links.get(&ino)
    }

    /// How many of `total` names in the image still stand for its file `ino`.
    pub(in crate::view) fn names_left(&self, ino: Ino, total: u32) -> u32 {
        total.saturating_sub(self.links.get(&ino).map_or(0, |links| links.gone))
    }

    /// Keeps a link of the copy `staged` of `ino`, which has more names in the image.
    pub(in crate::view) fn hold(&mut self, upper: &Upper, ino: Ino, total: u32, staged: &OsStr) -> Result<(), Error> {
        let links = self.links.entry(ino).or_insert(Links { total, gone: 0, held: false });
        upper.hold(lower_node(ino), links, staged)?;
        links.held = true;
        let node = self.node_mut(ino)?;
        node.held = true;
        if node.stub {
            self.held_stubs.insert(ino);
        }
        Ok(())
    }

    /// Lets go of the link that holds a copied-up file once no name in the image stands for it.
    pub(in crate::view) fn release_hold(&mut self, upper: &Upper, ino: Ino) -> Result<(), Error> {
        let Some(node) = self.nodes.get(&ino) else { return Ok(()) };
        let Some(links) = self.links.get(&ino).copied().filter(|links| node.held && links.left() == 0) else {
            return Ok(());
        };
        if node.orphan.is_none() && !node.names.iter().any(|known| known.up) {
            let orphan = self.pinned(upper, ino)?;
            self.node_mut(ino)?.orphan = orphan;
        }
        self.node_mut(ino)?.held = false;
        self.held_stubs.remove(&ino);
        if let Some(links) = self.links.get_mut(&ino) {
            links.held = false;
        }
        Ok(upper.forget_links(lower_node(ino), &links)?)
    }

    /// The files that are held and have their content in the image.
    pub(in crate::view) fn held_stubs(&self) -> Vec<Ino> {
        self.held_stubs.iter().copied().collect()
    }
}
