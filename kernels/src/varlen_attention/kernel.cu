// varlen_attention: out[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) * v[j, h] over the rows j of i's segment;
// qkv [n, 3, num_heads, HEAD_DIM] bf16, cu_seqlens [num_segments + 1] i32, out [n, num_heads * HEAD_DIM] bf16.
//
// Mapping: blockIdx.y is the head, blockIdx.x a slot for a tile of TILE = 16 * M_TILES * NUM_WARPS query rows of one
// segment. Lengths are known on the device alone, so segment i owns the slots from cu_seqlens[i] / TILE + i on, which
// are as many as its tiles or one more; a block finds its segment by searching that rising sequence, with no prefix sum,
// and leaves at once if its slot is spare. Grid: (n / TILE + num_segments, num_heads). A warp owns 16 * M_TILES rows.
//
// Shared memory: two stages of KEYS keys and values, 4 * KEYS * ROW_BYTES (36 KiB for 72, 44 for 80); the queries pass
// through the second stage, enlarged where KEYS is 48, into registers, and the output leaves through both. A row is
// padded to an odd number of 16-byte chunks, so that the eight rows of an 8x8 tile lie in different banks (HEAD_DIM 72 =
// 9 chunks needs no padding). A head of 8 more than a multiple of 16 ends with a product over 8 elements, not with zeros.
// A stage is copied while the other is used, with one barrier per stage.
//
// Bound: FLOPs, 4 * HEAD_DIM per pair of rows; 8 segments of 1024, 16 heads of 72: 38.7 GFLOP. With 16 rows per warp
// (M_TILES 1) shared memory is read for longer than the tensor cores run, so long segments take 32, at the price of 232 to
// 255 registers. Dropped: 64 keys beside 32 rows of 80, and four blocks of 64 rows on a multiprocessor, which spill.
#include "attention.cuh"

#define NUM_WARPS 4
#define TILE (16 * M_TILES * NUM_WARPS)
#define CHUNKS (HEAD_DIM / 8)
#define ROW_BYTES ((CHUNKS | 1) * 16)
#define STAGE_BYTES (2 * KEYS * ROW_BYTES)
#define THREADS (32 * NUM_WARPS)
// Blocks that share a multiprocessor, which bounds the registers: as many as there can be without spills.
#define MIN_BLOCKS (M_TILES > 1 || HEAD_DIM > 80 ? 2 : 3)
// Rows that the threads copy at a time.
#define LOAD_ROWS (THREADS / CHUNKS)
#define HAS_K8 (CHUNKS % 2)
// Steps of 16 elements along the head; at least one, so that arrays are not empty.
#define K16 (CHUNKS / 2)
#define K16_STORED (K16 > 0 ? K16 : 1)

static_assert(HEAD_DIM % 8 == 0 && HEAD_DIM >= 8 && HEAD_DIM <= 128, "rows are read 16 bytes at a time");
static_assert(KEYS % 16 == 0 && (HAS_K8 == 0 || KEYS % 32 == 0), "keys are read in whole tiles");

// Rows of one segment that a block works on.
struct Work {
    int first_row;
    int num_rows;
    int first_key;
    int num_keys;
};

// The last segment whose first slot is not above `slot`: each round narrows the range 32-fold, alike in every warp. Any
// contents of `cu_seqlens` give a segment.
__device__ __forceinline__ int find_segment(const i32_t* __restrict__ cu_seqlens, int num_segments, int slot) {
    int low = 0, high = num_segments;
    while (high - low > 1) {
        const int step = (high - low + 31) / 32;
        const int i = low + (int)(threadIdx.x & 31) * step;
        const bool starts_before = i < high && cu_seqlens[i] / TILE + i <= slot;
        const int last = 31 - __clz(__ballot_sync(0xffffffffu, starts_before) | 1);
        low += last * step;
        high = min(high, low + step);
    }
    return low;
}

// False if the slot is spare. Whatever `cu_seqlens` holds, the rows lie in [0, n).
__device__ __forceinline__ bool find_work(const i32_t* __restrict__ cu_seqlens, int num_segments, int n, Work& work) {
    const int slot = blockIdx.x, segment = find_segment(cu_seqlens, num_segments, slot);
    const int begin = cu_seqlens[segment];
    const int start = min(max(begin, 0), n), end = min(max(cu_seqlens[segment + 1], start), n);
    const int tile = slot - (begin / TILE + segment);
    if (tile < 0 || tile >= (end - start + TILE - 1) / TILE) return false;
    work.first_key = start;
    work.num_keys = end - start;
    work.first_row = start + tile * TILE;
    work.num_rows = min(end - work.first_row, TILE);
    return true;
}

// A thread's part in copying rows of a head: one chunk of every LOAD_ROWS-th row, so that all addresses follow from one.
struct Part {
    int row;
    // Bytes from row 0 on, in shared and in global memory.
    u32_t to, from;

    __device__ __forceinline__ explicit Part(u32_t stride) {
        const u32_t chunk = threadIdx.x % CHUNKS;
        row = threadIdx.x / CHUNKS;
        to = row * ROW_BYTES + chunk * 16;
        from = row * stride + chunk * 16;
    }

