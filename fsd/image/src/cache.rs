//! Decoded things, kept up to a number of bytes, each made by one thread while others that want it wait.
//!
//! ```text
//! key -> shard -> kept:    value, least recently used first out
//!              -> flights: being made; whoever comes now waits for the outcome
//! ```
//!
//! Lock order: a shard's lock, then a flight's. No lock is held while a value is made. An error is handed to those who
//! wait for it and is not kept, so that the next who asks tries again.

use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Enough that 16 threads seldom meet at one lock.
const MAX_SHARDS: u64 = 16;

/// Values that a shard should hold at least; fewer, larger shards are better than many that each hold one value.
const MIN_VALUES_PER_SHARD: u64 = 8;

/// Values of a shard that nobody is expected to want again, and that are there still: a few blocks, which several readers of the
/// same place, of which one reads ahead, come to one after the other.
const MAX_RETIRED: usize = 3;

/// A map from `K` to shared values, bounded by the sum of their weights.
pub(crate) struct Cache<K, V, E> {
    shards: Box<[Mutex<Shard<K, V, E>>]>,
    hasher: RandomState,
    shard_bytes: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    waits: AtomicU64,
}

/// How often a cache was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lookups {
    /// The value was there.
    pub(crate) hits: u64,
    /// It was not, and who asked had to make it.
    pub(crate) misses: u64,
    /// Another thread was just making it.
    pub(crate) waits: u64,
}

struct Shard<K, V, E> {
    kept: LruCache<K, Kept<V>>,
    kept_bytes: u64,
    /// Keys of what is not wanted again, as far as is known, in that order.
    retired: VecDeque<K>,
    flights: HashMap<K, Arc<Flight<V, E>>>,
}

struct Kept<V> {
    value: Arc<V>,
    weight_bytes: u64,
}

struct Flight<V, E> {
    state: Mutex<FlightState<V, E>>,
    ended: Condvar,
}

/// What has become of a flight.
enum FlightState<V, E> {
    /// Some thread makes the value; so many others wait.
    Flying { waiters: usize },
    /// The value or the error.
    Landed(Result<Arc<V>, E>),
    /// The thread that made the value panicked, so another has to try.
    Lost,
}

/// What a look-up leads to.
pub(crate) enum Lookup<'a, K: Hash + Eq + Copy, V, E: Clone> {
    /// The value is there.
    Hit(Arc<V>),
    /// The caller has to make the value and to hand it to [`Turn::land`].
    Turn(Turn<'a, K, V, E>),
}

/// The duty to make one value. If it is dropped unfulfilled, one of those who wait takes it over.
pub(crate) struct Turn<'a, K: Hash + Eq + Copy, V, E: Clone> {
    cache: &'a Cache<K, V, E>,
    key: K,
    flight: Arc<Flight<V, E>>,
}

impl<K: Hash + Eq + Copy, V, E: Clone> Cache<K, V, E> {
    /// A cache for `max_bytes` of values that weigh at most `max_value_bytes` each, as a rule.
    pub(crate) fn new(max_bytes: u64, max_value_bytes: u64) -> Self {
        let room = max_bytes / max_value_bytes.saturating_mul(MIN_VALUES_PER_SHARD).max(1);
        let shards = room.clamp(1, MAX_SHARDS);
        let shard = |_| {
            Mutex::new(Shard {
                kept: LruCache::unbounded(),
                kept_bytes: 0,
                retired: VecDeque::new(),
                flights: HashMap::new(),
            })
        };
        Self {
            shards: (0..shards).map(shard).collect(),
            hasher: RandomState::new(),
            shard_bytes: max_bytes / shards,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        }
    }

    /// The value for `key`, from the cache or else from `make`, which returns it with its weight in bytes.
    ///
    /// # Errors
    /// What `make` says, here or in the thread that this one waited for.
    pub(crate) fn get_or_make(&self, key: K, make: impl FnOnce() -> Result<(V, u64), E>) -> Result<Arc<V>, E> {
        match self.look_up(key)? {
            Lookup::Hit(value) => Ok(value),
            Lookup::Turn(turn) => match make() {
                Ok((value, weight_bytes)) => Ok(turn.land(value, weight_bytes)),
                Err(error) => Err(turn.fail(error)),
            },
        }
    }

