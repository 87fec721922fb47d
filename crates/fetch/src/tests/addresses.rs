//! Which addresses count as public, however they are written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{fetch, policy, refusal};
use crate::Fetcher;
use crate::address::is_public;

/// The first and last address of each block that isn't public, and their neighbours where those are.
#[test]
fn blocks_end_where_they_should() {
    for (first, last, neighbours) in [
        ("0.0.0.0", "0.255.255.255", &["1.0.0.0"] as &[&str]),
        ("10.0.0.0", "10.255.255.255", &["9.255.255.255", "11.0.0.0"]),
        ("100.64.0.0", "100.127.255.255", &["100.63.255.255", "100.128.0.0"]),
        ("127.0.0.0", "127.255.255.255", &["126.255.255.255", "128.0.0.0"]),
        ("168.63.129.16", "168.63.129.16", &["168.63.129.15", "168.63.129.17"]),
        ("169.254.0.0", "169.254.255.255", &["169.253.255.255", "169.255.0.0"]),
        ("172.16.0.0", "172.31.255.255", &["172.15.255.255", "172.32.0.0"]),
        ("192.0.0.0", "192.0.0.255", &["191.255.255.255", "192.0.1.0"]),
        ("192.0.2.0", "192.0.2.255", &["192.0.1.255", "192.0.3.0"]),
        ("192.88.99.0", "192.88.99.255", &["192.88.98.255", "192.88.100.0"]),
        ("192.168.0.0", "192.168.255.255", &["192.167.255.255", "192.169.0.0"]),
        ("198.18.0.0", "198.19.255.255", &["198.17.255.255", "198.20.0.0"]),
        ("198.51.100.0", "198.51.100.255", &["198.51.99.255", "198.51.101.0"]),
        ("203.0.113.0", "203.0.113.255", &["203.0.112.255", "203.0.114.0"]),
        ("224.0.0.0", "255.255.255.255", &["223.255.255.255"]),
        ("::", "1fff:ffff::", &["2000::"]),
        ("2001::", "2001:1ff:ffff::", &["2000:ffff::", "2001:200::"]),
        ("2001:db8::", "2001:db8:ffff::", &["2001:db7:ffff::", "2001:db9::"]),
        ("2002::", "2002:ffff:ffff::", &["2001:ffff::", "2003::"]),
        ("3fff::", "3fff:fff:ffff::", &["3ffe:ffff::", "3fff:1000::"]),
        ("4000::", "ffff:ffff::", &[]),
        // Carried IPv4 addresses are judged by themselves.
        ("::ffff:10.0.0.0", "::ffff:10.255.255.255", &["::ffff:11.0.0.0"]),
        ("64:ff9b::7f00:1", "64:ff9b::127.255.255.255", &["64:ff9b::8.8.8.8"]),
        ("64:ff9b:1::8.8.8.8", "64:ff9b:1:ffff::8.8.8.8", &[]),
        ("::8.8.8.8", "::ffff:0:8.8.8.8", &[]),
        ("fc00::", "fd00:ec2::254", &[]),
        ("fe80::1", "feff::1", &[]),
    ] {
        for address in [first, last] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in neighbours {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }
}

proptest! {
    #[test]
    fn what_the_standard_library_calls_special_is_not_public(bits in any::<u32>()) {
        let address = Ipv4Addr::from(bits);
        let is_special = address.is_private()
            || address.is_loopback()
            || address.is_link_local()
            || address.is_broadcast()
            || address.is_documentation()
            || address.is_multicast()
            || address.is_unspecified();
        prop_assert!(!(is_special && is_public(address.into())));
        prop_assert_eq!(is_public(address.into()), is_public(address.to_ipv6_mapped().into()));
        prop_assert!(!is_public(address.to_ipv6_compatible().into()));
    }

    #[test]
    fn what_it_calls_special_in_version_6_is_not_public(bits in any::<u128>(), head in 0_u128..=0xffff) {
        let address = Ipv6Addr::from(bits >> 16 | head << 112);
        let is_special = address.is_loopback()
            || address.is_multicast()
            || address.is_unique_local()
            || address.is_unicast_link_local()
            || address.is_unspecified();
        prop_assert!(!(is_special && is_public(IpAddr::V6(address))));
    }
}

/// Every notation of an address that isn't public, with the system's own lookup and no notion of the test's.
#[test]
fn no_notation_gets_past() {
    let fetcher = Fetcher::new(policy(&["*"])).unwrap();
    for host in [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0x7F.1",
        "017700000001",
        "0177.0.0.01",
        "127.0.0.0x1",
        "%31%32%37.0.0.1",
        "１２７.０.０.１",
        "127。0。0。1",
        "①②⑦.⓪.⓪.①",
        "0",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "0251.0376.0251.0376",
        "100.100.100.200",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[0:0::0:1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b::a00:1]",
        "[2002:7f00:1::]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:7f00:1::]",
        "[fe80::1]",
        "[fec0::1]",
        "[fd00:ec2::254]",
        "[fc00::1]",
        "[ff02::1]",
        "[2001:db8::1]",
        "localhost",
        "LOCALHOST.",
    ] {
        for scheme in ["http", "https"] {
            let (code, _) = refusal(fetch(&fetcher, &format!("{scheme}://{host}:1/")));
            assert_eq!(code, "media_address_not_allowed", "{scheme}://{host}");
        }
    }
}
