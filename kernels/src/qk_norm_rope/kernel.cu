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
// `qk_norm_rope`: whole heads are turned, and both norms' weights have one type. LANES lanes take a head of 2 * LANES * VEC
// elements, VEC pairs each: two loads of up to 16 bytes, log2(LANES) shuffles, two stores. A warp has 32 / LANES heads, of one row
// mostly.
// `qk_norm_rope_rows`: the same for steps of many rows. A block takes row after row, HEADS_EACH heads of each to a thread, with the
// next two rows on their way to shared memory; a row's angles are looked up once for all of a thread's heads, by a position that was
// loaded one row ahead.
// `qk_norm_rope_any`: any head_dim and any number of turned pairs; a warp takes a head and reads it twice.
//
// Grid: [ceil(n * heads / heads per block)]; of `qk_norm_rope_rows` [as many as run at once, ceil(heads / heads per block)]. Blocks of
// 128. Shared memory: of `qk_norm_rope_rows` 12 KiB * HEADS_EACH.
// Bound: bytes, qkv read and written once: n 2048, 48 heads of 128, bf16: 50 MB, 10.5 us at 4.8 TB/s. At few rows it is the
// latency of three dependent loads: the position, the tables' row, and the arithmetic after them.
#include "quantize.cuh"

#define THREADS 128
#define AXES 3

struct Rope {
    const i32_t* positions;
    const f32_t* cos;
    const f32_t* sin;
    const u8_t* axis_of_pair;
    int n, pairs, max_positions;
};

// A row's position on each axis, as it lies in memory.
struct Positions {
    int at[AXES];
};

__device__ __forceinline__ Positions positions_of(const Rope& rope, i64_t row) {
    Positions positions;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) positions.at[axis] = rope.positions[(i64_t)axis * rope.n + row];
    return positions;
}

// A row's place in the tables, on each axis; -1 outside of them.
struct Place {
    int at[AXES];
};

__device__ __forceinline__ Place place_of(const Rope& rope, const Positions& positions) {
    Place place;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) {
        place.at[axis] = positions.at[axis] < rope.max_positions ? positions.at[axis] : -1;
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

// What a lane reads and writes of a head, each from its first pair on; the cache aside.
struct HeadAt {
    const f32_t* columns;
    const f32_t* bias;
    OUT_T* q;
    int head;
    __device__ __forceinline__ HeadAt(const ScaledBy& by, const f32_t* bias, OUT_T* q_out, u32_t row, int num_heads, int head,
                                      int pair)
        : columns(by.columns + (u32_t)(head * HEAD_DIM + pair)),
          bias(bias + (u32_t)(head * HEAD_DIM + pair)),
          q(q_out + ((u64_t)row * (u32_t)num_heads + (u32_t)head) * HEAD_DIM + (u32_t)pair),
          head(head) {}
    // So many heads on.
    __device__ __forceinline__ HeadAt after(int heads) const {
        HeadAt next = *this;
        next.columns += heads * HEAD_DIM, next.bias += heads * HEAD_DIM, next.q += heads * HEAD_DIM, next.head += heads;
        return next;
    }
};

// The weights of a lane's pairs.
struct Weights {
    Pack<QW_T, VEC> first, second;
    __device__ __forceinline__ Weights(const QW_T* from) : first(load_pack<VEC>(from)), second(load_pack<VEC>(from + HEAD_DIM / 2)) {}
    __device__ __forceinline__ void normalise(Half& x, float scale) const {
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
            x.first[e] = x.first[e] * scale * first[e];
            x.second[e] = x.second[e] * scale * second[e];
        }
    }
};

struct Angles {
    float cos[VEC], sin[VEC];
};

__device__ __forceinline__ Angles angles_of(const Rope& rope, const Place& place, int pair) {
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
        // As written, so that every form of the kernel rounds alike.
        x.first[e] = fmaf(a, angles.cos[e], -(b * angles.sin[e]));
        x.second[e] = fmaf(b, angles.cos[e], a * angles.sin[e]);
    }
}

// What the heads of all rows share.
struct Shared {
    const QW_T* q_weight;
    const KW_T* k_weight;  // of the same type
    ScaledBy by;
    const f32_t* bias;
    CACHE_T* k_cache;
    CACHE_T* v_cache;
    float k_factor, v_factor, eps;
    int num_heads, num_kv_heads, page, num_slots;

    // The equation's x of a lane.
    __device__ __forceinline__ void scale(Half& x, float row, const HeadAt& at) const {
        if (by.columns != nullptr) {
            const Pack<f32_t, VEC> first = load_pack<VEC>(at.columns), second = load_pack<VEC>(at.columns + HEAD_DIM / 2);
#pragma unroll
            for (int e = 0; e < VEC; ++e) {
                x.first[e] = __fmul_rn(x.first[e] * row, first[e]);
                x.second[e] = __fmul_rn(x.second[e] * row, second[e]);
            }
        }
        if (bias == nullptr) return;
        const Pack<f32_t, VEC> first = load_pack<VEC>(at.bias), second = load_pack<VEC>(at.bias + HEAD_DIM / 2);
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
            x.first[e] += first[e];
            x.second[e] += second[e];
        }
    }
};

