//! A model folder's parts, opened and checked against each other, before anything is put together from them.

use std::borrow::Cow;
use std::cell::RefCell;

use foveal_checkpoint::{CheckpointError, GenerationConfig, ModelConfig, ModelFolder, WeightSource};
use foveal_device::Device;
use foveal_engine::{EngineBuilder, EngineError};
use foveal_llm::GenerationDefaults;
use foveal_mrope::{PositionRule, TemporalRule};
use foveal_processor::{Limits, Normalization, Processor, ProcessorError, ProcessorSettings, VisionConfig};
use foveal_types::TokenId;
use foveal_vision::Normalisation;
use serde_json::Value;

use crate::{LoadFormat, ModelOptions, RuntimeError};

/// Everything that a model is put together from.
pub(crate) struct Parts {
    pub(crate) device: Device,
    pub(crate) config: ModelConfig,
    pub(crate) defaults: GenerationDefaults,
    pub(crate) max_model_len: usize,
    pub(crate) processor: Processor,
    pub(crate) normalisation: Normalisation,
    pub(crate) weights: WeightSource,
}

impl Parts {
    /// Opens a model folder. `on_progress(done_bytes, total_bytes)` will be called as the weights are taken in.
    pub(crate) fn open(
        folder: &ModelFolder,
        options: &ModelOptions,
        on_progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Self, RuntimeError> {
        let device = Device::open(options.device, options.threads)?;
        let config = ModelConfig::load(folder)?;
        config.ensure_supported()?;
        let defaults =
            GenerationDefaults::new(&GenerationConfig::load(folder, &config.text)?).map_err(EngineError::from)?;
        let max_model_len = max_model_len(folder, &config, options.max_model_len)?;
        let processor = open_processor(folder, &config, max_model_len, options)?;
        let normalisation = normalisation(&processor)
            .map_err(|source| RuntimeError::Processor { folder: folder.name().to_owned(), source })?;
        let weights = match options.load_format {
            LoadFormat::Auto => WeightSource::open(folder)?,
            LoadFormat::Dummy { seed } => WeightSource::dummy(&config, seed)?,
        };
        let weights = weights.with_quantization(config.quantization.as_ref()).with_progress(on_progress);
        Ok(Self { device, config, defaults, max_model_len, processor, normalisation, weights })
    }
}

/// What the processor needs to know of a model's `config.json`.
#[must_use]
pub fn processor_settings(config: &ModelConfig, max_model_len: usize) -> ProcessorSettings {
    let temporal = match config.vision.tokens_per_second {
        Some(tokens_per_second) => TemporalRule::Seconds { tokens_per_second },
        None if config.family.is_qwen2() => TemporalRule::FrameIndex,
        None => TemporalRule::FramesBetweenTimestamps,
    };
    let spatial_merge_size = u32::try_from(config.vision.spatial_merge_size).unwrap_or(u32::MAX);
    ProcessorSettings {
        image_token_id: TokenId(config.image_token_id),
        video_token_id: TokenId(config.video_token_id),
        vision_start_token_id: TokenId(config.vision_start_token_id),
        vision_end_token_id: TokenId(config.vision_end_token_id),
        position_rule: PositionRule { spatial_merge_size, temporal },
        max_model_len,
        limits: Limits::default(),
    }
}

/// The longest conversation: what was asked for, or what the model takes, at most the engine's default.
pub(crate) fn max_model_len(
    folder: &ModelFolder,
    config: &ModelConfig,
    asked: Option<usize>,
) -> Result<usize, RuntimeError> {
    let max = config.text.max_position_embeddings;
    match asked {
        None => Ok(max.min(EngineBuilder::DEFAULT_MAX_MODEL_LEN)),
        Some(got) if (1..=max).contains(&got) => Ok(got),
        Some(got) => Err(RuntimeError::MaxModelLen { model: folder.name().to_owned(), got, max }),
    }
}

/// The most patches that a still picture is cut into, whatever its size.
///
/// That can be more than `max_pixels` says: where a picture is enlarged each side is rounded up to whole cells, and where
/// a strip is reduced its short side stays one cell. Sides differ by a factor of 200 at most.
pub(crate) fn most_patches(vision: &VisionConfig) -> usize {
    const MAX_ASPECT_RATIO: f64 = 200.0;
    let cell = f64::from(vision.factor());
    let (min, max) = (vision.budget.min_pixels as f64, vision.budget.max_pixels as f64);
    let longest_side = |pixels: f64| (pixels * MAX_ASPECT_RATIO).sqrt();
    let shortest_side = |pixels: f64| (pixels / MAX_ASPECT_RATIO).sqrt();
    // The longer a rectangle of `min` pixels, the more a cell on each side adds.
    let enlarged = (longest_side(min) + cell) * (shortest_side(min) + cell);
    let strip = longest_side(max).max(cell) * cell;
    let patch_pixels = f64::from(vision.patch_size) * f64::from(vision.patch_size);
    // `as` saturates. One cell more than that: the bounds are not exact to the last bit.
    let cells = (max.max(enlarged).max(strip) / (cell * cell)) as usize;
    let patches_per_cell = (cell * cell / patch_pixels) as usize;
    cells.saturating_add(1).saturating_mul(patches_per_cell)
}

fn open_processor(
    folder: &ModelFolder,
    config: &ModelConfig,
    max_model_len: usize,
    options: &ModelOptions,
) -> Result<Processor, RuntimeError> {
    let opened = open_with_limits(folder, config, max_model_len, options);
    let limits = [("--min-pixels", options.min_pixels), ("--max-pixels", options.max_pixels)];
    let ([(option, Some(got)), (_, None)] | [(_, None), (option, Some(got))]) = limits else { return opened };
    if !matches!(&opened, Err(RuntimeError::Processor { source: ProcessorError::BadFile { .. }, .. })) {
        return opened;
    }
    // Is it the file's fault, or the option's? The file alone tells.
    let own = ModelOptions { min_pixels: None, max_pixels: None, ..options.clone() };
    let Ok(processor) = open_with_limits(folder, config, max_model_len, &own) else { return opened };
    let budget = processor.vision_config().map(|vision| vision.budget);
    match budget {
        Some(budget) if options.max_pixels.is_some_and(|max| max < budget.min_pixels) => {
            let (relation, other, bound) = ("below", "min_pixels", budget.min_pixels);
            Err(RuntimeError::PixelLimit { option, got, relation, other, bound })
        }
        Some(budget) if options.min_pixels.is_some_and(|min| min > budget.max_pixels) => {
            let (relation, other, bound) = ("above", "max_pixels", budget.max_pixels);
            Err(RuntimeError::PixelLimit { option, got, relation, other, bound })
        }
        _ => opened,
    }
}

/// The processor with the caller's pixel limits in the place of the model's.
fn open_with_limits(
    folder: &ModelFolder,
    config: &ModelConfig,
    max_model_len: usize,
    options: &ModelOptions,
) -> Result<Processor, RuntimeError> {
    // The reader can only say that there is no file; why one can't be read is kept here.
    let unreadable: RefCell<Option<CheckpointError>> = RefCell::new(None);
    let read = |name: &str| {
        let bytes = folder.file(name).unwrap_or_else(|error| {
            unreadable.borrow_mut().get_or_insert(error);
            None
        })?;
        Some(if name == "preprocessor_config.json" { with_pixel_limits(bytes, options) } else { bytes })
    };
    let settings = ProcessorSettings { limits: options.limits.clone(), ..processor_settings(config, max_model_len) };
    let opened = Processor::from_reader(read, settings);
    if let Some(error) = unreadable.into_inner() {
        return Err(error.into());
    }
    let wrong = |source| RuntimeError::Processor { folder: folder.name().to_owned(), source };
    let processor = opened.map_err(wrong)?;
    let (patch_size, temporal) = (config.vision.patch_size, config.vision.temporal_patch_size);
    match processor.vision_config() {
        Some(vision) if vision.patch_size as usize != patch_size || vision.temporal_patch_size as usize != temporal => {
            let file = "preprocessor_config.json".to_owned();
            let (got, got_temporal) = (vision.patch_size, vision.temporal_patch_size);
            let reason = format!(
                "patches of {got} pixels and {got_temporal} frames; config.json says {patch_size} and {temporal}"
            );
            Err(wrong(ProcessorError::BadFile { file, reason }))
        }
        _ => Ok(processor),
    }
}

/// The picture settings with the caller's pixel limits written over the model's. A file that is no JSON object is left
/// for the processor to complain about.
fn with_pixel_limits<'a>(bytes: Cow<'a, [u8]>, options: &ModelOptions) -> Cow<'a, [u8]> {
    let limits = [("min_pixels", options.min_pixels), ("max_pixels", options.max_pixels)];
    if limits.iter().all(|(_, limit)| limit.is_none()) {
        return bytes;
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(&bytes) else { return bytes };
    for (name, limit) in limits {
        if let Some(limit) = limit {
            fields.insert(name.to_owned(), limit.into());
        }
    }
    serde_json::to_vec(&fields).map_or(bytes, Cow::Owned)
}