    // Copies ROWS rows, `stride` bytes apart; zeros for those from `num_rows` on, which are not read.
    template <int ROWS>
    __device__ __forceinline__ void load(u32_t shared, const u8_t* rows, u32_t stride, int num_rows) const {
        if (row >= LOAD_ROWS) return;
#pragma unroll
        for (int i = 0; i < ROWS; i += LOAD_ROWS) {
            if (i + LOAD_ROWS > ROWS && row + i >= ROWS) break;
            // The sum of offsets is one of 32 bits, so that the rest of the address can stay in a uniform register.
            const u32_t offset = from + i * stride;
            cp_async16(shared + to + i * ROW_BYTES, rows + offset, row + i < num_rows);
        }
    }
};

// A warp's queries: the left operands of the products with keys.
struct Queries {
    u32_t k16[M_TILES][K16_STORED][4];
    u32_t k8[M_TILES][2];

    // `at` is the warp's first row; `flip` changes signs.
    __device__ __forceinline__ void load(u32_t at, u32_t flip) {
        const u32_t lane = threadIdx.x & 31;
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            const u32_t row = at + (m * 16 + lane % 16) * ROW_BYTES;
#pragma unroll
            for (int k = 0; k < K16; k++) {
                ldmatrix_x4(k16[m][k], row + (2 * k + lane / 16) * 16);
#pragma unroll
                for (int i = 0; i < 4; i++) k16[m][k][i] ^= flip;
            }
            if (HAS_K8) {
                ldmatrix_x2(k8[m], row + 2 * K16 * 16);
                k8[m][0] ^= flip;
                k8[m][1] ^= flip;
            }
        }
    }
};

// Scores of the warp's rows and the stage's keys.
__device__ __forceinline__ void score(float (&scores)[M_TILES][KEYS / 8][4], const Queries& q, u32_t keys) {
    const u32_t lane = threadIdx.x & 31;
    // Two tiles of 8 keys: lanes 0-7 and 8-15 address the first's elements 0-7 and 8-15, the others the second's.
    const u32_t at16 = keys + (lane / 16 * 8 + lane % 8) * ROW_BYTES + lane / 8 % 2 * 16;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int t = 0; t < KEYS / 8; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[m][t][i] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < K16; k++) {
#pragma unroll
        for (int t = 0; t < KEYS / 8; t += 2) {
            u32_t b[4];
            ldmatrix_x4(b, at16 + t * 8 * ROW_BYTES + k * 32);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_bf16(scores[m][t], q.k16[m][k], b[0], b[1]);
                mma_bf16(scores[m][t + 1], q.k16[m][k], b[2], b[3]);
            }
        }
    }
    if (HAS_K8) {
        // Four tiles of 8 keys, one from each 8 lanes.
        const u32_t at8 = keys + lane * ROW_BYTES + K16 * 32;
#pragma unroll
        for (int t = 0; t < KEYS / 8; t += 4) {
            u32_t b[4];
            ldmatrix_x4(b, at8 + t * 8 * ROW_BYTES);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int m = 0; m < M_TILES; m++) mma_bf16_k8(scores[m][t + i], q.k8[m][0], q.k8[m][1], b[i]);
            }
        }
    }
}

// Keys from `num_keys` on are hidden.
__device__ __forceinline__ void hide(float (&scores)[M_TILES][KEYS / 8][4], int num_keys) {
    const int column = 2 * (threadIdx.x & 3);
#pragma unroll
    for (int t = 0; t < KEYS / 8; t++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (t * 8 + column + i >= num_keys) {
#pragma unroll
                for (int m = 0; m < M_TILES; m++) scores[m][t][i] = scores[m][t][i + 2] = -INFINITY_F;
            }
        }
    }
}

// Adds the stage's values, weighted.
__device__ __forceinline__ void add_values(float (&sums)[M_TILES][CHUNKS][4],
                                           const float (&weights)[M_TILES][KEYS / 8][4], u32_t values) {
    const u32_t lane = threadIdx.x & 31;
    // Two tiles of 8 elements: lanes 0-7 and 8-15 address the first's keys 0-7 and 8-15, the others the second's.
    const u32_t at = values + lane % 16 * ROW_BYTES + lane / 16 * 16;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        u32_t a[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++) weights_bf16(a[m], weights[m][2 * k], weights[m][2 * k + 1]);
#pragma unroll
        for (int c = 0; c + 1 < CHUNKS; c += 2) {
            u32_t b[4];
            ldmatrix_x4_trans(b, at + k * 16 * ROW_BYTES + c * 16);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_bf16(sums[m][c], a[m], b[0], b[1]);
                mma_bf16(sums[m][c + 1], a[m], b[2], b[3]);
            }
        }
        if (HAS_K8) {
            u32_t b[2];
            ldmatrix_x2_trans(b, values + (k * 16 + lane % 16) * ROW_BYTES + (CHUNKS - 1) * 16);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) mma_bf16(sums[m][CHUNKS - 1], a[m], b[0], b[1]);
        }
    }
}

