//! Ids against HF's tokenizers.

mod common;

use std::sync::LazyLock;

use foveal_processor::Tokenizer;
use foveal_types::TokenId;
use proptest::prelude::*;

/// A tokenizer of ours and, from the same file, the crate's own.
struct Pair {
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
}

impl Pair {
    fn open(path: &std::path::Path) -> Self {
        let bytes = std::fs::read(path).expect("a tokenizer");
        let theirs = tokenizers::Tokenizer::from_bytes(&bytes).expect("a tokenizer");
        Self { ours: Tokenizer::from_bytes(&bytes).expect("a tokenizer"), theirs }
    }

    fn check(&self, text: &str) {
        let want = self.theirs.encode(text, false).expect("ids");
        let got: Vec<u32> = self.ours.encode(text).expect("ids").iter().map(|id| id.0).collect();
        assert_eq!(got, want.get_ids(), "{text:?}");
    }
}

static TINY: LazyLock<Pair> = LazyLock::new(|| Pair::open(&common::fixture("tiny/tokenizer.json")));
/// The Qwen tokenizer, where the test assets are.
static QWEN: LazyLock<Option<Pair>> =
    LazyLock::new(|| Some(Pair::open(&common::assets("tokenizer")?.join("tokenizer.json"))));

fn check(text: &str) {
    TINY.check(text);
    if let Some(qwen) = &*QWEN {
        qwen.check(text);
    }
}

#[test]
fn golden_encodings_are_equal() {
    let Some(folder) = common::assets("tokenizer") else { return };
    let Some(qwen) = &*QWEN else { return };
    let golden = std::fs::read(folder.join("golden_encodings.json")).expect("golden encodings");
    let golden: serde_json::Value = serde_json::from_slice(&golden).expect("JSON");
    let golden = golden.as_array().expect("a list");
    assert_eq!(golden.len(), 32);
    for case in golden {
        let text = case["text"].as_str().expect("text");
        let got: Vec<u32> = qwen.ours.encode(text).expect("ids").iter().map(|id| id.0).collect();
        assert_eq!(got, common::u32s(&case["ids"]), "{text:?}");
    }
}

#[test]
fn every_pair_of_ascii_characters_splits_alike() {
    let mut all = String::new();
    for a in 0..128_u8 {
        for b in 0..128_u8 {
            all.extend([char::from(a), char::from(b), 'x', ' ']);
        }
    }
    check(&all);
    for a in (0..128_u8).map(char::from) {
        check(&format!("{a}"));
        check(&format!("x{a}"));
        check(&format!("{a}\u{e9}"));
        check(&format!(" {a}\u{a0}y"));
        check(&format!("'{a}\u{17f}"));
    }
}

#[test]
fn the_characters_taken_for_normalised_are() {
    for block in [0x80..0x300, 0x400..0x530, 0x2010..0x2200, 0x3000..0x3100, 0xFF00..0xFF60, 0x1F300..0x1F650_u32] {
        let text: String = block.filter_map(char::from_u32).collect();
        check(&text);
    }
    let text: String = (0x4E00..0xD7A4_u32).step_by(97).filter_map(char::from_u32).collect();
    check(&text);
    for text in ["e\u{301}", "\u{e9}", "\u{1100}\u{1161}", "\u{2126}", "\u{3099}か\u{3099}", "\u{212b}ngstrom \u{37e}"]
    {
        check(text);
    }
}

/// Text of the kinds that the splitter tells apart, dense in seams.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z]{1,8}",
        3 => "[ \t\r\n]{1,4}",
        2 => "[0-9]{1,3}",
        2 => "[!-/:-@\\[-`{-~]{1,3}",
        1 => "'(s|S|t|re|VE|ll|d|m|x)",
        2 => "[\u{a0}é中文ßıſ²\u{3000}\u{2028}🙂Жק\u{301}\u{85}]{1,3}",
        1 => "\\PC{0,3}",
        1 => prop::sample::select(vec!["<|im_end|>", "<think>", "<tool_call>", "<|", "|>"]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(common::cases(2000))]
    #[test]
    fn ids_equal_the_crates(text in text()) {
        check(&text);
    }
}

proptest! {
    #![proptest_config(common::cases(256))]
    #[test]
    fn plain_encoding_recognises_nothing(text in text()) {
        let mut ids = Vec::new();
        TINY.ours.encode_plain(&text, &mut ids).expect("ids");
        // The added tokens of this vocabulary begin at 998.
        prop_assert!(ids.iter().all(|id| id.0 < 998), "{ids:?}");
    }

    #[test]
    fn decoding_all_equals_the_crates(ids in prop::collection::vec(0_u32..1030, 0..60)) {
        let ours: Vec<TokenId> = ids.iter().map(|&id| TokenId(id)).collect();
        prop_assert_eq!(TINY.ours.decode(&ours), TINY.theirs.decode(&ids, true).expect("text"));
        if let Some(qwen) = &*QWEN {
            let spread: Vec<u32> = ids.iter().map(|&id| id * 148).collect();
            let ours: Vec<TokenId> = spread.iter().map(|&id| TokenId(id)).collect();
            prop_assert_eq!(qwen.ours.decode(&ours), qwen.theirs.decode(&spread, true).expect("text"));
        }
    }
}

#[test]
fn the_word_cache_stays_below_its_cap() {
    let mut ids = Vec::new();
    for round in 0..40_u32 {
        let text: String = (0..6000_u32).map(|i| format!(" word{:x}q{round}", i.wrapping_mul(2_654_435_761))).collect();
        TINY.ours.encode_plain(&text, &mut ids).expect("ids");
        ids.clear();
    }
    assert!(TINY.ours.cache_bytes() <= 8 << 20, "{}", TINY.ours.cache_bytes());
    assert!(TINY.ours.cache_bytes() > 0);
}
