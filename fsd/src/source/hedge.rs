//! A second request where a first one takes much longer than usual.
//!
//! One connection of many hangs now and then: a server that is restarted, a lost packet, a disk that is slow once. Who waits
//! for it is better served by another request over another connection; whichever brings bytes first is gone on with, and the
//! other one is dropped. That must not make a server slower that is slow for all, so that few requests in a hundred are
//! doubled at most, and one only once it took longer than nearly all that came before.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

/// Answers that tell what is usual.
const REMEMBERED: usize = 64;
/// Fewer tell nothing.
const MIN_KNOWN: usize = 8;
/// No answer is late before this: what two requests more cost is not worth less.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// When an answer is late as long as nothing is known of the server.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);
/// Of a hundred requests, so many may be doubled.
const SHARE: u32 = 5;
/// What one doubled request costs of what others have saved up.
const COST: u32 = 100;
/// What is saved up at most: four of them in a row.
const MAX_CREDIT: u32 = 4 * COST;

/// What is usual for an object, and how many requests may still be doubled.
#[derive(Debug)]
pub(super) struct Hedges {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    recent: Vec<Duration>,
    /// The one to be replaced next.
    oldest: usize,
    credit: u32,
    /// After which time an answer is late.
    late: Duration,
}

impl Hedges {
    pub(super) fn new() -> Self {
        let state = State { recent: Vec::new(), oldest: 0, credit: COST, late: UNKNOWN_WAIT };
        Self { state: Mutex::new(state) }
    }

    /// After which time an answer is late: the 95th percentile of the last ones.
    fn wait(&self) -> Duration {
        self.state.lock().late
    }

    /// Takes note of one more request, and how long its first bytes took.
    fn took(&self, time: Duration) {
        let mut state = self.state.lock();
        state.credit = (state.credit + SHARE).min(MAX_CREDIT);
        if state.recent.len() < REMEMBERED {
            state.recent.push(time);
        } else {
            let oldest = state.oldest;
            state.recent[oldest] = time;
            state.oldest = (oldest + 1) % REMEMBERED;
        }
        if state.recent.len() >= MIN_KNOWN {
            let mut recent = state.recent.clone();
            recent.sort_unstable();
            state.late = recent[recent.len() * 95 / 100].max(MIN_WAIT);
        }
    }

    /// Whether one more request may be doubled, which then is.
    fn take(&self) -> bool {
        let mut state = self.state.lock();
        let left = state.credit.checked_sub(COST);
        state.credit = left.unwrap_or(state.credit);
        left.is_some()
    }

    /// What `first` brings, or `second`, which is begun once `first` is late while somebody waits for it. `is_new` says that
    /// `first` is a whole request, of which the time is noted, and not the rest of one.
    pub(super) async fn first_of<T, E>(
        &self,
        is_new: bool,
        first: impl Future<Output = Result<T, E>>,
        is_waited_for: &(dyn Fn() -> bool + Sync),
        second: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let began = Instant::now();
        let mut first = pin!(first);
        loop {
            match timeout(self.wait(), first.as_mut()).await {
                Ok(brought) => {
                    if is_new && brought.is_ok() {
                        self.took(began.elapsed());
                    }
                    return brought;
                }
                Err(_) if is_waited_for() && self.take() => break,
                Err(_) => {}
            }
        }
        let again = Instant::now();
        let mut second = pin!(second());
        let (mut is_first_over, mut is_second_over) = (false, false);
        poll_fn(|context| {
            if !is_first_over && let Poll::Ready(brought) = first.as_mut().poll(context) {
                if brought.is_ok() || is_second_over {
                    self.took(began.elapsed());
                    return Poll::Ready(brought);
                }
                is_first_over = true;
            }
            if !is_second_over && let Poll::Ready(brought) = second.as_mut().poll(context) {
                if brought.is_ok() || is_first_over {
                    self.took(again.elapsed());
                    return Poll::Ready(brought);
                }
                is_second_over = true;
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_is_what_nearly_all_others_were_faster_than() {
        let hedges = Hedges::new();
        assert_eq!(hedges.wait(), UNKNOWN_WAIT);

        (0..200).for_each(|number| hedges.took(Duration::from_millis(if number % 10 == 0 { 700 } else { 20 })));
        assert_eq!(hedges.wait(), Duration::from_millis(700));
        (0..64).for_each(|number| hedges.took(Duration::from_millis(if number == 5 { 700 } else { 20 })));

        assert_eq!(hedges.wait(), MIN_WAIT);
    }

    #[test]
    fn few_requests_are_doubled() {
        let hedges = Hedges::new();

        let mut doubled = 0;
        for _ in 0..400 {
            hedges.took(Duration::ZERO);
            doubled += u32::from(hedges.take());
        }

        assert_eq!(doubled, 1 + 400 * SHARE / 100);
    }
}
