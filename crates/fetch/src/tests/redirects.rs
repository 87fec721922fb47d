//! Where redirects may lead.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::server::Server;
use super::{SERVER, fetch, fetcher, names_lead_to, policy, refusal};
use crate::remote::Network;
use crate::target::Target;
use crate::{FetchError, Fetcher, Policy};

const PICTURE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 7\r\n\r\npicture";

fn following(max_redirects: u32, domains: &[&str]) -> Policy {
    Policy { max_redirects, ..policy(domains) }
}

#[test]
fn none_is_followed_by_default() {
    let target = Server::saying(PICTURE);
    let server = Server::redirecting(302, target.url("a.test"));
    let (code, message) = refusal(fetch(&fetcher(policy(&["*"])), &server.url("a.test")));
    assert_eq!(code, "image_fetch_failed");
    assert!(message.contains("follows no redirects"), "{message}");
    assert_eq!(target.requests().len(), 0);
}

#[test]
fn each_kind_is_followed_when_allowed() {
    let target = Server::saying(PICTURE);
    for status in [301, 302, 303, 307, 308] {
        let server = Server::redirecting(status, target.url("b.test"));
        let fetcher = fetcher(following(1, &["a.test", "b.test"]));
        assert_eq!(fetch(&fetcher, &server.url("a.test")).unwrap(), b"picture", "{status}");
    }
    // Relative ones too: this host moves everything but its pictures' folder.
    let server = Server::start(|head, stream| {
        let moved = &b"HTTP/1.1 302 Moved\r\nlocation: ../pictures/a.png?b=1\r\ncontent-length: 0\r\n\r\n"[..];
        let answer = if head.starts_with("GET /pictures/a.png?b=1 ") { PICTURE } else { moved };
        std::io::Write::write_all(stream, answer).unwrap();
    });
    assert_eq!(fetch(&fetcher(following(1, &["a.test"])), &server.url("a.test")).unwrap(), b"picture");
}

#[test]
fn their_number_is_limited() {
    let target = Server::saying(PICTURE);
    let second = Server::redirecting(302, target.url("a.test"));
    let first = Server::redirecting(302, second.url("a.test"));
    assert_eq!(fetch(&fetcher(following(2, &["*"])), &first.url("a.test")).unwrap(), b"picture");
    assert!(refusal(fetch(&fetcher(following(1, &["*"])), &first.url("a.test"))).1.contains("more often"));

    let around = Server::redirecting(302, "/again".to_owned());
    assert!(refusal(fetch(&fetcher(following(5, &["*"])), &around.url("a.test"))).1.contains("more often"));
    assert_eq!(around.requests().len(), 6);
}

#[test]
fn each_is_checked_like_the_first_address() {
    let private = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let target = Server::start_at(private, |_, stream| std::io::Write::write_all(stream, PICTURE).unwrap());
    // `private.test` leads to an address that isn't public, all other names to the test's servers.
    let lookup = move |name: &str, port: u16| {
        Ok(vec![SocketAddr::new(if name == "private.test" { private } else { SERVER }, port)])
    };
    let network = Network { lookup: Arc::new(lookup), ..names_lead_to(SERVER) };
    for (domains, location) in [
        (&["*"] as &[_], target.url("private.test")),
        (&["*"], target.url("127.0.0.2")),
        (&["*"], target.url("2130706434")),
        (&["*"], target.url("[::ffff:127.0.0.2]")),
        (&["a.test"], target.url("private.test")),
        (&["a.test"], target.url("b.a.test")),
        (&["*"], format!("//127.0.0.2:{}/", target.port())),
        (&["*"], target.url("user@a.test")),
        (&["*"], target.url("a.test\\@127.0.0.2")),
        (&["*"], "file:///etc/passwd".to_owned()),
        (&["*"], "data:image/png;base64,AAAA".to_owned()),
        (&["*"], "ftp://a.test/".to_owned()),
        (&["*"], "http://".to_owned()),
        (&["*"], String::new()),
    ] {
        let server = Server::redirecting(302, location.clone());
        let fetcher = Fetcher::with_network(following(3, domains), network.clone()).unwrap();
        let result = fetch(&fetcher, &server.url("a.test"));
        assert!(matches!(result, Err(FetchError::Redirect { .. })), "{location}: {result:?}");
        let (_, message) = refusal(result);
        for told in ["private", "passwd", "b.a.test"] {
            assert!(!message.contains(told), "{message}");
        }
    }
    assert_eq!(target.requests().len(), 0);
    let silent = Server::saying(b"HTTP/1.1 302 Moved\r\ncontent-length: 0\r\n\r\n");
    assert!(refusal(fetch(&fetcher(following(3, &["*"])), &silent.url("a.test"))).1.contains("where to"));
}

#[test]
fn none_leads_from_https_to_http() {
    let target = Target::parse("https://a.test/b").unwrap();
    assert!(target.redirected("/c").is_ok());
    assert!(target.redirected("https://b.test/").is_ok());
    assert!(
        matches!(target.redirected("http://a.test/c"), Err(FetchError::Redirect { reason }) if reason.contains("https"))
    );
    assert!(Target::parse("http://a.test/b").unwrap().redirected("https://a.test/").is_ok());
}
