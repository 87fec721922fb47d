//! A data URL: what is taken is what was sent, and within the limit.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use foveal_fetch::parse_data_url;
use libfuzzer_sys::{Corpus, fuzz_target};

const MAX_BYTES: usize = 1 << 20;

fuzz_target!(|input: &[u8]| -> Corpus {
    let Ok(url) = std::str::from_utf8(input) else { return Corpus::Reject };
    let Ok(bytes) = parse_data_url(url, MAX_BYTES) else { return Corpus::Keep };
    assert!((1..=MAX_BYTES).contains(&bytes.len()));

    let plain = format!("data:image/png;base64,{}", STANDARD.encode(&bytes));
    assert_eq!(parse_data_url(&plain, MAX_BYTES).ok().as_deref(), Some(&bytes[..]));

    // No character was lost or added. The last one may differ: it has bits behind the last byte.
    let (_, payload) = url.split_once(',').expect("a data URL has a comma");
    let mut sent = characters(payload.as_bytes());
    let mut kept = STANDARD_NO_PAD.encode(&bytes).into_bytes();
    assert_eq!(sent.len(), kept.len());
    (sent.pop(), kept.pop());
    assert_eq!(sent, kept);
    Corpus::Keep
});

/// The base64 characters of a payload, percent-decoded, without padding.
fn characters(payload: &[u8]) -> Vec<u8> {
    let mut characters = Vec::new();
    let mut rest = payload;
    while let [first, tail @ ..] = rest {
        let (character, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("two digits");
                (u8::from_str_radix(digits, 16).expect("two hexadecimal digits"), tail)
            }
            _ => (*first, tail),
        };
        rest = tail;
        if character.is_ascii_alphanumeric() || b"+/".contains(&character) {
            characters.push(character);
        }
    }
    characters
}
