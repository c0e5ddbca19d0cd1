//! Trees of OCI layers read in place are what unpacking the layers gives, in whichever form they are.
//!
//! Stacks of layers are made at random (`SIPHON_FUZZ_SEED` repeats a run), put into each form, and compared with what umoci
//! unpacks of them, where umoci is installed and the test runs as root, which devices and owners need.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it does")]

mod layers;
mod support;

use base16ct::lower::encode_string as hex;
use layers::{FORMS, Random, TarEntry, gzip_member, stack, tar};
use sha2::{Digest, Sha256};
use siphon_image::oci::lazy::index::{Content, Entry, EntryKind};
use siphon_image::oci::lazy::tree::LayeredTree;
use siphon_image::oci::lazy::zstd_chunked::{self, Annotations};
use siphon_image::oci::lazy::{Decoded, Error, Layer, LayerIndex, Merge, gzip, ztoc};
use siphon_image::read_at::ReadAt;
use siphon_image::tree::{Kind, NodeId, Timestamp, Tree};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::compare::{Expect, assert_same};

/// Stacks to make.
const STACKS: u64 = 100;

const NAMES: [&str; 6] = [
    "a",
    "b",
    "c",
    "bin",
    "lib",
    "name that is long enough to need an extended header when it is a part of a path of a few directories",
];

/// Makes layers of which every one can be unpacked on those before it.
struct Generator {
    random: Random,
    /// What there is, by path; directories end with a slash.
    state: BTreeMap<String, u8>,
}

impl Generator {
    fn layers(seed: u64) -> Vec<Vec<TarEntry>> {
        let mut generator =
            Self { random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1), state: BTreeMap::new() };
        (0..=generator.random.below(4)).map(|number| generator.layer(number)).collect()
    }

    fn layer(&mut self, number: usize) -> Vec<TarEntry> {
        let mut entries = Vec::new();
        if number == 0 {
            entries.push(self.entry("./".to_owned(), b'5'));
        }
        let hidden = if number > 0 { self.random.below(4) } else { 0 };
        for _ in 0..hidden {
            self.hide(&mut entries);
        }
        for _ in 0..2 + self.random.below(25) {
            self.add(&mut entries);
        }
        entries
    }

    fn entry(&mut self, path: String, kind: u8) -> TarEntry {
        let random = &mut self.random;
        let mode = if kind == b'2' { 0o777 } else { u32::try_from(random.below(0o10000)).unwrap() };
        let xattrs = match random.below(4) {
            0 if kind == b'0' || kind == b'5' => {
                vec![("user.x".to_owned(), vec![1, 0, b'\n', 255]), ("user.y".to_owned(), vec![7])]
            }
            _ => vec![],
        };
        TarEntry {
            path,
            kind,
            mode: if kind == b'5' { mode | 0o700 } else { mode },
            uid: u32::try_from(random.below(70_000)).unwrap(),
            gid: u32::try_from(random.below(70_000)).unwrap(),
            mtime: random.next() % (700 * 86_400),
            xattrs,
            ..TarEntry::default()
        }
    }

    /// A directory that there is, with a slash at its end, or nothing for the root.
    fn directory(&mut self) -> String {
        let all: Vec<&String> =
            self.state.keys().filter(|path| path.ends_with('/') && path.matches('/').count() < 4).collect();
        match self.random.below(all.len() + 1) {
            0 => String::new(),
            number => all[number - 1].clone(),
        }
    }

    fn forget(&mut self, path: &str) {
        let below = format!("{path}/");
        self.state.retain(|known, _| known != path && !known.starts_with(&below));
    }

    fn hide(&mut self, entries: &mut Vec<TarEntry>) {
        let all: Vec<String> = self.state.keys().cloned().collect();
        if all.is_empty() {
            return;
        }
        let path = all[self.random.below(all.len())].clone();
        if path.ends_with('/') && self.random.below(2) == 0 {
            // A directory whose lower content is hidden comes with the directory itself.
            entries.push(self.entry(path.clone(), b'5'));
            entries.push(self.entry(format!("{path}.wh..wh..opq"), b'0'));
            self.state.retain(|known, _| known == &path || !known.starts_with(&path));
            return;
        }
        let path = path.trim_end_matches('/').to_owned();
        let (parent, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(parent, name)| (parent, name));
        let slash = if parent.is_empty() { "" } else { "/" };
        let whiteout = format!("{parent}{slash}.wh.{name}");
        // No layer hides what it has itself: what that means differs from program to program.
        let below = format!("{path}/");
        entries.retain(|entry| entry.path != path && !entry.path.starts_with(&below));
        entries.push(self.entry(whiteout, b'0'));
        self.forget(&path);
    }

    fn add(&mut self, entries: &mut Vec<TarEntry>) {
        let parent = self.directory();
        let path = format!("{parent}{}", NAMES[self.random.below(NAMES.len())]);
        let kind = [b'0', b'0', b'0', b'5', b'5', b'2', b'1', b'3', b'6'][self.random.below(9)];
        let is_directory = kind == b'5';
        let mut entry = self.entry(if is_directory { format!("{path}/") } else { path.clone() }, kind);
        match kind {
            b'0' => entry.content = self.content(),
            b'2' => entry.link = ["a", "../b", "/bin/c", "nowhere"][self.random.below(4)].to_owned(),
            b'3' => entry.device = (1, u32::try_from(self.random.below(300)).unwrap()),
            b'1' => {
                let files: Vec<&String> = self
                    .state
                    .iter()
                    .filter(|(known, kind)| **kind == b'0' && **known != path && known.len() <= 100)
                    .map(|(known, _)| known)
                    .collect();
                if files.is_empty() {
                    return;
                }
                entry.link = files[self.random.below(files.len())].clone();
                // The file must not be hidden by its own link.
                if entry.link.starts_with(&format!("{path}/")) {
                    return;
                }
                entry.xattrs.clear();
            }
            _ => {}
        }
        if !is_directory || !self.state.contains_key(&format!("{path}/")) {
            self.forget(&path);
        }
        let kind = if kind == b'1' { b'0' } else { kind };
        self.state.insert(if is_directory { format!("{path}/") } else { path }, kind);
        entries.push(entry);
    }

    fn content(&mut self) -> Vec<u8> {
        let length = [0, 1, 700, 4096, 30_000, 150_000][self.random.below(6)];
        let noise = self.random.below(3) == 0;
        let word = self.random.next();
        (0..length)
            .map(|at| if noise { (self.random.next() >> 32) as u8 } else { (word >> (at / 97 % 50)) as u8 })
            .collect()
    }
}

