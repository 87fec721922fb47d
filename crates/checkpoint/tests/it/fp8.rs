//! FP8 layers: which format their tensors make, and what is wrong with those that make none.

use std::sync::Arc;

use foveal_checkpoint::{
    CheckpointError, Fp8Format, HostTensor, InputScale, InputScaleKind, LinearFormat, ModelConfig, ModelFolder, Part,
    WeightScaleKind, WeightScales, WeightSource, prefix,
};
use foveal_device::{DType, Device, F8E4M3, Tensor};
use foveal_testkit::fixtures_dir;
use foveal_testkit::fp8::{Quantizer, Scheme};
use half::{bf16, f16};
use tempfile::TempDir;

use crate::support::{assert_says, config_json, open_weights, parse, read_config};

/// The tiny model's decoder: hidden size, MLP, and the widths of q, and of k and v.
const LAYERS: [(&str, [usize; 2]); 7] = [
    ("self_attn.q_proj", [512, 256]),
    ("self_attn.k_proj", [256, 256]),
    ("self_attn.v_proj", [256, 256]),
    ("self_attn.o_proj", [256, 512]),
    ("mlp.gate_proj", [640, 256]),
    ("mlp.up_proj", [640, 256]),
    ("mlp.down_proj", [256, 640]),
];
const NUM_LAYERS: usize = 4;

fn quantised(quantizer: &Quantizer<'_>) -> (TempDir, ModelConfig, WeightSource) {
    let dir = tempfile::tempdir().unwrap();
    quantizer.folder(&fixtures_dir().join("tiny"), dir.path());
    let config = read_config(dir.path());
    config.ensure_supported().unwrap();
    let weights = open_weights(dir.path()).unwrap().with_quantization(config.quantization.as_ref());
    (dir, config, weights)
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.view().as_slice::<bf16>().unwrap().iter().map(|x| x.to_f32()).collect()
}

/// The scale of the element in row `i` and column `j` of `[n, k]`.
fn scale_at(scales: &WeightScales, k: usize, i: usize, j: usize) -> f32 {
    match scales {
        WeightScales::Tensor(scale) => *scale,
        WeightScales::Channel(rows) => rows[i],
        WeightScales::Block(blocks) => blocks[i / 128 * k.div_ceil(128) + j / 128],
    }
}

/// What is read back is the weight that was quantised, to FP8's half step, and the whole folder is asked for.
#[test]
fn every_scheme_is_read_back() {
    let tiny = open_weights(&fixtures_dir().join("tiny")).unwrap();
    let device = Device::cpu(1).unwrap();
    for scheme in Scheme::ALL {
        let input_scale = |module: &str| if module.ends_with("o_proj") { 0.5 } else { 0.25 };
        let (_dir, config, weights) = quantised(&Quantizer::new(scheme).input_scale(input_scale).kv_scales([0.5, 2.0]));
        let text = weights.at(prefix::TEXT);
        for layer in 0..NUM_LAYERS {
            for (module, shape @ [n, k]) in LAYERS {
                let name = format!("layers.{layer}.{module}");
                let LinearFormat::Fp8(Fp8Format { weight, input }) = text.linear_format(&name, shape).unwrap() else {
                    panic!("{scheme:?}: {name} is not quantised");
                };
                let expected = match scheme.is_static() {
                    true => InputScale::Static(input_scale(&name)),
                    false => InputScale::Dynamic,
                };
                assert_eq!(input, expected, "{scheme:?}: {name}");
                let num_scales = match &weight {
                    WeightScales::Tensor(_) => 1,
                    WeightScales::Channel(scales) | WeightScales::Block(scales) => scales.len(),
                };
                let expected = match scheme {
                    Scheme::ChannelDynamic => n,
                    Scheme::Block => n.div_ceil(128) * k.div_ceil(128),
                    Scheme::TensorStatic | Scheme::TensorDynamic | Scheme::ModelOpt => 1,
                };
                assert_eq!(num_scales, expected, "{scheme:?}: {name}");

                let name = format!("{name}.weight");
                let placed = text.place_fp8(&device, &[Part::new(&name, &shape)]).unwrap();
                let elements = placed[0].view().as_slice::<F8E4M3>().unwrap();
                let original = f32s(&tiny.at(prefix::TEXT).get(&name, &shape).unwrap());
                for (at, (x, element)) in original.iter().zip(elements).enumerate() {
                    let scale = scale_at(&weight, k, at / k, at % k);
                    let error = (element.to_f32() * scale - x).abs();
                    assert!(error <= (x.abs() * 0.07).max(scale / 1000.0), "{scheme:?}: {name} {at}: {x}");
                }
            }
            assert_eq!(text.kv_scales(&format!("layers.{layer}.self_attn")).unwrap(), Some([0.5, 2.0]), "{scheme:?}");
        }
        for spec in config.tensors().unwrap().iter().filter(|spec| !is_quantised(&spec.name)) {
            weights.get(&spec.name, &spec.shape).unwrap();
        }
        weights.finish(&[prefix::ALL]).unwrap();
    }
}

