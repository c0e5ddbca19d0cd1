//! glibc's `/etc/ld.so.cache`: which file each library name stands for.
//!
//! ```text
//! "glibc-ld.so.cache1.1"  count u32  strings u32  flags u8, 3 unused  extension u32  12 unused
//! count entries of 24 bytes: flags i32  name u32  path u32  os u32  hwcap u64
//! strings, each ended by a zero byte; name and path count from the start of the header
//! ```
//!
//! Some distributions still put the table of glibc before 2.2 in front of it, which is skipped. The numbers are
//! little-endian, as on every machine that siphon is built for.

/// Where the loader keeps it.
pub const PATH: &str = "/etc/ld.so.cache";
/// Bytes of a cache that are looked at: ten times that of a machine with everything installed.
pub const MAX_BYTES: u64 = 16 << 20;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const OLD_HEADER_BYTES: usize = 16;
const OLD_ENTRY_BYTES: usize = 12;
/// What the current table is aligned to behind the old one.
const ALIGNMENT: usize = 8;

/// One line of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What programs ask for, such as `libcuda.so.1`.
    pub name: String,
    /// Where it lies.
    pub path: String,
    /// Whether it is for processors with certain abilities only; a plain one of the same name is there as well.
    pub special: bool,
}

/// The entries in their order, which is the loader's order of search. `None` if that is no cache of glibc; an entry that
/// makes no sense is left out.
pub fn parse(bytes: &[u8]) -> Option<Vec<Entry>> {
    let table = current(bytes)?;
    let count = usize::try_from(number(table, 20)?).ok()?;
    let entries = table.get(HEADER_BYTES..HEADER_BYTES.checked_add(count.checked_mul(ENTRY_BYTES)?)?)?;
    let read = |entry: &[u8]| {
        Some(Entry {
            name: text(table, number(entry, 4)?)?,
            path: text(table, number(entry, 8)?)?,
            special: entry.get(16..ENTRY_BYTES)?.iter().any(|byte| *byte != 0),
        })
    };
    Some(entries.chunks_exact(ENTRY_BYTES).filter_map(read).collect())
}

/// The table in today's format.
fn current(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.starts_with(MAGIC) {
        return Some(bytes);
    }
    if !bytes.starts_with(OLD_MAGIC) {
        return None;
    }
    let count = usize::try_from(number(bytes, 12)?).ok()?;
    let end = count.checked_mul(OLD_ENTRY_BYTES)?.checked_add(OLD_HEADER_BYTES)?;
    bytes.get(end.checked_next_multiple_of(ALIGNMENT)?..).filter(|table| table.starts_with(MAGIC))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn text(table: &[u8], at: u32) -> Option<String> {
    let rest = table.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of these names, paths and abilities.
    fn cache(entries: &[(&str, &str, u64)]) -> Vec<u8> {
        let mut table = [MAGIC, &(entries.len() as u32).to_le_bytes(), &[0; 24]].concat();
        let mut strings = Vec::new();
        let start = HEADER_BYTES + entries.len() * ENTRY_BYTES;
        for (name, path, abilities) in entries {
            let at = |strings: &Vec<u8>| ((start + strings.len()) as u32).to_le_bytes();
            let name_at = at(&strings);
            strings.extend([name.as_bytes(), b"\0"].concat());
            let path_at = at(&strings);
            strings.extend([path.as_bytes(), b"\0"].concat());
            table.extend([&3u32.to_le_bytes()[..], &name_at, &path_at, &[0; 4], &abilities.to_le_bytes()].concat());
        }
        table.extend(strings);
        table
    }

    #[test]
    fn entries_are_read_in_their_order() {
        let bytes = cache(&[("libb.so.1", "/fast/libb.so.1", 1 << 62), ("libb.so.1", "/b/libb.so.1", 0)]);

        let entries = parse(&bytes).unwrap();

        let entry = |path: &str, special| Entry { name: "libb.so.1".into(), path: path.into(), special };
        assert_eq!(entries, [entry("/fast/libb.so.1", true), entry("/b/libb.so.1", false)]);
    }

    #[test]
    fn the_table_of_old_loaders_is_skipped() {
        let old = [OLD_MAGIC, b"\0", &1u32.to_le_bytes(), &[0; OLD_ENTRY_BYTES], &[0; 4]].concat();

        let entries = parse(&[old, cache(&[("liba.so.1", "/a/liba.so.1", 0)])].concat()).unwrap();

        assert_eq!(entries[0].path, "/a/liba.so.1");
    }

    #[test]
    fn no_damage_makes_more_of_a_cache_than_there_is() {
        let good = cache(&[("liba.so.1", "/a/liba.so.1", 0), ("libb.so.1", "/b/libb.so.1", 0)]);

        for length in 0..good.len() {
            assert!(parse(&good[..length]).is_none_or(|entries| entries.len() < 2), "{length} bytes");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            assert!(parse(&bad).is_none_or(|entries| entries.len() <= 2), "byte {at}");
        }
    }

    #[test]
    fn what_this_machines_loader_uses_is_understood() {
        let Ok(bytes) = std::fs::read(PATH) else { return };

        let entries = parse(&bytes).unwrap();

        let libc = entries.iter().find(|entry| entry.name == "libc.so.6").unwrap();
        assert!(std::path::Path::new(&libc.path).exists(), "{libc:?}");
    }
}
