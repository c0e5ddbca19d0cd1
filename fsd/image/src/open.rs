//! Looks at the first bytes of an image and opens it, and tells what the image says of itself.
//!
//! ```text
//! SIF magic at byte 32              -> its primary partition, squashfs or ext3
//! hsqs at byte 0                    -> squashfs
//! #!... run-singularity, then hsqs  -> squashfs behind the launcher line (.simg)
//! ext magic at byte 1080            -> an ext2, ext3 or ext4 file system, with or without that line
//! anything else                     -> an error that says what it is and what to do
//! ```

mod facts;

use crate::directory::Directory;
use crate::ext::{self, Ext};
use crate::oci::base::{Base, MAX_BASE_BYTES, OCI_BASE};
use crate::oci::config::MAX_CONFIG_BYTES;
use crate::read_at::{ReadAt, Window};
use crate::sif::{self, DataType, Descriptor, FilesystemType, HEADER_BYTES, Partition, PartitionType, Sif};
use crate::squashfs::format::MAGIC as SQUASHFS_MAGIC;
use crate::squashfs::reader::{self, Options, Squashfs};
use crate::tree::{self, Tree};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use facts::{Facts, Script, app_facts, facts};

/// First bytes that are looked at: ext3 has its magic behind the first KiB, and launcher lines end within 2 KiB.
const HEAD_BYTES: u64 = 2048;
/// The end of the launcher line of singularity 2.4 to 2.6.
const LAUNCHER_END: &[u8] = b" run-singularity\n";
/// Name of the SIF object that holds an OCI configuration, as apptainer writes it.
pub const OCI_CONFIG: &str = "oci-config.json";

/// An opened image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its root file system.
    pub tree: Arc<dyn Tree>,
    /// The same, if it is packed as squashfs.
    pub squashfs: Option<Arc<Squashfs>>,
    /// What it is packed as.
    pub format: Format,
    /// Its other objects, if it is a SIF.
    pub sif: Option<Sif>,
    /// How to run it, if it is an OCI image: JSON.
    pub run_config: Option<Arc<str>>,
}

/// What an image is packed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// SIF with a squashfs partition.
    Sif,
    /// Squashfs and nothing else.
    Squashfs,
    /// Squashfs behind a launcher line, as singularity 2.4 to 2.6 wrote it.
    Simg,
    /// An ext2, ext3 or ext4 file system.
    Ext,
    /// A directory.
    Directory,
    /// Layers of an OCI image, read in place.
    Oci,
}