fn seed() -> u64 {
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = std::env::var("SIPHON_FUZZ_SEED").map_or_else(|_| clock(), |seed| seed.parse().unwrap());
    println!("SIPHON_FUZZ_SEED={seed}");
    seed
}

/// Writes an OCI layout with these layers, gzipped, below `dir`.
fn write_layout(dir: &Path, layers: &[Vec<TarEntry>]) -> std::path::PathBuf {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let digest = |bytes: &[u8]| hex(&Sha256::digest(bytes));
    let add = |bytes: &[u8]| {
        let digest = digest(bytes);
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        format!("\"digest\":\"sha256:{digest}\",\"size\":{}", bytes.len())
    };
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for entries in layers {
        let plain = tar(entries);
        diff_ids.push(format!("\"sha256:{}\"", digest(&plain)));
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        descriptors.push(format!("{{\"mediaType\":\"{kind}\",{}}}", add(&gzip_member(&plain, 1))));
    }
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
        diff_ids.join(",")
    );
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",{}}},\"layers\":[{}]}}",
        add(config.as_bytes()),
        descriptors.join(",")
    );
    let index = format!(
        "{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",{},\"annotations\":{{\"org.opencontainers.image.ref.name\":\"x\"}}}}]}}",
        add(manifest.as_bytes())
    );
    std::fs::write(layout.join("index.json"), index).unwrap();
    std::fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    layout
}

/// Unpacks these layers with umoci below `dir`.
fn unpack(dir: &Path, layers: &[Vec<TarEntry>]) -> std::path::PathBuf {
    let layout = write_layout(dir, layers);
    let bundle = dir.join("bundle");
    let output =
        Command::new("umoci").args(["unpack", "--image"]).arg(format!("{}:x", layout.display())).arg(&bundle).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bundle.join("rootfs")
}

