//! The image and all layers on it, as one tree.

use super::merge::make_directory;
use crate::daemon::mount_points::Extended;
use crate::daemon::serve::conversation::Parts;
use crate::daemon::state::StateDirectory;
use crate::daemon::{DaemonError, Layer, Placement, Spec};
use crate::errno::chain;
use crate::layers::{Mounts, Overlay};
use crate::locator::{Locator, Opened};
use crate::sys::mounts::{mount_memory, seen_overlayfs};
use siphon_image::open::Format;
use siphon_image::tree::{EmptyTree, Tree};
use siphon_overlay::stack::Stack;
use siphon_overlay::upper::Upper;
use siphon_overlay::view::View;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// The merged tree, and whether writes reach it.
#[derive(Debug)]
pub(super) struct Layered {
    pub(super) view: Arc<View>,
    pub(super) writable: Result<(), String>,
    pub(super) is_stable: bool,
    /// Below the view: takes mount points where there is no layer for them.
    pub(super) extended: Option<Arc<Extended>>,
    /// Keeps a layer in memory alive.
    pub(super) memory: Option<File>,
    /// Keeps mounted layers alive.
    pub(super) mounts: Arc<Mounts>,
    /// What the kernel's overlayfs would merge, or why it must not.
    pub(super) parts: Result<Parts, String>,
}

/// Puts the layers on the image.
pub(super) fn layer(
    spec: &Spec,
    locator: &Locator,
    opened: &Opened,
    state: &StateDirectory,
) -> Result<Layered, DaemonError> {
    let place = &state.root();
    let mut mounts = Mounts::new();
    let on_host = matches!(spec.placement, Placement::HostMount(_));
    let layered = match &spec.layer {
        Layer::Directory(directory) => match writable_upper(directory) {
            Ok(upper) => {
                // A plain directory is written to as it is: nothing lies below it that a deletion would have to hide.
                let below = if opened.upper_dir.is_some() { opened.lower.clone() } else { Arc::new(EmptyTree) };
                match opened.upper_dir {
                    Some(_) => writable(below, upper, directory)?,
                    None => {
                        let parts = Err("a plain directory is written to as it is".to_owned());
                        Layered { parts, ..writable(below, upper, directory)? }
                    }
                }
            }
            Err(reason) => {
                let sandbox = read_only_sandbox(opened, directory)?;
                Layered { is_stable: false, ..read_only(sandbox, reason, place)? }
            }
        },
        Layer::Overlay(path) if is_written_as_it_is(spec, locator, opened) => {
            let upper = Overlay::find(path)?.open_as_root(place, &mut mounts)?;
            let parts = Err("an ext3 image is written to as it is".to_owned());
            Layered { parts, ..writable(Arc::new(EmptyTree), upper, path)? }
        }
        Layer::Overlay(path) => {
            let mut stack = below(spec, locator, opened, place, &mut mounts)?;
            let upper = Overlay::find(path)?.push_below(&mut stack, place, &mut mounts)?;
            // Places to mount on are no changes that anyone asked for.
            let extended = Arc::new(Extended::new(stack.tree()));
            let parts = parts(&upper, stack.tree());
            Layered { extended: Some(extended.clone()), parts, ..writable(extended, upper, path)? }
        }
        Layer::Temporary if on_host => {
            let stack = below(spec, locator, opened, place, &mut mounts)?;
            read_only(stack.tree(), "a mount in the host's tree takes no temporary layer".into(), place)?
        }
        Layer::Temporary => {
            over_memory(below(spec, locator, opened, place, &mut mounts)?.tree(), spec, &state.memory())?
        }
        Layer::ReadOnly => {
            let stack = below(spec, locator, opened, place, &mut mounts)?;
            read_only(stack.tree(), format!("{} is a read-only image", spec.image), place)?
        }
    };
    // Someone else may write to the layer of a sandbox that is only read here.
    let is_stable = layered.is_stable && opened.is_stable && opened.upper_dir.is_none() && overlays_are_stable(spec)?;
    let is_ours = matches!(spec.layer, Layer::Directory(_)) && layered.writable.is_ok() && opened.is_stable;
    let is_stable = is_stable || is_ours;
    let parts = match is_stable {
        true => layered.parts,
        false => {
            layered.parts.and(Err("what is below the layer may change, which overlayfs does not allow".to_owned()))
        }
    };
    Ok(Layered { mounts: Arc::new(mounts), is_stable, parts, ..layered })
}

