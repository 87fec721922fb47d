// One row of logits and the block that chooses from it: shared memory, the block's reductions, weights, and the place
// in the order of the row's values where a number or a mass of them is reached.
#pragma once

#include "sampling.cuh"

#define THREADS 1024
#define WARPS 32
#define CANDIDATES 512u
#define BUCKETS 2048u
#define BUCKET_BITS 11
// Quarter octaves of weight that are told apart; everything lighter than 2^-16 is one more, `DEEP`.
#define DEEP 64u
#define LANE (threadIdx.x & 31u)
#define WARP (threadIdx.x >> 5)
#define NAN_F __int_as_float(0x7fc00000)

struct Buckets {
    u32_t count[BUCKETS], low[BUCKETS], high[BUCKETS];
};

struct Candidates {
    u32_t order[CANDIDATES], id[CANDIDATES];
    u64_t mass[CANDIDATES];
};

// What one thread has found for all.
struct Found {
    u64_t above, mass_above, mass;
    u32_t place;
};

// One kind of memory serves the candidates or the buckets, never both at once.
union Work {
    Buckets buckets;
    Candidates candidates;
};

__shared__ Work work;
__shared__ u32_t group_order[MAX_GROUPS];
__shared__ u64_t group_mass[MAX_GROUPS];
__shared__ u32_t group_ties[MAX_GROUPS];
__shared__ u64_t octave_mass[DEEP + 1];
__shared__ u32_t octave_count[DEEP + 1];
__shared__ u64_t warp_results[WARPS];
__shared__ u32_t warp_words[WARPS];
__shared__ u32_t num_candidates;
__shared__ u32_t chosen;
__shared__ Found found;
__shared__ Whole whole;
// The row's settings: read where they are used, so that they take no registers elsewhere.
__shared__ RowParams params;

// ---- the block's reductions: every thread calls and gets the result, and what they use can be used again ----

// Sum of this and all lower threads' values; `total` is that of all.
__device__ u64_t block_scan(u64_t x, u64_t& total) {
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        const u64_t lower = __shfl_up_sync(FULL_WARP, x, offset);
        if (LANE >= offset) x += lower;
    }
    if (LANE == 31) warp_results[WARP] = x;
    __syncthreads();
    u64_t before = 0, all = 0;
#pragma unroll 8
    for (u32_t warp = 0; warp < WARPS; ++warp) {
        if (warp == WARP) before = all;
        all += warp_results[warp];
    }
    __syncthreads();
    total = all;
    return x + before;
}

__device__ u64_t block_sum(u64_t x) {
    x = warp_sum(x);
    if (LANE == 0) warp_results[WARP] = x;
    __syncthreads();
    x = warp_sum(warp_results[LANE]);
    __syncthreads();
    return x;
}

__device__ u32_t block_max(u32_t x) {
    x = __reduce_max_sync(FULL_WARP, x);
    if (LANE == 0) warp_words[WARP] = x;
    __syncthreads();
    x = __reduce_max_sync(FULL_WARP, warp_words[LANE]);
    __syncthreads();
    return x;
}

__device__ __forceinline__ u32_t block_min(u32_t x) { return ~block_max(~x); }

// ---- a row and its weights ----

struct Row {
    const float* values;
    u32_t vocab, num_groups;
    bool vec;

    // `visit(id, value)` for a group's elements, by one warp. All are loaded at once, but the code of four serves all.
    template <typename Visit> __device__ __forceinline__ void visit_group(u32_t group, Visit visit) const {
        const u32_t first = first_of(group, LANE);
        Group x = load_group(values, first, vocab, vec);
#pragma unroll 1
        for (u32_t at = first; at < first + QUADS * QUAD_STEP; at += QUAD_STEP) {
#pragma unroll
            for (u32_t j = 0; j < 4; ++j) {
                if (at + j < vocab) visit(at + j, x.at[0].at[j]);
            }
#pragma unroll
            for (int i = 1; i < QUADS; ++i) x.at[i - 1] = x.at[i];
        }
    }

    // `visit` for all elements, by the block.
    template <typename Visit> __device__ __forceinline__ void visit_all(Visit visit) const {
        for (u32_t group = WARP; group < num_groups; group += WARPS) visit_group(group, visit);
    }
};

struct Weights {
    float largest, temperature, quarter_octaves;

    __device__ __forceinline__ Weights(float largest, float temperature)
        : largest(largest), temperature(temperature),
          // Finite, so that the largest value itself is at 0.
          quarter_octaves(fminf(__fdiv_rn(4.0f * LOG2_E, temperature), 3.0e38f)) {}

    __device__ __forceinline__ float weight(float x) const { return weight_of(x, largest, temperature); }
    __device__ __forceinline__ u64_t mass(float x) const { return fixed(weight(x)); }
    // Quarter octaves below the largest; never fewer for a smaller value.
    __device__ __forceinline__ u32_t octave(float x) const {
        return (u32_t)fminf((largest - x) * quarter_octaves, (float)DEEP);
    }
};

// ---- cuts by reading the whole row ----

