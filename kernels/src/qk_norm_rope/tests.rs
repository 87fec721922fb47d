use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::{Mrope, QkNorm, QkNormRope, qk_norm_rope};
use crate::quantize::Scales;
use crate::testing::{
    ACTIVATIONS, blamed, device_tests, load, load64, random, rtol, store, tensor, to_f32, values, zeros,
};
use crate::{KvLayout, KvScales, OpError};

device_tests!(
    // Which of two threads writes last is no GPU's promise.
    cpu: [of_two_rows_with_one_slot_the_later_stays];
    any: [
        any_shape_and_type_is_the_equation,
        an_unscaled_product_goes_into_an_f8_cache,
        scores_depend_on_distances_alone,
        rows_without_a_slot_and_other_slots_stay,
        a_row_depends_on_itself_alone,
        misfits_are_named,
        what_is_outside_is_refused_or_left_out,
    ]
);

const EPS: f32 = 1e-6;
const PAGE: usize = 32;
const MAX_POSITIONS: usize = 64;

/// One call's operands; the tests change what they are about.
struct Case {
    dtype: DType,
    num_heads: usize,
    layout: KvLayout,
    num_blocks: usize,
    qkv: Tensor,
    norm: Option<(Tensor, Tensor)>,
    positions: Vec<i32>,
    axis_of_pair: Vec<u8>,
    slots: Vec<i64>,
    /// Of an unscaled product: rows and columns.
    scales: Option<[Tensor; 2]>,
    bias: Option<Tensor>,
    kv_scales: KvScales,
}

struct Outputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// The shape of a case: rows, heads, key and value heads, head_dim, turned pairs.
#[derive(Clone, Copy, Debug)]
struct Dims(usize, usize, usize, usize, usize);

fn angle(position: i32, pair: usize, pairs: usize) -> f64 {
    f64::from(position) / 10_000_f64.powf(pair as f64 / pairs.max(1) as f64)
}

impl Case {
    fn new(device: &Device, Dims(n, num_heads, num_kv_heads, head_dim, pairs): Dims, dtype: DType) -> Self {
        let layout = KvLayout { page: PAGE, dtype, num_kv_heads, head_dim };
        let num_blocks = n.div_ceil(PAGE) + 2;
        let num_slots = num_blocks * PAGE;
        let weight = |seed| random(device, seed, DType::BF16, &[head_dim]);
        Self {
            dtype,
            num_heads,
            layout,
            num_blocks,
            qkv: random(device, 1, dtype, &[n, (num_heads + 2 * num_kv_heads) * head_dim]),
            norm: Some((weight(2), weight(3))),
            positions: (0..3 * n).map(|i| ((i * 7 + i / n.max(1) * 5) % MAX_POSITIONS) as i32).collect(),
            axis_of_pair: (0..pairs).map(|i| (i % 3) as u8).collect(),
            // 29 and 32 * num_blocks have no common factor up to 28 blocks: all slots differ.
            slots: (0..n).map(|i| ((i * 29 + 7) % num_slots) as i64).collect(),
            scales: None,
            bias: None,
            kv_scales: KvScales::ONE,
        }
    }

    fn table(&self, device: &Device, f: fn(f64) -> f64) -> Tensor {
        let pairs = self.axis_of_pair.len();
        let angles = (0..MAX_POSITIONS as i32).flat_map(|p| (0..pairs).map(move |i| angle(p, i, pairs)));
        tensor(device, &angles.map(|a| f(a) as f32).collect::<Vec<_>>(), &[MAX_POSITIONS, pairs])
    }

    fn outputs(&self, device: &Device) -> Outputs {
        let cache = || random(device, 9, self.layout.dtype, &self.layout.cache_shape(self.num_blocks));
        let n = self.slots.len();
        Outputs { q: zeros(device, self.dtype, &[n, self.num_heads, self.layout.head_dim]), k: cache(), v: cache() }
    }

