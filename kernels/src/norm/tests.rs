use foveal_device::{DType, Device, Tensor, View};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::{AddNorm, NormKind, RowAdd, add_norm};
use crate::OpError;
use crate::quantize::Scales;
use crate::testing::{
    ACTIVATIONS, Quantized, SCHEMES, blamed, device_tests, load, load64, random, rtol, store, tensor, to_f32, values,
    zeros,
};

device_tests!(
    any_shape_and_type_is_the_equation,
    norms_have_their_moments,
    a_row_depends_on_itself_alone,
    misfits_are_named,
    an_index_outside_is_refused_or_adds_nothing,
    bf16_weights_serve_f32_rows,
    a_constant_row_stays_finite,
    an_unscaled_product_is_scaled_first,
    rows_are_rounded_to_f8,
);

/// Inputs of one call.
struct Case {
    residual: Tensor,
    add: Option<Tensor>,
    extra: Option<(Tensor, Vec<i32>)>,
    weight: Tensor,
    bias: Option<Tensor>,
    kind: NormKind,
}

const EPS: f32 = 1e-6;

impl Case {
    fn new(device: &Device, (m, d): (usize, usize), dtype: DType, kind: NormKind, adds: bool) -> Self {
        let index = (0..m as i32).map(|i| if i % 3 == 0 { i % 2 } else { -1 }).collect();
        Self {
            residual: random(device, 1, dtype, &[m, d]),
            add: adds.then(|| random(device, 2, dtype, &[m, d])),
            extra: adds.then(|| (random(device, 3, dtype, &[2, d]), index)),
            weight: random(device, 4, dtype, &[d]),
            bias: (kind == NormKind::Layer).then(|| random(device, 5, dtype, &[d])),
            kind,
        }
    }

    /// The new residual and the normalised rows.
    fn run(&self, device: &Device) -> (Tensor, Tensor) {
        self.try_run(device).unwrap()
    }

    fn try_run(&self, device: &Device) -> Result<(Tensor, Tensor), OpError> {
        let dims = self.residual.shape();
        let mut residual = store(device, &load(&self.residual), self.residual.dtype(), dims);
        let mut out = zeros(device, self.residual.dtype(), dims);
        let index = self.extra.as_ref().map(|(_, index)| tensor(device, index, &[index.len()]));
        let extra = self.extra.as_ref().zip(index.as_ref());
        add_norm(
            device.stream(),
            AddNorm {
                residual: residual.view_mut().unwrap(),
                add: self.add.as_ref().map(Tensor::view),
                add_scales: None,
                extra: extra.map(|((rows, _), index)| RowAdd { rows: rows.view(), index: index.view() }),
                weight: self.weight.view(),
                bias: self.bias.as_ref().map(Tensor::view),
                kind: self.kind,
                eps: EPS,
                quantize: None,
                out: out.view_mut().unwrap(),
            },
        )?;
        Ok((residual, out))
    }

    /// The sum of residual, add and extra, in float64.
    fn sums(&self) -> Vec<f64> {
        let d = self.residual.shape()[1];
        let mut sums = load64(&self.residual);
        if let Some(add) = &self.add {
            sums.iter_mut().zip(load64(add)).for_each(|(sum, add)| *sum += add);
        }
        if let Some((rows, index)) = &self.extra {
            let rows = load64(rows);
            for (i, row) in index.iter().enumerate().filter(|(_, row)| **row >= 0) {
                for j in 0..d {
                    sums[i * d + j] += rows[*row as usize * d + j];
                }
            }
        }
        sums
    }

    fn reference(&self, sums: &[f64]) -> Vec<f64> {
        let (d, weight) = (self.residual.shape()[1], load64(&self.weight));
        let bias = self.bias.as_ref().map_or(vec![0.0; d], load64);
        let mut out = Vec::new();
        for row in sums.chunks_exact(d.max(1)) {
            let mean = if self.kind == NormKind::Layer { row.iter().sum::<f64>() / d as f64 } else { 0.0 };
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
            out.extend((0..d).map(|j| (row[j] - mean) / (variance + f64::from(EPS)).sqrt() * weight[j] + bias[j]));
        }
        out
    }
}

fn any_shape_and_type_is_the_equation(device: &Device) {
    let shapes = [(64, 1024), (1, 1), (5, 123), (3, 7), (0, 64), (2, 0), (1, 8192), (31, 1152), (2, 16_385)];
    for (shape, dtype) in shapes.into_iter().flat_map(|shape| ACTIVATIONS.map(|dtype| (shape, dtype))) {
        for (kind, adds) in [(NormKind::Rms, false), (NormKind::Rms, true), (NormKind::Layer, true)] {
            let case = Case::new(device, shape, dtype, kind, adds);
            let (residual, out) = case.run(device);
            let dims = [shape.0, shape.1];
            // Two additions, each rounded to the type.
            assert_close_at(&load(&residual), &to_f32(&case.sums()), &dims, 8.0 * rtol(dtype), rtol(dtype));
            // The norm is that of the sum as stored.
            let expected = to_f32(&case.reference(&load64(&residual)));
            assert_close_at(&load(&out), &expected, &dims, 1e-6 + 0.1 * rtol(dtype), rtol(dtype));
        }
    }
}

