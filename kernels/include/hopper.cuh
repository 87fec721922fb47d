// Hopper's own instructions (sm_90a) as thin wrappers of PTX: bulk copies that complete on barriers in shared memory, and
// products by a warpgroup (four warps, the first of them a multiple of four). Addresses of shared memory are those of its
// window (`shared_address`).
//
// A tile lies in shared memory in columns of 128 bytes: rows of so many, one after the other, whose 16-byte chunks are
// permuted by chunk ^ (row % 8). A column begins at a multiple of 1024 bytes. `swizzled` says where a chunk is, a tensor
// map with the 128-byte swizzle writes it so, and `descriptor_of` tells a product.
#pragma once
#include "mbarrier.cuh"

// ---- order, roles and registers ----

// What this thread has written to shared memory by ordinary stores becomes visible to products and bulk copies that
// follow a barrier.
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Whether this lane is the one that its warp, all of whose lanes are here, has elected.
__device__ __forceinline__ bool elect_one() {
    u32_t is_elected;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(is_elected)::"memory");
    return is_elected != 0;
}
// Waits until `threads` threads have come to barrier `id` (1 to 15; 0 is __syncthreads'), by either of these two.
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Comes to barrier `id` without waiting.
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Registers per thread of this warpgroup from here on, more than before (waits until others have given theirs up).
template <int COUNT> __device__ __forceinline__ void raise_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
// The same, fewer than before.
template <int COUNT> __device__ __forceinline__ void lower_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- bulk copies, each by one thread ----