    fn run_into(&self, device: &Device, outputs: &mut Outputs) -> Result<(), OpError> {
        let pairs = self.axis_of_pair.len();
        let (cos, sin) = (self.table(device, f64::cos), self.table(device, f64::sin));
        let positions = tensor(device, &self.positions, &[3, self.positions.len() / 3]);
        let axes = tensor(device, &self.axis_of_pair, &[pairs]);
        let slots = tensor(device, &self.slots, &[self.slots.len()]);
        let norm = self.norm.as_ref().map(|(q, k)| QkNorm { q_weight: q.view(), k_weight: k.view(), eps: EPS });
        let rope = Mrope { positions: positions.view(), cos: cos.view(), sin: sin.view(), axis_of_pair: axes.view() };
        qk_norm_rope(
            device.stream(),
            QkNormRope {
                qkv: self.qkv.view(),
                scales: self
                    .scales
                    .as_ref()
                    .map(|[rows, columns]| Scales { rows: Some(rows.view()), columns: columns.view() }),
                bias: self.bias.as_ref().map(Tensor::view),
                norm,
                rope,
                slot_mapping: slots.view(),
                layout: self.layout,
                kv_scales: self.kv_scales,
                k_cache: outputs.k.view_mut().unwrap(),
                v_cache: outputs.v.view_mut().unwrap(),
                q_out: outputs.q.view_mut().unwrap(),
            },
        )
    }

    fn run(&self, device: &Device) -> Outputs {
        let mut outputs = self.outputs(device);
        self.run_into(device, &mut outputs).unwrap();
        outputs
    }

    /// `qkv` scaled and with the bias.
    fn scaled_qkv(&self) -> Vec<f64> {
        let (mut qkv, width) = (load64(&self.qkv), self.qkv.shape()[1]);
        if let Some([rows, columns]) = &self.scales {
            let (rows, columns) = (load64(rows), load64(columns));
            qkv.iter_mut().enumerate().for_each(|(at, x)| *x *= rows[at / width] * columns[at % width]);
        }
        if let Some(bias) = self.bias.as_ref().map(load64) {
            qkv.iter_mut().enumerate().for_each(|(at, x)| *x += bias[at % width]);
        }
        qkv
    }

    /// Head `head` of row `i` of `qkv`, normalised and turned as HF writes it, `x cos + rotate_half(x) sin`.
    fn reference_head(&self, qkv: &[f64], i: usize, head: usize, weight: Option<&Tensor>) -> Vec<f64> {
        let (d, pairs) = (self.layout.head_dim, self.axis_of_pair.len());
        let start = (i * (self.num_heads + 2 * self.layout.num_kv_heads) + head) * d;
        let mut x = qkv[start..start + d].to_vec();
        if let Some(weight) = weight.map(load64) {
            let mean_square = x.iter().map(|x| x * x).sum::<f64>() / d as f64;
            x.iter_mut().zip(weight).for_each(|(x, w)| *x *= w / (mean_square + f64::from(EPS)).sqrt());
        }
        let n = self.slots.len();
        let turned = |j: usize| {
            let pair = j % pairs;
            let emb = angle(self.positions[usize::from(self.axis_of_pair[pair]) * n + i], pair, pairs);
            let rotated = if j < pairs { -x[j + pairs] } else { x[j - pairs] };
            x[j] * emb.cos() + rotated * emb.sin()
        };
        (0..d).map(|j| if j < 2 * pairs { turned(j) } else { x[j] }).collect()
    }