fn is_quantised(name: &str) -> bool {
    LAYERS
        .iter()
        .any(|(module, _)| name.contains("language_model.layers") && name.ends_with(&format!("{module}.weight")))
}

#[test]
fn the_names_and_shapes_alone_tell_the_scheme() {
    for scheme in Scheme::ALL {
        let (_dir, _, weights) = quantised(&Quantizer::new(scheme));
        let text = weights.at(prefix::TEXT);
        for (layer, (module, shape)) in (0..NUM_LAYERS).flat_map(|i| LAYERS.map(|l| (i, l))) {
            let name = format!("layers.{layer}.{module}");
            let found = text.linear_scheme(&name, shape).unwrap().unwrap();
            let weight = match scheme {
                Scheme::Block => WeightScaleKind::Block,
                Scheme::ChannelDynamic => WeightScaleKind::Channel,
                _ => WeightScaleKind::Tensor,
            };
            let input = if scheme.is_static() { InputScaleKind::Static } else { InputScaleKind::Dynamic };
            assert_eq!((found.weight, found.input), (weight, input), "{scheme:?}: {name}");
            weights.skip(&text.full_name(&format!("{name}.weight")));
            assert_eq!(text.kv_scales(&format!("layers.{layer}.self_attn")).unwrap(), None);
        }
        let surplus = weights.finish(&[prefix::TEXT]).unwrap_err().to_string();
        assert!(!surplus.contains("scale") && surplus.contains("norm.weight"), "{surplus}");
    }
}

#[test]
fn float_layers_have_no_scales() {
    let weights = open_weights(&fixtures_dir().join("tiny")).unwrap();
    let text = weights.at(prefix::TEXT);
    assert_eq!(text.linear_format("layers.0.mlp.up_proj", [640, 256]).unwrap(), LinearFormat::Float);
    assert_eq!(text.linear_scheme("layers.0.mlp.up_proj", [640, 256]).unwrap(), None);
    assert_eq!(weights.at("").linear_format("lm_head", [1024, 256]).unwrap(), LinearFormat::Float);
    let error = text.linear_format("layers.0.mlp.up_proj", [256, 640]).unwrap_err();
    assert!(matches!(error, CheckpointError::WrongShape { .. }), "{error}");
    let error = text.linear_format("layers.9.mlp.up_proj", [640, 256]).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingTensor { .. }), "{error}");
}

/// A tensor of a layer `l` in memory.
fn tensor(name: &str, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> HostTensor {
    HostTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: Arc::new(bytes) }
}

fn fp8(shape: [usize; 2]) -> HostTensor {
    tensor("l.weight", DType::F8E4M3, &shape, (0..shape[0] * shape[1]).map(|i| i as u8 & 0x7).collect())
}

fn f32_scales(name: &str, shape: &[usize], value: f32) -> HostTensor {
    tensor(name, DType::F32, shape, value.to_le_bytes().repeat(shape.iter().product()))
}

fn source(tensors: Vec<HostTensor>) -> WeightSource {
    WeightSource::in_memory("memory", tensors).unwrap()
}

/// The format of the layer `l` with one tensor of scales.
fn format_with(shape: [usize; 2], scales: HostTensor) -> Result<LinearFormat, CheckpointError> {
    source(vec![fp8(shape), scales]).at("").linear_format("l", shape)
}

#[track_caller]
fn weight_scales(shape: [usize; 2], scales: HostTensor) -> WeightScales {
    match format_with(shape, scales).unwrap() {
        LinearFormat::Fp8(format) => format.weight,
        LinearFormat::Float => panic!("not quantised"),
    }
}

#[test]
fn shapes_of_scales() {
    let shape = [130, 300];
    for dims in [&[][..], &[1], &[1, 1]] {
        assert_eq!(weight_scales(shape, f32_scales("l.weight_scale", dims, 0.5)), WeightScales::Tensor(0.5));
        assert_eq!(weight_scales(shape, f32_scales("l.weight_scale_inv", dims, 0.5)), WeightScales::Tensor(0.5));
    }
    for dims in [&[130][..], &[130, 1]] {
        let expected = WeightScales::Channel(vec![0.5; 130]);
        assert_eq!(weight_scales(shape, f32_scales("l.weight_scale", dims, 0.5)), expected);
    }
    for name in ["l.weight_scale", "l.weight_scale_inv"] {
        assert_eq!(weight_scales(shape, f32_scales(name, &[2, 3], 0.5)), WeightScales::Block(vec![0.5; 6]));
    }
    // One block is one tensor: the name tells, and the config where there is one.
    assert_eq!(weight_scales([8, 8], f32_scales("l.weight_scale", &[1, 1], 0.5)), WeightScales::Tensor(0.5));
    assert_eq!(weight_scales([8, 8], f32_scales("l.weight_scale_inv", &[1, 1], 0.5)), WeightScales::Block(vec![0.5]));

    let error = format_with(shape, f32_scales("l.weight_scale", &[3, 2], 0.5)).unwrap_err();
    assert!(matches!(error, CheckpointError::WrongScaleShape { .. }));
    assert_says(&error, &["memory", "l.weight_scale has shape [3, 2]", "[130, 300]", "130 (per channel)", "[2, 3]"]);
}

