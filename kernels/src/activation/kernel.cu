// activate: out = act(x). gated, gated_row: out[r, j] = act(gate_up[r, j]) * gate_up[r, per_row + j].
//
//   KIND 0: x sigmoid(x)   1: x Phi(x)   2: x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)   3: x sigmoid(1.702 x)
//
// A thread computes packs of VEC elements: two of `activate`, THREADS packs apart, so that two loads are in flight; one
// of `gated`, which has two loads anyway. Counts are in packs, under 2^31. SCALED: gate_up is an unscaled FP8 product.
// `gated` also rounds to FP8 by groups where rows are whole groups. `gated_row` is for FP8 outputs whose scales depend on
// a row (QUANTIZE, see quantize.cuh): its THREADS threads hold ITEMS packs each.
//
// Grid: [ceil(packs / packs per block)], blocks of 256; of `gated_row` [n], 128 bytes of shared memory.
// Bound: bytes, the input once and the output once; 16 element operations and two special functions per element keep
// under half of the issue slots busy. gated with n 2048, i 9728, bf16: 120 MB, 25 us at 4.8 TB/s.
#include "quantize.cuh"

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

// VEC gates and factors of a row.
struct Pair {
    Pack<X_T, VEC> gate, up;
    __device__ __forceinline__ void load(const X_T* from, int width) {
        gate = load_pack<VEC>(from);
        up = load_pack<VEC>(from + width);
    }
    __device__ __forceinline__ void multiply(const ScaledBy& by, float row, int column, int width, float (&y)[VEC]) {
#if SCALED
        const Pack<f32_t, VEC> g = factors_of<VEC>(by, column), u = factors_of<VEC>(by, column + width);
#pragma unroll
        for (int e = 0; e < VEC; ++e) y[e] = act(gate[e] * row * g[e]) * (up[e] * row * u[e]);
#else
#pragma unroll
        for (int e = 0; e < VEC; ++e) y[e] = act(gate[e]) * up[e];
#endif
    }
};

#ifndef ITEMS

extern "C" __global__ void __launch_bounds__(THREADS)
    gated(const X_T* __restrict__ gate_up, const f32_t* __restrict__ rows, const f32_t* __restrict__ columns,
          OUT_T* __restrict__ out, f32_t* __restrict__ out_scales, float out_factor, int out_stride, int num_packs,
          int packs_per_row) {
    const u32_t pack = blockIdx.x * THREADS + threadIdx.x;
    const bool exists = pack < (u32_t)num_packs;  // every lane stays for the shuffles
    const u32_t row = pack / (u32_t)packs_per_row, column = (pack - row * packs_per_row) * VEC;
    const int width = packs_per_row * VEC;
    const ScaledBy by = {rows, columns};
    float y[VEC] = {};
    if (exists) {
        Pair pair;
        pair.load(gate_up + ((u64_t)pack + (u64_t)row * packs_per_row) * VEC, width);
        pair.multiply(by, SCALED ? row_factor(by, row) : 1.0f, column, width, y);
    }
    float factor = QUANTIZE == TO_FLOAT ? 1.0f : out_factor;
#if QUANTIZE == TO_F8_GROUP
    static_assert(VEC * 16 == F8_GROUP, "16 lanes hold a group, as rows are whole groups");
    const float top = group_max(magnitude_of(y));
    if (exists && column % F8_GROUP == 0) out_scales[(u64_t)(column / F8_GROUP) * out_stride + row] = top / F8_MAX;
    factor = f8_factor(top);
#endif
    if (exists) store_scaled(out + (u64_t)pack * VEC, y, factor);
}

#else

struct HeldPairs {
    Pair pairs[ITEMS];
    ScaledBy by;
    float factor;
    int width;
    __device__ __forceinline__ void values(int i, int at, float (&y)[VEC]) {
        pairs[i].multiply(by, factor, at, width, y);
    }
    __device__ __forceinline__ void forget() {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            ::forget(pairs[i].gate);
            ::forget(pairs[i].up);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    gated_row(const X_T* __restrict__ gate_up, const f32_t* __restrict__ rows, const f32_t* __restrict__ columns,
              OUT_T* __restrict__ out, f32_t* __restrict__ out_scales, float out_factor, int out_stride, int width) {
    const int row = blockIdx.x, thread = threadIdx.x;
    const X_T* from = gate_up + (u64_t)row * 2 * width;
    const ScaledBy by = {rows, columns};
    const float factor = SCALED ? row_factor(by, row) : 1.0f;
    // All loads first, so that they are in flight together.
    HeldPairs held = {{}, by, factor, width};
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int at = (i * THREADS + thread) * VEC;
        if (at < width) held.pairs[i].load(from + at, width);
    }
    store_row<QUANTIZE, THREADS, ITEMS, VEC>(held, thread, row, width, out + (u64_t)row * width,
                                             QuantizeTo{out_scales, out_factor, out_stride});
}

#endif
