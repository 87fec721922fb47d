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

/// Three numbers, each of them `allowed`; `what` names those.
fn per_channel(
    (json, file): (&Value, &str),
    field: &str,
    default: [f32; 3],
    (allowed, what): (fn(f32) -> bool, &str),
) -> Result<[f32; 3], ProcessorError> {
    let value = &json[field];
    if value.is_null() {
        return Ok(default);
    }
    let numbers: Option<Vec<f32>> =
        value.as_array().and_then(|array| array.iter().map(|v| number(v).filter(|&v| allowed(v))).collect());
    let three = numbers.and_then(|numbers| numbers.try_into().ok());
    three.ok_or_else(|| {
        ProcessorError::bad_file(file, format!("`{field}` is {value}; a list of three {what} was expected"))
    })
}

/// A finite `f32`.
fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|v| v as f32).filter(|v| v.is_finite())
}

/// What divides or multiplies pixels: zero would wipe the picture out, a negative number isn't meant.
fn above_zero(value: f32) -> bool {
    value > 0.0
}

/// The least and the most pixels: `min_pixels` and `max_pixels` win over `size`, as in HF's constructor.
fn budget(json: &Value, file: &str, defaults: PixelBudget) -> Result<PixelBudget, ProcessorError> {
    const FORMS: [(&str, &str); 2] = [("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")];
    let size = &json["size"];
    let bad_size = || {
        let reason = format!("`size` is {size}; an object of `shortest_edge` and `longest_edge` was expected");
        ProcessorError::bad_file(file, reason)
    };
    if !(size.is_null() || size.is_object()) {
        return Err(bad_size());
    }
    // HF drops the old names from `size` where they stand beside it, too.
    let known = |key: &str| FORMS.iter().any(|&(edge, old)| key == edge || key == old && !json[old].is_null());
    if size.as_object().into_iter().flatten().any(|(key, value)| !value.is_null() && !known(key)) {
        return Err(bad_size());
    }
    let bound = |(edge, old): (&str, &str), default: u64| {
        let old_form = pixels(&json[old], file, old)?;
        let new_form = pixels(&size[edge], file, edge)?;
        match old_form.or(new_form) {
            Some(pixels) => Ok(pixels),
            // A `size` replaces HF's default as a whole.
            None if size.is_null() => Ok(default),
            None => Err(bad_size()),
        }
    };
    let min_pixels = bound(FORMS[0], defaults.min_pixels)?;
    let max_pixels = bound(FORMS[1], defaults.max_pixels)?;
    if min_pixels > max_pixels {
        return Err(ProcessorError::bad_file(file, format!("{min_pixels} pixels at least, {max_pixels} at most")));
    }
    Ok(PixelBudget { min_pixels, max_pixels })
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
        let rescale_factor = match &json["rescale_factor"] {
            Value::Null => 1.0 / 255.0,
            value => number(value).filter(|&v| above_zero(v)).ok_or_else(|| {
                ProcessorError::bad_file(file, format!("`rescale_factor` is {value}; a number above 0 was expected"))
            })?,
        };
        let mean_rule: (fn(f32) -> bool, _) = (f32::is_finite, "numbers");
        let std_rule: (fn(f32) -> bool, _) = (above_zero, "numbers above 0");
        Ok(Self {
            patch_size: side(&json, file, "patch_size", defaults.patch_size)?,
            temporal_patch_size: side(&json, file, "temporal_patch_size", 2)?,
            merge_size: side(&json, file, "merge_size", 2)?,
            budget: budget(&json, file, defaults.budget)?,
            image_mean: per_channel((&json, file), "image_mean", defaults.mean, mean_rule)?,
            image_std: per_channel((&json, file), "image_std", defaults.std, std_rule)?,
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
    let bad = |field: &str, what: &str| {
        Err(ProcessorError::bad_file(file, format!("`{field}` is {}; {what} was expected", json[field])))
    };
    let switches = ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"].map(|switch| (switch, true));
    for (switch, done) in switches.into_iter().chain([("cap_pixels_per_frame", false)]) {
        match &json[switch] {
            Value::Null => {}
            Value::Bool(value) if *value == done => {}
            Value::Bool(value) => return unsupported(format!("`{switch}: {value}`")),
            _ => return bad(switch, "true or false"),
        }
    }
    match &json["resample"] {
        Value::Null => {}
        value => match value.as_u64() {
            Some(PIL_BICUBIC) => {}
            Some(number) => {
                return unsupported(format!(
                    "`resample: {number}` ({PIL_BICUBIC}, bicubic, is what this processor does)"
                ));
            }
            None => return bad("resample", "a number"),
        },
    }
    for field in ["image_processor_type", "video_processor_type"] {
        match &json[field] {
            Value::Null => {}
            Value::String(name) if name.starts_with("Qwen2") || name.starts_with("Qwen3") => {}
            Value::String(name) => {
                return unsupported(format!("`{field}: {name}` (a Qwen2-VL or Qwen3-VL processor was expected)"));
            }
            _ => return bad(field, "a name"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Defaults, VisionConfig};
    use crate::error::ProcessorError;
    use crate::smart_resize::PixelBudget;

    fn parse(json: &Value) -> Result<VisionConfig, ProcessorError> {
        VisionConfig::parse(json.to_string().as_bytes(), "preprocessor_config.json", Defaults::IMAGE)
    }

    #[test]
    fn wrong_values_are_refused_by_file_and_field() {
        let cases = [
            ("size", json!("x")),
            ("size", json!(448)),
            ("size", json!([1, 2])),
            ("size", json!({"height": 448, "width": 448})),
            ("size", json!({"shortest_edge": 3136, "longest_edge": 9999, "height": 448})),
            ("size", json!({"min_pixels": 3136, "max_pixels": 9999})),
            ("size", json!({"shortest_edge": 3136})),
            ("size", json!({})),
            ("shortest_edge", json!(0)),
            ("longest_edge", json!("x")),
            ("longest_edge", json!(-1)),
            ("min_pixels", json!("x")),
            ("max_pixels", json!(1.5)),
            ("rescale_factor", json!("x")),
            ("rescale_factor", json!(0)),
            ("rescale_factor", json!(-0.1)),
            ("rescale_factor", json!(1e300)),
            ("rescale_factor", json!(1e-60)),
            ("image_mean", json!(0.5)),
            ("image_mean", json!([0.5, 0.5])),
            ("image_mean", json!([0.5, 0.5, 0.5, 0.5])),
            ("image_mean", json!([0.5, "x", 0.5])),
            ("image_mean", json!([0.5, 0.5, 0.5, "x"])),
            ("image_mean", json!([0.5, 1e300, 0.5])),
            ("image_std", json!([0.5, 0.5, 0.5, null])),
            ("image_std", json!([0, 0, 0])),
            ("image_std", json!([0.5, -0.5, 0.5])),
            ("image_std", json!("x")),
            ("patch_size", json!("14")),
            ("merge_size", json!(0)),
            ("do_resize", json!("false")),
            ("cap_pixels_per_frame", json!(1)),
            ("resample", json!("bicubic")),
            ("image_processor_type", json!(3)),
        ];
        for (field, value) in cases {
            let json = match field {
                "shortest_edge" => json!({"size": {"shortest_edge": value, "longest_edge": 9999}}),
                "longest_edge" => json!({"size": {"shortest_edge": 3136, "longest_edge": value}}),
                field => json!({field: value}),
            };
            let error = parse(&json).expect_err(&json.to_string());
            assert!(matches!(error, ProcessorError::BadFile { .. }), "{json}: {error:?}");
            let message = error.to_string();
            assert!(
                message.contains("`preprocessor_config.json`") && message.contains(&format!("`{field}`")),
                "{message}"
            );
        }
    }

    #[test]
    fn every_published_form_of_the_pixel_limits_is_read() {
        let want = PixelBudget { min_pixels: 3136, max_pixels: 9999 };
        for json in [
            json!({"min_pixels": 3136, "max_pixels": 9999}),
            json!({"size": {"shortest_edge": 3136, "longest_edge": 9999}}),
            json!({"size": {"shortest_edge": 3136, "longest_edge": 9999, "height": null}}),
            json!({"size": {"min_pixels": 1, "max_pixels": 2}, "min_pixels": 3136, "max_pixels": 9999}),
            json!({"size": {"shortest_edge": 3136, "longest_edge": 1}, "max_pixels": 9999}),
            json!({"size": null, "min_pixels": 3136, "max_pixels": 9999, "rescale_factor": null}),
        ] {
            assert_eq!(parse(&json).unwrap_or_else(|e| panic!("{json}: {e}")).budget, want, "{json}");
        }
        assert_eq!(parse(&json!({})).expect("the defaults").budget, Defaults::IMAGE.budget);
    }
}
