// residual += add; residual += extra_rows[extra_index]; out = norm(residual) * weight + bias
//
//   RMSNorm (LAYER 0): x / sqrt(mean(x^2) + eps) * weight
//   LayerNorm (LAYER 1): (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
//
// THREADS threads take a row of `d` elements: a warp where a row is narrow (4 rows to a block then, and no barrier),
// else a whole block. Each thread keeps ITEMS packs of VEC elements in registers, so that memory is read once and the
// variance is summed over differences from the mean. ITEMS 0 is for rows too wide for that: they are read again
// from memory, each thread its own elements. Which thread sums what depends on `d` alone, never on the number of rows.
//
// `add` may be an unscaled product (ADDS_SCALED), and `out` FP8 (QUANTIZE, see quantize.cuh); a row that is quantised is
// always held. What RMSNorm gives is largest where |x * weight| is, so that a row's scale needs no barrier of its own.
//
// Grid: [ceil(m / rows per block)]. Shared memory: 128 bytes where a block takes a row.
// Bound: bytes, m * d * (residual twice, add, extra, out); weight and bias stay in L2. 42 MB for m 2048, d 2560, bf16,
// one addition: 9 us at 4.8 TB/s. Loads in flight, of rows that are held: weights and scales of columns while the
// kernel before ends, then ITEMS of each operand before the first sum.
#include "quantize.cuh"

#define ADDS_ROWS 1
#define ADDS_EXTRA 2
#define ADDS_SCALED 4  // the rows are an unscaled product

#define ROWS_PER_BLOCK (THREADS == 32 ? 4 : 1)
#define ROUNDS_BY_ROW (QUANTIZE == TO_F8_ROW && !LAYER)

// Where a warp holds a row (sm_100, ITEMS 4) or a row is quantised, the compiler would rather spill than have fewer blocks
// at once; a row that is rounded by itself takes so few registers that three quarters of the threads fit.
#if ROUNDS_BY_ROW && ITEMS == 1 && THREADS > 32 && !(ADDS & ADDS_EXTRA)
#define BOUNDS __launch_bounds__(THREADS, 1536 / THREADS)
#elif THREADS == 32 || QUANTIZE != TO_FLOAT
#define BOUNDS __launch_bounds__(THREADS * ROWS_PER_BLOCK, 1)
#else
#define BOUNDS __launch_bounds__(THREADS * ROWS_PER_BLOCK)
#endif

// The sum over the threads of a row.
__device__ __forceinline__ float row_sum(float x) {
#if THREADS == 32
    return warp_sum(x);
#else
    __shared__ float partial[32];
    return block_sum(x, partial);
#endif
}

struct Row {
    X_T* residual;
    const ADD_T* add;
    const EXTRA_T* extra; // null: none
    float factor;
};

// The scales of VEC columns of an unscaled product.
struct Columns {
#if ADDS & ADDS_SCALED
    Pack<f32_t, VEC> factors;
#endif
    template <bool IS_EARLY = false> __device__ static __forceinline__ Columns load(const ScaledBy& by, int at) {
#if ADDS & ADDS_SCALED
        return {factors_of<VEC, IS_EARLY>(by, at)};
#else
        return {};
#endif
    }
};

// VEC elements as they become: each sum rounded to X_T, and stored if there is one.
__device__ __forceinline__ Pack<X_T, VEC> join(const Row& row, int at, Pack<X_T, VEC> x, const Pack<ADD_T, VEC>& add,
                                               const Columns& columns) {
#if ADDS & ADDS_SCALED
#pragma unroll
    for (int e = 0; e < VEC; ++e) x.set(e, fmaf(add[e] * row.factor, columns.factors[e], x[e]));
#elif ADDS & ADDS_ROWS
#pragma unroll
    for (int e = 0; e < VEC; ++e) x.set(e, x[e] + add[e]);
#endif
#if ADDS & ADDS_EXTRA
    if (row.extra != nullptr) {
        const Pack<EXTRA_T, VEC> extra = load_pack<VEC>(row.extra + at);
#pragma unroll
        for (int e = 0; e < VEC; ++e) x.set(e, x[e] + extra[e]);
    }
#endif
#if ADDS
    store_pack(row.residual + at, x);
#endif
    return x;
}

