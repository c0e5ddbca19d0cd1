//! `siphon build`: a sandbox over an image, or an image from a sandbox, a directory or another image.

use crate::args::BuildArgs;
use crate::build;
use crate::build::sources::{self, OciImage};
use crate::report::{Report, human_bytes};
use crate::settings::{Common, Environment, ImageSettings};
use anyhow::{Context, bail};
use siphon_fsd::locator::Locator;
use siphon_overlay::upper::{Base, Upper};
use std::io::Read;
use std::path::Path;

/// Builds `args.target` from `args.source`.
///
/// # Errors
/// If the source cannot be opened, the target exists (without `--force`) or cannot be written.
pub fn build(args: &BuildArgs, common: &Common, environment: &Environment, report: Report) -> anyhow::Result<()> {
    refuse_recipe(&args.source)?;
    if !args.sandbox {
        let wanted = sources::platform(args.arch.as_deref(), args.arch_variant.as_deref())?;
        let settings = ImageSettings::resolve(&args.image, environment)?;
        if let Some(image) = &sources::open(&args.source, &wanted)? {
            return convert(image, &args.target, &settings, report);
        }
        return build::image(&args.source, args.overlay.as_deref(), &args.target, &settings, common, report);
    }
    if args.target.exists() {
        if !args.image.force {
            bail!("build target '{}' already exists. Use --force if you want to overwrite it", args.target.display());
        }
        remove(&args.target)?;
    }
    sandbox(&args.source, &args.target, common, report)?;
    report.info(format_args!("Build complete: {}", args.target.display()));
    Ok(())
}

/// Makes an image file of an OCI image.
fn convert(image: &OciImage, target: &Path, settings: &ImageSettings, report: Report) -> anyhow::Result<()> {
    if !settings.force && target.symlink_metadata().is_ok() {
        bail!("build target '{}' already exists. Use --force if you want to overwrite it", target.display());
    }
    report.info(format_args!("Creating {} file...", if build::is_bare(target) { "squashfs" } else { "SIF" }));
    let bytes = build::convert::convert(&image.facts, image.blobs.clone(), &image.origin, target, settings, report)?;
    report.info(format_args!("Build complete: {} ({})", target.display(), human_bytes(bytes)));
    Ok(())
}

/// A sandbox is its layer: an empty directory that remembers the image below it.
pub(super) fn sandbox(source: &str, target: &Path, common: &Common, report: Report) -> anyhow::Result<()> {
    let context = || format!("could not open image {source}");
    let source = &*sources::usable(source, common, report).with_context(context)?;
    let locator = Locator::parse(source).with_context(context)?;
    if let Locator::Sandbox(path) = &locator {
        bail!(
            "{} is itself a sandbox; make an image of it first (siphon commit {0} IMAGE.sif) and a sandbox of that",
            path.display()
        );
    }
    let opened = super::open_image(source, common, report)?;
    let base = Base { version: Base::VERSION, image: locator.to_string(), identity: opened.identity };
    Upper::create(target, &base).with_context(|| format!("cannot make the sandbox {}", target.display()))?;
    Ok(())
}

/// Removes what `--force` replaces: only a file, an empty directory or something that looks like a container.
fn remove(target: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot remove {}", target.display());
    if !target.is_dir() || target.is_symlink() {
        return std::fs::remove_file(target).with_context(context);
    }
    let container = [".siphon", ".singularity.d"].iter().any(|name| target.join(name).is_dir());
    let empty = std::fs::read_dir(target).with_context(context)?.next().is_none();
    if !container && !empty {
        bail!("{} is a directory but no sandbox; remove it yourself if you mean it", target.display());
    }
    // Users inside may have directories in it that only they can empty.
    build::own_what_is_ours();
    std::fs::remove_dir_all(target).with_context(context)
}

/// How much of a file is looked at to see that it is a recipe.
const HEAD_BYTES: u64 = 4096;

fn refuse_recipe(source: &str) -> anyhow::Result<()> {
    let mut head = String::new();
    let Ok(file) = std::fs::File::open(source) else { return Ok(()) };
    // What is not text is an image, or will be refused as none.
    let text = file.take(HEAD_BYTES).read_to_string(&mut head).is_ok();
    if text && head.to_ascii_lowercase().lines().any(|line| line.trim_start().starts_with("bootstrap:")) {
        bail!("{source} is a definition file, and building from those is not supported yet");
    }
    Ok(())
}
