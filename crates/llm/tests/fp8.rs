//! FP8 weights and caches of every published format: close to the same weights in float32, and as independent of batches
//! and chunks as those.

mod support;

use std::path::Path;

use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};
use foveal_device::{DType, Device};
use foveal_llm::{BatchLimits, Decoder, LlmError, Quantization};
use foveal_testkit::fp8::{Quantizer, Scheme};
use foveal_testkit::{assert_bitwise_equal, fixtures_dir};
use support::{Chunk, Model, OwnedBatch, PAGE, Prompt, Sizes};

const SCHEMES: [Scheme; 5] = Scheme::ALL;

/// The tiny model in a format, loaded as `quantization` says.
fn tiny(scheme: Option<Scheme>, quantization: Quantization, kv_dtype: DType) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let from = fixtures_dir().join("tiny");
    let path: &Path = match scheme {
        None => &from,
        Some(scheme) => {
            Quantizer::new(scheme).kv_scales([0.02, 0.02]).folder(&from, folder.path());
            folder.path()
        }
    };
    open(path, quantization, kv_dtype)
}

fn open(path: &Path, quantization: Quantization, kv_dtype: DType) -> Model {
    let folder = ModelFolder::open(path).unwrap();
    let config = ModelConfig::load(&folder).unwrap();
    config.ensure_supported().unwrap();
    let weights = WeightSource::open(&folder).unwrap().with_quantization(config.quantization.as_ref());
    let device = Device::cpu(2).unwrap();
    let sizes = Sizes { kv_dtype, ..Sizes::default() };
    let decoder = Decoder::load_quantized(&config, &weights, &device, sizes.max_model_len, quantization).unwrap();
    let cache = decoder.new_kv_cache(sizes.num_blocks, kv_dtype).unwrap();
    let workspace = decoder.new_workspace(sizes.limits).unwrap();
    Model { device, config, weights, decoder, cache, workspace }
}

fn prompt(seed: usize, len: usize) -> Prompt {
    Prompt::text((0..len).map(|i| ((i * 37 + seed * 101 + i * i * 7) % 1000) as i32).collect())
}

/// Logits of all rows of a prompt, alone.
fn logits(model: &mut Model, prompt: &Prompt) -> Vec<f32> {
    let blocks: Vec<i32> = (0..prompt.len().div_ceil(PAGE) as i32).collect();
    let chunks = [Chunk { prompt, rows: 0..prompt.len(), blocks: &blocks }];
    model.logits(&OwnedBatch::new(&chunks).text()).unwrap()
}

