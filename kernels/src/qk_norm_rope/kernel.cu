// Each head of a row of qkv: q normalised, turned and written to q_out; k normalised, turned and written to its slot of
// the paged cache; v copied to its slot.
//
//   norm (NORM 1): x / sqrt(mean(x^2) + eps) * weight
//   turn: pair i, a = x[i] and b = x[i + pairs], becomes (a cos - b sin, b cos + a sin), cos and sin from column i of the
//   tables at the row's position on axis axis_of_pair[i]
//
// With SCALED, qkv is an unscaled FP8 product, multiplied by its scales and, where there is one, joined by its bias first. k
// and v are stored times a factor, which is 1 but for FP8 caches.
// A position or axis outside of the tables leaves its pair unturned, a slot outside of the cache stores nothing. Of two
// rows with one slot either may stay.
//
// `qk_norm_rope`: whole heads are turned. LANES lanes take a head of 2 * LANES * VEC elements, VEC pairs each: two loads
// of up to 16 bytes, log2(LANES) shuffles, two stores. A warp has 32 / LANES heads, of one row mostly.
// `qk_norm_rope_any`: any head_dim and any number of turned pairs; a warp takes a head and reads it twice.
//
// Grid: [ceil(n * heads / heads per block)], blocks of 128. No shared memory.
// Bound: bytes, qkv read and written once: n 2048, 48 heads of 128, bf16: 50 MB, 10.5 us at 4.8 TB/s. At few rows it is the
// latency of three dependent loads: the position, the tables' row, and the arithmetic after them.
#include "quantize.cuh"

#define THREADS 128
#define AXES 3

struct Heads {
    int num_heads, num_kv_heads;
};

struct Rope {
    const i32_t* positions;
    const f32_t* cos;
    const f32_t* sin;
    const u8_t* axis_of_pair;
    int n, pairs, max_positions;
};

// A row's place in the tables, on each axis; -1 outside of them.
struct Place {
    int at[AXES];
};

__device__ __forceinline__ Place place_of(const Rope& rope, u32_t row) {
    Place place;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) {
        const int p = rope.positions[(u64_t)axis * rope.n + row];
        place.at[axis] = p < rope.max_positions ? p : -1;
    }
    return place;
}

__device__ __forceinline__ void angle(const Rope& rope, const Place& place, int pair, float& cos, float& sin) {
    const u32_t axis = rope.axis_of_pair[pair];
    const int p = axis == 0 ? place.at[0] : axis == 1 ? place.at[1] : axis == 2 ? place.at[2] : -1;
    const u64_t at = (u64_t)(p >= 0 ? p : 0) * rope.pairs + pair;
    cos = p >= 0 ? rope.cos[at] : 1.0f;
    sin = p >= 0 ? rope.sin[at] : 0.0f;
}

// The first element of `head` in `slot`.
__device__ __forceinline__ u64_t cache_at(u32_t slot, u32_t page, u32_t num_kv_heads, u32_t head, u32_t head_dim) {
    return (((u64_t)(slot / page) * num_kv_heads + head) * page + slot % page) * head_dim;
}

#ifdef LANES

#define HEAD_DIM (2 * LANES * VEC)

struct Half {
    float first[VEC], second[VEC];
};

template <typename T> __device__ __forceinline__ void store_half(T* to, const Half& x, float factor) {
    store_scaled(to, x.first, factor);
    store_scaled(to + HEAD_DIM / 2, x.second, factor);
}

// The equation's x of a lane, from columns `at` on.
__device__ __forceinline__ void scale_input(float (&x)[VEC], const ScaledBy& by, float row, const f32_t* bias, int at) {
    if (by.columns != nullptr) {
        const Pack<f32_t, VEC> columns = factors_of<VEC>(by, at);
#pragma unroll
        for (int e = 0; e < VEC; ++e) x[e] = x[e] * row * columns[e];
    }
    if (bias == nullptr) return;
    const Pack<f32_t, VEC> add = load_pack<VEC>(bias + at);
#pragma unroll
    for (int e = 0; e < VEC; ++e) x[e] += add[e];
}

template <typename T> __device__ __forceinline__ void scale_half(Half& x, const T* weight, float scale) {
    const Pack<T, VEC> first = load_pack<VEC>(weight), second = load_pack<VEC>(weight + HEAD_DIM / 2);
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
        x.first[e] = x.first[e] * scale * first[e];
        x.second[e] = x.second[e] * scale * second[e];
    }
}

