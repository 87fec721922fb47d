// What paged_attention's kernels do around the arithmetic: take items of the list, bring keys and values into shared
// memory, and merge the partial results of tiles whose keys are split.
#pragma once
#include "kv_fragments.cuh"
#include "paged_work.cuh"
#include "quantize.cuh"

// The warps that work on an item, the first of the block, and their barrier: prefill_sm90.cu has its own.
#ifndef NUM_WARPS
#define NUM_WARPS 4
#define SYNC_WARPS() __syncthreads()
#endif
#define NUM_THREADS (32 * NUM_WARPS)
// A warp's tile of keys of the decode body: within a page.
#define DECODE_KEYS (HEAD_DIM > 64 && !KV_F8 ? 16 : 32)
#define SUM_STRIDE (HEAD_DIM + 8)

// Where rows go: bf16 with TO_FLOAT, else FP8, TO_F8_GROUP where a head is a group or TO_F8_FIXED. Not by a variant of the
// kernels for each: it is asked once for a row.
struct Output {
    void* rows;
    QuantizeTo to;
    int form;
};

struct Operands {
    const bf16_t* q;
    const KV_T* k_cache;
    const KV_T* v_cache;
    const i32_t* block_tables;
    const i32_t* list;
    i32_t* counters;
    float* partials;
    Output out;
    int num_rows, num_kv_heads, group, num_blocks, num_seqs, max_blocks, max_items, max_slots;
    float scale;    // above 0, times log2(e) and what keys are to be multiplied by
    float v_scale;  // what values are to be multiplied by
    u32_t flip;     // the sign bits of two elements of q where the scale is negative
};

// Where a packed row of an item lies in q and out, or -1 outside of the batch.
__device__ __forceinline__ i64_t place_of(const Operands& o, const Item& item, int head, int row) {
    const u32_t packed = item.first + row, group = o.group;
    const i64_t q_row = (i64_t)item.q_row + packed / group;
    if (row >= item.count || q_row >= o.num_rows) return -1;
    return ((q_row * o.num_kv_heads + head) * group + packed % group) * HEAD_DIM;
}

// Keys of an item that a packed row sees: those below.
__device__ __forceinline__ int limit_of(const Operands& o, const Item& item, int row) {
    return min(item.seen + (item.first + min(row, item.count - 1)) / o.group, item.end);
}

// ---- the queues ----

enum Kind { NOTHING, PREFILL, DECODE };
struct Taken {
    Item item;
    int head;
    Kind kind;
};

// Keys that the first and the last row of a warp see.
struct Seen {
    int fewest, most;
};

// What a block works on, and what it will.
struct Turn {
    Taken now, next;
    bool is_counted;
    // Prefill's: of its warps, and the cache blocks of the even and the odd blocks of keys.
    Seen seen[NUM_WARPS];
    int blocks[2][BLOCK_N / 32];
};

// Whether an item keeps within the operands; what work_list.cu writes always does.
__device__ __forceinline__ bool is_sound(const Operands& o, const Item& item, bool is_decode) {
    const int num_slots = item.num_splits * o.num_kv_heads * ((item.count + 15) / 16);
    return item.q_row >= 0 && item.sequence >= 0 && item.sequence < o.num_seqs && item.first >= 0 && item.count >= 0 &&
           item.count <= (is_decode ? 16 : TILE_ROWS) && item.begin >= 0 && item.begin % 32 == 0 && item.split >= 0 &&
           item.split < item.num_splits && item.num_splits <= MAX_SPLITS &&
           (item.num_splits == 1 || (item.slot >= 0 && item.slot <= o.max_slots - num_slots));
}

__device__ __forceinline__ void take(const Operands& o, bool is_decode, int index, Taken& taken) {
    const int at = (is_decode ? o.list[NUM_PREFILL] : 0) + index / o.num_kv_heads;
    if (at < 0 || at >= o.max_items) return;
    const int4* from = reinterpret_cast<const int4*>(o.list + HEADER_INTS) + (i64_t)at * 3;
    int4* to = reinterpret_cast<int4*>(&taken.item);
#pragma unroll
    for (int i = 0; i < 3; ++i) to[i] = from[i];
    taken.head = index % o.num_kv_heads;
    // Keys that no block table can hold would only take time.
    taken.item.end = (int)min((i64_t)taken.item.end, (i64_t)o.max_blocks * PAGE);
    if (is_sound(o, taken.item, is_decode)) taken.kind = is_decode ? DECODE : PREFILL;
}

