// The work list of paged_attention, once per step for all of its layers: list = header, then items, those of the
// prefill queue first, and in each queue the longest first; the counters are set to 0. kernel.cu says what an item is;
// an item stands for num_kv_heads pieces of work, one per head.
//
// A sequence of 16 packed rows or fewer is one tile of the decode queue, others are tiles of TILE_ROWS rows of the
// prefill queue. Keys of a tile are split where there would be too few or too uneven pieces for the num_ctas blocks
// that take them: none is longer than a block's even share of the queue (for decode up to twice that, or else half of
// it), nor are pieces of less than MIN_*_SPAN keys split.
//
// Mapping: one block; a warp per sequence and a lane per tile, over sequences kept in shared memory (12 bytes each).
// Sorting is by BUCKETS of length: counted, added up, then filled in any order; results don't depend on it, since
// splits are merged by their number. Bound: latency, a few microseconds.
#include "paged_work.cuh"

#define THREADS 1024
#define BUCKETS 64
#define MIN_PREFILL_SPAN 512
#define MIN_DECODE_SPAN 128
// Spans are multiples of it: the attention's blocks of keys.
#define SPAN_STEP 64
#define SPAN_CHOICES 9
// More than any context; sums of products stay in range even if a length is no length.
#define MAX_KEYS (1 << 24)
#define MAX_ROWS (1 << 20)

enum { PREFILL, DECODE, NUM_QUEUES };

struct Sequence {
    int q_row, num_rows, num_keys;
};

// Rows of a sequence that are worked on together, and their last row's keys.
struct Tile {
    int first, count, end;
};

// How the keys of a tile are split: `num` times `span`, the last shorter.
struct Split {
    int num, span;
};

struct Shared {
    u64_t total[NUM_QUEUES];  // keys of all tiles
    int longest[NUM_QUEUES];
    int num_pieces[SPAN_CHOICES];
    int span[NUM_QUEUES];
    int num_slots;
    int buckets[NUM_QUEUES * BUCKETS];
};

__device__ __forceinline__ int round_up(u64_t x, int step) { return (int)((x + step - 1) / step * step); }

__device__ __forceinline__ bool is_decode(const Sequence& of, int group) { return of.num_rows * group <= UNIT_ROWS; }

// Calls `body(sequence, tile)` for every tile of `queue`, each by one lane.
template <typename Body>
__device__ __forceinline__ void for_each_tile(const Sequence* sequences, int num_seqs, int group, const Body& body) {
    const int lane = threadIdx.x & 31;
    for (int i = threadIdx.x >> 5; i < num_seqs; i += THREADS / 32) {
        const Sequence of = sequences[i];
        const int packed = of.num_rows * group;
        for (int first = lane * TILE_ROWS; first < packed; first += 32 * TILE_ROWS) {
            const int count = min(TILE_ROWS, packed - first);
            const int end = of.num_keys - of.num_rows + 1 + (first + count - 1) / group;
            // A context shorter than its rows is none.
            if (end > 0) body(i, Tile{first, count, end});
        }
    }
}

__device__ __forceinline__ Split split_of(int end, int longest) {
    const int num = min((end + longest - 1) / longest, MAX_SPLITS);
    const int span = round_up((end + num - 1) / num, SPAN_STEP);
    return {(end + span - 1) / span, span};
}

// The queues' longest spans. One piece per block is best where decode has fewer tiles than that; spans of up to two
// even shares are tried for it.
__device__ void choose_spans(const Sequence* sequences, int num_seqs, int group, int num_kv_heads, int num_ctas,
                             int num_prefill_ctas, Shared& shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u64_t share = (shared.total[DECODE] * num_kv_heads + num_ctas - 1) / num_ctas;
    const auto choice = [&](int i) { return max(MIN_DECODE_SPAN, round_up(share * (8 + i) / 8, SPAN_STEP)); };
    if (warp < SPAN_CHOICES) {
        const int longest = choice(warp);
        int num = 0;
        for (int i = lane; i < num_seqs; i += 32) {
            const Sequence of = sequences[i];
            if (of.num_rows > 0 && of.num_keys > 0 && is_decode(of, group)) num += split_of(of.num_keys, longest).num;
        }
        for (int offset = 16; offset > 0; offset >>= 1) num += __shfl_xor_sync(0xffffffffu, num, offset);
        if (lane == 0) shared.num_pieces[warp] = num;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const u64_t of_prefill = (shared.total[PREFILL] * num_kv_heads + num_prefill_ctas - 1) / num_prefill_ctas;
        shared.span[PREFILL] = max(MIN_PREFILL_SPAN, round_up(of_prefill, SPAN_STEP));
        shared.span[DECODE] = max(MIN_DECODE_SPAN, round_up((share + 1) / 2, SPAN_STEP));
        for (int i = SPAN_CHOICES - 1; i >= 0; --i) {
            if ((i64_t)shared.num_pieces[i] * num_kv_heads <= num_ctas) shared.span[DECODE] = choice(i);
        }
        shared.longest[PREFILL] = min(shared.longest[PREFILL], shared.span[PREFILL]);
        shared.longest[DECODE] = min(shared.longest[DECODE], shared.span[DECODE]);
    }
    __syncthreads();
}