struct Angles {
    float cos[VEC], sin[VEC];
};

__device__ __forceinline__ Angles angles_of(const Rope& rope, u32_t row, int pair) {
    const Place place = place_of(rope, row);
    Angles angles;
    if (place.at[0] == place.at[1] && place.at[0] == place.at[2] && place.at[0] >= 0) {
        // Text: one row of the tables.
        const u64_t at = (u64_t)place.at[0] * rope.pairs + pair;
        const Pack<f32_t, VEC> cos = load_pack<VEC>(rope.cos + at), sin = load_pack<VEC>(rope.sin + at);
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
            angles.cos[e] = cos[e];
            angles.sin[e] = sin[e];
        }
    } else {
#pragma unroll
        for (int e = 0; e < VEC; ++e) angle(rope, place, pair + e, angles.cos[e], angles.sin[e]);
    }
    return angles;
}

__device__ __forceinline__ void turn_half(Half& x, const Angles& angles) {
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
        const float a = x.first[e], b = x.second[e];
        x.first[e] = a * angles.cos[e] - b * angles.sin[e];
        x.second[e] = b * angles.cos[e] + a * angles.sin[e];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, SCALED ? 6 : 8)
    qk_norm_rope(const X_T* __restrict__ qkv, const QW_T* __restrict__ q_weight, const KW_T* __restrict__ k_weight,
                 const i32_t* __restrict__ positions, const f32_t* __restrict__ cos, const f32_t* __restrict__ sin,
                 const u8_t* __restrict__ axis_of_pair, const i64_t* __restrict__ slots, CACHE_T* __restrict__ k_cache,
                 CACHE_T* __restrict__ v_cache, OUT_T* __restrict__ q_out, const f32_t* __restrict__ scale_rows,
                 const f32_t* __restrict__ scale_columns, const f32_t* __restrict__ bias, float k_factor,
                 float v_factor, float eps, int n, int num_heads, int num_kv_heads, int max_positions, int page,
                 int num_slots) {
    const u32_t heads = num_heads + 2 * num_kv_heads;
    const u32_t unit = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const u32_t row = unit / heads, head = unit % heads;
    const int pair = threadIdx.x % LANES * VEC;
    const bool exists = row < (u32_t)n; // every lane stays for the shuffles
    const bool is_q = head < (u32_t)num_heads, is_v = head >= (u32_t)(num_heads + num_kv_heads);

    // All loads before the sum: what depends on the position is the longest chain.
    Half x = {};
    Angles angles = {};
    i64_t slot = -1;
    if (exists) {
        slot = slots[row];
        const X_T* from = qkv + (u64_t)unit * HEAD_DIM + pair;
        const Pack<X_T, VEC> first = load_pack<VEC>(from), second = load_pack<VEC>(from + HEAD_DIM / 2);
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
            x.first[e] = first[e];
            x.second[e] = second[e];
        }
#if SCALED
        const ScaledBy by = {scale_rows, scale_columns};
        const float factor = row_factor(by, row);
        scale_input(x.first, by, factor, bias, head * HEAD_DIM + pair);
        scale_input(x.second, by, factor, bias, head * HEAD_DIM + HEAD_DIM / 2 + pair);
#endif
        const Rope rope = {positions, cos, sin, axis_of_pair, n, HEAD_DIM / 2, max_positions};
        if (!is_v) angles = angles_of(rope, row, pair);
    }
#if NORM
    float squares = 0.0f;
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
        squares = fmaf(x.first[e], x.first[e], squares);
        squares = fmaf(x.second[e], x.second[e], squares);
    }
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, offset);
    const float scale = rsqrtf(squares * (1.0f / HEAD_DIM) + eps);
#endif
    if (!exists) return;

#if NORM
    if (is_q) {
        scale_half(x, q_weight + pair, scale);
    } else if (!is_v) {
        scale_half(x, k_weight + pair, scale);
    }
#endif
    if (!is_v) turn_half(x, angles);
    if (is_q) {
        store_half(q_out + ((u64_t)row * num_heads + head) * HEAD_DIM + pair, x, 1.0f);
        return;
    }
    if (slot < 0 || slot >= num_slots) return;
    const u32_t kv_head = head - num_heads - (is_v ? num_kv_heads : 0);
    CACHE_T* cache = is_v ? v_cache : k_cache;
    store_half(cache + cache_at((u32_t)slot, page, num_kv_heads, kv_head, HEAD_DIM) + pair, x,
               is_v ? v_factor : k_factor);
}