__device__ __forceinline__ Pack<ADD_T, VEC> load_add(const Row& row, int at) {
#if ADDS & ADDS_ROWS
    return load_pack<VEC>(row.add + at);
#else
    return {};
#endif
}

__device__ __forceinline__ float sum_of(const Pack<X_T, VEC>& x) {
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < VEC; ++e) sum += x[e];
    return sum;
}

__device__ __forceinline__ float squares_of(const Pack<X_T, VEC>& x, float mean) {
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < VEC; ++e) sum = fmaf(x[e] - mean, x[e] - mean, sum);
    return sum;
}

// VEC elements normalised.
__device__ __forceinline__ void normalise(const Pack<X_T, VEC>& x, const Pack<W_T, VEC>& weight, const BIAS_T* bias,
                                          float mean, float scale, int at, float (&y)[VEC]) {
    if (LAYER && bias != nullptr) {
        const Pack<BIAS_T, VEC> b = load_pack<VEC>(bias + at);
#pragma unroll
        for (int e = 0; e < VEC; ++e) y[e] = fmaf((x[e] - mean) * scale, weight[e], b[e]);
    } else {
#pragma unroll
        for (int e = 0; e < VEC; ++e) y[e] = (x[e] - mean) * scale * weight[e];
    }
}

// A row as its threads hold it.
#if ITEMS > 0
struct Held {
    Pack<X_T, VEC> x[ITEMS];
    Pack<W_T, VEC> weight[ITEMS];
    Columns columns[ITEMS];

    template <typename F> __device__ __forceinline__ void each(int thread, int d, F f) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int at = (i * THREADS + thread) * VEC;
            if (at < d) f(at, x[i], weight[i]);
        }
    }
    // Ahead of the wait for the kernel before.
    __device__ __forceinline__ void read_constants(const W_T* from, const ScaledBy& by, int thread, int d) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int at = (i * THREADS + thread) * VEC;
            if (at >= d) continue;
            weight[i] = load_pack_early<VEC>(from + at);
            columns[i] = Columns::load<true>(by, at);
        }
    }
    // All loads first, so that they are in flight together.
    __device__ __forceinline__ void read(const Row& row, int thread, int d) {
        Pack<ADD_T, VEC> add[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int at = (i * THREADS + thread) * VEC;
            if (at < d) {
                x[i] = load_pack<VEC>(row.residual + at);
                add[i] = load_add(row, at);
            }
        }
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int at = (i * THREADS + thread) * VEC;
            if (at < d) x[i] = join(row, at, x[i], add[i], columns[i]);
        }
    }
};
#else
struct Held {
    const X_T* residual;
    const W_T* weight;
    ScaledBy by;

    template <typename F> __device__ __forceinline__ void each(int thread, int d, F f) {
        for (int at = thread * VEC; at < d; at += THREADS * VEC) {
            Pack<X_T, VEC> x = load_pack<VEC>(residual + at);
            Pack<W_T, VEC> w = load_pack<VEC>(weight + at);
            f(at, x, w);
        }
    }
    __device__ __forceinline__ void read_constants(const W_T* from, const ScaledBy& scales, int, int) {
        weight = from;
        by = scales;
    }
    __device__ __forceinline__ void read(const Row& row, int thread, int d) {
        residual = row.residual;
        for (int at = thread * VEC; at < d; at += THREADS * VEC) {
            join(row, at, load_pack<VEC>(row.residual + at), load_add(row, at), Columns::load(by, at));
        }
    }
};
#endif

#if ROUNDS_BY_ROW
__device__ __forceinline__ float largest_of(const Pack<X_T, VEC>& x, const Pack<W_T, VEC>& weight) {
    float y[VEC];
#pragma unroll
    for (int e = 0; e < VEC; ++e) y[e] = x[e] * weight[e];
    return magnitude_of(y);
}