/// Whether writes go into the ext3 image itself, as into a plain directory.
pub(super) fn is_written_as_it_is(spec: &Spec, locator: &Locator, opened: &Opened) -> bool {
    let image = match locator {
        Locator::File(path) => Some(path.as_path()),
        _ => None,
    };
    opened.image.format == Format::Ext && spec.layer.directory() == image && image.is_some()
}

fn overlays_are_stable(spec: &Spec) -> Result<bool, DaemonError> {
    for path in &spec.overlays {
        if !Overlay::find(path)?.is_stable() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A layer of which this process is the only writer.
fn writable(below: Arc<dyn Tree>, upper: Upper, path: &Path) -> Result<Layered, DaemonError> {
    let parts = parts(&upper, below.clone());
    let view = view(below, Some(upper), path)?;
    let (extended, memory, mounts) = (None, None, Arc::default());
    Ok(Layered { view, writable: Ok(()), is_stable: true, extended, memory, mounts, parts })
}

/// No layer: what is missing to mount on is made beside the nodes of the image.
fn read_only(below: Arc<dyn Tree>, reason: String, place: &Path) -> Result<Layered, DaemonError> {
    let extended = Arc::new(Extended::new(below));
    let view = view(extended.clone(), None, place)?;
    let (extended, memory, mounts, parts) = (Some(extended), None, Arc::default(), Err(reason.clone()));
    Ok(Layered { view, writable: Err(reason), is_stable: true, extended, memory, mounts, parts })
}

/// A layer in memory, for writes that are not kept. `place` leads to it until that is detached.
fn over_memory(below: Arc<dyn Tree>, spec: &Spec, place: &Path) -> Result<Layered, DaemonError> {
    make_directory(place)?;
    let memory = mount_memory(place, spec.memory_bytes)?;
    let upper = Upper::open_overlay(place).map_err(|source| DaemonError::Layer { path: place.into(), source })?;
    Ok(Layered { memory: Some(memory), ..writable(below, upper, place)? })
}

/// What the kernel's overlayfs would merge.
fn parts(upper: &Upper, lower: Arc<dyn Tree>) -> Result<Parts, String> {
    let upper = upper.try_clone().map_err(|error| error.to_string())?;
    Ok(Parts { upper, lower })
}

/// The image, or the tree of a sandbox that is read only, with all layers on it that are only read.
fn below(
    spec: &Spec,
    locator: &Locator,
    opened: &Opened,
    place: &Path,
    mounts: &mut Mounts,
) -> Result<Stack, DaemonError> {
    let mut stack = Stack::new(opened.lower.clone());
    if let Some(directory) = &opened.upper_dir {
        let failed = |source| DaemonError::Layer { path: directory.clone(), source };
        stack.push_directory(Upper::open(directory).map_err(failed)?).map_err(failed)?;
    }
    if let (Locator::File(path), Some(sif)) = (locator, &opened.image.sif)
        && spec.layer.directory() != Some(path)
        && let Some(own) = Overlay::of_sif(path, sif)?
    {
        own.push(&mut stack, place, mounts)?;
    }
    for path in &spec.overlays {
        Overlay::find(path)?.push(&mut stack, place, mounts)?;
    }
    Ok(stack)
}

/// The layer, ours alone to write; or why not.
fn writable_upper(directory: &Path) -> Result<Upper, String> {
    let upper = Upper::open(directory).map_err(|error| chain(&error))?;
    upper.lock_exclusive_unless(seen_overlayfs).map_err(|error| chain(&error))?;
    Ok(upper)
}

/// A sandbox that someone else writes, as a tree.
fn read_only_sandbox(opened: &Opened, directory: &Path) -> Result<Arc<dyn Tree>, DaemonError> {
    let upper = Upper::open(directory).map_err(|source| DaemonError::Layer { path: directory.into(), source })?;
    Ok(view(opened.lower.clone(), Some(upper), directory)?)
}

fn view(lower: Arc<dyn Tree>, upper: Option<Upper>, path: &Path) -> Result<Arc<View>, DaemonError> {
    let view = View::new(lower, upper).map_err(|source| DaemonError::Layer { path: path.into(), source })?;
    Ok(Arc::new(view))
}