// How the grid starts: `own` blocks begin with a queue of `num` items, those that find none go to the other.
__device__ __forceinline__ int num_started(int own, int num, int other, int num_other) {
    return min(own, num) + max(0, other - num_other);
}

// Items of the first queue that are this kernel's: none where prefill_sm90.cu has done them (TAKES_PREFILL 0).
__device__ __forceinline__ int num_prefill_of(const Operands& o) { return TAKES_PREFILL ? o.list[NUM_PREFILL] : 0; }

// The first item (`is_first`) or another; by one thread.
__device__ __forceinline__ void take_next(const Operands& o, bool is_first, Taken& taken) {
    const int half = (gridDim.x + 1) / 2;
    const bool is_back = blockIdx.x >= half;
    const int num[2] = {num_prefill_of(o) * o.num_kv_heads, o.list[NUM_DECODE] * o.num_kv_heads};
    const int ctas[2] = {half, (int)gridDim.x - half};
    taken.kind = NOTHING;
    if (is_first) {
        const int index = is_back ? blockIdx.x - half : blockIdx.x;
        const int own = is_back ? num[1] : num[0], other = is_back ? num[0] : num[1];
        const int behind = min(is_back ? ctas[0] : ctas[1], other) + index - own;
        if (index < own) {
            take(o, is_back, index, taken);
        } else if (behind < other) {
            take(o, !is_back, behind, taken);
        }
        return;
    }
#pragma unroll
    for (int turn = 0; turn < 2; ++turn) {
        const bool is_decode = is_back != (turn == 1);
        const int all = is_decode ? num[1] : num[0];
        const int started = is_decode ? num_started(ctas[1], num[1], ctas[0], num[0])
                                      : num_started(ctas[0], num[0], ctas[1], num[1]);
        if (started >= all) continue;
        const int index = started + atomicAdd(o.counters + (is_decode ? TAKEN_DECODE : TAKEN_PREFILL), 1);
        if (index < all) return take(o, is_decode, index, taken);
    }
}

// ---- keys and values into shared memory ----

// threadIdx.x, but not known to stay the same, so that what follows from it is computed anew for each block of keys and
// doesn't fill registers in between.
__device__ __forceinline__ u32_t fleeting_thread() {
    u32_t thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}

// Where this lane points ldmatrix at in a tile: 16 rows by two chunks. `by_rows` gives the four 8x8 tiles in the order
// rows, then chunks (Q; V transposed), otherwise chunks, then rows (K).
template <typename T> __device__ __forceinline__ u32_t lane_base(u32_t tile, bool by_rows) {
    const int lane = fleeting_thread() & 31, low = lane >> 3 & 1, high = lane >> 4;
    return tile + T::offset((by_rows ? low : high) * 8 + (lane & 7), by_rows ? high : low);
}

// The block of a key, or -1 for one that isn't there; what follows the context is not looked at.
__device__ __forceinline__ int block_of(const Operands& o, const Item& item, int key) {
    const int page = key / PAGE;
    if (key >= item.end || page >= o.max_blocks) return -1;
    const int block = o.block_tables[(i64_t)item.sequence * o.max_blocks + page];
    return block < o.num_blocks ? block : -1;
}

