// out[i] = image[image_index[i]] where that index is one of a row of `image`, else table[id]; zeros where neither exists. id is
// input_ids[i] or, below 0, sampled[-1 - input_ids[i]].
//
// A block takes a row, its threads packs of VEC elements.
// Grid: [n], blocks of 32 to 256. No shared memory.
// Bound: bytes, n * d read and written: 21 MB for n 2048, d 2560, bf16, 4.4 us at 4.8 TB/s. At a few rows it is the
// latency of two dependent loads, the id and the row.
#include "prelude.cuh"

#define MAX_THREADS 256

template <typename T> __device__ __forceinline__ void copy_row(const T* from, OUT_T* to, int d) {
#pragma unroll 4
    for (int at = threadIdx.x * VEC; at < d; at += blockDim.x * VEC) {
        const Pack<T, VEC> x = load_pack<VEC>(from + at);
        Pack<OUT_T, VEC> y;
#pragma unroll
        for (int e = 0; e < VEC; ++e) y.set(e, x[e]);
        store_pack(to + at, y);
    }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    embed(const TABLE_T* __restrict__ table, const i32_t* __restrict__ input_ids, const i32_t* __restrict__ sampled,
          const IMAGE_T* __restrict__ image, const i32_t* __restrict__ image_index, OUT_T* __restrict__ out, int d,
          int vocab_size, int num_sampled, int num_image_rows) {
    const u32_t i = blockIdx.x;
    OUT_T* to = out + (u64_t)i * d;
    // Both at once: a token's id is only not looked at where a picture's row replaces it.
    int id = input_ids[i];
    const int row = image_index == nullptr ? -1 : image_index[i];
    if (id < 0 && ~id < num_sampled) id = sampled[~id];
    if (row >= 0 && row < num_image_rows) {
        copy_row(image + (u64_t)row * d, to, d);
    } else if (id >= 0 && id < vocab_size) {
        copy_row(table + (u64_t)id * d, to, d);
    } else {
        for (int at = threadIdx.x; at < d; at += blockDim.x) to[at] = from_f32<OUT_T>(0.0f);
    }
}
