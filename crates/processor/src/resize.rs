//! Antialiased bicubic resizing of interleaved RGB bytes, with torchvision's values bit for bit.
//!
//! Two passes, width first, each a convolution with 16-bit integer weights whose precision is the largest at which the
//! largest weight still fits 16 bits; each pass rounds and clips to a byte. Source of the numerics:
//! `aten/src/ATen/native/cpu/UpSampleKernel.cpp` (`compute_index_ranges_int16_weights`, the antialiased cubic filter with
//! a = -0.5), torch 2.11, which `torchvision.transforms.v2.functional.resize` 0.26 calls for uint8.
//!
//! Written without unsafe and without intrinsics: the loops are shaped so that the compiler vectorises them (eight
//! rows' samples of a column across, whole rows down), which made a second, quicker path needless.

/// Half the width of the cubic filter, in source pixels at scale 1.
const SUPPORT: f64 = 2.0;
/// The cubic filter's free parameter.
const CUBIC_A: f64 = -0.5;
/// torch looks for the weights' precision up to here.
const MAX_PRECISION_BITS: u32 = 22;

/// Rows that go across together.
const BAND_ROWS: usize = 8;
/// Their samples of one column.
const BAND_LANES: usize = BAND_ROWS * 3;

/// Bytes of a row that go down together.
const ROW_LANES: usize = 24;

/// The weights of one pass.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    /// For each output position: the first source position, and where its weights end in `weights`.
    windows: Vec<Window>,
    /// All windows' weights one after another.
    weights: Vec<i16>,
    /// Bits after the binary point.
    precision: u32,
}

/// The source positions of one output position.
#[derive(Clone, Copy, Debug)]
struct Window {
    first: usize,
    weights_start: usize,
    weights_end: usize,
}

/// The cubic filter at distance `x`.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC_A
    } else {
        0.0
    }
}

impl Pass {
    /// The pass from `from` to `to` positions; `None` where torch skips it.
    pub(crate) fn new(from: u32, to: u32) -> Option<Self> {
        if from == to {
            return None;
        }
        let scale = f64::from(from) / f64::from(to);
        let (support, inverse) = if scale >= 1.0 { (SUPPORT * scale, 1.0 / scale) } else { (SUPPORT, 1.0) };
        let mut windows = Vec::with_capacity(to as usize);
        let mut exact: Vec<f64> = Vec::new();
        let mut largest = 0.0_f64;
        for i in 0..to {
            let center = scale * (f64::from(i) + 0.5);
            // `as i64` truncates towards zero, as the C++ cast does.
            let first = ((center - support + 0.5) as i64).max(0);
            let end = ((center + support + 0.5) as i64).min(i64::from(from));
            let weights_start = exact.len();
            let mut total = 0.0;
            for j in first..end {
                let weight = cubic(((j as f64) - center + 0.5) * inverse);
                total += weight;
                exact.push(weight);
            }
            for weight in &mut exact[weights_start..] {
                if total != 0.0 {
                    *weight /= total;
                }
                largest = largest.max(*weight);
            }
            windows.push(Window { first: first as usize, weights_start, weights_end: exact.len() });
        }
        let precision = precision_of(largest);
        let unit = f64::from(1_u32 << precision);
        let weights = exact.iter().map(|w| (w * unit + if *w < 0.0 { -0.5 } else { 0.5 }) as i16).collect();
        Some(Self { windows, weights, precision })
    }

    /// Half of the last bit kept, so that the shift rounds.
    fn half(&self) -> i32 {
        1 << (self.precision - 1)
    }

    /// One output position's window and weights.
    fn taps(&self, i: usize) -> (usize, &[i16]) {
        let w = self.windows[i];
        (w.first, &self.weights[w.weights_start..w.weights_end])
    }
}

/// The most fraction bits at which `largest` fits 16 bits with a sign.
fn precision_of(largest: f64) -> u32 {
    let mut bits = 0;
    while bits < MAX_PRECISION_BITS && 0.5 + largest * f64::from(1_u32 << (bits + 1)) < f64::from(1_u32 << 15) {
        bits += 1;
    }
    bits
}

/// Rounds an accumulator to a byte.
fn to_byte(acc: i32, precision: u32) -> u8 {
    (acc >> precision).clamp(0, 255) as u8
}

/// Resizes up to [`BAND_ROWS`] rows of RGB across; `src` and `dst` hold as many. `band` is scratch memory.
///
/// The rows' samples of one column lie side by side, so that one weight meets [`BAND_LANES`] samples at once and the
/// windows' few taps aren't all loop overhead.
fn across(pass: &Pass, src: &[u8], src_stride: usize, band: &mut [[i16; BAND_LANES]], dst: &mut [u8], stride: usize) {
    for (row, samples) in src.chunks_exact(src_stride).enumerate() {
        for (lanes, pixel) in band.iter_mut().zip(samples.chunks_exact(3)) {
            for (lane, &sample) in lanes[row * 3..row * 3 + 3].iter_mut().zip(pixel) {
                *lane = i16::from(sample);
            }
        }
    }
    let rows = dst.len() / stride;
    for i in 0..stride / 3 {
        let (first, weights) = pass.taps(i);
        let mut acc = [pass.half(); BAND_LANES];
        let lanes = &band[first..first + weights.len()];
        for (lanes, weights) in lanes.chunks_exact(2).zip(weights.chunks_exact(2)) {
            add_two(&mut acc, &lanes[0], &lanes[1], weights[0], weights[1]);
        }
        if let ([lane], [weight]) = (lanes.chunks_exact(2).remainder(), weights.chunks_exact(2).remainder()) {
            add_two(&mut acc, lane, lane, *weight, 0);
        }
        let bytes = acc.map(|a| to_byte(a, pass.precision));
        for (row, pixel) in bytes.chunks_exact(3).take(rows).enumerate() {
            dst[row * stride + i * 3..row * stride + i * 3 + 3].copy_from_slice(pixel);
        }
    }
}

