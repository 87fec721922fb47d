//! How a model wants to be sampled.

use super::TextConfig;
use super::fields::Fields;
use crate::{CheckpointError, ModelFolder};

const FILE: &str = "generation_config.json";

/// `generation_config.json`: stop tokens and the defaults of sampling parameters that a request leaves out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end an answer. Taken from the model's config where the file has none.
    pub eos_token_id: Vec<u32>,
    /// Whether to sample at all; false is greedy.
    pub do_sample: bool,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep the likeliest tokens of this total probability.
    pub top_p: Option<f32>,
    /// Divides the logits of tokens that were there already.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; a folder without one gives greedy sampling and the model's own stop tokens.
    ///
    /// # Errors
    /// [`CheckpointError::Unreadable`], [`CheckpointError::NotJson`] and [`CheckpointError::BadField`].
    pub fn load(folder: &ModelFolder, text: &TextConfig) -> Result<Self, CheckpointError> {
        let Some(value) = folder.json(FILE)? else {
            return Ok(Self { eos_token_id: text.eos_token_id.clone(), ..Self::default() });
        };
        let location = folder.locate(FILE);
        let fields = Fields::root(&value, &location)?;
        let number = |key| fields.number(key, 0.0).map(|x| x.map(|x| x as f32));
        let top_p = number("top_p")?;
        if top_p.is_some_and(|p| p > 1.0) {
            return Err(fields.bad("top_p", "a number from 0 to 1"));
        }
        let mut eos_token_id = fields.ids("eos_token_id")?;
        if eos_token_id.is_empty() {
            eos_token_id.clone_from(&text.eos_token_id);
        }
        Ok(Self {
            eos_token_id,
            do_sample: fields.bool_or("do_sample", false)?,
            temperature: number("temperature")?,
            top_k: match fields.value("top_k") {
                None => None,
                Some(_) => Some(fields.id_or("top_k", 0).map_err(|_| fields.bad("top_k", "an integer of at least 0"))?),
            },
            top_p,
            repetition_penalty: number("repetition_penalty")?,
        })
    }
}
