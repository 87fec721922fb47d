//! A small HTTP server that says exactly what a test wants.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::SERVER;

/// Listens until the process ends.
pub(super) struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers each connection's first request by `answer`, which is given the request's head.
    pub(super) fn start(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_at(SERVER, answer)
    }

    pub(super) fn start_at(address: IpAddr, answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&requests));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, answer, seen) = (stream.unwrap(), Arc::clone(&answer), Arc::clone(&seen));
                thread::spawn(move || {
                    let head = read_head(&mut stream);
                    seen.lock().unwrap().push(head.clone());
                    answer(&head, &mut stream);
                });
            }
        });
        Self { port, requests }
    }

    /// Answers every request with the same bytes.
    pub(super) fn saying(answer: &'static [u8]) -> Self {
        Self::start(move |_, stream| stream.write_all(answer).unwrap())
    }

    /// Answers with a redirect to `location`.
    pub(super) fn redirecting(status: u16, location: String) -> Self {
        Self::start(move |_, stream| {
            let head = format!("HTTP/1.1 {status} Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
        })
    }

    /// `http://host:port/path`.
    pub(super) fn url(&self, host: &str) -> String {
        format!("http://{host}:{}/picture.png", self.port)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The heads of the requests so far, one for each connection.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Reads up to the empty line, or to what ends the connection.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|num_read| num_read == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}
