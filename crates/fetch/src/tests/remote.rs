//! Hosts, addresses and answers.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, io, thread};

use foveal_types::Error;

use super::server::Server;
use super::{SERVER, fetch, fetcher, names_lead_to, only_server_is_public, policy, refusal};
use crate::remote::Network;
use crate::{FetchError, Fetcher, address};

const PICTURE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 7\r\n\r\npicture";
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A network in which each lookup gives the next addresses, the last ones for good.
fn lookups(answers: &'static [&'static [IpAddr]]) -> (Network, Arc<AtomicUsize>) {
    let num_lookups = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&num_lookups);
    let lookup = move |_: &str, port: u16| {
        let addresses = answers[counter.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
        Ok(addresses.iter().map(|address| SocketAddr::new(*address, port)).collect())
    };
    (Network { lookup: Arc::new(lookup), is_public: only_server_is_public }, num_lookups)
}

#[test]
fn a_picture_comes_whole_and_the_request_says_little() {
    let server = Server::saying(PICTURE);
    let fetcher = fetcher(policy(&["pictures.example"]));
    let url = format!("{}?a=|^{{}}\"#fragment", server.url("Pictures.Example."));
    assert_eq!(fetch(&fetcher, &url).unwrap(), b"picture");
    assert_eq!(fetch(&fetcher.clone(), &server.url("pictures.example")).unwrap(), b"picture");

    let requests = server.requests();
    assert_eq!(requests.len(), 2, "no connection is used twice");
    let head = requests[0].to_ascii_lowercase();
    assert!(head.starts_with("get /picture.png?a=|^{}%22 http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: pictures.example:{}\r\n", server.port())), "{head}");
    assert!(head.contains("\r\naccept-encoding: identity\r\n"), "{head}");
    for absent in ["cookie", "authorization", "referer", "fragment"] {
        assert!(!head.contains(absent), "{head}");
    }
}

