//! Fetches that would wait for ever, and how they end.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use super::server::Server;
use super::{NEVER, SERVER, fetch, fetcher, names_lead_to, policy, refusal};
use crate::remote::Network;
use crate::{Fetcher, Policy};

const PICTURE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\npicture";

/// A policy whose fetches end soon.
fn impatient() -> Policy {
    Policy { timeout: Duration::from_millis(300), ..policy(&["*"]) }
}

#[test]
fn a_host_that_sends_a_byte_at_a_time_gains_nothing() {
    for before in ["HTTP/1.1 200 ", "HTTP/1.1 200 OK\r\nx-slow: ", "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"]
    {
        let server = Server::start(move |_, stream| {
            stream.write_all(before.as_bytes()).unwrap();
            while stream.write_all(b"1").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let (code, message) = refusal(fetch(&fetcher(impatient()), &server.url("a.test")));
        assert_eq!(code, "image_fetch_timeout", "{before}");
        assert!(message.contains("300 ms"), "{message}");
    }
}

#[test]
fn a_host_that_says_nothing_is_left() {
    let server = Server::start(|_, _| thread::sleep(NEVER));
    for scheme in ["http", "https"] {
        let url = server.url("a.test").replace("http", scheme);
        assert_eq!(refusal(fetch(&fetcher(impatient()), &url)).0, "image_fetch_timeout");
    }
}

/// The time for a connection spans its TLS, and is part of the time for all.
#[test]
fn a_connection_has_a_time_of_its_own() {
    let server = Server::start(|_, _| thread::sleep(NEVER));
    let policy = Policy { connect_timeout: Duration::from_millis(200), ..policy(&["*"]) };
    let (code, message) = refusal(fetch(&fetcher(policy), &server.url("a.test").replace("http", "https")));
    assert_eq!(code, "image_fetch_failed");
    assert!(message.contains("in time"), "{message}");
}

/// The deadline is one for all redirects together.
#[test]
fn redirects_do_not_gain_time() {
    let server = Server::start(|_, stream| {
        thread::sleep(Duration::from_millis(30));
        // The fetch may have ended.
        let _ = stream.write_all(b"HTTP/1.1 302 Moved\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n");
    });
    let policy = Policy { max_redirects: u32::MAX, ..impatient() };
    assert_eq!(refusal(fetch(&fetcher(policy), &server.url("a.test"))).0, "image_fetch_timeout");
}

#[test]
fn a_cancelled_fetch_ends_and_closes_its_connection() {
    for before in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nsome"] {
        let is_waiting = Arc::new(AtomicBool::new(false));
        let (closed, was_closed) = mpsc::channel();
        let waiting = Arc::clone(&is_waiting);
        let closed = Mutex::new(closed);
        let server = Server::start(move |_, stream| {
            stream.write_all(before.as_bytes()).unwrap();
            waiting.store(true, Ordering::Release);
            // Returns once the other end has closed.
            let _ = stream.read(&mut [0]);
            closed.lock().unwrap().send(()).unwrap();
        });
        let is_cancelled = || is_waiting.load(Ordering::Acquire);
        let result = fetcher(policy(&["*"])).fetch(&server.url("a.test"), &is_cancelled);
        assert_eq!(refusal(result).0, "cancelled", "{before}");
        was_closed.recv_timeout(NEVER).unwrap();
    }
}

#[test]
fn a_fetch_that_nobody_wants_does_not_start() {
    let server = Server::saying(PICTURE);
    for url in [server.url("a.test"), "data:;base64,AAAA".to_owned(), "file:///a.png".to_owned()] {
        assert_eq!(refusal(fetcher(policy(&["*"])).fetch(&url, &|| true)).0, "cancelled");
    }
    assert_eq!(server.requests().len(), 0);
}

/// A lookup can't be told to stop. Its fetch ends all the same, and it counts on until the system answers.
#[test]
fn an_unanswered_lookup_holds_its_place_only() {
    let (answer, answers) = mpsc::channel::<()>();
    let answers = Mutex::new(answers);
    let is_asked = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_asked);
    let lookup = move |_: &str, port: u16| {
        asked.store(true, Ordering::Release);
        answers.lock().unwrap().recv().unwrap();
        Ok(vec![SocketAddr::new(SERVER, port)])
    };
    let network = Network { lookup: Arc::new(lookup), ..names_lead_to(SERVER) };
    let policy = Policy { max_concurrent: 1, ..policy(&["*"]) };
    let server = Server::saying(PICTURE);
    let fetcher = Fetcher::with_network(policy, network).unwrap();
    let url = server.url("a.test");

    assert_eq!(refusal(fetcher.fetch(&url, &|| is_asked.load(Ordering::Acquire))).0, "cancelled");
    assert_eq!(refusal(fetch(&fetcher, &url)).0, "too_many_fetches");
    assert_eq!(refusal(fetch(&fetcher.clone(), &url)).0, "too_many_fetches");
    for _ in 0..2 {
        answer.send(()).unwrap();
    }
    // The place is free once the lookup's thread has seen its answer.
    let picture = loop {
        match fetch(&fetcher, &url) {
            Err(error) if error.code() == "too_many_fetches" => thread::yield_now(),
            result => break result.unwrap(),
        }
    };
    assert_eq!(picture, b"picture");
    assert_eq!(server.requests().len(), 1, "the fetch that was given up connects to nothing");
}

#[test]
fn a_lookup_takes_no_more_than_the_time_for_all() {
    let (_answer, answers) = mpsc::channel::<()>();
    let answers = Mutex::new(answers);
    let lookup = move |_: &str, _: u16| {
        let _ = answers.lock().unwrap().recv();
        Ok(Vec::new())
    };
    let network = Network { lookup: Arc::new(lookup), ..names_lead_to(SERVER) };
    let fetcher = Fetcher::with_network(impatient(), network).unwrap();
    assert_eq!(refusal(fetch(&fetcher, "http://a.test/")).0, "image_fetch_timeout");
}

#[test]
fn a_panic_of_the_thread_is_an_error_and_frees_its_place() {
    let is_first = AtomicBool::new(true);
    let lookup = move |_: &str, port: u16| {
        assert!(!is_first.swap(false, Ordering::Relaxed), "this panic belongs to the test");
        Ok(vec![SocketAddr::new(SERVER, port)])
    };
    let network = Network { lookup: Arc::new(lookup), ..names_lead_to(SERVER) };
    let policy = Policy { max_concurrent: 1, ..policy(&["*"]) };
    let fetcher = Fetcher::with_network(policy, network).unwrap();
    let server = Server::saying(PICTURE);
    assert_eq!(refusal(fetch(&fetcher, &server.url("a.test"))).0, "image_fetch_failed");
    assert_eq!(fetch(&fetcher, &server.url("a.test")).unwrap(), b"picture");
}