    /// The whole result, the caches starting from `before`.
    fn reference(&self, before: &Outputs) -> [Vec<f64>; 3] {
        let KvLayout { num_kv_heads, head_dim, .. } = self.layout;
        let qkv = self.scaled_qkv();
        let (mut q, mut k, mut v) = (Vec::new(), load64(&before.k), load64(&before.v));
        for (i, &slot) in self.slots.iter().enumerate() {
            for head in 0..self.num_heads {
                q.extend(self.reference_head(&qkv, i, head, self.norm.as_ref().map(|norm| &norm.0)));
            }
            let Ok(slot) = usize::try_from(slot) else { continue };
            for head in 0..num_kv_heads {
                let at = ((slot / PAGE * num_kv_heads + head) * PAGE + slot % PAGE) * head_dim;
                let key = self.reference_head(&qkv, i, self.num_heads + head, self.norm.as_ref().map(|norm| &norm.1));
                let key: Vec<f64> = key.iter().map(|x| x / f64::from(self.kv_scales.k)).collect();
                k[at..at + head_dim].copy_from_slice(&key);
                let source =
                    (i * (self.num_heads + 2 * num_kv_heads) + self.num_heads + num_kv_heads + head) * head_dim;
                let value = qkv[source..source + head_dim].iter().map(|x| x / f64::from(self.kv_scales.v));
                v[at..at + head_dim].copy_from_slice(&value.collect::<Vec<_>>());
            }
        }
        [q, k, v]
    }

    fn check(&self, device: &Device) {
        self.check_against(device, self);
    }

    /// Its results are those of `like`.
    fn check_against(&self, device: &Device, like: &Self) {
        let [q, k, v] = like.reference(&like.outputs(device));
        let outputs = self.run(device);
        let close = |actual: &Tensor, expected: &[f64]| {
            let (dims, dtype) = (actual.shape(), actual.dtype());
            // Half a step between FP8's subnormals is 2^-10.
            let atol = if dtype == DType::F8E4M3 { 1e-3 } else { 2e-6 + 0.01 * rtol(dtype) };
            assert_close_at(&load(actual), &to_f32(expected), dims, atol, rtol(dtype));
        };
        close(&outputs.q, &q);
        close(&outputs.k, &k);
        close(&outputs.v, &v);
    }
}

fn any_shape_and_type_is_the_equation(device: &Device) {
    // Qwen3-VL-2B's heads, heads of 64, tiny, odd with partial rotary, empty, one kv head, nothing turned, whole heads of
    // no power of two, and a step so long that threads take several rows.
    let shapes = [
        Dims(24, 16, 8, 128, 64),
        Dims(33, 5, 2, 64, 32),
        Dims(1, 1, 1, 2, 1),
        Dims(5, 3, 3, 11, 4),
        Dims(0, 4, 2, 8, 4),
        Dims(40, 7, 1, 16, 8),
        Dims(2, 2, 1, 6, 0),
        Dims(3, 4, 2, 96, 48),
        Dims(1027, 2, 1, 16, 8),
    ];
    for (dims, dtype) in shapes.into_iter().flat_map(|dims| ACTIVATIONS.map(|dtype| (dims, dtype))) {
        let case = Case::new(device, dims, dtype);
        case.check(device);
        Case { norm: None, ..case }.check(device);
    }
    let text = |i: usize| (i % MAX_POSITIONS) as i32;
    let case = Case::new(device, Dims(6, 4, 2, 16, 8), DType::F32);
    Case { positions: (0..18).map(|i| text(i % 6 + 3)).collect(), ..case }.check(device);
    // A cache of another type than the activations.
    for dims in [Dims(6, 4, 2, 16, 8), Dims(6, 4, 2, 11, 4)] {
        let case = Case::new(device, dims, DType::F32);
        Case { layout: KvLayout { dtype: DType::BF16, ..case.layout }, ..case }.check(device);
    }
}

fn an_unscaled_product_goes_into_an_f8_cache(device: &Device) {
    // Of the packed kernel and of the one for any head; with a norm, and with a bias instead as Qwen2 has it.
    for dims in [Dims(33, 16, 8, 128, 64), Dims(5, 3, 3, 11, 4), Dims(7, 4, 2, 64, 32), Dims(1026, 2, 1, 16, 8)] {
        let Dims(n, num_heads, num_kv_heads, head_dim, _) = dims;
        let width = (num_heads + 2 * num_kv_heads) * head_dim;
        let positive = |seed, len| {
            let values: Vec<f32> = values(seed, len, 1.0).iter().map(|x| x.abs() + 0.25).collect();
            tensor(device, &values, &[len])
        };
        for (has_norm, has_scales) in [(true, true), (false, true), (false, false)] {
            let case = Case::new(device, dims, DType::BF16);
            let case = Case {
                layout: KvLayout { dtype: DType::F8E4M3, ..case.layout },
                norm: if has_norm { case.norm } else { None },
                bias: (!has_norm).then(|| random(device, 7, DType::F32, &[width])),
                scales: has_scales.then(|| [positive(5, n), positive(6, width)]),
                kv_scales: KvScales { k: 0.03, v: 0.0125 },
                ..case
            };
            case.check(device);
        }
    }
}

