//! The CPU implementation: operands are checked, cut into tasks, and given to the stream's threads.

use std::cell::RefCell;

use foveal_device::{DType, F8E4M3, Stream, View};
use half::bf16;
use rayon::prelude::*;

use super::pack::{Block, num_blocks, pack_rows, scale_rows};
use super::tile::{TILE_ROWS, Task};
use super::{Linear, OP};
use crate::OpError;
use crate::quantize::{GROUP, group_stride};
use crate::reals::Reals;
use crate::shared_rows::SharedOut;
use crate::simd::{Isa, SimdElement};

/// Packed activations of one pass: they stay in the last-level cache while every weight is read once.
const PASS_BYTES: usize = 4 << 20;
/// Packed activations of one task: half of a level-2 cache of 1 MiB.
const TASK_BYTES: usize = 512 << 10;
/// Weight rows of a task where there are many activation rows.
const TASK_COLUMNS: usize = 64;
/// Tasks per thread where there are few activation rows, so that a thread that is held up is helped.
const TASKS_PER_THREAD: usize = 4;

thread_local! {
    /// Packed activations, kept from call to call by the thread that calls.
    static PACKED: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// One part of the weights, `[num_rows, k]`; its first row gives column `column` of the output.
#[derive(Clone, Copy)]
struct Part<'a> {
    weight: Reals<'a>,
    /// `[ceil(num_rows / 128), ceil(k / 128)]`, where it is scaled by blocks.
    scales: Option<&'a [f32]>,
    num_rows: usize,
    column: usize,
}

pub(super) fn linear(stream: &Stream, args: Linear<'_>) -> Result<(), OpError> {
    run(Isa::best(), stream, args)
}

/// With a given instruction set, so that tests reach each.
pub(super) fn run(isa: Isa, stream: &Stream, args: Linear<'_>) -> Result<(), OpError> {
    let [m, k] = OP.rank("x", args.x.shape())?;
    args.check_scales(m, k)?;
    let Linear { x, weight, bias, scales, mut out } = args;
    if !matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F8E4M3) {
        return Err(OP.bad_dtype("x", x.dtype(), "f32, bf16 or f8_e4m3"));
    }
    let (mut parts, n) = parts(weight, k)?;
    if let Some(scales) = &scales {
        for (part, view) in parts.iter_mut().zip(scales.weight) {
            part.scales = Some(OP.slice(view)?);
        }
    }
    let x_scales = scales.map(|scales| OP.slice::<f32>(&scales.x)).transpose()?;
    if let Some(bias) = &bias {
        OP.shape("bias", bias.shape(), &[n])?;
    }
    let bias = bias.map(|bias| Reals::new(OP, "bias", &bias)).transpose()?.map(Reals::to_f32s);
    OP.shape("out", out.shape(), &[m, n])?;
    let out = SharedOut::new(OP, &mut out, n)?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let job = Job { isa, k, parts: &parts, x_scales, bias: bias.as_deref(), out: &out };
    let mut packed = PACKED.take();
    let result = match x.dtype() {
        DType::BF16 => OP.slice::<bf16>(&x).map(|x| stream.install(|| job.run(x, m, &mut packed))),
        DType::F8E4M3 => OP.slice::<F8E4M3>(&x).map(|x| stream.install(|| job.run(x, m, &mut packed))),
        _ => OP.slice::<f32>(&x).map(|x| stream.install(|| job.run(x, m, &mut packed))),
    };
    PACKED.set(packed);
    result
}

/// The parts of the weights, and how many rows they have together.
fn parts<'a>(weight: &[View<'a>], k: usize) -> Result<(Vec<Part<'a>>, usize), OpError> {
    let mut column = 0;
    let mut parts = Vec::with_capacity(weight.len());
    for view in weight {
        let [num_rows, _] = OP.rank("weight", view.shape())?;
        OP.shape("weight", view.shape(), &[num_rows, k])?;
        parts.push(Part { weight: Reals::stored(OP, "weight", view)?, scales: None, num_rows, column });
        // Without columns, rows cost no memory: their number may be anything.
        column = usize::saturating_add(column, num_rows);
    }
    Ok((parts, column))
}

