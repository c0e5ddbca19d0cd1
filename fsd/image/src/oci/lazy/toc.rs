//! The JSON table of contents of eStargz and zstd:chunked layers.
//!
//! Entries are taken one by one as the text is parsed: a table of a million entries would take several hundred MB as
//! values. A `reg` entry is a file's first chunk, `chunk` entries right after it are the others. A chunk ends in the
//! layer where the next begins.

use super::error::Error;
use super::index::{Chunk, Content, Entry, EntryKind, LayerIndex, XattrList, device_number, owner, timestamp};
use crate::tree::Timestamp;
use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Largest table that is parsed; containers/storage has 150 MiB as its bound.
pub(super) const MAX_TOC_BYTES: u64 = 256 << 20;

/// Largest chunk that is decoded. Converters make them of 64 KiB to 4 MiB, and whole files if they are told to.
const MAX_CHUNK_BYTES: u64 = 256 << 20;

/// Files that say how a layer was made, and are none of its content.
const MARKS: [&str; 3] = [PREFETCH_MARK, ".no.prefetch.landmark", TOC_NAME];
const PREFETCH_MARK: &str = ".prefetch.landmark";

/// The table itself, as eStargz has it.
pub(super) const TOC_NAME: &str = "stargz.index.json";

/// A layer's table of contents.
#[derive(Debug)]
pub struct Toc {
    /// What the layer holds.
    pub index: LayerIndex,
    /// Where what should be fetched at once ends in the layer, if its maker has said so.
    pub prefetch_end: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TocEntry<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default)]
    size: i64,
    #[serde(default, borrow, deserialize_with = "or_default")]
    modtime: Cow<'a, str>,
    #[serde(default, borrow, deserialize_with = "or_default")]
    link_name: Cow<'a, str>,
    #[serde(default)]
    mode: i64,
    #[serde(default)]
    uid: i64,
    #[serde(default)]
    gid: i64,
    #[serde(default)]
    dev_major: i64,
    #[serde(default)]
    dev_minor: i64,
    #[serde(default, borrow)]
    xattrs: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    #[serde(default, borrow, deserialize_with = "or_default")]
    digest: Cow<'a, str>,
    #[serde(default)]
    offset: i64,
    #[serde(default)]
    end_offset: i64,
    #[serde(default)]
    inner_offset: i64,
    #[serde(default)]
    chunk_offset: i64,
    #[serde(default)]
    chunk_size: i64,
    #[serde(default, borrow, deserialize_with = "or_default")]
    chunk_digest: Cow<'a, str>,
    #[serde(default, borrow, deserialize_with = "or_default")]
    chunk_type: Cow<'a, str>,
}

fn or_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, str>, D::Error> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    Ok(Option::<Text<'de>>::deserialize(deserializer)?.map_or(Cow::Borrowed(""), |text| text.0))
}

/// Parses the text `json` of a table whose layer has content up to byte `end`.
pub(super) fn parse(json: &[u8], end: u64) -> Result<Toc, Error> {
    let mut builder = Builder { end, ..Builder::default() };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let parsed = TableSeed(&mut builder).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    if let Some(error) = builder.error.take() {
        return Err(error);
    }
    parsed.map_err(|source| Error::Json(Arc::new(source)))?;
    builder.finish()
}

struct TableSeed<'a>(&'a mut Builder);
struct EntriesSeed<'a>(&'a mut Builder);

