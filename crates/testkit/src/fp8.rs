//! FP8 checkpoints made from float ones: each published dialect, with the scales that its exporter would have found.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use foveal_device::F8E4M3;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// Rows and columns of a block.
const BLOCK: usize = 128;
const WEIGHTS: &str = "model.safetensors";

/// A dialect, and the scales that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `fp8`, as vLLM reads it: one `weight_scale` for each weight, and an `input_scale`.
    TensorStatic,
    /// `fp8`, as vLLM reads it: one `weight_scale` for each weight.
    TensorDynamic,
    /// `compressed-tensors`: a `weight_scale` `[n, 1]` for each row.
    ChannelDynamic,
    /// `fp8`, as Qwen publishes it: a bf16 `weight_scale_inv` for each block of 128 by 128.
    Block,
    /// ModelOpt's `hf_quant_config.json`: one `weight_scale` for each weight, and an `input_scale`.
    ModelOpt,
}

impl Scheme {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::TensorStatic, Self::TensorDynamic, Self::ChannelDynamic, Self::Block, Self::ModelOpt];

    /// Whether the layers' inputs have scales beforehand.
    #[must_use]
    pub fn is_static(self) -> bool {
        matches!(self, Self::TensorStatic | Self::ModelOpt)
    }
}

type InputScales<'a> = Box<dyn Fn(&str) -> f32 + 'a>;

/// Makes an FP8 checkpoint of a float one: the decoder's linear layers are quantised, and embeddings, norms, the head and
/// the vision tower stay as they are.
pub struct Quantizer<'a> {
    scheme: Scheme,
    input_scale: InputScales<'a>,
    kv_scales: Option<[f32; 2]>,
}

impl<'a> Quantizer<'a> {
    /// What static inputs are divided by when nobody says otherwise.
    pub const INPUT_SCALE: f32 = 0.05;

