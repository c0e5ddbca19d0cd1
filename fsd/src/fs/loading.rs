//! Shared objects that are being loaded from far away: what the loader will read of them is fetched meanwhile.
//!
//! Who reads the first bytes of an object may be anybody. Who then reads its dynamic section loads it.

use super::FileSystem;
use parking_lot::Mutex;
use siphon_image::loading::{HEAD_BYTES, Loadable, MAX_RELOCATIONS_BYTES};
use siphon_overlay::view::Ino;
use std::ops::Range;
use std::sync::Arc;

/// Objects that are known by their headers and may be loaded yet. A program loads some hundred at most.
const MAX_KNOWN: usize = 256;

/// What is read of a table at a time.
const READ_BYTES: usize = 1 << 20;

/// The objects that were looked at lately.
#[derive(Debug, Default)]
pub(super) struct Loading {
    /// Most recent first.
    known: Mutex<Vec<(Ino, Arc<Loadable>)>>,
}

impl Loading {
    /// Takes note of the first bytes of a file.
    pub(super) fn saw(&self, ino: Ino, offset: u64, data: &[u8]) {
        if offset != 0 {
            return;
        }
        if let Some(object) = Loadable::of_head(&data[..data.len().min(HEAD_BYTES)]) {
            let mut known = self.known.lock();
            known.retain(|(other, _)| *other != ino);
            known.truncate(MAX_KNOWN - 1);
            known.insert(0, (ino, Arc::new(object)));
        }
    }

    /// The object `ino`, if `asked` shows that it is being loaded. Only once.
    fn loaded(&self, ino: Ino, asked: &Range<u64>) -> Option<Arc<Loadable>> {
        let mut known = self.known.lock();
        let index = known.iter().position(|(other, _)| *other == ino)?;
        let dynamic = known[index].1.dynamic();
        let is_read = asked.start < dynamic.end && dynamic.start < asked.end;
        is_read.then(|| known.remove(index).1)
    }
}

impl FileSystem {
    /// The object `ino`, if the request for `asked` shows that a program loads it.
    pub(super) fn loaded(&self, ino: Ino, asked: &Range<u64>) -> Option<Arc<Loadable>> {
        if self.options.far { self.loading.loaded(ino, asked) } else { None }
    }

    /// Has what a loader will read of `object` fetched. Blocks until its tables are there. What cannot be read shows to
    /// the loader.
    pub fn fetch_for_loader(&self, ino: Ino, object: &Loadable) {
        let Some(dynamic) = self.read_range(ino, object.dynamic()) else { return };
        let tables = object.tables(&dynamic);
        let fetch = |ranges: Vec<Range<u64>>| {
            self.view.fetch_ahead(&ranges.into_iter().map(|range| (ino, range)).collect::<Vec<_>>());
        };
        let all = tables.relocations.iter().chain(&tables.packed).chain(&tables.symbols);
        fetch(all.cloned().collect());
        let plain = tables.relocations.iter().map(|table| (table, false));
        for (table, packed) in plain.chain(tables.packed.iter().map(|table| (table, true))) {
            if let Some(table) = self.read_range(ino, table.clone()) {
                fetch(object.relocated(&table, packed));
            }
        }
    }

    fn read_range(&self, ino: Ino, range: Range<u64>) -> Option<Vec<u8>> {
        let bytes = usize::try_from(range.end.checked_sub(range.start)?.min(MAX_RELOCATIONS_BYTES)).ok()?;
        let mut content = Vec::new();
        while content.len() < bytes {
            let start = content.len();
            content.resize(bytes.min(start + READ_BYTES), 0);
            let read = self.read_ahead(ino, range.start + start as u64, &mut content[start..]).ok()?;
            content.truncate(start + read);
            if read == 0 {
                return None;
            }
        }
        Some(content)
    }
}
