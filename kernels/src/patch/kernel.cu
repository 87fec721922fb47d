// out[i, j] = (pixels[i, j] - mean[c]) / std[c], c the third of the row that j lies in; mean and std are of pixels from 0
// to 255 already.
//
// A thread takes a pack of VEC elements, all of one channel. Difference and quotient round one after the other, as on the
// CPU. Counts are in packs, under 2^31.
//
// Grid: [ceil(packs / 256)], blocks of 256. No shared memory.
// Bound: bytes, one read and two (bf16) written for each sample: 4096 patches of 768 are 9.4 MB, 2 us at 4.8 TB/s; about
// 15 instructions per element for the exact quotient come close to it.
#include "prelude.cuh"

#define THREADS 256
#define CHANNELS 3

extern "C" __global__ void __launch_bounds__(THREADS)
    normalise(const u8_t* __restrict__ pixels, OUT_T* __restrict__ out, int num_packs, int packs_per_channel,
              float mean_r, float mean_g, float mean_b, float std_r, float std_g, float std_b) {
    const u32_t pack = blockIdx.x * THREADS + threadIdx.x;
    if (pack >= (u32_t)num_packs) return;
    const u32_t channel = pack / (u32_t)packs_per_channel % CHANNELS;
    const float mean = channel == 0 ? mean_r : channel == 1 ? mean_g : mean_b;
    const float std = channel == 0 ? std_r : channel == 1 ? std_g : std_b;
    const Vec<u8_t, VEC> samples = load_vec<u8_t, VEC>(pixels + (u64_t)pack * VEC);
    Pack<OUT_T, VEC> y;
#pragma unroll
    for (int e = 0; e < VEC; ++e) y.set(e, __fdiv_rn(__fsub_rn((float)samples.at[e], mean), std));
    store_pack(out + (u64_t)pack * VEC, y);
}
