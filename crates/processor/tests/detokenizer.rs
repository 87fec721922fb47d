//! Text token by token against all at once.

mod common;

use std::sync::{Arc, LazyLock};

use foveal_processor::{Detokenizer, Tokenizer};
use foveal_types::TokenId;
use proptest::prelude::*;

fn open(path: &std::path::Path) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bytes(&std::fs::read(path).expect("a tokenizer")).expect("a tokenizer"))
}

static TINY: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| open(&common::fixture("tiny/tokenizer.json")));
static QWEN: LazyLock<Option<Arc<Tokenizer>>> =
    LazyLock::new(|| Some(open(&common::assets("tokenizer")?.join("tokenizer.json"))));

/// Feeds all tokens; gives the whole text, the chunks and whether a stop string ended it.
fn stream(tokenizer: &Arc<Tokenizer>, ids: &[TokenId], stop: &[String]) -> (String, Vec<String>, bool) {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), stop);
    let mut chunks: Vec<String> = ids.iter().map(|&id| detokenizer.push(id).text).collect();
    let last = detokenizer.finish();
    chunks.push(last.text);
    (chunks.concat(), chunks, last.stopped)
}

/// The text before the stop string that is complete first, byte by byte; the plain definition.
fn cut(text: &str, stop: &[String]) -> (String, bool) {
    for end in 1..=text.len() {
        let hit = stop.iter().filter(|s| text.as_bytes()[..end].ends_with(s.as_bytes())).map(String::len).max();
        if let Some(len) = hit {
            return (text[..end - len].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

fn to_ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().map(|&id| TokenId(id)).collect()
}

#[test]
fn characters_that_span_tokens_come_whole() {
    let text = "naïve 🙂🙃 你好 x² \u{1F468}\u{200D}\u{1F469}";
    let mut ids = Vec::new();
    TINY.encode_plain(text, &mut ids).expect("ids");
    assert!(ids.len() > text.chars().count() / 2, "the tiny vocabulary splits characters");
    let (whole, chunks, _) = stream(&TINY, &ids, &[]);
    assert_eq!(whole, text);
    assert!(chunks.iter().all(|chunk| !chunk.contains('\u{FFFD}')));
    // Without its last byte, the replacement character comes at the end and nowhere else.
    let (whole, chunks, _) = stream(&TINY, &ids[..ids.len() - 1], &[]);
    assert_eq!(whole, TINY.decode(&ids[..ids.len() - 1]));
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| !chunk.contains('\u{FFFD}')));
}

#[test]
fn stop_strings_cut_before_themselves_and_are_held_back() {
    let mut ids = Vec::new();
    TINY.encode_plain("One. Two###Three", &mut ids).expect("ids");
    let mut detokenizer = Detokenizer::new(Arc::clone(&TINY), &["###".to_owned()]);
    let mut text = String::new();
    let mut stopped_at = None;
    for (i, &id) in ids.iter().enumerate() {
        let chunk = detokenizer.push(id);
        text.push_str(&chunk.text);
        assert!(!text.contains('#'), "{text:?}");
        if chunk.stopped {
            stopped_at.get_or_insert(i);
        }
    }
    assert_eq!(text, "One. Two");
    assert!(stopped_at.is_some_and(|i| i < ids.len() - 1) && detokenizer.is_stopped());
    assert_eq!(detokenizer.finish().text, "");
    // A beginning that comes to nothing is given in the end.
    let (whole, _, stopped) = stream(&TINY, &ids, &["###Threefold".to_owned()]);
    assert_eq!((whole.as_str(), stopped), ("One. Two###Three", false));
}

#[test]
fn special_tokens_and_unknown_ids_add_nothing() {
    let mut ids = Vec::new();
    TINY.encode_plain("Hi", &mut ids).expect("ids");
    let end = TINY.added_token_id("<|im_end|>").expect("a token");
    let tool = TINY.added_token_id("<tool_call>").expect("a token");
    ids.extend([end, TokenId(5000), TokenId(u32::MAX), tool]);
    assert_eq!(stream(&TINY, &ids, &[]).0, "Hi<tool_call>");
    assert!(TINY.is_special(end) && !TINY.is_special(tool));
}

proptest! {
    #![proptest_config(common::cases(600))]
    #[test]
    fn the_stream_is_the_whole(ids in prop::collection::vec(0_u32..1030, 0..80)) {
        let tiny = to_ids(&ids);
        prop_assert_eq!(stream(&TINY, &tiny, &[]).0, TINY.decode(&tiny));
        if let Some(qwen) = &*QWEN {
            let spread: Vec<TokenId> = ids.iter().map(|&id| TokenId(id * 148)).collect();
            prop_assert_eq!(stream(qwen, &spread, &[]).0, qwen.decode(&spread));
        }
    }

    #[test]
    fn stop_strings_cut_as_defined(
        text in "[ab é中]{0,40}",
        stop in prop::collection::vec("[ab é中]{1,4}", 0..4),
    ) {
        let mut ids = Vec::new();
        TINY.encode_plain(&text, &mut ids).expect("ids");
        let (got, chunks, stopped) = stream(&TINY, &ids, &stop);
        prop_assert_eq!((got, stopped), cut(&text, &stop));
        // Nothing is ever taken back: each chunk continues what is certain.
        prop_assert!(text.starts_with(&chunks.concat()));
    }
}
