//! Which worker takes the next request.
//!
//! As a rule all workers wait in the kernel, and it wakes one for each request. A program that asks one thing after the other
//! then waits most of its time for two sleeping processors to be woken: 11 of 15 us of a `stat` on a virtual machine. So a worker
//! that finds requests coming in close order stays awake between them: it is *keen*. Meanwhile nobody else waits in the
//! kernel, which would wake him for nothing; the others rest here. A keen worker is one again like the others when
//!
//! - nothing came for [`PATIENCE`], or requests lie waiting, so that one worker is not enough;
//! - it is about to do what may take long, or is found to be at something that does by who looks after it once a
//!   millisecond: then another one waits in the kernel in its place;
//! - it was put aside for something else that has to run, which it would be in the way of. It is not keen again for a
//!   while then, and for longer each time.
//!
//! ```text
//! waiting in the kernel -> at a request -> waiting in the kernel          is anyone keen? -> resting here -> ...
//!                              |  after a dozen in close order
//!                              +-> keen: looks for the next one, does it, ... -> waiting in the kernel
//! ```

use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a keen worker looks for a request: longer than most programs are at their own affairs between two of them.
pub(super) const PATIENCE: Duration = Duration::from_micros(50);
/// What is asked within this time after an answer is asked in close order: [`PATIENCE`] and the waking of both sides.
const CLOSE: Duration = Duration::from_micros(100);
/// How many requests in close order make a worker keen.
const FEWEST: u32 = 12;
/// As many at most, after it was in vain again and again.
const MOST: u32 = 12 << 9;
/// What makes it worth while.
const WORTH: u32 = 64;
/// How many are needed after a worker was in the way or not enough, if it had served [`MANY`] until then: else twice as many as before.
const AGAIN: u32 = 12 << 3;
/// More than one can serve in the time that a processor is left to it beside something else.
const MANY: u32 = 1000;
/// Longer than looking for a request takes, by itself.
const PUT_ASIDE: Duration = Duration::from_micros(300);
/// How often someone looks whether the keen worker is stuck.
const LOOK: Duration = Duration::from_millis(1);
/// How many requests in a row may lie waiting already.
const PRESSING: u32 = 4;

/// Nobody is keen.
const NOBODY: usize = 0;

/// The workers of one mount.
#[derive(Debug)]
pub(super) struct Turns {
    /// Whether anyone ever is: with one processor whoever stays awake is in the way of who asks.
    is_allowed: bool,
    began: Instant,
    /// Who is keen: the number of a worker, from 1 on.
    keen: AtomicUsize,
    /// How many wait in the kernel.
    waiting: AtomicUsize,
    /// How many are at a request.
    at_work: AtomicUsize,
    /// Requests in close order.
    close: AtomicU32,
    /// How many of them are needed.
    needed: AtomicU32,
    /// When the last request was answered, in nanoseconds since `began`.
    answered: AtomicU64,
    /// What the worker that is keen, or was last, has begun and ended: see [`Keen::step`].
    steps: AtomicU64,
    is_over: AtomicBool,
    resting: Mutex<Resting>,
    /// For who rests.
    called: Condvar,
    /// For who looks after the keen worker.
    became_keen: Condvar,
}

#[derive(Debug, Default)]
struct Resting {
    /// How many rest.
    count: usize,
    /// How many of them are to wait in the kernel.
    called: usize,
}

/// What a keen worker is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Look for a request again.
    Look,
    /// Wait in the kernel.
    Wait,
}

/// How it goes for a keen worker.
#[derive(Debug)]
pub(super) struct Keen {
    number: usize,
    /// Counts what it begins and ends: odd while it is at a request. It goes on from where another one was, who may still be at
    /// the one that he ceased to be keen for.
    step: u64,
    served: u32,
    pressing: u32,
    /// Whether it has looked in vain since the last request.
    has_looked: bool,
    /// When it last had a request, and when it last looked for one.
    last: Duration,
    looked: Duration,
}

