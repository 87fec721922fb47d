//! The Qwen tokenizers' splitting into words, by hand for ASCII and by the same regular expression for all else.
//!
//! The pattern's matches depend on nothing before them, so the text is walked match by match: a match that ASCII alone
//! decides is found here, any other by the regular-expression engine that the `tokenizers` crate uses, started at the same
//! place. Equality with the crate is a property test.

use onig::{Regex, SearchOptions};
use serde_json::{Value, json};

/// The pattern of Qwen2, Qwen2.5 and Qwen3 tokenizers.
const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The kinds of ASCII characters that the pattern tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Digit,
    LineBreak,
    Space,
    Other,
    NotAscii,
}

const fn kind_of(byte: u8) -> Kind {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' => Kind::Letter,
        b'0'..=b'9' => Kind::Digit,
        b'\r' | b'\n' => Kind::LineBreak,
        b'\t' | 0x0B | 0x0C | b' ' => Kind::Space,
        0x80.. => Kind::NotAscii,
        _ => Kind::Other,
    }
}

/// Finds the ends of words.
pub(crate) struct WordSplit {
    regex: Regex,
}

impl WordSplit {
    /// The splitter, if this is how the tokenizer splits and what it normalises is known.
    pub(crate) fn for_tokenizer(tokenizer: &Value) -> Option<Self> {
        let split = &tokenizer["pre_tokenizer"]["pretokenizers"];
        let [first, second] = split.as_array()?.as_slice() else { return None };
        let normalizer = &tokenizer["normalizer"];
        let model = &tokenizer["model"];
        let is_plain = |field: &str| matches!(&model[field], Value::Null | Value::Bool(false)) || model[field] == "";
        let known = tokenizer["pre_tokenizer"]["type"] == "Sequence"
            && *first
                == json!({"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false})
            && second["type"] == "ByteLevel"
            && second["add_prefix_space"] == false
            && second["use_regex"] == false
            && (normalizer.is_null() || normalizer["type"] == "NFC")
            && ["dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"]
                .into_iter()
                .all(is_plain);
        if !known {
            return None;
        }
        Some(Self { regex: Regex::new(PATTERN).ok()? })
    }

    /// The end of the word that begins at `at`, which is inside of `text`, at a match's end.
    pub(crate) fn next_end(&self, text: &str, at: usize) -> usize {
        if let Some(end) = ascii_end(text.as_bytes(), at) {
            return end;
        }
        let len = self.regex.match_with_options(text, at, SearchOptions::SEARCH_OPTION_NONE, None).unwrap_or(0);
        if len > 0 {
            return at + len;
        }
        // The pattern matches every character; should an engine disagree, one character is a word.
        at + text[at..].chars().next().map_or(1, char::len_utf8)
    }
}

/// The end of the match at `at`, or `None` if a character beyond ASCII has a say.
fn ascii_end(text: &[u8], at: usize) -> Option<usize> {
    /// The kind at a place; the end of the text counts as its own kind.
    fn kind(text: &[u8], at: usize) -> Option<Kind> {
        text.get(at).map(|&byte| kind_of(byte))
    }
    /// The end of the run of `wanted` from `at`; `None` if it runs into a character beyond ASCII.
    fn run(text: &[u8], mut at: usize, wanted: impl Fn(Kind) -> bool) -> Option<usize> {
        while let Some(k) = kind(text, at) {
            match k {
                Kind::NotAscii => return None,
                k if wanted(k) => at += 1,
                _ => break,
            }
        }
        Some(at)
    }
    let letters = |from: usize| run(text, from, |k| k == Kind::Letter);
    let first = kind(text, at)?;
    let second = kind(text, at + 1);
    if first == Kind::NotAscii || second == Some(Kind::NotAscii) {
        return None;
    }
    match first {
        Kind::Letter => return letters(at),
        Kind::Digit => return Some(at + 1),
        _ => {}
    }
    if text[at] == b'\''
        && let Some(end) = contraction(text, at)
    {
        return end;
    }
    if first != Kind::LineBreak && second == Some(Kind::Letter) {
        return letters(at + 1);
    }
    let symbols = at + usize::from(text[at] == b' ');
    if kind(text, symbols) == Some(Kind::Other) {
        let end = run(text, symbols, |k| k == Kind::Other)?;
        let breaks = text[end..].iter().take_while(|&&b| kind_of(b) == Kind::LineBreak).count();
        return Some(end + breaks);
    }
    // Only white space is left: up to its last line break, else all but the one that the next word may take.
    let end = run(text, at, |k| matches!(k, Kind::Space | Kind::LineBreak))?;
    if let Some(last) = text[at..end].iter().rposition(|&b| kind_of(b) == Kind::LineBreak) {
        return Some(at + last + 1);
    }
    Some(if end == text.len() || end - at == 1 { end } else { end - 1 })
}

/// `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll`, `'d` in any case: `Some(Some(end))`; `Some(None)` if a character beyond ASCII,
/// which might fold to one of these letters, decides; `None` if it is none of them.
fn contraction(text: &[u8], at: usize) -> Option<Option<usize>> {
    let letter = |i: usize| text.get(at + i).map(u8::to_ascii_lowercase);
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(Some(at + 2)),
        (b'r' | b'v' | b'l', Some(0x80..)) => Some(None),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(Some(at + 3)),
        _ => None,
    }
}

/// Whether NFC certainly leaves the text as it is: ASCII, and blocks without combining or composed-away characters.
pub(crate) fn surely_nfc(text: &str) -> bool {
    text.is_ascii()
        || text.chars().all(|c| {
            matches!(c,
                '\0'..='\u{2FF}'
                | '\u{400}'..='\u{482}' | '\u{48A}'..='\u{52F}'
                | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205E}' | '\u{20A0}'..='\u{20BF}' | '\u{2190}'..='\u{21FF}'
                | '\u{3001}'..='\u{3029}' | '\u{3041}'..='\u{3096}' | '\u{30A1}'..='\u{30FA}' | '\u{4E00}'..='\u{9FFF}'
                | '\u{AC00}'..='\u{D7A3}' | '\u{FF01}'..='\u{FF5E}' | '\u{1F300}'..='\u{1F64F}')
        })
}
