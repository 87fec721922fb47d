use half::{bf16, f16};

use super::{Isa, Kernel, LANES, PAIR, Simd, SimdElement, exp2};

/// Everything that vectors do, on given lanes.
struct Everything {
    a: [f32; LANES],
    b: [f32; LANES],
    c: [f32; LANES],
}

impl Kernel for Everything {
    type Output = Vec<[f32; LANES]>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (a, b, c) = (s.load(&self.a), s.load(&self.b), s.load(&self.c));
        let bf16s: [bf16; PAIR] = std::array::from_fn(|i| bf16::from_f32(self.a[i % LANES] * i as f32));
        let f16s: [f16; PAIR] = std::array::from_fn(|i| f16::from_f32(self.b[i % LANES] * i as f32));
        let f32s: [f32; PAIR] = std::array::from_fn(|i| self.c[i % LANES] * i as f32);
        let mut square: [S::F; LANES] =
            std::array::from_fn(|i| s.load(&std::array::from_fn(|j| (LANES * i + j) as f32)));
        s.transpose(&mut square);
        let mut vectors = vec![s.add(a, b), s.sub(a, b), s.mul(a, b), s.max(a, b), s.min(a, b), s.splat(self.a[3])];
        vectors.push(bf16::load(s, bf16s.first_chunk().unwrap()));
        vectors.push(f16::load(s, f16s.first_chunk().unwrap()));
        for (even, odd) in [
            bf16::load_pairs(s, &bf16s),
            f16::load_pairs(s, &f16s),
            f32::load_pairs(s, &f32s),
            s.round_exp2(s.mul(a, s.splat(10.0))),
        ] {
            vectors.extend([even, odd]);
        }
        vectors.extend(square);
        let sums = s.sums([a, b, c, s.add(a, b)]);
        vectors.push(s.load(&std::array::from_fn(|i| sums[i % 4])));
        vectors.push(s.splat(s.max_lane(a)));
        let stored = |v| {
            let mut lanes = [0.0; LANES];
            s.store(v, &mut lanes);
            lanes
        };
        vectors.into_iter().map(stored).collect()
    }
}

fn lanes(seed: f32) -> [f32; LANES] {
    std::array::from_fn(|i| ((i as f32 + seed) * 1.618).sin() * 3.0)
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let make = || Everything { a: lanes(0.1), b: lanes(7.3), c: lanes(31.7) };
    let plain = Isa::Portable(super::portable::Portable).dispatch(make());
    for isa in Isa::all() {
        assert_eq!(isa.dispatch(make()), plain, "{isa:?}");
    }
}

#[test]
fn plain_lanes_mean_what_they_say() {
    let (a, b) = (lanes(0.1), lanes(7.3));
    let got = Isa::Portable(super::portable::Portable).dispatch(Everything { a, b, c: lanes(31.7) });
    for i in 0..LANES {
        assert_eq!([got[0][i], got[1][i], got[2][i]], [a[i] + b[i], a[i] - b[i], a[i] * b[i]]);
        assert_eq!([got[3][i], got[4][i], got[5][i]], [a[i].max(b[i]), a[i].min(b[i]), a[3]]);
        assert_eq!(got[14][i], (a[i] * 10.0).round_ties_even());
        assert_eq!(got[15][i], (a[i] * 10.0).round_ties_even().exp2());
        let column: [f32; LANES] = std::array::from_fn(|j| (LANES * j + i) as f32);
        assert_eq!(got[16 + i], column);
        let pair = |i: usize| bf16::from_f32(a[i % LANES] * i as f32).to_f32();
        assert_eq!([got[8][i], got[9][i]], [pair(2 * i), pair(2 * i + 1)]);
    }
    let sum: f64 = a.iter().map(|&x| f64::from(x)).sum();
    assert!((f64::from(got[32][0]) - sum).abs() < 1e-5);
    assert_eq!(got[33][0], a.into_iter().fold(f32::MIN, f32::max));
}

/// `exp2` of many numbers.
struct Exp2(Vec<f32>);

impl Kernel for Exp2 {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Vec<f32> {
        for chunk in self.0.as_chunks_mut().0 {
            s.store(exp2(s, s.load(chunk)), chunk);
        }
        self.0
    }
}

#[test]
fn exp2_is_right_to_two_units_in_the_last_place() {
    for isa in Isa::all() {
        let x: Vec<f32> = (0..160_000).map(|i| -126.0 + i as f32 * (140.0 / 160_000.0)).collect();
        let got = isa.dispatch(Exp2(x.clone()));
        let mut worst = 0.0_f64;
        for (&x, &y) in x.iter().zip(&got) {
            let right = f64::from(x).exp2();
            let unit = f64::from((right as f32).next_up()) - f64::from(right as f32);
            worst = worst.max((f64::from(y) - right).abs() / unit);
        }
        assert!(worst < 2.0, "{isa:?}: {worst} units");
    }
}

#[test]
fn exp2_at_the_edges() {
    for isa in Isa::all() {
        let mut x = vec![f32::NEG_INFINITY, -1e30, -127.0, 0.0, -0.0, 1.0, f32::NAN, -1.0];
        x.resize(LANES, 0.0);
        let got = isa.dispatch(Exp2(x));
        let tiny = (-126.0_f32).exp2();
        assert_eq!(got[..6], [tiny, tiny, tiny, 1.0, 1.0, 2.0], "{isa:?}");
        assert!(got[6].is_nan(), "{isa:?}");
        assert_eq!(got[7], 0.5, "{isa:?}");
    }
}

#[test]
fn a_multiply_add_is_fused_where_it_says_so() {
    struct Fma;
    impl Kernel for Fma {
        type Output = f32;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            let x = 1.0 + f32::EPSILON;
            s.max_lane(s.fma(s.splat(x), s.splat(x), s.splat(-(x * x))))
        }
    }
    let rest = f32::EPSILON * f32::EPSILON;
    for isa in Isa::all() {
        assert_eq!(isa.dispatch(Fma), if isa.is_fused() { rest } else { 0.0 }, "{isa:?}");
    }
}
