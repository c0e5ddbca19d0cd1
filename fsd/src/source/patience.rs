//! How long and how often to try.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// One request and its repetitions: enough for a server's restart.
const MAX_ATTEMPTS: u32 = 6;
/// Opening has someone waiting at a prompt, most often because of a mistyped URL.
const MAX_OPEN_ATTEMPTS: u32 = 3;
/// No healthy server is silent for longer, and the reader of a mounted file is stuck meanwhile.
const STALL_TIME: Duration = Duration::from_secs(20);
/// For all bytes of one attempt, so that a server that trickles cannot hold a reader for ever.
const ATTEMPT_TIME: Duration = Duration::from_secs(120);
/// No attempt starts later than this after the first one.
const RETRY_TIME: Duration = Duration::from_secs(120);
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// No pause is longer, whatever Retry-After asks for.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How long and how often a request is tried. The default suits an interactive user.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Requests made for one read, at least 1.
    pub attempts: u32,
    /// Requests made to open an object, at least 1.
    pub open_attempts: u32,
    /// The longest silence within one attempt.
    pub stall: Duration,
    /// The longest one attempt takes.
    pub attempt: Duration,
    /// The latest start of an attempt after the first one's.
    pub total: Duration,
    /// The pause before the second attempt, doubled for each further one.
    pub first_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: MAX_ATTEMPTS,
            open_attempts: MAX_OPEN_ATTEMPTS,
            stall: STALL_TIME,
            attempt: ATTEMPT_TIME,
            total: RETRY_TIME,
            first_pause: FIRST_PAUSE,
        }
    }
}

/// How long a server is waited for where the bytes may all be here: a healthy one answers in a tenth of it.
const KNOWN_TIME: Duration = Duration::from_secs(3);

impl Patience {
    /// For who can do without the server.
    #[must_use]
    pub fn of_known(self) -> Self {
        let (stall, attempt) = (self.stall.min(KNOWN_TIME), self.attempt.min(KNOWN_TIME));
        Self { open_attempts: 1, stall, attempt, ..self }
    }
}

/// The attempts of one request so far.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    most: u32,
    began: Instant,
    pub(super) made: u32,
}

impl Tries {
    /// Starts to count towards at most `most` attempts.
    pub(super) fn new(patience: Patience, most: u32) -> Self {
        Self { patience, most, began: Instant::now(), made: 0 }
    }

    /// The pause before the next attempt, at least `asked`; `None` when there is to be none.
    pub(super) fn next_pause(&self, asked: Option<Duration>) -> Option<Duration> {
        if self.made >= self.most {
            return None;
        }
        let doubled = self.patience.first_pause.saturating_mul(1 << self.made.saturating_sub(1).min(16));
        let pause = jittered(doubled).max(asked.unwrap_or_default()).min(MAX_PAUSE);
        (self.began.elapsed() + pause < self.patience.total).then_some(pause)
    }
}

/// Between half of `pause` and all of it, so that the nodes of a cluster do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let [random, ..] = RandomState::new().hash_one(()).to_le_bytes();
    pause / 2 + (pause / 512).saturating_mul(u32::from(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_the_attempts() {
        let mut tries = Tries::new(Patience::default(), 3);
        let mut pauses = Vec::new();

        tries.made = 1;
        while let Some(pause) = tries.next_pause(None) {
            pauses.push(pause.as_millis());
            tries.made += 1;
        }

        assert_eq!(pauses.len(), 2);
        assert!((100..=200).contains(&pauses[0]) && (200..=400).contains(&pauses[1]), "{pauses:?}");
    }

    #[test]
    fn a_server_cannot_ask_for_a_pause_without_end() {
        let mut tries = Tries::new(Patience::default(), 3);
        tries.made = 1;

        assert_eq!(tries.next_pause(Some(Duration::from_secs(86400))), Some(MAX_PAUSE));
    }

    #[test]
    fn no_attempt_starts_after_the_total_time() {
        let patience = Patience { total: Duration::from_secs(1), ..Patience::default() };
        let mut tries = Tries::new(patience, 3);
        tries.made = 1;

        assert_eq!(tries.next_pause(Some(Duration::from_secs(2))), None);
    }
}
