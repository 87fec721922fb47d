// The prefill queue of paged_attention on Hopper, by products of warpgroups: what kernel.cu's header says of tiles of
// TILE_ROWS packed rows holds here, with
//   out[i, h] = v_scale * sum_j softmax_j(scale * q[i, h] . K[j, g]) * V[j, g].
// q, out [num_rows, num_heads, HEAD_DIM] bf16, HEAD_DIM 128; caches [num_blocks, num_kv_heads, PAGE, HEAD_DIM] of
// bf16 or, with KV_F8, of e4m3, whose scales are part of `scale` and `v_scale`. They come by the maps
// [num_blocks * num_kv_heads * PAGE, HEAD_DIM] with boxes of 32 rows by 128 bytes and the 128-byte swizzle.
//
// Mapping: a fixed grid of one block per SM takes items of the list's first queue, the longest first; the block's index
// says which is its first, a counter which are the later ones. Warpgroups:
//   two of consumers, each with 64 of an item's packed rows: scores of BLOCK_N keys are a product of shared memory with
//     shared memory, weights go from registers into the product with V. The scores of the next block of keys are begun
//     before the values of this one, so that the softmax runs beside a product; and the two take turns at beginning
//     theirs, so that one's softmax runs beside the other's products.
//   one of producers: a warp takes items and brings keys and values, the others queries, while the item before is still
//     worked on.
//   with KV_F8 one more, which widens values to f16, exactly; weights are f16 as well. Keys stay as they are: a query is
//     the sum of two rows of FP8 numbers, times a power of two, which holds a bf16 one.
// All of them meet at barriers in shared memory; items, queries, keys and values have two places each.
//
// Keys beyond an item's end may be NaN: their scores are replaced, their values zeros. Pages that it doesn't reach are
// boxes outside of the matrix, hence zeros; of a page that it reaches in part, bf16 values are copied row by row, by their
// address, and zeros come from widening FP8 ones.
//
// Shared memory: 192 KiB, two places each of queries, keys and values, with KV_F8 of values as the cache has them instead
// of half of the keys' place; and a KiB to begin at a multiple of 1024 bytes.
// Bound: 4 * HEAD_DIM FLOPs per row, head and key seen. A block of 128 keys is 2048 cycles of products per SM and 1024
// of 2^x, and the products read 160 KiB of shared memory, 1280 cycles; with KV_F8 widening takes about 500 more. Two FP8
// products with queries in two parts take as long as one of bf16.
// Numerics: as kernel.cu; but sums of FP8 products keep some 13 bits of the largest one.
// Tried: fewer keys in an item's last block within the loop, by a branch around products: the assembler then waits for
// each product before the next (it says so, C7511, C7515), so only the last sums, which are by themselves, are shorter.
// In one block of instructions with the softmax, the assembler moves the wait for the sums up before it; behind a
// branch, it moved the powers of 2 down after it where registers were few. Hence the place of the wait for keys in the
// loop, and what is asked in the vote.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BLOCK_N 128
#define NUM_WARPS 8
#define TAKES_PREFILL 1
#define SYNC_WARPS() named_sync(BARRIER_CONSUMERS, 256)
#include "attention.cuh"
#include "hopper.cuh"

// Named barriers: the two of the consumers' turns, all consumers, each consumer warpgroup.
enum {
    BARRIER_TURN = 1,
    BARRIER_CONSUMERS = 3,
    BARRIER_WARPGROUP = 4,
};

#include "paged_attention.cuh"

#ifndef LAZY
// A maximum is raised when it is exceeded by 2^LAZY: weights and sums stay far within float32, bf16 and f16.
#define LAZY 8.0f
#endif
#ifndef TAKES_TURNS
#define TAKES_TURNS 1
#endif

#define PRODUCER_WARPGROUPS (KV_F8 ? 2 : 1)
#define PREFILL_THREADS (NUM_THREADS + 128 * PRODUCER_WARPGROUPS)
// By setmaxnreg: as many as the launch gives, 168 to each of three warpgroups or 128 to each of four.
#define CONSUMER_REGISTERS (KV_F8 ? 200 : 208)
#define PRODUCER_REGISTERS (((KV_F8 ? 512 : 504) - 2 * CONSUMER_REGISTERS) / PRODUCER_WARPGROUPS)
#define COLUMN_BYTES (128 * 128)
// An operand of 16-bit elements; and a block of keys or values as the cache has it.
#define OPERAND_BYTES (HEAD_DIM / 64 * COLUMN_BYTES)
#define CACHED_BYTES (BLOCK_N * HEAD_DIM * (int)sizeof(KV_T))
#define PAGES (BLOCK_N / 32)
// Behind the warp that takes items, those that bring queries.
#define FIRST_QUERY_THREAD (NUM_THREADS + 32)
#define QUERY_THREADS 96
// Blocks of keys that an item has left when the next one is asked for: its queries take as long as about three.
#define ASKS_AHEAD 6
// Numbers of a row that a consumer's lane holds, of sums and of scores.
#define LANE_SUMS (HEAD_DIM / 2)
#define LANE_SCORES (BLOCK_N / 2)

