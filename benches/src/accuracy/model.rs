//! Which form of a model is meant, and its parts, loaded.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail, ensure};
use foveal_checkpoint::{GenerationConfig, ModelConfig, ModelFolder, WeightSource, prefix};
use foveal_device::{DType, Device, DeviceKind};
use foveal_llm::{Decoder, GenerationDefaults, Quantization, parse_kv_cache_dtype};
use foveal_processor::Processor;
use foveal_runtime::{LoadFormat, normalisation, processor_settings};
use foveal_vision::VisionTower;

/// The longest sequence: the engine's default, longer than any question.
const MAX_MODEL_LEN: usize = 8192;
/// Page-locked memory for copies to a GPU.
const PINNED_BYTES: usize = 256 << 20;

/// One form of a model: where it is, and what is made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelChoice {
    /// A model folder.
    pub folder: PathBuf,
    /// Where its weights come from.
    pub load_format: LoadFormat,
    /// How its weights are made smaller; `None` leaves them as the folder has them.
    pub quantization: Option<String>,
    /// Element type of its KV cache; `None` takes the device's own.
    pub kv_cache_dtype: Option<String>,
}

impl fmt::Display for ModelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.folder.display())?;
        if let LoadFormat::Dummy { seed } = self.load_format {
            write!(f, ", dummy weights of seed {seed}")?;
        }
        let settings = [("quantization", &self.quantization), ("KV cache", &self.kv_cache_dtype)];
        settings
            .iter()
            .filter_map(|(name, value)| value.as_ref().map(|value| (name, value)))
            .try_for_each(|(name, value)| write!(f, ", {name} {value}"))
    }
}

/// What is loaded of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of it, for questions.
    Whole,
    /// The decoder alone, for token ids: the folder then needs a config.json only.
    Decoder,
}

/// A model's parts, driven by hand: the engine gives tokens, not logits.
pub(super) struct LoadedModel {
    pub(super) device: Device,
    pub(super) decoder: Decoder,
    pub(super) kv_dtype: DType,
    /// Of [`Scope::Whole`].
    front: Option<Front>,
}

/// What stands before a decoder and behind it.
pub(super) struct Front {
    pub(super) processor: Processor,
    pub(super) tower: VisionTower,
    pub(super) defaults: GenerationDefaults,
}

/// What the library is asked for beyond the folder.
struct Settings {
    kv_dtype: DType,
    quantization: Quantization,
}

impl ModelChoice {
    /// The one place where `quantization` and `kv_cache_dtype` become something that the library knows.
    fn settings(&self, device: &Device) -> anyhow::Result<Settings> {
        let quantization = self.quantization.as_deref().map_or(Ok(Quantization::AsStored), str::parse);
        let kv_dtype = self.kv_cache_dtype.as_deref().map_or(Ok(None), parse_kv_cache_dtype);
        Ok(Settings {
            quantization: quantization.map_err(|error| anyhow!("--quantization: {error}"))?,
            kv_dtype: kv_dtype
                .map_err(|error| anyhow!("--kv-cache-dtype: {error}"))?
                .unwrap_or(device.activation_dtype()),
        })
    }

    /// The tokens of its vocabulary, if what can be told before anything is loaded speaks for it.
    fn check(&self, device: &Device) -> anyhow::Result<usize> {
        self.settings(device)?;
        let config = ModelConfig::load(&ModelFolder::open(&self.folder)?)?;
        config.ensure_supported()?;
        Ok(config.text.vocab_size)
    }

    /// Loads it.
    ///
    /// # Errors
    /// Of the folder, the settings or the device.
    pub(super) fn load(&self, device: &Device, scope: Scope) -> anyhow::Result<LoadedModel> {
        let Settings { kv_dtype, quantization } = self.settings(device)?;
        let folder = ModelFolder::open(&self.folder)?;
        let config = ModelConfig::load(&folder)?;
        config.ensure_supported()?;
        let weights = match self.load_format {
            LoadFormat::Auto => WeightSource::open(&folder)?.with_quantization(config.quantization.as_ref()),
            LoadFormat::Dummy { seed } => WeightSource::dummy(&config, seed)?,
            other => bail!("weights from {other:?} can't be judged"),
        };
        let max_model_len = config.text.max_position_embeddings.min(MAX_MODEL_LEN);
        let decoder = Decoder::load_quantized(&config, &weights, device, max_model_len, quantization)?;
        let front = match scope {
            Scope::Whole => Some(Front::open(&folder, &config, &weights, device, max_model_len)?),
            Scope::Decoder => None,
        };
        if scope == Scope::Whole {
            weights.finish(&[prefix::ALL])?;
        }
        Ok(LoadedModel { device: device.clone(), decoder, kv_dtype, front })
    }
}

impl Front {
    fn open(
        folder: &ModelFolder,
        config: &ModelConfig,
        weights: &WeightSource,
        device: &Device,
        max_model_len: usize,
    ) -> anyhow::Result<Self> {
        // What can't be read is left for the processor to miss.
        let read = |name: &str| folder.file(name).ok().flatten();
        let processor = Processor::from_reader(read, processor_settings(config, max_model_len))?;
        processor.normalization().context("the folder has no preprocessor_config.json")?;
        let normalisation = normalisation(&processor)?;
        Ok(Self {
            processor,
            tower: VisionTower::load(&config.vision, normalisation, weights, device)?,
            defaults: GenerationDefaults::new(&GenerationConfig::load(folder, &config.text)?)?,
        })
    }
}

impl LoadedModel {
    /// # Errors
    /// For a model of [`Scope::Decoder`].
    pub(super) fn front(&self) -> anyhow::Result<&Front> {
        self.front.as_ref().context("the model was loaded without its processor and tower")
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.decoder.settings().vocab_size
    }
}

/// Whether two forms can be compared, said before anything takes time.
///
/// # Errors
/// Of a setting or a config, and for vocabularies of different sizes.
pub(super) fn check_pair(device: &Device, candidate: &ModelChoice, reference: &ModelChoice) -> anyhow::Result<()> {
    let [got, expected] = [candidate.check(device)?, reference.check(device)?];
    ensure!(got == expected, "the candidate has {got} tokens in its vocabulary, the reference {expected}");
    Ok(())
}

/// A device for both models, with page-locked memory for its copies.
///
/// # Errors
/// When it can't be used.
pub fn open_device(kind: DeviceKind, threads: usize) -> anyhow::Result<Device> {
    let device = Device::open(kind, threads)?;
    // The stream keeps the pool.
    let _pool = foveal_pinned::install(&device, PINNED_BYTES);
    Ok(device)
}
