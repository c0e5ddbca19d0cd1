//! Where an image came from, written into it as apptainer does when it builds from an image:
//!
//! ```text
//! /.singularity.d/Singularity                    what this build was made of
//! /.singularity.d/bootstrap_history/ApptainerN   what was there before: the definition file that the image goes back to
//! /.singularity.d/labels.json                    the labels, with those of this build
//! ```

use siphon_image::oci::own::date;
use siphon_image::open::Facts;
use siphon_image::sif::Arch;
use siphon_image::tree::{Kind, Tree};
use siphon_overlay::error::Error;
use siphon_overlay::upper::Upper;
use siphon_overlay::view::{Ino, OpenMode, Permissions, RenameMode, SetAttr, SetTime, View};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

/// The directory of a container's own files.
const METADATA: &str = ".singularity.d";
const DEFFILE: &str = "Singularity";
const HISTORY: &str = "bootstrap_history";
const LABELS: &str = "labels.json";
/// What is known of a build.
#[derive(Debug, Clone, Copy)]
pub(super) struct Provenance<'a> {
    /// What was named as its source.
    pub(super) source: &'a str,
    /// What the source says of itself.
    pub(super) facts: &'a Facts,
    /// What it runs on.
    pub(super) arch: Arch,
    /// When, in seconds since 1970.
    pub(super) seconds: u32,
}

/// `tree` with the provenance in it, or as it is if it is no container. The few files lie in `directory`, an empty one, which
/// has to stay as long as the tree is used.
///
/// # Errors
/// If `directory` cannot be written to, or `tree` not be read.
pub(super) fn write(
    tree: Arc<dyn Tree>,
    provenance: Provenance<'_>,
    directory: &Path,
) -> anyhow::Result<Arc<dyn Tree>> {
    let is_directory = |node| tree.attr(node).map(|attr| attr.kind == Kind::Directory);
    let metadata = tree.lookup(tree.root(), OsStr::new(METADATA))?;
    if !metadata.map(is_directory).transpose()?.unwrap_or(false) {
        return Ok(tree);
    }
    let view = View::new(tree, Some(Upper::open(directory)?))?;
    let (metadata, before) = view.lookup(Ino::ROOT, OsStr::new(METADATA))?;
    let root = view.attr(Ino::ROOT)?.mtime;
    keep_deffile(&view, metadata)?;
    let Provenance { source, facts, arch, seconds } = provenance;
    let source = &without_secrets(source);
    let deffile = format!("bootstrap: localimage\nfrom: {}\n\n", source.replace('\n', " "));
    put(&view, metadata, DEFFILE, &deffile, seconds)?;
    let mut labels = facts.labels.clone();
    let own = [
        ("schema-version", "1.0".to_owned()),
        ("build-arch", arch.name().to_owned()),
        ("build-date", date(seconds)),
        ("usage.siphon.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("usage.singularity.deffile.bootstrap", "localimage".to_owned()),
        ("usage.singularity.deffile.from", source.to_owned()),
    ];
    labels.extend(own.map(|(name, value)| (format!("org.label-schema.{name}"), value)));
    put(&view, metadata, LABELS, &serde_json::to_string_pretty(&labels)?, seconds)?;
    // What belongs to the image keeps its time.
    for (ino, time) in [(metadata, before.mtime), (Ino::ROOT, root)] {
        view.set_attr(ino, &SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() })?;
    }
    Ok(Arc::new(view))
}

/// Moves the definition file to the history, behind those that are there.
fn keep_deffile(view: &View, metadata: Ino) -> Result<(), Error> {
    let is_there = |name: &str, kind| view.lookup(metadata, OsStr::new(name)).is_ok_and(|(_, attr)| attr.kind == kind);
    if !is_there(DEFFILE, Kind::File) {
        return Ok(());
    }
    if !is_there(HISTORY, Kind::Directory) {
        if view.lookup(metadata, OsStr::new(HISTORY)).is_ok() {
            view.unlink(metadata, OsStr::new(HISTORY))?;
        }
        view.make_directory(metadata, OsStr::new(HISTORY), Permissions::exactly(0o755), None)?;
    }
    let (history, _) = view.lookup(metadata, OsStr::new(HISTORY))?;
    let mut number = view.entries(history)?.len();
    let name = loop {
        let name = format!("Apptainer{number}");
        if view.lookup(history, OsStr::new(&name)).is_err() {
            break name;
        }
        number += 1;
    };
    view.rename(metadata, OsStr::new(DEFFILE), history, OsStr::new(&name), RenameMode::NoReplace)
}

/// A name of an image as others may read it: of a URL, no user, password, query or fragment.
fn without_secrets(source: &str) -> String {
    let Some((scheme, rest)) = source.split_once("://") else { return source.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
    let host = authority.rsplit('@').next().unwrap_or_default();
    path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
}

/// Writes a file in place of what is there.
fn put(view: &View, directory: Ino, name: &str, content: &str, seconds: u32) -> Result<(), Error> {
    let name = OsStr::new(name);
    match view.lookup(directory, name) {
        Ok((_, attr)) if attr.kind == Kind::Directory => return Ok(()),
        Ok(_) => view.unlink(directory, name)?,
        Err(_) => {}
    }
    let mode = OpenMode { write: true, ..OpenMode::default() };
    let (ino, _, file) = view.create(directory, name, Permissions::exactly(0o644), None, mode)?;
    view.write(&file, 0, content.as_bytes())?;
    let time = siphon_image::tree::Timestamp { seconds: seconds.into(), nanos: 0 };
    view.set_attr(ino, &SetAttr { mode: Some(0o644), mtime: Some(SetTime::At(time)), ..SetAttr::default() })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_named_without_what_only_its_reader_may_know() {
        for (source, named) in [
            ("image.sif", "image.sif"),
            ("dir/what?.sif", "dir/what?.sif"),
            ("https://host/x.sif?X-Amz-Signature=secret", "https://host/x.sif"),
            ("https://user:token@host:8080/a@b/x.sif#part", "https://host:8080/a@b/x.sif"),
            ("http://user@host", "http://host"),
        ] {
            assert_eq!(without_secrets(source), named);
        }
    }
}
