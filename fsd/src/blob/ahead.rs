//! How far to read around what is asked for, where nothing is known of the program.
//!
//! Who reads from front to back gets what follows before it is asked for, in longer and longer requests. Who jumps about gets
//! what is around each place, and more where there were several in one region of the object: files that belong together are
//! stored together, and a round trip costs more than some neighbours.

use std::ops::Range;

use super::MAX_RUN;

/// The first window of a reader from front to back, in chunks, and the longest one: twice what 1 Gbit/s carries in a long
/// round trip of 30 ms, since one half is on its way while the other is read.
const FIRST_WINDOW: u32 = 2;
const MAX_WINDOW: u32 = MAX_RUN;
/// Two reads one after the other are soon made by chance where a program is loaded.
const MIN_CONFIRMED: u32 = 2;
/// What is left out between two reads of one after the other.
const MAX_SKIP: u32 = 2;
/// Readers told apart. Threads that decode blocks of several files at once interleave their reads.
const MAX_STREAMS: usize = 16;

/// Chunks of a region: 4 MiB, some directories of programs and modules.
const REGION: u32 = 64;
/// Chunks fetched around the first miss in a region, the second, and all later ones. A round trip of 20 ms costs as much as
/// 2.5 MB at 1 Gbit/s; of what is fetched around, two fifths are wanted later in a start of PyTorch.
const AROUND: [u32; 3] = [8, 8, 16];
/// Regions that are remembered.
const MAX_REGIONS: usize = 256;

/// What has been read lately.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// Most recent first.
    streams: Vec<Stream>,
    /// Numbers of regions and misses in them, most recent first.
    regions: Vec<(u32, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// The chunk that is expected next.
    next: u32,
    /// The first one that is not being fetched yet.
    ready: u32,
    window: u32,
    /// Reads that came as expected.
    confirmed: u32,
}

/// Chunks to fetch before and after one that is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Around {
    pub(crate) before: u32,
    pub(crate) after: u32,
}

impl Readers {
    /// Takes note that these chunks are read, and says what to fetch before it is asked for.
    pub(super) fn read(&mut self, chunks: Range<u32>) -> Range<u32> {
        let expects =
            |stream: &Stream| (stream.next.saturating_sub(1)..=stream.next + MAX_SKIP).contains(&chunks.start);
        let Some(index) = self.streams.iter().position(expects) else {
            self.streams.truncate(MAX_STREAMS - 1);
            self.streams.insert(0, Stream { next: chunks.end, ready: chunks.end, window: 0, confirmed: 0 });
            return 0..0;
        };
        self.streams[..=index].rotate_right(1);
        let stream = &mut self.streams[0];
        if chunks.end <= stream.next {
            return 0..0;
        }
        stream.next = chunks.end;
        stream.ready = stream.ready.max(stream.next);
        stream.confirmed += 1;
        if stream.confirmed < MIN_CONFIRMED {
            return 0..0;
        }
        // Once half of what is fetched was read.
        if stream.ready - stream.next > stream.window / 2 {
            return 0..0;
        }
        stream.window = (stream.window * 2).clamp(FIRST_WINDOW, MAX_WINDOW);
        let due = stream.ready..stream.next.saturating_add(stream.window).max(stream.ready);
        stream.ready = due.end;
        due
    }

    /// Takes note that `chunk` is missing, and says what to fetch with it.
    pub(super) fn missed(&mut self, chunk: u32) -> Around {
        let region = chunk / REGION;
        let known = self.regions.iter().position(|(number, _)| *number == region);
        let misses = known.map_or(0, |index| self.regions.remove(index).1);
        self.regions.truncate(MAX_REGIONS - 1);
        self.regions.insert(0, (region, misses + 1));
        let count = AROUND[misses.min(AROUND.len() - 1)];
        let before = chunk % count;
        Around { before, after: count - 1 - before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_from_front_to_back_never_comes_to_what_is_not_being_fetched() {
        let (mut readers, mut ready, mut requests) = (Readers::default(), 3, 0);

        for chunk in 0..4000 {
            let due = readers.read(chunk..chunk + 1);
            requests += u32::from(!due.is_empty());
            assert!(due.is_empty() || due.start == ready || ready <= 3, "{due:?}");
            ready = ready.max(due.end);
            assert!(ready > chunk, "{chunk}");
        }

        assert!(requests < 4000 / MAX_WINDOW * 2 + 10, "{requests}");
    }

    #[test]
    fn what_is_read_here_and_there_comes_with_its_neighbours() {
        let mut readers = Readers::default();

        for at in [1000, 70, 5500, 300, 30_000] {
            assert!(readers.read(at..at + 1).is_empty());
            assert_eq!(readers.missed(at), Around { before: at % 8, after: 7 - at % 8 });
        }
    }

    #[test]
    fn more_is_fetched_around_further_misses_in_a_region() {
        let mut readers = Readers::default();

        let around = [640, 650, 660, 681].map(|chunk| readers.missed(chunk));

        let counts = around.map(|around| around.before + 1 + around.after);
        assert_eq!(counts, [8, 8, 16, 16]);
        assert_eq!(around[3], Around { before: 9, after: 6 });
    }

    #[test]
    fn interleaved_readers_are_told_apart() {
        let mut readers = Readers::default();

        readers.read(10..11);
        readers.read(500..501);
        readers.read(11..12);
        readers.read(501..502);

        assert_eq!(readers.read(12..13), 13..15);
        assert_eq!(readers.read(502..503), 503..505);
    }
}
