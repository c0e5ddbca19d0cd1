//! `siphon layer`: changes of a sandbox's layer that need no container.

use crate::args::{LayerResetArgs, LayerVerb};
use crate::build::own_what_is_ours;
use crate::host::runtime_dirs;
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::daemon;
use siphon_fsd::locator::Locator;
use siphon_fsd::sys::mounts::seen_overlayfs;
use siphon_image::path::resolve;
use siphon_image::tree::Tree;
use siphon_overlay::error::Error as LayerError;
use siphon_overlay::upper::{PRIVATE_NAME, Reset, Upper};
use std::ffi::OsString;
use std::path::{Component, Path};

/// Does what `verb` says.
///
/// # Errors
/// As [`reset`].
pub fn layer(verb: &LayerVerb, common: &Common, report: Report) -> anyhow::Result<()> {
    match verb {
        LayerVerb::Reset(args) => reset(args, common, report),
    }
}

/// Puts paths back to what the image has. Nothing is changed if one of them is in neither.
///
/// # Errors
/// If the sandbox cannot be opened, someone writes to it, or a path cannot be put back.
fn reset(args: &LayerResetArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let locator = Locator::parse(&args.sandbox).with_context(|| format!("could not open {}", args.sandbox))?;
    let Locator::Sandbox(directory) = &locator else {
        bail!("{} is no sandbox, so that it has nothing to put back", args.sandbox);
    };
    daemon::release(directory, &runtime_dirs(common));
    // Users inside may have directories in it that only they can empty. Threads for a remote image come after this.
    own_what_is_ours();
    let opened = super::open_image(&args.sandbox, common, report)?;
    let context = || format!("cannot change the layer of {}", args.sandbox);
    let upper = Upper::open(directory).with_context(context)?;
    match upper.lock_exclusive_unless(seen_overlayfs) {
        Err(LayerError::Locked { holder }) => {
            let holder = holder.as_deref().unwrap_or("another process");
            bail!("{} is in use by {holder}; try again when it has ended", args.sandbox)
        }
        locked => locked.with_context(context)?,
    }
    let merged = opened.tree()?;
    let trees = [merged.as_ref(), opened.lower.as_ref()];
    let paths = args.paths.iter().map(|path| find(trees, path, &args.sandbox)).collect::<anyhow::Result<Vec<_>>>()?;
    for (path, names) in args.paths.iter().zip(paths) {
        let context = || format!("cannot put {} back", path.display());
        match upper.reset(&names, opened.lower.as_ref()).with_context(context)? {
            Reset::Done => report.info(format_args!("{} is as in the image again", path.display())),
            Reset::Unchanged => report.info(format_args!("{} is as in the image", path.display())),
        }
    }
    Ok(())
}

/// The names that lead to a path without a link, in the first of the trees that has it.
fn find(trees: [&dyn Tree; 2], path: &Path, sandbox: &str) -> anyhow::Result<Vec<OsString>> {
    for tree in trees {
        let resolved = resolve(tree, path, false).with_context(|| format!("cannot look up {}", path.display()));
        let Ok(resolved) = resolved else { continue };
        if resolved.node.is_none() {
            continue;
        }
        let names = resolved.path.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            _ => None,
        });
        let names: Vec<_> = names.collect();
        match names.first() {
            None => bail!("the root cannot be put back; make a new sandbox with: siphon build --force --sandbox"),
            Some(first) if first == PRIVATE_NAME => bail!("{} is siphon's own", path.display()),
            Some(_) => return Ok(names),
        }
    }
    bail!("{} is neither in {sandbox} nor in its image", path.display())
}