    /// For `scheme`, with [`Quantizer::INPUT_SCALE`] for every input and without scales of keys and values.
    #[must_use]
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, input_scale: Box::new(|_| Self::INPUT_SCALE), kv_scales: None }
    }

    /// The scale of a layer's input, by the layer's name in the file (`model.language_model.layers.0.mlp.up_proj`), for
    /// schemes that have one.
    #[must_use]
    pub fn input_scale(mut self, of: impl Fn(&str) -> f32 + 'a) -> Self {
        self.input_scale = Box::new(of);
        self
    }

    /// Scales of every layer's keys and values, in the dialect's names.
    #[must_use]
    pub fn kv_scales(mut self, [k, v]: [f32; 2]) -> Self {
        self.kv_scales = Some([k, v]);
        self
    }

    /// Reads `model.safetensors` and `config.json` of `from`, writes those of the FP8 checkpoint to `to`, and copies the
    /// other files. `to` must be another, existing folder.
    ///
    /// # Panics
    /// When a file can't be read or written, `to` is `from`, or a layer's weight is neither bf16 nor f32.
    pub fn folder(&self, from: &Path, to: &Path) {
        assert_ne!(from.canonicalize().ok(), to.canonicalize().ok(), "an FP8 checkpoint needs a folder of its own");
        for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
            let (path, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
            if path.is_file() && name != "config.json" && name != WEIGHTS {
                fs::write(to.join(name), read(&path)).unwrap();
            }
        }
        let mut config: Value = serde_json::from_slice(&read(&from.join("config.json"))).unwrap();
        let section = self.config_section();
        if self.scheme == Scheme::ModelOpt {
            fs::write(to.join("hf_quant_config.json"), section.to_string()).unwrap();
        } else {
            config["quantization_config"] = section;
        }
        fs::write(to.join("config.json"), serde_json::to_vec_pretty(&config).unwrap()).unwrap();

        let file = read(&from.join(WEIGHTS));
        let tensors = self.tensors(&SafeTensors::deserialize(&file).unwrap());
        let views =
            tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &to.join(WEIGHTS)).unwrap();
    }

    fn tensors<'f>(&self, file: &SafeTensors<'f>) -> BTreeMap<String, Written<'f>> {
        let mut out = BTreeMap::new();
        for (name, view) in file.tensors() {
            let module = name.strip_suffix(".weight").filter(|module| is_linear(module));
            let (Some(module), &[n, k]) = (module, view.shape()) else {
                let (dtype, shape) = (view.dtype(), view.shape().to_vec());
                out.insert(name, Written { dtype, shape, bytes: Cow::Borrowed(view.data()) });
                continue;
            };
            let layer = Layer { values: floats(view.dtype(), view.data()), n, k };
            let (scale_name, scale, weight) = layer.quantised(self.scheme);
            out.insert(format!("{module}.{scale_name}"), scale);
            if self.scheme.is_static() {
                out.insert(format!("{module}.input_scale"), scalar((self.input_scale)(module)));
            }
            out.insert(format!("{module}.weight"), weight);
            if let (Some(kv), Some(attention)) = (self.kv_scales, module.strip_suffix(".q_proj")) {
                let names = if self.scheme == Scheme::ModelOpt {
                    ["k_proj.k_scale", "v_proj.v_scale"]
                } else {
                    ["k_scale", "v_scale"]
                };
                for (name, scale) in names.iter().zip(kv) {
                    out.insert(format!("{attention}.{name}"), scalar(scale));
                }
            }
        }
        out
    }

    /// `quantization_config`, or ModelOpt's file.
    fn config_section(&self) -> Value {
        let scheme = |strategy: &str, is_dynamic: bool| {
            json!({
                "num_bits": 8, "type": "float", "strategy": strategy, "dynamic": is_dynamic, "symmetric": true,
            })
        };
        let per_tensor = |activations: &str| {
            json!({
                "quant_method": "fp8", "activation_scheme": activations, "ignored_layers": ["lm_head", "re:.*visual.*"],
            })
        };
        match self.scheme {
            Scheme::TensorStatic => per_tensor("static"),
            Scheme::TensorDynamic => per_tensor("dynamic"),
            Scheme::ChannelDynamic => json!({
                "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
                "config_groups": {"group_0": {
                    "targets": ["Linear"], "weights": scheme("channel", false),
                    "input_activations": scheme("token", true), "output_activations": null,
                }},
                "ignore": ["lm_head", "re:.*visual.*"],
                "kv_cache_scheme": self.kv_scales.map(|_| scheme("tensor", false)),
            }),
            Scheme::Block => json!({
                "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
                "modules_to_not_convert": ["lm_head", "visual", "model.visual"],
            }),
            Scheme::ModelOpt => json!({
                "producer": {"name": "modelopt", "version": "0.33.0"},
                "quantization": {
                    "quant_algo": "FP8", "kv_cache_quant_algo": self.kv_scales.map(|_| "FP8"),
                    "exclude_modules": ["lm_head", "model.visual*"],
                },
            }),
        }
    }
}

/// [`Quantizer::folder`] with the scheme's defaults.
///
/// # Panics
/// As [`Quantizer::folder`].
pub fn quantize_folder(from: &Path, to: &Path, scheme: Scheme) {
    Quantizer::new(scheme).folder(from, to);
}

/// A tensor on its way to the file.
struct Written<'f> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'f, [u8]>,
}

/// A weight `[n, k]` before it is quantised.
struct Layer {
    values: Vec<f32>,
    n: usize,
    k: usize,
}