fn can_unpack() -> bool {
    let is_there = Command::new("umoci").arg("--version").output().is_ok_and(|output| output.status.success());
    let is_root = rustix::process::geteuid().is_root();
    if !is_there || !is_root {
        println!(
            "forms are compared with each other only: umoci is {}",
            if is_there { "not run as root" } else { "missing" }
        );
    }
    is_there && is_root
}

#[test]
fn a_ztoc_that_claims_to_be_longer_than_any_is_refused_unread() {
    #[derive(Debug)]
    struct Claimed;
    impl ReadAt for Claimed {
        fn len(&self) -> u64 {
            ztoc::MAX_ZTOC_BYTES + 1
        }
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
            panic!("it is read")
        }
    }

    let refused = ztoc::open(Arc::new(Claimed)).unwrap_err();

    assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
    assert!(ztoc::max_bytes(1 << 20) < 32 << 20, "that of a small layer is small");
    assert_eq!(ztoc::max_bytes(u64::MAX), ztoc::MAX_ZTOC_BYTES);
}

#[test]
fn a_layer_of_more_entries_or_text_than_any_is_refused() {
    let entry = Entry {
        path: b"",
        kind: EntryKind::Directory,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        rdev: 0,
        size: 0,
        link: b"",
        xattrs: b"",
        content: Content::Offset(0),
    };
    let path = [b'a'; 4096];
    for (entry, most) in [(entry.clone(), 4 << 20), (Entry { path: &path, ..entry }, 1 << 16)] {
        let mut index = LayerIndex::default();
        (0..most).for_each(|_| index.push(&entry).unwrap());

        assert!(matches!(index.push(&entry), Err(Error::TooLarge { .. })));
    }
}

#[test]
fn stacks_of_layers_are_what_unpacking_them_gives() {
    let seed = seed();
    let unpacks = can_unpack();
    let mut names = 0;

    for number in 0..STACKS {
        let layers = Generator::layers(seed.wrapping_add(number));
        let trees: Vec<LayeredTree> = FORMS.iter().map(|form| stack(form, &layers)).collect();
        println!("stack {number} of {} layers", layers.len());
        if unpacks {
            let dir = tempfile::tempdir().unwrap();
            let path = unpack(dir.path(), &layers);
            for (form, tree) in FORMS.iter().zip(&trees) {
                println!("as {form}");
                names += assert_same(tree, &path, Expect::SOURCE);
            }
        }
        for (form, tree) in FORMS.iter().zip(&trees).skip(1) {
            names += assert_equal(&trees[0], tree, form);
        }
    }

    assert!(names > 1000, "only {names} names were compared");
}

/// Everything that two trees say, and the same ids.
fn assert_equal(one: &dyn Tree, other: &dyn Tree, form: &str) -> usize {
    let mut pending = vec![(one.root(), other.root())];
    let mut names = 0;
    while let Some((node, same)) = pending.pop() {
        names += 1;
        let attr = one.attr(node).unwrap();
        assert_eq!(attr, other.attr(same).unwrap(), "{form}");
        assert_eq!(one.xattrs(node).unwrap(), other.xattrs(same).unwrap(), "{form}");
        match attr.kind {
            Kind::Symlink => assert_eq!(one.read_link(node).unwrap(), other.read_link(same).unwrap(), "{form}"),
            Kind::File => assert!(content(one, node) == content(other, same), "{form}"),
            Kind::Directory => {
                let (entries, others) = (one.entries(node).unwrap(), other.entries(same).unwrap());
                assert_eq!(entries.len(), others.len(), "{form}");
                for (entry, other) in entries.iter().zip(&others) {
                    assert_eq!((&entry.name, entry.kind), (&other.name, other.kind), "{form}");
                    pending.push((entry.node, other.node));
                }
            }
            _ => {}
        }
    }
    names
}