// Counts of buckets become where they begin; by one warp.
__device__ __forceinline__ void add_up(int* buckets) {
    constexpr int EACH = NUM_QUEUES * BUCKETS / 32;
    const int lane = threadIdx.x & 31;
    int own = 0;
    for (int i = 0; i < EACH; ++i) own += buckets[lane * EACH + i];
    int before = own;
    for (int offset = 1; offset < 32; offset <<= 1) {
        const int below = __shfl_up_sync(0xffffffffu, before, offset);
        if (lane >= offset) before += below;
    }
    before -= own;
    for (int i = 0; i < EACH; ++i) {
        const int count = buckets[lane * EACH + i];
        buckets[lane * EACH + i] = before;
        before += count;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    paged_attention_work_list(const i32_t* __restrict__ cu_seqlens, const i32_t* __restrict__ context_lens,
                              i32_t* __restrict__ list, i32_t* __restrict__ counters, int num_seqs, int group,
                              int num_kv_heads, int max_items, int max_slots, int num_ctas,
                              int num_prefill_ctas) {
    extern __shared__ Sequence sequences[];
    __shared__ Shared shared;
    int* const words = reinterpret_cast<int*>(&shared);
    for (int i = threadIdx.x; i < (int)(sizeof(Shared) / sizeof(int)); i += THREADS) words[i] = 0;
    for (int i = threadIdx.x; i < QUEUE_COUNTERS + max_slots; i += THREADS) counters[i] = 0;
    for (int i = threadIdx.x; i < num_seqs; i += THREADS) {
        const int begin = max(cu_seqlens[i], 0), end = max(cu_seqlens[i + 1], begin);
        sequences[i] = {begin, min(end - begin, MAX_ROWS), min(max(context_lens[i], 0), MAX_KEYS)};
    }
    __syncthreads();
    const auto queue_of = [&](int i) { return is_decode(sequences[i], group) ? DECODE : PREFILL; };
    u64_t total[NUM_QUEUES] = {0, 0};
    int longest[NUM_QUEUES] = {0, 0};
    for_each_tile(sequences, num_seqs, group, [&](int i, const Tile& tile) {
        const bool is_second = queue_of(i) == DECODE;
        total[0] += is_second ? 0 : tile.end;
        total[1] += is_second ? tile.end : 0;
        longest[0] = max(longest[0], is_second ? 0 : tile.end);
        longest[1] = max(longest[1], is_second ? tile.end : 0);
    });
#pragma unroll
    for (int queue = 0; queue < NUM_QUEUES; ++queue) {
        for (int offset = 16; offset > 0; offset >>= 1) {
            total[queue] += __shfl_xor_sync(0xffffffffu, total[queue], offset);
            longest[queue] = max(longest[queue], __shfl_xor_sync(0xffffffffu, longest[queue], offset));
        }
        if ((threadIdx.x & 31) == 0 && longest[queue] > 0) {
            atomicAdd(&shared.total[queue], total[queue]);
            atomicMax(&shared.longest[queue], longest[queue]);
        }
    }
    __syncthreads();
    choose_spans(sequences, num_seqs, group, num_kv_heads, num_ctas, num_prefill_ctas, shared);

    // Longer pieces have lower buckets.
    const auto bucket_of = [&](int queue, const Tile& tile, const Split& split) {
        const int length = min(min(tile.end, split.span), shared.longest[queue]);
        const int shorter = (int)((i64_t)length * BUCKETS / (shared.longest[queue] + 1));
        return &shared.buckets[(queue + 1) * BUCKETS - 1 - shorter];
    };
    for_each_tile(sequences, num_seqs, group, [&](int i, const Tile& tile) {
        const int queue = queue_of(i);
        const Split split = split_of(tile.end, shared.span[queue]);
        atomicAdd(bucket_of(queue, tile, split), split.num);
    });
    __syncthreads();
    if (threadIdx.x < 32) add_up(shared.buckets);
    __syncthreads();
    // The decode queue begins where the prefill queue ends; after the items are written, `buckets` has the queues'
    // ends.
    const int num_prefill = shared.buckets[DECODE * BUCKETS];
    __syncthreads();
    for_each_tile(sequences, num_seqs, group, [&](int i, const Tile& tile) {
        const int queue = queue_of(i);
        const Sequence& of = sequences[i];
        const Split split = split_of(tile.end, shared.span[queue]);
        int slot = 0;
        bool is_whole = split.num == 1;
        if (!is_whole) {
            const int num_slots = split.num * num_kv_heads * ((tile.count + UNIT_ROWS - 1) / UNIT_ROWS);
            slot = atomicAdd(&shared.num_slots, num_slots);
            // Only lengths that are none ask for more slots than a batch can: then one item does it all.
            is_whole = slot < 0 || slot > max_slots - num_slots;
        }
        int* bucket = bucket_of(queue, tile, split);
        for (int k = 0; k < split.num; ++k) {
            const int at = atomicAdd(bucket, 1);
            if (at >= max_items) continue;
            Item item = {of.q_row, i, tile.first, tile.count, of.num_keys - of.num_rows + 1, k * split.span,
                         min((k + 1) * split.span, tile.end), k, split.num, slot, {0, 0}};
            if (is_whole) {
                item.begin = 0, item.split = 0, item.num_splits = 1;
                item.end = k == 0 ? tile.end : 0;
                item.count = k == 0 ? tile.count : 0;
            }
            const int4* from = reinterpret_cast<const int4*>(&item);
            int4* to = reinterpret_cast<int4*>(list + HEADER_INTS) + (i64_t)at * 3;
#pragma unroll
            for (int part = 0; part < 3; ++part) to[part] = from[part];
        }
    });
    __syncthreads();
    if (threadIdx.x == 0) {
        const int num_items = min(shared.buckets[NUM_QUEUES * BUCKETS - 1], max_items);
        list[NUM_PREFILL] = min(num_prefill, num_items);
        list[NUM_DECODE] = num_items - min(num_prefill, num_items);
    }
}
