//! What is sent, and when.

use std::str::FromStr;

use crate::error::LoadError;

/// How pictures are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// JPEG of quality 85: what cameras and `vllm bench serve` send.
    #[default]
    Jpeg,
    /// PNG: lossless, several times larger.
    Png,
}

impl ImageFormat {
    /// `jpeg` or `png`: also the end of its media type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
        }
    }
}

impl FromStr for ImageFormat {
    type Err = LoadError;

    fn from_str(name: &str) -> Result<Self, LoadError> {
        match name {
            "jpeg" | "jpg" => Ok(Self::Jpeg),
            "png" => Ok(Self::Png),
            other => Err(options("image_format", format!("`{other}` is none; use jpeg or png"))),
        }
    }
}

/// The size of every request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestShape {
    /// Tokens of the prompt's text, exactly; the chat template and the pictures add theirs.
    pub input_len: usize,
    /// Tokens of the answer, exactly: stop tokens don't end it.
    pub output_len: usize,
    /// Pictures, each with pixels of its own.
    pub num_images: usize,
    /// Width and height of a picture in pixels.
    pub image_size: [u32; 2],
    /// How pictures are encoded.
    pub image_format: ImageFormat,
}

/// One run.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The size of every request.
    pub shape: RequestShape,
    /// Requests in all.
    pub num_prompts: usize,
    /// Requests that go before and are not measured. Their answers are of at most 32 tokens.
    pub num_warmups: usize,
    /// The most requests at once. `None`: as many as are due.
    pub max_concurrency: Option<usize>,
    /// Requests a second that become due; infinity makes all of them due at once, which with `max_concurrency` is a closed loop.
    pub request_rate: f64,
    /// How evenly they become due: 1 is a Poisson process, less is in bursts, infinity is a clock.
    pub burstiness: f64,
    /// Where the random tokens, pixels and times begin. Runs of different seeds have no prompt and no picture in common.
    pub seed: u64,
}

impl LoadOptions {
    /// Requests that can be under way at the same time.
    pub(crate) fn num_workers(&self) -> usize {
        self.max_concurrency.unwrap_or(self.num_prompts).min(self.num_prompts)
    }

    /// Checks every value; a run does that too.
    ///
    /// # Errors
    /// [`LoadError::Options`] with the field and what would be right.
    pub fn validate(&self) -> Result<(), LoadError> {
        let shape = &self.shape;
        let at_least_one = [
            ("num_prompts", self.num_prompts),
            ("max_concurrency", self.max_concurrency.unwrap_or(1)),
            ("input_len", shape.input_len),
            ("output_len", shape.output_len),
        ];
        if let Some((option, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(options(option, "it must be at least 1".to_owned()));
        }
        if shape.num_images > 0 && shape.image_size.contains(&0) {
            return Err(options("image_size", "a picture has at least one pixel each way".to_owned()));
        }
        for (option, value) in [("request_rate", self.request_rate), ("burstiness", self.burstiness)] {
            if value.is_nan() || value <= 0.0 {
                return Err(options(option, format!("{value} is not above 0")));
            }
        }
        Ok(())
    }
}

pub(crate) fn options(option: &'static str, reason: String) -> LoadError {
    LoadError::Options { option, reason }
}
