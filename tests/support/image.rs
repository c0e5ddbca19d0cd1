//! Small real images: a busybox system with what an image says of itself, packed by mksquashfs and wrapped as a SIF by
//! code that shares nothing with siphon's own.

use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes in the image that nothing compresses and that no test reads whole, so that a lazy run can be told from a full one.
pub(crate) const PAYLOAD_BYTES: u64 = 24 << 20;
/// Compressors of squashfs that mksquashfs writes.
pub(crate) const COMPRESSORS: [&str; 5] = ["gzip", "xz", "lzo", "lz4", "zstd"];

const ENVIRONMENT: &str = "#!/bin/sh\nexport FROM_IMAGE=image\nexport EMPTY_IN_IMAGE=\n";
/// Ends the image's own environment: what the caller asks for is set after this file, as apptainer does.
const BASE_ENVIRONMENT: &str = "#!/bin/sh\nLD_LIBRARY_PATH=\"${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs\"\nexport LD_LIBRARY_PATH\n";
const RUNSCRIPT: &str = "#!/bin/sh\necho \"runscript: $FROM_IMAGE: $*\"\n";
/// Runs until it is told to end, unless its first argument says otherwise. What it prints says that it is ready for that.
const STARTSCRIPT: &str = "#!/bin/sh
trap 'echo caught INT; exit 0' INT
trap 'echo caught TERM; exit 0' TERM
[ \"$1\" != stubborn ] || trap '' INT TERM
echo 'startscript: to stderr' >&2
echo \"startscript: $FROM_IMAGE: $APPTAINER_INSTANCE: $*\"
[ \"$1\" != short ] || exit 3
while :; do sleep 1; done
";
const DEFFILE: &str = "bootstrap: scratch\n\n%labels\n    maker siphon tests\n";
const LABELS: &str = "{\"maker\": \"siphon tests\", \"org.label-schema.schema-version\": \"1.0\"}\n";

/// Descriptors in a SIF, and where their table and the data begin (apptainer 1.4 writes the same).
const SIF_DESCRIPTORS: usize = 48;
const SIF_DESCRIPTOR_BYTES: usize = 585;
const SIF_TABLE_START: usize = 4096;
const SIF_DATA_START: usize = SIF_TABLE_START + SIF_DESCRIPTORS * SIF_DESCRIPTOR_BYTES;
/// Partitions are aligned to pages; the deffile fits before the second one.
const SIF_PARTITION_START: usize = SIF_DATA_START.next_multiple_of(4096) + 4096;

/// The images of a test run, all of one tree.
pub(crate) struct Images {
    /// The unpacked tree: a plain-directory image.
    pub(crate) root: PathBuf,
    /// A SIF with a zstd squashfs.
    pub(crate) sif: PathBuf,
    directory: PathBuf,
}

impl Images {
    /// Makes them in `directory`. The raw squashfs files beyond zstd are made when asked for.
    pub(crate) fn make(directory: &Path) -> Self {
        let root = directory.join("root");
        make_root(&root);
        let squashfs = directory.join("zstd.sqfs");
        pack(&root, &squashfs, "zstd");
        let sif = directory.join("image.sif");
        wrap(&squashfs, DEFFILE, &sif);
        Self { root, sif, directory: directory.to_owned() }
    }

    /// The SIF's path as text, for command lines.
    pub(crate) fn sif(&self) -> &str {
        self.sif.to_str().unwrap()
    }

    /// The image as singularity 2.4 to 2.6 wrote it: squashfs behind a line that makes it a program.
    pub(crate) fn simg(&self) -> PathBuf {
        let path = self.directory.join("image.simg");
        if !path.exists() {
            let squashfs = std::fs::read(self.squashfs("gzip")).unwrap();
            std::fs::write(&path, [b"#!/usr/bin/env run-singularity\n".as_slice(), &squashfs].concat()).unwrap();
        }
        path
    }

    /// The same tree as a raw squashfs of this compressor.
    pub(crate) fn squashfs(&self, compressor: &str) -> PathBuf {
        let path = self.directory.join(format!("{compressor}.sqfs"));
        if !path.exists() {
            pack(&self.root, &path, compressor);
        }
        path
    }
}

/// Makes a system at `root`: busybox under all its names, mount points, and `directories`.
pub(crate) fn make_system(root: &Path, directories: &[&str]) {
    for directory in
        ["bin", "etc", "proc", "sys", "dev", "tmp", "root", ".singularity.d/libs"].iter().chain(directories)
    {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is missing: run tests/setup first");
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

fn make_root(root: &Path) {
    make_system(root, &["opt/old", "data/empty", ".singularity.d/env"]);
    let files = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644),
        ("etc/group", "root:x:0:\n", 0o644),
        ("data/greeting", "hello from the image\n", 0o644),
        ("opt/old/lost", "lost\n", 0o644),
        ("data/notes", "note\n", 0o644),
        // Readable by the unprivileged account too, which packs this tree as a directory.
        ("data/to-remove", "old\n", 0o604),
        (".singularity.d/env/90-environment.sh", ENVIRONMENT, 0o755),
        (".singularity.d/env/99-base.sh", BASE_ENVIRONMENT, 0o755),
        (".singularity.d/runscript", RUNSCRIPT, 0o755),
        (".singularity.d/startscript", STARTSCRIPT, 0o755),
        (".singularity.d/labels.json", LABELS, 0o644),
        (".singularity.d/Singularity", DEFFILE, 0o644),
    ];
    for (name, content, mode) in files {
        std::fs::write(root.join(name), content).unwrap();
        std::fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    std::fs::hard_link(root.join("data/greeting"), root.join("data/same-greeting")).unwrap();
    symlink("greeting", root.join("data/link")).unwrap();
    std::fs::write(root.join("data/payload"), noise(PAYLOAD_BYTES)).unwrap();
}

/// Bytes that no codec makes smaller, the same each time (xorshift64).
fn noise(length: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..length / 8).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().collect()
}

/// Makes a squashfs of the tree at `root`, all of it root's.
pub(crate) fn pack(root: &Path, squashfs: &Path, compressor: &str) {
    // Two tests may ask for the same file at once: each makes its own and the last one stays.
    let unfinished = tempfile::NamedTempFile::new_in(squashfs.parent().unwrap()).unwrap();
    let packed = Command::new("mksquashfs")
        .arg(root)
        .arg(unfinished.path())
        .args(["-noappend", "-all-root", "-quiet", "-no-progress", "-comp", compressor])
        .stdout(Stdio::null())
        .status()
        .expect("squashfs-tools is missing: run tests/setup first");
    assert!(packed.success(), "mksquashfs -comp {compressor}");
    std::fs::set_permissions(unfinished.path(), PermissionsExt::from_mode(0o644)).unwrap();
    unfinished.persist(squashfs).unwrap();
}

/// Makes a SIF of a definition file, which fits into a page, and a squashfs.
pub(crate) fn wrap(squashfs: &Path, deffile: &str, sif: &Path) {
    let partition = std::fs::read(squashfs).unwrap();
    let mut bytes = vec![0; SIF_PARTITION_START];
    put(&mut bytes, 0, b"#!/usr/bin/env run-singularity\n");
    put(&mut bytes, 32, b"SIF_MAGIC\0\x30\x31\0\x30\x32\0");
    let data_bytes = SIF_PARTITION_START - SIF_DATA_START + partition.len();
    let table_bytes = SIF_DESCRIPTORS * SIF_DESCRIPTOR_BYTES;
    let fields = [SIF_DESCRIPTORS - 2, SIF_DESCRIPTORS, SIF_TABLE_START, table_bytes, SIF_DATA_START, data_bytes];
    for (index, field) in fields.into_iter().enumerate() {
        put(&mut bytes, 80 + index * 8, &(field as u64).to_le_bytes());
    }
    describe(&mut bytes, 0, 0x4001, SIF_DATA_START, deffile.len(), b"");
    // Squashfs, primary system partition, amd64.
    describe(&mut bytes, 1, 0x4004, SIF_PARTITION_START, partition.len(), b"\x01\0\0\0\x02\0\0\x0002\0");
    put(&mut bytes, SIF_DATA_START, deffile.as_bytes());
    bytes.extend(partition);
    std::fs::write(sif, bytes).unwrap();
}

/// Makes a SIF with these squashfs files as data partitions, numbered from 1 on, and with nothing to run.
pub(crate) fn wrap_data(parts: &[&Path], sif: &Path) {
    let mut bytes = vec![0; SIF_PARTITION_START];
    put(&mut bytes, 32, b"SIF_MAGIC\0\x30\x31\0\x30\x32\0");
    for (index, part) in parts.iter().enumerate() {
        let (start, content) = (bytes.len(), std::fs::read(part).unwrap());
        // Squashfs, data partition, amd64.
        describe(&mut bytes, index, 0x4004, start, content.len(), b"\x01\0\0\0\x03\0\0\x0002\0");
        bytes.extend(content);
    }
    let table_bytes = SIF_DESCRIPTORS * SIF_DESCRIPTOR_BYTES;
    let (free, data_bytes) = (SIF_DESCRIPTORS - parts.len(), bytes.len() - SIF_DATA_START);
    let fields = [free, SIF_DESCRIPTORS, SIF_TABLE_START, table_bytes, SIF_DATA_START, data_bytes];
    for (index, field) in fields.into_iter().enumerate() {
        put(&mut bytes, 80 + index * 8, &(field as u64).to_le_bytes());
    }
    std::fs::write(sif, bytes).unwrap();
}

/// Fills descriptor `index`: an object of the first group.
fn describe(bytes: &mut [u8], index: usize, data_type: u32, start: usize, length: usize, extra: &[u8]) {
    let at = SIF_TABLE_START + index * SIF_DESCRIPTOR_BYTES;
    put(bytes, at, &data_type.to_le_bytes());
    put(bytes, at + 4, &[1]);
    put(bytes, at + 5, &(index as u32 + 1).to_le_bytes());
    put(bytes, at + 9, &0xf000_0001_u32.to_le_bytes());
    for (field, value) in [(17, start), (25, length), (33, length)] {
        put(bytes, at + field, &(value as u64).to_le_bytes());
    }
    put(bytes, at + 201, extra);
}

fn put(bytes: &mut [u8], at: usize, content: &[u8]) {
    bytes[at..at + content.len()].copy_from_slice(content);
}

/// Where the primary squashfs partition of the SIF at `path` begins, in bytes.
pub(crate) fn partition_start(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    let number = |at: u64| {
        let mut field = [0; 8];
        file.read_exact_at(&mut field, at).unwrap();
        u64::from_le_bytes(field)
    };
    let (count, table) = (number(88), number(96));
    let descriptors = (0..count).map(|index| table + index * SIF_DESCRIPTOR_BYTES as u64);
    // Data type, file system squashfs and partition type primary system.
    let is_primary = |at: &u64| number(*at) & 0xffff_ffff == 0x4004 && number(at + 201) == 0x2_0000_0001;
    descriptors.into_iter().find(is_primary).map(|at| number(at + 17)).expect("no primary partition")
}

#[test]
fn the_images_of_these_tests_are_what_other_programs_take_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let images = Images::make(directory.path());

    let start = partition_start(&images.sif).to_string();
    let listed = Command::new("unsquashfs").args(["-o", &start, "-l"]).arg(&images.sif).output().unwrap();

    assert!(String::from_utf8_lossy(&listed.stdout).contains("squashfs-root/data/greeting"), "{listed:?}");
}
