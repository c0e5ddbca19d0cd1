//! A loopback HTTP server that answers as a closure says, and remembers what it was asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a TLS client begins with: how a client tries whether https is spoken.
const TLS_HANDSHAKE: u8 = 22;

/// What was asked.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// What is answered.
#[derive(Debug)]
pub(crate) struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
    cut: Option<usize>,
    silent: bool,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: String::new(), body: Vec::new(), cut: None, silent: false }
    }

    pub(crate) fn ok(text: &str) -> Self {
        Self::bytes(text.as_bytes())
    }

    pub(crate) fn bytes(body: &[u8]) -> Self {
        Self { body: body.to_vec(), ..Self::status(200) }
    }

    /// The range that `request` asks for, or all.
    pub(crate) fn ranged(request: &Request, body: &[u8]) -> Self {
        let Some(range) = request.header("range").and_then(|range| range.strip_prefix("bytes=")) else {
            return Self::bytes(body);
        };
        let (start, last) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = last.parse().map_or(body.len(), |last: usize| body.len().min(last + 1));
        let answer = Self { status: 206, ..Self::bytes(&body[start..end]) };
        answer.header("Content-Range", &format!("bytes {start}-{}/{}", end - 1, body.len()))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub(crate) fn cut_after(self, bytes: usize) -> Self {
        Self { cut: Some(bytes), ..self }
    }

    /// Closes the connection in place of answering.
    pub(crate) fn without_answer(self) -> Self {
        Self { silent: true, ..self }
    }
}

/// Answers until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    paths: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stopped, paths) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (for_thread, asked, answer) = (stopped.clone(), paths.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if for_thread.load(Ordering::SeqCst) {
                    break;
                }
                let (asked, answer) = (asked.clone(), answer.clone());
                // A client that hangs up is no concern of the server.
                thread::spawn(move || drop(serve(&stream, &asked, &*answer)));
            }
        });
        Self { address, stopped, paths }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// What was asked for, in its order.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is to stop.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: &TcpStream, asked: &Mutex<Vec<String>>, answer: &dyn Fn(&Request) -> Answer) -> io::Result<()> {
    let mut first = [0];
    stream.peek(&mut first)?;
    if first[0] == TLS_HANDSHAKE {
        return Ok(());
    }
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 2 {}
    let mut words = head.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, head, body: Vec::new() };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_end(&mut request.body)?;
    asked.lock().unwrap().push(request.path.clone());
    let Answer { status, headers, body, cut, silent } = answer(&request);
    if silent {
        return Ok(());
    }
    let length = if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(stream, "HTTP/1.1 {status} As Told\r\nConnection: close\r\n{length}{headers}\r\n")?;
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
}