static_assert(HEAD_DIM == 128, "a row of FP8 is a column");
static_assert(OPERAND_BYTES >= TILE_ROWS * MAX_SPLITS * 4, "a place of queries holds a merge's weights");
static_assert(TILE_ROWS == 128 && BLOCK_N == 128, "a column of queries is as long as one of keys");

// An item for the consumers.
struct Work {
    Item item;
    int head;
    int is_end;
};

struct Places {
    Work work[2];
    // A phase each time that a place is filled, or through with.
    u64_t work_full[2], q_full[2], q_empty[2], k_full[2], k_empty[2], v_full[2], v_empty[2];
#if KV_F8
    u64_t raw_full[2], raw_empty[2];
    float q_factors[2][TILE_ROWS];  // what a row's scores are multiplied by
#endif
};

// Where the operands lie, from a multiple of 1024 bytes on.
struct Tiles {
    u8_t* shared;
    u32_t address;
    __device__ __forceinline__ u32_t queries(int place) const { return address + place * OPERAND_BYTES; }
    __device__ __forceinline__ u32_t values(int place) const { return queries(2 + place); }
    __device__ __forceinline__ u32_t keys(int place) const { return queries(4) + place * CACHED_BYTES; }
    // FP8 values before they are widened.
    __device__ __forceinline__ u32_t raw(int place) const { return keys(2 + place); }
    __device__ __forceinline__ u8_t* at(u32_t where) const { return shared + (where - address); }
};

__device__ __forceinline__ u32_t bar(const u64_t& barrier) { return shared_address(&barrier); }

__device__ __forceinline__ int num_blocks_of(const Item& item) {
    return item.end > item.begin ? (item.end - item.begin + BLOCK_N - 1) / BLOCK_N : 0;
}

// ---- the queue, by one warp; every lane knows the index and holds an int of the item ----

struct Next {
    int index, num;
    int ticket;  // lane 0's, of an index that the others don't know yet
    int word;
    enum { NONE, ASKED, KNOWN } state;
};

__device__ __forceinline__ void read_item(const Operands& o, Next& next) {
    const int lane = threadIdx.x & 31, at = next.index / o.num_kv_heads;
    next.word = 0;
    if (next.index < next.num && at < o.max_items && lane < (int)(sizeof(Item) / 4)) {
        next.word = o.list[HEADER_INTS + (i64_t)at * (sizeof(Item) / 4) + lane];
    }
    next.state = Next::KNOWN;
}

// Asks for another item without waiting. With no more items than blocks each block has its one, and nothing is counted;
// otherwise each block asks until there is none, so that there are as many tickets as items and the last one sets the
// counter back.
__device__ __forceinline__ void ask(const Operands& o, Next& next) {
    next.ticket = next.num;
    if (next.num > gridDim.x && (threadIdx.x & 31) == 0) next.ticket = atomicAdd(o.counters + TAKEN_PREFILL, 1);
    next.state = Next::ASKED;
}

__device__ __forceinline__ void hear(const Operands& o, Next& next) {
    const int ticket = __shfl_sync(0xffffffffu, next.ticket, 0);
    if (next.num > gridDim.x && ticket == next.num - 1 && (threadIdx.x & 31) == 0) o.counters[TAKEN_PREFILL] = 0;
    next.index = next.num > gridDim.x ? gridDim.x + ticket : next.num;
    read_item(o, next);
}

// Gives the next item with rows to all, in `work`, which is free.
__device__ __forceinline__ void give(const Operands& o, Next& next, Work& work, u32_t work_full) {
    const int lane = threadIdx.x & 31;
    while (true) {
        if (next.state == Next::NONE) ask(o, next);
        if (next.state == Next::ASKED) hear(o, next);
        next.state = Next::NONE;
        const bool is_end = next.index >= next.num;
        const int at = next.index / o.num_kv_heads;
        __syncwarp();
        if (lane < (int)(sizeof(Item) / 4)) reinterpret_cast<int*>(&work.item)[lane] = next.word;
        __syncwarp();
        if (!is_end && (at >= o.max_items || !is_sound(o, work.item, false) || work.item.count == 0)) continue;
        __syncwarp();
        if (lane == 0) {
            // Keys that no block table can hold would only take time.
            work.item.end = (int)min((i64_t)work.item.end, (i64_t)o.max_blocks * PAGE);
            work.head = next.index % o.num_kv_heads;
            work.is_end = is_end;
            mbarrier_arrive(work_full);
        }
        __syncwarp();
        return;
    }
}