// 4 bytes to shared memory, as `cp_async16`.
__device__ __forceinline__ void cp_async4(u32_t to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

// The cache blocks of BLOCK_N keys from `key` on, into shared memory and without waiting; anything for those that the
// item doesn't have.
__device__ __forceinline__ void fetch_blocks(const Operands& o, const Item& item, int key,
                                             int (&blocks)[BLOCK_N / 32]) {
    if (threadIdx.x >= BLOCK_N / 32) return;
    const int own = key + threadIdx.x * 32, page = own / PAGE;
    if (own >= item.end || page >= o.max_blocks) return;
    cp_async4(shared_address(&blocks[threadIdx.x]), o.block_tables + (i64_t)item.sequence * o.max_blocks + page);
}

// KEYS rows of one block by THREADS threads; zeros for what isn't there, since a weight of 0 times NaN is NaN. What
// lies at a chunk that isn't copied doesn't matter: nothing is read there.
template <int KEYS, int THREADS>
__device__ __forceinline__ void load_keys(const Operands& o, const Item& item, int head, int block, int key,
                                          u32_t thread, u32_t keys, u32_t values) {
    const i64_t start = (((i64_t)max(block, 0) * o.num_kv_heads + head) * PAGE + key % PAGE) * HEAD_DIM;
    const int num_keys = block < 0 ? 0 : item.end - key;
    const auto load = [&](const KV_T* k, const KV_T* v, int row, int chunk) {
        const bool is_valid = row < num_keys && chunk * KV_LEN < HEAD_DIM;
        const u32_t to = KvRows::offset(row, chunk);
        cp_async16(keys + to, k, is_valid);
        cp_async16(values + to, v, is_valid);
    };
    if constexpr (THREADS % KV_CHUNKS == 0) {
        // A thread keeps its chunk, and its rows lie a constant apart.
        constexpr int ROWS = THREADS / KV_CHUNKS;
        const u32_t row = thread / KV_CHUNKS, chunk = thread % KV_CHUNKS;
        if (ROWS > KEYS && row >= KEYS) return;
        const i64_t from = start + (row * HEAD_DIM + chunk * KV_LEN);
        const KV_T *k = o.k_cache + from, *v = o.v_cache + from;
#pragma unroll
        for (int i = 0; i < KEYS; i += ROWS) load(k + i * HEAD_DIM, v + i * HEAD_DIM, row + i, chunk);
    } else {
#pragma unroll
        for (int i = 0; i < KEYS * KV_CHUNKS; i += THREADS) {
            const u32_t row = (i + thread) / KV_CHUNKS, chunk = (i + thread) % KV_CHUNKS;
            if (KEYS * KV_CHUNKS % THREADS != 0 && row >= KEYS) break;
            const i64_t from = start + (row * HEAD_DIM + chunk * KV_LEN);
            load(o.k_cache + from, o.v_cache + from, row, chunk);
        }
    }
}

// ---- rows on their way out ----

// What a packed row is multiplied by before it becomes FP8. `top`: its largest magnitude; one of the threads that hold it
// writes the scale.
__device__ __forceinline__ float f8_factor_of(const Operands& o, const Item& item, int head, int row, float top,
                                              bool writes) {
    if (o.out.form == TO_F8_FIXED) return o.out.to.factor;
    const u32_t packed = item.first + row, q_row = item.q_row + packed / (u32_t)o.group;
    if (writes && row < item.count && q_row < (u32_t)o.num_rows) {
        const u32_t group = head * o.group + packed % (u32_t)o.group;
        // Not by `f8_scale`: where registers are fewest, the assembler spills beside a product.
        o.out.to.scales[(u64_t)group * o.out.to.stride + q_row] = top / F8_MAX;
    }
    return f8_factor(top);
}

// Four columns of a row, which lies at `place`, by each of the threads that hold it: with TO_F8_GROUP a warp.
__device__ __forceinline__ void store_columns(const Operands& o, const Item& item, int head, int row, i64_t place,
                                              int column, const float4& x) {
    if (o.out.form == TO_FLOAT) {
        *reinterpret_cast<uint2*>((bf16_t*)o.out.rows + place + column) =
            make_uint2(pack_bf16x2(x.x, x.y), pack_bf16x2(x.z, x.w));
        return;
    }
    float top = 0.0f;
    if (o.out.form == TO_F8_GROUP) top = warp_max(fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))));
    const float factor = f8_factor_of(o, item, head, row, top, column == 0);
    *reinterpret_cast<u32_t*>((u8_t*)o.out.rows + place + column) =
        pack_f8x4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
}

// Two columns of a row into its place in shared memory, from where `store_staged` takes it: TILE says where a row's chunks
// of 16 bytes lie.
template <bool IS_F8, typename Tile>
__device__ __forceinline__ void stage_columns(u8_t* tile, int row, int column, float x, float y) {
    if constexpr (IS_F8) {
        *reinterpret_cast<u16_t*>(tile + Tile::offset(row, column / 16) + column % 16) = pack_f8x2(x, y);
    } else {
        *reinterpret_cast<u32_t*>(tile + Tile::offset(row, column / 8) + column % 8 * 2) = pack_bf16x2(x, y);
    }
}