impl Layer {
    /// The name of the scales, the scales, and the weight divided by them.
    fn quantised(&self, scheme: Scheme) -> (&'static str, Written<'static>, Written<'static>) {
        let (n, k) = (self.n, self.k);
        // Rows and columns that share a scale.
        let (rows, columns) = match scheme {
            Scheme::TensorStatic | Scheme::TensorDynamic | Scheme::ModelOpt => (n, k),
            Scheme::ChannelDynamic => (1, k),
            Scheme::Block => (BLOCK, BLOCK),
        };
        let grid = [n.div_ceil(rows), k.div_ceil(columns)];
        let mut scales: Vec<f32> = (0..grid[0] * grid[1])
            .into_par_iter()
            .map(|group| {
                let [row, column] = [group / grid[1] * rows, group % grid[1] * columns];
                let of_row = |row: usize| &self.values[row * k..][column..(column + columns).min(k)];
                (row..(row + rows).min(n)).flat_map(of_row).fold(0.0_f32, |amax, x| amax.max(x.abs()))
            })
            .collect();
        for scale in &mut scales {
            // Nothing but zeros: any scale is right.
            let exact = if *scale == 0.0 { 1.0 } else { *scale / F8E4M3::MAX };
            *scale = if scheme == Scheme::Block { f32::from_bits(u32::from(bf16_bits(exact)) << 16) } else { exact };
        }
        let bytes: Vec<u8> = (self.values.par_chunks(k).enumerate())
            .flat_map_iter(|(row, values)| {
                let of_row = &scales[row / rows * grid[1]..];
                values.iter().enumerate().map(|(i, x)| F8E4M3::from_f32(x / of_row[i / columns]).to_bits())
            })
            .collect();
        let weight = Written { dtype: Dtype::F8_E4M3, shape: vec![n, k], bytes: bytes.into() };
        let (name, scales) = match scheme {
            Scheme::Block => {
                let bytes = scales.iter().flat_map(|&scale| bf16_bits(scale).to_le_bytes()).collect();
                ("weight_scale_inv", Written { dtype: Dtype::BF16, shape: grid.to_vec(), bytes })
            }
            Scheme::ChannelDynamic => ("weight_scale", float32(vec![n, 1], &scales)),
            _ => ("weight_scale", float32(vec![], &scales)),
        };
        (name, scales, weight)
    }
}

/// The decoder's projections, by their names in any generation's spelling.
fn is_linear(module: &str) -> bool {
    module.contains(".layers.") && module.ends_with("_proj") && !module.contains("visual")
}

fn scalar(value: f32) -> Written<'static> {
    float32(vec![], &[value])
}

fn float32(shape: Vec<usize>, values: &[f32]) -> Written<'static> {
    Written { dtype: Dtype::F32, shape, bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect() }
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]]))).collect(),
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        other => panic!("a layer's weight is {other:?}; bf16 and f32 can be quantised"),
    }
}

/// The bf16 nearest to a positive finite number, ties to even.
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantised_weight_times_its_scales_is_the_weight() {
        // Two block rows and two block columns, both cut short; the last block holds zeros.
        let (n, k) = (BLOCK + 5, BLOCK + 3);
        let value = |i: usize| match (i / k >= BLOCK, i % k >= BLOCK) {
            (true, true) => 0.0,
            (true, false) => ((i % 91) as f32 - 45.0) * 40.0,
            _ => ((i % 83) as f32 - 41.0) * 1e-3,
        };
        let layer = Layer { values: (0..n * k).map(value).collect(), n, k };
        for scheme in Scheme::ALL {
            let (_, scales, weight) = layer.quantised(scheme);
            let shape: &[usize] = match scheme {
                Scheme::ChannelDynamic => &[n, 1],
                Scheme::Block => &[2, 2],
                _ => &[],
            };
            assert_eq!((scales.shape.as_slice(), weight.shape.as_slice()), (shape, &[n, k][..]));
            let of = floats(scales.dtype, &scales.bytes);
            assert!(of.iter().all(|scale| scale.is_finite() && *scale > 0.0));
            for (i, (x, bits)) in layer.values.iter().zip(weight.bytes.iter()).enumerate() {
                let scale = match scheme {
                    Scheme::ChannelDynamic => of[i / k],
                    Scheme::Block => of[2 * usize::from(i / k >= BLOCK) + usize::from(i % k >= BLOCK)],
                    _ => of[0],
                };
                let back = F8E4M3::from_bits(*bits).to_f32() * scale;
                // Half a step of three bits of mantissa, or of the subnormals, 2^-9; bf16's rounding of a scale clips.
                let error = (x.abs() / 16.0 + x.abs() / 256.0).max(scale / 1024.0 * 1.01);
                assert!((back - x).abs() <= error, "{scheme:?} {i}: {back} for {x}");
            }
        }
    }
}
