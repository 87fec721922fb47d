//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::operands::{OP, Sizes};
use super::{QkNorm, QkNormRope};
use crate::OpError;
use crate::cuda::following;
use crate::packs::{Operand, WARP, blocks, pack_len};
use crate::quantize::scale_params;

static SOURCE: KernelSource =
    KernelSource { name: "qk_norm_rope", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

/// `THREADS` of the kernels.
const THREADS: usize = 128;

/// The most pairs that a lane holds.
const MAX_PAIRS: usize = 8;

/// `HEADS_EACH` of the kernel for steps of many rows, at most; how many of its blocks a multiprocessor has; and from how many rows on
/// it is taken: with fewer there are too few threads.
const MAX_HEADS_EACH: usize = 3;
const BLOCKS_PER_SM: u32 = 4;
const MANY_ROWS: usize = 1024;

/// How a head is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// A power of two of lanes, each with a pack of pairs: `lanes * pack` pairs, which are the whole head.
    Packed { lanes: usize, pack: usize },
    /// The same with so many heads to a thread, row after row.
    Rows { lanes: usize, pack: usize, heads_each: usize },
    /// A warp, element by element.
    Any,
}

/// Bytes of an asynchronous copy.
const COPY_BYTES: usize = 16;

/// For `n` rows of so many heads of `qkv`; `operands` are those whose heads are cut into packs.
fn plan([n, heads]: [usize; 2], qkv: DType, head_dim: usize, pairs: usize, operands: &[Operand]) -> Plan {
    if pairs == 0 || 2 * pairs != head_dim {
        return Plan::Any;
    }
    let pack = pack_len(pairs, operands).min(MAX_PAIRS);
    let lanes = pairs / pack;
    if !lanes.is_power_of_two() || lanes > WARP {
        return Plan::Any;
    }
    if n < MANY_ROWS || pack * qkv.size_bytes() != COPY_BYTES {
        return Plan::Packed { lanes, pack };
    }
    let groups = heads.div_ceil(THREADS / lanes).max(1);
    // As evenly as blocks that are no more than needed share them out.
    Plan::Rows { lanes, pack, heads_each: groups.div_ceil(groups.div_ceil(MAX_HEADS_EACH)) }
}

/// Element types; without a norm, its weights have the activations'.
#[derive(Clone, Copy)]
struct DTypes {
    qkv: DType,
    out: DType,
    cache: DType,
    q_weight: DType,
    k_weight: DType,
}

fn spec(dtypes: DTypes, plan: Plan, has_norm: bool, is_scaled: bool) -> KernelSpec {
    let with_types = |entry| {
        KernelSpec::new(&SOURCE, entry)
            .dtype("X_T", dtypes.qkv)
            .dtype("OUT_T", dtypes.out)
            .dtype("CACHE_T", dtypes.cache)
            .dtype("QW_T", dtypes.q_weight)
            .dtype("KW_T", dtypes.k_weight)
            .int("NORM", i64::from(has_norm))
            .int("SCALED", i64::from(is_scaled))
    };
    match plan {
        Plan::Packed { lanes, pack } => with_types("qk_norm_rope").int("VEC", pack as i64).int("LANES", lanes as i64),
        Plan::Rows { lanes, pack, heads_each } => {
            let spec = with_types("qk_norm_rope_rows").int("VEC", pack as i64).int("LANES", lanes as i64);
            spec.int("HEADS_EACH", heads_each as i64)
        }
        Plan::Any => with_types("qk_norm_rope_any"),
    }
}

pub(super) fn qk_norm_rope(stream: &CudaStream, args: &QkNormRope<'_>, sizes: Sizes) -> Result<(), OpError> {
    launch(stream, args, sizes).map_err(|source| OP.device(source))
}

fn launch(stream: &CudaStream, args: &QkNormRope<'_>, sizes: Sizes) -> Result<(), DeviceError> {
    let Sizes { n, num_heads, num_kv_heads, head_dim, pairs, max_positions, num_slots } = sizes;
    let heads = num_heads + 2 * num_kv_heads;
    let dtypes = dtypes(args);
    let plan = match dtypes.q_weight == dtypes.k_weight {
        true => plan([n, heads], dtypes.qkv, head_dim, pairs, &packed_operands(args)?),
        false => Plan::Any,
    };
    let mut params = params(args)?;
    params.f32(args.norm.map_or(0.0, |norm| norm.eps)).usize_as_i32(n)?;
    params.usize_as_i32(num_heads)?.usize_as_i32(num_kv_heads)?;
    params.usize_as_i32(max_positions)?.usize_as_i32(args.layout.page)?.usize_as_i32(num_slots)?;
    let grid = match plan {
        Plan::Packed { lanes, .. } => [blocks(n * heads, THREADS / lanes)?, 1, 1],
        Plan::Rows { lanes, heads_each, .. } => {
            let of_a_row = blocks(heads, THREADS / lanes * heads_each)?;
            [(stream.num_sms() * BLOCKS_PER_SM).div_ceil(of_a_row).min(blocks(n, 1)?), of_a_row, 1]
        }
        Plan::Any => {
            params.usize_as_i32(head_dim)?.usize_as_i32(pairs)?;
            [blocks(n * heads, THREADS / WARP)?, 1, 1]
        }
    };
    let launch = Launch::new(grid, [THREADS as u32, 1, 1]);
    let launch = match plan {
        // Its blocks stay to the end: on multiprocessors that the kernel before frees first there would be more of them than elsewhere.
        Plan::Rows { .. } => launch,
        Plan::Packed { .. } | Plan::Any => following(stream, launch),
    };
    let spec = spec(dtypes, plan, args.norm.is_some(), is_scaled(args));
    // SAFETY: `operands::check` has found every operand of the size that `sizes` says, the parameters are the kernel's,
    // and the kernel takes positions, axes and slots inside of these sizes only.
    unsafe { stream.launch(&spec, launch, &mut params) }
}

