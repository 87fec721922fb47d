//! `preprocessor_config.json` and `video_preprocessor_config.json`, in the forms that published models have.

use serde_json::Value;

use crate::error::ProcessorError;
use crate::model_files::parse_json;
use crate::smart_resize::PixelBudget;

/// PIL's number for bicubic resampling.
const PIL_BICUBIC: u64 = 3;
/// HF's default mean and standard deviation (`OPENAI_CLIP_MEAN`, `OPENAI_CLIP_STD`).
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// How a model wants its pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Side of a patch in pixels.
    pub patch_size: u32,
    /// Frames of one temporal patch.
    pub temporal_patch_size: u32,
    /// Side of a merge cell in patches.
    pub merge_size: u32,
    /// The pixels that a resized picture should have (for Qwen3-VL's videos: all frames together).
    pub budget: PixelBudget,
    /// Subtracted after rescaling, per channel.
    pub image_mean: [f32; 3],
    /// Divides after that, per channel.
    pub image_std: [f32; 3],
    /// Multiplies the byte first; 1/255.
    pub rescale_factor: f32,
}

/// What the model's side does to a byte: `(byte * rescale_factor - mean) / std`, per channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Multiplies the byte first.
    pub rescale_factor: f32,
    /// Subtracted, per channel.
    pub mean: [f32; 3],
    /// Divides, per channel.
    pub std: [f32; 3],
}

/// A `u32` above zero, or the default where the field is missing or null.
fn side(json: &Value, file: &str, field: &str, default: u32) -> Result<u32, ProcessorError> {
    match &json[field] {
        Value::Null => Ok(default),
        value => value
            .as_u64()
            .and_then(|v| u32::try_from(v).ok())
            .filter(|v| (1..=1024).contains(v))
            .ok_or_else(|| ProcessorError::bad_file(file, format!("`{field}` is {value}; 1 to 1024 was expected"))),
    }
}

/// A number of pixels.
fn pixels(value: &Value, file: &str, field: &str) -> Result<Option<u64>, ProcessorError> {
    match value {
        Value::Null => Ok(None),
        value => value
            .as_u64()
            .filter(|&v| v > 0)
            .map(Some)
            .ok_or_else(|| ProcessorError::bad_file(file, format!("`{field}` is {value}; pixels were expected"))),
    }
}

/// Three numbers.
fn per_channel(json: &Value, file: &str, field: &str, default: [f32; 3]) -> Result<[f32; 3], ProcessorError> {
    let Some(array) = json[field].as_array() else {
        return if json[field].is_null() {
            Ok(default)
        } else {
            Err(ProcessorError::bad_file(file, format!("`{field}` must be a list of three numbers")))
        };
    };
    let numbers: Vec<f32> = array.iter().filter_map(Value::as_f64).map(|v| v as f32).collect();
    numbers.try_into().map_err(|_| ProcessorError::bad_file(file, format!("`{field}` must be a list of three numbers")))
}

/// Defaults that differ between HF's processors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    patch_size: u32,
    budget: PixelBudget,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Defaults {
    /// `Qwen2VLImageProcessor`.
    pub(crate) const IMAGE: Self = Self {
        patch_size: 14,
        budget: PixelBudget { min_pixels: 56 * 56, max_pixels: 28 * 28 * 1280 },
        mean: CLIP_MEAN,
        std: CLIP_STD,
    };
    /// `Qwen2VLVideoProcessor`.
    pub(crate) const VIDEO_QWEN2: Self =
        Self { budget: PixelBudget { min_pixels: 128 * 28 * 28, max_pixels: 28 * 28 * 768 }, ..Self::IMAGE };
    /// `Qwen3VLVideoProcessor`.
    pub(crate) const VIDEO_QWEN3: Self = Self {
        patch_size: 16,
        budget: PixelBudget { min_pixels: 128 * 32 * 32, max_pixels: 32 * 32 * 768 },
        mean: [0.5; 3],
        std: [0.5; 3],
    };
}

impl VisionConfig {
    /// Reads one of the two files; `file` names it in errors.
    pub(crate) fn parse(bytes: &[u8], file: &str, defaults: Defaults) -> Result<Self, ProcessorError> {
        let json = parse_json(bytes, file)?;
        if !json.is_object() {
            return Err(ProcessorError::bad_file(file, "a JSON object was expected"));
        }
        refuse_unsupported(&json, file)?;
        let size = &json["size"];
        let bound = |edge: &str, old: &str, default: u64| {
            // `min_pixels` and `max_pixels` win over `size`, as in HF's constructor.
            let old_form = pixels(&json[old], file, old)?;
            let new_form = pixels(&size[edge], file, edge)?;
            Ok::<_, ProcessorError>(old_form.or(new_form).unwrap_or(default))
        };
        let budget = PixelBudget {
            min_pixels: bound("shortest_edge", "min_pixels", defaults.budget.min_pixels)?,
            max_pixels: bound("longest_edge", "max_pixels", defaults.budget.max_pixels)?,
        };
        if budget.min_pixels > budget.max_pixels {
            let PixelBudget { min_pixels, max_pixels } = budget;
            return Err(ProcessorError::bad_file(file, format!("{min_pixels} pixels at least, {max_pixels} at most")));
        }
        let rescale_factor = json["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0) as f32;
        Ok(Self {
            patch_size: side(&json, file, "patch_size", defaults.patch_size)?,
            temporal_patch_size: side(&json, file, "temporal_patch_size", 2)?,
            merge_size: side(&json, file, "merge_size", 2)?,
            budget,
            image_mean: per_channel(&json, file, "image_mean", defaults.mean)?,
            image_std: per_channel(&json, file, "image_std", defaults.std)?,
            rescale_factor,
        })
    }

    /// The side of a merge cell in pixels: sizes are multiples of it.
    #[must_use]
    pub fn factor(&self) -> u32 {
        self.patch_size * self.merge_size
    }

    /// What the model's side does to the bytes.
    #[must_use]
    pub fn normalization(&self) -> Normalization {
        Normalization { rescale_factor: self.rescale_factor, mean: self.image_mean, std: self.image_std }
    }
}

/// What would silently give other pixels is refused by name.
fn refuse_unsupported(json: &Value, file: &str) -> Result<(), ProcessorError> {
    let unsupported = |what: String| Err(ProcessorError::Unsupported { file: file.into(), what });
    for switch in ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"] {
        if json[switch] == Value::Bool(false) {
            return unsupported(format!("`{switch}: false`"));
        }
    }
    if json["cap_pixels_per_frame"] == Value::Bool(true) {
        return unsupported("`cap_pixels_per_frame: true`".into());
    }
    if let Some(resample) = json["resample"].as_u64()
        && resample != PIL_BICUBIC
    {
        return unsupported(format!("`resample: {resample}` ({PIL_BICUBIC}, bicubic, is what this processor does)"));
    }
    for field in ["image_processor_type", "video_processor_type"] {
        if let Some(name) = json[field].as_str()
            && !(name.starts_with("Qwen2") || name.starts_with("Qwen3"))
        {
            return unsupported(format!("`{field}: {name}` (a Qwen2-VL or Qwen3-VL processor was expected)"));
        }
    }
    Ok(())
}
