//! What is measured, and on what.

use std::fmt;
use std::path::PathBuf;

use foveal_checkpoint::{ModelConfig, WeightSource};
use foveal_device::Device;
use foveal_processor::Processor;
use foveal_runtime::{LoadFormat, processor_settings};

use super::turns::Effort;
use crate::gpu::{Bench, ModelForm, SEED, config};

/// Tokens of a conversation: what any of the rows needs, and no more.
const MAX_MODEL_LEN: usize = 4096;

/// What rows are measured on.
pub enum Machine {
    /// The CPU.
    Cpu(Device),
    /// A GPU, with all that is timed on it.
    Gpu(Box<Bench>),
}

impl Machine {
    /// The CPU with so many threads; 0 takes one for each core.
    ///
    /// # Errors
    /// When the threads can't be started.
    pub fn cpu(threads: usize) -> anyhow::Result<Self> {
        Ok(Self::Cpu(Device::cpu(threads)?))
    }

    /// The first GPU; see [`Bench::open`].
    ///
    /// # Errors
    /// When there is none.
    pub fn gpu(commit: &str) -> anyhow::Result<Self> {
        Ok(Self::Gpu(Box::new(Bench::open("", commit, None)?)))
    }

    pub(super) fn device(&self) -> &Device {
        match self {
            Self::Cpu(device) => device,
            Self::Gpu(bench) => &bench.device,
        }
    }

    pub(super) fn name(&self) -> String {
        match self.device().stream().cuda() {
            Some(cuda) => cuda.device().name().to_owned(),
            None => format!("{:?}", self.device()),
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({:?})", self.device())
    }
}

/// How large what is measured is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Sizes of real requests.
    Full,
    /// As small as it goes, for tests: times mean nothing.
    Smallest,
}

/// Which model, and how much of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// A model folder; with dummy weights it needs no checkpoint.
    pub model: PathBuf,
    /// Weights of the sections that run a whole engine. The others have dummy ones.
    pub load_format: LoadFormat,
    /// In which form the decoder runs.
    pub form: ModelForm,
    /// Sizes.
    pub scale: Scale,
}

/// What every section has.
pub(super) struct Context<'a> {
    pub(super) machine: Machine,
    pub(super) options: &'a Options,
    pub(super) config: ModelConfig,
    pub(super) effort: Effort,
}

impl<'a> Context<'a> {
    pub(super) fn new(machine: Machine, options: &'a Options) -> anyhow::Result<Self> {
        let config = config(&options.model)?;
        config.ensure_supported()?;
        Ok(Self { machine, options, config, effort: Effort::of(options.scale) })
    }

    pub(super) fn device(&self) -> &Device {
        self.machine.device()
    }

    /// One of two sizes.
    pub(super) fn size<T>(&self, full: T, smallest: T) -> T {
        match self.options.scale {
            Scale::Full => full,
            Scale::Smallest => smallest,
        }
    }

    pub(super) fn max_model_len(&self) -> usize {
        self.config.text.max_position_embeddings.min(MAX_MODEL_LEN)
    }

    pub(super) fn processor(&self) -> anyhow::Result<Processor> {
        let settings = processor_settings(&self.config, self.max_model_len());
        Ok(Processor::open(&self.options.model, settings)?)
    }

    pub(super) fn dummy_weights(&self) -> anyhow::Result<WeightSource> {
        Ok(WeightSource::dummy(&self.config, SEED)?)
    }
}
