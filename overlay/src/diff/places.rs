//! Leaves out what is in a layer only because something was mounted on it.

use super::{Change, Changes, Error};
use siphon_image::tree::Kind;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::path::PathBuf;

/// Changes without those that are empty places to mount on.
#[derive(Debug)]
pub struct WithoutPlaces<'a> {
    changes: Changes<'a>,
    places: HashSet<PathBuf>,
    /// Places that are told of once something is in the last of them; each is in the one before.
    held: Vec<Change>,
    /// What is to be told next.
    ready: VecDeque<Change>,
}

impl<'a> Changes<'a> {
    /// These, but for paths in `places` that are new, and empty but for others of the kind.
    pub fn without(self, places: HashSet<PathBuf>) -> WithoutPlaces<'a> {
        WithoutPlaces { changes: self, places, held: Vec::new(), ready: VecDeque::new() }
    }
}

impl WithoutPlaces<'_> {
    fn is_place(&self, change: &Change) -> bool {
        change.old.is_none()
            && self.places.contains(&change.path)
            && change
                .new
                .is_some_and(|attr| attr.kind == Kind::Directory || (attr.kind == Kind::File && attr.size == 0))
    }
}

impl Iterator for WithoutPlaces<'_> {
    type Item = Result<Change, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            let change = match self.changes.next()? {
                Ok(change) => change,
                Err(error) => return Some(Err(error)),
            };
            // A path comes after the directory that it is in, and before what comes after that.
            while self.held.last().is_some_and(|held| !change.path.starts_with(&held.path)) {
                self.held.pop();
            }
            if self.is_place(&change) {
                self.held.push(change);
            } else {
                self.ready.extend(self.held.drain(..));
                self.ready.push_back(change);
            }
        }
    }
}
