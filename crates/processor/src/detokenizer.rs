//! Token ids to text, one at a time.

use std::sync::Arc;

use foveal_types::TokenId;

use crate::stop_strings::StopStrings;
use crate::tokenizer::Tokenizer;

/// What one token, or the end, adds to the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextChunk {
    /// Text that is certain: whole characters, none of which can still belong to a stop string.
    pub text: String,
    /// A stop string was completed; the text ends before it, and nothing follows.
    pub stopped: bool,
}

/// Turns an answer's tokens into text as they come. Characters that span tokens, and text that may become a stop string,
/// wait inside; the chunks together are what decoding all tokens at once gives, cut before the first stop string.
///
/// The work per token doesn't grow with the answer.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Bytes that don't form whole characters yet; at most three.
    pending: Vec<u8>,
    stops: StopStrings,
    stopped: bool,
}

impl Detokenizer {
    /// Starts an answer that ends before any of `stop`.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, stop: &[String]) -> Self {
        Self { tokenizer, pending: Vec::new(), stops: StopStrings::new(stop), stopped: false }
    }

    /// Takes the next token. Special tokens and ids that the tokenizer doesn't know add nothing; after a stop string
    /// nothing adds anything.
    pub fn push(&mut self, token: TokenId) -> TextChunk {
        if self.stopped || self.tokenizer.is_special(token) {
            return TextChunk { text: String::new(), stopped: self.stopped };
        }
        self.pending.extend_from_slice(self.tokenizer.token_bytes(token));
        let decoded = take_characters(&mut self.pending);
        let text = self.stops.push(&decoded);
        self.stopped = self.stops.is_stopped();
        TextChunk { text, stopped: self.stopped }
    }

    /// Ends the answer and gives what still waited; bytes that never became a character are replaced by U+FFFD.
    pub fn finish(&mut self) -> TextChunk {
        if self.stopped {
            return TextChunk { text: String::new(), stopped: true };
        }
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        let mut text = self.stops.push(&rest);
        self.stopped = self.stops.is_stopped();
        text.push_str(&self.stops.finish());
        TextChunk { text, stopped: self.stopped }
    }

    /// Whether a stop string has ended the answer.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }
}

/// Takes all that is decided from the front of `pending`: whole characters, and U+FFFD for bytes that no later byte can
/// make valid, just as `String::from_utf8_lossy` replaces them.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    loop {
        match std::str::from_utf8(&pending[done..]) {
            Ok(valid) => {
                text.push_str(valid);
                pending.clear();
                return text;
            }
            Err(error) => {
                let valid = done + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&pending[done..valid]));
                let Some(invalid_len) = error.error_len() else {
                    pending.drain(..valid);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                done = valid + invalid_len;
            }
        }
    }
}
