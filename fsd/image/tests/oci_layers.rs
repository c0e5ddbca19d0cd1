//! Layers of OCI images made into squashfs: merged as umoci merges them, and refused where they are hostile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a check left out is told")]

mod oci;

use oci::{Layer, META, Meta, content, digest, gzip, listing, source, squashfs, write_layout};
use siphon_image::directory::Directory;
use siphon_image::oci::blobs::Blobs;
use siphon_image::oci::layers::{Error, Source, TarError};
use siphon_image::oci::{Descriptor, Digest};
use siphon_image::squashfs::writer::Options;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tar::EntryType;

fn tree_of(layers: &[Vec<u8>]) -> Result<siphon_image::squashfs::reader::Squashfs, Error> {
    squashfs(&source(layers, gzip), &Options::default()).map(|(squashfs, ..)| squashfs)
}

fn layer(fill: impl FnOnce(&mut Layer)) -> Vec<u8> {
    let mut layer = Layer::new();
    fill(&mut layer);
    layer.finish()
}

/// A number generator that is the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    /// A path that is mostly that of a directory or mostly that of something else, so that most stacks make sense.
    fn path(&mut self, is_directory: bool) -> String {
        let mut names: Vec<_> = (0..self.below(3)).map(|_| self.of(&["a", "b", "c"])).collect();
        let is_directory = is_directory != (self.below(30) == 0);
        names.push(if is_directory { self.of(&["a", "b", "c"]) } else { self.of(&["f", "g", "h", "i"]) });
        let prefix = if self.below(4) == 0 { self.of(&["./", "/", "../", "c/../"]) } else { "" };
        format!("{prefix}{}", names.join("/"))
    }
}

/// One layer of anything.
fn random_layer(random: &mut Random, files: &mut Vec<String>) -> Vec<u8> {
    layer(|layer| {
        for _ in 0..1 + random.below(12) {
            let what = random.below(16);
            let path = random.path((4..=6).contains(&what));
            let meta = Meta {
                mode: u32::try_from(0o400 + random.below(0o400)).unwrap()
                    | if random.below(5) == 0 { 0o4000 } else { 0 },
                uid: random.below(3) * 1000,
                gid: random.below(2) * 70_000,
                mtime: 1_000_000_000 + random.below(1000),
            };
            if random.below(6) == 0 {
                layer.xattr("user.note", &[b'x', b'\n', u8::try_from(random.below(256)).unwrap()]);
            }
            match what {
                0..=3 => {
                    let seed = u8::try_from(random.below(200)).unwrap();
                    let length = if random.below(8) == 0 { 300_000 } else { usize::from(seed) };
                    layer.entry(EntryType::Regular, &path, "", &vec![seed; length], meta);
                    files.push(path);
                }
                4..=6 => layer.entry(
                    EntryType::Directory,
                    &format!("{path}/"),
                    "",
                    b"",
                    Meta { mode: meta.mode | 0o700, ..meta },
                ),
                7 => {
                    let is_directory = random.below(2) == 0;
                    let target = random.path(is_directory);
                    layer.entry(EntryType::Symlink, &path, &target, b"", meta);
                }
                8 | 9 => {
                    if let Some(target) = files.get(usize::try_from(random.below(8)).unwrap()) {
                        layer.entry(EntryType::Link, &path, target, b"", meta);
                    }
                }
                10 => layer.entry(EntryType::Fifo, &path, "", b"", meta),
                11 => layer.file(&format!("{}/.wh..wh..opq", random.path(true)), b""),
                _ => {
                    let name = path.rsplit('/').next().unwrap();
                    layer.file(&format!("{}.wh.{name}", &path[..path.len() - name.len()]), b"");
                }
            }
        }
    })
}

/// What umoci unpacks of these layers; `None` if it refuses them.
fn unpacked(layers: &[Vec<u8>]) -> Option<(tempfile::TempDir, Directory)> {
    let directory = tempfile::tempdir().unwrap();
    write_layout(&directory.path().join("layout"), layers);
    let bundle = directory.path().join("bundle");
    let image = format!("{}:latest", directory.path().join("layout").display());
    let done = Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).output().unwrap();
    if !done.status.success() {
        return None;
    }
    let tree = Directory::open(&bundle.join("rootfs")).unwrap();
    Some((directory, tree))
}

fn compare_with_umoci(seeds: std::ops::Range<u64>, least: usize) {
    if Command::new("umoci").arg("--version").output().is_err() || !rustix_is_root() {
        eprintln!("skipped: this needs umoci, and root to have it keep owners");
        return;
    }
    let mut compared = 0;
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut files = Vec::new();
        let layers: Vec<_> = (0..1 + random.below(5)).map(|_| random_layer(&mut random, &mut files)).collect();
        let Some((_directory, theirs)) = unpacked(&layers) else { continue };
        let ours =
            tree_of(&layers).unwrap_or_else(|error| panic!("seed {seed}: umoci unpacks it, and we do not: {error:?}"));
        let since = 1_500_000_000;
        let (mut ours, mut theirs) = (listing(&ours, since), listing(&theirs, since));
        // Directories that no entry made have the time of the unpacking there.
        for (path, text) in &theirs {
            if text.starts_with("Directory") && !text.contains(" @") {
                let ours = ours.get_mut(path);
                if let Some(ours) = ours {
                    *ours = ours.split(" @").next().unwrap().to_owned();
                }
            }
        }
        theirs.remove(Path::new("/"));
        ours.remove(Path::new("/"));
        assert_eq!(ours, theirs, "seed {seed}");
        compared += 1;
    }
    assert!(compared >= least, "only {compared} stacks were usable");
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").map(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0).unwrap()
}