// In the midst of an item: asks for the next one late, so that blocks that are through first take the longer items, but
// so early that its queries come in time. Whether it is known.
__device__ __forceinline__ bool look_ahead(const Operands& o, Next& next, int blocks_left) {
    if (next.state == Next::ASKED) {
        hear(o, next);
    } else if (next.state == Next::NONE && blocks_left <= ASKS_AHEAD) {
        ask(o, next);
    }
    return next.state == Next::KNOWN;
}

// Gives the next item to all, as a turn's, whose place is waited for.
__device__ __forceinline__ void give_turn(const Operands& o, Next& next, Places& places, int turn) {
    mbarrier_wait(bar(places.q_empty[turn & 1]), (turn >> 1 & 1) ^ 1);
    give(o, next, places.work[turn & 1], bar(places.work_full[turn & 1]));
}

// Whether a turn's place is free, for a whole warp: one lane's answer is all lanes'.
__device__ __forceinline__ bool is_free(const Places& places, int turn) {
    return __any_sync(0xffffffffu, mbarrier_test(bar(places.q_empty[turn & 1]), (turn >> 1 & 1) ^ 1));
}

// ---- producers ----

#if KV_F8
// Sixteen neighbours of a row of queries as sums of two FP8 numbers: `high`, and `low` what those leave. `scale`, a power of two,
// takes the row's largest magnitude to 128 or more, so that all bits of a bf16 number are kept which isn't below 2^-9 of it, and of a
// smaller one those above 2^-17 of it.
__device__ __forceinline__ void split_queries(const float (&x)[16], float scale, uint4& high, uint4& low) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float y[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) y[e] = x[i * 4 + e] * scale;
        const u32_t kept = pack_f8x4(y[0], y[1], y[2], y[3]);
        u32_t wide[2];
        widen_f8x4(kept, wide[0], wide[1]);
#pragma unroll
        for (int e = 0; e < 4; ++e) y[e] -= to_f32(f16_t{(u16_t)(wide[e / 2] >> e % 2 * 16)});
        (&high.x)[i] = kept;
        (&low.x)[i] = pack_f8x4(y[0], y[1], y[2], y[3]);
    }
}
#endif

// The item's queries by the QUERY_THREADS; zeros where it has none. With KV_F8 as sums of two FP8 numbers, the smaller one in the
// tile's first column, where products begin: sums keep more of what comes while they are small.
__device__ __forceinline__ void load_queries(const Operands& o, Places& places, const Tiles& tiles, int place) {
    // Chunks of 16 bytes that a thread takes at a time, of which as many times as there are registers for.
    constexpr int CHUNKS = KV_F8 ? 2 : 1, LANES = HEAD_DIM / 8 / CHUNKS, IN_FLIGHT = KV_F8 ? 2 : 8;
    static_assert(TILE_ROWS * LANES % 32 == 0, "a warp's lanes leave the loop together");
    const Item& item = places.work[place].item;
    const int head = places.work[place].head;
    u8_t* const to = tiles.at(tiles.queries(place));
#pragma unroll IN_FLIGHT
    for (int i = fleeting_thread() - FIRST_QUERY_THREAD; i < TILE_ROWS * LANES; i += QUERY_THREADS) {
        const int row = i / LANES, lane = i % LANES;
        const i64_t from = place_of(o, item, head, row);
        uint4 x[CHUNKS] = {};
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            if (from >= 0) x[c] = reinterpret_cast<const uint4*>(o.q + from)[lane * CHUNKS + c];
            x[c].x ^= o.flip, x[c].y ^= o.flip, x[c].z ^= o.flip, x[c].w ^= o.flip;
        }
#if KV_F8
        float numbers[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) numbers[i] = bf16_of((&x[i / 8].x)[i / 2 % 4], i % 2);
        float top = magnitude_of(numbers);
#pragma unroll
        for (int offset = LANES / 2; offset > 0; offset >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
        // The power of two below `top`, so that neither it nor its inverse leaves the normal numbers; infinities saturate.
        const u32_t power = min(max(__float_as_uint(top) & 0x7f800000u, 8u << 23), 254u << 23);
        if (lane == 0) places.q_factors[place][row] = __uint_as_float(power) / 128.0f;
        uint4 high, low;
        split_queries(numbers, __uint_as_float(((2u * 127u + 7u) << 23) - power), high, low);
        *reinterpret_cast<uint4*>(to + swizzled<TILE_ROWS>(row, lane)) = low;
        *reinterpret_cast<uint4*>(to + swizzled<TILE_ROWS>(row, LANES + lane)) = high;
#else
        *reinterpret_cast<uint4*>(to + swizzled<TILE_ROWS>(row, lane)) = x[0];
#endif
    }
}

