// What the attention kernels share: the online softmax and the fragments of a warp's 16 query rows. A lane (its group
// g = lane / 4, its place t = lane % 4) holds of each 16 x 8 tile the columns 2t and 2t + 1 of rows g (elements 0, 1) and
// g + 8 (elements 2, 3), as `mma` leaves its sums.
#pragma once
#include "prelude.cuh"

// Over the four lanes that hold a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The state of a lane's two rows, base 2: the largest scaled score so far, and this lane's part of the sum of
// 2^(scaled score - max).
struct SoftmaxRows {
    float max[2] = {-INFINITY_F, -INFINITY_F};
    float sum[2] = {0.0f, 0.0f};
};

// Takes a block of scores in: `scores` become 2^(scale * score - max), and `decay` is what earlier sums of values are to
// be multiplied by. `scale` is positive; a hidden key's score is -infinity. The maximum is the *rounded* scaled score, the
// same in weights, sums and decay, so its rounding cancels.
template <int TILES>
__device__ __forceinline__ void online_softmax(SoftmaxRows& rows, float (&scores)[TILES][4], float scale,
                                               float (&decay)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float block_max = fmaxf(scores[0][2 * r], scores[0][2 * r + 1]);
#pragma unroll
        for (int i = 1; i < TILES; i++) block_max = fmaxf(block_max, fmaxf(scores[i][2 * r], scores[i][2 * r + 1]));
        const float max = fmaxf(rows.max[r], quad_max(block_max) * scale);
        // A row that has seen no key yet would subtract infinities.
        const float shift = max == -INFINITY_F ? 0.0f : max;
        decay[r] = ex2(rows.max[r] - shift);
        rows.max[r] = max;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            scores[i][2 * r] = ex2(fmaf(scores[i][2 * r], scale, -shift));
            scores[i][2 * r + 1] = ex2(fmaf(scores[i][2 * r + 1], scale, -shift));
            sum += scores[i][2 * r] + scores[i][2 * r + 1];
        }
        rows.sum[r] = fmaf(rows.sum[r], decay[r], sum);
    }
}

// Two neighbouring tiles of weights as the left operand of a product with 16 values.
__device__ __forceinline__ void weights_bf16(u32_t (&a)[4], const float (&low)[4], const float (&high)[4]) {
    a[0] = pack_bf16x2(low[0], low[1]);
    a[1] = pack_bf16x2(low[2], low[3]);
    a[2] = pack_bf16x2(high[0], high[1]);
    a[3] = pack_bf16x2(high[2], high[3]);
}
