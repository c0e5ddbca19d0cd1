//! What `--overlay` names, for the commands that have it.

use crate::report::Report;
use crate::settings::OverlaySpec;
use anyhow::{Context, bail};
use siphon_fsd::layers::Overlay;
use std::path::PathBuf;

/// The overlays of a run or a mount.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// Those that are only read, lowest first.
    pub(super) read: Vec<PathBuf>,
    /// The one that is written to.
    pub(super) written: Option<PathBuf>,
}

impl Layers {
    /// All of them, by their paths.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.read.iter().chain(&self.written)
    }
}

/// Finds the overlays that were asked for.
///
/// # Errors
/// If one is none, or more than one is to be written to.
pub(super) fn find(specs: &[OverlaySpec], report: Report) -> anyhow::Result<Layers> {
    let mut found = Layers::default();
    for spec in specs {
        let overlay = Overlay::find(&spec.path).context("while loading overlay images")?;
        let path = overlay.path().to_owned();
        if !spec.read_only && overlay.is_writable() {
            if let Some(other) = &found.written {
                bail!(
                    "while loading overlay images: you can't specify more than one writable overlay, {} contains a \
                     writable overlay, requires to use '--overlay {}:ro'",
                    other.display(),
                    path.display()
                );
            }
            found.written = Some(path);
        } else {
            if !spec.read_only {
                let place = path.display();
                report.warning(format_args!("Overlay image {place} is not writable, proceeding with read-only"));
            }
            found.read.push(path);
        }
    }
    Ok(found)
}