#[test]
fn scales_of_every_float_type_are_float32() {
    let shape = [4, 8];
    let bytes = bf16::from_f32(0.1).to_le_bytes().to_vec();
    let scales = weight_scales(shape, tensor("l.weight_scale", DType::BF16, &[1], bytes));
    assert_eq!(scales, WeightScales::Tensor(0.100_097_656));
    let bytes = [0.5, 0.1, 2.0, 3.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let scales = weight_scales(shape, tensor("l.weight_scale", DType::F16, &[4, 1], bytes));
    assert_eq!(scales, WeightScales::Channel(vec![0.5, 0.099_975_586, 2.0, 3.0]));
    let error = format_with(shape, tensor("l.weight_scale", DType::U8, &[1], vec![127])).unwrap_err();
    assert!(matches!(error, CheckpointError::WrongDType { .. }));
    assert_says(&error, &["memory", "l.weight_scale", "U8", "f32, bf16 or f16"]);
}

#[test]
fn scales_that_are_missing_or_can_not_be() {
    let shape = [4, 8];
    let error = source(vec![fp8(shape)]).at("").linear_format("l", shape).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingScale { .. }));
    assert_says(&error, &["memory", "l.weight holds FP8", "no l.weight_scale_inv and no l.weight_scale"]);
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let bytes = [1.0, 1.0, bad, 1.0].iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
        let error = format_with(shape, tensor("l.weight_scale", DType::F32, &[4], bytes)).unwrap_err();
        assert!(matches!(error, CheckpointError::BadScale { index: 2, .. }), "{error}");
        assert_says(&error, &["memory: element 2 of l.weight_scale is", "finite and above 0"]);
    }
    let layer = |input: HostTensor| vec![fp8(shape), f32_scales("l.weight_scale", &[], 1.0), input];
    let format = |input| source(layer(input)).at("").linear_format("l", shape);
    let error = format(f32_scales("l.input_scale", &[], 0.0)).unwrap_err();
    assert_says(&error, &["l.input_scale", "is 0"]);
    let error = format(f32_scales("l.input_scale", &[2], 1.0)).unwrap_err();
    assert!(matches!(error, CheckpointError::WrongShape { .. }));
    assert_says(&error, &["l.input_scale has shape [2]", "asks for []"]);
    let integers = tensor("l.weight", DType::I32, &[1, 1], vec![0; 4]);
    let error = source(vec![integers]).at("").linear_format("l", [1, 1]).unwrap_err();
    assert_says(&error, &["l.weight holds I32", "f8_e4m3"]);
}

#[test]
fn tensors_that_are_not_what_the_config_promises() {
    let quantization = |section: serde_json::Value| {
        let mut config = config_json("tiny");
        config["quantization_config"] = section;
        parse(&config).unwrap().quantization
    };
    let shape = [256, 8];
    let format = |section: serde_json::Value, tensors: Vec<HostTensor>| {
        let tensors = [vec![fp8(shape)], tensors].concat();
        source(tensors).with_quantization(quantization(section).as_ref()).at("").linear_format("l", shape)
    };
    let scale = f32_scales("l.weight_scale", &[], 1.0);
    let input = f32_scales("l.input_scale", &[1], 1.0);
    let fixed = serde_json::json!({"quant_method": "fp8", "activation_scheme": "static"});
    let dynamic = serde_json::json!({"quant_method": "fp8", "activation_scheme": "dynamic"});
    let block = serde_json::json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    let modelopt = serde_json::json!({"quant_method": "modelopt", "quant_algo": "FP8"});

    let error = format(fixed, vec![scale.clone()]).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingTensor { .. }));
    assert_says(&error, &["l.input_scale", "missing from memory"]);
    let error = format(dynamic, vec![scale.clone(), input.clone()]).unwrap_err();
    assert!(matches!(error, CheckpointError::FormatMismatch { .. }));
    assert_says(&error, &["memory", "l.input_scale", "input static per tensor", "input dynamic per token"]);
    let error = format(block.clone(), vec![scale.clone()]).unwrap_err();
    assert!(matches!(error, CheckpointError::FormatMismatch { .. }));
    assert_says(&error, &["l.weight_scale", "`weight per tensor", "`weight 128x128 blocks, input dynamic per 128`"]);
    let blocks = f32_scales("l.weight_scale_inv", &[2, 1], 1.0);
    assert!(format(block.clone(), vec![blocks.clone()]).is_ok());
    let error = format(block, vec![blocks.clone(), input.clone()]).unwrap_err();
    assert_says(&error, &["l.input_scale", "dynamic per 128"]);
    // With no config either: no operator takes blocks and a static input.
    let error = source(vec![fp8(shape), blocks, input.clone()]).at("").linear_format("l", shape).unwrap_err();
    assert!(matches!(error, CheckpointError::FormatMismatch { .. }));
    for (tensors, expected) in
        [(vec![scale.clone()], InputScale::Dynamic), (vec![scale, input], InputScale::Static(1.0))]
    {
        let expected = LinearFormat::Fp8(Fp8Format { weight: WeightScales::Tensor(1.0), input: expected });
        assert_eq!(format(modelopt.clone(), tensors).unwrap(), expected);
    }
}

