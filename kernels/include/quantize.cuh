// Rows rounded to FP8 where they are computed, and FP8 products scaled where they are read: what the operators around
// the matrix products share.
#pragma once
#include "prelude.cuh"

// QUANTIZE: how a kernel's output is rounded, by a define of this number.
#define TO_FLOAT 0     // it isn't: OUT_T is a float type
#define TO_F8_ROW 1    // a scale for each row
#define TO_F8_GROUP 2  // a scale for each 128 neighbours
#define TO_F8_FIXED 3  // all elements times a factor

#define F8_MAX 448.0f
#define F8_LEAST 0x1p-119f  // little below, F8_MAX divided by it would be infinite
#define F8_GROUP 128

// Where scales go.
struct QuantizeTo {
    f32_t* scales;  // [m] or [groups, stride]
    float factor;   // of TO_F8_FIXED
    int stride;
};

// The largest of the 16 lanes that hold a group.
__device__ __forceinline__ float group_max(float x) {
#pragma unroll
    for (int offset = 8; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// The largest of a warp, of numbers that are 0 or above and hence are ordered as their bits are (sm_80).
__device__ __forceinline__ float warp_max_magnitude(float x) {
    u32_t top;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(top) : "r"(__float_as_uint(x)));
    return __uint_as_float(top);
}

// The scale of numbers of which this is the largest magnitude, within a unit in the last place; and the factor that takes it to
// F8_MAX, to the nearest, since FP8 numbers that are rounded anew are often halfway between two others. Of numbers below F8_LEAST it
// makes zeros.
__device__ __forceinline__ float f8_scale(float top) { return top * (1.0f / F8_MAX); }
__device__ __forceinline__ float f8_factor(float top) { return top >= F8_LEAST ? F8_MAX / top : 0.0f; }

// The largest magnitude over the threads of a row: a warp, or a whole block.
template <int ROW_THREADS> __device__ __forceinline__ float row_max(float x) {
    x = warp_max_magnitude(x);
    if constexpr (ROW_THREADS > 32) {
        __shared__ float partial[32];
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        if (lane == 0) partial[warp] = x;
        __syncthreads();
        x = warp_max_magnitude(lane < ROW_THREADS / 32 ? partial[lane] : 0.0f);
    }
    return x;
}

template <int PACK> __device__ __forceinline__ float magnitude_of(const float (&y)[PACK]) {
    float top = 0.0f;
#pragma unroll
    for (int e = 0; e < PACK; ++e) top = fmaxf(top, fabsf(y[e]));
    return top;
}

template <typename T, int PACK>
__device__ __forceinline__ void store_scaled(T* to, const float (&y)[PACK], float factor) {
    if constexpr (sizeof(T) == 1 && PACK % 4 == 0) {
        // By pairs, as the cards convert them.
        Pack<u32_t, PACK / 4> words;
#pragma unroll
        for (int e = 0; e < PACK; e += 4) {
            words.pieces[0].at[e / 4] =
                pack_f8x4(y[e] * factor, y[e + 1] * factor, y[e + 2] * factor, y[e + 3] * factor);
        }
        store_pack(reinterpret_cast<u32_t*>(to), words);
    } else {
        Pack<T, PACK> pack;
#pragma unroll
        for (int e = 0; e < PACK; ++e) pack.set(e, y[e] * factor);
        store_pack(to, pack);
    }
}

// Makes the compiler compute anew what follows from a pack: registers that would hold it over a barrier are scarcer than
// instructions where memory is the bound.
template <typename T, int N> __device__ __forceinline__ void forget(Pack<T, N>& pack) {
    static_assert(sizeof(pack) % 4 == 0 || sizeof(pack) < 4, "whole registers");
    if constexpr (sizeof(pack) >= 4) {
        u32_t* words = reinterpret_cast<u32_t*>(&pack);
#pragma unroll
        for (int i = 0; i < (int)sizeof(pack) / 4; ++i) asm volatile("" : "+r"(words[i]));
    }
}

// Rounds a row of d values and stores it. Its threads hold it, pack i of a thread from (i * ROW_THREADS + thread) * PACK on:
// `held.values(i, at, y)` computes a pack, `held.forget()` has it computed anew. Every thread of the row comes here.
template <int TO, int ROW_THREADS, int PACKS_HELD, int PACK, typename Held>
__device__ __forceinline__ void store_row(Held& held, int thread, int row, int d, f8_e4m3_t* out,
                                          const QuantizeTo& to) {
    float factor = to.factor;
    if constexpr (TO == TO_F8_ROW) {
        float top = 0.0f;
#pragma unroll
        for (int i = 0; i < PACKS_HELD; ++i) {
            const int at = (i * ROW_THREADS + thread) * PACK;
            float y[PACK] = {};
            if (at < d) held.values(i, at, y);
            top = fmaxf(top, magnitude_of(y));
        }
        held.forget();
        top = row_max<ROW_THREADS>(top);
        if (thread == 0) to.scales[row] = f8_scale(top);
        factor = f8_factor(top);
    }
#pragma unroll
    for (int i = 0; i < PACKS_HELD; ++i) {
        const int at = (i * ROW_THREADS + thread) * PACK;
        float y[PACK] = {};
        if (at < d) held.values(i, at, y);
        if constexpr (TO == TO_F8_GROUP) {
            static_assert(PACK * 16 == F8_GROUP, "16 lanes hold a group");
            const float top = group_max(magnitude_of(y));
            if (at < d && thread % 16 == 0) to.scales[(u64_t)(at / F8_GROUP) * to.stride + row] = f8_scale(top);
            factor = f8_factor(top);
        }
        if (at < d) store_scaled(out + at, y, factor);
    }
}

// The scales of an unscaled product: null where there are none.
struct ScaledBy {
    const f32_t* rows;
    const f32_t* columns;
};

// The factors of PACK elements of a row. IS_EARLY: ahead of the wait for the kernel before.
template <int PACK, bool IS_EARLY = false>
__device__ __forceinline__ Pack<f32_t, PACK> factors_of(const ScaledBy& by, int column) {
    return IS_EARLY ? load_pack_early<PACK>(by.columns + column) : load_pack<PACK>(by.columns + column);
}
__device__ __forceinline__ float row_factor(const ScaledBy& by, int row) {
    return by.rows == nullptr ? 1.0f : by.rows[row];
}
