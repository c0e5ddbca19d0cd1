//! A process that changes a layer is killed at random points: afterwards each file is its old or its new version, never
//! a mix, and what was synced is there.
//!
//! `SIPHON_CRASHES` is how often (12 by default), `SIPHON_CRASH_SEED` the first seed, `SIPHON_MODEL_DIRECTORY` where. The
//! test program is its own victim: with `SIPHON_CRASH_VICTIM` it works in that directory until it is killed.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails, and its victim reports")]

#[path = "model/random.rs"]
mod random;

use random::Random;
use siphon_image::directory::Directory;
use siphon_image::tree::{Kind, Tree};
use siphon_overlay::upper::Upper;
use siphon_overlay::view::{Ino, OpenMode, Permissions, RenameMode, SetAttr, View};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Long enough that a copy takes several steps.
const FILE_BYTES: usize = 3 << 20;
const FILES: u64 = 6;
const LINKED_BYTES: usize = 8;
const WRITE: OpenMode = OpenMode { write: true, append: false, truncate: false };

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

fn view(root: &Path) -> View {
    let upper = Upper::open(&root.join("layer")).unwrap();
    upper.lock_exclusive().unwrap();
    View::new(Arc::new(Directory::open(&root.join("lower")).unwrap()), Some(upper)).unwrap()
}

fn fill(root: &Path) {
    let lower = root.join("lower");
    std::fs::create_dir_all(lower.join("d/inner")).unwrap();
    std::fs::create_dir(root.join("layer")).unwrap();
    for file in 0..FILES {
        std::fs::write(lower.join(format!("f{file}")), vec![0; FILE_BYTES]).unwrap();
        std::fs::write(lower.join(format!("d/inner/{file}")), vec![1; 5000]).unwrap();
    }
    std::fs::write(lower.join("h1"), [0; LINKED_BYTES]).unwrap();
    std::fs::hard_link(lower.join("h1"), lower.join("h2")).unwrap();
}