// The warps that bring queries.
__device__ __forceinline__ void produce_queries(const Operands& o, Places& places, const Tiles& tiles) {
    for (int turn = 0;; ++turn) {
        const int place = turn & 1;
        mbarrier_wait(bar(places.work_full[place]), turn >> 1 & 1);
        // Behind the arrival, the place may hold another item as soon as consumers are through with this one.
        const bool is_end = places.work[place].is_end;
        if (!is_end) {
            load_queries(o, places, tiles, place);
            fence_async_shared();
        }
        mbarrier_arrive(bar(places.q_full[place]));
        if (is_end) return;
    }
}

// The cache block of this lane's page (lane % PAGES) of a block of keys, or -1.
__device__ __forceinline__ int own_block(const Operands& o, const Item& item, int key) {
    const int block = block_of(o, item, key + (threadIdx.x & (PAGES - 1)) * 32);
    return block < 0 ? -1 : block;
}

// By a warp: begins to bring a block of keys or values as the cache has it, whose pages begin at these rows of the map, but not page
// `left_out`.
__device__ __forceinline__ void copy_pages(u32_t to, const TensorMap& map, const int (&rows)[PAGES], int left_out,
                                           u32_t full) {
    constexpr int COLUMNS = HEAD_DIM * sizeof(KV_T) / 128;
    if (elect_one()) {
        mbarrier_arrive_expect(full, left_out < 0 ? CACHED_BYTES : CACHED_BYTES - CACHED_BYTES / PAGES);
#pragma unroll
        for (int i = 0; i < PAGES * COLUMNS; ++i) {
            const int page = i % PAGES, column = i / PAGES;
            if (page == left_out) continue;
            copy_box(to + column * COLUMN_BYTES + page * (32 * 128), map, column * (128 / sizeof(KV_T)), rows[page], full);
        }
    }
    __syncwarp();
}

#if KV_F8
// Raw rows become f16 at their place for the products, zeros from row `num` on; by a warpgroup. Eight neighbouring lanes, whose
// accesses the banks serve at once, read four chunks each of two rows, and write eight different chunks.
__device__ __forceinline__ void widen(const u8_t* raw, u8_t* to, int num) {
    const int thread = fleeting_thread() & 127;
    const int first = (thread >> 4) * 2 + (thread >> 2 & 1);
    const int chunk = (thread & 3) | ((thread >> 2 ^ thread >> 3) & 1) << 2;
#pragma unroll 4
    for (int row = first; row < BLOCK_N; row += 16) {
        uint4 x = *reinterpret_cast<const uint4*>(raw + swizzled<BLOCK_N>(row, chunk));
        if (row >= num) x = uint4{0, 0, 0, 0};
        uint4 first_half, second_half;
        widen_f8x4(x.x, first_half.x, first_half.y);
        widen_f8x4(x.y, first_half.z, first_half.w);
        widen_f8x4(x.z, second_half.x, second_half.y);
        widen_f8x4(x.w, second_half.z, second_half.w);
        *reinterpret_cast<uint4*>(to + swizzled<BLOCK_N>(row, chunk * 2)) = first_half;
        *reinterpret_cast<uint4*>(to + swizzled<BLOCK_N>(row, chunk * 2 + 1)) = second_half;
    }
}

// The warpgroup that widens values.
__device__ __forceinline__ void widen_values(Places& places, const Tiles& tiles) {
    int filled = 0;
    for (int turn = 0;; ++turn) {
        const int place = turn & 1;
        mbarrier_wait(bar(places.work_full[place]), turn >> 1 & 1);
        const Work& work = places.work[place];
        const int begin = work.item.begin, end = work.item.end, num = num_blocks_of(work.item);
        const bool is_end = work.is_end;
        // The item has been read, and its place may be another one's.
        mbarrier_arrive(bar(places.q_full[place]));
        if (is_end) return;
        for (int n = 0; n < num; ++n, ++filled) {
            const int stage = filled & 1, is_odd = filled >> 1 & 1;
            mbarrier_wait(bar(places.raw_full[stage]), is_odd);
            mbarrier_wait(bar(places.v_empty[stage]), is_odd ^ 1);
            widen(tiles.at(tiles.raw(stage)), tiles.at(tiles.values(stage)), end - begin - n * BLOCK_N);
            mbarrier_arrive(bar(places.raw_empty[stage]));
            fence_async_shared();
            mbarrier_arrive(bar(places.v_full[stage]));
        }
    }
}
#else
// A warp's lanes: 32 rows of values from `from` on, zeros from row `num` on.
__device__ __forceinline__ void load_part(u32_t to, const bf16_t* from, int num) {
    const int lane = fleeting_thread() & 31;
#pragma unroll
    for (int i = 0; i < 32 * (HEAD_DIM / 8); i += 32) {
        const int row = (i + lane) / (HEAD_DIM / 8), chunk = (i + lane) % (HEAD_DIM / 8);
        cp_async16(to + swizzled<BLOCK_N>(row, chunk), from + row * HEAD_DIM + chunk * 8, row < num);
    }
    cp_async_commit();
    cp_async_wait<0>();
    fence_async_shared();
    __syncwarp();
}
#endif

