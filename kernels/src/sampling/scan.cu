// The first pass of sampling, the end of it for greedy rows, and the marks of what penalties look at.
//
//   sample_scan          per group g of 512 elements of a row: largest logit m_g and sum of exp(l - m_g)
//   sample_scan_history  the same, and the scores: penalties and bans applied, written to `scores` where a row has any;
//                        their largest with its lowest id, and the sum of exp((score - largest) / temperature)
//   sample_greedy        per row: token of the largest logit, its log-probability m + ln sum_g exp(m_g - m) sum_g
//   mark                 per entry: a count and a prompt mark of one token of one row
//
// Grid: scan: a warp per group (4 per block), whatever the number of rows, so that one row of 152k (297 groups) lies on
// 75 multiprocessors and a row's sums are the same in any batch. Greedy: a warp per row.
// Shared memory: none. Bound: 4 bytes per logit (608 KB per row of 152k); with penalties 5 more read and 4 written.
// Not chosen: larger groups, reduced over a block's shared memory. There would be fewer partial results, but a barrier in
// each, and maxima too coarse to bound the k-th best token with (choose.cu).

#include "sampling.cuh"

#define WARPS 4
#define MARK_THREADS 256

// The largest element, NaNs above all, and the lowest id that has it. All lanes call.
struct Best {
    u32_t order, id;
};

__device__ __forceinline__ Best best_of(const Group& x, u32_t first) {
    float best = -INFINITY_F;
    u32_t id = NO_TOKEN;
#pragma unroll
    for (int i = 0; i < QUADS; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float value = x.at[i].at[j];
            if (value > best || value != value) {
                best = value;
                id = first + i * QUAD_STEP + j;
            }
        }
    }
    const u32_t own = order_of(best);
    const u32_t order = __reduce_max_sync(FULL_WARP, own);
    return {order, __reduce_min_sync(FULL_WARP, own == order ? id : NO_TOKEN)};
}

// Sum of the weights: four in float32, the rest in float64.
__device__ __forceinline__ double weigh(const Group& x, float largest, float temperature) {
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < QUADS; ++i) {
        float w[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) w[j] = weight_of(x.at[i].at[j], largest, temperature);
        sum += (double)((w[0] + w[1]) + (w[2] + w[3]));
    }
    return warp_sum(sum);
}

// What the history of a row lies in.
struct History {
    const i32_t* counts;
    const u8_t* prompt;
    const u32_t* banned;
};

// Without contraction, so that the scores are those of the CPU, bit by bit.
__device__ __forceinline__ float penalise(float x, i32_t count, bool in_prompt, const RowParams& row) {
    if ((row.flags & READS_PROMPT) && (in_prompt || count > 0)) {
        x = x < 0.0f ? __fmul_rn(x, row.repetition_penalty) : __fdiv_rn(x, row.repetition_penalty);
    }
    if ((row.flags & READS_COUNTS) && count > 0) {
        x = __fsub_rn(x, __fmul_rn(row.frequency_penalty, (float)count));
        x = __fsub_rn(x, row.presence_penalty);
    }
    return x;
}

// Which of a lane's 16 elements are banned.
__device__ __forceinline__ u32_t banned_mask(const RowParams& row, const u32_t* banned, u32_t group, u32_t lane) {
    u32_t mask = 0;
    for (u32_t i = 0; i < row.num_banned; ++i) {
        const u32_t at = banned[row.first_banned + i] - group * GROUP;
        if (at < GROUP && (at >> 2 & 31) == lane) mask |= 1u << ((at / QUAD_STEP) * 4 + (at & 3));
    }
    return mask;
}

// The group's scores, to `scores` and in place of its logits.
__device__ __forceinline__ void score(Group& x, const RowParams& row, const History& history, float* scores,
                                      u32_t group, u32_t lane, u32_t vocab, bool vec) {
    const u32_t first = first_of(group, lane);
    const u32_t mask = banned_mask(row, history.banned, group, lane);
    const bool reads_counts = row.flags & (READS_PROMPT | READS_COUNTS), reads_prompt = row.flags & READS_PROMPT;
#pragma unroll
    for (int i = 0; i < QUADS; ++i) {
        const u32_t at = first + i * QUAD_STEP;
        Vec<i32_t, 4> count = {{0, 0, 0, 0}};
        Vec<u8_t, 4> prompt = {{0, 0, 0, 0}};
        if (vec && at < vocab) {
            if (reads_counts) count = load_vec<i32_t, 4>(history.counts + at);
            if (reads_prompt) prompt = load_vec<u8_t, 4>(history.prompt + at);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (reads_counts && at + j < vocab) count.at[j] = history.counts[at + j];
                if (reads_prompt && at + j < vocab) prompt.at[j] = history.prompt[at + j];
            }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            // What lies beyond the row's end stays at minus infinity, which a penalty could turn into something else.
            const float value = penalise(x.at[i].at[j], count.at[j], prompt.at[j] != 0, row);
            const bool is_banned = mask >> (i * 4 + j) & 1;
            x.at[i].at[j] = is_banned || at + j >= vocab ? -INFINITY_F : value;
            if (!vec && at + j < vocab) scores[at + j] = x.at[i].at[j];
        }
        if (vec && at < vocab) store_vec(scores + at, x.at[i]);
    }
}