// One block of keys and values, of which `num_keys` exist.
__device__ __forceinline__ void attend(float (&sums)[M_TILES][CHUNKS][4], SoftmaxRows (&rows)[M_TILES],
                                       const Queries& q, u32_t stage, int num_keys, float factor) {
    float scores[M_TILES][KEYS / 8][4];
    score(scores, q, stage);
    if (num_keys < KEYS) hide(scores, num_keys);
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        float decay[2];
        online_softmax(rows[m], scores[m], factor, decay);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][c][i] *= decay[i / 2];
        }
    }
    add_values(sums, scores, stage + KEYS * ROW_BYTES);
}

// Divides a warp's sums and writes them through its rows of shared memory, so that they leave in whole chunks.
__device__ __forceinline__ void write_rows(u8_t* shared, float (&sums)[M_TILES][CHUNKS][4],
                                           const SoftmaxRows (&rows)[M_TILES], bf16_t* __restrict__ out, u32_t stride,
                                           int num_rows) {
    const u32_t lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float factor = 1.0f / quad_sum(rows[m].sum[r]);
            u8_t* row = shared + (m * 16 + r * 8 + lane / 4) * ROW_BYTES + lane % 4 * 4;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                *reinterpret_cast<u32_t*>(row + c * 16) =
                    pack_bf16x2(sums[m][c][2 * r] * factor, sums[m][c][2 * r + 1] * factor);
            }
        }
    }
    __syncwarp();
    constexpr int COPIES = M_TILES * 16 * CHUNKS;
#pragma unroll
    for (int i = 0; i < COPIES; i += 32) {
        const u32_t copy = lane + i, row = copy / CHUNKS, chunk = copy % CHUNKS;
        if (copy < COPIES && (int)row < num_rows) {
            const u32_t* from = reinterpret_cast<const u32_t*>(shared + row * ROW_BYTES + chunk * 16);
            store_vec(reinterpret_cast<u32_t*>(out + (u64_t)row * stride + chunk * 8), load_vec<u32_t, 4>(from));
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    varlen_attention(const bf16_t* __restrict__ qkv, const i32_t* __restrict__ cu_seqlens, bf16_t* __restrict__ out,
                     int n, int num_segments, int num_heads, float scale) {
    extern __shared__ __align__(16) u8_t shared[];
    Work work;
    if (!find_work(cu_seqlens, num_segments, n, work)) return;

    // Bytes of a row of queries, keys or values, and of all three.
    const u32_t part_bytes = num_heads * HEAD_DIM * 2, stride = 3 * part_bytes;
    const u8_t* head = reinterpret_cast<const u8_t*>(qkv + blockIdx.y * HEAD_DIM);
    const u8_t* keys = head + (u64_t)work.first_key * stride + part_bytes;
    const u32_t stages = shared_address(shared);
    const Part part(stride);
    // Keys of a block and, KEYS rows behind them, its values.
    auto load_block = [&](u32_t stage, int num_keys) {
        part.load<KEYS>(stage, keys, stride, num_keys);
        part.load<KEYS>(stage + KEYS * ROW_BYTES, keys + part_bytes, stride, num_keys);
        cp_async_commit();
        keys += (u64_t)KEYS * stride;
    };
    part.load<TILE>(stages + STAGE_BYTES, head + (u64_t)work.first_row * stride, stride, work.num_rows);
    load_block(stages, work.num_keys);

    const int warp_row = threadIdx.x / 32 * (16 * M_TILES);
    const bool has_rows = warp_row < work.num_rows;
    // Scores are powers of two, and the softmax wants a positive factor: a sign goes into the queries, and a factor of 0
    // would make NaN of hidden keys.
    const float factor = fmaxf(fabsf(scale) * LOG2_E, 1e-37f);
    Queries q;
    cp_async_wait<0>();
    __syncthreads();
    q.load(stages + STAGE_BYTES + warp_row * ROW_BYTES, scale < 0.0f ? 0x80008000u : 0u);

    float sums[M_TILES][CHUNKS][4] = {};
    SoftmaxRows rows[M_TILES];
    u32_t stage = stages, other = stages + STAGE_BYTES;
    for (int num_keys = work.num_keys; num_keys > 0; num_keys -= KEYS) {
        // This block has arrived, and nobody reads the other stage any more.
        cp_async_wait<0>();
        __syncthreads();
        if (num_keys > KEYS) load_block(other, num_keys - KEYS);
        if (has_rows) attend(sums, rows, q, stage, num_keys, factor);
        const u32_t next = other;
        other = stage;
        stage = next;
    }

    __syncthreads();
    if (!has_rows) return;
    const u32_t row_len = num_heads * HEAD_DIM;
    bf16_t* to = out + (u64_t)(work.first_row + warp_row) * row_len + blockIdx.y * HEAD_DIM;
    write_rows(shared + warp_row * ROW_BYTES, sums, rows, to, row_len, work.num_rows - warp_row);
}
