//! The reference answers: what Hugging Face transformers 5.17 says, in float32 on a CPU, about small checkpoints of every
//! family. `tests/fixtures/goldens/make.py` made them and describes them.

use std::fs;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::fixtures::{fixtures_dir, model_dir};

/// One request and the reference's answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenCase {
    /// Its name, and the prefix of its arrays.
    pub name: String,
    /// File names of its pictures, in [`Golden::image`]'s folder.
    pub images: Vec<String>,
    /// What is asked, after the pictures.
    pub question: String,
    /// The prompt with its placeholders expanded.
    pub prompt_ids: Vec<u32>,
    /// Frames, rows and columns of patches of each picture.
    pub image_grid_thw: Vec<[usize; 3]>,
    /// M-RoPE positions `[3, num_tokens]`.
    pub mrope_positions: Vec<Vec<i64>>,
    /// What decoding adds to a token's index to get its position.
    pub mrope_delta: i64,
    /// The twenty likeliest first tokens.
    pub top20_ids: Vec<u32>,
    /// Their log-probabilities, to five decimals.
    pub top20_logprobs: Vec<f32>,
    /// The greedy answer.
    pub greedy_ids: Vec<u32>,
    /// The distance of the two best logits at each step of it.
    pub greedy_top2_gaps: Vec<f32>,
    /// The five likeliest tokens of each step.
    pub greedy_top5_ids: Vec<Vec<u32>>,
    /// Their log-probabilities, to four decimals.
    pub greedy_top5_logprobs: Vec<Vec<f32>>,
    /// The smallest of the gaps.
    pub smallest_top2_gap: f32,
    /// Twelve tokens that are fed after the prompt, whatever the model would say.
    pub forced_ids: Vec<u32>,
    /// The greedy answer as text, without special tokens.
    pub text: String,
}

/// A random mix of text, images and videos with its positions, without pictures.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeCase {
    /// 0 for text, 1 for an image's placeholder, 2 for a video's.
    pub token_types: Vec<u8>,
    /// Grids of the images.
    pub image_grid_thw: Vec<[usize; 3]>,
    /// Grids of the videos.
    pub video_grid_thw: Vec<[usize; 3]>,
    /// Seconds that one temporal row of each video takes; empty where the family does not use them.
    pub second_per_grid_ts: Vec<f64>,
    /// M-RoPE positions `[3, num_tokens]`.
    pub positions: Vec<Vec<i64>>,
    /// What decoding adds to a token's index.
    pub delta: i64,
}

/// An array of the reference, in float32.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenArray {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

/// The reference answers about one checkpoint.
#[derive(Clone, Debug)]
pub struct Golden {
    family: String,
    cases: Vec<GoldenCase>,
    /// The bytes of `cases.safetensors`; empty for the families whose arrays are not committed.
    arrays: Vec<u8>,
}

impl Golden {
    /// The checkpoints that have answers: prompts, positions, greedy tokens.
    pub const FAMILIES: [&str; 7] =
        ["tiny", "qwen3_vl_tied", "qwen2_5_vl", "qwen2_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"];

    /// Those of them whose arrays are committed too, as this version runs them.
    pub const WITH_ARRAYS: [&str; 4] = ["tiny", "qwen3_vl_tied", "qwen2_5_vl", "qwen2_vl"];

    /// The answers about one of [`Golden::FAMILIES`].
    ///
    /// # Panics
    /// When a fixture can't be read.
    #[must_use]
    pub fn open(family: &str) -> Self {
        let dir = fixtures_dir().join("goldens").join(family);
        let arrays = dir.join("cases.safetensors");
        let arrays = if Self::WITH_ARRAYS.contains(&family) {
            fs::read(&arrays).unwrap_or_else(|e| panic!("{}: {e}", arrays.display()))
        } else {
            Vec::new()
        };
        Self { family: family.to_owned(), cases: read_json(&dir.join("cases.json")), arrays }
    }