// What the heads of a row share.
struct Row {
    i64_t slot;
    float factor;
};

// A lane's part of a head from qkv to where it belongs; every lane of the warp comes here, also those without a head.
__device__ __forceinline__ void store_head(const Pack<X_T, VEC>& first, const Pack<X_T, VEC>& second, bool exists,
                                           const Shared& all, const Row& row, const Angles& angles, const HeadAt& at,
                                           int pair) {
    const bool is_q = at.head < all.num_heads, is_v = at.head >= all.num_heads + all.num_kv_heads;
    Half x;
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
        x.first[e] = first[e];
        x.second[e] = second[e];
    }
#if NORM
    // Loaded beside all else, not behind the sum; a v's are not looked at.
    const Weights weights((is_q ? all.q_weight : all.k_weight) + pair);
#endif
#if SCALED
    if (exists) all.scale(x, row.factor, at);
#endif
#if NORM
    float squares = 0.0f;
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
        squares = fmaf(x.first[e], x.first[e], squares);
        squares = fmaf(x.second[e], x.second[e], squares);
    }
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, offset);
    const float scale = rsqrtf(squares * (1.0f / HEAD_DIM) + all.eps);
    if (!is_v) weights.normalise(x, scale);
#endif
    if (!is_v) turn_half(x, angles);
    if (!exists) return;
    if (is_q) {
        store_half(at.q, x, 1.0f);
    } else if (row.slot >= 0 && row.slot < all.num_slots) {
        const u32_t kv_head = at.head - all.num_heads - (is_v ? all.num_kv_heads : 0);
        CACHE_T* cache = is_v ? all.v_cache : all.k_cache;
        store_half(cache + cache_at((u32_t)row.slot, all.page, all.num_kv_heads, kv_head, HEAD_DIM) + pair, x,
                   is_v ? all.v_factor : all.k_factor);
    }
}

#ifndef HEADS_EACH

extern "C" __global__ void __launch_bounds__(THREADS, SCALED ? 6 : 8)
    qk_norm_rope(const X_T* qkv, const QW_T* __restrict__ q_weight, const KW_T* __restrict__ k_weight,
                 const i32_t* positions, const f32_t* __restrict__ cos, const f32_t* __restrict__ sin,
                 const u8_t* __restrict__ axis_of_pair, const i64_t* slots, CACHE_T* k_cache, CACHE_T* v_cache,
                 OUT_T* q_out, const f32_t* scale_rows, const f32_t* __restrict__ scale_columns,
                 const f32_t* __restrict__ bias, float k_factor, float v_factor, float eps, int n, int num_heads,
                 int num_kv_heads, int max_positions, int page, int num_slots) {
    follow_the_kernel_before();
    const Shared all = {q_weight, k_weight, {scale_rows, scale_columns}, bias,         k_cache, v_cache,
                        k_factor, v_factor, eps,                         num_heads, num_kv_heads, page, num_slots};
    const u32_t heads = num_heads + 2 * num_kv_heads;
    const u32_t unit = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const u32_t head = unit % heads;
    const int pair = threadIdx.x % LANES * VEC;
    const u32_t at = unit / heads;
    Row row = {-1, 1.0f};
    const bool exists = at < (u32_t)n;

    // All loads before the sum: what depends on the position is the longest chain.
    Pack<X_T, VEC> first = {}, second = {};
    Angles angles = {};
    if (exists) {
        row.slot = slots[at];
        const X_T* from = qkv + (u64_t)unit * HEAD_DIM + pair;
        first = load_pack<VEC>(from);
        second = load_pack<VEC>(from + HEAD_DIM / 2);
#if SCALED
        row.factor = row_factor(all.by, at);
#endif
        const Rope rope = {positions, cos, sin, axis_of_pair, n, HEAD_DIM / 2, max_positions};
        if (head < (u32_t)(num_heads + num_kv_heads)) angles = angles_of(rope, place_of(rope, positions_of(rope, at)), pair);
    }
    store_head(first, second, exists, all, row, angles, {all.by, bias, q_out, at, num_heads, (int)head, pair}, pair);
}

#else

#define STAGES 3

