//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{AddNorm, NormKind, OP, Sizes};
use crate::OpError;
use crate::cuda::{distinct, following};
use crate::packs::{HeldRow, Operand, WARP, blocks, pack_len};
use crate::quantize::{Form, held_row, quantize_params, scale_params};

static SOURCE: KernelSource =
    KernelSource { name: "norm", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

/// `ROWS_PER_BLOCK` of the kernel where a warp takes a row.
const WARP_ROWS_PER_BLOCK: usize = 4;

/// The most threads of a block that takes a row: with more, each could hold too few registers.
const MAX_THREADS: usize = 512;

/// The most elements that a thread holds, of a row's warp (1280 bf16 elements, a vision tower's widest row, are 40) and
/// of a row's block; above, registers would spill.
const MAX_HELD_BY_WARP: usize = 40;
const MAX_HELD_BY_BLOCK: usize = 32;

/// The most packs that a thread holds: each has a branch and addresses of its own, which take registers too.
const MAX_ITEMS: usize = 12;

/// How a row is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Elements of a pack.
    pack: usize,
    /// Threads of a row: a warp, or a block.
    threads: usize,
    /// Packs that a thread holds; 0 where the row is read again instead.
    items: usize,
}

fn plan(d: usize, pack: usize) -> Plan {
    let packs = d.div_ceil(pack);
    let fits = |items: usize, max_held: usize| items <= MAX_ITEMS && items * pack <= max_held;
    let items = packs.div_ceil(WARP);
    if fits(items, MAX_HELD_BY_WARP) {
        return Plan { pack, threads: WARP, items };
    }
    let items = packs.div_ceil(MAX_THREADS);
    if fits(items, MAX_HELD_BY_BLOCK) {
        return Plan { pack, threads: packs.div_ceil(items).next_multiple_of(WARP), items };
    }
    Plan { pack, threads: MAX_THREADS, items: 0 }
}

impl Plan {
    fn rows_per_block(self) -> usize {
        if self.threads == WARP { WARP_ROWS_PER_BLOCK } else { 1 }
    }
}

/// Element types in the order of the operands; one that is not given has `residual`'s.
struct DTypes {
    residual: DType,
    add: DType,
    extra: DType,
    weight: DType,
    bias: DType,
    out: DType,
}

/// `ADDS` of the kernel.
fn adds(has_add: bool, has_extra: bool, is_scaled: bool) -> i64 {
    i64::from(has_add) + 2 * i64::from(has_extra) + 4 * i64::from(is_scaled)
}

fn spec(dtypes: &DTypes, plan: Plan, kind: NormKind, adds: i64, form: Form) -> KernelSpec {
    KernelSpec::new(&SOURCE, "add_norm")
        .dtype("X_T", dtypes.residual)
        .dtype("ADD_T", dtypes.add)
        .dtype("EXTRA_T", dtypes.extra)
        .dtype("W_T", dtypes.weight)
        .dtype("BIAS_T", dtypes.bias)
        .dtype("OUT_T", dtypes.out)
        .int("VEC", plan.pack as i64)
        .int("ITEMS", plan.items as i64)
        .int("THREADS", plan.threads as i64)
        .int("LAYER", i64::from(kind == NormKind::Layer))
        .int("ADDS", adds)
        .int("QUANTIZE", form as i64)
}

pub(super) fn add_norm(stream: &CudaStream, args: &AddNorm<'_>, sizes: Sizes) -> Result<(), OpError> {
    if sizes.m == 0 || sizes.d == 0 {
        return Ok(());
    }
    let operands = operands(args).map_err(|source| OP.device(source))?;
    let form = Form::of(args.quantize.as_ref());
    let plan = match form {
        Form::Float => plan(sizes.d, pack_len(sizes.d, &operands)),
        _ => held_row(OP, form, sizes.d, &operands, args.out.shape())?.into(),
    };
    launch(stream, args, sizes, (plan, form)).map_err(|source| OP.device(source))
}

/// A row that is quantised is always held, by a block.
impl From<HeldRow> for Plan {
    fn from(HeldRow { pack, threads, items }: HeldRow) -> Self {
        Self { pack, threads, items }
    }
}

/// What threads read and write by packs; one that isn't given has `residual`'s place.
fn operands(args: &AddNorm<'_>) -> Result<[Operand; 7], DeviceError> {
    let mut operands = [Operand::of_mut(&args.residual)?; 7];
    let [_, of_weight, of_out, of_add, of_columns, of_rows, of_bias] = &mut operands;
    (*of_weight, *of_out) = (Operand::of(&args.weight)?, Operand::of_mut(&args.out)?);
    let optional = [
        (of_add, args.add.as_ref()),
        (of_columns, args.add_scales.as_ref().map(|scales| &scales.columns)),
        (of_rows, args.extra.as_ref().map(|extra| &extra.rows)),
        (of_bias, args.bias.as_ref()),
    ];
    for (operand, view) in optional {
        if let Some(view) = view {
            *operand = Operand::of(view)?;
        }
    }
    Ok(operands)
}

