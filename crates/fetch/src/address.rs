//! Which IP addresses are public.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 blocks that aren't public: address and prefix length. From IANA's registry of special-purpose addresses, with
/// multicast, and with the one public address behind which a cloud keeps a service for its machines.
const SPECIAL_V4: &[(Ipv4Addr, u32)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),        // this network
    (Ipv4Addr::new(10, 0, 0, 0), 8),       // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),    // carriers' translation
    (Ipv4Addr::new(127, 0, 0, 0), 8),      // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32), // Azure's platform service
    (Ipv4Addr::new(169, 254, 0, 0), 16),   // link-local; metadata services
    (Ipv4Addr::new(172, 16, 0, 0), 12),    // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),     // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24),     // documentation
    (Ipv4Addr::new(192, 88, 99, 0), 24),   // 6to4 relays
    (Ipv4Addr::new(192, 168, 0, 0), 16),   // private
    (Ipv4Addr::new(198, 18, 0, 0), 15),    // benchmarks
    (Ipv4Addr::new(198, 51, 100, 0), 24),  // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),   // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),      // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),      // reserved; broadcast
];

/// The IPv6 addresses that are given out to be reached from everywhere. All others are refused: loopback, unique local
/// (a cloud's `fd00:ec2::254` too), link-local, site-local, multicast, and what carries an IPv4 address.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Blocks within [`GLOBAL_V6`] that aren't public.
const SPECIAL_V6: &[(Ipv6Addr, u32)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments: Teredo, benchmarks, identifiers
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4, whose hosts are IPv4 hosts
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// Prefixes of 96 bits before an IPv4 address that is then the one reached: mapped (`::ffff:0:0/96`) and NAT64.
const CARRIERS_OF_V4: &[Ipv6Addr] =
    &[Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)];

/// Whether an address belongs to a host on the public internet.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|&block| is_within_v4(address, block)),
        IpAddr::V6(address) => match carried_v4(address) {
            Some(carried) => is_public(carried.into()),
            None => is_within_v6(address, GLOBAL_V6) && !SPECIAL_V6.iter().any(|&block| is_within_v6(address, block)),
        },
    }
}

fn carried_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let is_carrier = CARRIERS_OF_V4.iter().any(|&prefix| is_within_v6(address, (prefix, 96)));
    let [.., a, b, c, d] = address.octets();
    is_carrier.then(|| Ipv4Addr::new(a, b, c, d))
}

/// Prefix lengths are 1 to 32.
fn is_within_v4(address: Ipv4Addr, (block, prefix_len): (Ipv4Addr, u32)) -> bool {
    (address.to_bits() ^ block.to_bits()) >> (u32::BITS - prefix_len) == 0
}

/// Prefix lengths are 1 to 128.
fn is_within_v6(address: Ipv6Addr, (block, prefix_len): (Ipv6Addr, u32)) -> bool {
    (address.to_bits() ^ block.to_bits()) >> (u128::BITS - prefix_len) == 0
}