/// q·k stays when both tokens move by the same steps on every axis.
fn scores_depend_on_distances_alone(device: &Device) {
    let score = |positions: [i32; 6]| {
        let case = Case::new(device, Dims(2, 1, 1, 32, 16), DType::F32);
        let case = Case { positions: positions.to_vec(), slots: vec![0, 1], ..case };
        let outputs = case.run(device);
        let (q, k) = (load64(&outputs.q), load64(&outputs.k));
        q[32..].iter().zip(&k[..32]).map(|(q, k)| q * k).sum::<f64>()
    };
    let near = score([1, 5, 2, 3, 0, 9]);
    assert!((score([11, 15, 22, 23, 30, 39]) - near).abs() < 1e-4);
    assert!((score([1, 5, 0, 9, 2, 3]) - near).abs() > 1e-2);
}

fn rows_without_a_slot_and_other_slots_stay(device: &Device) {
    let case = Case::new(device, Dims(3, 2, 2, 4, 2), DType::F32);
    let case = Case { slots: vec![-1, 33, -1], ..case };
    case.check(device);
    let (before, after) = (case.outputs(device), case.run(device));
    let changed = load(&before.k).iter().zip(load(&after.k)).filter(|(a, b)| **a != *b).count();
    assert_eq!(changed, 2 * 4);
}

fn of_two_rows_with_one_slot_the_later_stays(device: &Device) {
    let case = Case::new(device, Dims(3, 2, 2, 4, 2), DType::F32);
    Case { slots: vec![40, 40, 3], ..case }.check(device);
}

/// The host of a GPU reads neither positions nor axes nor slots.
fn what_is_outside_is_refused_or_left_out(device: &Device) {
    // Of the packed kernel and of the one for any head.
    for dims in [Dims(2, 2, 1, 8, 4), Dims(2, 2, 1, 11, 4)] {
        let good = || Case::new(device, dims, DType::F32);
        let num_slots = (good().num_blocks * PAGE) as i64;
        for outside in [-2, num_slots, i64::MIN, i64::MAX] {
            let case = Case { slots: vec![3, outside], ..good() };
            if device.is_cuda() {
                let [all, left_out] = [case, Case { slots: vec![3, -1], ..good() }].map(|case| case.run(device));
                assert_bitwise_equal(&load(&all.q), &load(&left_out.q));
                assert_bitwise_equal(&load(&all.k), &load(&left_out.k));
                assert_bitwise_equal(&load(&all.v), &load(&left_out.v));
                continue;
            }
            let error = case.run_into(device, &mut good().outputs(device)).unwrap_err();
            assert!(matches!(error, OpError::Value { arg: "slot_mapping", index: 1, value, .. } if value == outside));
        }
        for outside in [-1, MAX_POSITIONS as i32, i32::MAX] {
            let case = Case { positions: vec![1, 2, 3, outside, 5, 6], ..good() };
            if device.is_cuda() {
                // Axis 1 of row 1; position 0 turns nothing.
                case.check_against(device, &Case { positions: vec![1, 2, 3, 0, 5, 6], ..good() });
            } else {
                assert_eq!(blamed(case.run_into(device, &mut good().outputs(device))), "rope.positions");
            }
        }
        let case = Case { axis_of_pair: vec![0, 1, 2, 3], ..good() };
        if device.is_cuda() {
            case.run(device);
        } else {
            assert_eq!(blamed(case.run_into(device, &mut good().outputs(device))), "rope.axis_of_pair");
        }
    }
}

