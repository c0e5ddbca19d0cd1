//! The device files that scripts of packages need, in a root file system that is not run yet.
//!
//! No namespace may make them, so the host's are bound over empty files, in a mount namespace of this process alone; what
//! uses the root file system without it sees the empty files, which go with the binds.

use crate::build::root::Root;
use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::path::{Path, PathBuf};

const NAMES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Bound until it is dropped.
#[derive(Debug)]
pub(super) struct Devices<'a> {
    root: &'a Root,
    bound: Vec<PathBuf>,
}

impl<'a> Devices<'a> {
    /// Binds those that the root file system does not have itself.
    pub(super) fn bind(root: &'a Root) -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("cannot make mounts private")?;
        let mut devices = Self { root, bound: Vec::new() };
        for name in NAMES {
            let inside = Path::new("dev").join(name);
            if root.kind(&inside)?.is_some() {
                continue;
            }
            root.put(&inside, b"", 0o666)?;
            let (from, to) = (Path::new("/dev").join(name), root.path.join(&inside));
            devices.bound.push(inside);
            if let Err(error) = mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
                tracing::info!("{} is missing for scripts of packages: {error}", from.display());
            }
        }
        Ok(devices)
    }
}

impl Drop for Devices<'_> {
    fn drop(&mut self) {
        for inside in &self.bound {
            let _it_may_not_be_bound = umount2(&self.root.path.join(inside), MntFlags::MNT_DETACH);
            self.root.remove_empty(inside);
        }
    }
}