// Which row and group a warp has.
struct Task {
    u32_t row, group, lane;
    bool is_any;
};

__device__ __forceinline__ Task task_of(u32_t num_rows, u32_t num_groups) {
    const u32_t task = blockIdx.x * WARPS + (threadIdx.x >> 5), row = task / num_groups;
    return {row, task - row * num_groups, threadIdx.x & 31, row < num_rows};
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    sample_scan(const float* __restrict__ logits, Partial* __restrict__ partials, int num_rows, int vocab,
                int num_groups, int vec) {
    let_the_next_kernel_stand_by();
    const Task task = task_of(num_rows, num_groups);
    if (!task.is_any) return;
    const u32_t first = first_of(task.group, task.lane);
    const Group x = load_group(logits + (u64_t)task.row * vocab, first, vocab, vec);
    const Best best = best_of(x, first);
    const double sum = weigh(x, value_of(best.order), 1.0f);
    if (task.lane == 0) {
        partials[(u64_t)task.row * num_groups + task.group] = {sum, 0.0, best.order, best.order, best.id, 0};
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    sample_scan_history(const float* __restrict__ logits, const RowParams* __restrict__ rows,
                        const u32_t* __restrict__ banned, const i32_t* __restrict__ counts,
                        const u8_t* __restrict__ prompt, float* __restrict__ scores, Partial* __restrict__ partials,
                        int num_rows, int vocab, int num_groups, int vec) {
    let_the_next_kernel_stand_by();
    const Task task = task_of(num_rows, num_groups);
    if (!task.is_any) return;
    const u32_t first = first_of(task.group, task.lane);
    const u64_t row_start = (u64_t)task.row * vocab;
    Group x = load_group(logits + row_start, first, vocab, vec);
    const RowParams row = rows[task.row];
    Best best = best_of(x, first);
    const u32_t logit_order = best.order;
    const double logit_sum = weigh(x, value_of(logit_order), 1.0f);
    if (row.flags & HAS_SCORES) {
        const History history = {counts + row_start, prompt + row_start, banned};
        score(x, row, history, scores + row_start, task.group, task.lane, vocab, vec);
        best = best_of(x, first);
    }
    double score_sum = 0.0;
    if (row.temperature > 0.0f) score_sum = weigh(x, value_of(best.order), row.temperature);
    if (task.lane == 0) {
        partials[(u64_t)task.row * num_groups + task.group] = {logit_sum,  score_sum, logit_order,
                                                               best.order, best.id,   0};
    }
}

// No `__restrict__`: the compiler may read a restricted pointer before the wait, when the kernel before still writes
// there.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    sample_greedy(const Partial* partials, i32_t* token_ids, float* logprobs, int num_rows, int num_groups) {
    wait_for_the_kernel_before();
    const u32_t lane = threadIdx.x & 31;
    const int row = blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (row >= num_rows) return;
    const Whole whole = merge(partials + (u64_t)row * num_groups, num_groups, lane);
    if (lane == 0) {
        const bool has_choice = is_finite(whole.logit_order);
        token_ids[row] = has_choice ? (i32_t)whole.score_id : -1;
        const double logprob = (double)value_of(whole.logit_order) - whole.log_sum;
        logprobs[row] = has_choice ? (float)logprob : __int_as_float(0x7fc00000);
    }
}

// One entry: the highest bit of `row` says that the token stands in the prompt.
struct Entry {
    u32_t row, token;
    i32_t count;
};

extern "C" __global__ void __launch_bounds__(MARK_THREADS)
    mark(const Entry* __restrict__ entries, i32_t* __restrict__ counts, u8_t* __restrict__ prompt, int num_entries,
         int num_rows, int vocab, int is_set) {
    const u32_t i = blockIdx.x * MARK_THREADS + threadIdx.x;
    if (i >= (u32_t)num_entries) return;
    const Entry entry = entries[i];
    const u32_t row = entry.row & 0x7fffffffu;
    if (row >= (u32_t)num_rows || entry.token >= (u32_t)vocab) return;
    const u64_t at = (u64_t)row * vocab + entry.token;
    counts[at] = is_set ? entry.count : 0;
    prompt[at] = is_set ? entry.row >> 31 : 0;
}
