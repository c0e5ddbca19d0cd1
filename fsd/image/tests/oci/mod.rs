//! OCI images that tests make: layers with the `tar` crate, blobs in memory or in a layout on disk.

#![allow(dead_code, reason = "each test uses a part")]

use base16ct::lower::encode_string as hex;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use siphon_image::oci::blobs::Blobs;
use siphon_image::oci::layers::{Error, Merged, Source, write};
use siphon_image::oci::{Descriptor, Digest};
use siphon_image::read_at::FileAt;
use siphon_image::squashfs::reader::Squashfs;
use siphon_image::squashfs::writer::{Options, Progress, Summary};
use siphon_image::tree::{Kind, NodeId, Tree};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Blobs in memory, by digest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory(pub(crate) HashMap<String, Vec<u8>>);

impl Blobs for Memory {
    fn open(&self, blob: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        let bytes = self.0.get(&blob.digest().to_string()).cloned();
        Ok(Box::new(io::Cursor::new(bytes.ok_or(io::ErrorKind::NotFound)?)))
    }
}

/// A layer in the making.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

/// What an entry says beside its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
}

pub(crate) const META: Meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: 1_000_000_000 };

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn xattr(&mut self, name: &str, value: &[u8]) {
        self.0.append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value)]).unwrap();
    }

    /// Appends an entry under a name that may be anything, as the crate's own functions do not.
    pub(crate) fn entry(&mut self, kind: tar::EntryType, name: &str, link: &str, content: &[u8], meta: Meta) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
    }

    pub(crate) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(tar::EntryType::Regular, name, "", content, META);
    }

    /// Appends bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.get_mut().extend_from_slice(bytes);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Files with holes, `s-VERSION` and `t-VERSION`, as GNU tar stores them in each of its forms, without the end of an archive.
pub(crate) fn with_holes() -> Vec<u8> {
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&include_bytes!("sparse.tar.gz")[..]).read_to_end(&mut tar).unwrap();
    tar
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image of these tar streams, stored as `store` makes them.
pub(crate) fn source(layers: &[Vec<u8>], store: impl Fn(&[u8]) -> Vec<u8>) -> Source {
    let mut blobs = Memory::default();
    let mut descriptors = Vec::new();
    for layer in layers {
        let stored = store(layer);
        descriptors.push(descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &stored));
        blobs.0.insert(digest(&stored), stored);
    }
    let diff_ids = layers.iter().map(|layer| digest(layer).parse::<Digest>().unwrap()).collect();
    Source { blobs: Arc::new(blobs), layers: descriptors, diff_ids, fetched_bytes: Arc::default() }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type.into(), bytes.len() as u64, digest(bytes).parse::<Digest>().unwrap())
}

/// Writes the image and opens it.
pub(crate) fn squashfs(source: &Source, options: &Options) -> Result<(Squashfs, Summary, Merged, Vec<u8>), Error> {
    let file = tempfile::tempfile().unwrap();
    let (summary, merged) = write(source, &[], 0, &file, 0, options, &Progress::default())?;
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut &file).unwrap();
    (&file).read_to_end(&mut bytes).unwrap();
    let squashfs = Squashfs::open(Arc::new(FileAt::new(file).unwrap())).unwrap();
    Ok((squashfs, summary, merged, bytes))
}

/// Writes a layout with one image named `latest`.
pub(crate) fn write_layout(directory: &Path, layers: &[Vec<u8>]) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest["sha256:".len()..]), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    };
    let stored: Vec<_> =
        layers.iter().map(|layer| put("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer))).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": stored });
    let mut manifest = put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Everything about a tree, by path. Times of directories before `since` only: later ones are of the unpacking.
pub(crate) fn listing(tree: &dyn Tree, since: i64) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut names: HashMap<NodeId, PathBuf> = HashMap::new();
    let mut pending = vec![(PathBuf::from("/"), tree.root())];
    while let Some((path, node)) = pending.pop() {
        let attr = tree.attr(node).unwrap();
        let mut xattrs = tree.xattrs(node).unwrap();
        xattrs.sort();
        let mut text = format!("{:?} {:o} {}:{} {:x} {xattrs:?}", attr.kind, attr.mode, attr.uid, attr.gid, attr.rdev);
        if attr.kind != Kind::Directory || attr.mtime.seconds < since {
            text += &format!(" @{}", attr.mtime.seconds);
        }
        match attr.kind {
            Kind::File => {
                let mut content = vec![0; usize::try_from(attr.size).unwrap()];
                assert_eq!(tree.read(node, 0, &mut content).unwrap(), content.len());
                text += &format!(" {} {}", attr.size, digest(&content));
            }
            Kind::Symlink => text += &format!(" -> {:?}", tree.read_link(node).unwrap()),
            Kind::Directory => {
                for entry in tree.entries(node).unwrap() {
                    pending.push((path.join(&entry.name), entry.node));
                }
            }
            _ => {}
        }
        found.insert(path.clone(), text);
        names.entry(node).and_modify(|first| *first = first.clone().min(path.clone())).or_insert(path);
    }
    // Names of one file are told by the first of them.
    let mut linked = found.clone();
    let mut pending = vec![(PathBuf::from("/"), tree.root())];
    while let Some((path, node)) = pending.pop() {
        if tree.attr(node).unwrap().kind == Kind::Directory {
            pending.extend(tree.entries(node).unwrap().into_iter().map(|entry| (path.join(&entry.name), entry.node)));
        } else if names[&node] != path {
            linked.get_mut(&path).unwrap().push_str(&format!(" = {}", names[&node].display()));
        }
    }
    linked
}

/// The file at a path, read whole.
pub(crate) fn content(tree: &dyn Tree, path: &str) -> Option<Vec<u8>> {
    let mut node = tree.root();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        node = tree.lookup(node, OsStr::from_bytes(name.as_bytes())).unwrap()?;
    }
    let mut content = vec![0; usize::try_from(tree.attr(node).unwrap().size).unwrap()];
    let read = tree.read(node, 0, &mut content).unwrap();
    content.truncate(read);
    Some(content)
}
