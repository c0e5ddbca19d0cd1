//! Renames.
//!
//! What is renamed is brought into the layer first, a directory with all that is in it, since the layer has no way to say
//! that a directory of the image is now elsewhere that every engine understands. Files become stubs by that, so that no
//! content is copied, and it is done one directory at a time: others wait for no more than one.

use super::copying::ATTRIBUTES;
use super::lookup::Both;
use super::state::{Found, State};
use super::{Ino, Layer, RenameMode, View};
use crate::error::Error;
use crate::upper::Place;
use rustix::fs::{self, RenameFlags};
use rustix::io::Errno;
use siphon_image::directory::host;
use siphon_image::tree::Kind;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

/// A name in a directory.
type At<'a> = (Ino, &'a OsStr);

/// What there is to do.
enum Change {
    /// Both names are of one file.
    None,
    Swap,
    /// Over what is there, if anything is.
    Move(Option<Box<(Found, Ino)>>),
}

impl View {
    /// Renames `name` in `from` to `new_name` in `to`.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `ENOTEMPTY`, `EISDIR`, `ENOTDIR`, `EINVAL` for a directory into itself, `EPERM` for a reserved
    /// name, `EROFS`, or what the layer's filesystem says.
    pub fn rename(&self, from: Ino, name: &OsStr, to: Ino, new_name: &OsStr, mode: RenameMode) -> Result<(), Error> {
        let layer = self.layer()?;
        {
            let state = layer.state.read();
            self.both(layer, &state, from)?;
            self.both(layer, &state, to)?;
        }
        let (old, new) = ((from, name), (to, new_name));
        self.read_ahead_of_lock(layer, from, name)?;
        self.read_ahead_of_lock(layer, to, new_name)?;
        // What is large is brought up before names are locked, and not for a rename that cannot be.
        self.checked(layer, &mut layer.state.write(), old, new, mode)?;
        self.prepare(old)?;
        if mode == RenameMode::Exchange {
            self.prepare(new)?;
        }
        let mut state = layer.state.write();
        state.epoch += 1;
        match self.checked(layer, &mut state, old, new, mode)? {
            Change::None => Ok(()),
            Change::Swap => self.exchange(layer, &mut state, old, new),
            Change::Move(target) => self.replace(layer, &mut state, old, new, target.map(|target| *target)),
        }
    }

    /// Brings up what is at a name, with all that is in it.
    fn prepare(&self, at: At<'_>) -> Result<(), Error> {
        let (ino, attr) = self.lookup(at.0, at.1)?;
        let done = match attr.kind {
            Kind::Directory => self.bring_up_below(ino),
            _ => self.copy_up(ino, ATTRIBUTES),
        };
        self.forget(ino, 1);
        done
    }