#[test]
fn media_types_of_pictures_are_taken() {
    for (header, found) in [
        ("", None),
        ("content-type: image/webp\r\n", None),
        ("content-type: IMAGE/JPEG; quality=1\r\n", None),
        ("content-type: application/octet-stream\r\n", None),
        ("content-type: text/html; charset=utf-8\r\n", Some("text/html")),
        ("content-type: application/json\r\n", Some("application/json")),
        ("content-type: image\r\n", Some("can't be read")),
        ("content-type: image/\r\n", Some("can't be read")),
        ("content-type: <b>10.0.0.1</b>\r\n", Some("can't be read")),
        ("content-type: image/png\r\ncontent-encoding: gzip\r\n", Some("compressed")),
        ("content-type: image/png\r\ncontent-encoding: identity\r\n", None),
    ] {
        let server = Server::start(move |_, stream| {
            let answer = format!("HTTP/1.1 200 OK\r\n{header}content-length: 7\r\n\r\npicture");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let result = fetch(&fetcher(policy(&["*"])), &server.url("a.test"));
        match found {
            None => assert_eq!(result.unwrap(), b"picture", "{header}"),
            Some(found) => {
                let (code, message) = refusal(result);
                assert_eq!(code, "invalid_image", "{header}");
                assert!(message.contains(found), "{message}");
            }
        }
    }
}

#[test]
fn other_statuses_are_named() {
    for status in [201, 204, 206, 304, 400, 401, 403, 404, 418, 500, 503] {
        let server = Server::start(move |_, stream| {
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-type: image/png\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let (code, message) = refusal(fetch(&fetcher(policy(&["*"])), &server.url("a.test")));
        assert_eq!(code, "image_fetch_failed");
        assert!(message.contains(&status.to_string()), "{message}");
    }
}

#[test]
fn broken_answers_are_errors() {
    for answer in [
        &b""[..],
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 70\r\n\r\npicture",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\npict",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\npicture",
    ] {
        let server = Server::saying(answer);
        let (code, _) = refusal(fetch(&fetcher(policy(&["*"])), &server.url("a.test")));
        assert_eq!(code, "image_fetch_failed", "{}", String::from_utf8_lossy(answer));
    }
    let empty = Server::saying(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(refusal(fetch(&fetcher(policy(&["*"])), &empty.url("a.test"))).0, "invalid_image");
}

#[test]
fn names_with_addresses_that_are_not_public_are_refused() {
    let server = Server::saying(PICTURE);
    let url = server.url("pictures.example");
    // The real notion of public addresses.
    let network = Network { is_public: address::is_public, ..names_lead_to(SERVER) };
    let fetcher = Fetcher::with_network(policy(&["pictures.example"]), network.clone()).unwrap();
    let (code, message) = refusal(fetch(&fetcher, &url));
    assert_eq!(code, "media_address_not_allowed");
    assert!(message.contains("`pictures.example`"), "{message}");

    // One bad address among good ones, wherever it stands.
    const MIXED: [&[&[IpAddr]]; 2] = [&[&[PRIVATE, SERVER]], &[&[SERVER, PRIVATE]]];
    for answers in MIXED {
        let fetcher = Fetcher::with_network(policy(&["*"]), lookups(answers).0).unwrap();
        assert_eq!(refusal(fetch(&fetcher, &url)).0, "media_address_not_allowed");
    }
    assert_eq!(server.requests().len(), 0);

    // The operator may say that such addresses are fine; the list of hosts holds all the same.
    let policy = crate::Policy { allow_private_addresses: true, ..policy(&["pictures.example"]) };
    let fetcher = Fetcher::with_network(policy, network).unwrap();
    assert_eq!(fetch(&fetcher, &url).unwrap(), b"picture");
    assert_eq!(refusal(fetch(&fetcher, &server.url("127.0.0.1"))).0, "media_domain_not_allowed");
}

/// A name server that gives a good address first and a bad one from then on gains nothing: there is one lookup.
#[test]
fn a_name_is_looked_up_once() {
    let server = Server::saying(PICTURE);
    let (network, num_lookups) = lookups(&[&[SERVER], &[PRIVATE]]);
    let fetcher = Fetcher::with_network(policy(&["*"]), network).unwrap();
    assert_eq!(fetch(&fetcher, &server.url("pictures.example")).unwrap(), b"picture");
    assert_eq!(num_lookups.load(Ordering::Relaxed), 1);
    assert_eq!(refusal(fetch(&fetcher, &server.url("pictures.example"))).0, "media_address_not_allowed");
    // Literal addresses are checked without any.
    assert_eq!(fetch(&fetcher, &server.url("127.0.0.1")).unwrap(), b"picture");
    assert_eq!(refusal(fetch(&fetcher, &server.url("127.0.0.2"))).0, "media_address_not_allowed");
    assert_eq!(num_lookups.load(Ordering::Relaxed), 2);
}

#[test]
fn hosts_that_are_not_there_are_errors_with_a_source() {
    let nowhere =
        Network { lookup: Arc::new(|_, _| Err(io::Error::other("10.0.0.53 timed out"))), ..names_lead_to(SERVER) };
    let empty = Network { lookup: Arc::new(|_, _| Ok(Vec::new())), ..names_lead_to(SERVER) };
    for network in [nowhere, empty, names_lead_to(SERVER)] {
        let result = fetch(&Fetcher::with_network(policy(&["*"]), network).unwrap(), "http://a.test:1/");
        let Err(error @ FetchError::Network { .. }) = &result else { panic!("{result:?}") };
        assert!(std::error::Error::source(error).is_some());
        assert_eq!(refusal(result).0, "image_fetch_failed");
    }
}

/// Without a certificate that a known authority vouches for, no more can be seen than that TLS is insisted on.
#[test]
fn https_starts_tls_and_takes_nothing_else() {
    let listener = TcpListener::bind((SERVER, 0)).unwrap();
    let url = format!("https://a.test:{}/", listener.local_addr().unwrap().port());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut start = [0; 3];
        stream.read_exact(&mut start).unwrap();
        stream.write_all(PICTURE).unwrap();
        start
    });
    let (code, message) = refusal(fetch(&fetcher(policy(&["*"])), &url));
    assert_eq!(code, "image_fetch_failed");
    assert!(message.contains("secure"), "{message}");
    assert_eq!(server.join().unwrap()[..2], [22, 3], "a handshake record, RFC 8446");
}

/// Runs itself once more under an environment that names a proxy.
#[test]
fn a_proxy_of_the_environment_is_not_used() {
    const MARK: &str = "FOVEAL_FETCH_TEST_UNDER_PROXY";
    if env::var_os(MARK).is_some() {
        let server = Server::saying(PICTURE);
        assert_eq!(fetch(&fetcher(policy(&["*"])), &server.url("a.test")).unwrap(), b"picture");
        return;
    }
    let proxy = Server::saying(b"HTTP/1.1 502 Proxy\r\ncontent-length: 0\r\n\r\n");
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "tests::remote::a_proxy_of_the_environment_is_not_used"]).env(MARK, "1");
    for name in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "http_proxy", "https_proxy"] {
        command.env(name, format!("http://127.0.0.1:{}", proxy.port()));
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(proxy.requests().len(), 0);
}

#[test]
fn errors_keep_their_class() {
    let of = |error: FetchError| Error::from(error);
    assert!(matches!(of(FetchError::Busy { max_concurrent: 1 }), Error::Exhausted(_)));
    let Error::Request(error) = of(FetchError::TooLarge { max_bytes: 5 }) else { panic!() };
    assert_eq!(error.code, "image_too_large");
    assert!(error.message.contains('5'));
}
