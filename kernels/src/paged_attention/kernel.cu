// paged_attention: causal attention of a flat batch over the paged cache. Row i of a sequence with l rows and a context
// of c keys sees the keys j < c - l + i + 1; with g = h / group,
//   out[i, h] = sum_j softmax_j(scale * q[i, h] . K[j, g]) * V[j, g].
// q, out [num_rows, num_heads, HEAD_DIM] bf16, caches [num_blocks, num_kv_heads, PAGE, HEAD_DIM] bf16 or FP8
// (kv_fragments.cuh), whose scales are part of the scores' factor and of what sums are divided by.
//
// Mapping: a fixed grid of CTAS_PER_SM blocks per SM takes the items of the list that work_list.cu wrote, so the grid
// does not depend on the batch. An item is a tile of packed rows (row * group + head in group, so that the heads of a
// group share their keys) of one sequence, a range of its keys, and, times num_kv_heads, a key-value head. The list has
// two queues, each with its longest items first: tiles of TILE_ROWS rows, bound by arithmetic, and tiles of 16, bound
// by memory. The first half of the grid begins with the first queue and the other half with the second, so that an SM
// has work of both kinds where a step has. A block's first item follows from its index; later ones from a counter.
//   prefill: 4 warps of 32 packed rows (two m16 tiles, so that a fragment of K or V serves two products: with 16 rows
//     the shared memory would be the bound). Keys come in blocks of BLOCK_N, double-buffered.
//   decode: 16 packed rows; the warps take turns at tiles of DECODE_KEYS keys, each through a ring of its own with no
//     block-wide barrier, and are merged at the end.
// A tile whose keys are split over items leaves float32 sums, maxima and totals; the last to arrive merges them in the
// splits' order.
//
// Shared memory: max(queries + 2 stages of keys and values, 4 rings of DECODE_STAGES, 32 KiB), 96 KiB for heads of 128;
// 16-byte chunks are swizzled (or rows padded to an odd number of them), so that ldmatrix meets no bank twice.
// Bound: decode by the bytes of keys and values, prefill by 4 * HEAD_DIM FLOPs per row, head and key seen.
// Numerics: float32 scores and sums, 2^x, weights rounded to bf16 for the product with V; the running maximum is
// raised only when it is exceeded by 2^LAZY, which spares most rescalings.
// From sm_100 on the assembler finds no registers for blocks of 64 keys of bf16 beside the rows' way out; half of them take half of
// the shared memory that the launch gives, and make the same sums in another order.
#if __CUDA_ARCH__ >= 1000 && BLOCK_N == 64
#undef BLOCK_N
#define BLOCK_N 32
#endif
#include "attention.cuh"
#include "paged_attention.cuh"

// A maximum is raised when it is exceeded by 2^LAZY: weights and sums stay far within float32 and bf16.
#define LAZY 8.0f

// ---- one step of the online softmax, for a warp's 16 rows and N * 8 keys ----

struct Rows {
    float max[2];    // of scale * score, at most 2^LAZY too small
    float total[2];  // this lane's share
};

// Scores of keys that a row doesn't see don't count; `row` and `key` are those of the first score.
template <int N>
__device__ __forceinline__ void mask(const Operands& o, const Item& item, int row, int key, float (&s)[N][4]) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int num_seen = limit_of(o, item, row + half * 8 + lane / 4) - key - (lane & 3) * 2;
#pragma unroll
        for (int n = 0; n < N; ++n) {
            if (n * 8 >= num_seen) s[n][half * 2] = -INFINITY_F;
            if (n * 8 + 1 >= num_seen) s[n][half * 2 + 1] = -INFINITY_F;
        }
    }
}

