//! GPT-2's alphabet, in which byte-level vocabularies are written: printable bytes stand for themselves, the others for
//! characters from U+0100 on (`bytes_to_unicode`, openai/gpt-2 `src/encoder.py`).

/// Bytes that don't stand for themselves, in order: their characters count up from U+0100.
const fn shifted() -> [u8; 68] {
    let mut bytes = [0_u8; 68];
    let (mut len, mut byte) = (0, 0_usize);
    while byte < 256 {
        if !is_printable(byte as u8) {
            bytes[len] = byte as u8;
            len += 1;
        }
        byte += 1;
    }
    bytes
}

const SHIFTED: [u8; 68] = shifted();

const fn chars() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut byte = 0_usize;
    while byte < 256 {
        table[byte] = byte as u8 as char;
        byte += 1;
    }
    let mut i = 0;
    while i < SHIFTED.len() {
        // U+0100 to U+0143 are all characters.
        if let Some(c) = char::from_u32(0x100 + i as u32) {
            table[SHIFTED[i] as usize] = c;
        }
        i += 1;
    }
    table
}

const CHARS: [char; 256] = chars();

const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character of a byte.
pub(crate) fn byte_to_char(byte: u8) -> char {
    CHARS[usize::from(byte)]
}

/// The byte of a character, if it belongs to the alphabet.
pub(crate) fn char_to_byte(c: char) -> Option<u8> {
    match u8::try_from(c) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => SHIFTED.get((c as usize).checked_sub(0x100)?).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::{byte_to_char, char_to_byte};

    #[test]
    fn the_alphabet_is_gpt2s() {
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        let known = [(b'A', 'A'), (b' ', 'Ġ'), (b'\n', 'Ċ'), (0x7F, 'ġ'), (0xAD, 'Ń'), (0xE9, 'é'), (0, 'Ā')];
        for (byte, c) in known {
            assert_eq!(byte_to_char(byte), c);
        }
        assert_eq!(char_to_byte(' '), None);
        assert_eq!(char_to_byte('中'), None);
    }
}
