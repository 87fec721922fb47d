//! Which hosts the list allows, by the URL that a client writes.

use super::{fetch, fetcher, policy, refusal};
use crate::{FetchError, MediaDomain};

/// Whether a URL's host passes the list. Behind the list waits a closed port.
fn passes(domains: &[&str], url: &str) -> bool {
    match fetch(&fetcher(policy(domains)), url) {
        Err(FetchError::DomainNotAllowed { .. }) => false,
        Err(FetchError::AddressNotAllowed { .. } | FetchError::Network { .. }) => true,
        other => panic!("{url}: {other:?}"),
    }
}

#[test]
fn entries_allow_what_they_say() {
    for (entry, host, expected) in [
        ("example.com", "example.com", true),
        ("example.com", "EXAMPLE.Com", true),
        ("EXAMPLE.com", "example.com", true),
        ("example.com", "example.com.", true),
        ("example.com.", "example.com", true),
        ("example.com", "ex%61mple.com", true),
        ("example.com", "ｅxample.com", true), // full width
        ("example.com", "www.example.com", false),
        ("example.com", "example.com.evil.test", false),
        ("example.com", "notexample.com", false),
        ("*.example.com", "www.example.com", true),
        ("*.example.com", "a.b.example.com", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", "notexample.com", false),
        ("*.example.com", "example.com.evil.test", false),
        ("bücher.example", "xn--bcher-kva.example", true),
        ("xn--bcher-kva.example", "BÜCHER.example", true),
        ("*", "anything.test", true),
        ("*", "127.0.0.1", true),
        ("127.0.0.1", "127.0.0.1", true),
        ("127.0.0.1", "2130706433", true),
        ("127.0.0.1", "127.0.0.2", false),
        ("*.0.0.1.test", "127.0.0.1", false),
        ("::1", "[0:0:0:0:0:0:0:1]", true),
        ("[::1]", "[::1]", true),
        ("127.0.0.1", "[::ffff:127.0.0.1]", false),
    ] {
        assert_eq!(passes(&[entry], &format!("http://{host}:1/a.png")), expected, "{entry} and {host}");
    }
    assert!(passes(&["a.test", "b.test"], "http://b.test:1/"));
}

#[test]
fn entries_without_a_host_are_refused() {
    for entry in [
        "",
        ".",
        "*.",
        "**",
        "*example.com",
        "www.*.com",
        "*.*.com",
        "https://example.com",
        "example.com/path",
        "example.com:443",
        "user@example.com",
        "a..b",
        "*.127.0.0.1",
        "exa mple.com",
    ] {
        let error = entry.parse::<MediaDomain>().expect_err(entry).to_string();
        assert!(error.contains(&format!("`{entry}`")), "{error}");
    }
}

#[test]
fn an_entry_is_shown_as_it_is_compared() {
    for (entry, shown) in [("*", "*"), ("*.Bücher.example.", "*.xn--bcher-kva.example"), ("::1", "[::1]")] {
        assert_eq!(entry.parse::<MediaDomain>().unwrap().to_string(), shown);
    }
}

#[test]
fn nothing_is_fetched_without_a_list() {
    let (code, message) = refusal(fetch(&fetcher(policy(&[])), "https://example.com/a.png"));
    assert_eq!(code, "media_domain_not_allowed");
    assert!(message.contains("data URL"), "{message}");
}

#[test]
fn the_message_names_the_host() {
    let (code, message) = refusal(fetch(&fetcher(policy(&["a.test"])), "https://B.test/secret?token=1"));
    assert_eq!(code, "media_domain_not_allowed");
    assert!(message.contains("`b.test`") && !message.contains("token"), "{message}");
}

/// URLs that parsers read differently are refused, even where every host is allowed.
#[test]
fn ambiguous_urls_are_refused() {
    for url in [
        "http:example.com",
        "http:/example.com",
        "http:///example.com",
        "http://",
        "http:\\\\example.com",
        "http://good.test\\@evil.test/",
        "http://good.test\\.evil.test/",
        "http://user:password@good.test/",
        "http://user@good.test/",
        "http://@good.test/",
        "http://good.test%40evil.test/",
        "http://good.test@127.0.0.1/",
        "http://good.test#@evil.test:1/ ",
        " http://good.test/",
        "http://good.test/\n",
        "ht\ttp://good.test/",
        "http://good\t.test/",
        "http://good.test/a\r\nx-header: 1",
        "http://good.test/a b",
        "http://good.test/\0",
        "http://good.test\u{a0}/",
        "http://good..test/",
        "http://.test/",
        "http://good.test../",
        "http://good.test:99999/",
        "http://good.test:port/",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://1.2.3.4.5/",
        "http://256.0.0.1/",
        "http://0x1ffffffff/",
        "ftp://good.test/a.png",
        "gopher://good.test/",
        "javascript:alert(1)",
        "good.test/a.png",
        "/etc/passwd",
        "iVBORw0KGgo",
        "",
        ":",
        "http",
    ] {
        let (code, _) = refusal(fetch(&fetcher(policy(&["*"])), url));
        assert_eq!(code, "invalid_image_url", "{url:?}");
    }
    let long = format!("http://good.test/{}", "a".repeat(9000));
    assert_eq!(refusal(fetch(&fetcher(policy(&["*"])), &long)).0, "invalid_image_url");
    let long_host = format!("http://{}.test/", "a.".repeat(200));
    assert_eq!(refusal(fetch(&fetcher(policy(&["*"])), &long_host)).0, "invalid_image_url");
}