// Scores become weights, ready for the product with V, and sums are rescaled where a maximum rises.
template <int N>
__device__ __forceinline__ void softmax(float (&s)[N][4], float scale, Rows& rows, float (&sums)[K_STEPS * 2][4],
                                        u32_t (&p)[N / 2][4]) {
    float rescale[2];
    bool is_raised = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top = fmaxf(s[0][half * 2], s[0][half * 2 + 1]);
#pragma unroll
        for (int n = 1; n < N; ++n) top = fmaxf(top, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
        top = quad_max(top) * scale;
        rescale[half] = 1.0f;
        // Of two infinities below, neither is above the other.
        if (top > rows.max[half] + LAZY) {
            rescale[half] = ex2(rows.max[half] - top);
            rows.max[half] = top;
            is_raised = true;
        }
    }
    if (__any_sync(0xffffffffu, is_raised)) {
#pragma unroll
        for (int n = 0; n < K_STEPS * 2; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[n][i] *= rescale[i >> 1];
        }
        rows.total[0] *= rescale[0];
        rows.total[1] *= rescale[1];
    }
    // A row that has seen no key yet keeps weights of 0.
    const float base[2] = {rows.max[0] == -INFINITY_F ? 0.0f : -rows.max[0],
                           rows.max[1] == -INFINITY_F ? 0.0f : -rows.max[1]};
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = ex2(fmaf(s[n][i], scale, base[i >> 1]));
        p[n / 2][n % 2 * 2] = pack_weights(s[n][0], s[n][1]);
        p[n / 2][n % 2 * 2 + 1] = pack_weights(s[n][2], s[n][3]);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
        rows.total[0] += s[n][0];
        rows.total[0] += s[n][1];
        rows.total[1] += s[n][2];
        rows.total[1] += s[n][3];
    }
}

// ---- prefill: TILE_ROWS packed rows ----

// One block of keys for a warp's 32 rows.
__device__ __forceinline__ void prefill_block(const Operands& o, const Item& item, u32_t q_base, u32_t keys,
                                              u32_t values, int key, bool is_masked, Rows (&rows)[2],
                                              float (&sums)[2][K_STEPS * 2][4]) {
    const u32_t k_base = lane_base<KvRows>(keys, false), v_base = lane_base<KvRows>(values, true);
    float s[2][BLOCK_N / 8][4] = {};
#pragma unroll
    for (int step = 0; step < K_STEPS / SUBSTEPS; ++step) {
        u32_t a[SUBSTEPS][2][4];
#pragma unroll
        for (int sub = 0; sub < SUBSTEPS; ++sub) {
            ldmatrix_x4(a[sub][0], QRows::fragment(q_base, 0, step * SUBSTEPS + sub));
            ldmatrix_x4(a[sub][1], QRows::fragment(q_base, 16, step * SUBSTEPS + sub));
        }
#pragma unroll
        for (int n = 0; n < BLOCK_N / 16; ++n) {
            u32_t b[SUBSTEPS][4];
            load_keys_fragment(b, KvRows::fragment(k_base, n * 16, step));
#pragma unroll
            for (int sub = 0; sub < SUBSTEPS; ++sub) {
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    mma_kv(s[m][n * 2], a[sub][m], b[sub][0], b[sub][1]);
                    mma_kv(s[m][n * 2 + 1], a[sub][m], b[sub][2], b[sub][3]);
                }
            }
        }
    }
    if (is_masked) {
        mask(o, item, threadIdx.x & ~31, key, s[0]);
        mask(o, item, (threadIdx.x & ~31) + 16, key, s[1]);
    }
    u32_t p[2][BLOCK_N / 16][4];
    softmax(s[0], o.scale, rows[0], sums[0], p[0]);
    softmax(s[1], o.scale, rows[1], sums[1], p[1]);
#pragma unroll
    for (int step = 0; step < BLOCK_N / 16; ++step) {
#pragma unroll
        for (int n = 0; n < K_STEPS; n += SUBSTEPS) {
            u32_t b[SUBSTEPS][4];
            load_values_fragment(b, KvRows::fragment(v_base, step * 16, n / SUBSTEPS));
#pragma unroll
            for (int sub = 0; sub < SUBSTEPS; ++sub) {
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    mma_kv(sums[m][(n + sub) * 2], p[m][step], b[sub][0], b[sub][1]);
                    mma_kv(sums[m][(n + sub) * 2 + 1], p[m][step], b[sub][2], b[sub][3]);
                }
            }
        }
    }
}