// Parts of rows on their way to shared memory. Each thread's places are its own, so that nobody waits for another.
struct Ring {
    Vec<X_T, VEC> at[STAGES][HEADS_EACH][2][THREADS];
};

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    qk_norm_rope_rows(const X_T* __restrict__ qkv, const QW_T* __restrict__ q_weight, const KW_T* __restrict__ k_weight,
                      const i32_t* __restrict__ positions, const f32_t* __restrict__ cos,
                      const f32_t* __restrict__ sin, const u8_t* __restrict__ axis_of_pair,
                      const i64_t* __restrict__ slots, CACHE_T* __restrict__ k_cache, CACHE_T* __restrict__ v_cache,
                      OUT_T* __restrict__ q_out, const f32_t* __restrict__ scale_rows,
                      const f32_t* __restrict__ scale_columns, const f32_t* __restrict__ bias, float k_factor,
                      float v_factor, float eps, int n, int num_heads, int num_kv_heads, int max_positions, int page,
                      int num_slots) {
    static_assert(VEC * sizeof(X_T) == 16, "a copy brings a pack");
    constexpr int AT_ONCE = THREADS / LANES;
    __shared__ Ring ring;
    const Shared all = {q_weight, k_weight, {scale_rows, scale_columns}, bias,         k_cache, v_cache,
                        k_factor, v_factor, eps,                         num_heads, num_kv_heads, page, num_slots};
    const Rope rope = {positions, cos, sin, axis_of_pair, n, HEAD_DIM / 2, max_positions};
    const int heads = num_heads + 2 * num_kv_heads, step = gridDim.x;
    const int first_head = blockIdx.y * (AT_ONCE * HEADS_EACH) + threadIdx.x / LANES;
    const int pair = threadIdx.x % LANES * VEC;
    const bool turns = first_head < num_heads + num_kv_heads;

    // Addresses go on from row to row: all heads of a thread are a constant apart.
    const X_T* from = qkv + ((u64_t)blockIdx.x * (u32_t)heads + (u32_t)first_head) * HEAD_DIM + (u32_t)pair;
    HeadAt to = {all.by, bias, q_out, blockIdx.x, num_heads, first_head, pair};
    const u32_t places = shared_address(&ring.at[0][0][0][threadIdx.x]);
    constexpr u32_t PLACE = sizeof(ring.at[0][0][0]), STAGE = sizeof(ring.at[0]);
    const auto fetch = [&](u32_t stage, int row) {
#pragma unroll
        for (int h = 0; h < HEADS_EACH; ++h) {
            if (row >= n || first_head + h * AT_ONCE >= heads) continue;
            const X_T* head = from + h * AT_ONCE * HEAD_DIM;
            cp_async16(stage + h * 2 * PLACE, head);
            cp_async16(stage + h * 2 * PLACE + PLACE, head + HEAD_DIM / 2);
        }
        cp_async_commit();
        from += (u64_t)step * (u32_t)(heads * HEAD_DIM);
    };
    // What a row says, as it lies in memory: whatever is made of it waits for it.
    struct Ahead {
        Row row;
        Positions positions;
    };
    const auto ahead_of = [&](int at) {
        return Ahead{{slots[at], SCALED ? row_factor(all.by, at) : 1.0f}, positions_of(rope, at)};
    };

    fetch(places, blockIdx.x);
    fetch(places + STAGE, blockIdx.x + step);
    Ahead next = ahead_of(min((int)blockIdx.x, n - 1));
    u32_t stage = 0;
    for (int at = blockIdx.x; at < n; at += step) {
        fetch(places + (stage >= STAGE ? stage - STAGE : stage + 2 * STAGE), at + 2 * step);
        const Row row = next.row;
        const Place place = place_of(rope, next.positions);
        // A turn ahead of their use, and of the angles', which are needed last.
        next = ahead_of(min(at + step, n - 1));
        Angles angles = {};
        if (turns) angles = angles_of(rope, place, pair);
        cp_async_wait<2>();
#pragma unroll
        for (int h = 0; h < HEADS_EACH; ++h) {
            const bool exists = first_head + h * AT_ONCE < heads;
            Pack<X_T, VEC> first = {}, second = {};
            if (exists) {
                first.pieces[0] = load_shared<X_T, VEC>(places + stage + h * 2 * PLACE);
                second.pieces[0] = load_shared<X_T, VEC>(places + stage + h * 2 * PLACE + PLACE);
            }
            store_head(first, second, exists, all, row, angles, to.after(h * AT_ONCE), pair);
        }
        to.q += (u64_t)step * (u32_t)(num_heads * HEAD_DIM);
        stage = stage == 2 * STAGE ? 0 : stage + STAGE;
    }
}

#endif

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
    const Place place = place_of(rope, positions_of(rope, row));
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
    qk_norm_rope_any(const X_T* qkv, const QW_T* __restrict__ q_weight, const KW_T* __restrict__ k_weight,
                     const i32_t* positions, const f32_t* __restrict__ cos, const f32_t* __restrict__ sin,
                     const u8_t* __restrict__ axis_of_pair, const i64_t* slots, CACHE_T* k_cache, CACHE_T* v_cache,
                     OUT_T* q_out, const f32_t* scale_rows, const f32_t* __restrict__ scale_columns,
                     const f32_t* __restrict__ bias, float k_factor, float v_factor, float eps, int n, int num_heads,
                     int num_kv_heads, int max_positions, int page, int num_slots, int head_dim, int pairs) {
    follow_the_kernel_before();
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
