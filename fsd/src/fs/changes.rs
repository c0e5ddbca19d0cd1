//! The operations that change something.

use super::{Caller, Error, FileSystem, Node, Owners, existing};
use nix::libc;
use siphon_image::tree::Kind;
use siphon_overlay::view::{Ino, OpenMode, Owner, Permissions, RenameMode, SetAttr};
use std::ffi::OsStr;

/// The setgid bit of a mode.
const SETGID: u16 = 0o2000;
/// That its group may run it.
const GROUP_RUNS: u16 = 0o010;
/// The extended attribute that the kernel hands an ACL over in.
const ACCESS_ACL: &str = "system.posix_acl_access";

impl FileSystem {
    /// Changes attributes.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::NotPermitted`] for an owner other than the only one; [`Error::View`].
    pub fn set_attr(&self, ino: Ino, change: &SetAttr) -> Result<Node, Error> {
        self.check_writable()?;
        let change = self.without_squashed_owner(change)?;
        Ok(self.node(ino, self.view.set_attr(ino, &change)?))
    }

    /// Creates a regular file and opens it. Counts one reference, as do all makers below.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &OsStr,
        permissions: Permissions,
        open: OpenMode,
    ) -> Result<(Node, u64), Error> {
        self.check_writable()?;
        let owner = self.owner_of_file_in(caller, parent)?;
        let (ino, attr, file) = self.view.create(parent, name, permissions, owner, open)?;
        self.counters.open();
        Ok((self.node(ino, attr), self.files.insert(file)))
    }

    /// Creates a regular file that has no name and opens it: [`FileSystem::link`] may give it one. It belongs where it would if it
    /// were made in `parent`.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn create_unnamed(
        &self,
        caller: Caller,
        parent: Ino,
        permissions: Permissions,
        open: OpenMode,
    ) -> Result<(Node, u64), Error> {
        self.check_writable()?;
        let owner = self.owner_of_file_in(caller, parent)?;
        let (ino, attr, file) = self.view.create_unnamed(parent, permissions, owner, open)?;
        self.counters.open();
        Ok((self.node(ino, attr), self.files.insert(file)))
    }

    /// Makes a file, device, fifo or socket without opening it.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Invalid`] for a directory or link; [`Error::View`].
    pub fn make_node(
        &self,
        caller: Caller,
        parent: Ino,
        name: &OsStr,
        kind: Kind,
        permissions: Permissions,
        rdev: u32,
    ) -> Result<Node, Error> {
        self.check_writable()?;
        if matches!(kind, Kind::Directory | Kind::Symlink) {
            return Err(Error::Invalid);
        }
        let owner = self.owner_of_file_in(caller, parent)?;
        let (ino, attr) = self.view.make_node(parent, name, kind, permissions, rdev, owner)?;
        Ok(self.node(ino, attr))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn make_directory(
        &self,
        caller: Caller,
        parent: Ino,
        name: &OsStr,
        permissions: Permissions,
    ) -> Result<Node, Error> {
        self.check_writable()?;
        let (owner, inherited) = self.owner_in(caller, parent)?;
        let permissions = Permissions { mode: permissions.mode | inherited, ..permissions };
        let (ino, attr) = self.view.make_directory(parent, name, permissions, owner)?;
        Ok(self.node(ino, attr))
    }

    /// Makes a symbolic link to `target`.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn make_symlink(&self, caller: Caller, parent: Ino, name: &OsStr, target: &OsStr) -> Result<Node, Error> {
        self.check_writable()?;
        let owner = self.owner_of_file_in(caller, parent)?;
        let (ino, attr) = self.view.make_symlink(parent, name, target, owner)?;
        Ok(self.node(ino, attr))
    }

    /// Gives `ino` another name, or its first.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Node, Error> {
        self.check_writable()?;
        let (ino, attr) = self.view.link(ino, parent, name)?;
        Ok(self.node(ino, attr))
    }

    /// Takes a name of something that is not a directory away.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<(), Error> {
        self.check_writable()?;
        Ok(self.view.unlink(parent, name)?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn remove_directory(&self, parent: Ino, name: &OsStr) -> Result<(), Error> {
        self.check_writable()?;
        Ok(self.view.remove_directory(parent, name)?)
    }

    /// `renameat2(2)` with its flag bits.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Invalid`] for flags other than `RENAME_NOREPLACE` or `RENAME_EXCHANGE`;
    /// [`Error::View`].
    pub fn rename(&self, from: Ino, name: &OsStr, to: Ino, new_name: &OsStr, flags: u32) -> Result<(), Error> {
        self.check_writable()?;
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Error::Invalid),
        };
        Ok(self.view.rename(from, name, to, new_name, mode)?)
    }

    /// Writes all of `data` or fails, and returns how much was written.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::BadHandle`] or [`Error::View`].
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<usize, Error> {
        self.check_writable()?;
        let written = self.view.write(&*self.opened(handle)?, offset, data)?;
        self.counters.write(written);
        Ok(written)
    }

    /// Writes `data` at `offset`, where a mapping of the file was changed, also if it was opened to append.
    ///
    /// # Errors
    /// As [`FileSystem::write`].
    pub fn write_mapped(&self, handle: u64, offset: u64, data: &[u8]) -> Result<usize, Error> {
        self.check_writable()?;
        let written = self.view.write_mapped(&*self.opened(handle)?, offset, data)?;
        self.counters.write(written);
        Ok(written)
    }

    /// Makes what was written to an open file durable.
    ///
    /// # Errors
    /// [`Error::BadHandle`] or [`Error::View`].
    pub fn sync(&self, handle: u64, data_only: bool) -> Result<(), Error> {
        if self.options.read_only {
            return Ok(());
        }
        Ok(self.view.sync(&*self.opened(handle)?, data_only)?)
    }

    /// `fallocate(2)` with its mode bits.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::BadHandle`] or [`Error::View`].
    pub fn allocate(&self, handle: u64, mode: i32, offset: u64, length: u64) -> Result<(), Error> {
        self.check_writable()?;
        Ok(self.view.allocate(&*self.opened(handle)?, mode, offset, length)?)
    }

    /// Sets an extended attribute; `flags` are those of `setxattr(2)`.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn set_xattr(&self, caller: Caller, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<(), Error> {
        self.check_writable()?;
        self.view.set_xattr(ino, name, value, flags)?;
        if name == ACCESS_ACL && caller.uid != 0 {
            self.clear_setgid(caller, ino)?;
        }
        Ok(())
    }

    /// A new ACL takes the setgid bit of a file of a group that its owner is not in. Which further groups the caller is
    /// in is not told here: they count as others.
    fn clear_setgid(&self, caller: Caller, ino: Ino) -> Result<(), Error> {
        let attr = self.view.attr(ino)?;
        if attr.mode & SETGID != 0 && attr.kind == Kind::File && attr.gid != caller.gid {
            let mode = Some(attr.mode & !SETGID);
            self.view.set_attr(ino, &SetAttr { mode, ..SetAttr::default() })?;
        }
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] or [`Error::View`].
    pub fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Error> {
        self.check_writable()?;
        Ok(self.view.remove_xattr(ino, name)?)
    }

    /// Whom a new node in `parent` belongs to, and the mode bits that a new directory takes over from it: a setgid
    /// directory hands its group on, and itself to directories. The kernel leaves this to the filesystem.
    fn owner_in(&self, caller: Caller, parent: Ino) -> Result<(Owner, u16), Error> {
        let parent = self.view.attr(parent)?;
        let inherited = parent.mode & SETGID;
        let owner = match self.options.owners {
            Owners::Squash { .. } => None,
            Owners::AsStored { groups, .. } if inherited != 0 => Some((caller.uid, existing(parent.gid, groups))),
            Owners::AsStored { .. } => Some((caller.uid, caller.gid)),
        };
        Ok((owner, inherited))
    }

    /// What `permissions` come to for a file that `caller` makes in `parent`: a program of a directory's group does not act for that
    /// group if its maker is none of it. To be asked where the kernel does not see to that itself. Which further groups the caller is
    /// in is not told here: they count as others.
    ///
    /// # Errors
    /// [`Error::View`].
    pub fn without_foreign_setgid(
        &self,
        caller: Caller,
        parent: Ino,
        permissions: Permissions,
    ) -> Result<Permissions, Error> {
        let acts = permissions.mode & SETGID != 0 && permissions.mode & GROUP_RUNS != 0;
        if !acts || caller.uid == 0 {
            return Ok(permissions);
        }
        match self.owner_in(caller, parent)? {
            (Some((_, gid)), _) if gid != caller.gid => {
                Ok(Permissions { mode: permissions.mode & !SETGID, ..permissions })
            }
            _ => Ok(permissions),
        }
    }

    /// As [`FileSystem::owner_in`], for what is no directory.
    fn owner_of_file_in(&self, caller: Caller, parent: Ino) -> Result<Owner, Error> {
        match self.options.owners {
            Owners::Squash { .. } => Ok(None),
            Owners::AsStored { .. } => Ok(self.owner_in(caller, parent)?.0),
        }
    }

    /// Where only one owner exists, to give something to that owner changes nothing and to anyone else is refused.
    fn without_squashed_owner(&self, change: &SetAttr) -> Result<SetAttr, Error> {
        let Owners::Squash { uid, gid } = self.options.owners else { return Ok(*change) };
        if change.uid.is_some_and(|new| new != uid) || change.gid.is_some_and(|new| new != gid) {
            return Err(Error::NotPermitted);
        }
        Ok(SetAttr { uid: None, gid: None, ..*change })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::over_nothing;
    use super::*;

    #[test]
    fn a_program_made_in_a_directory_of_a_foreign_group_does_not_act_for_it() {
        let (_layer, filesystem) = over_nothing(Owners::AsStored { users: u32::MAX, groups: u32::MAX });
        let change = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
        let own = filesystem.set_attr(Ino::ROOT, &change(0o2777)).unwrap().attr.gid;
        let made = |uid, gid, mode| {
            let permissions = Permissions::exactly(mode);
            filesystem.without_foreign_setgid(Caller { uid, gid }, Ino::ROOT, permissions).unwrap().mode
        };

        for (uid, gid, mode, expected) in [
            (5, own + 1, 0o2755, 0o0755),
            (5, own, 0o2755, 0o2755),
            (0, own + 1, 0o2755, 0o2755),
            // That of a file which is to be locked.
            (5, own + 1, 0o2745, 0o2745),
        ] {
            assert_eq!(made(uid, gid, mode), expected, "{uid} {gid} {mode:o}");
        }
        filesystem.set_attr(Ino::ROOT, &change(0o777)).unwrap();
        assert_eq!(made(5, own + 1, 0o2755), 0o2755, "it is of the group of its maker");
    }
}