// A warp's 32 rows, through its own rows of the queries' tile, so that they leave as whole rows.
template <bool IS_F8>
__device__ __forceinline__ void store_rows(const Operands& o, const Item& item, int head, u8_t* queries,
                                           const Rows (&rows)[2], const float (&sums)[2][K_STEPS * 2][4]) {
#if __CUDA_ARCH__ >= 1000
    const int lane = fleeting_thread() & 31, first = fleeting_thread() & ~31;
#else
    const int lane = threadIdx.x & 31, first = threadIdx.x & ~31;
#endif
    __syncwarp();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first + m * 16 + half * 8 + lane / 4;
            const auto sum = [&](int n) { return columns_of(sums[m], n, half); };
            const float total = quad_sum(rows[m].total[half]);
            const float factor = factor_of_row<IS_F8, HEAD_DIM / 8>(o, item, head, row, total, sum);
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; ++n) {
                stage_columns<IS_F8, QRows>(queries, row, column_of(n), sum(n).x * factor, sum(n).y * factor);
            }
        }
    }
    __syncwarp();
    store_staged<IS_F8, QRows, 32>(o, item, head, queries, first);
}

// A warp's 32 rows of one split.
__device__ __forceinline__ void store_partial(const Operands& o, const Item& item, int head, const Rows (&rows)[2],
                                              const float (&sums)[2][K_STEPS * 2][4]) {
    const int lane = threadIdx.x & 31, slot = slot_of(item, head, item.split);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float total = quad_sum(rows[m].total[half]);
            const int row = (threadIdx.x & ~31) + m * 16 + half * 8 + lane / 4;
            if (row >= item.count) continue;
            if ((lane & 3) == 0) *total_of(o, slot, row) = make_float2(rows[m].max[half], total);
            float* to = sums_of(o, slot, row);
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; ++n) {
                *reinterpret_cast<float2*>(to + column_of(n)) = columns_of(sums[m], n, half);
            }
        }
    }
}

__device__ __forceinline__ void load_block(const Operands& o, const Item& item, int head,
                                           const int (&blocks)[BLOCK_N / 32], int key, u32_t stage) {
    const u32_t thread = fleeting_thread();
#pragma unroll
    for (int i = 0; i < BLOCK_N / 32; ++i) {
        const int block = blocks[i] < o.num_blocks && key + i * 32 < item.end ? blocks[i] : -1;
        load_keys<32, NUM_THREADS>(o, item, head, block, key + i * 32, thread, stage + KvRows::bytes(i * 32),
                                   stage + KvRows::bytes(BLOCK_N + i * 32));
    }
}

