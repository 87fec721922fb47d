//! A reference file: what another implementation says about some prompts. `tests/reference/hf_reference.py` writes them.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::RuntimeError;

/// The key of the description in the file's metadata.
const KEY: &str = "foveal_reference";
/// The version of the description that this program reads.
const VERSION: u32 = 1;

/// Prompts and what the reference says about them.
#[derive(Debug)]
pub struct Reference {
    /// What wrote it, for people.
    pub source: String,
    /// The seed of dummy weights that it is about; `None` for a model's own weights.
    pub dummy_seed: Option<u64>,
    /// The prompts.
    pub cases: Vec<ReferenceCase>,
}

/// A prompt and the logits behind it.
#[derive(Debug)]
pub struct ReferenceCase {
    /// What reports call it.
    pub name: String,
    /// The user's words, behind the pictures.
    pub text: String,
    /// The pictures' files.
    pub images: Vec<Vec<u8>>,
    /// The prompt as the reference tokenised it, placeholders expanded.
    pub prompt_ids: Vec<u32>,
    /// What is fed one by one behind the prompt, whatever the model would say.
    pub forced_ids: Vec<u32>,
    /// `[1 + forced_ids, vocab_size]`: float32 logits behind the prompt and behind each forced token.
    pub logits: Vec<Vec<f32>>,
    /// Relative L2 error of the reference's own bfloat16 logits behind the prompt.
    pub bf16_error: f64,
    /// The same over all forced tokens.
    pub bf16_forced_error: f64,
    /// The largest difference of a logit between the reference's bfloat16 and its float32.
    pub bf16_max_error: f64,
}

#[derive(Deserialize)]
struct Description {
    version: u32,
    model: String,
    transformers: String,
    torch: String,
    dummy_seed: Option<u64>,
    cases: Vec<CaseDescription>,
}

#[derive(Deserialize)]
struct CaseDescription {
    name: String,
    text: String,
    num_images: usize,
    bf16_error: f64,
    bf16_forced_error: f64,
    bf16_max_error: f64,
}

impl Reference {
    /// Reads a reference file.
    ///
    /// # Errors
    /// [`RuntimeError::File`] when it can't be read or is no reference file.
    pub fn read(path: &Path) -> Result<Self, RuntimeError> {
        let bad = |reason: String| RuntimeError::File { path: path.display().to_string(), reason };
        let bytes = fs::read(path).map_err(|error| bad(error.kind().to_string()))?;
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|_| bad("it is no safetensors file".to_owned()))?;
        let text = metadata.metadata().as_ref().and_then(|entries| entries.get(KEY));
        let text = text.ok_or_else(|| bad(format!("its metadata has no `{KEY}`: hf_reference.py writes one")))?;
        let Description { version, model, transformers, torch, dummy_seed, cases } =
            serde_json::from_str(text).map_err(|error| bad(format!("`{KEY}` can't be understood: {error}")))?;
        if version != VERSION {
            return Err(bad(format!("it has version {version}; this program reads version {VERSION}")));
        }
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|_| bad("it is no whole safetensors file".to_owned()))?;
        let arrays = Arrays { tensors };
        let cases = cases.into_iter().map(|case| arrays.case(case).map_err(bad)).collect::<Result<_, _>>()?;
        Ok(Self { source: format!("{model} of transformers {transformers}, torch {torch}"), dummy_seed, cases })
    }
}

/// The tensors of a reference file.
struct Arrays<'a> {
    tensors: SafeTensors<'a>,
}

impl Arrays<'_> {
    fn bytes(&self, name: &str, dtype: Dtype) -> Result<(Vec<usize>, &[u8]), String> {
        let view = self.tensors.tensor(name).map_err(|_| format!("it has no tensor {name}"))?;
        match view.dtype() == dtype {
            true => Ok((view.shape().to_vec(), view.data())),
            false => Err(format!("{name} holds {:?}, expected {dtype:?}", view.dtype())),
        }
    }

    fn ids(&self, name: &str) -> Result<Vec<u32>, String> {
        let (_, bytes) = self.bytes(name, Dtype::I32)?;
        let (ids, _) = bytes.as_chunks::<4>();
        let ids = ids.iter().map(|bytes| u32::try_from(i32::from_le_bytes(*bytes)));
        ids.collect::<Result<_, _>>().map_err(|_| format!("{name} has a negative token id"))
    }

    fn case(&self, case: CaseDescription) -> Result<ReferenceCase, String> {
        let CaseDescription { name, text, num_images, bf16_error, bf16_forced_error, bf16_max_error } = case;
        let image = |i| self.bytes(&format!("{name}.image.{i}"), Dtype::U8).map(|(_, bytes)| bytes.to_vec());
        let (prompt_ids, forced_ids) =
            (self.ids(&format!("{name}.prompt_ids"))?, self.ids(&format!("{name}.forced_ids"))?);
        let logits_name = format!("{name}.logits");
        let (shape, bytes) = self.bytes(&logits_name, Dtype::F32)?;
        let [rows, vocab_size] = shape[..] else { return Err(format!("{logits_name} has no two dimensions")) };
        if rows != forced_ids.len() + 1 || vocab_size == 0 {
            return Err(format!("{logits_name} is {shape:?}, expected {} rows of logits", forced_ids.len() + 1));
        }
        let (values, _) = bytes.as_chunks::<4>();
        let rows = values.chunks(vocab_size);
        let logits = rows.map(|row| row.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()).collect();
        let images = (0..num_images).map(image).collect::<Result<_, _>>()?;
        Ok(ReferenceCase {
            name,
            text,
            images,
            prompt_ids,
            forced_ids,
            logits,
            bf16_error,
            bf16_forced_error,
            bf16_max_error,
        })
    }
}