/// The processor's normalisation as the tower takes it, which divides bytes by 255 itself and has one for stills and
/// videos.
///
/// # Errors
/// [`ProcessorError::Unsupported`] when videos have another, and [`ProcessorError::BadFile`] when it gives no pixel values.
pub fn normalisation(processor: &Processor) -> Result<Normalisation, ProcessorError> {
    let Some((stills, videos)) = processor.normalization() else {
        return Ok(Normalisation { mean: [0.0; 3], std: [1.0; 3] });
    };
    if stills != videos {
        let what = format!("another normalisation than preprocessor_config.json ({videos:?}, not {stills:?})");
        return Err(ProcessorError::Unsupported { file: "video_preprocessor_config.json".to_owned(), what });
    }
    let Normalization { rescale_factor, mean, std } = stills;
    let scale = rescale_factor * 255.0;
    // 1/255 as a float32 times 255 need not be 1 to the last bit.
    let scale = if (scale - 1.0).abs() < 1e-6 { 1.0 } else { scale };
    let (mean, std) = (mean.map(|mean| mean / scale), std.map(|std| std / scale));
    if mean.iter().any(|mean| !mean.is_finite()) || std.iter().any(|std| !std.is_normal()) {
        let reason = format!("`rescale_factor`, `image_mean` and `image_std` give no pixel values ({stills:?})");
        return Err(ProcessorError::BadFile { file: "preprocessor_config.json".to_owned(), reason });
    }
    Ok(Normalisation { mean, std })
}

