//! In which format a decoder's weights run.

use std::fmt;
use std::str::FromStr;

/// What is made of a checkpoint's weights while they are loaded. The head, the embedding table and the norms stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// Nothing: each linear layer runs in the format that the checkpoint has it in.
    #[default]
    AsStored,
    /// Float layers become FP8 (e4m3) with a scale for each output channel, and their activations are rounded by row as they
    /// come. Layers that are FP8 already stay so.
    Fp8,
    /// FP8 layers become bf16 (float32 on the CPU): for cards without FP8, and to compare with.
    Float,
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AsStored => "as stored",
            Self::Fp8 => "fp8",
            Self::Float => "none",
        })
    }
}

impl FromStr for Quantization {
    type Err = String;

    /// `fp8` or `none`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fp8" => Ok(Self::Fp8),
            "none" => Ok(Self::Float),
            other => Err(format!(
                "`{other}` is not known; use fp8 (round bf16 weights while loading) or none (run FP8 weights as bf16), or \
                 leave it out: a checkpoint says itself how it is quantised"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quantization;

    #[test]
    fn words_are_read_and_others_told_what_would_be_right() {
        assert_eq!("fp8".parse(), Ok(Quantization::Fp8));
        assert_eq!("none".parse(), Ok(Quantization::Float));
        let error = "awq".parse::<Quantization>().unwrap_err();
        assert!(error.contains("`awq`") && error.contains("fp8"), "{error}");
        assert_eq!(Quantization::default(), Quantization::AsStored);
    }
}
