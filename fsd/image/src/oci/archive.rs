//! Archives of OCI layouts and of `docker save`: tar files whose members are found without reading what is between them.
//!
//! An archive that is compressed as a whole can only be read from front to back, and layers are wanted from the top down. So
//! it is decompressed first, to a file without a name.

use super::blobs::Blobs;
use super::config::MAX_CONFIG_BYTES;
use super::layers::TarError;
use super::layers::decompress::{decompressed, is_compressed};
use super::layers::merge::clean;
use super::layers::tar::{Kind, Reader};
use super::layout::{INDEX, blob_path, read_index};
use super::select::{self, ImageFacts, MAX_MANIFEST_BYTES};
use super::{Descriptor, Digest, ImageIndex, MediaType};
use base16ct::lower::encode_string as hex;
use serde::Deserialize;
use sha2::Digest as _;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Members that an archive may have: an image of 500 layers in the oldest form has 2,000.
const MAX_MEMBERS: usize = 1 << 16;
/// Links from member to member that are followed.
const MAX_LINKS: usize = 8;
/// What names the images of a docker archive.
const MANIFEST: &[u8] = b"manifest.json";
/// First bytes that tell how something is compressed.
const HEAD_BYTES: usize = 8;

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the archive")]
    Io(#[from] io::Error),
    /// It is none.
    #[error("the archive is damaged")]
    Tar(#[from] TarError),
    /// More members than any image has.
    #[error("the archive has more than {MAX_MEMBERS} members")]
    TooMany,
    /// Something is missing in it.
    #[error("the archive has no {0}")]
    Missing(String),
    /// A part is longer than it can be.
    #[error("{0} in the archive is too long")]
    TooLong(String),
    /// A part cannot be parsed.
    #[error("{name} in the archive is not valid")]
    Json {
        /// Which.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// None of its images has the name asked for, or there is more than one.
    #[error("the archive has {} image{}, and one has to be named: {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.join(", "))]
    Name(Vec<String>),
    /// The numbers of layers and of their digests differ.
    #[error("the image has {layers} layers, and its configuration names {diff_ids}")]
    Count {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] select::Error),
}

/// An opened archive.
#[derive(Debug, Clone)]
pub struct Archive {
    file: Arc<File>,
    members: HashMap<Vec<u8>, Member>,
    /// Blobs that are not named by their digests.
    blobs: HashMap<String, Range<u64>>,
}

#[derive(Debug, Clone)]
enum Member {
    File(Range<u64>),
    Link(Vec<u8>),
}

/// An entry of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    /// Finds the members of the archive `file`. One that is compressed takes a file in the directory `temporary` as long as
    /// what is returned is used.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(file: File, temporary: &Path) -> Result<Self, Error> {
        let mut head = [0; HEAD_BYTES];
        let read = file.read_at(&mut head, 0)?;
        let mut file = file;
        if is_compressed(&head[..read]) {
            let mut plain = tempfile::tempfile_in(temporary)?;
            io::copy(&mut decompressed(BufReader::new(file))?, &mut plain)?;
            file = plain;
        }
        let members = members(&file)?;
        Ok(Self { file: Arc::new(file), members, blobs: HashMap::new() })
    }

    /// The index of an OCI archive.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn index(&self) -> Result<ImageIndex, Error> {
        let index = self.find(INDEX.as_bytes()).ok_or_else(|| Error::Missing(INDEX.to_owned()))?;
        Ok(read_index(self.section(index))?)
    }

    /// The image named `name` of an archive that `docker save` made, or the only one.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn docker_image(&mut self, name: Option<&str>) -> Result<ImageFacts, Error> {
        let json = self.read(MANIFEST, MAX_MANIFEST_BYTES)?;
        let invalid = |source| Error::Json { name: "manifest.json".to_owned(), source };
        let saved: Vec<Saved> = serde_json::from_slice(&json).map_err(invalid)?;
        let is_meant = |image: &&Saved| match name {
            None => true,
            Some(name) => image.repo_tags.iter().flatten().any(|tag| full_name(tag) == full_name(name)),
        };
        let mut meant = saved.iter().filter(is_meant);
        let (Some(image), None) = (meant.next(), meant.next()) else {
            return Err(Error::Name(
                saved.iter().flat_map(|image| image.repo_tags.iter().flatten().cloned()).collect(),
            ));
        };
        let config = self.read(image.config.as_bytes(), MAX_CONFIG_BYTES)?;
        let digest = sha256(&config);
        let mut facts = ImageFacts::new(digest, Vec::new(), config)?;
        let (layers, diff_ids) = (image.layers.len(), facts.diff_ids.len());
        if layers != diff_ids {
            return Err(Error::Count { layers, diff_ids });
        }
        for (layer, diff_id) in image.layers.iter().zip(&facts.diff_ids) {
            facts.layers.push(self.layer(layer, diff_id)?);
        }
        Ok(facts)
    }

    /// The descriptor of a layer: the archive has none. What is stored as it is has the digest of its diff_id.
    fn layer(&mut self, name: &str, diff_id: &Digest) -> Result<Descriptor, Error> {
        let range = self.find(name.as_bytes()).ok_or_else(|| Error::Missing(name.to_owned()))?;
        let size = range.end - range.start;
        let mut head = [0; HEAD_BYTES];
        let read = self.section(range.clone()).read(&mut head)?;
        let digest = match is_compressed(&head[..read]) {
            false => diff_id.clone(),
            true => {
                let mut state = sha2::Sha256::new();
                let mut section = self.section(range.clone());
                let mut buffer = vec![0; 1 << 20];
                loop {
                    let read = section.read(&mut buffer)?;
                    if read == 0 {
                        break;
                    }
                    state.update(&buffer[..read]);
                }
                digest_of(&state.finalize())
            }
        };
        self.blobs.insert(digest.to_string(), range);
        Ok(Descriptor::new(MediaType::ImageLayer, size, digest))
    }

    fn read(&self, name: &[u8], max_bytes: usize) -> Result<Vec<u8>, Error> {
        let text = || String::from_utf8_lossy(name).into_owned();
        let range = self.find(name).ok_or_else(|| Error::Missing(text()))?;
        if range.end - range.start > max_bytes as u64 {
            return Err(Error::TooLong(text()));
        }
        let mut bytes = Vec::new();
        self.section(range).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Where the file with this name lies, links followed.
    fn find(&self, name: &[u8]) -> Option<Range<u64>> {
        let mut name = clean(name).join(&b'/');
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::File(range) => return Some(range.clone()),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    fn section(&self, range: Range<u64>) -> Section {
        Section { file: self.file.clone(), range }
    }
}

impl Blobs for Archive {
    fn open(&self, blob: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        let digest = blob.digest();
        let named = || self.find(blob_path(digest).ok()?.as_os_str().as_bytes());
        let range = self.blobs.get(&digest.to_string()).cloned().or_else(named);
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("the archive has no blob {digest}"));
        Ok(Box::new(self.section(range.ok_or_else(missing)?)))
    }
}

