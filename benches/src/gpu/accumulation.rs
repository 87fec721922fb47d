//! What it costs, and what it gains, to move the sums of FP8 products out of the tensor cores as they grow.

use foveal_device::{CudaStream, DType, F8E4M3, F8Product, MatmulInputs, MatmulShape, Tensor, View};
use half::bf16;

use super::Bench;
use super::shapes::{HEAD_DIM, HEADS, HIDDEN, INNER};

/// Rows of a step of one sequence, of many, and of a prompt.
const ROWS: [usize; 3] = [1, 128, 1280];

/// The products whose sums are the shortest and the longest of a decoder layer.
pub(super) fn sums(bench: &mut Bench) -> anyhow::Result<()> {
    for (name, k) in [("o", HEADS * HEAD_DIM), ("down", INNER)] {
        for m in ROWS {
            of_product(bench, name, [m, HIDDEN, k])?;
        }
    }
    Ok(())
}

/// Times a product with either kind of sums, and compares it with the product of the same numbers in bf16, which keeps
/// float32 sums.
fn of_product(bench: &mut Bench, name: &str, [m, n, k]: [usize; 3]) -> anyhow::Result<()> {
    let text = format!("{m} x {k} -> {n}");
    let ops = [("fast", true), ("promoted", false)].map(|(kind, is_fast)| (format!("{kind} sums of {name}"), is_fast));
    if !ops.iter().any(|(op, _)| bench.wants(op, &text)) {
        return Ok(());
    }
    let cuda = bench.cuda()?.clone();
    let (x, weight) = (bench.f8_random(&[m, k])?, bench.f8_random(&[n, k])?);
    let shape_of =
        |dtype, f8| MatmulShape { m, n, k, x: dtype, weight: dtype, out: DType::F32, bias: None, ldo: n, f8 };
    let wide = [widened(bench, &x)?, widened(bench, &weight)?];
    let exact = product(bench, &cuda, &shape_of(DType::BF16, F8Product::default()), wide.each_ref().map(Tensor::view))?;
    for (op, fast_accumulation) in ops {
        let shape = shape_of(DType::F8E4M3, F8Product { fast_accumulation, has_block_scales: false });
        let inputs = MatmulInputs { x: x.view(), weight: weight.view(), bias: None, scales: None };
        let mut out = bench.scratch(DType::F32, &[m, n])?;
        cuda.tune_matmul(&shape, &inputs, &[], &mut out.view_mut()?, 0)?;
        let times = cuda.time_calls(Bench::MAX_CALLS / 4, |_| {
            anyhow::Ok(cuda.matmul(&shape, &inputs, &mut out.view_mut()?, 0)?)
        })?;
        let error = relative_rms(&out.to_vec::<f32>()?, &exact);
        bench.report_value(&op, &text, times, (error * 1e6, "ppm off"))?;
    }
    Ok(())
}

/// The same numbers in bf16, which holds them all.
fn widened(bench: &Bench, x: &Tensor) -> anyhow::Result<Tensor> {
    let values: Vec<bf16> = x.to_vec::<F8E4M3>()?.iter().map(|x| bf16::from_f32(x.to_f32())).collect();
    Ok(Tensor::from_slice(&bench.device, &values, x.shape())?)
}

fn product(
    bench: &Bench,
    cuda: &CudaStream,
    shape: &MatmulShape,
    [x, weight]: [View<'_>; 2],
) -> anyhow::Result<Vec<f32>> {
    let mut out = bench.scratch(shape.out, &[shape.m, shape.n])?;
    cuda.matmul(shape, &MatmulInputs { x, weight, bias: None, scales: None }, &mut out.view_mut()?, 0)?;
    Ok(out.to_vec::<f32>()?)
}

/// The root mean square of the differences, as a share of that of the numbers.
fn relative_rms(got: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let differences: f64 = got.iter().zip(expected).map(|(&x, &y)| square(f64::from(x) - f64::from(y))).sum();
    (differences / expected.iter().map(|&x| square(f64::from(x))).sum::<f64>()).sqrt()
}