impl Turns {
    pub(super) fn new(processors: usize) -> Self {
        Self {
            is_allowed: processors > 1,
            began: Instant::now(),
            keen: AtomicUsize::new(NOBODY),
            waiting: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            close: AtomicU32::new(0),
            needed: AtomicU32::new(FEWEST),
            answered: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            resting: Mutex::default(),
            called: Condvar::new(),
            became_keen: Condvar::new(),
        }
    }

    /// Rests while another worker is keen. Then it is time to wait in the kernel, until [`Turns::took`].
    pub(super) fn wait(&self) {
        if self.keen.load(Ordering::Acquire) != NOBODY {
            let mut resting = self.resting.lock();
            // Who has ceased to be keen has called those that he saw: only who is seen may rest.
            if self.keen.load(Ordering::Acquire) != NOBODY && !self.is_over.load(Ordering::Acquire) {
                resting.count += 1;
                while resting.called == 0 && !self.is_over.load(Ordering::Acquire) {
                    self.called.wait(&mut resting);
                }
                resting.called = resting.called.saturating_sub(1);
                resting.count -= 1;
            }
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that a worker came back from the kernel with a request, or without. If nobody else waits there and nobody is keen,
    /// someone else is called.
    pub(super) fn took(&self, now: Duration) {
        let others = self.waiting.fetch_sub(1, Ordering::AcqRel) - 1;
        let is_close = nanos(now).saturating_sub(self.answered.load(Ordering::Relaxed)) < nanos(CLOSE);
        let is_alone = self.at_work.fetch_add(1, Ordering::AcqRel) == 0;
        if is_close && is_alone {
            self.close.fetch_add(1, Ordering::Relaxed);
        } else {
            self.close.store(0, Ordering::Relaxed);
        }
        if others == 0 && self.keen.load(Ordering::Acquire) == NOBODY {
            self.call_one();
        }
    }

    /// Notes that the request is answered. What is returned says that the worker `number` is keen from now on.
    pub(super) fn answered(&self, number: usize, now: Duration) -> Option<Keen> {
        self.answered.store(nanos(now), Ordering::Relaxed);
        self.at_work.fetch_sub(1, Ordering::AcqRel);
        if !self.is_allowed || self.close.load(Ordering::Relaxed) < self.needed.load(Ordering::Relaxed) {
            return None;
        }
        self.keen.compare_exchange(NOBODY, number, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        self.close.store(0, Ordering::Relaxed);
        drop(self.resting.lock());
        self.became_keen.notify_one();
        let step = (self.steps.load(Ordering::Acquire) + 2) & !1;
        self.steps.fetch_max(step, Ordering::AcqRel);
        Some(Keen { number, step, served: 0, pressing: 0, has_looked: true, last: now, looked: now })
    }

    /// Notes that the keen worker found a request. If it may take long, it ceases to be keen.
    pub(super) fn found(&self, keen: &mut Keen, may_take_long: bool, is_waited_for: bool) {
        keen.served = keen.served.saturating_add(1);
        if is_waited_for {
            keen.pressing = if keen.has_looked { 0 } else { keen.pressing + 1 };
        }
        keen.has_looked = false;
        self.step(keen);
        if may_take_long {
            self.end(keen);
        }
    }

    /// Notes that it has answered the request.
    pub(super) fn finished(&self, keen: &mut Keen, now: Duration) -> Next {
        self.step(keen);
        if self.keen.load(Ordering::Acquire) != keen.number {
            return Next::Wait;
        }
        if keen.pressing >= PRESSING {
            self.end_for_others(keen);
            return Next::Wait;
        }
        (keen.last, keen.looked) = (now, now);
        Next::Look
    }

    /// Notes that it found none.
    pub(super) fn found_none(&self, keen: &mut Keen, now: Duration) -> Next {
        keen.has_looked = true;
        let was_put_aside = now.saturating_sub(keen.looked) > PUT_ASIDE;
        keen.looked = now;
        if was_put_aside {
            self.end_for_others(keen);
            return Next::Wait;
        }
        if now.saturating_sub(keen.last) > PATIENCE {
            self.end(keen);
            return Next::Wait;
        }
        Next::Look
    }

    /// Looks after the keen worker, until all is over.
    pub(super) fn look_after(&self) {
        let mut seen = 0;
        loop {
            {
                let mut resting = self.resting.lock();
                while self.keen.load(Ordering::Acquire) == NOBODY && !self.is_over.load(Ordering::Acquire) {
                    self.became_keen.wait(&mut resting);
                }
            }
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(LOOK);
            let (keen, steps) = (self.keen.load(Ordering::Acquire), self.steps.load(Ordering::Acquire));
            if keen != NOBODY && steps % 2 == 1 && steps == seen {
                self.replace(keen);
            }
            seen = steps;
        }
    }

    /// Ends all waiting here.
    pub(super) fn end_all(&self) {
        self.is_over.store(true, Ordering::Release);
        drop(self.resting.lock());
        self.called.notify_all();
        self.became_keen.notify_all();
    }

    fn step(&self, keen: &mut Keen) {
        keen.step += 1;
        self.steps.fetch_max(keen.step, Ordering::AcqRel);
    }

    /// Ceases to be keen, so that another one waits in the kernel.
    fn end(&self, keen: &Keen) {
        let needed = self.needed.load(Ordering::Relaxed);
        let next = if keen.served >= WORTH { FEWEST } else { (needed * 2).min(MOST) };
        self.needed.store(next, Ordering::Relaxed);
        self.replace(keen.number);
    }

    /// The same because it is in the way of something, or not enough.
    fn end_for_others(&self, keen: &Keen) {
        let more = self.needed.load(Ordering::Relaxed).saturating_mul(2).clamp(AGAIN, MOST);
        self.needed.store(if keen.served >= MANY { AGAIN } else { more }, Ordering::Relaxed);
        self.replace(keen.number);
    }

    fn replace(&self, number: usize) {
        if self.keen.compare_exchange(number, NOBODY, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.call_one();
        }
    }

    fn call_one(&self) {
        let mut resting = self.resting.lock();
        if resting.called < resting.count {
            resting.called += 1;
            self.called.notify_one();
        }
    }

    /// The time, as all others here are told it.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const STEP: Duration = Duration::from_micros(20);

    /// Has `count` requests answered by the worker `number`, one each `step`.
    fn answer(turns: &Turns, now: &mut Duration, number: usize, count: u32, step: Duration) -> Option<Keen> {
        (0..count).find_map(|_| {
            turns.wait();
            *now += step;
            turns.took(*now);
            turns.answered(number, *now)
        })
    }

    /// Workers of whom the first is keen, and the time.
    fn with_a_keen_one() -> (Turns, Keen, Duration) {
        let (turns, mut now) = (Turns::new(2), Duration::ZERO);
        let keen = answer(&turns, &mut now, 1, FEWEST, STEP).unwrap();
        (turns, keen, now)
    }

    #[test]
    fn requests_in_close_order_make_one_worker_keen() {
        let (turns, mut now) = (Turns::new(2), Duration::ZERO);
        turns.wait();

        assert!(answer(&turns, &mut now, 1, FEWEST - 1, STEP).is_none());
        assert!(answer(&turns, &mut now, 1, 1, STEP).is_some());
        turns.took(now);
        assert!(turns.answered(2, now).is_none());
    }

    #[test]
    fn nobody_is_keen_where_requests_are_far_apart_or_there_is_one_processor() {
        let mut now = Duration::ZERO;

        assert!(answer(&Turns::new(2), &mut now, 1, 2 * FEWEST, 2 * CLOSE).is_none());
        assert!(answer(&Turns::new(1), &mut now, 1, 2 * FEWEST, STEP).is_none());
    }

    #[test]
    fn others_rest_until_the_keen_one_may_take_long() {
        let (turns, mut keen, now) = with_a_keen_one();
        thread::scope(|scope| {
            let resting = scope.spawn(|| turns.wait());
            while turns.resting.lock().count == 0 {
                thread::yield_now();
            }
            assert!(!resting.is_finished());
            turns.found(&mut keen, true, true);
        });

        assert_eq!(turns.finished(&mut keen, now), Next::Wait);
    }

    #[test]
    fn a_keen_worker_that_is_stuck_is_replaced() {
        let (turns, mut keen, now) = with_a_keen_one();
        thread::scope(|scope| {
            scope.spawn(|| turns.look_after());
            turns.found(&mut keen, false, true);
            // Who rests is called: else this would not end.
            turns.wait();
            turns.end_all();
        });

        assert_eq!(turns.finished(&mut keen, now), Next::Wait);
    }

    #[test]
    fn one_that_is_stuck_is_replaced_while_an_earlier_one_is_still_at_work() {
        let (turns, mut first, mut now) = with_a_keen_one();
        turns.found(&mut first, true, true);
        let mut second = answer(&turns, &mut now, 2, 2 * FEWEST, STEP).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| turns.look_after());
            turns.found(&mut second, false, true);
            turns.wait();
            turns.end_all();
        });

        assert_eq!(turns.finished(&mut second, now), Next::Wait);
        assert_eq!(turns.finished(&mut first, now), Next::Wait);
    }

