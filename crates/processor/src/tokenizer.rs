//! Text to token ids. The only module that knows the `tokenizers` crate.
//!
//! The crate's tokenizer is built without added tokens: this one recognises none in what it is given. Which text may hold
//! them is the prompt's structure (see `prompt.rs`), not a property of the text.

use std::sync::RwLock;

use foveal_types::TokenId;
use serde_json::Value;
use tokenizers::Model as _;

use crate::added_tokens::AddedTokens;
use crate::byte_level::{byte_to_char, char_to_byte};
use crate::error::ProcessorError;
use crate::word_split::{WordSplit, surely_nfc};

/// The most bytes of words and ids that are remembered; then all are forgotten and learning starts anew.
const WORD_CACHE_BYTES: usize = 8 << 20;
/// Longer words are rare and are not remembered.
const MAX_CACHED_WORD_BYTES: usize = 64;
/// What an entry costs beside its own bytes.
const ENTRY_BYTES: usize = 64;

/// A byte-level BPE tokenizer from a `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    added: AddedTokens,
    /// The bytes of every token, one after another, and where each begins.
    token_bytes: Vec<u8>,
    token_starts: Vec<u32>,
    /// Present where the pre-tokenizer is the one that `word_split.rs` repeats.
    words: Option<WordSplit>,
    cache: RwLock<WordCache>,
}

/// Words and their ids.
#[derive(Default)]
struct WordCache {
    ids: std::collections::HashMap<Box<str>, Box<[TokenId]>, foldhash::fast::RandomState>,
    used_bytes: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("num_tokens", &(self.token_starts.len().saturating_sub(1)))
            .field("num_special", &self.added.num_special())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ProcessorError::BadFile`] for what isn't a tokenizer, [`ProcessorError::Unsupported`] for one that isn't
    /// byte-level BPE.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProcessorError> {
        const FILE: &str = "tokenizer.json";
        let mut json = crate::model_files::parse_json(bytes, FILE)?;
        let added = AddedTokens::parse(&json, FILE)?;
        let unsupported = |what: &str| Err(ProcessorError::Unsupported { file: FILE.into(), what: what.into() });
        if json["model"]["type"].as_str().unwrap_or("BPE") != "BPE" {
            return unsupported("a model other than BPE");
        }
        if json["decoder"]["type"] != "ByteLevel" {
            return unsupported("a decoder other than ByteLevel");
        }
        let words = WordSplit::for_tokenizer(&json);
        for field in ["added_tokens", "post_processor", "padding", "truncation"] {
            json[field] = if field == "added_tokens" { Value::Array(Vec::new()) } else { Value::Null };
        }
        let inner: tokenizers::Tokenizer =
            serde_json::from_value(json).map_err(|_| ProcessorError::bad_file(FILE, "not a tokenizer's definition"))?;
        let (token_bytes, token_starts) = token_table(&inner, &added)?;
        let cache = RwLock::default();
        Ok(Self { inner, added, token_bytes, token_starts, words, cache })
    }

    /// The ids of a text in which added tokens are recognised, as HF's tokenizers do: for text of one's own, never for a
    /// stranger's.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenize`] if the tokenizer's own rules fail on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, ProcessorError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut end = 0;
        for (found, token) in self.added.find(text) {
            self.encode_plain(&text[end..found.start], &mut ids)?;
            ids.push(token.id);
            end = found.end;
        }
        self.encode_plain(&text[end..], &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of a text in which nothing is an added token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<(), ProcessorError> {
        if text.is_empty() {
            return Ok(());
        }
        if let Some(words) = &self.words
            && surely_nfc(text)
        {
            return self.encode_words(words, text, ids);
        }
        let encoding = self.inner.encode_fast(text, false).map_err(|_| ProcessorError::Tokenize)?;
        ids.extend(encoding.get_ids().iter().map(|&id| TokenId(id)));
        Ok(())
    }

    /// The quick way: split into words here, look each up, and ask the crate's model only for new ones.
    ///
    /// The crate alone spends most of its time on offsets of every character through normalisation and splitting, which
    /// nobody here asks for.
    fn encode_words(&self, words: &WordSplit, text: &str, ids: &mut Vec<TokenId>) -> Result<(), ProcessorError> {
        let mut learned: Vec<(&str, Box<[TokenId]>)> = Vec::new();
        let mut at = 0;
        {
            // A poisoned lock would only mean that a word was half inserted; the map is still a map.
            let cache = self.cache.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            while at < text.len() {
                let end = words.next_end(text, at);
                let word = &text[at..end];
                at = end;
                if let Some(known) = cache.ids.get(word) {
                    ids.extend_from_slice(known);
                    continue;
                }
                let new = self.encode_word(word)?;
                ids.extend_from_slice(&new);
                if word.len() <= MAX_CACHED_WORD_BYTES {
                    learned.push((word, new.into()));
                }
            }
        }
        if !learned.is_empty() {
            let mut cache = self.cache.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (word, new) in learned {
                cache.insert(word, new);
            }
        }
        Ok(())
    }

    /// One word through the model's merges.
    fn encode_word(&self, word: &str) -> Result<Vec<TokenId>, ProcessorError> {
        let mapped: String = word.bytes().map(byte_to_char).collect();
        let tokens = self.inner.get_model().tokenize(&mapped).map_err(|_| ProcessorError::Tokenize)?;
        Ok(tokens.into_iter().map(|token| TokenId(token.id)).collect())
    }

    /// The bytes that a token stands for; empty for ids that the tokenizer doesn't know.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        let bounds = (self.token_starts.get(id.0 as usize), self.token_starts.get(id.0 as usize + 1));
        let (Some(&start), Some(&end)) = bounds else { return &[] };
        self.token_bytes.get(start as usize..end as usize).unwrap_or(&[])
    }

    /// Whether a token is left out of decoded text.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.added.get(id).is_some_and(|token| token.special)
    }

    /// The text of all ids at once, special tokens left out, what isn't UTF-8 replaced.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let bytes: Vec<u8> =
            ids.iter().filter(|&&id| !self.is_special(id)).flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The added token of this spelling.
    #[must_use]
    pub fn added_token_id(&self, content: &str) -> Option<TokenId> {
        self.added.iter().find(|token| token.content == content).map(|token| token.id)
    }

    /// Bytes that the remembered words take, for a metric; never above 8 MiB by much.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.cache.read().unwrap_or_else(std::sync::PoisonError::into_inner).used_bytes
    }

    /// The added tokens.
    pub(crate) fn added(&self) -> &AddedTokens {
        &self.added
    }
}