#else

// One head as any lane reads it: element j of the equation's x.
struct Input {
    const X_T* x;
    ScaledBy by;
    const f32_t* bias;
    float row;
    int start;  // the head's first column
    __device__ __forceinline__ float operator[](int j) const {
#if SCALED
        const float y = by.columns == nullptr ? to_f32(x[j]) : to_f32(x[j]) * row * by.columns[start + j];
        return bias == nullptr ? y : y + bias[start + j];
#else
        return to_f32(x[j]);
#endif
    }
};

// The same normalised.
template <typename T> struct Normalised {
    Input x;
    const T* weight; // null: not normalised
    float scale;
    __device__ __forceinline__ float operator[](int j) const {
        return weight == nullptr ? x[j] : x[j] * scale * to_f32(weight[j]);
    }
};

// The warp's head turned and stored.
template <typename T, typename TO>
__device__ __forceinline__ void turn_head(const Normalised<T>& x, const Rope& rope, u32_t row, int head_dim, float factor,
                                          TO* to) {
    const Place place = place_of(rope, row);
    for (int j = threadIdx.x % 32; j < head_dim; j += 32) {
        float y = x[j];
        if (j < 2 * rope.pairs) {
            const int pair = j < rope.pairs ? j : j - rope.pairs;
            float cos, sin;
            angle(rope, place, pair, cos, sin);
            y = j < rope.pairs ? y * cos - x[j + rope.pairs] * sin : y * cos + x[pair] * sin;
        }
        to[j] = from_f32<TO>(y * factor);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    qk_norm_rope_any(const X_T* __restrict__ qkv, const QW_T* __restrict__ q_weight,
                     const KW_T* __restrict__ k_weight, const i32_t* __restrict__ positions,
                     const f32_t* __restrict__ cos, const f32_t* __restrict__ sin,
                     const u8_t* __restrict__ axis_of_pair, const i64_t* __restrict__ slots,
                     CACHE_T* __restrict__ k_cache, CACHE_T* __restrict__ v_cache, OUT_T* __restrict__ q_out,
                     const f32_t* __restrict__ scale_rows, const f32_t* __restrict__ scale_columns,
                     const f32_t* __restrict__ bias, float k_factor, float v_factor, float eps, int n, int num_heads,
                     int num_kv_heads, int max_positions, int page, int num_slots, int head_dim, int pairs) {
    const u32_t heads = num_heads + 2 * num_kv_heads;
    const u32_t unit = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const u32_t row = unit / heads, head = unit % heads;
    if (row >= (u32_t)n) return; // a whole warp
    const ScaledBy by = {scale_rows, scale_columns};
    const Input x = {qkv + (u64_t)unit * head_dim, by, bias, SCALED ? row_factor(by, row) : 1.0f, (int)head * head_dim};
    const bool is_q = head < (u32_t)num_heads, is_v = head >= (u32_t)(num_heads + num_kv_heads);
    const i64_t slot = slots[row];
    if (!is_q && (slot < 0 || slot >= num_slots)) return;

    float scale = 1.0f;
#if NORM
    float squares = 0.0f;
    for (int j = threadIdx.x % 32; j < head_dim; j += 32) squares = fmaf(x[j], x[j], squares);
    scale = rsqrtf(warp_sum(squares) / (float)head_dim + eps);
#else
    q_weight = nullptr;
    k_weight = nullptr;
#endif
    const Rope rope = {positions, cos, sin, axis_of_pair, n, pairs, max_positions};
    if (is_q) {
        OUT_T* to = q_out + ((u64_t)row * num_heads + head) * head_dim;
        turn_head(Normalised<QW_T>{x, q_weight, scale}, rope, row, head_dim, 1.0f, to);
        return;
    }
    const u32_t kv_head = head - num_heads - (is_v ? num_kv_heads : 0);
    const u64_t at = cache_at((u32_t)slot, page, num_kv_heads, kv_head, head_dim);
    if (is_v) {
        for (int j = threadIdx.x % 32; j < head_dim; j += 32) v_cache[at + j] = from_f32<CACHE_T>(x[j] * v_factor);
    } else {
        turn_head(Normalised<KW_T>{x, k_weight, scale}, rope, row, head_dim, k_factor, k_cache + at);
    }
}

#endif
