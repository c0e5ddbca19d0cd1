//! A loopback HTTP server for one object that can be told to misbehave.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// One way to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answer with this status and no body.
    Status(u16),
    /// Answer 429, and ask for a pause of so many seconds.
    RetryAfter(u64),
    /// Answer 200 to a range request.
    NoRanges,
    /// Close after this many bytes of the body.
    Truncate(usize),
    /// Close without an answer.
    Close,
    /// Send the head and then nothing.
    Stall,
    /// Send the head and so many bytes, and then nothing.
    StallAfter(usize),
    /// Send a byte now and then.
    Trickle,
    /// Say that other bytes come.
    LieInRange,
    /// Answer 206 without saying which bytes come.
    NoContentRange,
    /// Say that the bytes are compressed.
    Encoded,
}

/// What the server serves and how.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) etag: Option<String>,
    pub(crate) last_modified: Option<String>,
    pub(crate) ignores_conditions: bool,
    pub(crate) claimed_len: Option<u64>,
    pub(crate) redirect: Option<String>,
    pub(crate) delay: Duration,
    pub(crate) fault: Option<Fault>,
    /// Only every so many requests does the fault strike.
    pub(crate) fault_every: usize,
    /// Requests until the fault passes.
    pub(crate) faults_left: usize,
    /// The bytes and tag to serve once the fault has struck.
    pub(crate) after_fault: Option<(Vec<u8>, String)>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    requests: AtomicUsize,
    last_head: Mutex<String>,
    stopped: AtomicBool,
}

/// Stops when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(bytes: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = State {
            bytes: Arc::new(bytes),
            etag: Some("\"first\"".to_owned()),
            last_modified: None,
            ignores_conditions: false,
            claimed_len: None,
            redirect: None,
            delay: Duration::ZERO,
            fault: None,
            fault_every: 1,
            faults_left: usize::MAX,
            after_fault: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            requests: AtomicUsize::new(0),
            last_head: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let address = listener.local_addr().unwrap();
        let for_thread = shared.clone();
        let listening = Some(thread::spawn(move || listen(&listener, &for_thread)));
        Self { address, shared, listening }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/dir/image.sif", self.address)
    }

    pub(crate) fn set<T>(&self, change: impl FnOnce(&mut State) -> T) {
        change(&mut self.shared.state.lock().unwrap());
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// The head of the latest request.
    pub(crate) fn last_head(&self) -> String {
        self.shared.last_head.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.listening.take().unwrap().join();
    }
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let shared = shared.clone();
        // A client that hangs up is no concern of the server.
        thread::spawn(move || drop(stream.and_then(|stream| answer(&stream, &shared))));
    }
}

fn answer(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(stream);
    while reader.read_line(&mut head)? > 2 {}
    let number = shared.requests.fetch_add(1, Ordering::SeqCst) + 1;
    *shared.last_head.lock().unwrap() = head.clone();
    let (state, fault) = {
        let mut state = shared.state.lock().unwrap();
        let fault = state.fault.filter(|_| state.faults_left > 0 && number.is_multiple_of(state.fault_every));
        state.faults_left = state.faults_left.saturating_sub(usize::from(fault.is_some()));
        let now = state.clone();
        if let Some((bytes, etag)) = state.after_fault.take_if(|_| fault.is_some()) {
            (state.bytes, state.etag) = (Arc::new(bytes), Some(etag));
        }
        (now, fault)
    };
    thread::sleep(state.delay);
    respond(stream, &state, fault, &head)
}

fn respond(mut stream: &TcpStream, state: &State, fault: Option<Fault>, head: &str) -> io::Result<()> {
    let short = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n");
    if let Some(target) = &state.redirect {
        return write!(stream, "{}Location: {target}\r\n\r\n", short("307 Elsewhere"));
    }
    match fault {
        Some(Fault::Status(status)) => return write!(stream, "{}\r\n", short(&format!("{status} No"))),
        Some(Fault::RetryAfter(seconds)) => {
            return write!(stream, "{}Retry-After: {seconds}\r\n\r\n", short("429 Slower"));
        }
        Some(Fault::Close) => return Ok(()),
        _ => {}
    }
    let asked_tag = header(head, "if-match");
    if !state.ignores_conditions && asked_tag.is_some() && asked_tag != state.etag.as_deref() {
        return write!(stream, "{}\r\n", short("412 Changed"));
    }
    let Some((start, end)) = range(head, state.bytes.len()) else {
        return write!(stream, "{}Content-Range: bytes */{}\r\n\r\n", short("416 No"), state.bytes.len());
    };
    stream.write_all(response_head(state, fault, start, end).as_bytes())?;
    send_body(stream, fault, &state.bytes[start..end])
}

fn response_head(state: &State, fault: Option<Fault>, start: usize, end: usize) -> String {
    let mut head = String::from(match fault {
        Some(Fault::NoRanges) => "HTTP/1.1 200 OK\r\n",
        _ => "HTTP/1.1 206 Part\r\n",
    });
    let total = state.claimed_len.unwrap_or(state.bytes.len() as u64);
    head += &format!("Connection: close\r\nContent-Length: {}\r\n", end - start);
    let shift = if fault == Some(Fault::LieInRange) { 1 } else { 0 };
    if !matches!(fault, Some(Fault::NoRanges | Fault::NoContentRange)) {
        head += &format!("Content-Range: bytes {}-{}/{total}\r\n", start + shift, end - 1 + shift);
    }
    if fault == Some(Fault::Encoded) {
        head += "Content-Encoding: gzip\r\n";
    }
    for (name, value) in [("ETag", &state.etag), ("Last-Modified", &state.last_modified)] {
        head += &value.as_ref().map(|value| format!("{name}: {value}\r\n")).unwrap_or_default();
    }
    head + "\r\n"
}

fn send_body(mut stream: &TcpStream, fault: Option<Fault>, body: &[u8]) -> io::Result<()> {
    match fault {
        Some(Fault::Truncate(len)) => stream.write_all(&body[..len.min(body.len())]),
        Some(Fault::Stall | Fault::StallAfter(_)) => {
            let first = if let Some(Fault::StallAfter(len)) = fault { len.min(body.len()) } else { 0 };
            stream.write_all(&body[..first])?;
            // Ends when the client hangs up.
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            io::copy(&mut stream, &mut io::sink()).map(drop)
        }
        Some(Fault::Trickle) => body.iter().try_for_each(|byte| {
            thread::sleep(Duration::from_millis(50));
            stream.write_all(&[*byte])
        }),
        _ => stream.write_all(body),
    }
}

/// The range asked for, cut to `len`; `None` if it begins after it.
fn range(head: &str, len: usize) -> Option<(usize, usize)> {
    let (start, last) = header(head, "range")?.strip_prefix("bytes=")?.split_once('-')?;
    let (start, last): (usize, usize) = (start.parse().ok()?, last.parse().ok()?);
    (start < len).then(|| (start, len.min(last + 1)))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}