#[test]
fn scales_of_keys_and_values() {
    let kv = |k: HostTensor, v: Option<HostTensor>| {
        source([k].into_iter().chain(v).collect()).at("").kv_scales("layers.0.self_attn")
    };
    let scales = |part: &str, shape: &[usize], value| f32_scales(&format!("layers.0.self_attn.{part}"), shape, value);
    let names = [
        ("k_scale", "v_scale"),
        ("k_proj.output_scale", "v_proj.output_scale"),
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("attn.k_scale", "attn.v_scale"),
    ];
    for (k, v) in names {
        let found = kv(scales(k, &[], 0.5), Some(scales(v, &[1], 0.25))).unwrap();
        assert_eq!(found, Some([0.5, 0.25]));
        let error = kv(scales(v, &[], 0.5), None).unwrap_err();
        assert!(matches!(error, CheckpointError::MissingTensor { .. }));
        assert_says(&error, &[k]);
    }
    assert_eq!(kv(scales("other", &[], 1.0), None).unwrap(), None);
    let error = kv(scales("k_scale", &[2], 1.0), Some(scales("v_scale", &[], 1.0))).unwrap_err();
    assert!(matches!(error, CheckpointError::WrongShape { .. }), "{error}");
    let error = kv(scales("k_scale", &[], 1.0), Some(scales("v_scale", &[], -0.5))).unwrap_err();
    assert_says(&error, &["v_scale", "-0.5"]);
}

#[test]
fn fp8_is_asked_for_by_name() {
    let device = Device::cpu(1).unwrap();
    let float = tensor("f.weight", DType::F32, &[1], vec![0; 4]);
    let weights = source(vec![fp8([2, 4]), float]);
    let scope = weights.at("");
    assert!(matches!(scope.get("l.weight", &[2, 4]), Err(CheckpointError::WrongDType { .. })));
    assert!(matches!(scope.get_fp8("f.weight", &[1]), Err(CheckpointError::WrongDType { .. })));
    let part = Part::new("l.weight", &[2, 4]);
    assert!(matches!(scope.place(&device, &[part]), Err(CheckpointError::WrongDType { .. })));
    // The same bytes, whoever holds them as what.
    let bytes = scope.get_bytes("l.weight", &[2, 4]).unwrap();
    let elements = scope.get_fp8("l.weight", &[2, 4]).unwrap();
    assert_eq!((bytes.dtype(), elements.dtype()), (DType::U8, DType::F8E4M3));
    assert!(Arc::ptr_eq(&elements, &scope.place_fp8(&device, &[part]).unwrap()[0]), "in place");
    let address = elements.view().as_slice::<F8E4M3>().unwrap().as_ptr().addr();
    assert_eq!(address, bytes.view().as_slice::<u8>().unwrap().as_ptr().addr());
}

/// Config and tensors of ModelOpt, whose settings lie in a file of their own.
#[test]
fn a_modelopt_folder_is_read_by_its_own_file() {
    let (dir, config, _) = quantised(&Quantizer::new(Scheme::ModelOpt).kv_scales([1.0, 1.0]));
    assert!(config_json("tiny").get("quantization_config").is_none());
    let quantization = ModelConfig::load(&ModelFolder::open(dir.path()).unwrap()).unwrap().quantization.unwrap();
    assert_eq!((quantization.quant_method.as_str(), quantization.has_fp8_kv_cache), ("modelopt", true));
    assert_eq!(config.quantization, Some(quantization));
}