fn norms_have_their_moments(device: &Device) {
    let (m, d) = (4, 512);
    for kind in [NormKind::Rms, NormKind::Layer] {
        let ones = store(device, &vec![1.0; d], DType::F32, &[d]);
        let case = Case { weight: ones, bias: None, ..Case::new(device, (m, d), DType::F32, kind, true) };
        let out = load64(&case.run(device).1);
        for row in out.chunks_exact(d) {
            let mean = row.iter().sum::<f64>() / d as f64;
            let square = row.iter().map(|x| x * x).sum::<f64>() / d as f64;
            assert!((square - 1.0).abs() < 1e-5, "{kind:?}: mean square {square}");
            assert!(kind == NormKind::Rms || mean.abs() < 1e-6, "{kind:?}: mean {mean}");
        }
    }
}

fn a_row_depends_on_itself_alone(device: &Device) {
    let dtypes = prop::sample::select(ACTIVATIONS.to_vec());
    let kinds = prop::sample::select(vec![NormKind::Rms, NormKind::Layer]);
    proptest!(ProptestConfig::with_cases(24), |(m in 1_usize..40, d in 1_usize..900, dtype in dtypes, kind in kinds, pick in 0_usize..40)| {
        let row = pick % m;
        let batch = Case::new(device, (m, d), dtype, kind, true);
        let cut = |x: &Tensor| store(device, &load(x)[row * d..(row + 1) * d], dtype, &[1, d]);
        let (rows, index) = batch.extra.as_ref().unwrap();
        let alone = Case {
            residual: cut(&batch.residual),
            add: batch.add.as_ref().map(cut),
            extra: Some((store(device, &load(rows), dtype, &[2, d]), vec![index[row]])),
            ..Case::new(device, (1, d), dtype, kind, true)
        };
        let (residual, out) = batch.run(device);
        let (residual_alone, out_alone) = alone.run(device);
        assert_bitwise_equal(&load(&cut(&residual)), &load(&residual_alone));
        assert_bitwise_equal(&load(&cut(&out)), &load(&out_alone));
    });
}

fn bf16_weights_serve_f32_rows(device: &Device) {
    let mut case = Case::new(device, (3, 129), DType::F32, NormKind::Rms, true);
    case.weight = random(device, 9, DType::BF16, &[129]);
    case.add = Some(random(device, 10, DType::BF16, &[3, 129]));
    let (residual, out) = case.run(device);
    assert_close_at(&load(&residual), &to_f32(&case.sums()), &[3, 129], 1e-6, 1e-6);
    assert_close_at(&load(&out), &to_f32(&case.reference(&case.sums())), &[3, 129], 1e-6, 4e-6);
}

fn a_constant_row_stays_finite(device: &Device) {
    for (kind, value) in [(NormKind::Rms, 0.0), (NormKind::Layer, 3.0)] {
        let d = 64;
        let residual = store(device, &vec![value; d], DType::F32, &[1, d]);
        let case = Case { residual, ..Case::new(device, (1, d), DType::F32, kind, false) };
        let bias = case.bias.as_ref().map_or(vec![0.0; d], load);
        assert_eq!(load(&case.run(device).1), bias);
    }
}

/// Columns and rows of scales for an unscaled product, and the product scaled in float64.
fn scaled(device: &Device, x: &Tensor) -> (Tensor, Tensor, Vec<f64>) {
    let [m, d] = [x.shape()[0], x.shape()[1]];
    let positive = |seed, len| -> Vec<f32> { values(seed, len, 1.0).iter().map(|x| x.abs() + 0.25).collect() };
    let (rows, columns) = (positive(21, m), positive(22, d));
    let factor = |at: usize| f64::from(rows[at / d]) * f64::from(columns[at % d]);
    let scaled = load64(x).iter().enumerate().map(|(at, x)| x * factor(at)).collect();
    (tensor(device, &rows, &[m]), tensor(device, &columns, &[d]), scaled)
}

fn an_unscaled_product_is_scaled_first(device: &Device) {
    for ((m, d), dtype) in [(5, 1024), (3, 123), (2, 4096)].into_iter().flat_map(|s| ACTIVATIONS.map(|t| (s, t))) {
        let add = random(device, 2, DType::BF16, &[m, d]);
        let (rows, columns, mut expected) = scaled(device, &add);
        let mut residual = random(device, 1, dtype, &[m, d]);
        expected.iter_mut().zip(load64(&residual)).for_each(|(sum, x)| *sum += x);
        let (weight, mut out) = (random(device, 4, dtype, &[d]), zeros(device, dtype, &[m, d]));
        let args = AddNorm {
            residual: residual.view_mut().unwrap(),
            add: Some(add.view()),
            add_scales: Some(Scales { rows: Some(rows.view()), columns: columns.view() }),
            extra: None,
            weight: weight.view(),
            bias: None,
            kind: NormKind::Rms,
            eps: EPS,
            quantize: None,
            out: out.view_mut().unwrap(),
        };
        add_norm(device.stream(), args).unwrap();
        assert_close_at(&load(&residual), &to_f32(&expected), &[m, d], 4e-6, rtol(dtype));
    }
}

