// What the kernels of sampling share: how a row is cut into groups, what is kept of each group, and how float32 values
// become whole numbers whose sums and orders are exact, so that no result depends on the order in which threads add.
#pragma once

#include "prelude.cuh"

// A group is what one warp reads at once: 4 times 4 elements of each lane. `GROUP` and `MAX_GROUPS` of cuda.rs.
#define GROUP 512u
#define MAX_GROUPS 1024u
#define QUADS 4
#define QUAD_STEP 128u

#define FULL_WARP 0xffffffffu
#define NO_TOKEN 0xffffffffu

// `order_of` minus infinity and infinity; a NaN lies above both.
#define ORDER_LOWEST 0x007fffffu
#define ORDER_INFINITE 0xff800000u

// What `sample_scan` finds in one group of a row. Scores are the logits after penalties and bans.
struct alignas(16) Partial {
    double logit_sum;    // sum of exp(logit - largest logit of the group)
    double score_sum;    // sum of exp((score - largest score of the group) / temperature)
    u32_t logit_order;   // of the largest logit
    u32_t score_order;   // of the largest score
    u32_t score_id;      // the lowest id that has it
    u32_t unused;
};

// Flags of a row: which history its scores depend on.
#define READS_PROMPT 1u
#define READS_COUNTS 2u
#define HAS_SCORES 4u

// One row's settings, as the host packs them.
struct alignas(16) RowParams {
    float temperature, top_p, min_p, repetition_penalty;
    float presence_penalty, frequency_penalty;
    u32_t top_k, flags;
    u32_t seed_low, seed_high, draw_low, draw_high;
    u32_t first_banned, num_banned;
    u32_t unused[2];
};

// ---- values as whole numbers ----

// A number whose order is the value's; -0 and 0 are equal, every NaN is the largest.
__device__ __forceinline__ u32_t order_of(float x) {
    const u32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
    return x != x ? FULL_WARP : bits ^ ((u32_t)((i32_t)bits >> 31) | 0x80000000u);
}

__device__ __forceinline__ float value_of(u32_t order) {
    return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}

// Whether the largest value of a row has this order and the row has a distribution.
__device__ __forceinline__ bool is_finite(u32_t order) { return order > ORDER_LOWEST && order < ORDER_INFINITE; }

// The probability of a score relative to that of `largest`. A score of minus infinity has none, however hot the row is.
__device__ __forceinline__ float weight_of(float x, float largest, float temperature) {
    return x > -INFINITY_F ? expf(__fdiv_rn(x - largest, temperature)) : 0.0f;
}

// A weight of at most 1 as a multiple of 2^-44, cut off: 2^19 of them (MAX_GROUPS * GROUP) sum to less than 2^64
// without rounding, and what is cut off of a whole row is below 2^-25 of its best token.
#define FIXED_BITS 44
__device__ __forceinline__ u64_t fixed(float weight) {
    const u32_t bits = __float_as_uint(weight);
    const u64_t one = (u64_t)((bits & 0x7fffffu) | 0x800000u) << (FIXED_BITS - 23);
    return one >> min(127u - (bits >> 23), 63u);
}

// ---- a group's elements, 4 consecutive ones at `first + 128 i` of each lane ----

struct Group {
    Vec<float, 4> at[QUADS];
};

__device__ __forceinline__ u32_t first_of(u32_t group, u32_t lane) { return group * GROUP + 4 * lane; }

// Beyond the row's end there are values of minus infinity. With `vec` the row is aligned and its length a multiple of
// 4.
__device__ __forceinline__ Group load_group(const float* row, u32_t first, u32_t vocab, bool vec) {
    Group group;
#pragma unroll
    for (int i = 0; i < QUADS; ++i) {
        const u32_t at = first + i * QUAD_STEP;
        if (vec && at < vocab) {
            group.at[i] = load_vec<float, 4>(row + at);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) group.at[i].at[j] = at + j < vocab ? row[at + j] : -INFINITY_F;
        }
    }
    return group;
}

// ---- reductions whose result every lane has; the order of a sum's terms is fixed ----

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}
__device__ __forceinline__ u64_t warp_sum(u64_t x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

// A whole row: `log_sum` is the logarithm of the sum of exp(logit).
struct Whole {
    double log_sum;
    u32_t logit_order, score_order, score_id;
};

// All of a row's groups by one warp. The same sum in the same order whichever kernel asks.
__device__ __forceinline__ Whole merge(const Partial* partials, u32_t num_groups, u32_t lane) {
    u32_t logit_order = 0, score_order = 0, score_id = NO_TOKEN;
#pragma unroll 4
    for (u32_t g = lane; g < num_groups; g += 32) {
        const Partial partial = partials[g];
        logit_order = max(logit_order, partial.logit_order);
        // Ids grow with the groups, so the first of equals is the lowest.
        if (partial.score_order > score_order) {
            score_order = partial.score_order;
            score_id = partial.score_id;
        }
    }
    Whole whole;
    whole.logit_order = __reduce_max_sync(FULL_WARP, logit_order);
    whole.score_order = __reduce_max_sync(FULL_WARP, score_order);
    whole.score_id = __reduce_min_sync(FULL_WARP, score_order == whole.score_order ? score_id : NO_TOKEN);
    const float largest = value_of(whole.logit_order);
    double sum = 0.0;
#pragma unroll 4
    for (u32_t g = lane; g < num_groups; g += 32) {
        const float scale = weight_of(value_of(partials[g].logit_order), largest, 1.0f);
        sum = fma(partials[g].logit_sum, (double)scale, sum);
    }
    whole.log_sum = (double)largest + log(warp_sum(sum));
    return whole;
}
