//! Log-probabilities in both of OpenAI's forms.

use foveal_processor::Tokenizer;
use foveal_types::{TokenId, TokenOutput};

use crate::api::chat::{ChatLogprobs, ChatTokenLogprob, TokenLogprob};
use crate::api::completion::CompletionLogprobs;

/// What JSON has in the place of minus infinity; OpenAI's number.
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

fn text_of(tokenizer: &Tokenizer, id: TokenId) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned()
}

fn one(tokenizer: &Tokenizer, id: TokenId, logprob: f32) -> TokenLogprob {
    let bytes = tokenizer.token_bytes(id);
    TokenLogprob { token: text_of(tokenizer, id), logprob: finite(logprob), bytes: bytes.to_vec() }
}

impl ChatLogprobs {
    /// Adds a token of the text, if the engine told its log-probability: a control token, as the one that ends an answer, has no
    /// part in it.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: &TokenOutput) {
        let Some(logprob) = token.logprob.filter(|_| !tokenizer.is_special(token.token_id)) else { return };
        let top = token.logprobs.iter().flat_map(|best| &best.top);
        self.content.push(ChatTokenLogprob {
            chosen: one(tokenizer, token.token_id, logprob),
            top_logprobs: top.map(|&(id, logprob)| one(tokenizer, id, logprob)).collect(),
        });
    }
}

impl CompletionLogprobs {
    /// Adds a token of the text that begins `offset` characters into the answer, if the engine told its log-probability.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: &TokenOutput, offset: usize) {
        let Some(logprob) = token.logprob.filter(|_| !tokenizer.is_special(token.token_id)) else { return };
        self.tokens.push(text_of(tokenizer, token.token_id));
        self.token_logprobs.push(finite(logprob));
        let top = token.logprobs.iter().flat_map(|best| &best.top);
        self.top_logprobs.push(top.map(|&(id, logprob)| (text_of(tokenizer, id), finite(logprob))).collect());
        self.text_offset.push(offset);
    }
}
