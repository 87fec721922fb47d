// out[i, j] = sum_k x[i, k] * weight[j, k] + bias[j] for at most eight rows of x, bf16 or FP8 (IS_F8) with float32 sums.
// With SCALED, x and weight have a scale for each 1 x 128 and 128 x 128 elements.
//
// Weights are read once, at the speed of memory; all the rest is arranged around that. The products are made by the
// tensor cores, so that eight rows of x cost what one does: x is the A of m16n8k16 (its upper eight rows stay zero), eight
// rows of weight are the B. Which k of a fragment is which doesn't matter as long as A and B agree, so a lane takes eight
// consecutive k, 16 bytes, of its row of weight and of x, and feeds them to two instructions: no shuffles, no shared
// memory, and a row's four lanes read 64 bytes. Of FP8 16 bytes are sixteen k and, widened to f16, four instructions.
//
// Grid: as many blocks as run at once, or fewer. A block takes tile after tile of GROUPS x 8 rows of weight, through all of up to
// three stacked parts. Block: WARPS warps; a slab of UNROLL x 32 columns goes to each in turn. A slab is loaded while the one
// before is multiplied, across tiles as well: a warp has 4 KiB of weights in flight, a multiprocessor 64 KiB. A block's first slab
// comes while the kernel before ends. x is read through the level-1 cache, where it stays, since weights pass by it.
// Shared memory: WARPS x GROUPS x 256 bytes for the warps' sums, added in their order: an output's bits depend on its row
// of x and its row of weight alone, not on m.
// Needs: k and the addresses of x and weight are multiples of 16 bytes; m is 1 to 8. k = 0 sums nothing.
// Bound: bytes of weight at 4.5 TB/s on an H200 (4096 x 4096: 7.5 us). x adds m / (8 x GROUPS) of that from the caches.
// Registers: 102 to 128, no spills.
// Dropped: plain multiply-adds, which at eight rows take nine tenths of all issue slots; x in shared memory, which is
// read by as many bytes as from the cache, and costs a barrier and, at eight rows of 12288, more than there is; loads and
// products of one slab in one turn, where ptxas moved each load to its use and left one or two in flight.
#include "prelude.cuh"
#include "weight_parts.cuh"

#define ROWS (8 * GROUPS)
// Scales take registers that loads in flight would have.
#define UNROLL ((SCALED ? 4 : 8) / GROUPS)
// Columns of one load of a lane, and of a warp: four lanes.
#define LANE (16 / (int)sizeof(W_T))
#define CHUNK (4 * LANE)
#define SLAB (UNROLL * CHUNK)

// Sixteen bytes that are used once, or zeros. Not by way of `ld.global.nc`, which ptxas moves past the wait for the kernel before.
__device__ __forceinline__ Vec<u32_t, 4> load_streamed(const W_T* p, bool is_inside) {
    Vec<u32_t, 4> v = {};
    asm volatile("{ .reg .pred inside; setp.ne.s32 inside, %5, 0;"
                 "@inside ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.at[0]), "+r"(v.at[1]), "+r"(v.at[2]), "+r"(v.at[3])
                 : "l"(p), "r"((int)is_inside));
    return v;
}

// Sixteen bytes that other blocks use too, or zeros.
__device__ __forceinline__ Vec<u32_t, 4> load_cached(const W_T* p, bool is_inside) {
    Vec<u32_t, 4> v = {};
    asm volatile("{ .reg .pred inside; setp.ne.s32 inside, %5, 0;"
                 "@inside ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.at[0]), "+r"(v.at[1]), "+r"(v.at[2]), "+r"(v.at[3])
                 : "l"(p), "r"((int)is_inside));
    return v;
}

// Adds a chunk's products. Two sums of each, so that instructions don't wait for one another.
#if IS_F8
__device__ __forceinline__ void multiply(float (&acc)[GROUPS][2][4], const Vec<u32_t, 4>& x,
                                         const Vec<u32_t, 4> (&w)[GROUPS]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32_t a[4] = {};
        widen_f8x4(x.at[i], a[0], a[2]);
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            u32_t low, high;
            widen_f8x4(w[group].at[i], low, high);
            mma_f16(acc[group][i & 1], a, low, high);
        }
    }
}
#else
__device__ __forceinline__ void multiply(float (&acc)[GROUPS][2][4], const Vec<u32_t, 4>& x,
                                         const Vec<u32_t, 4> (&w)[GROUPS]) {
    const u32_t first[4] = {x.at[0], 0, x.at[1], 0}, second[4] = {x.at[2], 0, x.at[3], 0};
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        mma_bf16(acc[group][0], first, w[group].at[0], w[group].at[1]);
        mma_bf16(acc[group][1], second, w[group].at[2], w[group].at[3]);
    }
}
#endif

#if SCALED
// Chunks of a block: their sums are scaled before they are added.
#define CHUNKS_OF_BLOCK (128 / CHUNK)

