//! What a dynamic loader reads of a shared object: for fetching it before it is asked for.
//!
//! A loader maps an object, reads its dynamic section, and then goes through its relocations, which are in tables, and
//! changes the pages that they name. Of a library of some hundred MiB that is a few MiB, here and there:
//!
//! ```text
//! file:     | header | symbols, strings, relocations | code, constants     | relocated | dynamic | data |
//! read:       1        3                               little, by the program  4 4  4 4   2
//! ```
//!
//! Only the usual kind is understood: 64 bits, little-endian. Whatever else a file says is no error: nothing is foreseen.

use std::ops::Range;

/// First bytes of a file that are looked at: the header and its program headers, which follow it.
pub const HEAD_BYTES: usize = 4096;

/// The longest tables of relocations that are read, in bytes: twenty times those of the largest libraries of CUDA would be
/// more than is worth it.
pub const MAX_RELOCATIONS_BYTES: u64 = 64 << 20;

/// Segments of an object at most.
const MAX_SEGMENTS: usize = 32;
/// The longest dynamic section.
const MAX_DYNAMIC_BYTES: u64 = 64 << 10;
/// Symbol tables and strings are fetched up to this length each.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Entries of the dynamic section that are addresses of tables: DT_PLTGOT, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_INIT,
/// DT_FINI, DT_JMPREL, DT_INIT_ARRAY, DT_FINI_ARRAY, DT_RELR, DT_GNU_HASH, DT_VERSYM, DT_VERDEF and DT_VERNEED.
const ADDRESSES: [u64; 15] =
    [3, 4, 5, 6, 7, 12, 13, 23, 25, 26, 36, 0x6fff_fef5, 0x6fff_fff0, 0x6fff_fffc, 0x6fff_fffe];

const PAGE_BYTES: u64 = 4096;
/// Pages that lie between two relocated ones and are fetched with them, in bytes.
const MAX_GAP_BYTES: u64 = 64 << 10;

/// Bytes of a program header, an entry of the dynamic section, and one of a table of relocations (ELF-64).
const PROGRAM_HEADER_BYTES: usize = 56;
const DYNAMIC_BYTES: usize = 16;
const RELA_BYTES: usize = 24;
const RELR_BYTES: usize = 8;

/// `PT_LOAD`, `PT_DYNAMIC`.
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;

/// A shared object or program, by its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loadable {
    segments: Vec<Segment>,
    dynamic: Range<u64>,
}

/// A part of the file, and where it is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    offset: u64,
    address: u64,
    file_bytes: u64,
}

/// Where the tables are in the file that a loader goes through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Those with an addend for each place.
    pub relocations: Vec<Range<u64>>,
    /// Those of places alone, packed (`DT_RELR`).
    pub packed: Option<Range<u64>>,
    /// Symbols, their names, hashes and versions.
    pub symbols: Vec<Range<u64>>,
}

impl Loadable {
    /// Reads the first bytes of a file. `None` if that is nothing that a loader loads, or of another kind.
    pub fn of_head(head: &[u8]) -> Option<Self> {
        // Class, byte order and version.
        head.starts_with(b"\x7fELF\x02\x01\x01").then_some(())?;
        let (offset, count) = (u64_at(head, 32)?, usize::from(u16_at(head, 56)?));
        if usize::from(u16_at(head, 54)?) != PROGRAM_HEADER_BYTES || count > MAX_SEGMENTS {
            return None;
        }
        let (mut segments, mut dynamic) = (Vec::new(), None);
        let headers = head.get(usize::try_from(offset).ok()?..)?.chunks_exact(PROGRAM_HEADER_BYTES).take(count);
        for header in headers {
            let (offset, address, file_bytes) = (u64_at(header, 8)?, u64_at(header, 16)?, u64_at(header, 32)?);
            match u32_at(header, 0)? {
                LOAD => segments.push(Segment { offset, address, file_bytes }),
                DYNAMIC if file_bytes <= MAX_DYNAMIC_BYTES => dynamic = Some(offset..offset.checked_add(file_bytes)?),
                _ => {}
            }
        }
        Some(Self { segments, dynamic: dynamic? })
    }

    /// The dynamic section, in the file. Whoever loads it reads this, and hardly anybody else does.
    pub fn dynamic(&self) -> Range<u64> {
        self.dynamic.clone()
    }