/// A product whose operands have been checked.
struct Job<'a> {
    isa: Isa,
    k: usize,
    parts: &'a [Part<'a>],
    /// `[ceil(k / 128), group_stride(m)]`
    x_scales: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    out: &'a SharedOut<'a>,
}

impl Job<'_> {
    /// Runs inside of the stream's threads, over passes of as many rows as the packed scratch may hold.
    fn run<X: SimdElement>(&self, x: &[X], m: usize, packed: &mut Vec<Block>) {
        let row_blocks = num_blocks(self.k);
        let row_bytes = row_blocks * size_of::<Block>();
        let pass_rows = (PASS_BYTES / row_bytes / TILE_ROWS).max(8) * TILE_ROWS;
        for first_row in (0..m).step_by(pass_rows) {
            let num_rows = pass_rows.min(m - first_row);
            let len = num_rows * row_blocks;
            if packed.len() < len {
                packed.resize(len, Block::ZERO);
            }
            let packed = &mut packed[..len];
            let x = &x[first_row * self.k..(first_row + num_rows) * self.k];
            pack_rows(self.isa, x, self.k, packed);
            if let Some(scales) = self.x_scales {
                scale_rows(packed, self.k, |row, group| {
                    scales.get(group * group_stride(m) + first_row + row).copied().unwrap_or(0.0)
                });
            }
            self.pass(packed, first_row, num_rows);
        }
    }

    /// Multiplies the packed rows with all weights.
    fn pass(&self, packed: &[Block], first_row: usize, num_rows: usize) {
        let row_blocks = num_blocks(self.k);
        let row_bytes = row_blocks * size_of::<Block>();
        let task_rows = ((TASK_BYTES / row_bytes / TILE_ROWS).max(1) * TILE_ROWS).min(num_rows);
        let row_tasks = num_rows.div_ceil(task_rows);
        let n: usize = self.parts.iter().map(|part| part.num_rows).sum();
        let share = n.div_ceil(TASKS_PER_THREAD * rayon::current_num_threads()).next_multiple_of(8);
        let task_columns = if num_rows > TILE_ROWS { share.min(TASK_COLUMNS) } else { share };
        let column_tasks: usize = self.parts.iter().map(|part| part.num_rows.div_ceil(task_columns)).sum();
        // Neighbouring tasks share their weights.
        (0..row_tasks * column_tasks).into_par_iter().with_max_len(1).for_each(|task| {
            let (mut column_task, row_task) = (task / row_tasks, task % row_tasks);
            for part in self.parts {
                let part_tasks = part.num_rows.div_ceil(task_columns);
                if column_task < part_tasks {
                    let start = column_task * task_columns;
                    let rows = row_task * task_rows..((row_task + 1) * task_rows).min(num_rows);
                    let x = &packed[rows.start * row_blocks..rows.end * row_blocks];
                    self.task(part, start..(start + task_columns).min(part.num_rows), x, first_row + rows.start);
                    return;
                }
                column_task -= part_tasks;
            }
        });
    }

    fn task(&self, part: &Part<'_>, weight_rows: std::ops::Range<usize>, x: &[Block], first_row: usize) {
        let column = part.column + weight_rows.start;
        let elements = weight_rows.start * self.k..weight_rows.end * self.k;
        match part.weight {
            Reals::F32(w) => self.dispatch(&w[elements], (part, weight_rows), x, [first_row, column]),
            Reals::Bf16(w) => self.dispatch(&w[elements], (part, weight_rows), x, [first_row, column]),
            Reals::F16(w) => self.dispatch(&w[elements], (part, weight_rows), x, [first_row, column]),
            Reals::F8(w) => self.dispatch(&w[elements], (part, weight_rows), x, [first_row, column]),
        }
    }

    fn dispatch<W: SimdElement>(
        &self,
        weight: &[W],
        (part, weight_rows): (&Part<'_>, std::ops::Range<usize>),
        x: &[Block],
        [first_row, column]: [usize; 2],
    ) {
        let Self { isa, k, bias, out, .. } = *self;
        let (num_columns, groups) = (weight_rows.len(), k.div_ceil(GROUP));
        let scales =
            part.scales.map(|scales| (&scales[weight_rows.start / GROUP * groups..], weight_rows.start % GROUP));
        isa.dispatch(Task { k, x, weight, num_columns, scales, first_row, column, bias, out });
    }
}
