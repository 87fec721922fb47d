//! Random weights that any language can make again.

use foveal_device::{CudaStream, DeviceError, UniformFill, ViewMut};
use half::bf16;
use rayon::prelude::*;

use crate::weights::AlignedBytes;

/// The step of splitmix64's state (Steele, Lea, Flood 2014).
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Elements that one thread makes at a time.
const CHUNK_LEN: usize = 1 << 15;

/// Weights by a formula: `value[i] = bf16(f32(offset + scale * u[i]))` with `u` uniform in [-1, 1).
///
/// `u[i] = (z >> 40) / 2^23 - 1`, where `z` is output `i + 1` of splitmix64 started at the 64-bit FNV-1a hash of
/// `"<seed>:<tensor name>"`. The arithmetic is float64; each rounding is to nearest, ties to even. The committed
/// `tests/fixtures/goldens/make.py` (`fill`) writes the same weights with numpy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Formula {
    /// Seed of the checkpoint.
    pub seed: u64,
    /// The mean.
    pub offset: f64,
    /// Half the width of the interval.
    pub scale: f64,
}

impl Formula {
    /// The rule by which the reference checkpoints choose offset and scale: norms around 1, small biases, and linear
    /// layers that keep the size of what passes through them. `name` in any spelling; `is_tied` makes the embedding
    /// table small enough to serve as a head.
    #[must_use]
    pub fn for_tensor(seed: u64, name: &str, shape: &[usize], is_tied: bool) -> Self {
        let fan_in = shape.iter().skip(1).map(|&d| d as f64).product::<f64>();
        let (offset, scale) = match shape.len() {
            0 | 1 if name.ends_with("weight") => (1.0, 0.25),
            0 | 1 => (0.0, 0.2),
            _ if name.contains("embed_tokens") => (0.0, if is_tied { 0.2 } else { 1.7 }),
            _ if name.contains("pos_embed") => (0.0, 0.5),
            _ => {
                let gain = if name.contains("lm_head") { 1.6 } else { 1.0 };
                (0.0, 3_f64.sqrt() * gain / fan_in.max(1.0).sqrt())
            }
        };
        // The manifests keep scales as float32.
        Self { seed, offset, scale: f64::from(scale as f32) }
    }

    /// The first `len` elements of a tensor, as bits of bf16.
    #[must_use]
    pub fn first_bits(&self, name: &str, len: usize) -> Vec<u16> {
        let state = self.state(name);
        (0..len as u64).map(|i| self.value(state, i).to_bits()).collect()
    }

    /// All elements of a tensor, in memory that can be read in place.
    pub(crate) fn bytes(&self, name: &str, num_elements: usize) -> Result<AlignedBytes, DeviceError> {
        let mut memory = AlignedBytes::zeroed(num_elements * size_of::<bf16>())?;
        self.fill(name, memory.bytes_mut());
        Ok(memory)
    }

    /// Writes a tensor's elements as little-endian bf16.
    pub(crate) fn fill(&self, name: &str, bytes: &mut [u8]) {
        let state = self.state(name);
        bytes.par_chunks_mut(CHUNK_LEN * size_of::<bf16>()).enumerate().for_each(|(chunk, out)| {
            let first = (chunk * CHUNK_LEN) as u64;
            for (i, element) in (first..).zip(out.chunks_exact_mut(size_of::<bf16>())) {
                element.copy_from_slice(&self.value(state, i).to_le_bytes());
            }
        });
    }

    /// Has a GPU write the same elements as bf16 to its own memory: `[rows, row_len]` of them, each row at the start of
    /// `placed_len` elements.
    pub(crate) fn fill_on(
        &self,
        stream: &CudaStream,
        name: &str,
        [rows, row_len, placed_len]: [usize; 3],
        to: ViewMut<'_>,
    ) -> Result<(), DeviceError> {
        let (state, offset, scale) = (self.state(name), self.offset, self.scale);
        stream.fill_uniform(UniformFill { state, offset, scale, rows, row_len, placed_len }, to)
    }

    fn state(&self, name: &str) -> u64 {
        fnv1a64(format!("{}:{name}", self.seed).as_bytes())
    }

    fn value(&self, state: u64, i: u64) -> bf16 {
        let z = splitmix64(state.wrapping_add(i.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA)));
        let u = (z >> 40) as f64 / f64::from(1_u32 << 23) - 1.0;
        bf16::from_f32((self.offset + self.scale * u) as f32)
    }
}

/// The 64-bit FNV-1a hash.
fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The output function of splitmix64 for one state.
fn splitmix64(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_give_their_published_values() {
        // FNV's own test vectors, and the widely published first outputs of splitmix64 from state 1234567.
        assert_eq!(fnv1a64(b""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(fnv1a64(b"a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(fnv1a64(b"foobar"), 0x8594_4171_F739_67E8);
        let outputs = (1..=3_u64).map(|i| splitmix64(1_234_567_u64.wrapping_add(i.wrapping_mul(GOLDEN_GAMMA))));
        assert_eq!(
            outputs.collect::<Vec<_>>(),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn chunks_join_without_a_seam() {
        let formula = Formula { seed: 3, offset: 0.5, scale: 0.25 };
        let len = CHUNK_LEN + 7;
        let mut memory = formula.bytes("w", len).unwrap();
        let got: Vec<u16> = memory.bytes_mut().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(got, formula.first_bits("w", len));
    }
}