__device__ __forceinline__ void prefill(const Operands& o, Turn& turn, u8_t* shared) {
    const Item& item = turn.now.item;
    const int& head = turn.now.head;
    const int first = threadIdx.x & ~31;
    const u32_t queries = shared_address(shared), stages = queries + QRows::bytes(TILE_ROWS);
    const int num_rows = (item.count + 31) / 32 * 32;
    for (int i = threadIdx.x; i < num_rows * Q_CHUNKS; i += NUM_THREADS) {
        const int row = i / Q_CHUNKS, chunk = i % Q_CHUNKS;
        const i64_t place = place_of(o, item, head, row);
        const bool is_valid = place >= 0 && chunk * 8 < HEAD_DIM;
        const bf16_t* from = o.q + (is_valid ? place + chunk * 8 : 0);
        if (!KV_F8 && o.flip == 0) {
            cp_async16(queries + QRows::offset(row, chunk), from, is_valid);
            continue;
        }
        int4 x = is_valid ? *reinterpret_cast<const int4*>(from) : int4{0, 0, 0, 0};
        x.x ^= o.flip, x.y ^= o.flip, x.z ^= o.flip, x.w ^= o.flip;
#if KV_F8
        // In the order of the keys: of eight pairs, 2t and 2t + 1 are words t and t + 4.
        u32_t* to = reinterpret_cast<u32_t*>(shared + QRows::offset(row, chunk & ~1));
        u32_t* to_second = reinterpret_cast<u32_t*>(shared + QRows::offset(row, chunk | 1));
        const int first = chunk % 2 * 2;
        to[first] = query_pair(x.x), to_second[first] = query_pair(x.y);
        to[first + 1] = query_pair(x.z), to_second[first + 1] = query_pair(x.w);
#else
        *reinterpret_cast<int4*>(shared + QRows::offset(row, chunk)) = x;
#endif
    }
    if (threadIdx.x < BLOCK_N / 32) turn.blocks[0][threadIdx.x] = block_of(o, item, item.begin + threadIdx.x * 32);
    fetch_blocks(o, item, item.begin + BLOCK_N, turn.blocks[1]);
    __syncthreads();
    load_block(o, item, head, turn.blocks[0], item.begin, stages);
    cp_async_commit();

    if ((threadIdx.x & 31) == 0) {
        turn.seen[first / 32] = {limit_of(o, item, first), first < item.count ? limit_of(o, item, first + 31) : 0};
    }
    Rows rows[2];
    float sums[2][K_STEPS * 2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        rows[i >> 1].max[i & 1] = -INFINITY_F;
        rows[i >> 1].total[i & 1] = 0.0f;
    }
    u32_t q_base = lane_base<QRows>(queries + QRows::bytes(first), true);
    for (int key = item.begin; key < item.end; key += BLOCK_N) {
        const bool is_odd = (key - item.begin) / BLOCK_N % 2 == 1;
        const u32_t stage = stages + (is_odd ? KvRows::bytes(2 * BLOCK_N) : 0);
        cp_async_wait<0>();
        // The block is in, and every warp is through with the one before.
        __syncthreads();
        if (key + BLOCK_N < item.end) {
            const u32_t other = stages + (is_odd ? 0 : KvRows::bytes(2 * BLOCK_N));
            load_block(o, item, head, turn.blocks[!is_odd], key + BLOCK_N, other);
            fetch_blocks(o, item, key + 2 * BLOCK_N, turn.blocks[is_odd]);
        }
        cp_async_commit();
        // As `fleeting_thread`: or each step's address would have a register of its own.
        asm volatile("" : "+r"(q_base));
        const Seen seen = turn.seen[first / 32];
        if (key < seen.most) {
            const bool is_masked = key + BLOCK_N > seen.fewest;
            prefill_block(o, item, q_base, stage, stage + KvRows::bytes(BLOCK_N), key, is_masked, rows, sums);
        }
    }
    // Of an item without keys, the first block is still on its way.
    cp_async_wait<0>();
    // Late, so that blocks that are through first take the next; while it waits for memory, the SM's other block runs.
    if (turn.is_counted && threadIdx.x == 0) take_next(o, false, turn.next);
    if (item.num_splits == 1) {
        if (first >= item.count) return;
        if (o.out.form == TO_FLOAT) {
            store_rows<false>(o, item, head, shared, rows, sums);
        } else {
            store_rows<true>(o, item, head, shared, rows, sums);
        }
        return;
    }
    store_partial(o, item, head, rows, sums);
    if (is_last_split(o, item, head)) merge_splits(o, item, head, reinterpret_cast<float*>(shared));
}

// ---- decode: 16 packed rows ----

// One tile of keys for a warp.
__device__ __forceinline__ void decode_tile(const Operands& o, const Item& item, const u32_t (&q)[K_STEPS][4],
                                            u32_t keys, u32_t values, int key, bool is_masked, Rows& rows,
                                            float (&sums)[K_STEPS * 2][4]) {
    const u32_t k_base = lane_base<KvRows>(keys, false), v_base = lane_base<KvRows>(values, true);
    float s[DECODE_KEYS / 8][4] = {};
#pragma unroll
    for (int step = 0; step < K_STEPS / SUBSTEPS; ++step) {
#pragma unroll
        for (int n = 0; n < DECODE_KEYS / 16; ++n) {
            u32_t b[SUBSTEPS][4];
            load_keys_fragment(b, KvRows::fragment(k_base, n * 16, step));
#pragma unroll
            for (int sub = 0; sub < SUBSTEPS; ++sub) {
                mma_kv(s[n * 2], q[step * SUBSTEPS + sub], b[sub][0], b[sub][1]);
                mma_kv(s[n * 2 + 1], q[step * SUBSTEPS + sub], b[sub][2], b[sub][3]);
            }
        }
    }
    if (is_masked) mask(o, item, 0, key, s);
    u32_t p[DECODE_KEYS / 16][4];
    softmax(s, o.scale, rows, sums, p);
#pragma unroll
    for (int step = 0; step < DECODE_KEYS / 16; ++step) {
#pragma unroll
        for (int n = 0; n < K_STEPS; n += SUBSTEPS) {
            u32_t b[SUBSTEPS][4];
            load_values_fragment(b, KvRows::fragment(v_base, step * 16, n / SUBSTEPS));
#pragma unroll
            for (int sub = 0; sub < SUBSTEPS; ++sub) {
                mma_kv(sums[(n + sub) * 2], p[step], b[sub][0], b[sub][1]);
                mma_kv(sums[(n + sub) * 2 + 1], p[step], b[sub][2], b[sub][3]);
            }
        }
    }
}

