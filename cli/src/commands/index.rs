//! `siphon index`: what lets the layers of an OCI image be read in place, made before anybody waits for it.

use crate::args::IndexArgs;
use crate::host::cache_dir;
use crate::report::{Report, human_bytes};
use crate::settings::Common;
use anyhow::{Context, bail};
use siphon_fsd::daemon::chunk_trace;
use siphon_fsd::locator::this_arch;
use siphon_fsd::oci::Indexes;
use siphon_image::reference::Reference;

/// Makes the indexes that are missing, and sends them if it is asked to.
///
/// # Errors
/// If it is no OCI image in a registry, cannot be read, or the registry does not take the indexes.
pub fn index(args: &IndexArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let context = || format!("could not open image {}", args.image);
    let Some(Reference::Docker(repository)) = Reference::parse(&args.image).with_context(context)? else {
        bail!("{} is no OCI image in a registry (docker://...), and only those have layers to index", args.image);
    };
    let cache_dir = cache_dir(common);
    let bar = report.progress("indexing", 0);
    let progress = |done, all| bar.set(done, all);
    let indexes = Indexes::make(&repository, this_arch(), &cache_dir, &progress).with_context(context)?;
    drop(bar);
    let (layers, indexed) = indexes.layers();
    report.info(format_args!("{indexed} of {layers} layers of {} have an index here", args.image));
    if args.push {
        let trace = chunk_trace(&cache_dir, indexes.image_digest());
        let sent = indexes.push(&repository, &trace);
        let sent = sent.with_context(|| format!("cannot send the indexes of {}", args.image))?;
        let what = if trace.is_empty() { "without a trace: run the image first for one" } else { "with a trace" };
        report.info(format_args!("Sent {} as {} ({what})", human_bytes(sent.bytes), sent.digest));
    }
    Ok(())
}
