//! The verbs, one file each.

pub mod build;
pub mod build_step;
pub mod cache;
pub mod cat;
pub mod commit;
pub mod completion;
pub mod configuration;
pub mod convert;
pub mod daemon;
pub mod diff;
pub mod doctor;
pub mod index;
pub mod inspect;
pub mod instance;
pub mod layer;
mod layers;
mod limits;
pub mod ls;
pub mod man;
pub mod mount;
pub mod overlay;
pub mod pin;
pub mod pull;
pub mod push;
pub mod registry;
pub mod run;
pub mod run_help;
pub mod sif;
pub mod status;
pub mod umount;

use crate::build::sources::readable;
use crate::host::cache_dir;
use crate::report::Report;
use crate::settings::Common;
use anyhow::Context;
use siphon_fsd::locator::{self, Locator, Opened};
use siphon_image::tree::Tree;
use std::sync::Arc;

/// Opens the tree of an image for looking into it, without a mount.
fn open_tree(image: &str, common: &Common, report: Report) -> anyhow::Result<Arc<dyn Tree>> {
    open_image(image, common, report)?.tree().with_context(|| format!("could not open image {image}"))
}

/// Opens an image without a mount.
fn open_image(image: &str, common: &Common, report: Report) -> anyhow::Result<Opened> {
    let context = || format!("could not open image {image}");
    let usable = readable(image, common, report).with_context(context)?;
    let locator = Locator::parse(&usable).with_context(context)?;
    locator::open(&locator, &cache_dir(common), common.cache_bytes).with_context(context)
}