/// Of so many seeds, more than 200 make stacks that umoci takes.
#[test]
fn two_hundred_random_stacks_of_layers_equal_what_umoci_unpacks() {
    std::thread::scope(|scope| {
        let threads = [1..350, 350..700].map(|seeds| scope.spawn(|| compare_with_umoci(seeds, 100)));
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn an_image_is_the_same_whatever_the_number_of_threads_and_the_compression_of_its_layers() {
    let mut random = Random(77);
    let layers: Vec<_> = (0..6)
        .map(|_| {
            layer(|layer| {
                for file in 0..20 {
                    let seed = random.below(1 << 40);
                    let content: Vec<u8> =
                        (0..20_000 * (file % 7)).map(|at| (seed >> (at % 37)) as u8 ^ (at >> 8) as u8).collect();
                    layer.file(&format!("d{}/f{file}", random.below(4)), &content);
                }
            })
        })
        .collect();
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    let options = |threads| Options { threads: NonZeroUsize::new(threads).unwrap(), ..Options::default() };

    let (.., first) = squashfs(&source(&layers, gzip), &options(1)).unwrap();

    for threads in [2, 7] {
        assert!(squashfs(&source(&layers, gzip), &options(threads)).unwrap().3 == first);
        assert!(squashfs(&source(&layers, zstd), &options(threads)).unwrap().3 == first);
        assert!(squashfs(&source(&layers, <[u8]>::to_vec), &options(threads)).unwrap().3 == first);
    }
}

#[test]
fn members_of_gzip_and_frames_of_zstd_follow_each_other() {
    let tar = layer(|layer| layer.file("f", &[7; 5000]));
    let halves = tar.split_at(1000);
    let members = |store: &dyn Fn(&[u8]) -> Vec<u8>| [store(halves.0), store(halves.1)].concat();
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(&tar)].concat();

    for stored in [members(&gzip), members(&zstd), skippable] {
        let source = source(std::slice::from_ref(&tar), |_| stored.clone());
        let (tree, ..) = squashfs(&source, &Options::default()).unwrap();
        assert_eq!(content(&tree, "f").unwrap(), [7; 5000]);
    }
}

#[test]
fn files_with_holes_are_read_in_every_form() {
    let tree = tree_of(&[layer(|layer| layer.raw(&oci::with_holes()))]).unwrap();

    for form in ["gnu", "0.0", "0.1", "1.0"] {
        let mut expected = vec![0; 200_000];
        expected[50_000..50_500].copy_from_slice(&b"data1".repeat(100));
        expected[150_000..150_010].fill(b'x');
        assert!(content(&tree, &format!("s-{form}")).unwrap() == expected, "{form}");
        let mut expected = vec![0; 300_000];
        (0..8).for_each(|piece| expected[20_000 + 30_000 * piece..][..1000].fill(b'y'));
        assert!(content(&tree, &format!("t-{form}")).unwrap() == expected, "{form}");
    }
}

#[test]
fn hidden_content_is_not_written() {
    let noise: Vec<u8> = (0..600_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let below = layer(|layer| {
        layer.file("replaced", &noise);
        layer.file("dir/removed", &noise[1..]);
        layer.file("kept", b"kept");
    });
    let above = layer(|layer| {
        layer.file("replaced", b"short");
        layer.file("dir/.wh..wh..opq", b"");
    });

    let (tree, summary, ..) = squashfs(&source(&[below, above], gzip), &Options::default()).unwrap();

    assert_eq!(content(&tree, "kept").unwrap(), b"kept");
    assert_eq!(content(&tree, "dir/removed"), None);
    assert!(summary.image_bytes <= 4096, "{summary:?}");
}

#[test]
fn hidden_content_is_fetched_again_for_another_name_of_the_file() {
    let big = vec![5; 200_000];
    let below = layer(|layer| {
        layer.file("a", &big);
        layer.entry(EntryType::Link, "b", "a", b"", META);
    });
    let above = layer(|layer| layer.file("a", b"new"));

    let tree = tree_of(&[below, above]).unwrap();

    assert_eq!(content(&tree, "a").unwrap(), b"new");
    assert_eq!(content(&tree, "b").unwrap(), big);
}

#[test]
fn a_hard_link_leads_to_a_file_of_a_lower_layer() {
    let below = layer(|layer| layer.file("a", b"below"));
    let above = layer(|layer| {
        layer.entry(EntryType::Link, "b", "a", b"", META);
        layer.file(".wh.a", b"");
    });

    let tree = tree_of(&[below, above]).unwrap();

    assert_eq!(content(&tree, "b").unwrap(), b"below");
    assert_eq!(content(&tree, "a"), None);
}

#[test]
fn no_name_leads_out_of_the_tree() {
    let tree = tree_of(&[layer(|layer| {
        layer.file("../../escaped", b"1");
        layer.file("/absolute", b"2");
        layer.entry(EntryType::Symlink, "out", "../../../etc", b"", META);
        layer.file("out/passwd", b"3");
        layer.entry(EntryType::Symlink, "loop", "loop", b"", META);
    })])
    .unwrap();

    assert_eq!(content(&tree, "escaped").unwrap(), b"1");
    assert_eq!(content(&tree, "absolute").unwrap(), b"2");
    assert_eq!(content(&tree, "etc/passwd").unwrap(), b"3");
    let refused = [
        layer(|layer| {
            layer.entry(EntryType::Symlink, "loop", "loop", b"", META);
            layer.file("loop/x", b"");
        }),
        layer(|layer| {
            layer.file("file", b"");
            layer.file("file/x", b"");
        }),
        layer(|layer| layer.entry(EntryType::Link, "x", "../../etc/passwd", b"", META)),
        layer(|layer| layer.file(".wh...", b"")),
        layer(|layer| layer.file("./", b"")),
    ];
    for (index, layer) in refused.into_iter().enumerate() {
        let error = tree_of(&[layer]).unwrap_err();
        let Error::Layer { source, .. } = &error else { panic!("{index}: {error:?}") };
        assert!(matches!(**source, Error::Entry { .. }), "{index}: {error:?}");
    }
}

#[test]
fn a_layer_that_is_not_what_it_should_be_is_refused() {
    let tar = layer(|layer| layer.file("f", b"content"));
    let honest = source(std::slice::from_ref(&tar), gzip);
    let other: Digest = digest(b"other").parse().unwrap();
    let stored = gzip(&tar);

    let plain = source(std::slice::from_ref(&tar), <[u8]>::to_vec);
    let wrong_diff_id = Source { diff_ids: vec![other.clone()], ..plain };
    let size = stored.len() as u64;
    let of_size = |size, digest: Digest| {
        let layers = vec![Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip".into(), size, digest.clone())];
        let blobs = oci::Memory([(digest.to_string(), stored.clone())].into());
        Source { layers, blobs: Arc::new(blobs), ..honest.clone() }
    };
    let true_digest: Digest = digest(&stored).parse().unwrap();

    let error = |source: &Source| {
        let error = squashfs(source, &Options::default()).unwrap_err();
        match error {
            Error::Layer { source, .. } => *source,
            error => error,
        }
    };
    assert!(matches!(error(&wrong_diff_id), Error::DiffId { .. }));
    assert!(matches!(error(&of_size(size, other)), Error::Digest { .. }));
    assert!(matches!(error(&of_size(size + 1, true_digest.clone())), Error::Length { found, .. } if found == size));
    assert!(matches!(error(&of_size(size - 1, true_digest)), Error::Length { .. }));
    assert!(matches!(error(&Source { diff_ids: Vec::new(), ..honest.clone() }), Error::Count { .. }));
    let missing = Source { blobs: Arc::new(oci::Memory::default()), ..honest };
    assert!(matches!(error(&missing), Error::Blob { .. }));
}

#[test]
fn a_damaged_archive_is_refused() {
    let tar = layer(|layer| layer.file("f", &[1; 3000]));
    let error = |bytes: &[u8]| match tree_of(&[bytes.to_vec()]).unwrap_err() {
        Error::Layer { source, .. } => *source,
        error => error,
    };

    assert!(matches!(error(&tar[..1500]), Error::Tar(TarError::CutOff(_))));
    assert!(matches!(error(&tar[..100]), Error::Tar(TarError::CutOff(_))));
    let mut damaged = tar.clone();
    damaged[3] ^= 1;
    assert!(matches!(error(&damaged), Error::Tar(TarError::Checksum(0))));
    let lying = layer(|layer| {
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::MAX / 4);
        header.set_entry_type(EntryType::XHeader);
        header.set_cksum();
        layer.raw(header.as_bytes());
    });
    assert!(matches!(error(&lying), Error::Tar(TarError::Field { .. })));
}

/// Decompresses without an end.
#[derive(Debug)]
struct Endless(Vec<u8>);

impl Blobs for Endless {
    fn open(&self, _: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        struct Cycle(Vec<u8>, usize);
        impl Read for Cycle {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let read = (&self.0[self.1..]).read(buf)?;
                self.1 = (self.1 + read) % self.0.len();
                Ok(read)
            }
        }
        Ok(Box::new(Cycle(self.0.clone(), 0)))
    }
}

#[test]
fn a_stream_without_an_end_ends_with_its_descriptor() {
    let zeros = gzip(&vec![0; 8 << 20]);
    let honest = source(&[layer(|layer| layer.file("f", b""))], gzip);
    let source = Source { blobs: Arc::new(Endless(zeros)), ..honest };

    let error = squashfs(&source, &Options::default()).unwrap_err();

    assert!(matches!(&error, Error::Layer { source, .. } if matches!(**source, Error::Length { .. })), "{error:?}");
}