// The warp that takes items and brings keys and values.
__device__ __forceinline__ void produce_keys(const Operands& o, const TensorMap& k_map, const TensorMap& v_map,
                                             Places& places, const Tiles& tiles) {
    Next next = {(int)blockIdx.x, o.list[NUM_PREFILL] * o.num_kv_heads, 0, 0, Next::NONE};
    read_item(o, next);
    int filled = 0;
    // Whether the turn's item was given in the midst of the one before.
    bool is_given = false;
    for (int turn = 0;; ++turn) {
        if (!is_given) give_turn(o, next, places, turn);
        is_given = false;
        const Work& work = places.work[turn & 1];
        if (work.is_end) return;
        const Item& item = work.item;
        const int head = work.head, num = num_blocks_of(item);
        int own = own_block(o, item, item.begin);
        for (int n = 0; n < num; ++n, ++filled) {
            const int key = item.begin + n * BLOCK_N, stage = filled & 1, is_odd = filled >> 1 & 1;
            int rows[PAGES];  // of the maps
#pragma unroll
            for (int i = 0; i < PAGES; ++i) {
                const int block = __shfl_sync(0xffffffffu, own, i);
                rows[i] = block < 0 ? -32 : (block * o.num_kv_heads + head) * PAGE + (key + i * 32) % PAGE;
            }
            own = own_block(o, item, key + BLOCK_N);
            if (!is_given && look_ahead(o, next, num - n) && is_free(places, turn + 1)) {
                give_turn(o, next, places, turn + 1);
                is_given = true;
            }
            mbarrier_wait(bar(places.k_empty[stage]), is_odd ^ 1);
            copy_pages(tiles.keys(stage), k_map, rows, -1, bar(places.k_full[stage]));
#if KV_F8
            mbarrier_wait(bar(places.raw_empty[stage]), is_odd ^ 1);
            copy_pages(tiles.raw(stage), v_map, rows, -1, bar(places.raw_full[stage]));
#else
            mbarrier_wait(bar(places.v_empty[stage]), is_odd ^ 1);
            // The page that the item ends in.
            const int end_page = item.end - key < BLOCK_N && item.end % 32 != 0 ? (item.end - key) / 32 : -1;
            int part = -1;
#pragma unroll
            for (int i = 0; i < PAGES; ++i) {
                if (i != end_page || rows[i] < 0) continue;
                load_part(tiles.values(stage) + i * (32 * 128), o.v_cache + (i64_t)rows[i] * HEAD_DIM, item.end % 32);
                part = i;
            }
            copy_pages(tiles.values(stage), v_map, rows, part, bar(places.v_full[stage]));
#endif
        }
    }
}

// ---- consumers ----

struct Rows {
    float max[2];    // of scale * score, at most 2^LAZY too small
    float total[2];  // this lane's share
};

// Scores of keys that a row doesn't see don't count; `num_seen` of the lane's two rows from its first key on.
__device__ __forceinline__ void mask(float (&s)[LANE_SCORES], int num_seen0, int num_seen1) {
#pragma unroll
    for (int n = 0; n < BLOCK_N / 8; ++n) {
        if (n * 8 >= num_seen0) s[n * 4] = -INFINITY_F;
        if (n * 8 + 1 >= num_seen0) s[n * 4 + 1] = -INFINITY_F;
        if (n * 8 >= num_seen1) s[n * 4 + 2] = -INFINITY_F;
        if (n * 8 + 1 >= num_seen1) s[n * 4 + 3] = -INFINITY_F;
    }
}

