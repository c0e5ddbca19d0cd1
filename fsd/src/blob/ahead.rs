//! How far to read ahead: chunks beyond those a read needs, more for a reader that goes on where it left off.

/// The first window of a sequential reader, in chunks: as much again as its first request.
const FIRST_WINDOW: u32 = 1;
/// 4 MiB: above it a 1 Gbit/s link gains nothing, and the reader waits for bytes it does not need yet.
const MAX_WINDOW: u32 = 16;
/// Sequential readers told apart. Threads that decode blocks of several files at once interleave their misses.
const MAX_STREAMS: usize = 8;

/// The places where fetches ended, each of which a sequential reader may continue from.
#[derive(Debug, Default)]
pub(super) struct Streams {
    ends: [Stream; MAX_STREAMS],
    oldest: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Stream {
    /// The chunk after the last fetched one; 0 in an unused place, since no fetch ends there.
    end: u32,
    window: u32,
}

impl Streams {
    /// The chunks to fetch ahead for a miss at `chunk`: none unless an earlier fetch ended right there.
    pub(super) fn window_at(&self, chunk: u32) -> u32 {
        let continued = self.ends.iter().find(|stream| chunk != 0 && stream.end == chunk);
        continued.map_or(0, |stream| (stream.window * 2).clamp(FIRST_WINDOW, MAX_WINDOW))
    }

    /// Notes that the chunks `first..end` were fetched.
    pub(super) fn fetched(&mut self, first: u32, end: u32) {
        let window = self.window_at(first);
        let continued = self.ends.iter().position(|stream| first != 0 && stream.end == first);
        let place = continued.unwrap_or(self.oldest);
        if continued.is_none() {
            self.oldest = (self.oldest + 1) % MAX_STREAMS;
        }
        self.ends[place] = Stream { end, window };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_doubles_for_a_sequential_reader_up_to_its_bound() {
        let mut streams = Streams::default();
        let (mut at, mut windows) = (10, Vec::new());

        for _ in 0..7 {
            let window = streams.window_at(at);
            streams.fetched(at, at + 1 + window);
            at += 1 + window;
            windows.push(window);
        }

        assert_eq!(windows, [0, 1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn scattered_misses_fetch_nothing_ahead() {
        let mut streams = Streams::default();

        for at in [100, 7, 55, 0, 3000, 0] {
            assert_eq!(streams.window_at(at), 0);
            streams.fetched(at, at + 1);
        }
    }

    #[test]
    fn interleaved_readers_are_told_apart() {
        let mut streams = Streams::default();

        streams.fetched(10, 11);
        streams.fetched(500, 501);
        streams.fetched(11, 13);

        assert_eq!(streams.window_at(13), 2);
        assert_eq!(streams.window_at(501), 1);
    }
}