fn launch(
    stream: &CudaStream,
    args: &AddNorm<'_>,
    Sizes { m, d, num_extra }: Sizes,
    (plan, form): (Plan, Form),
) -> Result<(), DeviceError> {
    let AddNorm { residual, add, add_scales, extra, weight, bias, kind, eps, quantize, out } = args;
    let rows = extra.as_ref().map(|extra| &extra.rows);
    let index = extra.as_ref().map(|extra| &extra.index);
    let dtype_of = |view: Option<DType>| view.unwrap_or(residual.dtype());
    let dtypes = DTypes {
        residual: residual.dtype(),
        add: dtype_of(add.map(|view| view.dtype())),
        extra: dtype_of(rows.map(|view| view.dtype())),
        weight: weight.dtype(),
        bias: dtype_of(bias.map(|view| view.dtype())),
        out: out.dtype(),
    };
    let mut params = Args::new();
    params.ptr_mut(residual)?.ptr_or_null(add.as_ref())?.ptr_or_null(rows)?.ptr_or_null(index)?;
    params.ptr(weight)?.ptr_or_null(bias.as_ref())?.ptr_mut(out)?;
    params.f32(*eps).f32(1.0 / d as f32);
    params.usize_as_i32(m)?.usize_as_i32(d)?.usize_as_i32(num_extra)?;
    scale_params(&mut params, add_scales.as_ref())?;
    quantize_params(&mut params, quantize.as_ref())?;
    let adds = adds(add.is_some(), extra.is_some(), add_scales.is_some());
    let spec = spec(&dtypes, plan, *kind, adds, form);
    let grid = [blocks(m, plan.rows_per_block())?, 1, 1];
    let block = [(plan.threads * plan.rows_per_block()) as u32, 1, 1];
    // SAFETY: `AddNorm::check` has found every operand of the size that [m, d] asks for, the parameters are the kernel's,
    // and the kernel takes indices inside of the `num_extra` rows only.
    unsafe { stream.launch(&spec, following(stream, Launch::new(grid, block)), &mut params) }
}

/// The variants of the published models, bf16 and, for decoders, FP8.
pub(crate) fn variants() -> Vec<KernelSpec> {
    use NormKind::{Layer, Rms};
    // Decoders: hidden sizes, with nothing to add (the first layer), with the last part's output, and with deepstack rows.
    let decoders = [1536, 2048, 2560, 3584, 4096, 5120];
    // Towers: hidden sizes, and the rows of four patches that deepstack mergers normalise.
    let towers = [(Layer, 1024), (Layer, 1152), (Layer, 1280), (Rms, 1280), (Layer, 4096), (Layer, 4608)];
    let joins = [(false, false), (true, false), (true, true)];
    let mut wanted = Vec::new();
    for (d, (has_add, has_extra)) in decoders.into_iter().flat_map(|d| joins.map(|join| (d, join))) {
        wanted.push((Rms, d, adds(has_add, has_extra, false), Form::Float));
        // A layer whose products are FP8 reads them scaled and gives FP8, or floats to the head.
        for form in [Form::Float].into_iter().chain(Form::F8) {
            wanted.push((Rms, d, adds(has_add, has_extra, has_add), form));
            // Products with blocks come scaled.
            wanted.push((Rms, d, adds(has_add, has_extra, false), form));
        }
    }
    wanted.extend(towers.map(|(kind, d)| (kind, d, adds(false, false, false), Form::Float)));
    wanted.extend(towers.map(|(kind, d)| (kind, d, adds(true, false, false), Form::Float)));
    let bf16 = DType::BF16;
    distinct(wanted.into_iter().map(|(kind, d, adds, form)| {
        let plan = match (form, HeldRow::of(d, 8)) {
            (Form::PerRow | Form::PerGroup | Form::Fixed, Some(row)) => row.into(),
            _ => plan(d, pack_len(d, &[Operand::aligned(bf16)])),
        };
        let out = form.out(bf16);
        let dtypes = DTypes { residual: bf16, add: bf16, extra: bf16, weight: bf16, bias: bf16, out };
        spec(&dtypes, plan, kind, adds, form)
    }))
}

#[cfg(test)]
mod tests {
    use super::{MAX_HELD_BY_BLOCK, MAX_HELD_BY_WARP, MAX_ITEMS, MAX_THREADS, Plan, WARP, plan};

    #[test]
    fn rows_of_the_published_models() {
        let expected = [
            (1024, 32, 4),
            (1280, 32, 5),
            (1536, 192, 1),
            (2048, 256, 1),
            (2560, 320, 1),
            (3584, 448, 1),
            (4096, 512, 1),
            (5120, 320, 2),
        ];
        for (d, threads, items) in expected {
            assert_eq!(plan(d, 8), Plan { pack: 8, threads, items }, "{d}");
        }
    }

    #[test]
    fn every_row_is_covered_and_fits_into_registers() {
        for pack in [1, 2, 4, 8] {
            for d in (1..3000).chain([4096, 8192, 16_384, 16_385, 30_000, 100_000]) {
                let Plan { threads, items, .. } = plan(d, pack);
                assert!(threads % WARP == 0 && (WARP..=MAX_THREADS).contains(&threads), "{d}");
                let max_held = if threads == WARP { MAX_HELD_BY_WARP } else { MAX_HELD_BY_BLOCK };
                assert!(items <= MAX_ITEMS && items * pack <= max_held, "{d}");
                assert!(items == 0 || threads * items * pack >= d, "{d}");
                assert!(items > 0 || d > MAX_THREADS * MAX_ITEMS.min(MAX_HELD_BY_BLOCK / pack) * pack, "{d}");
            }
        }
    }
}
