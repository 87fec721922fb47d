//! How the CUDA launchers cut rows: a pack is what one thread loads or stores at once (`Pack` in `prelude.cuh`).

use foveal_device::{DType, DeviceError, View, ViewMut};

/// Bytes of the widest load and store.
const MAX_BYTES: usize = 16;

/// Threads of a warp.
pub(crate) const WARP: usize = 32;

/// The most threads of a block that takes one row; `MAX_THREADS` of the kernels that do.
const MAX_ROW_THREADS: usize = 256;

/// What an operand's packs depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    dtype: DType,
    ptr: u64,
}

impl Operand {
    pub(crate) fn of(view: &View<'_>) -> Result<Self, DeviceError> {
        Ok(Self { dtype: view.dtype(), ptr: view.device_ptr()? })
    }

    pub(crate) fn of_mut(view: &ViewMut<'_>) -> Result<Self, DeviceError> {
        Self::of(&view.as_view())
    }

    /// Its bytes: rows that are only moved.
    pub(crate) fn as_bytes(self) -> Self {
        Self { dtype: DType::U8, ..self }
    }

    /// One that starts where an allocation does.
    pub(crate) fn aligned(dtype: DType) -> Self {
        Self { dtype, ptr: 0 }
    }
}

/// Elements of a pack for rows of `row_len`: a power of two that divides the row, so that every row begins as aligned as
/// the first; aligned in every operand; and at most 16 bytes of the narrowest one (wider ones are moved in pieces).
///
/// It does not depend on the number of rows, so neither does the order of a kernel's sums.
pub(crate) fn pack_len(row_len: usize, operands: &[Operand]) -> usize {
    let narrowest = operands.iter().map(|operand| operand.dtype.size_bytes()).min().unwrap_or(1);
    let mut len = MAX_BYTES / narrowest;
    let fits = |len: usize| {
        row_len.is_multiple_of(len)
            && operands.iter().all(|operand| {
                let bytes = (len * operand.dtype.size_bytes()).min(MAX_BYTES);
                operand.ptr.is_multiple_of(bytes as u64)
            })
    };
    while len > 1 && !fits(len) {
        len /= 2;
    }
    len
}

/// How a block holds a row in registers: what kernels that need all of a row before they store any of it are cut by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldRow {
    /// Elements of a pack.
    pub(crate) pack: usize,
    /// Threads of the row's block.
    pub(crate) threads: usize,
    /// Packs of a thread.
    pub(crate) items: usize,
}

/// The widest row that a block holds.
pub(crate) const MAX_HELD_ROW: &str =
    "at most 32768 columns, on CUDA, and a multiple of 8 where they are more than 4096";

impl HeldRow {
    /// Elements of a thread: more would spill where a block has all its threads.
    const MAX_HELD: usize = 32;
    const MAX_THREADS: [usize; 2] = [512, 1024];

    /// `None` for a row that is too wide.
    pub(crate) fn of(row_len: usize, pack: usize) -> Option<Self> {
        let packs = row_len.div_ceil(pack).max(1);
        Self::MAX_THREADS.iter().find_map(|most| {
            let items = packs.div_ceil(*most);
            let threads = packs.div_ceil(items).next_multiple_of(WARP);
            let is_held = items * pack <= Self::MAX_HELD && items <= Self::MAX_HELD / 8;
            is_held.then_some(Self { pack, threads, items })
        })
    }
}

/// Threads of a block that takes a row of `num_packs`.
pub(crate) fn row_threads(num_packs: usize) -> u32 {
    num_packs.next_multiple_of(WARP).clamp(WARP, MAX_ROW_THREADS) as u32
}

/// Blocks for `count` units of work, `per_block` to each. Kernels count units in 32 bits, and the grid's first dimension
/// goes to 2^31 - 1.
pub(crate) fn blocks(count: usize, per_block: usize) -> Result<u32, DeviceError> {
    let count = i32::try_from(count).map_err(|_| DeviceError::TooLarge { value: count })?;
    Ok(count.cast_unsigned().div_ceil(per_block as u32))
}

#[cfg(test)]
mod tests {
    use foveal_device::DType;

    use super::{Operand, blocks, pack_len, row_threads};

    fn at(dtype: DType, ptr: u64) -> Operand {
        Operand { dtype, ptr }
    }

    #[test]
    fn a_pack_is_16_bytes_of_the_narrowest_operand() {
        let aligned = Operand::aligned;
        assert_eq!(pack_len(2560, &[aligned(DType::BF16); 3]), 8);
        assert_eq!(pack_len(2560, &[aligned(DType::F32); 3]), 4);
        assert_eq!(pack_len(2560, &[aligned(DType::F32), aligned(DType::BF16)]), 8);
        assert_eq!(pack_len(256, &[aligned(DType::U8), aligned(DType::BF16)]), 16);
    }

    #[test]
    fn a_pack_divides_the_row() {
        let lens = [(3420, 4), (1152, 8), (18, 2), (123, 1), (1, 1), (0, 8)];
        for (row_len, expected) in lens {
            assert_eq!(pack_len(row_len, &[Operand::aligned(DType::BF16)]), expected, "{row_len}");
        }
    }

    #[test]
    fn a_pack_is_aligned_in_every_operand() {
        let aligned = Operand::aligned(DType::BF16);
        for (ptr, expected) in [(256, 8), (272, 8), (264, 4), (260, 2), (258, 1)] {
            assert_eq!(pack_len(64, &[aligned, at(DType::BF16, ptr)]), expected, "{ptr}");
        }
        // Eight float32 are two pieces of 16 bytes, and need no more alignment than one.
        assert_eq!(pack_len(64, &[aligned, at(DType::F32, 16)]), 8);
        assert_eq!(pack_len(64, &[aligned, at(DType::F32, 8)]), 2);
    }

    #[test]
    fn blocks_and_threads_cover_the_work() {
        assert_eq!([1, 32, 33, 640, 0].map(row_threads), [32, 32, 64, 256, 32]);
        assert_eq!([0, 1, 256, 257].map(|count| blocks(count, 256).unwrap()), [0, 1, 1, 2]);
        assert!(blocks(1 << 31, 256).is_err(), "a thread's index would overflow");
    }
}