    /// Finds the value, waits for the thread that makes it, or gives the caller the turn to make it.
    ///
    /// # Errors
    /// The error of the thread that this one waited for.
    pub(crate) fn look_up(&self, key: K) -> Result<Lookup<'_, K, V, E>, E> {
        loop {
            let mut shard = self.shard(key).lock();
            if let Some(kept) = shard.kept.get(&key) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Lookup::Hit(kept.value.clone()));
            }
            let Some(flight) = shard.flights.get(&key).cloned() else {
                self.misses.fetch_add(1, Ordering::Relaxed);
                let flying = Mutex::new(FlightState::Flying { waiters: 0 });
                let flight = Arc::new(Flight { state: flying, ended: Condvar::new() });
                shard.flights.insert(key, flight.clone());
                return Ok(Lookup::Turn(Turn { cache: self, key, flight }));
            };
            drop(shard);
            self.waits.fetch_add(1, Ordering::Relaxed);
            if let Some(outcome) = flight.wait() {
                return outcome.map(Lookup::Hit);
            }
        }
    }

    /// Whether the value is there or is just being made.
    pub(crate) fn contains(&self, key: K) -> bool {
        self.shard(key).lock().contains(&key)
    }

    /// As [`Cache::contains`], but for values that were retired.
    pub(crate) fn is_wanted(&self, key: K) -> bool {
        let shard = self.shard(key).lock();
        shard.contains(&key) && !shard.retired.contains(&key)
    }

    /// Says that nobody is expected to want the value for `key` again. It makes room soon, but not at once: who comes late may
    /// want it still.
    pub(crate) fn retire(&self, key: K) {
        self.shard(key).lock().retire(key);
    }

    /// How often something was looked up, by what came of it.
    pub(crate) fn lookups(&self) -> Lookups {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Lookups { hits: get(&self.hits), misses: get(&self.misses), waits: get(&self.waits) }
    }

    fn shard(&self, key: K) -> &Mutex<Shard<K, V, E>> {
        let count = self.shards.len() as u64;
        let index = usize::try_from(self.hasher.hash_one(key) % count).expect("it is below the number of shards");
        &self.shards[index]
    }
}

impl<V, E: Clone> Flight<V, E> {
    /// Blocks until the flight is over. `None` if it was lost.
    fn wait(&self) -> Option<Result<Arc<V>, E>> {
        let mut state = self.state.lock();
        loop {
            match &mut *state {
                FlightState::Flying { waiters } => *waiters += 1,
                FlightState::Landed(outcome) => return Some(outcome.clone()),
                FlightState::Lost => return None,
            }
            self.ended.wait(&mut state);
        }
    }

    fn end(&self, outcome: FlightState<V, E>) {
        *self.state.lock() = outcome;
        self.ended.notify_all();
    }
}

impl<K: Hash + Eq + Copy, V, E: Clone> Turn<'_, K, V, E> {
    /// Keeps `value`, hands it to those who wait, and returns it.
    pub(crate) fn land(self, value: V, weight_bytes: u64) -> Arc<V> {
        let value = Arc::new(value);
        let mut shard = self.cache.shard(self.key).lock();
        shard.keep(self.key, value.clone(), weight_bytes, self.cache.shard_bytes);
        drop(shard);
        self.flight.end(FlightState::Landed(Ok(value.clone())));
        value
    }

    /// Hands `error` to those who wait, and returns it.
    pub(crate) fn fail(self, error: E) -> E {
        self.flight.end(FlightState::Landed(Err(error.clone())));
        error
    }

    /// Whether other threads wait for this value.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(*self.flight.state.lock(), FlightState::Flying { waiters } if waiters > 0)
    }
}

impl<K: Hash + Eq + Copy, V, E: Clone> Drop for Turn<'_, K, V, E> {
    fn drop(&mut self) {
        self.cache.shard(self.key).lock().flights.remove(&self.key);
        let mut state = self.flight.state.lock();
        if matches!(*state, FlightState::Flying { .. }) {
            *state = FlightState::Lost;
            self.flight.ended.notify_all();
        }
    }
}

impl<K: Hash + Eq + Copy, V, E> Shard<K, V, E> {
    fn contains(&self, key: &K) -> bool {
        self.kept.contains(key) || self.flights.contains_key(key)
    }

