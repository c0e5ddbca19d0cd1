//! Whether the kernel's overlayfs does over FUSE what programs do with files.

use super::{path_of, serve_directory};
use crate::errno::chain;
use crate::sys::mounts::{self, OverlayMount};
use siphon_overlay::upper::Upper;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// How the reason begins where it was mounted and something went wrong then.
pub(super) const FAILS_AT_WORK: &str = "overlayfs over FUSE fails at work";

/// Content of the files below.
const CONTENT: &str = "lower\n";

/// Readies a trial in a scratch directory of `layer`, has `act` run it, and takes all of it away.
pub(super) fn on<T>(layer: &Upper, act: impl FnOnce(PathBuf) -> Result<T, String>) -> Result<T, String> {
    let scratch = layer.scratch().map_err(|error| format!("cannot make a scratch directory: {}", chain(&error)))?;
    let place = path_of(scratch.directory());
    let lower = place.join("lower");
    let served = prepare(&place).and_then(|()| serve_directory(&place.join("source"), &lower));
    let session = served.map_err(|error| format!("cannot prepare a trial: {error}"))?;
    let merged = place.join("merged");
    let result = act(place);
    match mounts::detach(&lower) {
        // The last mount of the filesystem is gone, so its session ends. A helper that died may have left another one.
        Ok(()) if result.is_ok() => drop(session.join()),
        Ok(()) => drop(mounts::detach(&merged)),
        Err(error) => tracing::debug!("a trial stays mounted: {error}"),
    }
    if let Err(error) = scratch.remove() {
        tracing::debug!("a trial stays in the layer's working directory: {error}");
    }
    result
}

fn prepare(place: &Path) -> io::Result<()> {
    for directory in ["source", "lower", "upper", "work", "merged", "source/full", "source/kept"] {
        fs::create_dir(place.join(directory))?;
    }
    for file in ["appended", "renamed", "unlinked", "unchanged", "full/inner", "kept/inner"] {
        fs::write(place.join("source").join(file), CONTENT)?;
    }
    Ok(())
}

/// Mounts twice: what the first mount changed has to be there in the second.
pub(super) fn run(place: &Path) -> Result<(), String> {
    let mount = OverlayMount {
        source: "siphon-trial".to_owned(),
        target: place.join("merged"),
        lower: place.join("lower"),
        upper: place.join("upper"),
        work: place.join("work"),
        setuid: false,
    };
    for step in [change as fn(&Path) -> io::Result<()>, look] {
        mount.mount().map_err(|error| format!("the kernel refuses overlayfs over FUSE: {}", chain(&error)))?;
        let result = step(&mount.target);
        let unmounted = mounts::detach(&mount.target);
        result.map_err(|error| format!("{FAILS_AT_WORK}: {error}"))?;
        unmounted.map_err(|error| chain(&error))?;
    }
    let whiteout = fs::symlink_metadata(place.join("upper/unlinked")).map(|data| data.file_type().is_char_device());
    match whiteout {
        Ok(true) => Ok(()),
        _ => Err("overlayfs writes its marks otherwise than siphon reads them".to_owned()),
    }
}

fn change(root: &Path) -> io::Result<()> {
    let at = |name: &str| root.join(name);
    expect("read", fs::read_to_string(at("unchanged"))? == CONTENT)?;

    let before = fs::metadata(at("appended"))?.ino();
    let mut file = OpenOptions::new().append(true).open(at("appended"))?;
    file.write_all(b"upper\n")?;
    file.sync_all()?;
    expect("keep an inode number", fs::metadata(at("appended"))?.ino() == before)?;
    fs::set_permissions(at("kept/inner"), fs::Permissions::from_mode(0o600))?;

    fs::rename(at("renamed"), at("new name"))?;
    fs::remove_file(at("unlinked"))?;
    fs::remove_file(at("full/inner"))?;
    fs::remove_dir(at("full"))?;
    fs::create_dir(at("full"))?;
    fs::write(at("full/created"), "upper\n")?;
    symlink("created", at("full/link"))?;
    File::open(at("full"))?.sync_all()?;
    look(root)
}

fn look(root: &Path) -> io::Result<()> {
    let at = |name: &str| root.join(name);
    expect("append", fs::read_to_string(at("appended"))? == "lower\nupper\n")?;
    expect("change a mode", fs::metadata(at("kept/inner"))?.mode() & 0o777 == 0o600)?;
    expect("rename", fs::read_to_string(at("new name"))? == CONTENT && !at("renamed").exists())?;
    expect("unlink", !at("unlinked").exists())?;
    expect("link", fs::read_to_string(at("full/link"))? == "upper\n")?;
    let mut names: Vec<_> = fs::read_dir(root)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    expect("list", names == ["appended", "full", "kept", "new name", "unchanged"])?;
    expect("hide a directory", fs::read_dir(at("full"))?.count() == 2)
}

fn expect(what: &'static str, is_so: bool) -> io::Result<()> {
    if is_so { Ok(()) } else { Err(io::Error::other(format!("it does not {what}"))) }
}
