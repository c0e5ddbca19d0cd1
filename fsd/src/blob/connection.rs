//! The way to an object's server: there from the start, or only once something is missing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{FIRST_BYTES, named};
use crate::cache::Named;
use crate::source::{Patience, Remote, SourceError, Traffic};

/// An attempt to reach the server that failed stands for those who ask so soon after it.
const FAILURE_TIME: Duration = Duration::from_secs(1);

/// Opens the object at its server.
type Open = dyn Fn() -> Result<Remote, SourceError> + Send + Sync;

/// One object, and its server once that was reached.
pub(super) struct Connection {
    open: Box<Open>,
    /// What was opened, which the server has to have still.
    named: Named,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Connected(Arc<Remote>),
    Apart(Option<(Instant, Arc<SourceError>)>),
}

impl std::fmt::Debug for Connection {
    // What opens it may hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("named", &self.named).finish_non_exhaustive()
    }
}

/// Opens the object at `url`, which is known from an earlier time. `None` if its server cannot be reached.
pub(super) fn open_known(url: &str, patience: Patience) -> Result<Option<Remote>, SourceError> {
    match Remote::open_with(url, FIRST_BYTES, patience.of_known()) {
        // From now on it is asked with all patience.
        Ok(remote) => Ok(Some(remote.with_patience(patience))),
        Err(error) if error.is_away() => {
            tracing::warn!("{error}; going on with what is cached of it");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Connection {
    pub(super) fn new(
        open: impl Fn() -> Result<Remote, SourceError> + Send + Sync + 'static,
        named: Named,
        remote: Option<Remote>,
    ) -> Self {
        let state = remote.map_or(State::Apart(None), |remote| State::Connected(Arc::new(remote)));
        Self { open: Box::new(open), named, state: Mutex::new(state) }
    }

    /// What was opened.
    pub(super) fn named(&self) -> &Named {
        &self.named
    }

    /// The object on its server, if that was asked before.
    pub(super) fn connected(&self) -> Option<Arc<Remote>> {
        match &*self.state.lock() {
            State::Connected(remote) => Some(remote.clone()),
            State::Apart(_) => None,
        }
    }

    /// The object on its server, which is asked now if it was not yet.
    ///
    /// # Errors
    /// If it cannot be reached, or has another version.
    pub(super) fn remote(&self) -> Result<Arc<Remote>, Arc<SourceError>> {
        // Held while the server is asked: the others that miss something wait for the same answer.
        let mut state = self.state.lock();
        match &*state {
            State::Connected(remote) => return Ok(remote.clone()),
            State::Apart(Some((when, error))) if when.elapsed() < FAILURE_TIME => return Err(error.clone()),
            State::Apart(_) => {}
        }
        let opened = (self.open)().and_then(|remote| {
            let (name, detail) = (remote.name().to_owned(), "it is another version than the cached one");
            let is_same = named(&remote).key == self.named.key;
            if is_same { Ok(Arc::new(remote)) } else { Err(SourceError::Changed { name, detail }) }
        });
        match opened {
            Ok(remote) => {
                *state = State::Connected(remote.clone());
                Ok(remote)
            }
            Err(error) => {
                let error = Arc::new(error);
                *state = State::Apart(Some((Instant::now(), error.clone())));
                Err(error)
            }
        }
    }

    /// What was asked of the server so far.
    pub(super) fn traffic(&self) -> Traffic {
        match &*self.state.lock() {
            State::Connected(remote) => remote.traffic(),
            State::Apart(_) => Traffic::default(),
        }
    }
}
