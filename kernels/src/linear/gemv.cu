// out[i, j] = sum_k x[i, k] * weight[j, k] + bias[j] for at most eight rows of x, bf16 with float32 sums.
//
// Weights are read once, at the speed of memory; all the rest is arranged around that. The products are made by the
// tensor cores, so that eight rows of x cost what one does: x is the A of m16n8k16 (its upper eight rows stay zero), eight
// rows of weight are the B. Which k of a fragment is which doesn't matter as long as A and B agree, so a lane takes eight
// consecutive k, 16 bytes, of its row of weight and of x, and feeds them to two instructions: no shuffles, no shared
// memory, and a row's four lanes read 64 bytes.
//
// Grid: a block for each GROUPS x 8 rows of weight, through all of up to three stacked parts. Block: WARPS warps; a slab
// of UNROLL x 32 columns goes to each in turn. A slab is loaded while the one before is multiplied: a warp has 4 KiB of
// weights in flight, a multiprocessor 64 KiB. x is read through the level-1 cache, where it stays, since weights pass by it.
// Shared memory: WARPS x GROUPS x 256 bytes for the warps' sums, added in their order: an output's bits depend on its row
// of x and its row of weight alone, not on m.
// Needs: k and the addresses of x and weight are multiples of 8 elements; m is 1 to 8. k = 0 sums nothing.
// Bound: bytes of weight at 4.5 TB/s on an H200 (4096 x 4096: 7.5 us). x adds m / (8 x GROUPS) of that from the caches.
// Registers: 92 to 98, no spills.
// Dropped: plain multiply-adds, which at eight rows take nine tenths of all issue slots; x in shared memory, which is
// read by as many bytes as from the cache, and costs a barrier and, at eight rows of 12288, more than there is; loads and
// products of one slab in one turn, where ptxas moved each load to its use and left one or two in flight.
#include "prelude.cuh"

#define ROWS (8 * GROUPS)
#define UNROLL (8 / GROUPS)
// Columns of one load of a warp: four lanes of eight.
#define CHUNK 32
#define SLAB (UNROLL * CHUNK)

// Sixteen bytes that are used once, or zeros.
__device__ __forceinline__ Vec<u32_t, 4> load_streamed(const bf16_t* p, bool is_inside) {
    Vec<u32_t, 4> v = {};
    asm volatile("{ .reg .pred inside; setp.ne.s32 inside, %5, 0;"
                 "@inside ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.at[0]), "+r"(v.at[1]), "+r"(v.at[2]), "+r"(v.at[3])
                 : "l"(p), "r"((int)is_inside));
    return v;
}

// Sixteen bytes that other blocks use too, or zeros.
__device__ __forceinline__ Vec<u32_t, 4> load_cached(const bf16_t* p, bool is_inside) {
    Vec<u32_t, 4> v = {};
    asm volatile("{ .reg .pred inside; setp.ne.s32 inside, %5, 0;"
                 "@inside ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.at[0]), "+r"(v.at[1]), "+r"(v.at[2]), "+r"(v.at[3])
                 : "l"(p), "r"((int)is_inside));
    return v;
}

// Adds a chunk's products. Two sums of each, so that its two instructions don't wait for one another.
__device__ __forceinline__ void multiply(float (&acc)[GROUPS][2][4], const Vec<u32_t, 4>& x,
                                         const Vec<u32_t, 4> (&w)[GROUPS]) {
    const u32_t first[4] = {x.at[0], 0, x.at[1], 0}, second[4] = {x.at[2], 0, x.at[3], 0};
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        mma_bf16(acc[group][0], first, w[group].at[0], w[group].at[1]);
        mma_bf16(acc[group][1], second, w[group].at[2], w[group].at[3]);
    }
}

// A part's rows of weight are the columns of `out` from its offset on. Parts that there aren't have no rows.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 16 / WARPS)
gemv(const bf16_t* __restrict__ x, const bf16_t* __restrict__ weight0, const bf16_t* __restrict__ weight1,
     const bf16_t* __restrict__ weight2, const OUT_T* __restrict__ bias, OUT_T* __restrict__ out, int rows0, int rows1,
     int rows2, int m, int k, int out_stride) {
    __shared__ float sums[WARPS][GROUPS][8][8];

    // The block's part, its first row there, and the column of `out` that the part begins at.
    int tile = blockIdx.x, part_column = 0, num_rows = rows0;
    const bf16_t* weight = weight0;
    const int tiles0 = (rows0 + ROWS - 1) / ROWS, tiles1 = (rows1 + ROWS - 1) / ROWS;
    if (tile >= tiles0 + tiles1) {
        tile -= tiles0 + tiles1, part_column = rows0 + rows1, num_rows = rows2, weight = weight2;
    } else if (tile >= tiles0) {
        tile -= tiles0, part_column = rows0, num_rows = rows1, weight = weight1;
    }
    const int first_row = tile * ROWS;

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // The fragments' row of x, which is also the row of weight within a group, and the lane's first column of a chunk.
    const int row = lane >> 2, column = (lane & 3) * 8;
    const int from = warp * SLAB + column;
    // Rows beyond the last, of either, repeat it: what comes of them is dropped.
    const bf16_t* next_x = x + (size_t)min(row, m - 1) * k + from;
    const bf16_t* next_w[GROUPS];
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        next_w[group] = weight + (size_t)min(first_row + group * 8 + row, num_rows - 1) * k + from;
    }

    // What is loaded for a slab is multiplied one turn later: loads that could be moved down to their use would be, by a
    // compiler that saves registers.
    Vec<u32_t, 4> w[UNROLL][GROUPS], a[UNROLL];
    float acc[GROUPS][2][4] = {};
    // Columns from the lane's next one to the end.
    int left = k - from;
    auto load = [&](int i) {
        a[i] = load_cached(next_x + i * CHUNK, i * CHUNK < left);
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            w[i][group] = load_streamed(next_w[group] + i * CHUNK, i * CHUNK < left);
        }
    };
#pragma unroll
    for (int i = 0; i < UNROLL; i++) load(i);
    // By the warp's first column, so that its lanes go together.
#pragma unroll 1
    for (int slab = warp * SLAB; slab < k; slab += WARPS * SLAB) {
        next_x += WARPS * SLAB, left -= WARPS * SLAB;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) next_w[group] += WARPS * SLAB;
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            multiply(acc, a[i], w[i]);
            load(i);
        }
    }

    // A lane holds two neighbouring columns of its row of x.
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        sums[warp][group][row][(lane & 3) * 2] = acc[group][0][0] + acc[group][1][0];
        sums[warp][group][row][(lane & 3) * 2 + 1] = acc[group][0][1] + acc[group][1][1];
    }
    __syncthreads();

    for (int i = threadIdx.x; i < m * ROWS; i += 32 * WARPS) {
        const int x_row_index = i / ROWS, tile_row = i % ROWS, weight_row = first_row + tile_row;
        if (weight_row >= num_rows) continue;
        float sum = 0.0f;
#pragma unroll
        for (int i_warp = 0; i_warp < WARPS; i_warp++) sum += sums[i_warp][tile_row >> 3][x_row_index][tile_row & 7];
        const int out_column = part_column + weight_row;
        if (bias) sum += to_f32(bias[out_column]);
        out[(size_t)x_row_index * out_stride + out_column] = from_f32<OUT_T>(sum);
    }
}