    /// Where the tables are, by the content of the dynamic section.
    pub fn tables(&self, dynamic: &[u8]) -> Tables {
        let value = |wanted: u64| {
            let mut entries = dynamic.chunks_exact(DYNAMIC_BYTES);
            entries.find(|entry| u64_at(entry, 0) == Some(wanted)).and_then(|entry| u64_at(entry, 8))
        };
        let table = |address: u64, bytes: u64, most: u64| {
            let bytes = value(bytes).filter(|bytes| (1..=most).contains(bytes))?;
            self.in_file(value(address)?, bytes)
        };
        // DT_RELA and DT_RELASZ, DT_JMPREL and DT_PLTRELSZ; DT_RELR and DT_RELRSZ.
        let relocations = [(7, 8), (23, 2)].into_iter().filter_map(|(at, len)| table(at, len, MAX_RELOCATIONS_BYTES));
        let packed = table(36, 35, MAX_RELOCATIONS_BYTES);
        // DT_STRTAB and DT_STRSZ.
        let strings = table(5, 10, MAX_TABLE_BYTES);
        // DT_GNU_HASH, DT_VERSYM and DT_SYMTAB have no length: each ends where the next table begins. Which that is differs,
        // as programs that change libraries move some of them to the end.
        let tables: Vec<u64> = ADDRESSES.into_iter().filter_map(value).collect();
        let up_to_next = |tag: u64| {
            let address = value(tag)?;
            let next = tables.iter().filter(|other| **other > address).min();
            self.in_file_up_to(address, next.map_or(MAX_TABLE_BYTES, |next| (next - address).min(MAX_TABLE_BYTES)))
        };
        let symbols = [0x6fff_fef5, 0x6fff_fff0, 6].into_iter().filter_map(up_to_next).chain(strings).collect();
        Tables { relocations: relocations.collect(), packed, symbols }
    }

    /// Which parts of the file these relocations change, with what lies between them. `packed` says which kind it is.
    pub fn relocated(&self, table: &[u8], packed: bool) -> Vec<Range<u64>> {
        let addresses = if packed { packed_addresses(table) } else { plain_addresses(table) };
        let mut pages: Vec<u64> = addresses.into_iter().filter_map(|address| self.page_of(address)).collect();
        pages.sort_unstable();
        pages.dedup();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in pages {
            let start = page * PAGE_BYTES;
            match ranges.last_mut() {
                Some(last) if start <= last.end.saturating_add(MAX_GAP_BYTES) => last.end = start + PAGE_BYTES,
                _ => ranges.push(start..start + PAGE_BYTES),
            }
        }
        ranges
    }

    /// Where in the file `bytes` bytes at `address` are.
    fn in_file(&self, address: u64, bytes: u64) -> Option<Range<u64>> {
        let end = address.checked_add(bytes)?;
        let holds = |segment: &&Segment| {
            let last = segment.address.checked_add(segment.file_bytes);
            segment.address <= address && last.is_some_and(|last| end <= last)
        };
        let segment = self.segments.iter().find(holds)?;
        let start = segment.offset.checked_add(address - segment.address)?;
        Some(start..start.checked_add(bytes)?)
    }

    /// Where in the file what begins at `address` is, `bytes` bytes or as many as are in the same segment.
    fn in_file_up_to(&self, address: u64, bytes: u64) -> Option<Range<u64>> {
        let holds = |segment: &&Segment| segment.address <= address && address - segment.address < segment.file_bytes;
        let segment = self.segments.iter().find(holds)?;
        self.in_file(address, bytes.min(segment.file_bytes - (address - segment.address)))
    }

    /// The number of the page in the file. One beyond all files is none.
    fn page_of(&self, address: u64) -> Option<u64> {
        let start = self.in_file(address, 1)?.start;
        (start < u64::MAX - PAGE_BYTES).then_some(start / PAGE_BYTES)
    }
}

/// One address for each page that is named, so that there are not many more of them than of pages.
fn plain_addresses(table: &[u8]) -> Vec<u64> {
    let mut addresses = Vec::new();
    for address in table.chunks_exact(RELA_BYTES).filter_map(|entry| u64_at(entry, 0)) {
        add(&mut addresses, address);
    }
    addresses
}

/// Addresses are even; what is odd is a set of the next 63 words after the last one.
fn packed_addresses(table: &[u8]) -> Vec<u64> {
    let (mut addresses, mut next) = (Vec::new(), 0_u64);
    for entry in table.chunks_exact(RELR_BYTES).filter_map(|entry| u64_at(entry, 0)) {
        if entry & 1 == 0 {
            add(&mut addresses, entry);
            next = entry.saturating_add(8);
        } else {
            (1..64)
                .filter(|bit| entry >> bit & 1 == 1)
                .for_each(|bit| add(&mut addresses, next.saturating_add((bit - 1) * 8)));
            next = next.saturating_add(63 * 8);
        }
    }
    addresses
}

