//! Weights made on the GPU: a model of full size in a second, without a file.
#![allow(unsafe_code)]

use crate::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch, ViewMut};

static SOURCE: KernelSource = KernelSource { name: "fill", text: include_str!("fill.cu"), headers: &[] };
static FILL_UNIFORM: KernelSpec = KernelSpec::new(&SOURCE, "fill_uniform");

/// Threads of a block.
const BLOCK: u32 = 256;
/// Blocks of each multiprocessor: enough to hide the arithmetic.
const BLOCKS_PER_SM: u32 = 16;

/// The kernels of this crate, as `foveal_kernels::kernel_variants` gives those of the operators.
#[must_use]
pub fn fill_variants() -> Vec<KernelSpec> {
    vec![FILL_UNIFORM]
}

/// Uniform random numbers: element `i` is `bf16(f32(offset + scale * u))` with `u = (z >> 40) / 2^23 - 1` and `z` output
/// `i + 1` of splitmix64 started at `state`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UniformFill {
    /// Where splitmix64 starts.
    pub state: u64,
    /// The mean.
    pub offset: f64,
    /// Half the width of the interval.
    pub scale: f64,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub row_len: usize,
    /// Elements from a row's start to the next one's; those between stay as they are.
    pub placed_len: usize,
}

impl CudaStream {
    /// Writes the numbers to a bf16 tensor.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`] for a tensor that isn't bf16, [`DeviceError::TooLarge`] for rows that don't fit into it,
    /// and as [`CudaStream::launch`].
    pub fn fill_uniform(&self, fill: UniformFill, to: ViewMut<'_>) -> Result<(), DeviceError> {
        if to.dtype() != DType::BF16 {
            return Err(DeviceError::WrongDType { actual: to.dtype(), wanted: DType::BF16 });
        }
        let UniformFill { state, offset, scale, rows, row_len, placed_len } = fill;
        let end = rows.saturating_mul(placed_len);
        if end > to.shape().num_elements() || row_len > placed_len {
            return Err(DeviceError::TooLarge { value: end });
        }
        let num_elements = rows * row_len;
        let blocks = num_elements.div_ceil(BLOCK as usize).min((self.num_sms() * BLOCKS_PER_SM) as usize);
        let mut args = Args::new();
        args.ptr_mut(&to)?.u64(state).u64(offset.to_bits()).u64(scale.to_bits());
        args.u64(row_len as u64).u64(placed_len as u64).u64(num_elements as u64);
        let launch = Launch::new([blocks as u32, 1, 1], [BLOCK, 1, 1]);
        // SAFETY: the parameters are those of `fill_uniform` in fill.cu; it writes below `rows * placed_len` elements, which
        // the tensor has by the check above.
        unsafe { self.launch(&FILL_UNIFORM, launch, &mut args) }
    }
}
