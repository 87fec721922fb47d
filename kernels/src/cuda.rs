//! What the operators' CUDA sides share: the headers that kernels include, and the list of all kernels.

use foveal_device::{CudaStream, Header, KernelSpec, Launch};

/// Elements, packs of 16 bytes and warp sums: what every kernel includes.
pub(crate) const PRELUDE: Header = Header { name: "prelude.cuh", text: include_str!("../include/prelude.cuh") };
/// Fragments and the online softmax of both attentions.
pub(crate) const ATTENTION: Header = Header { name: "attention.cuh", text: include_str!("../include/attention.cuh") };
/// Rounding to FP8, and scales of FP8 products.
pub(crate) const QUANTIZE: Header = Header { name: "quantize.cuh", text: include_str!("../include/quantize.cuh") };
/// Weights in up to three parts.
pub(crate) const WEIGHT_PARTS: Header =
    Header { name: "weight_parts.cuh", text: include_str!("../include/weight_parts.cuh") };
/// Barriers in shared memory.
pub(crate) const MBARRIER: Header = Header { name: "mbarrier.cuh", text: include_str!("../include/mbarrier.cuh") };
/// Clusters of blocks.
pub(crate) const CLUSTER: Header = Header { name: "cluster.cuh", text: include_str!("../include/cluster.cuh") };

/// Hopper's own instructions.
pub(crate) const HOPPER: Header = Header { name: "hopper.cuh", text: include_str!("../include/hopper.cuh") };

/// The cards that have them; later ones have other instructions.
pub(crate) const HOPPER_CAPABILITY: (u32, u32) = (9, 0);
/// The first cards that have clusters.
pub(crate) const CLUSTER_CAPABILITY: (u32, u32) = (9, 0);

/// The first cards whose kernels may begin before the one ahead has ended.
const FOLLOW_CAPABILITY: (u32, u32) = (9, 0);

/// A launch that may begin while the kernel ahead of it in the stream ends. Its kernel waits for that one in every thread, before any
/// returns and before it reads or writes what another kernel may hold (`follow_the_kernel_before` in prelude.cuh): anything but weights
/// and their scales. Attention's kernel for single rows beside chunks waits last: the one ahead of it has waited, and holds nothing of
/// its.
pub(crate) fn following(stream: &CudaStream, launch: Launch) -> Launch {
    if stream.compute_capability() >= FOLLOW_CAPABILITY { launch.dependent() } else { launch }
}

/// What a kernel without headers of its own may include.
pub(crate) const HEADERS: &[Header] = &[PRELUDE, ATTENTION, QUANTIZE];

/// Each once: sizes that are cut alike share a kernel.
pub(crate) fn distinct(specs: impl IntoIterator<Item = KernelSpec>) -> Vec<KernelSpec> {
    let mut variants = Vec::new();
    for spec in specs {
        if !variants.contains(&spec) {
            variants.push(spec);
        }
    }
    variants
}

/// Every kernel variant that the published models use: what is compiled ahead for a host without a compiler, and what is
/// checked for spills.
#[must_use]
pub fn kernel_variants() -> Vec<KernelSpec> {
    let operators: &[fn() -> Vec<KernelSpec>] = &[
        crate::activation::variants,
        crate::embedding::variants,
        foveal_device::fill_variants,
        crate::linear::variants,
        crate::norm::variants,
        crate::paged_attention::variants,
        crate::patch::variants,
        crate::position_embed::variants,
        crate::qk_norm_rope::variants,
        crate::quantize::variants,
        crate::rows::variants,
        crate::sampling::variants,
        crate::varlen_attention::variants,
        crate::vision_rope::variants,
    ];
    operators.iter().flat_map(|variants| variants()).collect()
}
