//! The product of a few activation rows and a few weight rows, held in registers.
#![allow(unsafe_code)]

use super::pack::{Block, num_blocks, padded};
use crate::quantize::GROUP;
use crate::shared_rows::SharedOut;
use crate::simd::{Kernel, PAIR, Simd, SimdElement};

/// Activation rows of the largest tile: 6 x 4 sums, 4 weights and 1 activation fill the 32 registers of AVX-512.
pub(super) const TILE_ROWS: usize = 6;
/// Weight rows of a tile.
const TILE_COLUMNS: usize = 4;

/// Some activation rows times some weight rows. No other task has the same outputs.
pub(super) struct Task<'a, W> {
    pub(super) k: usize,
    /// Packed activations.
    pub(super) x: &'a [Block],
    /// `[num_columns, k]`
    pub(super) weight: &'a [W],
    pub(super) num_columns: usize,
    /// The scales of the first row's blocks and those that follow, and the first row's place in its block.
    pub(super) scales: Option<(&'a [f32], usize)>,
    /// Row of the output that belongs to the first activation row.
    pub(super) first_row: usize,
    /// Column of the output that belongs to the first weight row.
    pub(super) column: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: &'a SharedOut<'a>,
}

impl<W: SimdElement> Kernel for Task<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let row_blocks = num_blocks(self.k);
        let num_rows = self.x.len() / row_blocks;
        // Four weight rows stay in the level-1 cache while all activation rows pass. In the other order six activation
        // rows would have to stay, which take three times the bytes.
        for column in (0..self.num_columns).step_by(TILE_COLUMNS) {
            let mut row = 0;
            while row < num_rows {
                row += match num_rows - row {
                    1 => self.tile::<S, 1>(simd, row, num_rows, column),
                    2 => self.tile::<S, 2>(simd, row, num_rows, column),
                    3 | 4 => self.tile::<S, 4>(simd, row, num_rows, column),
                    _ => self.tile::<S, TILE_ROWS>(simd, row, num_rows, column),
                };
            }
        }
    }
}