impl WordCache {
    fn insert(&mut self, word: &str, ids: Box<[TokenId]>) {
        let cost = word.len() + std::mem::size_of_val(&*ids) + ENTRY_BYTES;
        if self.used_bytes + cost > WORD_CACHE_BYTES {
            *self = Self::default();
        }
        if self.ids.insert(word.into(), ids).is_none() {
            self.used_bytes += cost;
        }
    }
}

/// The bytes of every token id, vocabulary and added tokens alike.
fn token_table(inner: &tokenizers::Tokenizer, added: &AddedTokens) -> Result<(Vec<u8>, Vec<u32>), ProcessorError> {
    /// No published vocabulary comes near; a larger id would only reserve memory.
    const MAX_ID: u32 = 1 << 22;
    let mut by_id: Vec<(u32, String)> = inner.get_vocab(false).into_iter().map(|(token, id)| (id, token)).collect();
    by_id.extend(added.iter().map(|token| (token.id.0, token.content.clone())));
    // Stable, so that an added token that shares an id with the vocabulary comes last and wins.
    by_id.sort_by_key(|(id, _)| *id);
    if let Some((id, _)) = by_id.last()
        && *id > MAX_ID
    {
        return Err(ProcessorError::bad_file("tokenizer.json", format!("the token id {id} is too large")));
    }
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for (i, (id, token)) in by_id.iter().enumerate() {
        if by_id.get(i + 1).is_some_and(|(next, _)| next == id) {
            continue;
        }
        while starts.len() <= *id as usize {
            starts.push(bytes.len() as u32);
        }
        // A token with a character outside of the byte alphabet stands for its own UTF-8, as in the crate's decoder.
        let mapped: Option<Vec<u8>> = token.chars().map(char_to_byte).collect();
        bytes.extend(mapped.unwrap_or_else(|| token.as_bytes().to_vec()));
    }
    starts.push(bytes.len() as u32);
    Ok((bytes, starts))
}