    #[test]
    fn patience_ends_and_what_was_in_vain_is_not_soon_tried_again() {
        let (turns, mut now) = (Turns::new(2), Duration::ZERO);
        for needed in [FEWEST, 2 * FEWEST, 4 * FEWEST] {
            assert!(answer(&turns, &mut now, 1, needed - 1, STEP).is_none(), "{needed}");
            let mut keen = answer(&turns, &mut now, 1, 1, STEP).unwrap();
            assert_eq!(turns.found_none(&mut keen, now + PATIENCE), Next::Look);
            assert_eq!(turns.found_none(&mut keen, now + PATIENCE + STEP), Next::Wait);
        }

        let mut keen = answer(&turns, &mut now, 1, MOST, STEP).unwrap();
        for _ in 0..WORTH {
            turns.found(&mut keen, false, true);
            assert_eq!(turns.finished(&mut keen, now), Next::Look);
            turns.found_none(&mut keen, now);
        }
        turns.found_none(&mut keen, now + 2 * PATIENCE);
        assert!(answer(&turns, &mut now, 1, FEWEST, STEP).is_some());
    }

    #[test]
    fn who_is_put_aside_is_not_keen_for_a_while() {
        let (turns, mut keen, mut now) = with_a_keen_one();
        now += 2 * PUT_ASIDE;

        assert_eq!(turns.found_none(&mut keen, now), Next::Wait);
        assert!(answer(&turns, &mut now, 1, AGAIN, STEP).is_none());
        let mut keen = answer(&turns, &mut now, 1, 1, STEP).unwrap();
        now += 2 * PUT_ASIDE;
        assert_eq!(turns.found_none(&mut keen, now), Next::Wait);
        assert!(answer(&turns, &mut now, 1, 2 * AGAIN, STEP).is_none());
        assert!(answer(&turns, &mut now, 1, 1, STEP).is_some());
    }

    #[test]
    fn one_keen_worker_is_not_enough_where_requests_lie_waiting() {
        let (turns, mut keen, now) = with_a_keen_one();
        for _ in 0..PRESSING {
            turns.found(&mut keen, false, true);
            assert_eq!(turns.finished(&mut keen, now), Next::Look);
            // Nobody waits for the answer to this.
            turns.found(&mut keen, false, false);
            assert_eq!(turns.finished(&mut keen, now), Next::Look);
        }
        turns.found(&mut keen, false, true);

        assert_eq!(turns.finished(&mut keen, now), Next::Wait);
    }
}