impl<W: SimdElement> Task<'_, W> {
    /// Writes the outputs of up to `M` rows from `row` on. Rows beyond the last repeat it and are dropped.
    #[inline(always)]
    fn tile<S: Simd, const M: usize>(&self, simd: S, row: usize, num_rows: usize, column: usize) -> usize {
        let row_blocks = num_blocks(self.k);
        let mut x: [&[Block]; M] = [&[]; M];
        for (i, x) in x.iter_mut().enumerate() {
            let row = (row + i).min(num_rows - 1);
            *x = &self.x[row * row_blocks..(row + 1) * row_blocks];
        }
        let mut w: [&[W]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
        for (i, w) in w.iter_mut().enumerate() {
            let column = (column + i).min(self.num_columns - 1);
            *w = &self.weight[column * self.k..(column + 1) * self.k];
        }
        let sums = match self.scales {
            None => products(simd, x, w, self.k, |_, w| w),
            Some((scales, first)) => {
                let groups = self.k.div_ceil(GROUP);
                let mut own: [&[f32]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
                for (i, own) in own.iter_mut().enumerate() {
                    let block = (first + (column + i).min(self.num_columns - 1)) / GROUP;
                    *own = &scales[block * groups..(block + 1) * groups];
                }
                products(simd, x, w, self.k, |block, [even, odd]: [[S::F; TILE_COLUMNS]; 2]| {
                    let scale = own.map(|scales| simd.splat(scales[block * PAIR / GROUP]));
                    [even, odd].map(|w| std::array::from_fn(|n| simd.mul(w[n], scale[n])))
                })
            }
        };
        let num_columns = TILE_COLUMNS.min(self.num_columns - column);
        for (i, sums) in sums.iter().enumerate().take(num_rows - row) {
            self.store(row + i, column, &sums[..num_columns]);
        }
        M
    }

    fn store(&self, row: usize, column: usize, sums: &[f32]) {
        let column = self.column + column;
        let mut outputs = [0.0; TILE_COLUMNS];
        let outputs = &mut outputs[..sums.len()];
        outputs.copy_from_slice(sums);
        if let Some(bias) = self.bias {
            for (output, bias) in outputs.iter_mut().zip(&bias[column..]) {
                *output += bias;
            }
        }
        // SAFETY: whoever made this task gave no other the same outputs.
        unsafe { self.out.write(self.first_row + row, column, outputs) };
    }
}

/// The products of `M` packed rows with four weight rows of `k` elements, as `scaled(block, weights)` makes them of each
/// block's.
///
/// One vector sums a product: for every 32 elements it takes those of even index, then those of odd index, each lane
/// its own; its lanes are added at the end. This order depends on nothing but `k`.
#[inline(always)]
fn products<S: Simd, W: SimdElement, const M: usize>(
    simd: S,
    x: [&[Block]; M],
    w: [&[W]; TILE_COLUMNS],
    k: usize,
    scaled: impl Fn(usize, [[S::F; TILE_COLUMNS]; 2]) -> [[S::F; TILE_COLUMNS]; 2],
) -> [[f32; TILE_COLUMNS]; M] {
    let full = k / PAIR;
    let mut sums = [[simd.splat(0.0); TILE_COLUMNS]; M];
    let mut blocks: [&[[W; PAIR]]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
    let mut rests: [&[W]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
    for (i, w) in w.iter().enumerate() {
        let (head, rest) = w.as_chunks::<PAIR>();
        blocks[i] = &head[..full];
        rests[i] = rest;
    }
    let mut heads = x;
    for head in &mut heads {
        *head = &head[..full];
    }
    for block in 0..full {
        let mut w = [&blocks[0][block]; TILE_COLUMNS];
        for i in 0..TILE_COLUMNS {
            w[i] = &blocks[i][block];
        }
        let mut x = [&heads[0][block]; M];
        for i in 0..M {
            x[i] = &heads[i][block];
        }
        step(simd, &mut sums, x, w, |w| scaled(block, w));
    }
    if k > full * PAIR {
        let rests = [padded(rests[0]), padded(rests[1]), padded(rests[2]), padded(rests[3])];
        let mut last = [&x[0][full]; M];
        for i in 0..M {
            last[i] = &x[i][full];
        }
        step(simd, &mut sums, last, [&rests[0], &rests[1], &rests[2], &rests[3]], |w| scaled(full, w));
    }
    let mut totals = [[0.0; TILE_COLUMNS]; M];
    for (total, sums) in totals.iter_mut().zip(sums) {
        *total = simd.sums(sums);
    }
    totals
}

/// Adds the products of 32 elements.
#[inline(always)]
fn step<S: Simd, W: SimdElement, const M: usize>(
    simd: S,
    sums: &mut [[S::F; TILE_COLUMNS]; M],
    x: [&Block; M],
    w: [&[W; PAIR]; TILE_COLUMNS],
    scaled: impl Fn([[S::F; TILE_COLUMNS]; 2]) -> [[S::F; TILE_COLUMNS]; 2],
) {
    let mut even = [simd.splat(0.0); TILE_COLUMNS];
    let mut odd = [simd.splat(0.0); TILE_COLUMNS];
    for n in 0..TILE_COLUMNS {
        (even[n], odd[n]) = W::load_pairs(simd, w[n]);
    }
    let [even, odd] = scaled([even, odd]);
    for m in 0..M {
        let x = simd.load(&x[m].even);
        for n in 0..TILE_COLUMNS {
            sums[m][n] = simd.fma(x, even[n], sums[m][n]);
        }
    }
    for m in 0..M {
        let x = simd.load(&x[m].odd);
        for n in 0..TILE_COLUMNS {
            sums[m][n] = simd.fma(x, odd[n], sums[m][n]);
        }
    }
}