__device__ __forceinline__ void add_scaled(float (&acc)[GROUPS][2][4], float (&sums)[GROUPS][2][4], float scale) {
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            acc[group][0][i] = fmaf(scale, sums[group][0][i] + sums[group][1][i], acc[group][0][i]);
            sums[group][0][i] = sums[group][1][i] = 0.0f;
        }
    }
}
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, 16 / WARPS)
gemv(const W_T* x, const W_T* __restrict__ weight0, const W_T* __restrict__ weight1,
     const W_T* __restrict__ weight2, const OUT_T* __restrict__ bias, OUT_T* out, int rows0, int rows1,
     int rows2, int m, int k, int out_stride, const f32_t* x_scales, const f32_t* __restrict__ scales0,
     const f32_t* __restrict__ scales1, const f32_t* __restrict__ scales2, int first_x, int x_scales_stride) {
    __shared__ float sums[WARPS][GROUPS][8][8];
    // A part's rows of weight are the columns of `out` from its own on.
    const WeightParts<const W_T*, ROWS> parts = {
        {weight0, weight1, weight2}, {scales0, scales1, scales2}, {rows0, rows1, rows2}};
    const int num_tiles = parts.num_tiles();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // The fragments' row of x, which is also the row of weight within a group, and the lane's first column of a chunk.
    const int row = lane >> 2, from = warp * SLAB + (lane & 3) * LANE;
    // Rows beyond the last, of either, repeat it: what comes of them is dropped.
    const W_T* const own_x = x + (size_t)min(row, m - 1) * k + from;

    // What is loaded for a slab is multiplied one turn later, be it of the next tile: loads that could be moved down to their use
    // would be, by a compiler that saves registers.
    Vec<u32_t, 4> w[UNROLL][GROUPS];
#if !IS_F8
    Vec<u32_t, 4> a[UNROLL];
#endif
    // The slab that is loaded next: its tile, the warp's first column, the lane's weights, and the columns from there to the end.
    int load_tile = blockIdx.x, load_slab = warp * SLAB, left = k - from;
    const W_T* next_w[GROUPS];
    const auto begin_tile = [&] {
        const auto tile = parts.tile(load_tile);
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            next_w[group] = tile.weight + (size_t)min(tile.first_row + group * 8 + row, tile.num_rows - 1) * k + from;
        }
    };
    const auto load_x = [&](int i) {
#if !IS_F8
        a[i] = load_cached(own_x + (load_slab - warp * SLAB) + i * CHUNK, i * CHUNK < left);
#endif
    };
    const auto load_weights = [&](int i) {
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            w[i][group] = load_streamed(next_w[group] + i * CHUNK, i * CHUNK < left);
        }
    };
    const auto go_on = [&] {
        load_slab += WARPS * SLAB, left -= WARPS * SLAB;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) next_w[group] += WARPS * SLAB;
        if (load_slab < k) return;
        load_tile += gridDim.x, load_slab = warp * SLAB, left = 0;
        if (load_tile >= num_tiles) return;
        left = k - from;
        begin_tile();
    };
    begin_tile();
#pragma unroll
    for (int i = 0; i < UNROLL; i++) load_weights(i);
    follow_the_kernel_before();
#pragma unroll
    for (int i = 0; i < UNROLL; i++) load_x(i);
    go_on();

    for (int index = blockIdx.x; index < num_tiles; index += gridDim.x) {
        const auto tile = parts.tile(index);
        float acc[GROUPS][2][4] = {};
#if SCALED
        const int x_row = first_x + min(row, m - 1), num_blocks = (k + 127) / 128;
        // The groups' rows lie in one block.
        const f32_t* w_scales = tile.scales + (size_t)(tile.first_row / 128) * num_blocks;
        float sums_of_block[GROUPS][2][4] = {};
#endif
        // By the warp's first column, so that its lanes go together.
#pragma unroll 1
        for (int slab = warp * SLAB; slab < k; slab += WARPS * SLAB) {
#pragma unroll
            for (int i = 0; i < UNROLL; i++) {
#if IS_F8
                // Widening takes the registers that activations loaded ahead would need; they come from the level-1 cache.
                const int at = slab - warp * SLAB + i * CHUNK;
                const Vec<u32_t, 4> own = load_cached(own_x + at, at < k - from);
#else
                const Vec<u32_t, 4>& own = a[i];
#endif
#if SCALED
                multiply(sums_of_block, own, w[i]);
                if (i % CHUNKS_OF_BLOCK == CHUNKS_OF_BLOCK - 1) {
                    // Columns beyond the last are zeros, whatever they are multiplied by.
                    const int block = min((slab + i * CHUNK) / 128, num_blocks - 1);
                    add_scaled(acc, sums_of_block, x_scales[block * x_scales_stride + x_row] * w_scales[block]);
                }
#else
                multiply(acc, own, w[i]);
#endif
                load_x(i);
                load_weights(i);
            }
            go_on();
        }

        // The last tile's sums have been read.
        __syncthreads();
        // A lane holds two neighbouring columns of its row of x.
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            sums[warp][group][row][(lane & 3) * 2] = acc[group][0][0] + acc[group][1][0];
            sums[warp][group][row][(lane & 3) * 2 + 1] = acc[group][0][1] + acc[group][1][1];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < m * ROWS; i += 32 * WARPS) {
            const int x_row_index = i / ROWS, tile_row = i % ROWS, weight_row = tile.first_row + tile_row;
            if (weight_row >= tile.num_rows) continue;
            float sum = 0.0f;
#pragma unroll
            for (int i_warp = 0; i_warp < WARPS; i_warp++) {
                sum += sums[i_warp][tile_row >> 3][x_row_index][tile_row & 7];
            }
            const int out_column = tile.part_column + weight_row;
            if (bias) sum += to_f32(bias[out_column]);
            out[(size_t)x_row_index * out_stride + out_column] = from_f32<OUT_T>(sum);
        }
    }
}
