//! What a library file says of itself.

use object::read::ReadCache;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadRef, elf};
use siphon_image::elf::{ElfKind, HEADER_BYTES};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The longest file name that Linux has.
const MAX_NAME_BYTES: u64 = 255;

/// What programs it is for. `None` if it is no ELF file or cannot be read.
pub(super) fn kind(path: &Path) -> Option<ElfKind> {
    let mut header = [0; HEADER_BYTES];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    ElfKind::of_header(&header)
}

/// The name under which programs ask for it (`DT_SONAME`). Little of a large file is read.
pub(super) fn soname(path: &Path) -> Option<String> {
    let cache = ReadCache::new(File::open(path).ok()?);
    match kind(path)?.class {
        1 => soname_of::<elf::FileHeader32<Endianness>, _>(&cache),
        _ => soname_of::<elf::FileHeader64<Endianness>, _>(&cache),
    }
}

fn soname_of<'a, H: FileHeader<Endian = Endianness>, R: ReadRef<'a>>(data: R) -> Option<String> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?;
    let dynamic = segments.iter().find_map(|segment| segment.dynamic(endian, data).ok().flatten())?;
    let value = |tag: elf::DynamicTag| {
        let entry = dynamic.iter().find(|entry| entry.d_tag(endian) == tag)?;
        Some(Into::<u64>::into(entry.d_val(endian)))
    };
    let address = value(elf::DT_STRTAB)?.checked_add(value(elf::DT_SONAME)?)?;
    // Strings are named by their place in memory; the segment that is loaded there says where in the file that is.
    let offset = segments.iter().find_map(|segment| {
        let start: u64 = segment.p_vaddr(endian).into();
        let inside = address.checked_sub(start).filter(|inside| *inside < segment.p_filesz(endian).into())?;
        let loaded = segment.p_type(endian) == elf::PT_LOAD;
        loaded.then(|| segment.p_offset(endian).into().checked_add(inside)).flatten()
    })?;
    let end = offset.checked_add(MAX_NAME_BYTES + 1)?;
    let name = data.read_bytes_at_until(offset..end.min(data.len().ok()?), 0).ok()?;
    String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_c_library_says_what_it_is() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let Some(libc) =
            maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.ends_with("/libc.so.6"))
        else {
            return;
        };

        assert_eq!(soname(Path::new(libc)).as_deref(), Some("libc.so.6"));
        assert_eq!(kind(Path::new(libc)), kind(Path::new("/proc/self/exe")));
    }

    #[test]
    fn what_is_no_library_says_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [b"\x7fELF\x02\x01\x01".as_slice(), &[0xff; 60]].concat()).unwrap();

        assert_eq!(soname(file.path()), None);
        assert_eq!(kind(Path::new("/nosuch")), None);
    }
}