    /// What a rename comes to, if it can be.
    fn checked(
        &self,
        layer: &Layer,
        state: &mut State,
        from: At<'_>,
        to: At<'_>,
        mode: RenameMode,
    ) -> Result<Change, Error> {
        state.node(from.0)?;
        state.node(to.0)?;
        let (old, new) = (self.both(layer, state, from.0)?, self.both(layer, state, to.0)?);
        self.check_name(layer, &old, from.1)?;
        self.check_name(layer, &new, to.1)?;
        let source = self.find(layer, &old, from.1)?.ok_or(Errno::NOENT)?;
        let target = self.find(layer, &new, to.1)?;
        let ino = self.number(state, &source);
        let target_ino = target.as_ref().map(|found| self.number(state, found));
        match (mode, &target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT.into()),
            _ if state.ancestors(to.0)?.contains(&ino) => return Err(Errno::INVAL.into()),
            _ => {}
        }
        if let Some(other) = target_ino
            && state.ancestors(from.0)?.contains(&other)
        {
            let errno = if mode == RenameMode::Exchange { Errno::INVAL } else { Errno::NOTEMPTY };
            return Err(errno.into());
        }
        match (mode, &target, target_ino) {
            (_, Some(_), Some(other)) if other == ino => Ok(Change::None),
            (RenameMode::Exchange, ..) => Ok(Change::Swap),
            _ => {
                if let Some(target) = &target {
                    self.check_replaceable(layer, &new, to.1, &source, target)?;
                }
                Ok(Change::Move(target.zip(target_ino).map(Box::new)))
            }
        }
    }

    fn check_replaceable(
        &self,
        layer: &Layer,
        new: &Both,
        name: &OsStr,
        source: &Found,
        target: &Found,
    ) -> Result<(), Error> {
        match (source.kind == Kind::Directory, target.kind == Kind::Directory) {
            (true, false) => Err(Errno::NOTDIR.into()),
            (false, true) => Err(Errno::ISDIR.into()),
            (true, true) => self.check_empty(layer, new, name, target),
            (false, false) => Ok(()),
        }
    }

    fn replace(
        &self,
        layer: &Layer,
        state: &mut State,
        from: At<'_>,
        to: At<'_>,
        target: Option<(Found, Ino)>,
    ) -> Result<(), Error> {
        self.raise(layer, state, to.0)?;
        let ino = self.bring_up_whole(layer, state, from, to)?;
        let old = self.both(layer, state, from.0)?;
        let covered = self.find_lower(&old, from.1)?.is_some();
        if let Some((Found { upper: Some(_), .. }, ino)) = &target {
            state.keep_without(&layer.upper, *ino, to.0, to.1)?;
        }
        let (old, new) = (self.upper_directory(layer, state, from.0)?, self.upper_directory(layer, state, to.0)?);
        let is_directory = state.node(ino)?.kind == Kind::Directory;
        move_over(layer, (old.as_fd(), from.1), (new.as_fd(), to.1), is_directory, covered, target.is_some())?;
        layer.upper.unmark(new.as_fd(), to.1)?;
        if let Some((found, target)) = target {
            self.unlinked(layer, state, target, to, &found)?;
        }
        state.rename(ino, from, to)
    }

    fn exchange(&self, layer: &Layer, state: &mut State, from: At<'_>, to: At<'_>) -> Result<(), Error> {
        let one = self.bring_up_whole(layer, state, from, to)?;
        let other = self.bring_up_whole(layer, state, to, from)?;
        let (old, new) = (self.upper_directory(layer, state, from.0)?, self.upper_directory(layer, state, to.0)?);
        fs::renameat_with(&old, from.1, &new, to.1, RenameFlags::EXCHANGE)?;
        state.rename(one, from, to)?;
        state.rename(other, to, from)?;
        state.collect(other);
        Ok(())
    }

    /// Brings `from` up with all that is in it, and opaque if the image has something at `to`.
    fn bring_up_whole(&self, layer: &Layer, state: &mut State, from: At<'_>, to: At<'_>) -> Result<Ino, Error> {
        let ino = self.bring_up(layer, state, from.0, from.1)?;
        if state.node(ino)?.kind == Kind::Directory {
            self.bring_up_all(layer, state, ino)?;
            let new = self.both(layer, state, to.0)?;
            if self.find_lower(&new, to.1)?.is_some() {
                let directory = self.upper_directory(layer, state, ino)?;
                layer.upper.make_opaque(directory.as_fd())?;
            }
        }
        Ok(ino)
    }
}

/// Moves a node of the layer over whatever the layer has at its new place, and leaves a whiteout at the old one if the
/// image's own name there is to be `covered`. `replaces` says that the view has something at the new place.
fn move_over(
    layer: &Layer,
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
    is_directory: bool,
    covered: bool,
    replaces: bool,
) -> Result<(), Error> {
    let upper = &layer.upper;
    let place = upper.place(to.0, to.1)?;
    let occupied = match &place {
        Place::Object(stat) => is_directory || host::kind_of(stat) == Kind::Directory,
        Place::Whiteout => is_directory && host::stat_at(to.0, to.1)?.is_some(),
        Place::Absent => false,
    };
    if covered && leave_whiteout(layer, from, to, &place, occupied, replaces)? {
        return Ok(());
    }
    // A directory replaces nothing but an empty directory, and what looks empty here may hold whiteouts. Swapped, the
    // two are never both missing; else a marker stands in for the one.
    if occupied && upper.swaps() {
        fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::EXCHANGE)?;
    } else {
        if occupied {
            upper.whiteout(to.0, to.1)?;
        }
        fs::renameat(from.0, from.1, to.0, to.1)?;
    }
    if covered {
        upper.whiteout(from.0, from.1)?;
    } else {
        upper.remove(from.0, from.1)?;
    }
    Ok(())
}

/// Moves in one step that leaves a whiteout, so that whenever this ends the image's own name does not show in the old
/// place. `false` if nothing was moved: where there are markers, which may be there beforehand, and where a file is
/// replaced on a filesystem that does not know how.
fn leave_whiteout(
    layer: &Layer,
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
    place: &Place,
    occupied: bool,
    replaces: bool,
) -> Result<bool, Error> {
    let upper = &layer.upper;
    if !upper.swaps() {
        upper.mark_beforehand(from.0, from.1)?;
        return Ok(false);
    }
    let leaves_device = !occupied && upper.moves_leaving_devices();
    if leaves_device && fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::WHITEOUT).is_ok() {
        return Ok(true);
    }
    if replaces && !occupied && !matches!(place, Place::Whiteout) {
        return Ok(false);
    }
    // What is in the new place is a whiteout or makes way for one.
    upper.whiteout(to.0, to.1)?;
    upper.expect_whiteouts(from.0)?;
    fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::EXCHANGE)?;
    Ok(true)
}
