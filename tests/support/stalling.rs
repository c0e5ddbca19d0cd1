//! A way to a server that gives out in the middle: nothing more comes through, and no connection ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// Bytes that are passed on at a time.
const BUFFER_BYTES: usize = 4096;

/// Ends with its last connection.
pub(crate) struct Stalling {
    address: SocketAddr,
    stalled: Receiver<()>,
}

/// What all connections share.
struct Way {
    /// The server.
    to: String,
    /// Bytes that come back until nothing does.
    left: AtomicUsize,
    stalled: Mutex<Sender<()>>,
}

impl Stalling {
    /// A way to `to`, `HOST:PORT`, that gives out after `bytes` of all answers together.
    pub(crate) fn start(to: &str, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, stalled) = channel();
        let way = Arc::new(Way { to: to.to_owned(), left: bytes.into(), stalled: sender.into() });
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(&way.to) else { return };
                let (near_too, far_too, way) = (near.try_clone().unwrap(), far.try_clone().unwrap(), way.clone());
                thread::spawn(move || pass(near_too, far_too, |bytes| bytes));
                thread::spawn(move || pass(far, near, |bytes| way.take(bytes)));
            }
        });
        Self { address, stalled }
    }

    /// `HOST:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// Waits until it has given out.
    pub(crate) fn wait(&self) {
        self.stalled.recv().unwrap();
    }
}

impl Way {
    /// How many of so many bytes still come through.
    fn take(&self, bytes: usize) -> usize {
        let before =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        let passed = before.unwrap().min(bytes);
        if passed < bytes {
            // Told each time; the first is waited for.
            let _ = self.stalled.lock().unwrap().send(());
        }
        passed
    }
}

/// Passes on what comes, as far as `take` lets it. After that the connection is held open, and nothing read.
fn pass(mut from: TcpStream, mut to: TcpStream, take: impl Fn(usize) -> usize) {
    let mut buffer = [0; BUFFER_BYTES];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 {
            break;
        }
        let passed = take(read);
        if to.write_all(&buffer[..passed]).is_err() {
            break;
        }
        if passed < read {
            // Until the other side hangs up.
            let _ = to.read(&mut [0]);
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
