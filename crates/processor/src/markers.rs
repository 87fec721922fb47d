//! The character that marks a request's strings: one that neither they nor the template hold.

use crate::error::ProcessorError;

/// Characters that may mark a string: the supplementary private-use planes, which no tokenizer's rules mention.
const MARKERS: [std::ops::RangeInclusive<char>; 2] = ['\u{F0000}'..='\u{FFFFD}', '\u{100000}'..='\u{10FFFD}'];
/// The first code point of the two planes.
const FIRST: u32 = 0xF_0000;
/// The code points of the two planes, 64 to a word.
const NUM_WORDS: usize = (0x11_0000 - FIRST as usize) / 64;

/// Which markers are in use: one bit each, so that every string is read once, whatever it holds.
#[derive(Debug)]
pub(crate) struct UsedMarkers {
    bits: Box<[u64]>,
}

impl UsedMarkers {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { bits: vec![0; NUM_WORDS].into() }
    }

    /// The word and the bit of a character of the two planes.
    fn place(c: char) -> Option<(usize, u64)> {
        let at = u32::from(c).checked_sub(FIRST)?;
        Some((at as usize / 64, 1 << (at % 64)))
    }

    /// Notes every marker that `text` holds.
    pub(crate) fn note(&mut self, text: &str) {
        for (word, bit) in text.chars().filter_map(Self::place) {
            if let Some(bits) = self.bits.get_mut(word) {
                *bits |= bit;
            }
        }
    }

    /// The first marker that no noted text holds.
    ///
    /// # Errors
    /// [`ProcessorError::NoMarkerLeft`].
    pub(crate) fn first_free(&self) -> Result<char, ProcessorError> {
        let used = |c: char| {
            Self::place(c).and_then(|(word, bit)| self.bits.get(word).map(|bits| bits & bit != 0)).unwrap_or(true)
        };
        MARKERS.into_iter().flatten().find(|&c| !used(c)).ok_or(ProcessorError::NoMarkerLeft)
    }
}

#[cfg(test)]
mod tests {
    use super::{MARKERS, UsedMarkers};
    use crate::error::ProcessorError;

    fn first_free(texts: &[&str]) -> Result<char, ProcessorError> {
        let mut used = UsedMarkers::new();
        texts.iter().for_each(|text| used.note(text));
        used.first_free()
    }

    /// As much text as a request may have: a search of the text for each candidate would take minutes here.
    #[test]
    fn a_long_text_that_holds_every_marker_is_refused() {
        let all: String = MARKERS.into_iter().flatten().collect();
        let text = format!("{}{all}", "x".repeat((16 << 20) - all.len()));
        assert_eq!(first_free(&[&text]), Err(ProcessorError::NoMarkerLeft));
    }

    #[test]
    fn the_only_free_marker_is_found_whichever_it_is() {
        for free in ['\u{F0000}', '\u{F003F}', '\u{F0040}', '\u{FFFFD}', '\u{100000}', '\u{10FFFD}'] {
            let rest: String = MARKERS.into_iter().flatten().filter(|&c| c != free).collect();
            let (left, right) = rest.split_at(rest.len() / 8 * 4);
            assert_eq!(first_free(&[left, "other text: \u{E000}\u{EFFFF}", right]), Ok(free));
        }
        assert_eq!(first_free(&[]), Ok('\u{F0000}'));
    }
}
