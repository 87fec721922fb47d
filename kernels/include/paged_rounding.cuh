// Rows of paged_attention's output rounded to FP8 by whoever brings a row's last head, so that no other launch reads
// them again: what is needed of the other heads' blocks is in the L2 by then.
#pragma once
#include "paged_attention.cuh"

// A row of `out`, by a warp or by `num_parts` of them: all find the row's maximum, each stores its part.
__device__ __forceinline__ void round_row(const Operands& o, int row, int part, int num_parts) {
    constexpr int PACK = 8;
    const Rounding& r = o.rounding;
    const int lane = threadIdx.x & 31, d = o.num_kv_heads * o.group * HEAD_DIM;
    const bf16_t* from = o.out + (i64_t)row * d;
    f8_e4m3_t* to = r.out + (i64_t)row * d;
    // Past the L1, which knows nothing of what other blocks have written.
    const auto load = [&](int at, float (&y)[PACK]) {
        const int4 x = at < d ? __ldcg(reinterpret_cast<const int4*>(from + at)) : int4{0, 0, 0, 0};
        const Pack<bf16_t, PACK>& pack = reinterpret_cast<const Pack<bf16_t, PACK>&>(x);
#pragma unroll
        for (int e = 0; e < PACK; ++e) y[e] = pack[e];
    };
    float factor = r.to.factor;
    if (r.form == TO_F8_ROW) {
        float top = 0.0f;
#pragma unroll 4
        for (int at = lane * PACK; at < d; at += 32 * PACK) {
            float y[PACK];
            load(at, y);
            top = fmaxf(top, magnitude_of(y));
        }
        top = warp_max(top);
        if (part == 0 && lane == 0) r.to.scales[row] = top / F8_MAX;
        factor = f8_factor(top);
    }
#pragma unroll 2
    for (int first = part * 32 * PACK; first < d; first += num_parts * 32 * PACK) {
        const int at = first + lane * PACK;
        float y[PACK];
        load(at, y);
        if (r.form == TO_F8_GROUP) {
            static_assert(PACK * 16 == F8_GROUP, "16 lanes hold a group");
            const float top = group_max(magnitude_of(y));
            if (at < d && lane % 16 == 0) r.to.scales[(i64_t)(at / F8_GROUP) * r.to.stride + row] = top / F8_MAX;
            factor = f8_factor(top);
        }
        if (at < d) store_scaled(to + at, y, factor);
    }
}

// After a tile's heads are in `out`: counts them in, and rounds the rows that lack none any more. By all warps.
__device__ __forceinline__ void round_finished_rows(const Operands& o, const Item& item) {
    __shared__ bool is_finished[TILE_ROWS];
    if (o.rounding.out == nullptr || item.count == 0) return;
    const int first = item.first / o.group, num = (item.first + item.count - 1) / o.group - first + 1;
    __threadfence();
    SYNC_WARPS();
    for (int i = threadIdx.x; i < num; i += NUM_THREADS) {
        const int begin = (first + i) * o.group, end = begin + o.group;
        const int heads = min(item.first + item.count, end) - max(item.first, begin);
        const i64_t row = (i64_t)item.q_row + first + i;
        is_finished[i] = false;
        if (row >= o.num_rows) continue;
        // Only this launch's blocks and those before it count, so the last also makes ready for the next layer.
        is_finished[i] = atomicAdd(o.rounding.arrivals + row, heads) + heads == o.num_kv_heads * o.group;
        if (is_finished[i]) o.rounding.arrivals[row] = 0;
    }
    __threadfence();
    SYNC_WARPS();
    // Few rows are shared by the warps.
    const int warp = threadIdx.x >> 5, num_parts = max(NUM_WARPS / num, 1);
    for (int i = warp / num_parts; i < num; i += NUM_WARPS / num_parts) {
        if (is_finished[i]) round_row(o, item.q_row + first + i, warp % num_parts, num_parts);
    }
    SYNC_WARPS();
}
