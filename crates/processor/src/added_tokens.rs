//! The tokens beside the vocabulary: `<|im_start|>` and its like, found in template text and kept out of user text.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use foveal_types::TokenId;
use serde_json::Value;

use crate::chat_template::Origin;
use crate::error::ProcessorError;

/// One added token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub(crate) id: TokenId,
    pub(crate) content: String,
    /// Left out of decoded text.
    pub(crate) special: bool,
}

/// All added tokens of a tokenizer.
#[derive(Clone, Debug)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    any: AhoCorasick,
    /// Finds only the special ones.
    special: AhoCorasick,
    special_tokens: Vec<usize>,
}

impl AddedTokens {
    /// Reads `added_tokens` of a `tokenizer.json`.
    pub(crate) fn parse(json: &Value, file: &str) -> Result<Self, ProcessorError> {
        let mut tokens = Vec::new();
        for entry in json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(id), Some(content)) =
                (entry["id"].as_u64().and_then(|id| u32::try_from(id).ok()), entry["content"].as_str())
            else {
                return Err(ProcessorError::bad_file(file, "an added token has no `id` or no `content`"));
            };
            for switch in ["lstrip", "rstrip", "single_word", "normalized"] {
                if entry[switch] == Value::Bool(true) {
                    let what = format!("`{switch}` for the added token `{content}`");
                    return Err(ProcessorError::Unsupported { file: file.into(), what });
                }
            }
            if content.chars().nth(1).is_none() {
                // One character can't be cut by a marker.
                let what = format!("the added token {id} of fewer than two characters");
                return Err(ProcessorError::Unsupported { file: file.into(), what });
            }
            let special = entry["special"] == Value::Bool(true);
            tokens.push(AddedToken { id: TokenId(id), content: content.into(), special });
        }
        let special_tokens: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i].special).collect();
        let find = |which: &mut dyn Iterator<Item = usize>| {
            let patterns: Vec<&str> = which.map(|i| tokens[i].content.as_str()).collect();
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(patterns)
                .map_err(|_| ProcessorError::bad_file(file, "too many added tokens"))
        };
        let any = find(&mut (0..tokens.len()))?;
        let special = find(&mut special_tokens.iter().copied())?;
        Ok(Self { any, special, special_tokens, tokens })
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.tokens.iter()
    }

    /// The token with this id.
    pub(crate) fn get(&self, id: TokenId) -> Option<&AddedToken> {
        self.tokens.iter().find(|token| token.id == id)
    }

    /// Where added tokens are spelled in `text`, from left to right, the longest at each place.
    pub(crate) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, &'a AddedToken)> {
        self.any.find_iter(text).map(|m| (m.range(), &self.tokens[m.pattern().as_usize()]))
    }

    /// A copy of a request's string in which nothing can be read as an added token, wherever the template puts it:
    /// `marker` cuts every spelling, and stands at an end that could complete one with its neighbour. `None` where the
    /// string needs no marker, which is nearly always.
    ///
    /// The model's own words may spell tokens that aren't special (`<think>`): the template looks for them there, and the
    /// model wrote them as tokens.
    pub(crate) fn mark(&self, text: &str, origin: Origin, marker: char) -> Option<String> {
        let outside = origin != Origin::Model;
        let of_interest = |token: &&AddedToken| outside || token.special;
        let starts_inside = self.tokens.iter().filter(of_interest).any(|t| {
            // A key that lies wholly within a spelling is left alone: templates look names up ("name", "image").
            continues(&t.content, text) || (origin != Origin::OutsideKey && lies_within(&t.content, text))
        });
        let ends_inside = self.tokens.iter().filter(of_interest).any(|t| begins(&t.content, text));
        let finder = if outside { &self.any } else { &self.special };
        if !starts_inside && !ends_inside && !finder.is_match(text) {
            return None;
        }
        let mut out = String::with_capacity(text.len() + 16);
        if starts_inside {
            out.push(marker);
        }
        let mut rest = text;
        while let Some(found) = finder.find(rest) {
            // Behind the first character of the spelling; the search goes on right there, for spellings may overlap.
            let cut = found.start() + rest[found.start()..].chars().next().map_or(1, char::len_utf8);
            out.push_str(&rest[..cut]);
            out.push(marker);
            rest = &rest[cut..];
        }
        out.push_str(rest);
        if ends_inside {
            out.push(marker);
        }
        Some(out)
    }

    /// The special tokens' number, for tests and reports.
    pub(crate) fn num_special(&self) -> usize {
        self.special_tokens.len()
    }
}