fn add(addresses: &mut Vec<u64>, address: u64) {
    if addresses.last().is_none_or(|last| last / PAGE_BYTES != address / PAGE_BYTES) {
        addresses.push(address);
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object of two segments, the second of which is 0x1000 further up in memory, with its dynamic section there.
    fn head() -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        head[32..40].copy_from_slice(&64_u64.to_le_bytes());
        head[54..56].copy_from_slice(&56_u16.to_le_bytes());
        head[56..58].copy_from_slice(&3_u16.to_le_bytes());
        for (kind, offset, address, bytes) in [
            (LOAD, 0, 0, 0x9000_u64),
            (LOAD, 0x10_0000, 0x10_1000_u64, 0x80_0000),
            (DYNAMIC, 0x70_0000, 0x70_1000, 0x100),
        ] {
            let mut header = vec![0; PROGRAM_HEADER_BYTES];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&u64::to_le_bytes(offset));
            header[16..24].copy_from_slice(&address.to_le_bytes());
            header[32..40].copy_from_slice(&bytes.to_le_bytes());
            head.extend(header);
        }
        head
    }

    fn dynamic(entries: &[(u64, u64)]) -> Vec<u8> {
        entries.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()).collect()
    }

    #[test]
    fn the_tables_are_found_by_the_dynamic_section() {
        let object = Loadable::of_head(&head()).unwrap();

        let tables = object.tables(&dynamic(&[
            (5, 0x3000),
            (10, 0x800),
            (6, 0x2000),
            (7, 0x4000),
            (8, 480),
            (36, 0x6000),
            (35, 16),
        ]));

        assert_eq!(object.dynamic(), 0x70_0000..0x70_0100);
        assert_eq!(tables.relocations, std::slice::from_ref(&(0x4000..0x4000 + 480)));
        assert_eq!(tables.packed, Some(0x6000..0x6010));
        assert_eq!(tables.symbols, [0x2000..0x3000, 0x3000..0x3800]);
    }

    #[test]
    fn a_table_without_length_ends_with_the_next_one_or_its_segment() {
        let object = Loadable::of_head(&head()).unwrap();

        // The strings and the hash were moved to the second segment.
        let tables = object.tables(&dynamic(&[
            (0x6fff_fef5, 0x90_0000),
            (5, 0x70_0000),
            (10, 0x100),
            (0x6fff_fff0, 0x1000),
            (6, 0x2000),
            (7, 0x5000),
            (8, 24),
        ]));

        assert_eq!(tables.symbols, [0x8f_f000..0x90_0000, 0x1000..0x2000, 0x2000..0x5000, 0x6f_f000..0x6f_f100]);
    }

    #[test]
    fn relocations_name_pages_of_the_file() {
        let object = Loadable::of_head(&head()).unwrap();
        let entry = |address: u64| [address.to_le_bytes(), [0; 8], [0; 8]].concat();
        let table = [0x20_1008, 0x20_1010, 0x20_5000, 0x60_1000, u64::MAX, 0x7000_0000].map(entry).concat();

        assert_eq!(object.relocated(&table, false), [0x20_0000..0x20_5000, 0x60_0000..0x60_1000]);
        let words = [0x20_1000_u64, 0b101, 0x60_1000].map(u64::to_le_bytes).concat();
        assert_eq!(object.relocated(&words, true), [0x20_0000..0x20_1000, 0x60_0000..0x60_1000]);
    }

    #[test]
    fn what_is_no_object_or_a_damaged_one_foresees_nothing() {
        let head = head();
        for len in 0..64 {
            assert_eq!(Loadable::of_head(&head[..len]), None, "{len}");
        }
        let mut wild = head.clone();
        wild[64..].fill(0xff);
        assert_eq!(Loadable::of_head(&wild), None);
        let object = Loadable::of_head(&head).unwrap();
        let beyond = object.tables(&dynamic(&[(7, u64::MAX - 1), (8, 1 << 20), (5, 0x8000), (10, u64::MAX), (6, 7)]));
        assert!(beyond.relocations.is_empty(), "{beyond:?}");
        assert!(object.relocated(&[0xff; 100], false).is_empty());
        assert_eq!(object.relocated(&[0xff; 16], true), std::slice::from_ref(&(0..PAGE_BYTES)));
    }
}
