// activate: out = act(x). gated: out[r, j] = act(gate_up[r, j]) * gate_up[r, per_row + j].
//
//   KIND 0: x sigmoid(x)   1: x Phi(x)   2: x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)   3: x sigmoid(1.702 x)
//
// A thread computes packs of VEC elements: two of `activate`, THREADS packs apart, so that two loads are in flight; one
// of `gated`, which has two loads anyway. Counts are in packs, under 2^31.
//
// Grid: [ceil(packs / packs per block)], blocks of 256. No shared memory.
// Bound: bytes, the input once and the output once; 16 element operations and two special functions per element keep
// under half of the issue slots busy. gated with n 2048, i 9728, bf16: 120 MB, 25 us at 4.8 TB/s.
#include "prelude.cuh"

#define THREADS 256
#define PACKS 2

// x sigmoid(y). The quotient is within 2 ulp; the divisor is 1 at least, and where it is too large for the quick
// division (above 2^126) the result is 0 as its limit is.
__device__ __forceinline__ float times_sigmoid(float x, float y) { return __fdividef(x, 1.0f + ex2(-y * LOG2_E)); }

__device__ __forceinline__ float act(float x) {
#if KIND == 0
    return times_sigmoid(x, x);
#elif KIND == 1
    // By erfc, which keeps its precision in the negative tail.
    return 0.5f * x * erfcf(x * -0.70710678118654752f);
#elif KIND == 2
    return times_sigmoid(x, 2.0f * 0.7978845608028654f * (x + 0.044715f * x * x * x));
#else
    return times_sigmoid(x, 1.702f * x);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
    activate(const X_T* __restrict__ x, OUT_T* __restrict__ out, int num_packs) {
    // Unsigned: the last block of an input near 2^31 packs ends above it.
    const u32_t first = blockIdx.x * (THREADS * PACKS) + threadIdx.x;
    Pack<X_T, VEC> in[PACKS];
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const u32_t pack = first + i * THREADS;
        if (pack < (u32_t)num_packs) in[i] = load_pack<VEC>(x + (u64_t)pack * VEC);
    }
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const u32_t pack = first + i * THREADS;
        Pack<OUT_T, VEC> y;
#pragma unroll
        for (int e = 0; e < VEC; ++e) y.set(e, act(in[i][e]));
        if (pack < (u32_t)num_packs) store_pack(out + (u64_t)pack * VEC, y);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gated(const X_T* __restrict__ gate_up, OUT_T* __restrict__ out, int num_packs, int packs_per_row) {
    const u32_t pack = blockIdx.x * THREADS + threadIdx.x;
    if (pack >= (u32_t)num_packs) return;
    const u32_t row = pack / (u32_t)packs_per_row;
    const X_T* gate = gate_up + ((u64_t)pack + (u64_t)row * packs_per_row) * VEC;
    const Pack<X_T, VEC> g = load_pack<VEC>(gate);
    const Pack<X_T, VEC> up = load_pack<VEC>(gate + (u64_t)packs_per_row * VEC);
    Pack<OUT_T, VEC> y;
#pragma unroll
    for (int e = 0; e < VEC; ++e) y.set(e, act(g[e]) * up[e]);
    store_pack(out + (u64_t)pack * VEC, y);
}