// Merges the warps' sums and stores the rows, or the split's.
__device__ __forceinline__ void store_decode(const Operands& o, const Item& item, int head, float* shared,
                                             const Rows& rows, const float (&sums)[K_STEPS * 2][4]) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float2* totals = reinterpret_cast<float2*>(shared + NUM_WARPS * 16 * SUM_STRIDE);  // [NUM_WARPS, 16]
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + half * 8 + lane / 4;
        const float total = quad_sum(rows.total[half]);
        if ((lane & 3) == 0) totals[row] = make_float2(rows.max[half], total);
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n) {
            *reinterpret_cast<float2*>(shared + row * SUM_STRIDE + column_of(n)) = columns_of(sums, n, half);
        }
    }
    __syncthreads();
    const int slot = slot_of(item, head, item.split);
    for (int i = threadIdx.x; i < item.count * (HEAD_DIM / 4); i += NUM_THREADS) {
        const int row = i / (HEAD_DIM / 4), column = i % (HEAD_DIM / 4) * 4;
        float top = -INFINITY_F, total = 0.0f;
#pragma unroll
        for (int w = 0; w < NUM_WARPS; ++w) top = fmaxf(top, totals[w * 16 + row].x);
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < NUM_WARPS; ++w) {
            const float2 of = totals[w * 16 + row];
            const float weight = of.x == -INFINITY_F ? 0.0f : ex2(of.x - top);
            const float4 x = *reinterpret_cast<const float4*>(shared + (w * 16 + row) * SUM_STRIDE + column);
            total = fmaf(weight, of.y, total);
            sum.x = fmaf(weight, x.x, sum.x);
            sum.y = fmaf(weight, x.y, sum.y);
            sum.z = fmaf(weight, x.z, sum.z);
            sum.w = fmaf(weight, x.w, sum.w);
        }
        if (item.num_splits > 1) {
            *reinterpret_cast<float4*>(sums_of(o, slot, row) + column) = sum;
            if (column == 0) *total_of(o, slot, row) = make_float2(top, total);
            continue;
        }
        const i64_t place = place_of(o, item, head, row);
        const float inverse = total > 0.0f ? V_SCALE(o) / total : 0.0f;
        if (place < 0) continue;
        store_columns(o, item, head, row, place, column,
                      make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse));
    }
}

