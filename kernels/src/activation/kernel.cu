// activate: out = act(x). gated, gated_row: out[r, j] = act(gate_up[r, j]) * gate_up[r, per_row + j].
//
//   KIND 0: x sigmoid(x)   1: x Phi(x)   2: x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)   3: x sigmoid(1.702 x)
//
// A thread computes packs of VEC elements: two of `activate`, THREADS packs apart, so that two loads are in flight; one
// of `gated`, which has two loads anyway. Counts are in packs, under 2^31. SCALED: gate_up is an unscaled FP8 product.
// `gated` also rounds to FP8 by groups where rows are whole groups. What depends on a row is for FP8 outputs with a scale for each
// row (quantize.cuh): in `gated_row` a block takes a row, which waits in shared memory for its largest value (HELD 1) or is read
// again (HELD 0); what comes there is multiplied pack by pack, while the rest is on its way. In `gated_split` (sm_90), for steps of
// up to some hundred rows, a cluster of SPLIT blocks takes ROWS of them, PACKS_EACH packs of each to a thread. Scales of columns are
// twice the bytes of a row: several rows share what is read of them, from the cache.
// The square of a row's scale is left to the end: where a largest value is asked for, it cancels in what is stored. (Elsewhere it is 0
// for scales below 2^-74.)
//
// Grid: [ceil(packs / packs per block)], blocks of 256; of `gated_row` [n], 4 bytes of shared memory for each of a row's elements with
// HELD; of `gated_split` [SPLIT * ceil(n / ROWS)], PER_SM blocks of which a multiprocessor has room for.
// Bound: bytes, the input once and the output once; 16 element operations and two special functions per element keep
// under half of the issue slots busy. gated with n 2048, i 9728, bf16: 120 MB, 25 us at 4.8 TB/s.
#include "cluster.cuh"
#include "quantize.cuh"

#define PACKS 2

// x sigmoid(-y / log2(e)). The quotient is within 2 ulp; the divisor is 1 at least, and where it is too large for the quick
// division (above 2^126) the result is 0 as its limit is.
__device__ __forceinline__ float times_sigmoid(float x, float y) { return __fdividef(x, 1.0f + ex2(y)); }

// act(x * scale) / scale.
__device__ __forceinline__ float act(float x, float scale) {
#if KIND == 0
    return times_sigmoid(x, x * (scale * -LOG2_E));
#elif KIND == 1
    // By erfc, which keeps its precision in the negative tail.
    return 0.5f * x * erfcf(x * (scale * -0.70710678118654752f));
#elif KIND == 2
    const float scaled = x * scale;
    const float u = 0.7978845608028654f * (scaled + 0.044715f * scaled * scaled * scaled);
    return times_sigmoid(x, u * (-2.0f * LOG2_E));
#else
    return times_sigmoid(x, x * (scale * (-1.702f * LOG2_E)));
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
    activate(const X_T* x, OUT_T* out, int num_packs) {
    follow_the_kernel_before();
    // Unsigned: the last block of an input near 2^31 packs ends above it.
    const u32_t first = blockIdx.x * (THREADS * PACKS) + threadIdx.x;
    Pack<X_T, VEC> in[PACKS];
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const u32_t pack = first + i * THREADS;
        if (pack < (u32_t)num_packs) in[i] = load_pack<VEC>(x + (u64_t)pack * VEC);
    }
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const u32_t pack = first + i * THREADS;
        Pack<OUT_T, VEC> y;
#pragma unroll
        for (int e = 0; e < VEC; ++e) y.set(e, act(in[i][e], 1.0f));
        if (pack < (u32_t)num_packs) store_pack(out + (u64_t)pack * VEC, y);
    }
}

// What the columns of a pack of gates and one of factors are multiplied by.
struct Factors {
#if SCALED
    Pack<f32_t, VEC> gates, ups;
#endif
    template <bool IS_EARLY = false>
    __device__ static __forceinline__ Factors load(const ScaledBy& by, int column, int width) {
#if SCALED
        return {factors_of<VEC, IS_EARLY>(by, column), factors_of<VEC, IS_EARLY>(by, column + width)};
#else
        return {};
#endif
    }
};

// VEC gates and factors of a row.
struct Pair {
    Pack<X_T, VEC> gate, up;
    __device__ __forceinline__ void load(const X_T* from, int width) {
        gate = load_pack<VEC>(from);
        up = load_pack<VEC>(from + width);
    }
    // To be multiplied by the square of `by_row` still.
    __device__ __forceinline__ void multiply(const Factors& by, float by_row, float (&y)[VEC]) {
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
#if SCALED
            y[e] = act(gate[e] * by.gates[e], by_row) * (up[e] * by.ups[e]);
#else
            y[e] = act(gate[e], 1.0f) * up[e];
#endif
        }
    }
};

