// quantize: rows of x rounded to FP8 (e4m3), with the scales that QUANTIZE says (quantize.cuh).
//
// THREADS threads take a row of d elements, ITEMS packs of VEC elements each, in registers.
//
// Grid: [m]. Shared memory: 128 bytes.
// Bound: bytes, x once and a byte for each of its elements.
#include "quantize.cuh"

struct Held {
    Pack<X_T, VEC> packs[ITEMS];
    __device__ __forceinline__ void values(int i, int, float (&y)[VEC]) const {
#pragma unroll
        for (int e = 0; e < VEC; ++e) y[e] = packs[i][e];
    }
    __device__ __forceinline__ void forget() {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) ::forget(packs[i]);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    quantize(const X_T* x, f8_e4m3_t* out, f32_t* scales, float factor, int stride, int d) {
    follow_the_kernel_before();
    const int row = blockIdx.x, thread = threadIdx.x;
    const u64_t start = (u64_t)row * d;
    Held held;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int at = (i * THREADS + thread) * VEC;
        if (at < d) held.packs[i] = load_pack<VEC>(x + start + at);
    }
    store_row<QUANTIZE, THREADS, ITEMS, VEC>(held, thread, row, d, out + start, QuantizeTo{scales, factor, stride});
}
