//! Operands: random, and enough of them for none to stay in the card's cache.

use foveal_device::{DType, DeviceError, Element, Tensor, UniformFill, View, ViewMut};
use foveal_kernels::quantize::{Quantize, QuantizeRows, quantize};

use super::Bench;
use super::shapes::LAYERS;

/// Operands of operators that are bound by memory rotate over at least as much of it.
pub(super) const ROTATION_BYTES: usize = 256 << 20;
/// Where the random numbers start; any would do.
const SEED: u64 = 0x5EED;

/// Several operands of one shape, used in turn.
pub(crate) struct Rotation {
    /// `[num_turns * dims[0], dims[1..]]`
    tensor: Tensor,
    dims: Vec<usize>,
    num_turns: usize,
}

impl Rotation {
    /// One operand, of a device without a rotation of them.
    pub(crate) fn of(tensor: Tensor, dims: &[usize]) -> Self {
        Self { tensor, dims: dims.to_vec(), num_turns: 1 }
    }

    /// All of them.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// How many they are.
    pub(super) fn num_turns(&self) -> usize {
        self.num_turns
    }

    /// The operand of a call.
    pub(crate) fn view(&self, call: usize) -> Result<View<'_>, DeviceError> {
        let first = call % self.num_turns * self.dims[0];
        self.tensor.rows(first..first + self.dims[0])
    }

    /// As [`Rotation::view`], to write.
    pub(crate) fn view_mut(&mut self, call: usize) -> Result<ViewMut<'_>, DeviceError> {
        let first = call % self.num_turns * self.dims[0];
        self.tensor.rows_mut(first..first + self.dims[0])
    }
}

impl Bench {
    /// The shape of a rotation's operands together, and how many they are.
    fn stacked(&self, dtype: DType, dims: &[usize]) -> (Vec<usize>, usize) {
        let len_bytes = dims.iter().product::<usize>() * dtype.size_bytes();
        let num_turns = self.rotation_bytes.div_ceil(len_bytes.max(1)).clamp(1, Self::MAX_CALLS);
        let mut stacked = dims.to_vec();
        stacked[0] *= num_turns;
        (stacked, num_turns)
    }

    /// Random bf16 values made on the card: zeros would run faster than anything real.
    pub(crate) fn random(&self, dims: &[usize]) -> anyhow::Result<Tensor> {
        let mut tensor = Tensor::zeros(&self.device, DType::BF16, dims)?;
        let len = tensor.shape().num_elements();
        let state = len as u64 ^ SEED;
        let fill = UniformFill { state, offset: 0.0, scale: 1.0, rows: 1, row_len: len, placed_len: len };
        self.cuda()?.fill_uniform(fill, tensor.view_mut()?)?;
        Ok(tensor)
    }

    /// What every layer has of its own, and hence another one in each call, whether or not rows are the same: random bf16 weights.
    pub(super) fn layer_weights(&self, len: usize) -> anyhow::Result<Rotation> {
        Ok(Rotation { tensor: self.random(&[LAYERS * len])?, dims: vec![len], num_turns: LAYERS })
    }

    /// The same, scales of 1.
    pub(super) fn layer_scales(&self, len: usize) -> anyhow::Result<Rotation> {
        let tensor = Tensor::from_slice(&self.device, &vec![1.0_f32; LAYERS * len], &[LAYERS * len])?;
        Ok(Rotation { tensor, dims: vec![len], num_turns: LAYERS })
    }

    /// Zeros, to be written to or to be used as scratch.
    pub(super) fn scratch(&self, dtype: DType, dims: &[usize]) -> anyhow::Result<Tensor> {
        Ok(Tensor::zeros(&self.device, dtype, dims)?)
    }

    /// Integers as they are given.
    pub(super) fn ints(&self, values: impl IntoIterator<Item = i32>, dims: &[usize]) -> anyhow::Result<Tensor> {
        let values: Vec<i32> = values.into_iter().collect();
        Ok(Tensor::from_slice(&self.device, &values, dims)?)
    }

    /// Random bf16 operands.
    pub(crate) fn rotation(&self, dims: &[usize]) -> anyhow::Result<Rotation> {
        let (stacked, num_turns) = self.stacked(DType::BF16, dims);
        Ok(Rotation { tensor: self.random(&stacked)?, dims: dims.to_vec(), num_turns })
    }

    /// Random FP8 values.
    pub(super) fn f8_random(&self, dims: &[usize]) -> anyhow::Result<Tensor> {
        let x = self.random(dims)?;
        let mut out = Tensor::zeros(&self.device, DType::F8E4M3, dims)?;
        let flat = [x.shape().num_elements() / dims[dims.len() - 1], dims[dims.len() - 1]];
        let args = QuantizeRows {
            x: x.view().reshape(&flat)?,
            quantize: Quantize::Fixed(1.0 / 256.0),
            out: out.view_mut()?.reshape(&flat)?,
        };
        quantize(self.device.stream(), args)?;
        Ok(out)
    }

    /// Random FP8 operands.
    pub(crate) fn f8_rotation(&self, dims: &[usize]) -> anyhow::Result<Rotation> {
        let (stacked, num_turns) = self.stacked(DType::F8E4M3, dims);
        Ok(Rotation { tensor: self.f8_random(&stacked)?, dims: dims.to_vec(), num_turns })
    }

    /// Operands of other types: `value` is given random bits for each element.
    pub(super) fn rotation_of<T: Element>(&self, dims: &[usize], value: impl Fn(u32) -> T) -> anyhow::Result<Rotation> {
        let (stacked, num_turns) = self.stacked(T::DTYPE, dims);
        let values: Vec<T> = (0..stacked.iter().product::<usize>()).map(|i| value(bits(i))).collect();
        let tensor = Tensor::from_slice(&self.device, &values, &stacked)?;
        Ok(Rotation { tensor, dims: dims.to_vec(), num_turns })
    }
}

/// 32 random bits for an element: the upper half of one round of splitmix64.
pub(crate) fn bits(i: usize) -> u32 {
    let z = (i as u64).wrapping_add(SEED).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (z >> 32) as u32
}