/// Why an image cannot be opened. Each message says what the image is and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bytes.
    #[error("the image is empty; a download or build may have failed, so fetch or build it again")]
    Empty,
    /// A text file.
    #[error(
        "the image is a text file, such as a definition file or a server's error page; build or fetch an image first"
    )]
    Text,
    /// None of the known formats.
    #[error("the image is neither SIF nor squashfs; convert it with \"apptainer build new.sif\"")]
    Unknown,
    /// An ext2, ext3 or ext4 file system that cannot be read.
    #[error("the ext3 file system of the image cannot be used")]
    Ext(#[from] ext::Error),
    /// Its root file system is encrypted.
    #[error(
        "the root file system of the image is encrypted; run it with \"apptainer exec --passphrase\" or \"--pem-path\""
    )]
    Encrypted,
    /// An OCI-SIF, whose layers are images of their own.
    #[error("the image is an OCI-SIF; fetch it again without \"--oci\" to get a plain SIF")]
    OciSif,
    /// A SIF without anything to run.
    #[error("the SIF image has no root file system, only other objects; name an image that was built to be run")]
    NoRoot,
    /// A SIF whose root file system is of a type that nothing reads lazily.
    #[error(
        "the root file system of the SIF image is {0:?}, not squashfs; convert it with \"apptainer build new.sif\""
    )]
    Filesystem(FilesystemType),
    /// A SIF without the file system that is to be bound.
    #[error("no data partition{} found in it", .0.map(|id| format!(" with the number {id}")).unwrap_or_default())]
    NoData(Option<u32>),
    /// A damaged SIF.
    #[error("the SIF image cannot be used")]
    Sif(#[from] sif::Error),
    /// A damaged squashfs.
    #[error("the squashfs file system of the image cannot be used")]
    Squashfs(#[from] reader::Error),
    /// A directory that cannot be opened.
    #[error("the directory cannot be used as an image")]
    Directory(#[source] tree::Error),
    /// The storage below failed.
    #[error("cannot read the image")]
    Io(#[from] io::Error),
}

impl Image {
    /// The merged layers `tree` of an OCI image, which its configuration says to run so: JSON.
    pub fn of_layers(tree: Arc<dyn Tree>, run_config: &str) -> Self {
        Self { tree, squashfs: None, format: Format::Oci, sif: None, run_config: Some(run_config.into()) }
    }

    /// The configuration of the OCI image that this is, or that a SIF was once made from, byte for byte: `oci-config.json`.
    pub fn oci_config(&self) -> Option<Vec<u8>> {
        if let Some(config) = &self.run_config {
            return Some(config.as_bytes().to_vec());
        }
        self.json(OCI_CONFIG, MAX_CONFIG_BYTES)
    }

    /// The OCI image in a registry that a SIF was once made from, and what was changed since.
    pub fn oci_base(&self) -> Option<Base> {
        Base::parse(&self.json(OCI_BASE, MAX_BASE_BYTES)?)
    }

    /// The object `name` of a SIF.
    fn json(&self, name: &str, max_bytes: usize) -> Option<Vec<u8>> {
        let sif = self.sif.as_ref()?;
        let object = sif.object(sif.find_named(DataType::GenericJson, name)?);
        let len_bytes = usize::try_from(object.len()).ok().filter(|len| *len <= max_bytes)?;
        let mut json = vec![0; len_bytes];
        object.read_exact_at(&mut json, 0).ok()?;
        Some(json)
    }
}

/// Opens the image that `bytes` are, and reads it as its reader does by default.
///
/// # Errors
/// See [`Error`].
pub fn open(bytes: Arc<dyn ReadAt>) -> Result<Image, Error> {
    open_with(bytes, Options::default())
}

/// Opens the image that `bytes` are.
///
/// # Errors
/// See [`Error`].
pub fn open_with(bytes: Arc<dyn ReadAt>, options: Options) -> Result<Image, Error> {
    let head_bytes = usize::try_from(bytes.len().min(HEAD_BYTES)).expect("at most 2048");
    let mut head = vec![0; head_bytes];
    bytes.read_exact_at(&mut head, 0)?;
    if sif::is_sif(&head) {
        return open_sif(bytes, options);
    }
    if is_squashfs(&head) {
        let tree = Arc::new(Squashfs::open_with(bytes, options)?);
        return Ok(Image { squashfs: Some(tree.clone()), tree, format: Format::Squashfs, sif: None, run_config: None });
    }
    let (start, content) = behind_launcher(&head);
    if start > 0 && is_squashfs(content) {
        let start = start as u64;
        let window = Window::new(Arc::clone(&bytes), start, bytes.len() - start);
        let window = window.expect("the launcher line is within the bytes");
        let tree = Arc::new(Squashfs::open_with(Arc::new(window), options)?);
        return Ok(Image { squashfs: Some(tree.clone()), tree, format: Format::Simg, sif: None, run_config: None });
    }
    if ext::is_ext(content) {
        let window = Window::new(Arc::clone(&bytes), start as u64, bytes.len() - start as u64);
        return open_ext(Arc::new(window.expect("the launcher line is within the bytes")), Format::Ext, None);
    }
    Err(refusal(&head))
}

fn open_ext(bytes: Arc<dyn ReadAt>, format: Format, sif: Option<Sif>) -> Result<Image, Error> {
    Ok(Image { tree: Arc::new(Ext::open(bytes)?), squashfs: None, format, sif, run_config: None })
}

/// Opens the file system that `bytes` hold for others to use: the object `id` of a SIF, or the first of its data
/// partitions, or else the squashfs that all of them are.
///
/// # Errors
/// See [`Error`].
pub fn open_data(bytes: Arc<dyn ReadAt>, id: Option<u32>, options: Options) -> Result<Image, Error> {
    let mut head = [0; HEADER_BYTES];
    if bytes.len() >= head.len() as u64 {
        bytes.read_exact_at(&mut head, 0)?;
    }
    if !sif::is_sif(&head) {
        return open_with(bytes, options);
    }
    let sif = Sif::open(bytes)?;
    let is_wanted = |descriptor: &&Descriptor, partition: Partition| match id {
        Some(id) => descriptor.id == id,
        None => partition.kind == PartitionType::Data,
    };
    let mut partitions = sif.descriptors().iter().filter_map(|found| Some((found, found.partition()?)));
    let (found, partition) =
        partitions.find(|(found, partition)| is_wanted(found, *partition)).ok_or(Error::NoData(id))?;
    match partition.filesystem {
        FilesystemType::Squashfs => {
            let tree = Arc::new(Squashfs::open_with(Arc::new(sif.object(found)), options)?);
            Ok(Image { squashfs: Some(tree.clone()), tree, format: Format::Sif, sif: Some(sif), run_config: None })
        }
        FilesystemType::Ext3 => open_ext(Arc::new(sif.object(found)), Format::Sif, Some(sif)),
        FilesystemType::EncryptedSquashfs | FilesystemType::GocryptfsSquashfs => Err(Error::Encrypted),
        other => Err(Error::Filesystem(other)),
    }
}

/// Opens a directory of the host, such as one that `apptainer build --sandbox` made, as an image. The name `hidden` at
/// its root is not part of it.
///
/// # Errors
/// [`Error::Directory`].
pub fn open_directory(path: &Path, hidden: &OsStr) -> Result<Image, Error> {
    let tree = Arc::new(Directory::open(path).map_err(Error::Directory)?.without(hidden));
    Ok(Image { tree, squashfs: None, format: Format::Directory, sif: None, run_config: None })
}

fn open_sif(bytes: Arc<dyn ReadAt>, options: Options) -> Result<Image, Error> {
    let sif = Sif::open(bytes)?;
    let Some(primary) = sif.primary_partition() else {
        let is_oci = sif.find(DataType::OciRootIndex).is_some();
        return Err(if is_oci { Error::OciSif } else { Error::NoRoot });
    };
    match primary.partition().map(|partition| partition.filesystem) {
        Some(FilesystemType::Squashfs) => {
            let tree = Arc::new(Squashfs::open_with(Arc::new(sif.object(primary)), options)?);
            Ok(Image { squashfs: Some(tree.clone()), tree, format: Format::Sif, sif: Some(sif), run_config: None })
        }
        Some(FilesystemType::Ext3) => open_ext(Arc::new(sif.object(primary)), Format::Sif, Some(sif)),
        Some(FilesystemType::EncryptedSquashfs | FilesystemType::GocryptfsSquashfs) => Err(Error::Encrypted),
        Some(other) => Err(Error::Filesystem(other)),
        None => Err(Error::NoRoot),
    }
}

/// Whether these first bytes are those of a squashfs.
pub fn is_squashfs(head: &[u8]) -> bool {
    head.starts_with(&SQUASHFS_MAGIC.to_le_bytes())
}

/// What follows the launcher line, and where; all of `head` if there is none.
fn behind_launcher(head: &[u8]) -> (usize, &[u8]) {
    let line = head.starts_with(b"#!").then(|| head.windows(LAUNCHER_END.len()).position(|part| part == LAUNCHER_END));
    let start = line.flatten().map_or(0, |position| position + LAUNCHER_END.len());
    (start, &head[start..])
}

/// Why there is nothing to open.
fn refusal(head: &[u8]) -> Error {
    if head.is_empty() {
        return Error::Empty;
    }
    // UTF-8 may be cut in the middle of a character at the end of the head.
    let is_text = std::str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true);
    let has_controls = head.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace());
    if is_text && !has_controls { Error::Text } else { Error::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8]) -> Error {
        open(Arc::new(bytes.to_vec())).unwrap_err()
    }

    #[test]
    fn what_is_no_image_is_refused_by_what_it_is() {
        let mut ext3 = vec![0; 4096];
        ext3[1080..1082].copy_from_slice(&[0x53, 0xef]);
        let launched = [b"#!/usr/bin/env run-singularity\n", ext3.as_slice()].concat();

        assert!(matches!(refused(b""), Error::Empty));
        assert!(matches!(refused(b"Bootstrap: docker\nFrom: debian\n"), Error::Text));
        assert!(matches!(refused("é".repeat(1500)[..].as_bytes()), Error::Text));
        assert!(matches!(refused(&ext3), Error::Ext(ext::Error::Superblock { .. })));
        assert!(matches!(refused(&launched), Error::Ext(ext::Error::Superblock { .. })));
        assert!(matches!(refused(&[0x1f, 0x8b, 8, 0, 0, 0]), Error::Unknown));
        assert!(matches!(refused(&[0xff; 5000]), Error::Unknown));
    }

    #[test]
    fn the_launcher_line_of_old_images_is_skipped() {
        for line in ["#!/usr/bin/env run-singularity\n", "#!/usr/local/bin/env run-singularity\n"] {
            let head = [line.as_bytes(), b"hsqs"].concat();

            assert_eq!(behind_launcher(&head), (line.len(), b"hsqs".as_slice()));
        }
        assert_eq!(behind_launcher(b"x run-singularity\nhsqs").0, 0);
    }
}
