//! `siphon pull`: an image from a registry, a library or a web server into a file.

use crate::args::{ImageFlags, PullArgs};
use crate::build::elsewhere::{Pull, pull as fetch, shown};
use crate::build::sources;
use crate::report::Report;
use crate::settings::{Common, Environment, ImageSettings};
use anyhow::{Context, bail};
use siphon_image::reference::Reference;
use std::path::PathBuf;

/// Fetches `args.output_and_uri` into a file.
///
/// # Errors
/// If the image cannot be had, or the file exists (without `--force`) or cannot be written.
pub fn pull(args: &PullArgs, common: &Common, environment: &Environment, report: Report) -> anyhow::Result<()> {
    let (output, uri) = match args.output_and_uri.as_slice() {
        [uri] => (None, uri),
        [output, uri] => (Some(PathBuf::from(output)), uri),
        _ => bail!("pull takes a file and where the image is, or that alone"),
    };
    let reference = Reference::parse(uri).with_context(|| format!("cannot understand {uri:?}"))?;
    if reference.is_none() && !sources::is_oci(uri) {
        bail!(
            "{uri} does not say where the image is: write docker://, oras://, library:// or https:// before its name, or \
             \"siphon build IMAGE.sif {uri}\" for what is on this machine"
        );
    }
    let shown = reference.as_ref().map_or_else(|| uri.clone(), shown);
    let text = |keys: &[&str]| environment.setting(keys).map(PathBuf::from);
    let name = output.or_else(|| args.name.clone()).or_else(|| text(&["PULL_NAME"]));
    let named = || {
        let named = reference.as_ref().map_or_else(|| sources::file_name(uri), Reference::file_name);
        named.map(PathBuf::from)
    };
    let name = name.or_else(named).with_context(|| format!("{shown} gives no file a name; write one before it"))?;
    let directory = args.dir.clone().or_else(|| text(&["PULLDIR", "PULLFOLDER"]));
    let target = directory.map_or_else(|| name.clone(), |directory| directory.join(&name));
    let is_forced = args.force || environment.switch(&["FORCE"]);
    if target.symlink_metadata().is_ok() {
        if !is_forced {
            bail!("Image file already exists: {:?} - will not overwrite", target.display().to_string());
        }
        if target.is_dir() {
            bail!("{} is a directory; remove it yourself if you mean it", target.display());
        }
    }
    if args.sandbox || environment.switch(&["SANDBOX"]) {
        // It remembers what it is over with all that is needed to open that again.
        let whole = reference.as_ref().map_or_else(|| uri.clone(), Reference::to_string);
        super::build::make_sandbox(&whole, &target, common, report)?;
        report.info(format_args!("Pull complete: {}", target.display()));
        return Ok(());
    }
    let arch =
        args.arch.clone().or_else(|| environment.setting(&["PULL_ARCH"]).map(|arch| arch.to_string_lossy().into()));
    let wanted = sources::platform(arch.as_deref(), args.arch_variant.as_deref())?;
    let uses_cache = !(args.disable_cache || environment.switch(&["DISABLE_CACHE"]));
    if let Some(image) = sources::open(uri, &wanted)? {
        let settings = ImageSettings::resolve(&ImageFlags { force: true, ..ImageFlags::default() }, environment)?;
        sources::save(&image, &target, uses_cache, &settings, common, report)
            .with_context(|| format!("While pulling {shown}"))?;
        report.info(format_args!("Pull complete: {}", target.display()));
        return Ok(());
    }
    let reference = &reference.context("what is no OCI image has a reference")?;
    report.info(format_args!("Downloading {shown}"));
    fetch(&Pull { reference, wanted, target: &target, uses_cache }, common, report)
        .with_context(|| format!("While pulling {shown}"))?;
    report.info(format_args!("Pull complete: {}", target.display()));
    Ok(())
}