/// A bias alone has factors of 1.
fn is_scaled(args: &QkNormRope<'_>) -> bool {
    args.scales.is_some() || args.bias.is_some()
}

/// What lanes read and write by packs.
fn packed_operands(args: &QkNormRope<'_>) -> Result<[Operand; 10], DeviceError> {
    let QkNormRope { qkv, scales, bias, norm, rope, k_cache, v_cache, q_out, .. } = args;
    let (q_weight, k_weight) = norm.map_or((*qkv, *qkv), |norm| (norm.q_weight, norm.k_weight));
    Ok([
        Operand::of(qkv)?,
        Operand::of(&q_weight)?,
        Operand::of(&k_weight)?,
        Operand::of(&rope.cos)?,
        Operand::of(&rope.sin)?,
        Operand::of_mut(k_cache)?,
        Operand::of_mut(v_cache)?,
        Operand::of_mut(q_out)?,
        Operand::of(scales.as_ref().map_or(&rope.cos, |scales| &scales.columns))?,
        Operand::of(bias.as_ref().unwrap_or(&rope.cos))?,
    ])
}

fn dtypes(args: &QkNormRope<'_>) -> DTypes {
    let qkv = args.qkv.dtype();
    let weights = |norm: QkNorm<'_>| (norm.q_weight.dtype(), norm.k_weight.dtype());
    let (q_weight, k_weight) = args.norm.map_or((qkv, qkv), weights);
    DTypes { qkv, out: args.q_out.dtype(), cache: args.layout.dtype, q_weight, k_weight }
}

/// The addresses, in order.
fn params(args: &QkNormRope<'_>) -> Result<Args, DeviceError> {
    let QkNormRope { qkv, norm, rope, slot_mapping, k_cache, v_cache, q_out, .. } = args;
    let mut params = Args::new();
    params.ptr(qkv)?;
    params.ptr_or_null(norm.as_ref().map(|norm| &norm.q_weight))?;
    params.ptr_or_null(norm.as_ref().map(|norm| &norm.k_weight))?;
    params.ptr(&rope.positions)?.ptr(&rope.cos)?.ptr(&rope.sin)?.ptr(&rope.axis_of_pair)?;
    params.ptr(slot_mapping)?.ptr_mut(k_cache)?.ptr_mut(v_cache)?.ptr_mut(q_out)?;
    scale_params(&mut params, args.scales.as_ref())?;
    params.ptr_or_null(args.bias.as_ref())?.f32(1.0 / args.kv_scales.k).f32(1.0 / args.kv_scales.v);
    Ok(params)
}

/// The variants of the published models: heads of 128, with a norm (Qwen3) and without, of bf16 and of FP8 products, into
/// caches of either.
pub(crate) fn variants() -> Vec<KernelSpec> {
    let bf16 = DType::BF16;
    let mut variants = Vec::new();
    for (cache, is_scaled) in [(bf16, false), (bf16, true), (DType::F8E4M3, false), (DType::F8E4M3, true)] {
        let dtypes = DTypes { qkv: bf16, out: bf16, cache, q_weight: bf16, k_weight: bf16 };
        let (lanes, pack) = (8, MAX_PAIRS);
        let rows = (1..=MAX_HEADS_EACH).map(|heads_each| Plan::Rows { lanes, pack, heads_each });
        for plan in rows.chain([Plan::Packed { lanes, pack }]) {
            variants.extend([true, false].map(|has_norm| spec(dtypes, plan, has_norm, is_scaled)));
        }
    }
    variants
}

#[cfg(test)]
mod tests {
    use foveal_device::DType;

    use super::{MANY_ROWS, Operand, Plan, plan};

    #[test]
    fn whole_heads_are_packed() {
        let bf16 = [Operand::aligned(DType::BF16), Operand::aligned(DType::F32)];
        let few = |head_dim, operands| plan([1, 48], DType::BF16, head_dim, head_dim / 2, operands);
        assert_eq!(few(64, &bf16), Plan::Packed { lanes: 4, pack: 8 });
        assert_eq!(few(128, &bf16), Plan::Packed { lanes: 8, pack: 8 });
        assert_eq!(few(128, &bf16[1..]), Plan::Packed { lanes: 16, pack: 4 });
        assert_eq!(few(2, &bf16), Plan::Packed { lanes: 1, pack: 1 });
        // The published models' heads, sixteen at once.
        for (heads, heads_each) in [(16, 1), (32, 2), (36, 3), (48, 3), (64, 2), (72, 3), (80, 3), (6, 1)] {
            let many = plan([MANY_ROWS, heads], DType::BF16, 128, 64, &bf16);
            assert_eq!(many, Plan::Rows { lanes: 8, pack: 8, heads_each }, "{heads}");
        }
        let wide = plan([MANY_ROWS, 48], DType::F32, 128, 64, &[Operand::aligned(DType::F32), bf16[0]]);
        assert_eq!(wide, Plan::Packed { lanes: 8, pack: 8 }, "a pack takes two copies");
    }

    #[test]
    fn other_heads_take_the_kernel_for_any() {
        let bf16 = [Operand::aligned(DType::BF16)];
        // Partly turned (Qwen3.5), of no power of two of packs, nothing turned, too wide for a warp.
        for (head_dim, pairs) in [(256, 32), (96, 48), (11, 4), (6, 0), (1024, 512)] {
            assert_eq!(plan([1, 48], DType::BF16, head_dim, pairs, &bf16), Plan::Any, "{head_dim} {pairs}");
        }
    }
}