// A CUtensorMap, passed by value as `const __grid_constant__`.
struct alignas(64) TensorMap {
    u64_t words[16];
};
// The box at (column, row) of a matrix, zeros where it lies outside; its whole size counts as brought to `barrier`.
__device__ __forceinline__ void copy_box(u32_t to, const TensorMap& map, int column, int row, u32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}
// The same of what is read once: it makes room in the level-2 cache before other things do.
__device__ __forceinline__ void copy_box_once(u32_t to, const TensorMap& map, int column, int row, u32_t barrier) {
    u64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
                 : "memory");
}
// Has the copy engine read a map ahead of its first use.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// `bytes` bytes, a multiple of 16 from and to multiples of 16; they count as brought to `barrier`.
__device__ __forceinline__ void copy_bulk(u32_t to, const void* from, u32_t bytes, u32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// ---- tiles and their descriptors ----

// Bytes from a tile's begin to a 16-byte chunk (of the tile's row) where columns have ROWS rows.
template <int ROWS> __device__ __forceinline__ u32_t swizzled(int row, int chunk) {
    return chunk / 8 * (ROWS * 128) + row * 128 + ((chunk ^ row) & 7) * 16;
}
// An operand at `tile` for a product; the descriptor counts in units of 16 bytes. If a tile's rows are what is summed
// over (MN-major), `column_bytes` is the distance of its columns, and 16 rows on are + 128. If the elements of a row
// are (K-major), `column_bytes` isn't looked at, and 32 bytes on are + 2, as far as the column goes.
__device__ __forceinline__ u64_t descriptor_of(u32_t tile, u32_t column_bytes = 16) {
    // 8 rows are 1024 bytes; 1 in the highest bits is the swizzle over 128 bytes.
    const u64_t constant = (u64_t)(1024 >> 4) << 32 | (u64_t)1 << 62;
    return constant | (tile & 0x3ffff) >> 4 | (column_bytes >> 4) << 16;
}

// ---- products of a warpgroup: d[64, n] (+)= a[64, 32 bytes] * b[32 bytes, n], float32 sums; n is 128 if nothing is said ----
// A lane's share of d: element n * 4 + i is that of tile n (8 columns) as `mma`'s sums lie, in the 16 rows of its warp.

// Before the first product, and whenever registers that it uses have been written otherwise.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until all but the N latest groups are done.
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving uses of these registers from after a wait to before it.
template <int N> __device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N> __device__ __forceinline__ void hold(u32_t (&a)[N][4]) {
#pragma unroll
    for (int i = 0; i < N * 4; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

#define WGMMA_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_NAMES_16 WGMMA_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_32 \
    WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64 \
    WGMMA_NAMES_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_SUMS_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define WGMMA_SUMS_16 WGMMA_SUMS_8(0), WGMMA_SUMS_8(8)
#define WGMMA_SUMS_32(i) WGMMA_SUMS_8(i), WGMMA_SUMS_8(i + 8), WGMMA_SUMS_8(i + 16), WGMMA_SUMS_8(i + 24)
#define WGMMA_SUMS_64 WGMMA_SUMS_32(0), WGMMA_SUMS_32(32)

// `shape`: columns and elements of 32 bytes; `layouts`: of 16-bit ones, that both operands are K-major; `names`, `operands`,
// `accumulates_name`: those of the sums, of both operands, and of whether to add to the sums.
#define WGMMA_SHARED(shape, type, names, operands, accumulates_name, layouts, sums) \
    asm volatile("{\n" \
                 ".reg .pred p;\n" \
                 "setp.ne.b32 p, " accumulates_name ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64" shape ".f32." type "." type " {" names "}, " operands \
                 ", p, 1, 1" layouts ";\n" \
                 "}" \
                 : sums \
                 : "l"(a), "l"(b), "r"((int)accumulates))
#define WGMMA_REGISTERS(type) \
    asm volatile("{\n" \
                 ".reg .pred p;\n" \
                 "setp.ne.b32 p, %69, 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" WGMMA_NAMES_64 \
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n" \
                 "}" \
                 : WGMMA_SUMS_64 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

// Both operands from shared memory, K-major; elements e4m3, of which a step of the sum is 32. 16, 32, 64 and 128 columns.
__device__ __forceinline__ void wgmma_shared_f8(float (&d)[8], u64_t a, u64_t b, bool accumulates) {
    WGMMA_SHARED("n16k32", "e4m3", WGMMA_NAMES_8, "%8, %9", "%10", "", WGMMA_SUMS_8(0));
}
__device__ __forceinline__ void wgmma_shared_f8(float (&d)[16], u64_t a, u64_t b, bool accumulates) {
    WGMMA_SHARED("n32k32", "e4m3", WGMMA_NAMES_16, "%16, %17", "%18", "", WGMMA_SUMS_16);
}
__device__ __forceinline__ void wgmma_shared_f8(float (&d)[32], u64_t a, u64_t b, bool accumulates) {
    WGMMA_SHARED("n64k32", "e4m3", WGMMA_NAMES_32, "%32, %33", "%34", "", WGMMA_SUMS_32(0));
}
__device__ __forceinline__ void wgmma_shared_f8(float (&d)[64], u64_t a, u64_t b, bool accumulates) {
    WGMMA_SHARED("n128k32", "e4m3", WGMMA_NAMES_64, "%64, %65", "%66", "", WGMMA_SUMS_64);
}
// The same of either element, bf16 or e4m3.
template <bool IS_F8>
__device__ __forceinline__ void wgmma_shared(float (&d)[64], u64_t a, u64_t b, bool accumulates) {
    if constexpr (IS_F8) {
        wgmma_shared_f8(d, a, b, accumulates);
    } else {
        WGMMA_SHARED("n128k16", "bf16", WGMMA_NAMES_64, "%64, %65", "%66", ", 0, 0", WGMMA_SUMS_64);
    }
}

// The left operand from registers, as `mma`'s lies in the 16 rows of each warp, the right one MN-major; elements bf16 or f16. Adds
// to what `d` holds.
template <bool IS_F16> __device__ __forceinline__ void wgmma_registers(float (&d)[64], const u32_t (&a)[4], u64_t b) {
    if constexpr (IS_F16) {
        WGMMA_REGISTERS("f16");
    } else {
        WGMMA_REGISTERS("bf16");
    }
}
