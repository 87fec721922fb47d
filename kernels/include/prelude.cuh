// What every kernel shares: element types, conversions, vector memory access, reductions, and the tensor-core and copy
// instructions as thin wrappers of PTX. Nothing of the toolkit's own headers is included, so that NVRTC alone suffices.
#pragma once

typedef unsigned char u8_t;
typedef unsigned short u16_t;
typedef unsigned int u32_t;
typedef unsigned long long u64_t;
typedef int i32_t;
typedef long long i64_t;
typedef float f32_t;

// Storage only: arithmetic is float32.
struct bf16_t { u16_t bits; };
struct f16_t { u16_t bits; };
struct f8_e4m3_t { u8_t bits; };

// ---- conversions: exact to float32; to nearest, ties to even, from it ----

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16_t x) { return __uint_as_float((u32_t)x.bits << 16); }
__device__ __forceinline__ float to_f32(f16_t x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16_t from_f32<bf16_t>(float x) {
    bf16_t y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ f16_t from_f32<f16_t>(float x) {
    f16_t y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// FP8: the cards' own instructions from sm_89 on; before them the same numbers by arithmetic.
__device__ __forceinline__ float to_f32(f8_e4m3_t x) {
    // Both formats keep their subnormals on the same footing, so one factor, 2^120, serves all numbers.
    const u32_t magnitude = x.bits & 0x7fu;
    const float y = __uint_as_float(magnitude << 20) * __uint_as_float(247u << 23);
    const float number = __uint_as_float(__float_as_uint(y) | ((u32_t)(x.bits & 0x80u) << 24));
    return magnitude == 0x7fu ? __uint_as_float(0x7fffffffu) : number;
}
template <> __device__ __forceinline__ f8_e4m3_t from_f32<f8_e4m3_t>(float x) {
#if __CUDA_ARCH__ >= 890
    u16_t y;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(0.0f), "f"(x));
    return {(u8_t)y};
#else
    const float magnitude = fabsf(x);
    const u32_t bits = __float_as_uint(magnitude);
    u32_t rounded = ((bits + (1u << 19) - 1u + (bits >> 20 & 1u)) >> 20) - (120u << 3);
    if (magnitude < 0.015625f) rounded = __float_as_uint(magnitude + 16384.0f) - __float_as_uint(16384.0f);
    if (magnitude >= 448.0f) rounded = 0x7eu;
    if (x != x) rounded = 0x7fu;
    return {(u8_t)(rounded | (__float_as_uint(x) >> 24 & 0x80u))};
#endif
}

// One of two bf16 in a register, 0 the lower one.
__device__ __forceinline__ float bf16_of(u32_t pair, int i) {
    return __uint_as_float(i == 0 ? pair << 16 : pair & 0xffff0000u);
}

// Two bf16 in one register, `low` in the lower half.
__device__ __forceinline__ u32_t pack_bf16x2(float low, float high) {
    u32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// ---- vectors: N elements moved by one instruction where they are 16 bytes or less and aligned so ----

template <typename T, int N> struct alignas(sizeof(T) * N) Vec {
    T at[N];
};

template <typename T, int N> __device__ __forceinline__ float element(const Vec<T, N>& v, int i) { return to_f32(v.at[i]); }
// By registers: of halves by themselves, the compiler takes the upper one out before it widens it.
template <int N> __device__ __forceinline__ float element(const Vec<bf16_t, N>& v, int i) {
    if constexpr (N % 2 == 0) {
        return bf16_of(reinterpret_cast<const u32_t*>(&v)[i / 2], i % 2);
    } else {
        return to_f32(v.at[i]);
    }
}

template <typename T, int N> __device__ __forceinline__ Vec<T, N> load_vec(const T* p) {
    return *reinterpret_cast<const Vec<T, N>*>(p);
}

template <typename T, int N> __device__ __forceinline__ void store_vec(T* p, const Vec<T, N>& v) {
    *reinterpret_cast<Vec<T, N>*>(p) = v;
}

// ---- reductions; `block_*` need 32 floats of shared memory and every thread of the block ----

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

__device__ __forceinline__ float block_sum(float x, float* shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, num_warps = (blockDim.x + 31) >> 5;
    x = warp_sum(x);
    if (num_warps == 1) return x;
    __syncthreads();
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    return warp_sum(lane < num_warps ? shared[lane] : 0.0f);
}

// ---- special functions ----

// 2^x, within 2 units in the last place.
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#define LOG2_E 1.4426950408889634f
#define INFINITY_F __int_as_float(0x7f800000)

// ---- asynchronous copies to shared memory (sm_80) ----

__device__ __forceinline__ u32_t shared_address(const void* p) { return (u32_t)__cvta_generic_to_shared(p); }

// Elements of shared memory by their address there, 16 bytes.
template <typename T, int N> __device__ __forceinline__ Vec<T, N> load_shared(u32_t from) {
    static_assert(sizeof(Vec<T, N>) == 16, "one load");
    Vec<u32_t, 4> words;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.at[0]), "=r"(words.at[1]), "=r"(words.at[2]), "=r"(words.at[3])
                 : "r"(from)
                 : "memory");
    return *reinterpret_cast<const Vec<T, N>*>(&words);
}

// 16 bytes; zeros where `valid` is false (nothing is read then).
__device__ __forceinline__ void cp_async16(u32_t to, const void* from, bool valid = true) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- tensor cores (sm_80): fragments as the PTX manual draws them ----

// Four 8x8 tiles of 16-bit elements from shared memory; each lane gives a row's address.
__device__ __forceinline__ void ldmatrix_x4(u32_t (&r)[4], u32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32_t (&r)[4], u32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// d[16, 8] += a[16, 16] (row) * b[16, 8] (column), bf16 with float32 sums.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32_t (&a)[4], u32_t b0, u32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// As `mma_bf16`, f16.
__device__ __forceinline__ void mma_f16(float (&d)[4], const u32_t (&a)[4], u32_t b0, u32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two FP8 numbers beside each other, `low` first.
__device__ __forceinline__ u16_t pack_f8x2(float low, float high) {
#if __CUDA_ARCH__ >= 890
    u16_t y;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(high), "f"(low));
    return y;
#else
    return from_f32<f8_e4m3_t>(low).bits | (u16_t)(from_f32<f8_e4m3_t>(high).bits << 8);
#endif
}

// Four FP8 numbers beside each other, `a` first.
__device__ __forceinline__ u32_t pack_f8x4(float a, float b, float c, float d) {
    return pack_f8x2(a, b) | (u32_t)pack_f8x2(c, d) << 16;
}

// Two f16 in one register, `low` in the lower half.
__device__ __forceinline__ u32_t pack_f16x2(float low, float high) {
    u32_t y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// Four FP8 numbers as f16, which holds them exactly: the lower two, and the upper two.
__device__ __forceinline__ void widen_f8x4(u32_t x, u32_t& low, u32_t& high) {
#if __CUDA_ARCH__ >= 890
    // Volatile: done ahead of time, it would take registers that loads in flight need.
    asm volatile("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
        : "=r"(low), "=r"(high)
        : "r"(x));
#else
    // Cards without FP8 are refused where products are launched; this keeps the kernels whole for them. Bytes go to the upper
    // halves of f16s, which have the same subnormals under an exponent bias larger by 8; NaN becomes 480.
    const auto widen = [](u32_t bytes) {
        u32_t y;
        asm volatile("mul.f16x2 %0, %1, %2;"
                     : "=r"(y)
                     : "r"((bytes & 0x80008000u) | (bytes & 0x7f007f00u) >> 1), "r"(0x5c005c00u));
        return y;
    };
    low = widen(__byte_perm(x, 0, 0x1404));
    high = widen(__byte_perm(x, 0, 0x3424));
#endif
}

// ---- programmatic dependent launch: the next kernel's blocks may already stand by while this one ends ----

__device__ __forceinline__ void let_the_next_kernel_stand_by() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// What every thread of a kernel whose launch may begin early (`crate::cuda::following`) does before it reads or writes what others do,
// and in any case: all kernels before it have ended then, and the next one's blocks may come. A pointer to what a step writes has no
// `__restrict__` there, since the compiler may read a restricted one before the wait; weights and their scales are there long before.
__device__ __forceinline__ void follow_the_kernel_before() {
    wait_for_the_kernel_before();
    let_the_next_kernel_stand_by();
}

// ---- packs: N elements of one type as they lie in memory, moved in pieces of at most 16 bytes, used as float32 ----

template <typename T, int N> struct Pack {
    enum : int { PIECE = sizeof(T) * N <= 16 ? N : 16 / (int)sizeof(T) };
    Vec<T, PIECE> pieces[N / PIECE];
    __device__ __forceinline__ float operator[](int i) const { return element(pieces[i / PIECE], i % PIECE); }
    __device__ __forceinline__ void set(int i, float x) { pieces[i / PIECE].at[i % PIECE] = from_f32<T>(x); }
};

template <int N, typename T> __device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
    constexpr int PIECE = Pack<T, N>::PIECE;
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N / PIECE; ++i) pack.pieces[i] = load_vec<T, PIECE>(p + i * PIECE);
    return pack;
}

// As `load_pack`, but here and not where the pack is used first, if its pieces have 16 bytes: what is constant is loaded ahead of
// `follow_the_kernel_before`, while that kernel ends, and the compilers would take a plain load of it past the wait.
template <int N, typename T> __device__ __forceinline__ Pack<T, N> load_pack_early(const T* p) {
    constexpr int PIECE = Pack<T, N>::PIECE;
    if constexpr (sizeof(T) * PIECE < 16) {
        return load_pack<N>(p);
    } else {
        Pack<T, N> pack;
#pragma unroll
        for (int i = 0; i < N / PIECE; ++i) {
            Vec<u32_t, 4> words;
            asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words.at[0]), "=r"(words.at[1]), "=r"(words.at[2]), "=r"(words.at[3])
                         : "l"(p + i * PIECE));
            pack.pieces[i] = *reinterpret_cast<const Vec<T, PIECE>*>(&words);
        }
        return pack;
    }
}

template <typename T, int N> __device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
    constexpr int PIECE = Pack<T, N>::PIECE;
#pragma unroll
    for (int i = 0; i < N / PIECE; ++i) store_vec(p + i * PIECE, pack.pieces[i]);
}

// As `ldmatrix_x4`, two tiles; lanes 0-15 give the addresses.
__device__ __forceinline__ void ldmatrix_x2(u32_t (&r)[2], u32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address));
}
__device__ __forceinline__ void ldmatrix_x2_trans(u32_t (&r)[2], u32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address));
}

// d[16, 8] += a[16, 8] (row) * b[8, 8] (column), bf16 with float32 sums.
__device__ __forceinline__ void mma_bf16_k8(float (&d)[4], u32_t a0, u32_t a1, u32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
}
