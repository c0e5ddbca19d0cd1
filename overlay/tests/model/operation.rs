//! What can be done, chosen at random.

use crate::random::Random;

/// Names from the root; few, so that operations meet.
pub(crate) type Path = Vec<&'static str>;

pub(crate) const DIRECTORIES: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 6] = ["a", "b", "c", "f", "g", "h"];

pub(crate) fn any_path(random: &mut Random) -> Path {
    let mut path: Path = (0..random.below(3)).map(|_| random.pick(&DIRECTORIES)).collect();
    path.push(random.pick(&NAMES));
    path
}

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Create(Path, u32),
    MakeDirectory(Path, u32),
    Symlink(Path),
    Fifo(Path),
    Link(Path, Path),
    Unlink(Path),
    RemoveDirectory(Path),
    Rename(Path, Path, Mode),
    Chmod(Path, u32),
    Chown(Path, u32),
    Resize(Path, u64),
    Touch(Path, i64),
    SetXattr(Path, &'static str, u8, u32),
    RemoveXattr(Path, &'static str),
    Open(Path, How),
    WriteOpen(u64, u64, u8),
    ReadOpen(u64),
    StatOpen(u64),
    AllocateOpen(u64, u32, u64, u64),
    ResizeOpen(u64, u64),
    CreateUnnamed(Path, u32),
    LinkOpen(u64, Path),
    CloseOpen(u64),
    List(Path),
    Reopen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Read,
    Write,
    Append,
    Truncate,
}

impl Operation {
    pub(crate) fn any(random: &mut Random) -> Self {
        use Operation::*;
        let path = any_path(random);
        match random.below(38) {
            0 | 1 => Create(path, random.pick(&[0o644, 0o600, 0o640])),
            2..=4 => MakeDirectory(path, random.pick(&[0o755, 0o700, 0o2775, 0o1777])),
            5 => Symlink(path),
            6 => Fifo(path),
            7 | 8 => Link(path, any_path(random)),
            9..=11 => Unlink(path),
            12..=14 => RemoveDirectory(path),
            15..=19 => Rename(path, any_path(random), Mode::Replace),
            20 => Rename(path, any_path(random), Mode::NoReplace),
            21 => Rename(path, any_path(random), Mode::Exchange),
            22 => Chmod(path, random.pick(&[0o755, 0o700, 0o6711])),
            23 => Resize(path, random.below(10_000)),
            24 => Touch(path, i64::try_from(random.below(1 << 31)).unwrap() - (1 << 20)),
            25 => {
                let name = random.pick(&["user.a", "user.b", "user.overlay.opaque"]);
                SetXattr(path, name, random.pick(b"xyz"), u32::try_from(random.below(3)).unwrap())
            }
            26 => RemoveXattr(path, random.pick(&["user.a", "user.b", "user.overlay.opaque"])),
            27 | 28 => Open(path, random.pick(&[How::Read, How::Read, How::Write, How::Append, How::Truncate])),
            29 => WriteOpen(random.next(), random.below(9000), random.pick(b"XYZ")),
            30 => ReadOpen(random.next()),
            31 => StatOpen(random.next()),
            32 if random.below(2) == 0 => CloseOpen(random.next()),
            32 => Chown(path, u32::try_from(random.below(3)).unwrap()),
            33 => {
                // In place; beyond the end too; a hole; zeros.
                let mode = random.pick(&[0, 1, 3, 0x10]);
                AllocateOpen(random.next(), mode, random.below(9000), 1 + random.below(9000))
            }
            34 => ResizeOpen(random.next(), random.below(10_000)),
            35 => CreateUnnamed(path, random.pick(&[0o644, 0o600, 0o2711])),
            36 => LinkOpen(random.next(), path),
            _ => List(path),
        }
    }
}