/// `‖got - expected‖ / ‖expected‖`
fn distance(got: &[f32], expected: &[f32]) -> f64 {
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = sum(&mut got.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    difference / sum(&mut expected.iter().map(|x| f64::from(*x)))
}

/// Against the same weights multiplied out: what is left is the rounding of activations, 2^-4 of an element at most and
/// partly averaged out.
#[test]
fn every_format_is_close_to_its_weights_in_float() {
    let prompt = prompt(1, 70);
    for scheme in SCHEMES {
        let mut fp8 = tiny(Some(scheme), Quantization::AsStored, DType::F32);
        let mut float = tiny(Some(scheme), Quantization::Float, DType::F32);
        assert!(fp8.decoder.is_fp8() && !float.decoder.is_fp8());
        fp8.weights.finish(&["model.language_model", "lm_head"]).unwrap();
        let (got, expected) = (logits(&mut fp8, &prompt), logits(&mut float, &prompt));
        let distance = distance(&got, &expected);
        assert!((1e-6..0.08).contains(&distance), "{scheme:?}: {distance}");
    }
}

#[test]
fn rounding_while_loading_is_the_format_by_channel() {
    let prompt = prompt(2, 40);
    let mut stored = tiny(Some(Scheme::ChannelDynamic), Quantization::AsStored, DType::F32);
    let mut rounded = tiny(None, Quantization::Fp8, DType::F32);
    let (got, expected) = (logits(&mut rounded, &prompt), logits(&mut stored, &prompt));
    // Weights on a tie fall on either side, as their scale is off by a bit, and then so do activations: less than rounding
    // them changes at all.
    let distance = distance(&got, &expected);
    assert!(distance < 0.03, "{distance}");
}

#[test]
fn an_fp8_cache_is_close_to_a_float_one_and_takes_a_quarter() {
    let prompt = prompt(3, 70);
    let mut float = tiny(None, Quantization::AsStored, DType::F32);
    let mut fp8 = tiny(None, Quantization::AsStored, DType::F8E4M3);
    assert!(!fp8.decoder.has_kv_scales());
    assert_eq!(4 * fp8.cache.len_bytes(), float.cache.len_bytes());
    let expected = logits(&mut float, &prompt);
    let unscaled = distance(&logits(&mut fp8, &prompt), &expected);
    assert!((1e-6..0.08).contains(&unscaled), "{unscaled}");

    // The checkpoint's scales are used: 0.02 leaves keys and values in the format's range as 1 does, so nothing changes but
    // which numbers are subnormal; absurd ones lose everything.
    let folder = tempfile::tempdir().unwrap();
    let from = fixtures_dir().join("tiny");
    let with_scales = |k, v| {
        Quantizer::new(Scheme::ChannelDynamic).kv_scales([k, v]).folder(&from, folder.path());
        let mut model = open(folder.path(), Quantization::AsStored, DType::F8E4M3);
        assert!(model.decoder.has_kv_scales());
        logits(&mut model, &prompt)
    };
    let mut weights_alone = tiny(Some(Scheme::ChannelDynamic), Quantization::AsStored, DType::F32);
    let expected = logits(&mut weights_alone, &prompt);
    let scaled = distance(&with_scales(0.05, 0.05), &expected);
    assert!((1e-6..0.08).contains(&scaled), "{scaled}");
    let absurd = distance(&with_scales(1e-5, 1e-5), &expected);
    assert!(absurd > 2.0 * scaled, "{absurd} after {scaled}");
}

/// Bitwise, as for float weights: chunks, neighbours and pages change nothing.
#[test]
fn a_rows_logits_depend_on_its_sequence_alone() {
    let (long, short) = (prompt(4, 75), prompt(5, 9));
    for scheme in SCHEMES {
        let mut model = tiny(Some(scheme), Quantization::AsStored, DType::F8E4M3);
        let vocab = model.decoder.settings().vocab_size;
        let (alone, short_alone) = (logits(&mut model, &long), logits(&mut model, &short));
        let (blocks, short_blocks) = ([7, 3, 12], [5]);
        let mut got = Vec::new();
        for (i, rows) in [0..1, 1..40, 40..75].into_iter().enumerate() {
            let own = rows.len() * vocab;
            let mut chunks = vec![Chunk { prompt: &long, rows, blocks: &blocks }];
            if i == 1 {
                chunks.push(Chunk { prompt: &short, rows: 0..9, blocks: &short_blocks });
            }
            let logits = model.logits(&OwnedBatch::new(&chunks).text()).unwrap();
            got.extend_from_slice(&logits[..own]);
            if i == 1 {
                assert_bitwise_equal(&logits[own..], &short_alone);
            }
        }
        assert_bitwise_equal(&got, &alone);
    }
}

#[test]
fn a_workspace_without_fp8_is_refused() {
    let mut fp8 = tiny(Some(Scheme::Block), Quantization::AsStored, DType::F32);
    let float = tiny(None, Quantization::AsStored, DType::F32);
    let limits = BatchLimits { max_tokens: 16, max_seqs: 1, max_logit_rows: 16 };
    fp8.workspace = float.decoder.new_workspace(limits).unwrap();
    let prompt = prompt(6, 3);
    let chunks = [Chunk { prompt: &prompt, rows: 0..3, blocks: &[0] }];
    let error = fp8.logits(&OwnedBatch::new(&chunks).text()).unwrap_err();
    assert!(matches!(error, LlmError::WorkspaceMismatch), "{error}");
}