/// Changes the layer until it is killed, and says what it synced.
fn work(root: &Path, seed: u64) {
    let view = view(root);
    let mut random = Random::new(seed);
    let mut versions: HashMap<u64, u8> = HashMap::new();
    let (mut at, mut away) = ("d", "e");
    if view.lookup(Ino::ROOT, OsStr::new(at)).is_err() {
        (at, away) = (away, at);
    }
    loop {
        let file = random.below(FILES);
        let name = format!("f{file}");
        let name = OsStr::new(&name);
        match random.below(6) {
            // A new version in place of the old one, as editors and package managers do it.
            0 | 1 => {
                let version = versions.entry(file).or_insert(0);
                *version = version.wrapping_add(1).max(1);
                let temporary = OsStr::new("new");
                let _ = view.unlink(Ino::ROOT, temporary);
                let permissions = Permissions::exactly(0o644);
                let is_unnamed = random.below(2) == 0;
                let (ino, _, open) = match is_unnamed {
                    true => view.create_unnamed(Ino::ROOT, permissions, None, WRITE).unwrap(),
                    false => view.create(Ino::ROOT, temporary, permissions, None, WRITE).unwrap(),
                };
                view.write(&open, 0, &vec![*version; FILE_BYTES]).unwrap();
                view.sync(&open, false).unwrap();
                if is_unnamed {
                    view.link(ino, Ino::ROOT, temporary).unwrap();
                }
                view.rename(Ino::ROOT, temporary, Ino::ROOT, name, RenameMode::Replace).unwrap();
                view.sync_directory(Ino::ROOT).unwrap();
                println!("synced {file} {version}");
                std::io::stdout().flush().unwrap();
            }
            // Copied up, without content or with it, or cut and removed.
            2 => {
                let (ino, _) = view.lookup(Ino::ROOT, name).unwrap();
                view.set_attr(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
            }
            3 => {
                let (ino, _) = view.lookup(Ino::ROOT, name).unwrap();
                drop(view.open(ino, WRITE).unwrap());
            }
            4 => {
                view.rename(Ino::ROOT, OsStr::new(at), Ino::ROOT, OsStr::new(away), RenameMode::Replace).unwrap();
                (at, away) = (away, at);
            }
            _ => {
                let linked = OsStr::new(random.pick(&["h1", "h2"]));
                let (ino, _) = view.lookup(Ino::ROOT, linked).unwrap();
                let byte = u8::try_from(random.below(256)).unwrap();
                view.write(&view.open(ino, WRITE).unwrap(), 0, &[byte; LINKED_BYTES]).unwrap();
            }
        }
    }
}

fn content(view: &View, name: &str) -> Vec<u8> {
    let (ino, attr) = view.lookup(Ino::ROOT, OsStr::new(name)).unwrap();
    let mut bytes = vec![0; usize::try_from(attr.size).unwrap() + 1];
    let read = view.read(&view.open(ino, OpenMode::default()).unwrap(), 0, &mut bytes).unwrap();
    bytes.truncate(read);
    bytes
}

fn check(root: &Path, synced: &HashMap<u64, u8>) {
    let view = view(root);
    for file in 0..FILES {
        let bytes = content(&view, &format!("f{file}"));
        assert_eq!(bytes.len(), FILE_BYTES, "f{file}");
        assert!(bytes.windows(2).all(|pair| pair[0] == pair[1]), "f{file} is a mix");
        // One version more may have been put in place without having been reported.
        let known = synced.get(&file).copied().unwrap_or(0);
        assert!(bytes[0] == known || bytes[0] == known.wrapping_add(1).max(1), "f{file}: {} of {known}", bytes[0]);
    }
    let places: Vec<Ino> =
        ["d", "e"].iter().filter_map(|name| Some(view.lookup(Ino::ROOT, OsStr::new(name)).ok()?.0)).collect();
    assert_eq!(places.len(), 1, "a directory is in one place");
    let (inner, _) = view.lookup(places[0], OsStr::new("inner")).unwrap();
    let entries = view.entries(inner).unwrap();
    assert_eq!(entries.len() as u64, FILES);
    for entry in entries {
        assert_eq!(entry.kind, Kind::File);
        view.lookup(inner, &entry.name).unwrap();
        let mut bytes = vec![0; 6000];
        let read = Tree::read(&view, entry.node, 0, &mut bytes).unwrap();
        assert!(read == 5000 && bytes[..read].iter().all(|byte| *byte == 1));
    }
    let linked = content(&view, "h1");
    assert_eq!(linked, content(&view, "h2"), "two names of one file");
    assert!(linked.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(std::fs::read_dir(root.join("layer/.siphon/work")).unwrap().count(), 0);
}

fn crash(root: &Path, seed: u64, synced: &mut HashMap<u64, u8>) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "a_killed_writer_leaves_old_or_new_files"])
        .env("SIPHON_CRASH_VICTIM", root)
        .env("SIPHON_CRASH_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = victim.stdout.take().unwrap();
    let reader = std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_micros(20_000 + Random::new(seed).below(400_000)));
    assert!(victim.try_wait().unwrap().is_none(), "the victim died on its own");
    victim.kill().unwrap();
    victim.wait().unwrap();
    for line in reader.join().unwrap() {
        if let ["synced", file, version] = line.split(' ').collect::<Vec<_>>().as_slice() {
            synced.insert(file.parse().unwrap(), version.parse().unwrap());
        }
    }
}

#[test]
fn a_killed_writer_leaves_old_or_new_files() {
    let seed = number("SIPHON_CRASH_SEED", 1);
    if let Some(root) = std::env::var_os("SIPHON_CRASH_VICTIM") {
        return work(Path::new(&root), seed);
    }
    let scratch = match std::env::var_os("SIPHON_MODEL_DIRECTORY") {
        Some(directory) => tempfile::tempdir_in(directory).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    for seed in seed..seed + number("SIPHON_CRASHES", 12) {
        println!("seed {seed}");
        let root = scratch.path().join(seed.to_string());
        std::fs::create_dir(&root).unwrap();
        fill(&root);
        let mut synced = HashMap::new();
        crash(&root, seed, &mut synced);
        check(&root, &synced);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
