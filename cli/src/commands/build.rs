//! `siphon build`: a sandbox over an image, an image from a sandbox, a directory or another image, or either from a
//! definition file.

use super::instance::enter::INSTANCE;
use crate::args::{BuildArgs, ImageFlags};
use crate::build::converted::note_sandbox;
use crate::build::sources::{self, OciImage};
use crate::build::{self, ImageRequest, recipe};
use crate::host::{cache_dir, instances_dir};
use crate::instance::Registry;
use crate::report::{Report, human_bytes};
use crate::settings::{Common, Environment, ImageSettings, RecipeSettings};
use anyhow::{Context, bail};
use siphon_fsd::locator::Locator;
use siphon_overlay::upper::{Base, Upper};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Builds `args.target` from `args.source`.
///
/// # Errors
/// If the source cannot be opened, the target exists (without `--force`) or cannot be written.
pub fn build(args: &BuildArgs, common: &Common, environment: &Environment, report: Report) -> anyhow::Result<()> {
    let settings = RecipeSettings::resolve(&args.recipe, environment)?;
    let Some(source) = &args.source else {
        let source = args.target.to_str().context("the name of the definition file is not valid UTF-8")?;
        return recipe::check(source, &settings, report);
    };
    if settings.check {
        return recipe::check(source, &settings, report);
    }
    let flags = ImageFlags { force: args.image.force || environment.switch(&["FORCE"]), ..args.image.clone() };
    let mut image = ImageSettings::resolve(&flags, environment)?;
    image.compression = image.compression.or(settings.compression);
    let sandbox = args.sandbox || environment.switch(&["SANDBOX"]);
    if is_recipe(source) || settings.json || settings.update {
        let image_options = image_options(&image);
        let (settings, image, target) = (&settings, &image, &args.target);
        let request = recipe::Request { source, target, sandbox, settings, image, image_options, common, environment };
        return recipe::build(&request, report);
    }
    if !sandbox {
        let wanted = sources::platform(settings.arch.as_deref(), settings.arch_variant.as_deref())?;
        if let Some(oci) = &sources::open(source, &wanted)? {
            return convert(oci, &args.target, &image, report);
        }
        let instance = source.strip_prefix(INSTANCE).map(|name| of_instance(name, args, common)).transpose()?;
        let (source, overlay) = match &instance {
            Some((image, overlay)) => (image.as_str(), overlay.as_deref()),
            None => (source.as_str(), args.overlay.as_deref()),
        };
        let (target, as_it_is, when_told) = (&*args.target, args.as_it_is, args.when_told);
        let request = ImageRequest { source, overlay, target, as_it_is, when_told };
        return build::image(request, &image, common, report).map_err(|error| hint(error, source));
    }
    // Before what is there goes.
    let source = &*sources::usable_apart(source, report).with_context(|| format!("could not open image {source}"))?;
    if args.target.exists() {
        if !image.force {
            bail!("build target '{}' already exists. Use --force if you want to overwrite it", args.target.display());
        }
        remove(&args.target)?;
    }
    make_sandbox(source, &args.target, common, report)?;
    report.info(format_args!("Build complete: {}", args.target.display()));
    Ok(())
}

/// The image of an instance, and the layer that its changes are in, if that is not the image's own.
fn of_instance(name: &str, args: &BuildArgs, common: &Common) -> anyhow::Result<(String, Option<PathBuf>)> {
    let record = Registry::new(instances_dir(common)).find(name).context("While setting image/instance")?;
    if args.overlay.is_some() {
        bail!("--overlay is for images; the instance {name} has its own layer");
    }
    match record.overlays.as_slice() {
        [overlay] if overlay.is_dir() => Ok((record.image, Some(overlay.clone()))),
        [] if Path::new(&record.image).is_dir() => Ok((record.image, None)),
        [] => bail!(
            "the instance {name} keeps no changes; start it with --overlay DIRECTORY, or in a sandbox with --writable"
        ),
        _ => bail!("the instance {name} has other overlays than one directory, of which no image can be made"),
    }
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

/// How the image is made, as the options of another `build`.
fn image_options(image: &ImageSettings) -> Vec<String> {
    let mut options = vec![format!("--compact={}", image.compact_percent)];
    options.extend(image.force.then(|| "--force".to_owned()));
    options.extend(image.compression.map(|compression| format!("--compression={}", compression.as_flag())));
    options
}

/// A file of text that is no image may be a definition file that does not look like one.
fn hint(error: anyhow::Error, source: &str) -> anyhow::Error {
    let mut head = String::new();
    let file = std::fs::File::open(source).ok().filter(|_| Path::new(source).is_file());
    let is_text = file.is_some_and(|file| file.take(HEAD_BYTES).read_to_string(&mut head).is_ok());
    if is_text && !head.contains('\0') && !head.is_empty() {
        return error.context(format!(
            "{source} is neither an image nor a definition file, which has a line that begins with \"Bootstrap:\"; \
             --check shows what is wrong with one"
        ));
    }
    error
}

/// A sandbox is its layer: an empty directory that remembers the image below it.
pub(super) fn make_sandbox(source: &str, target: &Path, common: &Common, report: Report) -> anyhow::Result<()> {
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
    let is_new = target.symlink_metadata().is_err();
    if let Err(error) = Upper::create(target, &base) {
        // Half of a sandbox would be taken for a directory that is an image by itself.
        if is_new {
            let _ = std::fs::remove_dir_all(target);
        }
        return Err(error).with_context(|| format!("cannot make the sandbox {}", target.display()));
    }
    note_sandbox(&cache_dir(common), Path::new(&base.image), target)
}

/// Removes what `--force` replaces.
fn remove(target: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot remove {}", target.display());
    if !target.is_dir() || target.is_symlink() {
        return std::fs::remove_file(target).with_context(context);
    }
    build::check_replaceable(target)?;
    // Users inside may have directories in it that only they can empty.
    build::own_what_is_ours();
    std::fs::remove_dir_all(target).with_context(context)
}

/// How much of a file is looked at to see that it is a recipe.
const HEAD_BYTES: u64 = 4096;

/// Whether a file says near its beginning what an image is built from, as text or JSON.
fn is_recipe(source: &str) -> bool {
    let mut head = Vec::new();
    let Ok(file) = std::fs::File::open(source) else { return false };
    if file.metadata().is_ok_and(|found| found.is_dir()) || file.take(HEAD_BYTES).read_to_end(&mut head).is_err() {
        return false;
    }
    if head.contains(&0) {
        return false;
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let is_json = head.trim_start().starts_with('{') && head.contains("\"header\"");
    is_json || head.lines().any(|line| line.trim_start().starts_with("bootstrap:") || line.starts_with('%'))
}