// Scores become weights; whether a maximum of the warp's rows has risen, hence sums are to be multiplied by `rescale`.
__device__ __forceinline__ bool softmax(float (&s)[LANE_SCORES], const float (&scale)[2], Rows& rows,
                                        float (&rescale)[2]) {
    bool is_raised = false;
    float base[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        // Two chains, and two of totals below: one would wait for each of its own results.
        float top0 = s[half * 2], top1 = s[half * 2 + 1];
#pragma unroll
        for (int n = 1; n < BLOCK_N / 8; ++n) {
            top0 = fmaxf(top0, s[n * 4 + half * 2]);
            top1 = fmaxf(top1, s[n * 4 + half * 2 + 1]);
        }
        const float top = quad_max(fmaxf(top0, top1)) * scale[half];
        rescale[half] = 1.0f;
        // Of two infinities below, neither is above the other.
        if (top > rows.max[half] + LAZY) {
            rescale[half] = ex2(rows.max[half] - top);
            rows.max[half] = top;
            rows.total[half] *= rescale[half];
            is_raised = true;
        }
        // A row that has seen no key yet keeps weights of 0.
        base[half] = rows.max[half] == -INFINITY_F ? 0.0f : -rows.max[half];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float total0 = 0.0f, total1 = 0.0f;
#pragma unroll
        for (int n = 0; n < BLOCK_N / 8; ++n) {
            float& x = s[n * 4 + half * 2];
            float& y = s[n * 4 + half * 2 + 1];
            x = ex2(fmaf(x, scale[half], base[half]));
            y = ex2(fmaf(y, scale[half], base[half]));
            total0 += x;
            total1 += y;
        }
        rows.total[half] += total0 + total1;
    }
    // Totals are never below 0, which the assembler doesn't know: so it can't move the weights behind the vote, to
    // after the next wait.
    return __any_sync(0xffffffffu, is_raised || rows.total[0] + rows.total[1] < 0.0f);
}

// Weights as left operands of products with 16 values each.
__device__ __forceinline__ void pack_weights(u32_t (&p)[BLOCK_N / 16][4], const float (&s)[LANE_SCORES]) {
#pragma unroll
    for (int i = 0; i < LANE_SCORES; i += 2) {
        p[i / 8][i / 2 % 4] = KV_F8 ? pack_f16x2(s[i], s[i + 1]) : pack_bf16x2(s[i], s[i + 1]);
    }
}

// s = queries * keys, a group of its own. Of queries in two parts, each finds the same keys.
__device__ __forceinline__ void begin_scores(float (&s)[LANE_SCORES], u64_t queries, u64_t keys) {
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; ++step) {
        const int within = step % 4 * 32 / 16, column = step / 4 * COLUMN_BYTES / 16;
        wgmma_shared<KV_F8>(s, queries + column + within, keys + (KV_F8 ? 0 : column) + within, step > 0);
    }
    wgmma_commit();
}

// sums += weights * values of the first KEYS keys, a group of its own.
template <int KEYS>
__device__ __forceinline__ void begin_sums(float (&sums)[LANE_SUMS], const u32_t (&p)[BLOCK_N / 16][4], u64_t values) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) {
        wgmma_registers<KV_F8>(sums, p[step], values + step * (16 * 128 / 16));
    }
    wgmma_commit();
}

// The same, from beginning to end.
template <int KEYS>
__device__ __forceinline__ void add_sums(float (&sums)[LANE_SUMS], const u32_t (&p)[BLOCK_N / 16][4], u64_t values) {
    wgmma_fence();
    begin_sums<KEYS>(sums, p, values);
    wgmma_wait<0>();
    hold(sums);
}

// The arrangement of the operands' rows.
struct Swizzled {
    __device__ static __forceinline__ u32_t offset(int row, int chunk) { return swizzled<TILE_ROWS>(row, chunk); }
};

// A warpgroup's rows, through its own rows of the queries' tile, so that they leave as whole rows.
template <bool IS_F8>
__device__ __forceinline__ void store_rows(const Operands& o, const Item& item, int head, u8_t* queries, int warpgroup,
                                           const Rows& rows, const float (&sums)[LANE_SUMS]) {
    const int lane = threadIdx.x & 31, first = (threadIdx.x >> 5) * 16;
    // The products of all four warps are through with the queries.
    named_sync(BARRIER_WARPGROUP + warpgroup, 128);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first + half * 8 + lane / 4;
        const auto sum = [&](int n) { return make_float2(sums[n * 4 + half * 2], sums[n * 4 + half * 2 + 1]); };
        const float total = quad_sum(rows.total[half]);
        const float factor = factor_of_row<IS_F8, HEAD_DIM / 8>(o, item, head, row, total, sum);
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n) {
            const int column = n * 8 + (lane & 3) * 2;
            stage_columns<IS_F8, Swizzled>(queries, row, column, sum(n).x * factor, sum(n).y * factor);
        }
    }
    __syncwarp();
    store_staged<IS_F8, Swizzled, 16>(o, item, head, queries, first);
}

// A warp's 16 rows of one split.
__device__ __forceinline__ void store_partial(const Operands& o, const Item& item, int head, const Rows& rows,
                                              const float (&sums)[LANE_SUMS]) {
    const int lane = threadIdx.x & 31, slot = slot_of(item, head, item.split);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(rows.total[half]);
        const int row = (threadIdx.x >> 5) * 16 + half * 8 + lane / 4;
        if (row >= item.count) continue;
        if ((lane & 3) == 0) *total_of(o, slot, row) = make_float2(rows.max[half], total);
        float* to = sums_of(o, slot, row) + (lane & 3) * 2;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n) {
            *reinterpret_cast<float2*>(to + n * 8) =
                make_float2(sums[n * 4 + half * 2], sums[n * 4 + half * 2 + 1]);
        }
    }
}