fn a_row_depends_on_itself_alone(device: &Device) {
    let dtypes = prop::sample::select(ACTIVATIONS.to_vec());
    proptest!(ProptestConfig::with_cases(16), |(n in 1_usize..80, dtype in dtypes, pick in 0_usize..80)| {
        check_alone(device, n, 24, dtype, &[pick % n]);
    });
    for (n, dtype) in [(33, DType::BF16), (1030, DType::BF16), (1030, DType::F32)] {
        check_alone(device, n, 32, dtype, &[0, 2, n / 2, n - 1]);
    }
}

/// Some of `n` rows of heads of 64, of which so many pairs are turned, against each alone.
fn check_alone(device: &Device, n: usize, pairs: usize, dtype: DType, picked: &[usize]) {
    let dims = |n| Dims(n, 4, 2, 64, pairs);
    let batch = Case::new(device, dims(n), dtype);
    let (all, len) = (batch.run(device), 8 * 64);
    for &row in picked {
        let own = &load(&batch.qkv)[row * len..(row + 1) * len];
        let alone = Case {
            qkv: store(device, own, dtype, &[1, len]),
            positions: (0..3).map(|axis| batch.positions[axis * n + row]).collect(),
            slots: vec![batch.slots[row]],
            num_blocks: batch.num_blocks,
            ..Case::new(device, dims(1), dtype)
        };
        let one = alone.run(device);
        assert_bitwise_equal(&load(&all.q)[row * 256..(row + 1) * 256], &load(&one.q));
        let slot = batch.slots[row] as usize;
        for (head, (all, one)) in (0..2).flat_map(|head| [(head, (&all.k, &one.k)), (head, (&all.v, &one.v))]) {
            let at = ((slot / PAGE * 2 + head) * PAGE + slot % PAGE) * 64;
            assert_bitwise_equal(&load(all)[at..at + 64], &load(one)[at..at + 64]);
        }
    }
}

fn misfits_are_named(device: &Device) {
    let good = || Case::new(device, Dims(2, 2, 1, 8, 4), DType::F32);
    let blame = |case: Case| blamed(case.run_into(device, &mut good().outputs(device)));
    assert_eq!(blame(Case { positions: vec![0; 3], ..good() }), "rope.positions");
    assert_eq!(blame(Case { axis_of_pair: vec![0; 5], ..good() }), "rope.cos");
    assert_eq!(blame(Case { slots: vec![0], ..good() }), "slot_mapping");
    assert_eq!(blame(Case { qkv: zeros(device, DType::F32, &[2, 31]), ..good() }), "qkv");
    assert_eq!(blame(Case { qkv: zeros(device, DType::I32, &[2, 32]), ..good() }), "qkv");
    let short = |dtype| zeros(device, dtype, &[7]);
    let full = |dtype| zeros(device, dtype, &[8]);
    assert_eq!(blame(Case { norm: Some((short(DType::F32), full(DType::F32))), ..good() }), "norm.q_weight");
    assert_eq!(blame(Case { norm: Some((full(DType::F32), full(DType::U8))), ..good() }), "norm.k_weight");
    let layouts = [
        KvLayout { page: 0, ..good().layout },
        KvLayout { page: 16, ..good().layout },
        KvLayout { head_dim: 4, ..good().layout },
        KvLayout { dtype: DType::BF16, ..good().layout },
    ];
    for layout in layouts {
        assert_eq!(blame(Case { layout, ..good() }), "k_cache", "{layout:?}");
    }
    let mut outputs = good().outputs(device);
    outputs.v = zeros(device, DType::F32, &[1, 1, PAGE, 8]);
    assert_eq!(blamed(good().run_into(device, &mut outputs)), "v_cache");
    outputs = good().outputs(device);
    outputs.q = zeros(device, DType::U8, &[2, 2, 8]);
    assert_eq!(blamed(good().run_into(device, &mut outputs)), "q_out");
}
