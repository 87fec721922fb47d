//! Pictures inside the URL.

use proptest::prelude::*;

use crate::parse_data_url;

/// Base64 bit by bit, as RFC 4648 describes it.
pub(super) fn encode(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let mut text: String = bits
        .chunks(6)
        .map(|chunk| (0..6).fold(0, |value, bit| value << 1 | chunk.get(bit).copied().unwrap_or(0)))
        .map(|value: u8| char::from(ALPHABET[usize::from(value)]))
        .collect();
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}

#[test]
fn forms_that_clients_write_are_read() {
    for url in [
        "data:image/png;base64,YWI+Pz8=",
        "DATA:IMAGE/PNG;BASE64,YWI+Pz8=",
        "data:;base64,YWI+Pz8=",
        "data:image/svg+xml;charset=utf-8;name=\"a\";base64,YWI+Pz8=",
        "data:application/octet-stream;base64,YWI+Pz8=",
        "data:image/png; base64,YWI+Pz8=",
        "data:image/png;base64, YWI+Pz8=",
        "data:image/png;base64,\nYWI+\r\nPz8=\n",
        "data:image/png;base64,YWI+\tPz8=",
        "data:image/png;base64,YWI+Pz8",
        "data:image/png;base64,YWI%2BPz8%3D",
        "data:image/png;base64,%59WI%2bPz8%3d",
        "data:image/png;base64,YWI+%0APz8=",
        "data:image/png;base64,YWI+Pz9=", // bits behind the last byte
    ] {
        assert_eq!(parse_data_url(url, 5).unwrap(), b"ab>??", "{url}");
    }
}

#[test]
fn all_others_are_refused_by_name() {
    for (url, code, told) in [
        ("http://a.test/", "invalid_image_url", "data:"),
        ("data", "invalid_image_url", "data:"),
        ("data:image/png;base64", "invalid_image_url", "comma"),
        ("data:image/png,abc", "invalid_image_url", "base64"),
        ("data:,abc", "invalid_image_url", "base64"),
        ("data:base64,AAAA", "invalid_image_url", "base64"),
        ("data:image/png;base64;x=1,AAAA", "invalid_image_url", "base64"),
        ("data:text/html;base64,AAAA", "invalid_image", "text/html"),
        ("data:video/mp4;base64,AAAA", "invalid_image", "video/mp4"),
        ("data:imagepng;base64,AAAA", "invalid_image", "can't be read"),
        ("data:image/png;base64,", "invalid_image_url", "no bytes"),
        ("data:image/png;base64,\n", "invalid_image_url", "no bytes"),
        ("data:image/png;base64,AA AA", "invalid_image_url", "space"),
        ("data:image/png;base64,AAAA ", "invalid_image_url", "space"),
        ("data:image/png;base64,AA-_", "invalid_image_url", "alphabet for URLs"),
        ("data:image/png;base64,AA*A", "invalid_image_url", "byte 2"),
        ("data:image/png;base64,AAAé", "invalid_image_url", "byte 3"),
        ("data:image/png;base64,AA%", "invalid_image_url", "byte 2"),
        ("data:image/png;base64,AA%4", "invalid_image_url", "byte 2"),
        ("data:image/png;base64,AA%zz", "invalid_image_url", "byte 2"),
        ("data:image/png;base64,A", "invalid_image_url", "cut off"),
        ("data:image/png;base64,AAAAA", "invalid_image_url", "cut off"),
        ("data:image/png;base64,AA==AA", "invalid_image_url", "cut off"),
        ("data:image/png;base64,====", "invalid_image_url", "cut off"),
        ("data:image/png;base64,AAAA#x", "invalid_image_url", "byte 4"),
    ] {
        let error = parse_data_url(url, 100).expect_err(url);
        assert_eq!(error.code(), code, "{url}");
        assert!(error.to_string().contains(told), "{url}: {error}");
    }
}

proptest! {
    #[test]
    fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
        let url = format!("data:image/png;base64,{}", encode(&bytes));
        prop_assert_eq!(parse_data_url(&url, bytes.len()).unwrap(), bytes.clone());
        prop_assert_eq!(parse_data_url(&url, bytes.len() - 1).unwrap_err().code(), "image_too_large");
    }

    /// Whatever is put between the characters that count, the bytes and the limit are the same.
    #[test]
    fn bytes_come_back_from_any_spelling(
        bytes in prop::collection::vec(any::<u8>(), 1..100),
        spelling in prop::collection::vec(0_u8..6, 140),
        is_padded in any::<bool>(),
    ) {
        let encoded = encode(&bytes);
        let kept = if is_padded { encoded.as_str() } else { encoded.trim_end_matches('=') };
        let mut url = "data:image/png;base64,".to_owned();
        for (char, spelling) in kept.chars().zip(spelling) {
            match spelling {
                0 => url.push_str(&format!("%{:02x}", u32::from(char))),
                1 => url.push_str(&format!("%{:02X}", u32::from(char))),
                2 => url.push_str(&format!("\r\n{char}")),
                3 => url.push_str(&format!("{char}\t")),
                _ => url.push(char),
            }
        }
        prop_assert_eq!(parse_data_url(&url, bytes.len()).unwrap(), bytes.clone());
        prop_assert_eq!(parse_data_url(&url, bytes.len() - 1).unwrap_err().code(), "image_too_large");
    }

    #[test]
    fn no_text_panics(payload in "\\PC*|[A-Za-z0-9+/=%\r\n ]*", max_bytes in 0_usize..20) {
        if let Ok(bytes) = parse_data_url(&format!("data:image/png;base64,{payload}"), max_bytes) {
            prop_assert!((1..=max_bytes).contains(&bytes.len()));
        }
    }
}