// One of the two consumer warpgroups.
__device__ __forceinline__ void consume(const Operands& o, Places& places, const Tiles& tiles, int warpgroup) {
    const int lane = threadIdx.x & 31, first = (threadIdx.x >> 5) * 16;
    // By the warp's first lane, after its last access.
    const auto is_through_with = [&](u64_t& empty) {
        if (lane == 0) mbarrier_arrive(bar(empty));
    };
    const auto wait_for_keys = [&](int n) { mbarrier_wait(bar(places.k_full[n & 1]), n >> 1 & 1); };
    const auto begin_turn = [&] {
        if (TAKES_TURNS) named_sync(BARRIER_TURN + warpgroup, 256);
    };
    const auto end_turn = [&] {
        if (TAKES_TURNS) named_arrive(BARRIER_TURN + (warpgroup ^ 1), 256);
    };
    // The first turn is the first warpgroup's.
    if (TAKES_TURNS && warpgroup == 1) named_arrive(BARRIER_TURN, 256);
    int taken = 0;
    for (int turn = 0;; ++turn) {
        const int place = turn & 1;
        mbarrier_wait(bar(places.q_full[place]), turn >> 1 & 1);
        const Work& work = places.work[place];
        if (work.is_end) return;
        const Item& item = work.item;
        const int num = num_blocks_of(item);
        // From the first key of the lane on; every key below `fewest` is seen by all of the warp's rows.
        int key = item.begin;
        const int seen0 = limit_of(o, item, first + lane / 4) - (lane & 3) * 2;
        const int seen1 = limit_of(o, item, first + 8 + lane / 4) - (lane & 3) * 2;
        const int fewest = limit_of(o, item, first);
        const u64_t queries = descriptor_of(tiles.queries(place) + warpgroup * (64 * 128));
#if KV_F8
        const float* const factors = places.q_factors[place] + first + lane / 4;
        // Above 0 still, as `mask` needs it.
        const float least = __uint_as_float(1u << 23);
        const float scale[2] = {fmaxf(o.scale * factors[0], least), fmaxf(o.scale * factors[8], least)};
#else
        const float scale[2] = {o.scale, o.scale};
#endif
        Rows rows = {{-INFINITY_F, -INFINITY_F}, {0.0f, 0.0f}};
        float sums[LANE_SUMS];
#pragma unroll
        for (int i = 0; i < LANE_SUMS; ++i) sums[i] = 0.0f;
        if (item.count <= warpgroup * 64) {
            // No rows: keeps the other's pace.
            for (int n = 0; n < num; ++n, ++taken) {
                wait_for_keys(taken);
                is_through_with(places.k_empty[taken & 1]);
                if (n > 0) {
                    begin_turn();
                    end_turn();
                }
                mbarrier_wait(bar(places.v_full[taken & 1]), taken >> 1 & 1);
                is_through_with(places.v_empty[taken & 1]);
            }
        } else if (num > 0) {
            float s[LANE_SCORES], rescale[2];
            u32_t p[BLOCK_N / 16][4];
            wait_for_keys(taken);
            wgmma_fence();
            begin_scores(s, queries, descriptor_of(tiles.keys(taken & 1)));
            wgmma_wait<0>();
            hold(s);
            is_through_with(places.k_empty[taken & 1]);
            if (key + BLOCK_N > fewest) mask(s, seen0 - key, seen1 - key);
            softmax(s, scale, rows, rescale);
            pack_weights(p, s);
            if (num > 1) wait_for_keys(taken + 1);
            for (int n = 1; n < num; ++n) {
                const int stage = taken & 1, is_odd = taken >> 1 & 1;
                key += BLOCK_N;
                ++taken;
                const int next = taken & 1;
                begin_turn();
                wgmma_fence();
                begin_scores(s, queries, descriptor_of(tiles.keys(next)));
                mbarrier_wait(bar(places.v_full[stage]), is_odd);
                wgmma_fence();
                begin_sums<BLOCK_N>(sums, p, descriptor_of(tiles.values(stage), COLUMN_BYTES));
                end_turn();
                wgmma_wait<1>();
                hold(s);
                is_through_with(places.k_empty[next]);
                if (key + BLOCK_N > fewest) mask(s, seen0 - key, seen1 - key);
                const bool is_raised = softmax(s, scale, rows, rescale);
                // Here, so that the assembler, which keeps to branches, doesn't wait for the sums before the softmax.
                if (n + 1 < num) wait_for_keys(taken + 1);
                wgmma_wait<0>();
                hold(sums);
                hold(p);
                is_through_with(places.v_empty[stage]);
                pack_weights(p, s);
                if (is_raised) {
#pragma unroll
                    for (int i = 0; i < LANE_SUMS; ++i) sums[i] *= rescale[i >> 1 & 1];
                }
            }
            mbarrier_wait(bar(places.v_full[taken & 1]), taken >> 1 & 1);
            // The last block is 48 keys longer than the item on average.
            const u64_t values = descriptor_of(tiles.values(taken & 1), COLUMN_BYTES);
            const int left = item.end - key;
            if (left > 96) {
                add_sums<128>(sums, p, values);
            } else if (left > 64) {
                add_sums<96>(sums, p, values);
            } else if (left > 32) {
                add_sums<64>(sums, p, values);
            } else {
                add_sums<32>(sums, p, values);
            }
            is_through_with(places.v_empty[taken & 1]);
            ++taken;
        }
        u8_t* const own = tiles.at(tiles.queries(place));
        if (item.num_splits == 1 && o.out.form == TO_FLOAT) {
            store_rows<false>(o, item, work.head, own, warpgroup, rows, sums);
        } else if (item.num_splits == 1) {
            store_rows<true>(o, item, work.head, own, warpgroup, rows, sums);
        } else {
            store_partial(o, item, work.head, rows, sums);
            if (is_last_split(o, item, work.head)) {
                merge_splits(o, item, work.head, reinterpret_cast<float*>(own));
            }
        }
        __syncwarp();
        is_through_with(places.q_empty[place]);
    }
}

