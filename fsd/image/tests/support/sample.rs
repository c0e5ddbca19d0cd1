//! A directory with one of everything that squashfs can store.

use super::{is_root, skip};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Makes the sample in the empty directory `root`.
pub(crate) fn make(root: &Path) {
    files(root);
    names(root);
    links(root);
    special(root);
    attributes(root);
    xattrs(root);
}

/// Bytes that no codec makes shorter.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

fn files(root: &Path) {
    let dir = root.join("files");
    fs::create_dir(&dir).unwrap();
    for size in [0, 1, 4095, 4096, 4097, 70_000, 131_071, 131_072, 131_073, 300_000] {
        let text: Vec<u8> = (0..size).map(|at| b"squash "[at % 7] ^ u8::from(at % 251 == 0)).collect();
        fs::write(dir.join(format!("text-{size}")), text).unwrap();
        fs::write(dir.join(format!("noise-{size}")), noise(size, size as u64)).unwrap();
    }
    fs::write(dir.join("zeroes"), vec![0; 400_000]).unwrap();
    fs::copy("/bin/sh", dir.join("program")).unwrap();
    let mut sparse = File::create(dir.join("sparse")).unwrap();
    sparse.write_all(&noise(5000, 9)).unwrap();
    sparse.seek(SeekFrom::Start(2_500_000)).unwrap();
    sparse.write_all(&noise(200_000, 10)).unwrap();
    sparse.set_len(5_000_001).unwrap();
    File::create(dir.join("hole")).unwrap().set_len(1 << 20).unwrap();
}

fn names(root: &Path) {
    let dir = root.join("names");
    fs::create_dir_all(dir.join("empty")).unwrap();
    fs::create_dir_all(dir.join("a/b/c/d/e/f")).unwrap();
    for name in [&b"x".repeat(255)[..], b"not \xff\xfe utf-8", b"new\nline", b" ", b"-", b"\x01", b"\xff", b"..."] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..2000 {
        fs::write(many.join(format!("entry number {number}")), format!("{number}")).unwrap();
    }
}

fn links(root: &Path) {
    let dir = root.join("links");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("one"), noise(200_001, 77)).unwrap();
    fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    fs::hard_link(dir.join("one"), root.join("three")).unwrap();
    symlink("one", dir.join("relative")).unwrap();
    symlink("/no/such/file", dir.join("dangling")).unwrap();
    symlink("t/".repeat(2000), dir.join("long")).unwrap();
}

fn special(root: &Path) {
    let dir = root.join("special");
    fs::create_dir(&dir).unwrap();
    let make =
        |name: &str, kind, mode, dev| mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(mode), dev).unwrap();
    make("fifo", FileType::Fifo, 0o640, 0);
    make("socket", FileType::Socket, 0o600, 0);
    if !is_root() {
        return skip("device nodes need root");
    }
    make("console", FileType::CharacterDevice, 0o620, makedev(5, 1));
    make("disk", FileType::BlockDevice, 0o660, makedev(259, 70_000));
    make("largest", FileType::CharacterDevice, 0, makedev(4095, 0xf_ffff));
}

fn attributes(root: &Path) {
    let dir = root.join("attributes");
    fs::create_dir(&dir).unwrap();
    for (name, mode, owner, seconds) in [
        ("setuid", 0o4755, 0, 0),
        ("setgid", 0o2711, 1000, 1),
        ("sticky", 0o1777, 65_534, 1_000_000_000),
        ("nothing", 0, 4_294_967_294, 4_294_967_295),
    ] {
        let path = dir.join(name);
        let file = File::create(&path).unwrap();
        if is_root() {
            lchown(&path, Some(owner), Some(owner / 2)).unwrap();
        }
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
}

fn xattrs(root: &Path) {
    let dir = root.join("xattrs");
    fs::create_dir(&dir).unwrap();
    let set = |path: &Path, name: &str, value: &[u8]| lsetxattr(path, name, value, XattrFlags::empty());
    if set(&dir, "user.directory", b"yes").is_err() {
        return skip("the filesystem of the temporary directory has no extended attributes");
    }
    // The same long value in several sets is stored once, out of line.
    let shared = noise(1500, 5);
    for number in 0..5 {
        let path = dir.join(format!("file {number}"));
        fs::write(&path, "content").unwrap();
        set(&path, "user.number", format!("{number}").as_bytes()).unwrap();
        set(&path, "user.shared", &shared).unwrap();
        set(&path, "user.empty", b"").unwrap();
    }
    let large = dir.join("large");
    fs::write(&large, noise(140_000, 6)).unwrap();
    set(&large, "user.large", &noise(3000, 7)).unwrap();
    if !is_root() {
        return skip("trusted and security attributes need root");
    }
    set(&large, "trusted.overlay.opaque", b"y").unwrap();
    set(&large, "security.test", b"\0\xff").unwrap();
    symlink("large", dir.join("link")).unwrap();
    set(&dir.join("link"), "trusted.link", b"on a link").unwrap();
    for name in ["special/fifo", "special/socket", "special/console", "special/disk"] {
        set(&root.join(name), "trusted.special", name.as_bytes()).unwrap();
    }
}
