//! The reference checkpoints and what the reference made of them.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;

use foveal_checkpoint::{ModelConfig, ModelFolder, VisionConfig, WeightSource, prefix};
use foveal_device::{DType, Device, Tensor};
use foveal_mrope::GridThw;
use foveal_testkit::Golden;
use foveal_vision::{Normalisation, VisionInput, VisionOutput, VisionTower, Workspace};
use serde_json::Value;

/// The checkpoints whose towers are this crate's.
pub(crate) const FAMILIES: [&str; 4] = ["tiny", "qwen3_vl_tied", "qwen2_5_vl", "qwen2_vl"];

/// A tower with its device and enough room for what a test encodes.
pub(crate) struct Loaded {
    pub(crate) family: &'static str,
    pub(crate) config: VisionConfig,
    pub(crate) device: Device,
    pub(crate) tower: VisionTower,
}

/// Tokens and deepstack rows of one batch.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Features {
    pub(crate) embeds: Vec<f32>,
    pub(crate) deepstack: Vec<Vec<f32>>,
}

pub(crate) fn weights(family: &str) -> WeightSource {
    let folder = Golden::open(family).model_dir();
    match family {
        "tiny" => WeightSource::open(&ModelFolder::open(folder).unwrap()).unwrap(),
        _ => WeightSource::rebuilt(&fs::read(folder.join("manifest.json")).unwrap(), "manifest.json").unwrap(),
    }
}

/// From the folder's `preprocessor_config.json`.
pub(crate) fn normalisation(family: &str) -> Normalisation {
    let bytes = fs::read(Golden::open(family).model_dir().join("preprocessor_config.json")).unwrap();
    let settings: Value = serde_json::from_slice(&bytes).unwrap();
    let channels = |key: &str| [0, 1, 2].map(|c| settings[key][c].as_f64().unwrap() as f32);
    Normalisation { mean: channels("image_mean"), std: channels("image_std") }
}

pub(crate) fn load(family: &'static str) -> Loaded {
    let config = ModelConfig::load(&ModelFolder::open(Golden::open(family).model_dir()).unwrap()).unwrap().vision;
    let device = Device::cpu(2).unwrap();
    let weights = weights(family);
    let tower = VisionTower::load(&config, normalisation(family), &weights, &device).unwrap();
    // The tower takes every tensor of its own, and no other.
    weights.finish(&[prefix::VISION]).unwrap();
    Loaded { family, config, device, tower }
}

impl Loaded {
    pub(crate) fn workspace(&self, inputs: &[VisionInput<'_>]) -> Workspace {
        self.tower.new_workspace(inputs.iter().map(|input| input.grid.num_patches()).sum()).unwrap()
    }

    pub(crate) fn outputs(&self, grids: impl IntoIterator<Item = GridThw>) -> Vec<Tensor> {
        let num_tokens: usize = grids.into_iter().map(|grid| self.tower.num_tokens(grid)).sum();
        let dims = [num_tokens, self.tower.out_hidden_size()];
        (0..=self.tower.num_deepstack()).map(|_| Tensor::zeros(&self.device, DType::F32, &dims).unwrap()).collect()
    }

    pub(crate) fn encode(&self, inputs: &[VisionInput<'_>]) -> Features {
        self.encode_in(&mut self.workspace(inputs), inputs)
    }

    pub(crate) fn encode_in(&self, workspace: &mut Workspace, inputs: &[VisionInput<'_>]) -> Features {
        let mut tensors = self.outputs(inputs.iter().map(|input| input.grid));
        self.tower.encode(self.device.stream(), inputs, workspace, output(&mut tensors)).unwrap();
        let mut values: Vec<Vec<f32>> = tensors.iter().map(|t| t.view().as_slice::<f32>().unwrap().to_vec()).collect();
        Features { embeds: values.remove(0), deepstack: values }
    }
}

/// The first tensor takes the embeddings, each other one a deepstack level.
pub(crate) fn output(tensors: &mut [Tensor]) -> VisionOutput<'_> {
    let (embeds, deepstack) = tensors.split_first_mut().unwrap();
    VisionOutput {
        embeds: embeds.view_mut().unwrap(),
        deepstack: deepstack.iter_mut().map(|level| level.view_mut().unwrap()).collect(),
    }
}

/// Bytes that look like nothing in particular, by splitmix64.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z >> 40) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}
