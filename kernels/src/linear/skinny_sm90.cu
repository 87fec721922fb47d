// out[i, j] = sum_k x[i, k] * weight[j, k] for a few dozen rows of x, FP8 by Hopper's products of warpgroups. With SCALED, x and
// weight have a scale for each 1 x 128 and 128 x 128 elements.
//
// Weights are read once, at the speed of memory, as in gemv.cu, whose place this takes where there are more rows than its instruction
// has, or its blocks have unlike shares of long sums. Rows of weight are the rows of wgmma's products and rows of x their columns: the
// fewer there are, the smaller the products.
//
// Grid: a cluster of `split` blocks for each tile of 64 rows of weight, which share its columns, in blocks of 128 as scales have them.
// All run at once if they can, several to a multiprocessor. Block: a warpgroup that multiplies, and a warp that brings weights and x
// into a ring of `stages` places. The first places' weights come while the kernel before ends. Then each block has float32 sums of
// its columns in its shared memory, and adds up its share of the tile's from all of them, in the order of columns: an output's bits
// depend on its row of x, its row of weight, k and split alone.
//
// Needs: k, each part's number of rows and out_stride are multiples of 16, all addresses of 16 bytes, x_scales_stride of 4; m is 1 to
// X_ROWS, and the rows of x's box. Columns beyond the last, and rows of weight, are zeros by their maps. Rows of x beyond m aren't
// brought (a box that ends outside takes longer than a whole one): whatever lies there is multiplied, and not stored.
// Shared memory: `stages` places of STAGE_BYTES, as many rows of scales, and a KiB to begin at a multiple of 1024 bytes.
// Bound: bytes of weight at 4.5 TB/s on an H200. x adds m / 64 of that from the level-2 cache.
// Numerics: without scales, sums stay in the tensor cores, which keep some 14 bits; with scales, those of 128 columns do.
// Registers: 38 to 100, no spills; 157 for 128 rows of x, which are there with scales alone: without, cuBLASLt is quicker.
// Dropped: 128 rows of weight to a tile (o, 4096 x 4096, took 7.0 us at 32 rows of x, 6.5 with 64: x is read half as often, but the
// tiles don't come out even); sums of 128 columns in two parts, of which one is scaled while the other is multiplied, and x that one
// block of two or four brings for all of them, which gained nothing at all; 128 rows of x to two warpgroups, which gained 6 % for o,
// lost 4 % for qkv and needs a ring of its own for 64.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "cluster.cuh"
#include "hopper.cuh"
#include "weight_parts.cuh"

#define COLUMNS 128
#define CONSUMERS 128
#define THREADS (CONSUMERS + 32)
#define WEIGHT_BYTES (W_ROWS * COLUMNS)
#define STAGE_BYTES (WEIGHT_BYTES + X_ROWS * COLUMNS)
// What a lane has of a product.
#define SUMS (X_ROWS / 2)
// From a row of sums to the next: lanes write without conflicts. They lie where the ring was, of which two places suffice.
#define SUMS_STRIDE (W_ROWS + 4)
static_assert(2 * STAGE_BYTES >= X_ROWS * SUMS_STRIDE * 4, "sums fit");

