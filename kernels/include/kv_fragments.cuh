// Keys and values as the tensor cores take them, from pages of bf16 or of FP8 (KV_F8). FP8 is widened to f16, which holds it
// exactly, on its way into registers, and queries and weights are f16 then; shared memory and everything before it see
// bytes only.
//
// Which element of a fragment is which doesn't matter as long as both operands agree. So a lane's four bytes of a key, four
// neighbouring elements, are the k of 2t, 2t + 1, 2t + 8 and 2t + 9 of an instruction, and queries are brought in that order;
// of values, which are read transposed two elements at a time, the even elements are one tile of eight columns and the odd
// ones the next, and sums are put in order when they are stored.
#pragma once
#include "prelude.cuh"

#if KV_F8
typedef f8_e4m3_t KV_T;
// Steps of 16 elements, or tiles of 8 x 2 columns, that one ldmatrix brings.
#define SUBSTEPS 2
#else
typedef bf16_t KV_T;
#define SUBSTEPS 1
#endif
// Elements of a 16-byte chunk of a key or value, and the chunks of their rows and of the queries' in shared memory: even
// numbers with zeros at the end; widths just below 128 are treated as 128, since addresses of swizzled rows take fewer
// registers.
#define KV_LEN (16 / (int)sizeof(KV_T))
#define Q_CHUNKS (HEAD_DIM > 96 ? 16 : (HEAD_DIM + 16 * SUBSTEPS - 1) / (16 * SUBSTEPS) * 2 * SUBSTEPS)
#define KV_CHUNKS (Q_CHUNKS / SUBSTEPS)
#define K_STEPS (Q_CHUNKS / 2)

// Rows of C chunks in shared memory, swizzled or else padded to an odd number of chunks.
template <int C> struct Rows16 {
    enum : int { IS_SWIZZLED = C % 8 == 0, STRIDE = IS_SWIZZLED ? C : C + 1 };
    __device__ static constexpr u32_t bytes(int rows) { return rows * STRIDE * 16; }
    __device__ static __forceinline__ u32_t offset(int row, int chunk) {
        return (row * STRIDE + (IS_SWIZZLED ? chunk ^ (row & 7) : chunk)) * 16;
    }
    // From `row` (a multiple of 8) and 2 * step chunks on. Tiles begin at multiples of a row's bytes, so a chunk's number
    // stands in bits of its own of the address.
    __device__ static __forceinline__ u32_t fragment(u32_t base, int row, int step) {
        return (IS_SWIZZLED ? base ^ (step * 32) : base + step * 32) + bytes(row);
    }
};
typedef Rows16<Q_CHUNKS> QRows;
typedef Rows16<KV_CHUNKS> KvRows;

// Two rows of eight keys times 16 * SUBSTEPS elements, as right operands: of a substep b[0], b[1] the first eight keys.
__device__ __forceinline__ void load_keys_fragment(u32_t (&b)[SUBSTEPS][4], u32_t address) {
#if KV_F8
    u32_t r[4];
    ldmatrix_x4(r, address);
    widen_f8x4(r[0], b[0][0], b[0][1]);
    widen_f8x4(r[1], b[1][0], b[1][1]);
    widen_f8x4(r[2], b[0][2], b[0][3]);
    widen_f8x4(r[3], b[1][2], b[1][3]);
#else
    ldmatrix_x4(b[0], address);
#endif
}

// Sixteen values times 16 * SUBSTEPS columns: of a substep b[0], b[1] the first tile of columns.
__device__ __forceinline__ void load_values_fragment(u32_t (&b)[SUBSTEPS][4], u32_t address) {
#if KV_F8
    u32_t r[4];
    ldmatrix_x4_trans(r, address);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // Two columns of two values: those of a column beside each other.
        widen_f8x4(__byte_perm(r[i], 0, 0x3120), b[i >> 1][i & 1], b[i >> 1][2 + (i & 1)]);
    }
#else
    ldmatrix_x4_trans(b[0], address);
#endif
}

__device__ __forceinline__ void mma_kv(float (&d)[4], const u32_t (&a)[4], u32_t b0, u32_t b1) {
#if KV_F8
    mma_f16(d, a, b0, b1);
#else
    mma_bf16(d, a, b0, b1);
#endif
}

// Two weights, and two elements of a query, as left operands.
__device__ __forceinline__ u32_t pack_weights(float low, float high) {
#if KV_F8
    return pack_f16x2(low, high);
#else
    return pack_bf16x2(low, high);
#endif
}
__device__ __forceinline__ u32_t query_pair(u32_t bf16x2) {
#if KV_F8
    // Beyond f16's range they saturate: an infinity would make a row NaN whose scores may well be numbers.
    u32_t y;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;"
        : "=r"(y)
        : "f"(bf16_of(bf16x2, 1)), "f"(bf16_of(bf16x2, 0)));
    return y;
#else
    return bf16x2;
#endif
}

// The first of the two columns of this lane in tile n, and the sums of those columns.
__device__ __forceinline__ int column_of(int n) {
    const int t = threadIdx.x & 3;
    return KV_F8 ? n / 2 * 16 + t * 4 + n % 2 * 2 : n * 8 + t * 2;
}
// What sums are multiplied by: only FP8 values have a scale.
#define V_SCALE(o) (KV_F8 ? (o).v_scale : 1.0f)

template <int N> __device__ __forceinline__ float2 columns_of(const float (&sums)[N][4], int n, int half) {
    if (KV_F8) return make_float2(sums[n & ~1][half * 2 + (n & 1)], sums[n | 1][half * 2 + (n & 1)]);
    return make_float2(sums[n][half * 2], sums[n][half * 2 + 1]);
}