    /// The folder of the answers.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        fixtures_dir().join("goldens").join(&self.family)
    }

    /// The folder with the checkpoint's config.
    #[must_use]
    pub fn model_dir(&self) -> PathBuf {
        model_dir(&self.family)
    }

    /// All requests.
    #[must_use]
    pub fn cases(&self) -> &[GoldenCase] {
        &self.cases
    }

    /// The request of this name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn case(&self, name: &str) -> &GoldenCase {
        self.cases.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
    }

    /// Path of a picture that a case names.
    #[must_use]
    pub fn image(name: &str) -> PathBuf {
        fixtures_dir().join("goldens/images").join(name)
    }

    /// Random mixes with their positions.
    ///
    /// # Panics
    /// When the fixture can't be read.
    #[must_use]
    pub fn rope_cases(&self) -> Vec<RopeCase> {
        read_json(&self.dir().join("rope_cases.json"))
    }

    /// The names of all arrays, sorted.
    ///
    /// # Panics
    /// For a family that is not one of [`Golden::WITH_ARRAYS`].
    #[must_use]
    pub fn array_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.parsed().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The array of this name, as `image_0.logits`.
    ///
    /// # Panics
    /// When there is none, as for a family that is not one of [`Golden::WITH_ARRAYS`].
    #[must_use]
    pub fn array(&self, name: &str) -> GoldenArray {
        let parsed = self.parsed();
        let view = parsed.tensor(name).unwrap_or_else(|_| panic!("{}: no array {name}", self.family));
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        GoldenArray { shape: view.shape().to_vec(), values }
    }

    fn parsed(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.arrays).unwrap_or_else(|e| panic!("{}: {e}", self.family))
    }
}

fn read_json<T: DeserializeOwned>(path: &std::path::Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_close;

    /// The files' own numbers must agree with each other: top 20, greedy steps, positions.
    #[test]
    fn cases_agree_with_themselves() {
        for family in Golden::FAMILIES {
            let golden = Golden::open(family);
            assert_eq!(golden.cases().len(), 14, "{family}");
            for case in golden.cases() {
                assert_eq!(case.greedy_ids[0], case.top20_ids[0]);
                assert_eq!(case.greedy_top2_gaps.len(), case.greedy_ids.len());
                assert_eq!(case.forced_ids.len(), 12);
                let largest_position = case.mrope_positions.iter().flatten().max().copied().unwrap_or(-1);
                assert_eq!(largest_position + 1 - case.prompt_ids.len() as i64, case.mrope_delta);
                assert!(case.images.iter().all(|image| Golden::image(image).is_file()));
            }
        }
    }

    #[test]
    fn logits_give_the_log_probabilities() {
        for family in Golden::WITH_ARRAYS {
            let golden = Golden::open(family);
            for case in golden.cases() {
                let logits = golden.array(&format!("{}.logits", case.name));
                let largest = logits.values.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = logits.values.iter().map(|&x| f64::from(x - largest).exp()).sum();
                let log_sum = largest + sum.ln() as f32;
                let got: Vec<_> = case.top20_ids.iter().map(|&i| logits.values[i as usize] - log_sum).collect();
                assert_close(&got, &case.top20_logprobs, 2e-5, 0.0);
                assert_eq!(golden.array(&format!("{}.forced_logits", case.name)).shape, [12, 1024]);
            }
            assert!(golden.array_names().contains(&"video.embeds".to_owned()));
        }
    }

    #[test]
    fn rope_cases_have_one_position_per_token_and_axis() {
        for family in Golden::FAMILIES {
            let cases = Golden::open(family).rope_cases();
            assert_eq!(cases.len(), 12);
            for case in cases {
                assert_eq!(case.positions.len(), 3);
                assert!(case.positions.iter().all(|axis| axis.len() == case.token_types.len()));
                let images: usize = case.image_grid_thw.iter().map(|g| g[0] * g[1] * g[2] / 4).sum();
                assert_eq!(case.token_types.iter().filter(|&&t| t == 1).count(), images);
            }
        }
    }
}
