//! Bytes, whoever counts them.

use std::fs;
use std::io::Write;

use super::server::Server;
use super::{fetch, fetcher, file_url, policy, refusal};
use crate::{Fetcher, Policy, PolicyError};
use std::time::Duration;

/// A policy that takes five bytes.
fn five_bytes() -> Policy {
    Policy { max_bytes: 5, ..policy(&["*"]) }
}

#[test]
fn a_claimed_length_is_believed_only_to_refuse() {
    // Nothing follows: who reads on would wait.
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n").unwrap();
        std::thread::sleep(super::NEVER);
    });
    let (code, message) = refusal(fetch(&fetcher(five_bytes()), &server.url("a.test")));
    assert_eq!(code, "image_too_large");
    assert!(message.contains("5 bytes"), "{message}");
    let huge = Server::saying(b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n");
    assert_eq!(refusal(fetch(&fetcher(five_bytes()), &huge.url("a.test"))).0, "image_too_large");
}

#[test]
fn bytes_without_a_length_are_counted() {
    for (answer, fits) in [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12345"[..], true),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n12345", true),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n123456", false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n123\r\n2\r\n45\r\n0\r\n\r\n", true),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n123\r\n3\r\n456\r\n0\r\n\r\n", false),
    ] {
        let server = Server::saying(answer);
        let result = fetch(&fetcher(five_bytes()), &server.url("a.test"));
        match fits {
            true => assert_eq!(result.unwrap(), b"12345"),
            false => assert_eq!(refusal(result).0, "image_too_large"),
        }
    }
    // Without an end the host would send for ever.
    let endless = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while stream.write_all(&[7; 1 << 16]).is_ok() {}
    });
    let policy = Policy { max_bytes: 1 << 20, ..policy(&["*"]) };
    assert_eq!(refusal(fetch(&fetcher(policy), &endless.url("a.test"))).0, "image_too_large");
}

#[test]
fn a_large_picture_comes_whole() {
    let picture: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
    let sent = picture.clone();
    let server = Server::start(move |_, stream| {
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", sent.len()).as_bytes()).unwrap();
        stream.write_all(&sent).unwrap();
    });
    assert!(fetch(&fetcher(policy(&["*"])), &server.url("a.test")).unwrap() == picture);
}

#[test]
fn endless_heads_are_refused() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        while stream.write_all(b"x-header: and another one\r\n").is_ok() {}
    });
    assert_eq!(refusal(fetch(&fetcher(policy(&["*"])), &server.url("a.test"))).0, "image_fetch_failed");
}

#[test]
fn the_limit_holds_for_data_urls_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = Some(folder.path().to_owned());
    let fetcher = fetcher(Policy { allowed_local_media_path: root, ..five_bytes() });
    for (len_bytes, fits) in [(1, true), (4, true), (5, true), (6, false), (7, false), (100, false)] {
        let path = folder.path().join(format!("{len_bytes}.png"));
        fs::write(&path, vec![0; len_bytes]).unwrap();
        let encoded = format!("data:;base64,{}", super::data_urls::encode(&vec![0; len_bytes]));
        for url in [file_url(&path), encoded] {
            match (fits, fetch(&fetcher, &url)) {
                (true, result) => assert_eq!(result.unwrap(), vec![0; len_bytes], "{url}"),
                (false, result) => assert_eq!(refusal(result).0, "image_too_large", "{url}"),
            }
        }
    }
}

#[test]
fn policies_that_no_fetch_could_hold_to_are_refused() {
    let default = Policy::default();
    for policy in [
        Policy { max_bytes: 0, ..default.clone() },
        Policy { max_concurrent: 0, ..default.clone() },
        Policy { timeout: Duration::ZERO, ..default.clone() },
        Policy { timeout: Duration::MAX, ..default.clone() },
        Policy { connect_timeout: Duration::ZERO, ..default.clone() },
    ] {
        assert!(matches!(Fetcher::new(policy), Err(PolicyError::OutOfRange { .. })));
    }
    let missing = Policy { allowed_local_media_path: Some("/no/such/folder".into()), ..default };
    assert!(matches!(Fetcher::new(missing), Err(PolicyError::LocalPath { .. })));
}
