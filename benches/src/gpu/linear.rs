//! Products with weights.

use foveal_device::{DType, F8Product, MatmulInputs, MatmulShape, Tensor, View};
use foveal_kernels::linear::{BlockScales, Linear, linear, tune};
use foveal_kernels::quantize::{GROUP, group_stride};

use super::Bench;
use super::ceilings::Cost;
use super::operands::Rotation;
use super::shapes::{BF16, HEAD_DIM, HEADS, HIDDEN, INNER, QKV, VOCAB};

const ROWS: [usize; 12] = [1, 4, 8, 16, 32, 40, 64, 72, 128, 256, 1280, 8192];
/// So few that the operator has a kernel of its own for bf16, which is compared with cuBLASLt.
const GEMV_ROWS: usize = 8;
/// No step has more rows that sample.
const MAX_SAMPLED: usize = 256;

/// A product's sizes.
#[derive(Clone, Copy)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    out: DType,
    operands: Operands,
}

/// Element types of activations and weights.
#[derive(Clone, Copy, PartialEq)]
enum Operands {
    Bf16,
    /// FP8 without scales: the product that is scaled by its reader.
    F8,
    /// FP8 with a scale for each 128 x 128 weights.
    F8Blocks,
}

impl Operands {
    /// What it adds to the name of an operation.
    fn suffix(self) -> &'static str {
        match self {
            Self::Bf16 => "",
            Self::F8 => ", f8",
            Self::F8Blocks => ", f8 blocks",
        }
    }

    fn size_bytes(self) -> usize {
        if self == Self::Bf16 { BF16 } else { 1 }
    }
}

impl Product {
    fn text(&self) -> String {
        let Self { m, n, k, .. } = self;
        format!("{m} x {k} -> {n}")
    }

    fn cost(&self) -> Cost {
        let Self { m, n, k, out, operands } = *self;
        let bytes = (n * k + m * k) * operands.size_bytes() + m * n * out.size_bytes();
        Cost { bytes: bytes as f64, flops: 2.0 * (m * n) as f64 * k as f64 }
    }
}

/// A decoder layer's four products and the logits'. Tuned, as a model's are.
pub(super) fn linears(bench: &mut Bench) -> anyhow::Result<()> {
    let products = [
        ("qkv", QKV, HIDDEN, DType::BF16),
        ("o", HIDDEN, HEADS * HEAD_DIM, DType::BF16),
        ("gate_up", 2 * INNER, HIDDEN, DType::BF16),
        ("down", HIDDEN, INNER, DType::BF16),
        ("lm_head", VOCAB, HIDDEN, DType::F32),
    ];
    let forms = [Operands::Bf16, Operands::F8, Operands::F8Blocks];
    for (operands, (name, n, k, out)) in forms.into_iter().flat_map(|form| products.map(|product| (form, product))) {
        // The head stays bf16 in every format.
        if name == "lm_head" && operands != Operands::Bf16 {
            continue;
        }
        let rows = ROWS.into_iter().filter(|&m| name != "lm_head" || m <= MAX_SAMPLED);
        let ops = ["linear", "cuBLASLt"].map(|by| format!("{by} {name}{}", operands.suffix()));
        let products: Vec<Product> = rows.map(|m| Product { m, n, k, out, operands }).collect();
        if !products.iter().any(|product| ops.iter().any(|op| bench.wants(op, &product.text()))) {
            continue;
        }
        let weights = match operands {
            Operands::Bf16 => bench.rotation(&[n, k])?,
            Operands::F8 | Operands::F8Blocks => bench.f8_rotation(&[n, k])?,
        };
        for product in products {
            by_operator(bench, &ops[0], product, &weights)?;
            if product.m <= GEMV_ROWS && operands == Operands::Bf16 {
                by_library(bench, &ops[1], product, &weights)?;
            }
        }
    }
    Ok(())
}

fn by_operator(bench: &mut Bench, op: &str, product: Product, weights: &Rotation) -> anyhow::Result<()> {
    let text = product.text();
    if !bench.wants(op, &text) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let x = match product.operands {
        Operands::Bf16 => bench.random(&[product.m, product.k])?,
        Operands::F8 | Operands::F8Blocks => bench.f8_random(&[product.m, product.k])?,
    };
    let mut out = bench.scratch(product.out, &[product.m, product.n])?;
    let ones = |dims: [usize; 2]| Tensor::from_slice(&bench.device, &vec![0.5_f32; dims[0] * dims[1]], &dims);
    let groups = product.k.div_ceil(GROUP);
    let of_x = ones([groups, group_stride(product.m)])?;
    let of_weight = ones([product.n.div_ceil(GROUP), groups])?;
    let of_weight = [of_weight.view()];
    let has_blocks = product.operands == Operands::F8Blocks;
    let scales = has_blocks.then(|| BlockScales { x: of_x.view(), weight: &of_weight });
    let others = (1..weights.num_turns()).map(|i| Ok([weights.view(i)?])).collect::<anyhow::Result<Vec<_>>>()?;
    let others: Vec<&[View<'_>]> = others.iter().map(|other| &other[..]).collect();
    let args = Linear { x: x.view(), weight: &[weights.view(0)?], bias: None, scales, out: out.view_mut()? };
    if let Err(error) = tune(&stream, args, &others) {
        println!("{op} {text} left out: {error}");
        return Ok(());
    }
    bench.time(op, &text, product.cost(), |i| {
        let weight = &[weights.view(i)?];
        Ok(linear(&stream, Linear { x: x.view(), weight, bias: None, scales, out: out.view_mut()? })?)
    })
}

/// The same without a kernel of our own.
fn by_library(bench: &mut Bench, op: &str, product: Product, weights: &Rotation) -> anyhow::Result<()> {
    let text = product.text();
    if !bench.wants(op, &text) {
        return Ok(());
    }
    let cuda = bench.cuda()?.clone();
    let Product { m, n, k, out: out_dtype, .. } = product;
    let (bf16, f8) = (DType::BF16, F8Product::default());
    let shape = MatmulShape { m, n, k, x: bf16, weight: bf16, out: out_dtype, bias: None, ldo: product.n, f8 };
    let x = bench.random(&[m, k])?;
    let mut out = bench.scratch(out_dtype, &[m, n])?;
    let others = (1..weights.num_turns()).map(|i| weights.view(i)).collect::<Result<Vec<_>, _>>()?;
    let inputs = |weight| MatmulInputs { x: x.view(), weight, bias: None, scales: None };
    cuda.tune_matmul(&shape, &inputs(weights.view(0)?), &others, &mut out.view_mut()?, 0)?;
    bench.time(op, &text, product.cost(), |i| {
        Ok(cuda.matmul(&shape, &inputs(weights.view(i)?), &mut out.view_mut()?, 0)?)
    })
}