// The sum and the maximum over the threads of a row, by one barrier.
__device__ __forceinline__ void row_sum_and_max(float& sum, float& top) {
    sum = warp_sum(sum);
    top = warp_max(top);
#if THREADS > 32
    __shared__ float sums[THREADS / 32], tops[THREADS / 32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (lane == 0) {
        sums[warp] = sum;
        tops[warp] = top;
    }
    __syncthreads();
    sum = warp_sum(lane < THREADS / 32 ? sums[lane] : 0.0f);
    top = warp_max(lane < THREADS / 32 ? tops[lane] : 0.0f);
#endif
}
#elif QUANTIZE != TO_FLOAT
// A held row as it is normalised.
struct HeldNorm {
    Held& held;
    const BIAS_T* bias;
    float mean, scale;
    __device__ __forceinline__ void values(int i, int at, float (&y)[VEC]) const {
        normalise(held.x[i], held.weight[i], bias, mean, scale, at, y);
    }
    __device__ __forceinline__ void forget() {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) ::forget(held.x[i]);
    }
};
#endif

extern "C" __global__ void BOUNDS
    add_norm(X_T* residual, const ADD_T* add, const EXTRA_T* extra_rows, const i32_t* extra_index,
             const W_T* __restrict__ weight, const BIAS_T* __restrict__ bias, OUT_T* out, float eps, float inverse_d, int m,
             int d, int num_extra, const f32_t* add_rows, const f32_t* __restrict__ add_columns, f32_t* out_scales,
             float out_factor, int out_stride) {
    const int thread = threadIdx.x % THREADS;
    const ScaledBy by = {add_rows, add_columns};
    Held held;
    held.read_constants(weight, by, thread, d);
    follow_the_kernel_before();
    const int i = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / THREADS;
    if (i >= m) return; // a whole warp where rows are warps, else never
    const u64_t start = (u64_t)i * d;
    Row row = {residual + start, add + start, nullptr, 1.0f};
#if ADDS & ADDS_SCALED
    row.factor = row_factor(by, i);
#endif
#if ADDS & ADDS_EXTRA
    const int index = extra_index[i];
    if (index >= 0 && index < num_extra) row.extra = extra_rows + (u64_t)index * d;
#endif

    held.read(row, thread, d);
    float mean = 0.0f;
    if (LAYER) {
        float sum = 0.0f;
        held.each(thread, d, [&](int, const Pack<X_T, VEC>& x, const Pack<W_T, VEC>&) { sum += sum_of(x); });
        mean = row_sum(sum) / (float)d; // divided, so that a row of equal numbers has exactly their mean
    }
    float squares = 0.0f;
    held.each(thread, d,
              [&](int, const Pack<X_T, VEC>& x, const Pack<W_T, VEC>&) { squares += squares_of(x, mean); });
#if ROUNDS_BY_ROW
    float top = 0.0f;
    held.each(thread, d, [&](int, const Pack<X_T, VEC>& x, const Pack<W_T, VEC>& w) {
        top = fmaxf(top, largest_of(x, w));
    });
    row_sum_and_max(squares, top);
    const float scale = rsqrtf(squares * inverse_d + eps);
    top *= scale;
    if (thread == 0) out_scales[i] = f8_scale(top);
    const float factor = f8_factor(top);
#else
    const float scale = rsqrtf(row_sum(squares) * inverse_d + eps);
#if QUANTIZE == TO_FLOAT
    const float factor = 1.0f;
#endif
#endif
#if QUANTIZE == TO_FLOAT || ROUNDS_BY_ROW
    held.each(thread, d, [&](int at, const Pack<X_T, VEC>& x, const Pack<W_T, VEC>& w) {
        float y[VEC];
        normalise(x, w, bias, mean, scale, at, y);
        store_scaled(out + start + at, y, factor);
    });
#else
    HeldNorm normed = {held, bias, mean, scale};
    store_row<QUANTIZE, THREADS, ITEMS, VEC>(normed, thread, i, d, out + start,
                                             QuantizeTo{out_scales, out_factor, out_stride});
#endif
}