    /// The newest value stays even if it alone is above the bound: someone is about to use it.
    fn keep(&mut self, key: K, value: Arc<V>, weight_bytes: u64, max_bytes: u64) {
        // It may have been retired, and have made room since.
        self.retired.retain(|retired| *retired != key);
        if let Some(old) = self.kept.put(key, Kept { value, weight_bytes }) {
            self.kept_bytes -= old.weight_bytes;
        }
        self.kept_bytes = self.kept_bytes.saturating_add(weight_bytes);
        while self.kept_bytes > max_bytes && self.kept.len() > 1 {
            let Some((_, oldest)) = self.kept.pop_lru() else { break };
            self.kept_bytes = self.kept_bytes.saturating_sub(oldest.weight_bytes);
        }
    }

    /// It goes once so many others came after it.
    fn retire(&mut self, key: K) {
        if self.retired.contains(&key) {
            return;
        }
        self.retired.push_back(key);
        if self.retired.len() <= MAX_RETIRED {
            return;
        }
        if let Some(kept) = self.retired.pop_front().and_then(|oldest| self.kept.pop(&oldest)) {
            self.kept_bytes -= kept.weight_bytes;
        }
    }
}

impl<K, V, E> std::fmt::Debug for Cache<K, V, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("shards", &self.shards.len()).field("shard_bytes", &self.shard_bytes).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    type Numbers = Cache<u64, u64, String>;

    #[test]
    fn many_threads_that_want_one_value_make_it_once() {
        let cache = Numbers::new(1000, 1);
        let made = AtomicUsize::new(0);

        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let value = cache.get_or_make(5, || {
                        made.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(20));
                        Ok((50, 1))
                    });
                    assert_eq!(*value.unwrap(), 50);
                });
            }
        });

        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_error_is_not_kept() {
        let cache = Numbers::new(1000, 1);

        assert_eq!(cache.get_or_make(1, || Err("no".to_owned())), Err("no".to_owned()));
        assert_eq!(cache.get_or_make(1, || Ok((10, 1))), Ok(Arc::new(10)));
    }

    #[test]
    fn a_turn_that_is_dropped_passes_to_one_who_waits() {
        let cache = Numbers::new(1000, 1);
        let Ok(Lookup::Turn(turn)) = cache.look_up(1) else { panic!("nothing was kept yet") };

        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| cache.get_or_make(1, || Ok((10, 1))));
            while !turn.is_awaited() {
                std::thread::yield_now();
            }
            drop(turn);
            assert_eq!(waiter.join().unwrap(), Ok(Arc::new(10)));
        });
    }

    #[test]
    fn the_least_recently_used_values_make_room() {
        let cache = Numbers::new(30, 10);
        for key in 0..3 {
            cache.get_or_make(key, || Ok((key, 10))).unwrap();
        }
        cache.get_or_make(0, || Err("it is kept".to_owned())).unwrap();

        cache.get_or_make(3, || Ok((3, 10))).unwrap();

        assert!(cache.get_or_make(0, || Err("it is kept".to_owned())).is_ok());
        assert!(cache.get_or_make(1, || Err("it is gone".to_owned())).is_err());
    }

    #[test]
    fn what_nobody_will_want_again_makes_room_after_a_few_others() {
        let cache = Numbers::new(1000, 1000);
        let keys = 0..=MAX_RETIRED as u64;
        for key in keys.clone() {
            cache.get_or_make(key, || Ok((key, 1))).unwrap();
        }

        for key in keys.clone() {
            assert!(cache.contains(0), "{key}");
            cache.retire(key);
            cache.retire(key);
        }

        assert_eq!(keys.clone().map(|key| cache.contains(key)).collect::<Vec<_>>(), [false, true, true, true]);
        assert!(keys.clone().all(|key| !cache.is_wanted(key)));

        // What was made again is as new.
        cache.get_or_make(0, || Ok((0, 1))).unwrap();
        assert!(cache.is_wanted(0));
        for key in 4..8 {
            cache.get_or_make(key, || Ok((key, 1))).unwrap();
            cache.retire(key);
        }
        assert!(cache.is_wanted(0));
    }
}
