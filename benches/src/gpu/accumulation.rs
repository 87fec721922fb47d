//! What it costs, and what it gains, to move the sums of FP8 products out of the tensor cores as they grow.

use foveal_device::{CudaStream, DType, F8E4M3, F8Product, MatmulInputs, MatmulShape, Tensor};
use half::bf16;

use super::Bench;
use super::shapes::{HEAD_DIM, HEADS, HIDDEN, INNER};

/// Rows of a step of one sequence, of many, and of a prompt.
const ROWS: [usize; 3] = [1, 128, 1280];

/// The products whose sums are the shortest and the longest of a decoder layer.
pub(super) fn sums(bench: &mut Bench) -> anyhow::Result<()> {
    for (name, k) in [("o", HEADS * HEAD_DIM), ("down", INNER)] {
        let ops =
            [(true, "fast"), (false, "promoted")].map(|(is_fast, kind)| (is_fast, format!("{kind} sums of {name}")));
        let text = |m: usize| format!("{m} x {k} -> {HIDDEN}");
        let is_wanted = |m: &usize| ops.iter().any(|(_, op)| bench.wants(op, &text(*m)));
        let wanted: Vec<usize> = ROWS.into_iter().filter(is_wanted).collect();
        if wanted.is_empty() {
            continue;
        }
        let weight = Widened::random(bench, [HIDDEN, k])?;
        for m in wanted {
            of_product(bench, &ops, &text(m), &Widened::random(bench, [m, k])?, &weight)?;
        }
    }
    Ok(())
}

/// FP8 numbers, and the same in bf16, which holds them all.
struct Widened {
    f8: Tensor,
    bf16: Tensor,
    dims: [usize; 2],
}

impl Widened {
    fn random(bench: &Bench, dims: [usize; 2]) -> anyhow::Result<Self> {
        let f8 = bench.f8_random(&dims)?;
        let values: Vec<bf16> = f8.to_vec::<F8E4M3>()?.iter().map(|x| bf16::from_f32(x.to_f32())).collect();
        Ok(Self { bf16: Tensor::from_slice(&bench.device, &values, &dims)?, f8, dims })
    }
}

/// Times a product with either kind of sums, and compares it with the product of the same numbers in bf16, which keeps
/// float32 sums.
fn of_product(
    bench: &mut Bench,
    ops: &[(bool, String)],
    text: &str,
    x: &Widened,
    weight: &Widened,
) -> anyhow::Result<()> {
    let cuda = bench.cuda()?.clone();
    let ([m, k], [n, _]) = (x.dims, weight.dims);
    let shape_of =
        |dtype, f8| MatmulShape { m, n, k, x: dtype, weight: dtype, out: DType::F32, bias: None, ldo: n, f8 };
    let exact = product(bench, &cuda, &shape_of(DType::BF16, F8Product::default()), [&x.bf16, &weight.bf16])?;
    for (fast_accumulation, op) in ops {
        if !bench.wants(op, text) {
            continue;
        }
        let f8 = F8Product { fast_accumulation: *fast_accumulation, has_block_scales: false };
        let shape = shape_of(DType::F8E4M3, f8);
        let inputs = MatmulInputs { x: x.f8.view(), weight: weight.f8.view(), bias: None, scales: None };
        let mut out = bench.scratch(DType::F32, &[m, n])?;
        cuda.tune_matmul(&shape, &inputs, &[], &mut out.view_mut()?, 0)?;
        let times = bench
            .time_so_many(Bench::MAX_CALLS / 4, |_| Ok(cuda.matmul(&shape, &inputs, &mut out.view_mut()?, 0)?))?;
        let error = relative_rms(&out.to_vec::<f32>()?, &exact);
        bench.report_value(op, text, times, (error * 1e6, "ppm off"))?;
    }
    Ok(())
}

fn product(
    bench: &Bench,
    cuda: &CudaStream,
    shape: &MatmulShape,
    [x, weight]: [&Tensor; 2],
) -> anyhow::Result<Vec<f32>> {
    let mut out = bench.scratch(shape.out, &[shape.m, shape.n])?;
    let inputs = MatmulInputs { x: x.view(), weight: weight.view(), bias: None, scales: None };
    cuda.matmul(shape, &inputs, &mut out.view_mut()?, 0)?;
    Ok(out.to_vec::<f32>()?)
}

/// The root mean square of the differences, as a share of that of the numbers.
fn relative_rms(got: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let differences: f64 = got.iter().zip(expected).map(|(&x, &y)| square(f64::from(x) - f64::from(y))).sum();
    (differences / expected.iter().map(|&x| square(f64::from(x))).sum::<f64>()).sqrt()
}