__device__ __forceinline__ void decode(const Operands& o, Turn& turn, u8_t* shared) {
    const Item& item = turn.now.item;
    const int& head = turn.now.head;
    constexpr int STEP = NUM_WARPS * DECODE_KEYS, STAGE_BYTES = KvRows::bytes(2 * DECODE_KEYS);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32_t ring = shared_address(shared) + warp * DECODE_STAGES * STAGE_BYTES;
    const auto load = [&](int block, int key, u32_t stage) {
        load_keys<DECODE_KEYS, 32>(o, item, head, block, key, lane, stage, stage + KvRows::bytes(DECODE_KEYS));
    };
    const int first_key = item.begin + warp * DECODE_KEYS;
    int blocks[DECODE_STAGES];
#pragma unroll
    for (int i = 0; i < DECODE_STAGES; ++i) blocks[i] = block_of(o, item, first_key + i * STEP);
#pragma unroll
    for (int i = 0; i < DECODE_STAGES - 1; ++i) {
        const int key = first_key + i * STEP;
        if (key < item.end) load(blocks[i], key, ring + i * STAGE_BYTES);
        cp_async_commit();
    }
    int block = blocks[DECODE_STAGES - 1];  // of the next tile to load

    u32_t q[K_STEPS][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = half * 8 + lane / 4;
        const i64_t place = place_of(o, item, head, row);
#pragma unroll
        for (int i = 0; i < K_STEPS * 2; ++i) {
            // The element that the instruction's k of this pair stands for.
            const int t = lane & 3, at = KV_F8 ? i / 2 * 16 + t * 4 + i % 2 * 2 : i * 8 + t * 2;
            const bool is_valid = place >= 0 && at < HEAD_DIM;
            const bf16_t* from = o.q + (is_valid ? place + at : 0);
            q[i / 2][i % 2 * 2 + half] = is_valid ? query_pair(*reinterpret_cast<const u32_t*>(from) ^ o.flip) : 0;
        }
    }
    const int fewest = limit_of(o, item, 0);
    __syncwarp();

    Rows rows = {{-INFINITY_F, -INFINITY_F}, {0.0f, 0.0f}};
    float sums[K_STEPS * 2][4] = {};
    int stage = 0;
    for (int key = first_key; key < item.end; key += STEP) {
        cp_async_wait<DECODE_STAGES - 2>();
        // The tile is in, and every lane is through with the one before, whose stage is the next to fill.
        __syncwarp();
        const int ahead = key + (DECODE_STAGES - 1) * STEP, to = stage == 0 ? DECODE_STAGES - 1 : stage - 1;
        if (ahead < item.end) {
            load(block, ahead, ring + to * STAGE_BYTES);
            block = block_of(o, item, ahead + STEP);
        }
        cp_async_commit();
        const u32_t at = ring + stage * STAGE_BYTES;
        decode_tile(o, item, q, at, at + KvRows::bytes(DECODE_KEYS), key, key + DECODE_KEYS > fewest, rows, sums);
        stage = stage == DECODE_STAGES - 1 ? 0 : stage + 1;
    }
    // The rings become room for the warps' sums.
    __syncthreads();
    if (turn.is_counted && threadIdx.x == 0) take_next(o, false, turn.next);
    store_decode(o, item, head, reinterpret_cast<float*>(shared), rows, sums);
    if (item.num_splits > 1 && is_last_split(o, item, head)) {
        merge_splits(o, item, head, reinterpret_cast<float*>(shared));
    }
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, CTAS_PER_SM)
    paged_attention_bf16(const bf16_t* q, const KV_T* k_cache, const KV_T* v_cache, const i32_t* block_tables,
                         const i32_t* list, i32_t* counters, float* partials, void* out, f32_t* out_scales,
                         float out_factor, int out_stride, int out_form, int num_rows, int num_kv_heads, int group,
                         int num_blocks, int num_seqs, int max_blocks, int max_items, int max_slots, float scale_log2,
                         float v_scale, u32_t flip) {
    // Beside the kernel for chunks, that one has waited.
    if (TAKES_PREFILL) follow_the_kernel_before();
    extern __shared__ __align__(256) u8_t shared[];
    // In shared memory rather than in registers, which the tiles' sums fill.
    __shared__ Turn turn;
    const Operands o = {q, k_cache, v_cache, block_tables, list, counters, partials,
                        {out, {out_scales, out_factor, out_stride}, out_form},
                        num_rows, num_kv_heads, group, num_blocks, num_seqs, max_blocks, max_items, max_slots,
                        scale_log2, v_scale, flip};
    if (threadIdx.x == 0) {
        // With no more items than blocks each block has its one, and nothing is counted.
        turn.is_counted = (i64_t)(num_prefill_of(o) + list[NUM_DECODE]) * num_kv_heads > gridDim.x;
        take_next(o, true, turn.next);
    }
    while (true) {
        __syncthreads();
        if (threadIdx.x == 0) {
            turn.now = turn.next;
            turn.next.kind = NOTHING;
        }
        __syncthreads();
        if (turn.now.kind == NOTHING) break;
        if (TAKES_PREFILL && turn.now.kind == PREFILL) {
            prefill(o, turn, shared);
        } else {
            decode(o, turn, shared);
        }
    }
    if (turn.is_counted && threadIdx.x == 0) {
        __threadfence();
        if (atomicAdd(counters + NUM_DONE, 1) == gridDim.x - 1) {
            // prefill_sm90.cu, which sets its own back, may still run.
            if (TAKES_PREFILL) counters[TAKEN_PREFILL] = 0;
            counters[TAKEN_DECODE] = counters[NUM_DONE] = 0;
        }
    }
    // Whoever follows this kernel follows that one too.
    if (!TAKES_PREFILL) wait_for_the_kernel_before();
}
