//! A server of HTTP/1.1, as small as tests need it: a thread for each connection, and a memory for what was asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What somebody asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// First byte, and last if it is named.
    pub(crate) range: Option<(usize, Option<usize>)>,
}

/// What it is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection is lost after so many bytes of the body.
    pub(crate) cut_after: Option<usize>,
}

impl Reply {
    pub(crate) fn ok(body: Vec<u8>) -> Self {
        Self { status: 200, headers: Vec::new(), body, cut_after: None }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::ok(Vec::new()) }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; it ends when it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    handler: Box<Handler>,
    seen: Mutex<Vec<Request>>,
    is_over: AtomicBool,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared =
            Arc::new(Shared { handler: Box::new(handler), seen: Mutex::default(), is_over: AtomicBool::new(false) });
        let for_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if for_thread.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&for_thread);
                std::thread::spawn(move || serve(&shared, &stream.unwrap()));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked so far, first to last.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Who asked for bytes of a path, first to last.
    pub(crate) fn gets(&self, path: &str) -> Vec<Request> {
        self.seen().into_iter().filter(|request| request.method == "GET" && request.path.contains(path)).collect()
    }

    pub(crate) fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(shared: &Shared, stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        shared.seen.lock().unwrap().push(request.clone());
        let reply = (shared.handler)(&request);
        let is_lost = reply.cut_after.is_some();
        if write(stream, &request, reply).is_err() || is_lost {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut lines = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request { method: words.next()?, path: words.next()?, authorization: None, range: None };
    for line in lines {
        let (name, value) = line.split_once(':').expect("a header");
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            "range" => {
                let (start, end) = value.trim().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                request.range = Some((start.parse().unwrap(), end.parse().ok()));
            }
            _ => {}
        }
    }
    Some(request)
}

fn write(mut stream: &TcpStream, request: &Request, reply: Reply) -> std::io::Result<()> {
    let Reply { status, headers, body, cut_after } = reply;
    let mut head = format!("HTTP/1.1 {status} .\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&body[..cut_after.unwrap_or(body.len())])?;
    }
    stream.flush()
}