__device__ void clear_buckets() {
    for (u32_t i = threadIdx.x; i < BUCKETS; i += THREADS) {
        work.buckets.count[i] = 0;
        work.buckets.low[i] = 0;
        work.buckets.high[i] = 0;
    }
    __syncthreads();
}

// One element more: a sum of 64 bits by additions of 32, which shared memory does without a loop. Each addition knows
// whether it was the one that overflowed.
__device__ __forceinline__ void add_to_bucket(u32_t bucket, u64_t mass) {
    atomicAdd(&work.buckets.count[bucket], 1u);
    const u32_t low = (u32_t)mass;
    if (mass == 0) return;
    const u32_t carry = atomicAdd(&work.buckets.low[bucket], low) + low < low;
    const u32_t high = (u32_t)(mass >> 32) + carry;
    if (high != 0) atomicAdd(&work.buckets.high[bucket], high);
}

__device__ __forceinline__ u64_t bucket_mass(u32_t bucket) {
    return (u64_t)work.buckets.high[bucket] << 32 | work.buckets.low[bucket];
}

// Number and mass of the elements in each quarter octave. Lanes have buckets of their own: the elements of a flat row
// are all in the same few.
__device__ void count_octaves(const Row& row, const Weights& weights) {
    clear_buckets();
    u64_t deep_mass = 0;
    u32_t num_deep = 0;
    row.visit_all([&](u32_t, float x) {
        const u32_t octave = weights.octave(x);
        const u64_t mass = weights.mass(x);
        if (octave < DEEP) {
            add_to_bucket(octave * 32 + LANE, mass);
        } else {
            deep_mass += mass;
            ++num_deep;
        }
    });
    deep_mass = block_sum(deep_mass);
    const u64_t all_deep = block_sum(num_deep);
    for (u32_t octave = WARP; octave < DEEP; octave += WARPS) {
        const u64_t mass = warp_sum(bucket_mass(octave * 32 + LANE));
        const u32_t count = __reduce_add_sync(FULL_WARP, work.buckets.count[octave * 32 + LANE]);
        if (LANE == 0) {
            octave_mass[octave] = mass;
            octave_count[octave] = count;
        }
    }
    if (threadIdx.x == 0) {
        octave_mass[DEEP] = deep_mass;
        octave_count[DEEP] = (u32_t)all_deep;
    }
    __syncthreads();
}

// Where a row's elements, from the best down, reach a number or a mass.
struct Cut {
    u32_t order;
    u64_t mass_above;    // of all better elements
    u64_t mass;          // of the elements at the cut
};

// The bucket, from the highest down, in which `target` is reached; `above` is what lies above all buckets, in the
// target's unit.
__device__ Found reach(u64_t target, bool by_count, u64_t above, u64_t mass_above) {
    const u32_t upper = BUCKETS - 1 - 2 * threadIdx.x, lower = upper - 1;
    const u64_t upper_mass = bucket_mass(upper), lower_mass = bucket_mass(lower);
    const u64_t upper_part = by_count ? work.buckets.count[upper] : upper_mass;
    const u64_t part = upper_part + (by_count ? work.buckets.count[lower] : lower_mass);
    u64_t total;
    const u64_t start = above + block_scan(part, total) - part;
    const u64_t mass_start = mass_above + block_scan(upper_mass + lower_mass, total) - upper_mass - lower_mass;
    if (start < target && start + part >= target) {
        const bool is_upper = start + upper_part >= target;
        found.place = is_upper ? upper : lower;
        found.above = is_upper ? start : start + upper_part;
        found.mass_above = is_upper ? mass_start : mass_start + upper_mass;
        found.mass = is_upper ? upper_mass : lower_mass;
    }
    __syncthreads();
    const Found reached = found;
    __syncthreads();
    return reached;
}

// The cut at a number or a mass, which is from 1 to that of the whole row.
__device__ Cut find_cut(const Row& row, const Weights& weights, u64_t target, bool by_count) {
    u64_t above = 0, mass_above = 0;
    u32_t octave = 0;
#pragma unroll 1
    for (; octave < DEEP; ++octave) {
        const u64_t part = by_count ? octave_count[octave] : octave_mass[octave];
        if (above + part >= target) break;
        above += part;
        mass_above += octave_mass[octave];
    }
    u32_t low = FULL_WARP, high = 0;
    row.visit_all([&](u32_t, float x) {
        if (weights.octave(x) == octave) {
            low = min(low, order_of(x));
            high = max(high, order_of(x));
        }
    });
    low = block_min(low);
    high = block_max(high);
    while (true) {
        const int bits = 32 - __clz(high - low), shift = max(bits - BUCKET_BITS, 0);
        clear_buckets();
        row.visit_all([&](u32_t, float x) {
            const u32_t place = order_of(x) - low;
            if (place <= high - low) add_to_bucket(place >> shift, weights.mass(x));
        });
        __syncthreads();
        const Found reached = reach(target, by_count, above, mass_above);
        above = reached.above;
        mass_above = reached.mass_above;
        low += reached.place << shift;
        high = min(high, low + (1u << shift) - 1);
        if (shift == 0) return {low, mass_above, reached.mass};
    }
}