/// Whether `text`'s beginning could be the end of `spelling`.
fn continues(spelling: &str, text: &str) -> bool {
    spelling.char_indices().skip(1).any(|(i, _)| text.starts_with(&spelling[i..]))
}

/// Whether all of `text` could be a later part of `spelling`.
fn lies_within(spelling: &str, text: &str) -> bool {
    !text.is_empty() && spelling.char_indices().skip(1).any(|(i, _)| spelling[i..].starts_with(text))
}

/// Whether `text`'s end could be the beginning of `spelling`.
fn begins(spelling: &str, text: &str) -> bool {
    spelling.char_indices().skip(1).any(|(i, _)| text.ends_with(&spelling[..i]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{AddedTokens, Origin};

    const MARKER: char = '\u{F0000}';

    fn tokens() -> AddedTokens {
        let token = |id: u32, content: &str, special: bool| json!({"id": id, "content": content, "special": special});
        let list =
            [token(1, "<|a|>", true), token(2, "<|ab|>", true), token(3, "<t>", false), token(4, "<t><u>", false)];
        AddedTokens::parse(&json!({ "added_tokens": list }), "test").expect("tokens")
    }

    #[test]
    fn ordinary_text_is_left_alone() {
        for text in ["Hello, world", "1 < 2 and 2 > 1", "a|b", "", "a<b>c", "x <| y |> z"] {
            assert_eq!(tokens().mark(text, Origin::Outside, MARKER), None, "{text}");
        }
    }

    #[test]
    fn the_models_own_words_keep_tokens_that_are_not_special() {
        assert_eq!(tokens().mark("x<t>y", Origin::Model, MARKER), None);
        assert_eq!(tokens().mark("x<t>y", Origin::Outside, MARKER).as_deref(), Some("x<\u{F0000}t>y"));
        assert!(tokens().mark("x<|a|>y", Origin::Model, MARKER).is_some());
    }

    #[test]
    fn odd_added_tokens_are_refused_by_name() {
        let json = json!({"added_tokens": [{"id": 1, "content": "<x>", "lstrip": true}]});
        let message = AddedTokens::parse(&json, "tokenizer.json").expect_err("lstrip").to_string();
        assert!(message.contains("lstrip") && message.contains("<x>"), "{message}");
    }

    proptest! {
        /// Whatever two strings from outside stand between whatever template text, no spelling touches them.
        #[test]
        fn no_spelling_touches_marked_text(
            pieces in prop::collection::vec(("[<|>abtu]{0,4}", "[<|>abtu]{0,6}"), 1..5),
        ) {
            let tokens = tokens();
            let mut text = String::new();
            let mut outside = Vec::new();
            for (template, user) in &pieces {
                text.push_str(template);
                let start = text.len();
                text.push_str(&tokens.mark(user, Origin::Outside, MARKER).unwrap_or_else(|| user.clone()));
                // An empty string touches nothing: around it the template's own text joins.
                if start < text.len() {
                    outside.push(start..text.len());
                }
            }
            for (found, token) in tokens.find(&text) {
                prop_assert!(
                    outside.iter().all(|o| found.end <= o.start || o.end <= found.start),
                    "{} in {text:?}", token.content
                );
            }
            let plain: String = pieces.iter().map(|(t, u)| format!("{t}{u}")).collect();
            prop_assert_eq!(text.replace(MARKER, ""), plain);
        }
    }
}