fn rows_are_rounded_to_f8(device: &Device) {
    for (m, d) in [(5, 1024), (3, 128), (2, 4096), (1, 8192)] {
        for (scheme, kind) in
            SCHEMES.into_iter().flat_map(|scheme| [(scheme, NormKind::Rms), (scheme, NormKind::Layer)])
        {
            let case = Case::new(device, (m, d), DType::BF16, kind, true);
            let (_, index) = case.extra.as_ref().unwrap();
            let index = tensor(device, index, &[m]);
            let mut residual = store(device, &load(&case.residual), DType::BF16, &[m, d]);
            let mut quantized = Quantized::new(device, scheme, [m, d]);
            let (quantize, out) = quantized.lend();
            let args = AddNorm {
                residual: residual.view_mut().unwrap(),
                add: case.add.as_ref().map(Tensor::view),
                add_scales: None,
                extra: case.extra.as_ref().map(|(rows, _)| RowAdd { rows: rows.view(), index: index.view() }),
                weight: case.weight.view(),
                bias: case.bias.as_ref().map(Tensor::view),
                kind,
                eps: EPS,
                quantize: Some(quantize),
                out,
            };
            add_norm(device.stream(), args).unwrap();
            quantized.assert_is(&to_f32(&case.reference(&load64(&residual))), 1e-5);
        }
    }
}

fn misfits_are_named(device: &Device) {
    let f32s = |dims: &[usize]| zeros(device, DType::F32, dims);
    let (good, vector, index) = (f32s(&[2, 3]), f32s(&[3]), zeros(device, DType::I32, &[2]));
    let wide = f32s(&[2, 4]);
    let ints = zeros(device, DType::I32, &[2, 3]);
    let (mut residual, mut out) = (f32s(&[2, 3]), f32s(&[2, 3]));
    let mut blame = |change: &dyn for<'a> Fn(&mut AddNorm<'a>, &'a [&'a Tensor])| {
        let tensors = [&good, &vector, &index, &wide, &ints];
        let mut args = AddNorm {
            residual: residual.view_mut().unwrap(),
            add: None,
            add_scales: None,
            extra: None,
            weight: vector.view(),
            bias: None,
            kind: NormKind::Rms,
            eps: EPS,
            quantize: None,
            out: out.view_mut().unwrap(),
        };
        change(&mut args, &tensors);
        blamed(add_norm(device.stream(), args))
    };
    assert_eq!(blame(&|args, t| args.add = Some(t[3].view())), "add");
    assert_eq!(blame(&|args, t| args.add = Some(t[4].view())), "add");
    assert_eq!(blame(&|args, t| args.weight = t[0].view()), "weight");
    assert_eq!(blame(&|args, t| args.weight = t[2].view()), "weight");
    assert_eq!(blame(&|args, t| args.bias = Some(t[1].view())), "bias");
    assert_eq!(blame(&|args, t| (args.kind, args.bias) = (NormKind::Layer, Some(t[2].view()))), "bias");
    fn rows<'a>(rows: View<'a>, index: View<'a>) -> Option<RowAdd<'a>> {
        Some(RowAdd { rows, index })
    }
    assert_eq!(blame(&|args, t| args.extra = rows(t[3].view(), t[2].view())), "extra.rows");
    assert_eq!(blame(&|args, t| args.extra = rows(t[0].view(), t[1].view())), "extra.index");
    assert_eq!(blame(&|args, t| args.weight = t[3].view()), "weight");
}

/// The host of a GPU never reads the index.
fn an_index_outside_is_refused_or_adds_nothing(device: &Device) {
    let mut case = Case::new(device, (3, 24), DType::F32, NormKind::Rms, true);
    let rows = load(&case.extra.as_ref().unwrap().0);
    let mut with_index = |index: Vec<i32>| {
        case.extra = Some((store(device, &rows, DType::F32, &[2, 24]), index));
        case.try_run(device)
    };
    for outside in [2, -2, i32::MAX, i32::MIN] {
        let result = with_index(vec![outside, 1, -1]);
        if !device.is_cuda() {
            assert_eq!(blamed(result.map(drop)), "extra.index");
            continue;
        }
        let (residual, out) = result.unwrap();
        let (residual_without, out_without) = with_index(vec![-1, 1, -1]).unwrap();
        assert_bitwise_equal(&load(&residual), &load(&residual_without));
        assert_bitwise_equal(&load(&out), &load(&out_without));
    }
}