#[cfg(test)]
mod tests {
    use foveal_processor::{PixelBudget, smart_resize};

    use super::{VisionConfig, most_patches};

    /// Every size that can matter of budgets down to less than a cell: the bound holds, and is no wild guess.
    #[test]
    fn no_picture_has_more_patches_than_the_bound() {
        for (min_pixels, max_pixels) in [(1, 1), (65_536, 65_536), (1, 60_000), (4096, 1 << 20), (900, 5000)] {
            let vision = VisionConfig {
                patch_size: 16,
                temporal_patch_size: 2,
                merge_size: 2,
                budget: PixelBudget { min_pixels, max_pixels },
                image_mean: [0.5; 3],
                image_std: [0.5; 3],
                rescale_factor: 1.0 / 255.0,
            };
            let bound = most_patches(&vision);
            let sides = || (1_u32..40).chain((40..400).step_by(7)).chain((400..8000).step_by(61));
            let sizes = sides().flat_map(|height| sides().map(move |width| (height, width)));
            let patches = |(height, width)| {
                let (h, w) = smart_resize(height, width, vision.factor(), vision.budget).ok()?;
                Some((h / 16) as usize * (w / 16) as usize)
            };
            let most = sizes.filter_map(patches).max().unwrap();
            assert!(most <= bound, "{min_pixels} to {max_pixels}: {most} patches, bound {bound}");
            assert!(bound <= 2 * most + 64, "{min_pixels} to {max_pixels}: {most} patches, bound {bound}");
        }
    }
}