#if !defined(HELD) && !defined(SPLIT)

extern "C" __global__ void __launch_bounds__(THREADS)
    gated(const X_T* gate_up, const f32_t* rows, const f32_t* __restrict__ columns, OUT_T* out, f32_t* out_scales,
          float out_factor, int out_stride, int num_packs, int packs_per_row) {
    const u32_t pack = blockIdx.x * THREADS + threadIdx.x;
    const bool exists = pack < (u32_t)num_packs;  // every lane stays for the shuffles
    // A division by what isn't known beforehand is long: ahead of the wait.
    const u32_t row = pack / (u32_t)packs_per_row, column = (pack - row * packs_per_row) * VEC;
    const int width = packs_per_row * VEC;
    const ScaledBy by = {rows, columns};
    const Factors factors = Factors::load<true>(by, column, width);
    follow_the_kernel_before();
    float y[VEC] = {}, by_row = 1.0f;
    if (exists) {
        Pair pair;
        pair.load(gate_up + ((u64_t)pack + (u64_t)row * packs_per_row) * VEC, width);
        if (SCALED) by_row = row_factor(by, row);
        pair.multiply(factors, by_row, y);
    }
    float factor = (QUANTIZE == TO_FLOAT ? 1.0f : out_factor) * (by_row * by_row);
#if QUANTIZE == TO_F8_GROUP
    static_assert(VEC * 16 == F8_GROUP, "16 lanes hold a group, as rows are whole groups");
    const float top = group_max(magnitude_of(y));
    if (exists && column % F8_GROUP == 0) {
        out_scales[(u64_t)(column / F8_GROUP) * out_stride + row] = f8_scale(top * by_row * by_row);
    }
    factor = f8_factor(top);
#endif
    if (exists) store_scaled(out + (u64_t)pack * VEC, y, factor);
}

#elif defined(HELD)