// A warp's ROWS staged rows from `first` on, out.
template <bool IS_F8, typename Tile, int ROWS>
__device__ __forceinline__ void store_staged(const Operands& o, const Item& item, int head, const u8_t* tile,
                                             int first) {
    constexpr int SIZE = IS_F8 ? 1 : 2, ROW_CHUNKS = HEAD_DIM * SIZE / 16;
#pragma unroll 4
    for (int i = threadIdx.x & 31; i < ROWS * ROW_CHUNKS; i += 32) {
        const int row = first + i / ROW_CHUNKS, chunk = i % ROW_CHUNKS;
        const i64_t place = place_of(o, item, head, row);
        if (place < 0) continue;
        *reinterpret_cast<int4*>((u8_t*)o.out.rows + place * SIZE + chunk * 16) =
            *reinterpret_cast<const int4*>(tile + Tile::offset(row, chunk));
    }
}

// What this lane's sums of a row, N pairs `sum(n)` of its quad's, are multiplied by on their way out.
template <bool IS_F8, int N, typename Sum>
__device__ __forceinline__ float factor_of_row(const Operands& o, const Item& item, int head, int row, float total,
                                               const Sum& sum) {
    const float inverse = total > 0.0f ? V_SCALE(o) / total : 0.0f;
    if (!IS_F8) return inverse;
    float top = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n) top = fmaxf(top, fmaxf(fabsf(sum(n).x), fabsf(sum(n).y)));
    return inverse * f8_factor_of(o, item, head, row, quad_max(top) * inverse, (threadIdx.x & 3) == 0);
}

// ---- partial results: 16 rows of HEAD_DIM sums a slot, and behind those of all slots 16 pairs of maximum and total ----

__device__ __forceinline__ int slot_of(const Item& item, int head, int split) {
    return item.slot + (head * item.num_splits + split) * ((item.count + 15) / 16);
}
__device__ __forceinline__ float* sums_of(const Operands& o, int slot, int row) {
    return o.partials + ((i64_t)slot * 16 + row) * HEAD_DIM;
}
__device__ __forceinline__ float2* total_of(const Operands& o, int slot, int row) {
    return reinterpret_cast<float2*>(o.partials + (i64_t)o.max_slots * 16 * HEAD_DIM) + (i64_t)slot * 16 + row;
}

// Whether this block is the last of the tile's splits: then it sees what the others have written, and sets the
// counter back for the next layer.
__device__ __forceinline__ bool is_last_split(const Operands& o, const Item& item, int head) {
    __shared__ int is_last;
    SYNC_WARPS();
    if (threadIdx.x == 0) {
        i32_t* counter = o.counters + QUEUE_COUNTERS + slot_of(item, head, 0);
        int num_before;
        // Releases what was written before the barrier, and acquires what the other splits have released.
        asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(num_before) : "l"(counter) : "memory");
        is_last = num_before == item.num_splits - 1;
        if (is_last) *counter = 0;
    }
    SYNC_WARPS();
    return is_last;
}

// Merges the splits of a tile, in their order. `weights`: TILE_ROWS * num_splits floats of shared memory.
__device__ __forceinline__ void merge_splits(const Operands& o, const Item& item, int head, float* weights) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, num = item.num_splits;
    for (int row = warp; row < item.count; row += NUM_WARPS) {
        float top = -INFINITY_F, total = 0.0f;
        for (int i = lane; i < num; i += 32) top = fmaxf(top, __ldcg(&total_of(o, slot_of(item, head, i), row)->x));
        top = warp_max(top);
        for (int i = lane; i < num; i += 32) {
            const float2 of = __ldcg(total_of(o, slot_of(item, head, i), row));
            const float weight = of.x == -INFINITY_F ? 0.0f : ex2(of.x - top);
            weights[row * num + i] = weight;
            total += weight * of.y;
        }
        total = warp_sum(total);
        for (int i = lane; i < num; i += 32) weights[row * num + i] *= total > 0.0f ? V_SCALE(o) / total : 0.0f;
    }
    SYNC_WARPS();
    for (int i = threadIdx.x; i < item.count * (HEAD_DIM / 4); i += NUM_THREADS) {
        const int row = i / (HEAD_DIM / 4), column = i % (HEAD_DIM / 4) * 4;
        const i64_t place = place_of(o, item, head, row);
        if (place < 0) continue;
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
        for (int split = 0; split < num; ++split) {
            const float weight = weights[row * num + split];
            const float4 x = __ldcg(reinterpret_cast<float4*>(sums_of(o, slot_of(item, head, split), row) + column));
            sum.x = fmaf(weight, x.x, sum.x);
            sum.y = fmaf(weight, x.y, sum.y);
            sum.z = fmaf(weight, x.z, sum.z);
            sum.w = fmaf(weight, x.w, sum.w);
        }
        store_columns(o, item, head, row, place, column, sum);
    }
}
