//! A web server on loopback for one directory, with range requests, that counts what it sends.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Serves until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    directory: PathBuf,
    ranges: bool,
    stopped: AtomicBool,
    sent_bytes: AtomicU64,
    requests: AtomicU64,
}

impl Server {
    /// Serves the files in `directory`.
    pub(crate) fn start(directory: &Path) -> Self {
        Self::start_with(directory, true)
    }

    /// The same, but range requests are answered with the whole file, as servers do that know none.
    pub(crate) fn start_without_ranges(directory: &Path) -> Self {
        Self::start_with(directory, false)
    }

    fn start_with(directory: &Path, ranges: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stopped, sent_bytes, requests) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let state = Arc::new(State { directory: directory.to_owned(), ranges, stopped, sent_bytes, requests });
        let served = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if served.stopped.load(Ordering::Relaxed) {
                    break;
                }
                let served = served.clone();
                // A client that hangs up ends its connection and nothing else.
                std::thread::spawn(move || served.converse(stream));
            }
        });
        Self { address, state }
    }

    /// The address of the file `name`.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// Bytes of files sent so far.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.state.sent_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees that it is to stop.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn converse(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        loop {
            let mut request = String::new();
            if reader.read_line(&mut request)? == 0 {
                return Ok(());
            }
            let mut range = None;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                if line.trim().is_empty() {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    range = Some(value.trim().to_owned());
                }
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            if self.stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            let name = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
            let name = name.split('?').next().unwrap_or_default().to_owned();
            self.answer(&mut stream, &name, range.filter(|_| self.ranges))?;
        }
    }

    fn answer(&self, stream: &mut TcpStream, name: &str, range: Option<String>) -> std::io::Result<()> {
        let Ok(mut file) = std::fs::File::open(self.directory.join(name)) else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        };
        let metadata = file.metadata()?;
        let length = metadata.len();
        let tag = format!("\"{}-{}-{length}\"", metadata.ino(), metadata.mtime_nsec());
        let (status, start, end) = match range.as_deref().and_then(|range| range.split_once('-')) {
            Some((start, end)) => {
                let start: u64 = start.parse().unwrap_or(0);
                ("206 Partial Content", start, end.parse().map_or(length, |end: u64| length.min(end + 1)))
            }
            None => ("200 OK", 0, length),
        };
        let mut head = format!("HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {}\r\n", end - start);
        if range.is_some() {
            head.push_str(&format!("Accept-Ranges: bytes\r\nContent-Range: bytes {start}-{}/{length}\r\n", end - 1));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        file.seek(SeekFrom::Start(start))?;
        let sent = std::io::copy(&mut file.take(end - start), stream)?;
        self.sent_bytes.fetch_add(sent, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn the_server_of_these_tests_sends_ranges_and_counts_them() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "0123456789").unwrap();
    let server = Server::start(directory.path());
    let fetch = |range| {
        let output =
            std::process::Command::new("curl").args(["-s", "-r", range, &server.url("file")]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    let answers = ["2-4", "8-", "9-20"].map(fetch);

    assert_eq!(answers, ["234", "89", "9"]);
    // What was sent is counted after the client has it.
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.sent_bytes() < 6 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(server.sent_bytes(), 6);
}