// A row waits in shared memory, if HELD, for its largest value. A pack has two places there, of 16 bytes each, which are its
// thread's alone and beside those of its warp: its gates and factors come to them, and what they make takes them. Copies keep a row
// in flight whatever registers there are.
struct Places {
    f32_t* gates;
    f32_t* factors;
    __device__ __forceinline__ void fetch(const X_T* from, int at, int width) const {
        cp_async16(shared_address(gates + at / 2), from + at);
        cp_async16(shared_address(factors + at / 2), from + at + width);
    }
    __device__ __forceinline__ void load(Pair& pair, int at) const {
        pair.gate = load_pack<VEC>(reinterpret_cast<const X_T*>(gates + at / 2));
        pair.up = load_pack<VEC>(reinterpret_cast<const X_T*>(factors + at / 2));
    }
    __device__ __forceinline__ void put(int at, const float (&y)[VEC]) const {
        float half[2][VEC / 2];
#pragma unroll
        for (int e = 0; e < VEC; ++e) half[e / (VEC / 2)][e % (VEC / 2)] = y[e];
        store_scaled(gates + at / 2, half[0], 1.0f);
        store_scaled(factors + at / 2, half[1], 1.0f);
    }
    __device__ __forceinline__ void get(int at, float (&y)[VEC]) const {
        const Pack<f32_t, VEC / 2> first = load_pack<VEC / 2>(gates + at / 2);
        const Pack<f32_t, VEC / 2> second = load_pack<VEC / 2>(factors + at / 2);
#pragma unroll
        for (int e = 0; e < VEC; ++e) y[e] = e < VEC / 2 ? first[e] : second[e - VEC / 2];
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    gated_row(const X_T* gate_up, const f32_t* rows, const f32_t* __restrict__ columns, OUT_T* out, f32_t* out_scales,
              float out_factor, int out_stride, int width) {
    follow_the_kernel_before();
    const int row = blockIdx.x, start = threadIdx.x * VEC, step = THREADS * VEC;
    const X_T* from = gate_up + (u64_t)row * 2 * width;
    OUT_T* to = out + (u64_t)row * width;
    const ScaledBy by = {rows, columns};
    const float by_row = SCALED ? row_factor(by, row) : 1.0f;
#if QUANTIZE == TO_F8_GROUP
    static_assert(VEC * 16 == F8_GROUP, "16 lanes hold a group");
    for (int base = 0; base < width; base += step) {
        const int at = base + start;
        float y[VEC] = {};  // every lane stays for the shuffles
        if (at < width) {
            Pair pair;
            pair.load(from + at, width);
            pair.multiply(Factors::load(by, at, width), by_row, y);
        }
        const float top = group_max(magnitude_of(y));
        if (at >= width) continue;
        if (at % F8_GROUP == 0) out_scales[(u64_t)(at / F8_GROUP) * out_stride + row] = f8_scale(top * by_row * by_row);
        store_scaled(to + at, y, f8_factor(top));
    }
#else
#if HELD
    static_assert(VEC * sizeof(X_T) == 16 && 2 * sizeof(X_T) == sizeof(f32_t), "what is made takes the place of what came");
    extern __shared__ __align__(16) f32_t shared[];
    const Places places = {shared, shared + width / 2};
    for (int at = start; at < width; at += step) {
        places.fetch(from, at, width);
        cp_async_commit();
    }
#endif
    float top = 0.0f;
    for (int at = start; at < width; at += step) {
        Pair pair;
        float y[VEC];
#if HELD
        // This pack is in, and the last two may still come.
        const int left = width - at;
        if (left > 2 * step) {
            cp_async_wait<2>();
        } else if (left > step) {
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        places.load(pair, at);
        pair.multiply(Factors::load(by, at, width), by_row, y);
        places.put(at, y);
#else
        pair.load(from + at, width);
        pair.multiply(Factors::load(by, at, width), by_row, y);
#endif
        top = fmaxf(top, magnitude_of(y));
    }
    top = row_max<THREADS>(top);
    if (threadIdx.x == 0) out_scales[row] = f8_scale(top * by_row * by_row);
    const float factor = f8_factor(top);
    for (int at = start; at < width; at += step) {
        float y[VEC];
#if HELD
        places.get(at, y);
#else
        Pair pair;
        pair.load(from + at, width);
        pair.multiply(Factors::load(by, at, width), by_row, y);
#endif
        store_scaled(to + at, y, factor);
    }
#endif
}

#else

// Each warp of a cluster tells each block its maxima, row by row.
#define CLUSTER_WARPS (THREADS / 32 * SPLIT)
typedef Mail<ROWS * CLUSTER_WARPS> Maxima;

// The maxima over the threads of a cluster.
__device__ __forceinline__ void cluster_max(float (&x)[ROWS], Maxima& maxima, u32_t rank) {
    const int lane = threadIdx.x & 31, warp = rank * (THREADS / 32) + (threadIdx.x >> 5);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) x[r] = warp_max_magnitude(x[r]);
    // Every block of the cluster runs by now.
    cluster_wait();
    if (lane < SPLIT) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) maxima.send(r * CLUSTER_WARPS + warp, (u32_t)lane, x[r]);
    }
    maxima.receive();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        x[r] = 0.0f;
#pragma unroll
        for (int i = lane; i < CLUSTER_WARPS; i += 32) x[r] = fmaxf(x[r], maxima.numbers[r * CLUSTER_WARPS + i]);
        x[r] = warp_max_magnitude(x[r]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, PER_SM)
    gated_split(const X_T* gate_up, const f32_t* rows, const f32_t* __restrict__ columns, OUT_T* out, f32_t* out_scales,
                float out_factor, int out_stride, int n, int width) {
    const u32_t rank = blockIdx.x % SPLIT, first_row = blockIdx.x / SPLIT * ROWS;
    const int start = (rank * (THREADS * PACKS_EACH) + threadIdx.x) * VEC;
    const ScaledBy by = {rows, columns};
    // Beyond the last of either, packs and rows are the last again.
    const auto place = [&](int p) { return min(start + p * (THREADS * VEC), width - VEC); };
    const auto row_at = [&](int r) { return min(first_row + r, n - 1u); };
    __shared__ Maxima maxima;
    if (threadIdx.x == 0) maxima.open();
    __syncwarp();
    cluster_arrive();
    // Those of further packs would take the registers in which rows come.
    Factors factors = Factors::load<true>(by, place(0), width);
    follow_the_kernel_before();
    Pair pairs[PACKS_EACH][ROWS];
    float by_row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) by_row[r] = SCALED ? row_factor(by, row_at(r)) : 1.0f;
#pragma unroll
    for (int p = 0; p < PACKS_EACH; ++p) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) pairs[p][r].load(gate_up + ((u64_t)row_at(r) * (2u * width) + place(p)), width);
    }
    float y[PACKS_EACH][ROWS][VEC], top[ROWS] = {};
#pragma unroll
    for (int p = 0; p < PACKS_EACH; ++p) {
        if (p > 0) factors = Factors::load(by, place(p), width);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            pairs[p][r].multiply(factors, by_row[r], y[p][r]);
            top[r] = fmaxf(top[r], magnitude_of(y[p][r]));
        }
    }
    cluster_max(top, maxima, rank);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const u32_t row = first_row + r;
        if (row >= (u32_t)n) break;
        if (start == 0) out_scales[row] = f8_scale(top[r] * by_row[r] * by_row[r]);
        const float factor = f8_factor(top[r]);
#pragma unroll
        for (int p = 0; p < PACKS_EACH; ++p) {
            const int column = start + p * (THREADS * VEC);
            if (column < width) store_scaled(out + ((u64_t)row * (u32_t)width + column), y[p][r], factor);
        }
    }
}

#endif