extern "C" __global__ void __launch_bounds__(PREFILL_THREADS, 1)
    paged_attention_prefill(const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
                            const bf16_t* q, const u8_t* k_cache, const u8_t* v_cache, const i32_t* block_tables,
                            const i32_t* list, i32_t* counters, float* partials, void* out, f32_t* out_scales,
                            float out_factor, int out_stride, int out_form, int num_rows, int num_kv_heads, int group,
                            int num_blocks, int num_seqs, int max_blocks, int max_items, int max_slots, float scale_log2,
                            float v_scale, u32_t flip) {
    extern __shared__ __align__(1024) u8_t unaligned[];
    __shared__ Places places;
    // The other queue's kernel reads nothing that this one writes: it takes multiprocessors as they become free.
    follow_the_kernel_before();
    Operands o = {};
    o.q = q, o.v_cache = reinterpret_cast<const KV_T*>(v_cache), o.block_tables = block_tables, o.list = list, o.counters = counters, o.partials = partials;
    o.out = {out, {out_scales, out_factor, out_stride}, out_form};
    o.num_rows = num_rows, o.num_kv_heads = num_kv_heads, o.group = group, o.num_blocks = num_blocks;
    o.num_seqs = num_seqs, o.max_blocks = max_blocks, o.max_items = max_items, o.max_slots = max_slots;
    o.scale = scale_log2, o.v_scale = v_scale, o.flip = flip;
    u8_t* const shared = unaligned + (-shared_address(unaligned) & 1023);
    const Tiles tiles = {shared, shared_address(shared)};
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) {
            mbarrier_init(bar(places.work_full[i]), 1);
            mbarrier_init(bar(places.q_full[i]), QUERY_THREADS + (KV_F8 ? 128 : 0));
            mbarrier_init(bar(places.q_empty[i]), NUM_WARPS);
            mbarrier_init(bar(places.k_full[i]), 1);
            mbarrier_init(bar(places.k_empty[i]), NUM_WARPS);
            mbarrier_init(bar(places.v_full[i]), KV_F8 ? 128 : 1);
            mbarrier_init(bar(places.v_empty[i]), NUM_WARPS);
#if KV_F8
            mbarrier_init(bar(places.raw_full[i]), 1);
            mbarrier_init(bar(places.raw_empty[i]), 128);
#endif
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    // The same in all lanes of a warp, and known to be so.
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0);
    if (warp >= NUM_WARPS) {
        lower_registers<PRODUCER_REGISTERS>();
        if (warp == NUM_WARPS) {
            produce_keys(o, k_map, v_map, places, tiles);
        } else if (warp < NUM_WARPS + 4) {
            produce_queries(o, places, tiles);
        }
#if KV_F8
        else {
            widen_values(places, tiles);
        }
#endif
    } else {
        raise_registers<CONSUMER_REGISTERS>();
        consume(o, places, tiles, warp >> 2);
    }
}
#else
// Other cards have kernel.cu alone; this keeps the list of kernels the same for all. Where it is launched in spite of that, it fails.
extern "C" __global__ void paged_attention_prefill() { asm volatile("trap;"); }
#endif