impl<'de> DeserializeSeed<'de> for TableSeed<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TableSeed<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a table of contents")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "entries" => map.next_value_seed(EntriesSeed(self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for EntriesSeed<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for EntriesSeed<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of entries")
    }
    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<TocEntry<'de>>()? {
            if let Err(error) = self.0.add(&entry) {
                self.0.error = Some(error);
                return Err(serde::de::Error::custom("an entry is not valid"));
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Builder {
    index: LayerIndex,
    end: u64,
    /// The file whose chunks come.
    file: Option<File>,
    /// Places where something begins or ends in the layer.
    borders: Vec<u64>,
    prefetch_end: Option<u64>,
    entries: u64,
    error: Option<Error>,
}

struct File {
    path: Vec<u8>,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: Vec<u8>,
    size: u64,
    /// The digest of all of it, which is that of a single chunk.
    digest: Option<[u8; 32]>,
    first: u32,
    /// How much of it the chunks so far hold.
    filled: u64,
}

impl Builder {
    fn add(&mut self, entry: &TocEntry<'_>) -> Result<(), Error> {
        self.entries += 1;
        if entry.kind == "chunk" {
            return self.add_chunk(entry);
        }
        self.end_file()?;
        let name = entry.name.trim_start_matches("./");
        if MARKS.contains(&name) {
            if name == PREFETCH_MARK {
                self.prefetch_end = u64::try_from(entry.offset).ok().filter(|offset| *offset <= self.end);
            }
            self.borders.extend(u64::try_from(entry.offset).ok().filter(|offset| *offset > 0));
            return Ok(());
        }
        let mut xattrs = Vec::new();
        for (name, value) in entry.xattrs.iter().flatten() {
            let value = base64(value.as_bytes()).ok_or(self.damaged("an extended attribute is not base64"))?;
            XattrList::push(&mut xattrs, name.as_bytes(), &value)?;
        }
        let mode = u16::try_from(entry.mode & 0o7777).expect("it is masked");
        let (uid, gid, mtime) = (owner(entry.uid), owner(entry.gid), timestamp(&entry.modtime));
        if entry.kind == "reg" {
            let size = u64::try_from(entry.size).map_err(|_| self.damaged("a size is negative"))?;
            let path = entry.name.as_bytes().to_vec();
            let digest = self.digest(&entry.digest)?;
            let first = self.index.chunk_count();
            self.file = Some(File { path, mode, uid, gid, mtime, xattrs, size, digest, first, filled: 0 });
            return if size > 0 { self.add_chunk(entry) } else { Ok(()) };
        }
        let kind = self.kind(&entry.kind)?;
        let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let is_link = matches!(kind, EntryKind::Symlink | EntryKind::HardLink);
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        self.index.push(&Entry {
            path: entry.name.as_bytes(),
            kind,
            mode,
            uid,
            gid,
            mtime,
            rdev: if is_device { device_number(number(entry.dev_major), number(entry.dev_minor)) } else { 0 },
            size: 0,
            link: if is_link { entry.link_name.as_bytes() } else { &[] },
            xattrs: &xattrs,
            content: Content::Offset(0),
        })
    }

    fn kind(&self, name: &str) -> Result<EntryKind, Error> {
        Ok(match name {
            "dir" => EntryKind::Directory,
            "symlink" => EntryKind::Symlink,
            "hardlink" => EntryKind::HardLink,
            "char" => EntryKind::CharDevice,
            "block" => EntryKind::BlockDevice,
            "fifo" => EntryKind::Fifo,
            _ => return Err(self.damaged("an entry has an unknown type")),
        })
    }

    fn add_chunk(&mut self, entry: &TocEntry<'_>) -> Result<(), Error> {
        let damaged = |problem| Error::damaged("table of contents", self.entries, problem);
        let number = |value: i64| u64::try_from(value).map_err(|_| damaged("a number is negative"));
        let (offset, inner) = (number(entry.offset)?, number(entry.inner_offset)?);
        let (file_offset, chunk_size) = (number(entry.chunk_offset)?, number(entry.chunk_size)?);
        let end_offset = number(entry.end_offset)?;
        let file = self.file.as_mut().ok_or(damaged("a chunk is of no file"))?;
        if file_offset != file.filled || file_offset >= file.size {
            return Err(damaged("a chunk does not follow the one before it"));
        }
        // 0 stands for all that is left.
        let bytes = if chunk_size == 0 { file.size - file_offset } else { chunk_size };
        if bytes > file.size - file_offset {
            return Err(damaged("a chunk is longer than its file"));
        }
        let is_hole = entry.chunk_type == "zeros";
        if !is_hole && offset >= self.end {
            return Err(damaged("a chunk begins after the end of the layer"));
        }
        // A hole is stored as well, but need not be read.
        self.borders.extend((is_hole && offset > 0).then_some(offset));
        if !is_hole {
            Error::bounded("a chunk", bytes.saturating_add(inner), MAX_CHUNK_BYTES)?;
            self.borders.push(offset);
            self.borders.extend((end_offset > offset).then_some(end_offset));
        }
        file.filled += bytes;
        let is_whole = bytes == file.size;
        let file_digest = file.digest.filter(|_| is_whole);
        let digest = self.digest(&entry.chunk_digest)?.or(file_digest);
        self.index.push_chunk(Chunk {
            offset: if is_hole { 0 } else { offset },
            // Until all borders are known, whether it takes any.
            stored_bytes: u32::from(!is_hole),
            inner_offset: if is_hole { 0 } else { u32::try_from(inner).expect("chunks are bounded") },
            file_offset,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            digest: digest.filter(|_| !is_hole),
        })?;
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), Error> {
        let Some(file) = self.file.take() else { return Ok(()) };
        if file.filled != file.size {
            return Err(self.damaged("the chunks of a file are not all of it"));
        }
        self.index.push(&Entry {
            path: &file.path,
            kind: EntryKind::File,
            mode: file.mode,
            uid: file.uid,
            gid: file.gid,
            mtime: file.mtime,
            rdev: 0,
            size: file.size,
            link: &[],
            xattrs: &file.xattrs,
            content: Content::Chunks(file.first..self.index.chunk_count()),
        })
    }

    fn finish(mut self) -> Result<Toc, Error> {
        self.end_file()?;
        self.borders.push(self.end);
        self.borders.sort_unstable();
        self.borders.dedup();
        for number in 0..self.index.chunk_count() {
            let Some(chunk) = self.index.chunk_mut(number).filter(|chunk| chunk.stored_bytes > 0) else { continue };
            let next = self.borders.partition_point(|border| *border <= chunk.offset);
            let end = self.borders.get(next).copied().unwrap_or(self.end).min(self.end);
            let stored = Error::bounded("a chunk's stored length", end - chunk.offset, MAX_CHUNK_BYTES)?;
            chunk.stored_bytes = u32::try_from(stored).expect("it was just bounded");
        }
        Ok(Toc { index: self.index, prefetch_end: self.prefetch_end })
    }

    fn digest(&self, text: &str) -> Result<Option<[u8; 32]>, Error> {
        match text {
            "" => Ok(None),
            text => Ok(Some(sha256(text).ok_or(self.damaged("a digest is no SHA-256"))?)),
        }
    }

    fn damaged(&self, problem: &'static str) -> Error {
        Error::damaged("entry of a table of contents", self.entries, problem)
    }
}

/// The bytes of `sha256:` and 64 hexadecimal digits.
pub fn sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64)?.as_bytes();
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.chunks(2)) {
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(digest)
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let missing = u32::try_from(4 - group.len()).ok().filter(|missing| *missing < 3)?;
        let whole = (bits << (6 * missing)).to_be_bytes();
        bytes.extend_from_slice(&whole[1..4 - usize::try_from(missing).ok()?]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_with_and_without_padding() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")] {
            assert_eq!(base64(text.as_bytes()).unwrap(), bytes.as_bytes());
        }
        assert_eq!(base64(b"Z"), None);
        assert_eq!(base64(b"Zm9?"), None);
    }

    #[test]
    fn chunks_end_where_the_next_one_begins() {
        let json = br#"{"version":1,"entries":[
            {"name":"d/","type":"dir","mode":493,"modtime":"2000-01-01T00:00:00Z"},
            {"name":"d/a","type":"reg","size":10,"offset":100,"chunkSize":6,"xattrs":{"user.x":"Zg=="}},
            {"name":"d/a","type":"chunk","offset":150,"chunkOffset":6},
            {"name":".prefetch.landmark","type":"reg","size":1,"offset":180},
            {"name":"d/b","type":"reg","size":3,"offset":200,"innerOffset":5},
            {"name":"d/e","type":"reg"},
            {"name":"d/l","type":"symlink","linkName":"a"}]}"#;

        let toc = parse(json, 300).unwrap();

        assert_eq!(toc.prefetch_end, Some(180));
        let stored: Vec<_> =
            toc.index.chunks().iter().map(|c| (c.offset, c.stored_bytes, c.file_offset, c.bytes)).collect();
        assert_eq!(stored, [(100, 50, 0, 6), (150, 30, 6, 4), (200, 100, 0, 3)]);
        let contents: Vec<_> = toc.index.entries().map(|entry| entry.content).collect();
        assert_eq!(contents[1..4], [Content::Chunks(0..2), Content::Chunks(2..3), Content::Chunks(3..3)]);
    }

    #[test]
    fn a_table_that_contradicts_itself_is_an_error() {
        let cases = [
            r#"{"entries":[{"name":"a","type":"chunk","offset":1}]}"#,
            r#"{"entries":[{"name":"a","type":"reg","size":5,"offset":1,"chunkSize":3}]}"#,
            r#"{"entries":[{"name":"a","type":"reg","size":5,"offset":1,"chunkSize":6}]}"#,
            r#"{"entries":[{"name":"a","type":"reg","size":5,"offset":300}]}"#,
            r#"{"entries":[{"name":"a","type":"reg","size":-1}]}"#,
            r#"{"entries":[{"name":"a","type":"reg","size":1,"offset":1,"chunkDigest":"md5:00"}]}"#,
            r#"{"entries":[{"name":"a","type":"door"}]}"#,
            r#"{"entries":[{"type":"dir"}]}"#,
            r#"{"entries":7}"#,
            "[]",
            "{}x",
        ];
        for case in cases {
            assert!(parse(case.as_bytes(), 300).is_err(), "{case}");
        }
        assert!(parse(br#"{"entries":null}"#, 300).is_ok());
    }

    #[test]
    fn a_hole_takes_nothing() {
        let json =
            br#"{"entries":[{"name":"a","type":"reg","size":5000000000,"chunkSize":4999999999,"chunkType":"zeros"},
            {"name":"a","type":"chunk","chunkOffset":4999999999,"offset":7}]}"#;

        let toc = parse(json, 300).unwrap();

        assert_eq!(toc.index.chunks().len(), 2);
        assert_eq!(toc.index.chunks().iter().filter(|chunk| chunk.stored_bytes > 0).count(), 1);
    }
}
