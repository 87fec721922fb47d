//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::operands::{OP, Sizes};
use super::{QkNorm, QkNormRope};
use crate::OpError;
use crate::packs::{Operand, WARP, blocks, pack_len};
use crate::quantize::scale_params;

static SOURCE: KernelSource =
    KernelSource { name: "qk_norm_rope", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

/// `THREADS` of the kernels.
const THREADS: usize = 128;

/// The most pairs that a lane holds.
const MAX_PAIRS: usize = 8;

/// How a head is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// A power of two of lanes, each with a pack of pairs: `lanes * pack` pairs, which are the whole head.
    Packed { lanes: usize, pack: usize },
    /// A warp, element by element.
    Any,
}

/// `operands` are those whose heads are cut into packs.
fn plan(head_dim: usize, pairs: usize, operands: &[Operand]) -> Plan {
    if pairs == 0 || 2 * pairs != head_dim {
        return Plan::Any;
    }
    let pack = pack_len(pairs, operands).min(MAX_PAIRS);
    let lanes = pairs / pack;
    if lanes.is_power_of_two() && lanes <= WARP { Plan::Packed { lanes, pack } } else { Plan::Any }
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
        Plan::Any => with_types("qk_norm_rope_any"),
    }
}

pub(super) fn qk_norm_rope(stream: &CudaStream, args: &QkNormRope<'_>, sizes: Sizes) -> Result<(), OpError> {
    launch(stream, args, sizes).map_err(|source| OP.device(source))
}

fn launch(stream: &CudaStream, args: &QkNormRope<'_>, sizes: Sizes) -> Result<(), DeviceError> {
    let Sizes { n, num_heads, num_kv_heads, head_dim, pairs, max_positions, num_slots } = sizes;
    let plan = plan(head_dim, pairs, &packed_operands(args)?);
    let mut params = params(args)?;
    params.f32(args.norm.map_or(0.0, |norm| norm.eps)).usize_as_i32(n)?;
    params.usize_as_i32(num_heads)?.usize_as_i32(num_kv_heads)?;
    params.usize_as_i32(max_positions)?.usize_as_i32(args.layout.page)?.usize_as_i32(num_slots)?;
    let heads_per_block = match plan {
        Plan::Packed { lanes, .. } => THREADS / lanes,
        Plan::Any => {
            params.usize_as_i32(head_dim)?.usize_as_i32(pairs)?;
            THREADS / WARP
        }
    };
    let num_units = n * (num_heads + 2 * num_kv_heads);
    let launch = Launch::new([blocks(num_units, heads_per_block)?, 1, 1], [THREADS as u32, 1, 1]);
    let spec = spec(dtypes(args), plan, args.norm.is_some(), is_scaled(args));
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
        let plan = plan(128, 64, &[bf16, DType::F32, cache].map(Operand::aligned));
        variants.extend([true, false].map(|has_norm| spec(dtypes, plan, has_norm, is_scaled)));
    }
    variants
}

#[cfg(test)]
mod tests {
    use foveal_device::DType;

    use super::{Operand, Plan, plan};

    #[test]
    fn whole_heads_are_packed() {
        let bf16 = [Operand::aligned(DType::BF16), Operand::aligned(DType::F32)];
        assert_eq!(plan(64, 32, &bf16), Plan::Packed { lanes: 4, pack: 8 });
        assert_eq!(plan(128, 64, &bf16), Plan::Packed { lanes: 8, pack: 8 });
        assert_eq!(plan(128, 64, &bf16[1..]), Plan::Packed { lanes: 16, pack: 4 });
        assert_eq!(plan(2, 1, &bf16), Plan::Packed { lanes: 1, pack: 1 });
    }

    #[test]
    fn other_heads_take_the_kernel_for_any() {
        let bf16 = [Operand::aligned(DType::BF16)];
        // Partly turned (Qwen3.5), of no power of two of packs, nothing turned, too wide for a warp.
        for (head_dim, pairs) in [(256, 32), (96, 48), (11, 4), (6, 0), (1024, 512)] {
            assert_eq!(plan(head_dim, pairs, &bf16), Plan::Any, "{head_dim} {pairs}");
        }
    }
}