extern "C" __global__ void __launch_bounds__(THREADS, MAX_BLOCKS_PER_SM)
skinny(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight0,
       const __grid_constant__ TensorMap weight1, const __grid_constant__ TensorMap weight2, OUT_T* out, int rows0, int rows1,
       int rows2, int m, int k, int out_stride, const f32_t* x_scales, const f32_t* __restrict__ scales0,
       const f32_t* __restrict__ scales1, const f32_t* __restrict__ scales2, int x_scales_stride, int x_scale_bytes, int stages, int split) {
    extern __shared__ u8_t shared[];
    __shared__ u64_t full[MAX_STAGES], empty[MAX_STAGES];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int rank = blockIdx.x % split, index = blockIdx.x / split;
    const int num_blocks = (k + COLUMNS - 1) / COLUMNS;
    const int first = num_blocks * rank / split, num = num_blocks * (rank + 1) / split - first;
    const WeightParts<const TensorMap*, W_ROWS> parts = {
        {&weight0, &weight1, &weight2}, {scales0, scales1, scales2}, {rows0, rows1, rows2}};
    const auto tile = parts.tile(index);

    const u32_t ring = (shared_address(shared) + 1023) & ~1023u;
    const auto weights_at = [&](int place) { return ring + place * STAGE_BYTES; };
    const auto x_at = [&](int place) { return weights_at(place) + WEIGHT_BYTES; };
    [[maybe_unused]] const auto scales_at = [&](int place) { return weights_at(stages) + place * X_ROWS * 4; };
    const auto full_at = [&](int place) { return shared_address(&full[place]); };
    const auto empty_at = [&](int place) { return shared_address(&empty[place]); };
    u8_t* const ring_bytes = shared + (ring - shared_address(shared));

    const auto bring_weights = [&](int i, int place) {
        mbarrier_arrive_expect(full_at(place), WEIGHT_BYTES + m * COLUMNS + (SCALED ? x_scale_bytes : 0));
        copy_box_once(weights_at(place), *tile.weight, (first + i) * COLUMNS, tile.first_row, full_at(place));
    };
    const auto bring_x = [&](int i, int place) {
        copy_box(x_at(place), x, (first + i) * COLUMNS, 0, full_at(place));
#if SCALED
        copy_bulk(scales_at(place), x_scales + (size_t)(first + i) * x_scales_stride, x_scale_bytes, full_at(place));
#endif
    };
    const bool is_producer = warp == CONSUMERS / 32;
    const bool brings = is_producer && elect_one();
    const int num_early = min(stages, num);
    if (brings) {
        prefetch_map(*tile.weight);
        prefetch_map(x);
        for (int i = 0; i < stages; ++i) {
            mbarrier_init(full_at(i), 1);
            mbarrier_init(empty_at(i), CONSUMERS / 32);
        }
        mbarrier_init_fence();
        for (int i = 0; i < num_early; ++i) bring_weights(i, i);
    }
    __syncthreads();
    follow_the_kernel_before();

    int place = 0;
    u32_t parity = 0;
    const auto go_on = [&] {
        if (++place == stages) place = 0, parity ^= 1;
    };
    if (is_producer) {
        if (brings) {
            for (int i = 0; i < num_early; ++i) bring_x(i, i);
            for (int i = stages; i < num; ++i, go_on()) {
                mbarrier_wait(empty_at(place), parity);
                bring_weights(i, place);
                bring_x(i, place);
            }
        }
        __syncwarp();
    } else {
        float acc[SUMS] = {};
#if SCALED
        // A tile's rows lie in one block.
        const f32_t* const w_scales = tile.scales + (size_t)(tile.first_row / 128) * num_blocks + first;
        float next_scale = num > 0 ? w_scales[0] : 0.0f;
#else
        int place_before = 0;
#endif
        for (int i = 0; i < num; ++i, go_on()) {
            mbarrier_wait(full_at(place), parity);
            const u64_t a = descriptor_of(weights_at(place)), b = descriptor_of(x_at(place));
#if SCALED
            float sums[SUMS];
#else
            float(&sums)[SUMS] = acc;
#endif
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < COLUMNS / 32; ++step) {
                wgmma_shared_f8(sums, a + step * 2, b + step * 2, step > 0 || (!SCALED && i > 0));
            }
            wgmma_commit();
#if SCALED
            const float own_scale = next_scale;
            next_scale = w_scales[min(i + 1, num - 1)];
            wgmma_wait<0>();
            hold(sums);
            const u8_t* const of_x = ring_bytes + (scales_at(place) - ring) + (lane & 3) * 8;
#pragma unroll
            for (int j = 0; j < X_ROWS / 8; ++j) {
                const Vec<f32_t, 2> pair = *reinterpret_cast<const Vec<f32_t, 2>*>(of_x + j * 32);
#pragma unroll
                for (int at = 0; at < 4; ++at) {
                    acc[j * 4 + at] = fmaf(pair.at[at & 1] * own_scale, sums[j * 4 + at], acc[j * 4 + at]);
                }
            }
            __syncwarp();
            if (lane == 0) mbarrier_arrive(empty_at(place));
#else
            wgmma_wait<1>();
            if (i > 0 && lane == 0) mbarrier_arrive(empty_at(place_before));
            place_before = place;
#endif
        }
        wgmma_wait<0>();
        hold(acc);
        // All places have been read, by every warp. Sums are laid down as [row of x][row of weight].
        named_sync(1, CONSUMERS);
        f32_t* const sums = reinterpret_cast<f32_t*>(ring_bytes) + (lane & 3) * 2 * SUMS_STRIDE + warp * 16 + (lane >> 2);
#pragma unroll
        for (int j = 0; j < X_ROWS / 8; ++j) {
#pragma unroll
            for (int at = 0; at < 4; ++at) sums[(j * 8 + (at & 1)) * SUMS_STRIDE + (at >> 1) * 8] = acc[j * 4 + at];
        }
    }
    if (split == 1) {
        __syncthreads();
    } else {
        cluster_arrive_release();
        cluster_wait();
    }
    // Four neighbouring columns of `out` to a thread.
    for (int i = rank * THREADS + threadIdx.x; i < m * (W_ROWS / 4); i += split * THREADS) {
        const int row = i / (W_ROWS / 4), column = i % (W_ROWS / 4) * 4;
        if (tile.first_row + column >= tile.num_rows) continue;
        Vec<f32_t, 4> others[MAX_SPLIT];
#pragma unroll
        for (int from = 0; from < MAX_SPLIT; ++from) {
            if (from < split) others[from] = load_of_block(ring + (row * SUMS_STRIDE + column) * 4, from);
        }
        Pack<OUT_T, 4> pack;
#pragma unroll
        for (int at = 0; at < 4; ++at) {
            float sum = others[0].at[at];
#pragma unroll
            for (int from = 1; from < MAX_SPLIT; ++from) {
                if (from < split) sum += others[from].at[at];
            }
            pack.set(at, sum);
        }
        store_pack(out + (size_t)row * out_stride + tile.part_column + tile.first_row + column, pack);
    }
    // Shared memory stays until all have read it.
    if (split > 1) {
        cluster_arrive();
        cluster_wait();
    }
}
#else
// Other cards have gemv.cu and cuBLASLt; this keeps the list of kernels the same for all. Where it is launched in spite of that, it fails.
extern "C" __global__ void skinny() { asm volatile("trap;"); }
#endif