fn content(tree: &dyn Tree, node: NodeId) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(tree.attr(node).unwrap().size).unwrap()];
    assert_eq!(tree.read(node, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn file(path: &str, content: &str) -> TarEntry {
    TarEntry { path: path.to_owned(), kind: b'0', mode: 0o644, content: content.into(), ..TarEntry::default() }
}

fn link(path: &str, kind: u8, target: &str) -> TarEntry {
    TarEntry { path: path.to_owned(), kind, mode: 0o777, link: target.to_owned(), ..TarEntry::default() }
}

/// All paths with what they lead to: content, `-> target`, or nothing for a directory.
fn listing(tree: &dyn Tree) -> BTreeMap<String, String> {
    let mut pending = vec![(String::new(), tree.root())];
    let mut found = BTreeMap::new();
    while let Some((path, node)) = pending.pop() {
        for entry in tree.entries(node).unwrap() {
            let path = format!("{path}/{}", entry.name.to_str().unwrap());
            let what = match entry.kind {
                Kind::Directory => String::new(),
                Kind::Symlink => format!("-> {}", tree.read_link(entry.node).unwrap().to_str().unwrap()),
                _ => String::from_utf8(content(tree, entry.node)).unwrap(),
            };
            if entry.kind == Kind::Directory {
                pending.push((path.clone(), entry.node));
            }
            found.insert(path, what);
        }
    }
    found
}

fn paths(tree: &dyn Tree) -> String {
    listing(tree).into_iter().map(|(path, what)| format!("{path}={what}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_path_through_a_link_ends_where_the_link_leads_within_the_image() {
    let below = vec![file("usr/lib/a", "1"), link("lib", b'2', "usr/lib"), link("out", b'2', "../../../usr")];
    let above = vec![file("lib/b", "2"), file("out/lib/c", "3"), file("../../d", "4"), file("lib/.wh.a", "")];

    let tree = stack("tar", &[below, above]);

    assert_eq!(paths(&tree), "/d=4 /lib=-> usr/lib /out=-> ../../../usr /usr= /usr/lib= /usr/lib/b=2 /usr/lib/c=3");
}

#[test]
fn links_that_lead_in_a_circle_are_an_error() {
    let entries = [link("a", b'2', "b"), link("b", b'2', "a"), file("a/c", "1")];
    let decoded = siphon_image::oci::lazy::Decoded::new(1 << 20);
    let (index, layer) = layers::open("tar", &entries, &decoded);

    assert!(siphon_image::oci::lazy::Merge::new(decoded).add(index, layer).is_err());
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_beside_them() {
    let below = vec![file("d/a", "1"), file("d/b", "1"), file("e/f/g", "1"), file("x", "1")];
    let above = vec![
        file("d/new", "2"),
        file("d/.wh..wh..opq", ""),
        file("e/.wh.f", ""),
        file("e/f/h", "2"),
        file("x", "2"),
        file(".wh.x", ""),
    ];

    let tree = stack("tar", &[below, above]);

    assert_eq!(paths(&tree), "/d= /d/new=2 /e= /e/f= /e/f/h=2 /x=2");
}

#[test]
fn a_hard_link_is_the_file_it_was_made_of_whatever_comes_later() {
    let below = vec![file("a", "old"), link("b", b'1', "a")];
    let middle = vec![link("c", b'1', "/b"), file("a", "new")];
    let above = vec![link("late", b'1', "later"), file("later", "x"), file(".wh.b", "")];

    let tree = stack("tar", &[below, middle, above]);

    assert_eq!(paths(&tree), "/a=new /c=old /late=x /later=x");
    let node = |name: &str| tree.lookup(tree.root(), OsStr::new(name)).unwrap().unwrap();
    assert_eq!(node("late"), node("later"));
    assert_eq!([tree.attr(node("late")).unwrap().nlink, tree.attr(node("c")).unwrap().nlink], [2, 1]);
}

#[test]
fn small_files_are_followed_by_their_neighbours_in_the_layer() {
    let tree = stack("tar", &[vec![file("z", "1"), file("a", "22"), file("m", ""), file("b", "333")]]);
    let node = |name: &str| tree.lookup(tree.root(), OsStr::new(name)).unwrap().unwrap();

    assert_eq!(tree.files_after(node("z"), 5, 100), [(node("a"), 2), (node("b"), 3)]);
    assert_eq!(tree.files_after(node("z"), 1, 2), [(node("a"), 2)]);
    assert_eq!(tree.files_after(node("b"), 5, 100), []);
}

/// Layers of an image that skopeo has put into `layout`, as zstd:chunked, with what their annotations say.
fn open_chunked(layout: &Path, decoded: &Arc<Decoded>) -> LayeredTree {
    let json = |path: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    };
    let manifest = json(&blob(&json(&layout.join("index.json"))["manifests"][0]));
    let mut merge = Merge::new(decoded.clone());
    for layer in manifest["layers"].as_array().unwrap() {
        let annotations = Annotations::new(|name| layer["annotations"][name].as_str()).unwrap();
        assert!(annotations.is_given(), "{layer}");
        let bytes: Arc<dyn ReadAt> = Arc::new(std::fs::read(blob(layer)).unwrap());
        let by_footer = zstd_chunked::open(&bytes, &Annotations::default()).unwrap();
        let toc = zstd_chunked::open(&bytes, &annotations).unwrap();
        assert_eq!(toc.index.chunks(), by_footer.index.chunks());
        merge.add(toc.index, Layer::ZstdChunks(bytes)).unwrap();
    }
    merge.finish().unwrap()
}

#[test]
fn stacks_that_skopeo_has_made_zstd_chunked_are_read() {
    if !Command::new("skopeo").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: skopeo is missing");
        return;
    }
    let seed = seed();
    for number in 0..5 {
        let layers = Generator::layers(seed.wrapping_add(number));
        let dir = tempfile::tempdir().unwrap();
        let layout = write_layout(dir.path(), &layers);
        let out = dir.path().join("out");
        let output = Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-compress-format", "zstd:chunked"])
            .args([format!("oci:{}:x", layout.display()), format!("oci:{}:x", out.display())])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        let tree = open_chunked(&out, &Decoded::new(1 << 20));

        assert_equal(&stack("tar", &layers), &tree, "zstd:chunked by skopeo");
    }
}

/// A layer and the zTOC that soci-snapshotter 0.4.1 has made of it with spans of 32 KiB, by its own library.
///
/// With `SIPHON_ZTOC_OUT` ours of the same layer is written there, for soci-snapshotter to read.
#[test]
fn ztocs_of_soci_are_read_and_ours_says_the_same() {
    let stored = include_bytes!("vectors/soci/layer.tar.gz").to_vec();
    let theirs = zstd::stream::decode_all(&include_bytes!("vectors/soci/layer.ztoc.zst")[..]).unwrap();
    let theirs = ztoc::open(Arc::new(theirs)).unwrap();
    let ztoc::Compression::Gzip(their_index) = &theirs.compression else { panic!("it is of a gzip layer") };
    let ours = layers::index_gzip(&stored, 32 << 10, 4096);
    let written = ztoc::write(&ours.gzip, &ours.layer, "siphon").unwrap();
    if let Some(path) = std::env::var_os("SIPHON_ZTOC_OUT") {
        std::fs::write(path, &written).unwrap();
    }

    let tree_of = |index: LayerIndex, gzip: &Arc<gzip::GzipIndex>| {
        let decoded = Decoded::new(1 << 20);
        let reader = gzip::GzipLayer::new(Arc::new(stored.clone()), gzip.clone(), decoded.clone()).unwrap();
        let mut merge = Merge::new(decoded);
        merge.add(index, Layer::Tar(Arc::new(reader))).unwrap();
        merge.finish().unwrap()
    };
    // Both stop at the first block after so many bytes, and so at the same bits.
    let places = |index: &gzip::GzipIndex| -> Vec<_> {
        index.checkpoints().iter().map(|place| (place.input, place.bits, place.output)).collect()
    };
    assert!(their_index.checkpoints().len() > 3);
    assert_eq!(places(their_index), places(&ours.gzip));
    assert_eq!(their_index.digests(), ours.gzip.digests());
    let (one, other) = (tree_of(theirs.layer, their_index), tree_of(ours.layer, &ours.gzip));
    assert_eq!(assert_equal(&one, &other, "zTOC"), 9 + 25);
}