/// `acc += a * wa + b * wb`, lane by lane.
///
/// Not inlined, and neither is its twin below: alone, the compiler still sees that all factors come from 16 bits and
/// multiplies eight at once; inside of a loop it forgets and multiplies 32-bit numbers, several times slower.
#[inline(never)]
fn add_two<const N: usize>(acc: &mut [i32; N], a: &[i16; N], b: &[i16; N], wa: i16, wb: i16) {
    for i in 0..N {
        acc[i] += i32::from(a[i]) * i32::from(wa) + i32::from(b[i]) * i32::from(wb);
    }
}

/// The same for two rows of bytes.
#[inline(never)]
fn add_two_rows(acc: &mut [i32; ROW_LANES], a: &[u8; ROW_LANES], b: &[u8; ROW_LANES], wa: i16, wb: i16) {
    for i in 0..ROW_LANES {
        acc[i] += i32::from(a[i]) * i32::from(wa) + i32::from(b[i]) * i32::from(wb);
    }
}

/// One row of the result down: `rows` are the window's, each of `out`'s length.
fn down(pass: &Pass, rows: &[u8], weights: &[i16], out: &mut [u8]) {
    let stride = out.len();
    let row = |k: usize, at: usize| rows[k * stride..(k + 1) * stride][at..].first_chunk::<ROW_LANES>();
    let mut at = 0;
    while at + ROW_LANES <= stride {
        let mut acc = [pass.half(); ROW_LANES];
        for k in (0..weights.len()).step_by(2) {
            // A missing tap repeats the row before it with weight 0.
            let (k2, w2) = weights.get(k + 1).map_or((k, 0), |&w| (k + 1, w));
            if let (Some(a), Some(b)) = (row(k, at), row(k2, at)) {
                add_two_rows(&mut acc, a, b, weights[k], w2);
            }
        }
        out[at..at + ROW_LANES].copy_from_slice(&acc.map(|a| to_byte(a, pass.precision)));
        at += ROW_LANES;
    }
    for i in at..stride {
        let sum: i32 = weights.iter().enumerate().map(|(k, &w)| i32::from(rows[k * stride + i]) * i32::from(w)).sum();
        out[i] = to_byte(pass.half() + sum, pass.precision);
    }
}

/// Hands out the rows of the resized picture, top to bottom, each `width * 3` bytes.
///
/// `pixels` is `[source_height, source_width, 3]`; sizes are `(height, width)`.
pub(crate) fn for_each_row(pixels: &[u8], source: (u32, u32), target: (u32, u32), mut emit: impl FnMut(usize, &[u8])) {
    let (horizontal, vertical) = (Pass::new(source.1, target.1), Pass::new(source.0, target.0));
    let stride = target.1 as usize * 3;
    let narrowed;
    let rows: &[u8] = match &horizontal {
        None => pixels,
        Some(pass) => {
            let mut out = vec![0_u8; source.0 as usize * stride];
            let src_stride = source.1 as usize * 3;
            let mut band = vec![[0_i16; BAND_LANES]; source.1 as usize];
            let bands = pixels.chunks(BAND_ROWS * src_stride).zip(out.chunks_mut(BAND_ROWS * stride));
            for (src, dst) in bands {
                across(pass, src, src_stride, &mut band, dst, stride);
            }
            narrowed = out;
            &narrowed
        }
    };
    let Some(pass) = vertical else {
        rows.chunks_exact(stride).enumerate().for_each(|(y, row)| emit(y, row));
        return;
    };
    let mut bytes = vec![0_u8; stride];
    for y in 0..target.0 as usize {
        let (first, weights) = pass.taps(y);
        down(&pass, &rows[first * stride..], weights, &mut bytes);
        emit(y, &bytes);
    }
}

/// Resizes interleaved RGB bytes `[source_height, source_width, 3]` to `[height, width, 3]`; sizes are
/// `(height, width)`, all above 0.
///
/// The values are those of `torchvision.transforms.v2.functional.resize(uint8, BICUBIC, antialias=True)`, bit for bit.
/// Pictures on their way to the model don't need this form: their rows go straight into patch order.
///
/// # Panics
/// Never for `pixels` of `source_height * source_width * 3` bytes; other lengths are the caller's mistake.
#[must_use]
pub fn resize_rgb(pixels: &[u8], source: (u32, u32), target: (u32, u32)) -> Vec<u8> {
    assert_eq!(pixels.len() as u64, u64::from(source.0) * u64::from(source.1) * 3, "pixels of another size");
    let stride = target.1 as usize * 3;
    let mut out = vec![0_u8; target.0 as usize * stride];
    for_each_row(pixels, source, target, |y, row| out[y * stride..(y + 1) * stride].copy_from_slice(row));
    out
}