/// A part of a file, read from front to back.
struct Section {
    file: Arc<File>,
    range: Range<u64>,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let length = left.min(buf.len());
        let read = self.file.read_at(&mut buf[..length], self.range.start)?;
        if read == 0 && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.range.start += read as u64;
        Ok(read)
    }
}

/// All files and links of an archive.
fn members(mut file: &File) -> Result<HashMap<Vec<u8>, Member>, Error> {
    let mut members = HashMap::new();
    let end = file.metadata()?.len();
    let mut position = 0;
    // A new reader for each member: what the last one has read ahead is not wanted.
    loop {
        file.seek(SeekFrom::Start(position))?;
        let mut reader = Reader::new(BufReader::with_capacity(4096, file));
        let Some(entry) = reader.next()? else { return Ok(members) };
        let start = position.saturating_add(reader.position());
        let (stored, padding) = reader.rest();
        let content = start..start.saturating_add(stored);
        position = content.end.saturating_add(padding);
        if content.end > end {
            return Err(TarError::CutOff(end).into());
        }
        let path = clean(&entry.path).join(&b'/');
        let member = match entry.kind {
            Kind::File if entry.size == stored => Member::File(content),
            Kind::HardLink => Member::Link(clean(&entry.link).join(&b'/')),
            Kind::Symlink => Member::Link(beside(&path, &entry.link)),
            _ => continue,
        };
        members.insert(path, member);
        if members.len() > MAX_MEMBERS {
            return Err(Error::TooMany);
        }
    }
}

/// What the symbolic link at `path` leads to.
fn beside(path: &[u8], target: &[u8]) -> Vec<u8> {
    let directory = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &path[..slash]);
    clean(&[directory, b"/", target].concat()).join(&b'/')
}

/// A docker reference with what may be left out.
fn full_name(name: &str) -> String {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let has_tag = short.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if has_tag || short.contains('@') { short.to_owned() } else { format!("{short}:latest") }
}

fn sha256(bytes: &[u8]) -> Digest {
    digest_of(&sha2::Sha256::digest(bytes))
}

fn digest_of(sum: &[u8]) -> Digest {
    let text = format!("sha256:{}", hex(sum));
    text.parse().expect("64 digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_with_what_may_be_left_out() {
        for (name, full) in [
            ("alpine", "alpine:latest"),
            ("docker.io/library/alpine:3", "alpine:3"),
            ("host:5000/a/b", "host:5000/a/b:latest"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }

    #[test]
    fn a_link_leads_to_what_is_beside_it() {
        assert_eq!(beside(b"a/layer.tar", b"../b/layer.tar"), b"b/layer.tar");
        assert_eq!(beside(b"a/layer.tar", b"../../../b"), b"b");
        assert_eq!(beside(b"x", b"y"), b"y");
    }
}
