// The end of sampling for rows that draw, have penalties or bans, or report their best tokens: one block per row.
//
// Nothing is sorted and nothing is added in an order that matters: weights are whole multiples of 2^-44 (sampling.cuh),
// so every sum is exact. What `sample_scan_history` kept of each group of 512 elements tells which groups to read:
//   top-k, best tokens: k groups have an element as good as the k-th best group maximum, so the k best tokens are all
//       at least that good, and lie in the groups whose maximum is: k groups instead of 297
//   top-p: the best of the 64 best groups, if they weigh enough (they are compared with the sum that the groups give)
//   neither: the draw finds its group by the groups' sums, and its token within
// These few candidates are compared with each other. If they are more than 512 or weigh too little (a flat
// distribution), the whole row is read: weights in quarter octaves below the best one, then the order of the values in
// the quarter octave where the cut lies, 2048 parts of it at a time (two passes, three at most), then the kept weight
// of each group.
//
// Shared memory: 41 KB. Bound: k groups of 2 KB per row, or 4 to 10 times 4 bytes per logit by one multiprocessor where
// the whole row is read.
// Not chosen: radix passes over the whole row for every cut, as on the CPU. One multiprocessor would read the row four
// to eight times, and additions to the few buckets that a row's highest bits fall into wait for each other.

#include "sampling_row.cuh"

// Groups whose elements top-p looks at first.
#define NUCLEUS_GROUPS 64u

// Of a row's values, those of an order above `order`, and the first `ties`, by id, of those at it; all at least of
// `min_weight`.
struct Kept {
    u32_t order;
    u32_t ties;
    float min_weight;

    __device__ __forceinline__ float cut() const { return order == 0 ? -INFINITY_F : value_of(order); }
};

// `share` of a mass, rounded up, so that whole masses reach it exactly when they reach the share.
__device__ __forceinline__ u64_t share_of(float share, u64_t total) {
    const double target = (double)share * (double)total;
    return max(min(target > 0.0 ? __double2ull_ru(target) : 0ull, total), 1ull);
}

// The order of each group's largest value, of the logits or of the scores.
__device__ void load_group_orders(const Partial* partials, u32_t num_groups, bool of_scores) {
    __syncthreads();
    if (threadIdx.x < num_groups) {
        const Partial& partial = partials[threadIdx.x];
        group_order[threadIdx.x] = of_scores ? partial.score_order : partial.logit_order;
    }
    __syncthreads();
}

// ---- candidates ----

// The order of the `rank`-th best group's largest value; `rank` is from 1 to `num_groups`.
__device__ u32_t rank_groups(u32_t num_groups, u32_t rank) {
    if (threadIdx.x < num_groups) {
        const u32_t own = group_order[threadIdx.x];
        u32_t num_better = 0;
        for (u32_t other = 0; other < num_groups; ++other) {
            const u32_t order = group_order[other];
            num_better += order > own || (order == own && other < threadIdx.x);
        }
        if (num_better == rank - 1) chosen = own;
    }
    __syncthreads();
    const u32_t order = chosen;
    __syncthreads();
    return order;
}

// Collects all elements of at least this order, in no order, and says how many there are. Above CANDIDATES only their
// number is of use.
__device__ u32_t collect(const Row& row, u32_t lowest) {
    if (threadIdx.x == 0) num_candidates = 0;
    __syncthreads();
    for (u32_t group = WARP; group < row.num_groups; group += WARPS) {
        if (group_order[group] < lowest) continue;
        row.visit_group(group, [&](u32_t id, float x) {
            const u32_t order = order_of(x);
            if (order < lowest) return;
            const u32_t place = atomicAdd(&num_candidates, 1u);
            if (place < CANDIDATES) {
                work.candidates.order[place] = order;
                work.candidates.id[place] = id;
            }
        });
    }
    __syncthreads();
    const u32_t count = num_candidates;
    __syncthreads();
    return count;
}

// Collects at least the `rank` best elements if they are few enough to be compared with each other. `covers_row` says
// whether they are all.
__device__ u32_t collect_best(const Row& row, u32_t rank, bool& covers_row) {
    covers_row = row.vocab <= CANDIDATES;
    if (covers_row) return collect(row, 0);
    if (rank > row.num_groups) return CANDIDATES + 1;
    return collect(row, rank_groups(row.num_groups, rank));
}

__device__ __forceinline__ bool is_better(u32_t order, u32_t id, u32_t own_order, u32_t own_id) {
    return order > own_order || (order == own_order && id < own_id);
}

// ---- the best tokens and their log-probabilities ----

// One after another, each by a pass over the row: for rows of equal logits, where nothing bounds them.
__device__ void best_one_by_one(const Row& row, double log_sum, u32_t wanted, i32_t* ids, float* logprobs) {
    u32_t last_order = FULL_WARP, last_id = 0;
    for (u32_t rank = 0; rank < wanted; ++rank) {
        u32_t best_order = 0, best_id = NO_TOKEN;
        row.visit_all([&](u32_t id, float x) {
            const u32_t order = order_of(x);
            const bool is_left = is_better(last_order, last_id, order, id);
            if (is_left && is_better(order, id, best_order, best_id)) {
                best_order = order;
                best_id = id;
            }
        });
        last_order = block_max(best_order);
        last_id = block_min(best_order == last_order ? best_id : NO_TOKEN);
        if (threadIdx.x == 0) {
            ids[rank] = (i32_t)last_id;
            logprobs[rank] = (float)((double)row.values[last_id] - log_sum);
        }
    }
}

__device__ void best_tokens(const Row& row, const Partial* partials, u32_t num_top, i32_t* ids, float* logprobs) {
    const u32_t wanted = is_finite(whole.logit_order) ? min(num_top, row.vocab) : 0;
    for (u32_t i = wanted + threadIdx.x; i < num_top; i += THREADS) {
        ids[i] = -1;
        logprobs[i] = NAN_F;
    }
    if (wanted == 0) return;
    load_group_orders(partials, row.num_groups, false);
    bool covers_row;
    const u32_t count = collect_best(row, wanted, covers_row);
    if (count > CANDIDATES) {
        best_one_by_one(row, whole.log_sum, wanted, ids, logprobs);
        return;
    }
    if (threadIdx.x < count) {
        const Candidates& all = work.candidates;
        const u32_t order = all.order[threadIdx.x], id = all.id[threadIdx.x];
        u32_t rank = 0;
        for (u32_t i = 0; i < count; ++i) rank += is_better(all.order[i], all.id[i], order, id);
        if (rank < wanted) {
            ids[rank] = (i32_t)id;
            logprobs[rank] = (float)((double)row.values[id] - whole.log_sum);
        }
    }
    __syncthreads();
}

// ---- the draw ----

// 53 bits, from the highest down, of Philox4x32-10 with the seed as key and the draw as counter.
__device__ u64_t draw_uniform() {
    u32_t c0 = params.draw_low, c1 = params.draw_high, c2 = 0, c3 = 0, k0 = params.seed_low, k1 = params.seed_high;
#pragma unroll 1
    for (int round = 0; round < 10; ++round) {
        const u32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return ((u64_t)c0 << 32 | c1) & ~0x7ffull;
}

// Cuts the candidates and draws among the kept. NO_TOKEN when top-p needs more than they weigh.
__device__ u32_t draw_of_candidates(const Weights& weights, u32_t count, bool cuts_k, bool covers_row, u64_t row_mass) {
    Candidates& all = work.candidates;
    const bool is_mine = threadIdx.x < count;
    const u32_t order = is_mine ? all.order[threadIdx.x] : 0, id = is_mine ? all.id[threadIdx.x] : NO_TOKEN;
    const float weight = is_mine ? weights.weight(value_of(order)) : 0.0f;
    u64_t mass = fixed(weight);
    if (is_mine) all.mass[threadIdx.x] = mass;
    __syncthreads();
    u64_t mass_above = 0;
    u32_t num_above = 0;
    for (u32_t i = 0; is_mine && i < count; ++i) {
        if (is_better(all.order[i], all.id[i], order, id)) mass_above += all.mass[i];
        num_above += all.order[i] > order;
    }
    // All that equal the k-th stay.
    bool is_kept = is_mine && (!cuts_k || num_above < params.top_k);
    if (params.top_p < 1.0f) {
        const u64_t known = block_sum(is_kept ? mass : 0);
        const u64_t target = share_of(params.top_p, cuts_k || covers_row ? known : row_mass);
        if (known < target) return NO_TOKEN;
        is_kept = is_kept && (mass_above < target || mass_above == 0);
    }
    is_kept = is_kept && weight >= fminf(params.min_p, 1.0f);
    mass = is_kept ? mass : 0;
    if (threadIdx.x == 0) chosen = NO_TOKEN;
    const u64_t at = __umul64hi(draw_uniform(), block_sum(mass));
    if (is_mine) all.mass[threadIdx.x] = mass;
    __syncthreads();
    if (mass > 0) {
        u64_t up_to = 0;
        for (u32_t i = 0; i < count; ++i) up_to += all.id[i] <= id ? all.mass[i] : 0;
        if (up_to > at) atomicMin(&chosen, id);
    }
    __syncthreads();
    const u32_t token = chosen;
    __syncthreads();
    return token;
}

// The token within a group, by the weights of its kept elements laid end to end by id; `at` lies below `expected`,
// their sum. Where that is a rounded one, the place is scaled to the sum found.
__device__ u32_t draw_in_group(const Row& row, const Weights& weights, const Kept& kept, u32_t group, u64_t at,
                               u64_t expected) {
    const u32_t id = group * GROUP + threadIdx.x;
    const bool is_any = threadIdx.x < GROUP && id < row.vocab;
    const float x = is_any ? row.values[id] : -INFINITY_F;
    const bool is_tie = is_any && x == kept.cut();
    u64_t num_ties, total;
    const u64_t tie = block_scan(is_tie, num_ties);
    const float weight = weights.weight(x);
    const bool is_kept = is_any && (x > kept.cut() || (is_tie && tie <= kept.ties)) && weight >= kept.min_weight;
    const u64_t mass = is_kept ? fixed(weight) : 0;
    const u64_t up_to = block_scan(mass, total);
    if (total != expected) at = min((u64_t)((double)at / (double)expected * (double)total), total - 1);
    return block_min(mass > 0 && up_to > at ? id : NO_TOKEN);
}

// The token by the groups' masses above the cut in `group_mass` and their ties in `group_ties`. With `by_sums` these
// are the scan's rounded sums, and weights within a group count from its own best one, so that none is too light to be
// drawn.
__device__ u32_t draw_by_groups(const Row& row, Weights weights, Kept kept, bool by_sums) {
    const bool is_mine = threadIdx.x < row.num_groups;
    const float at_cut = weights.weight(kept.cut());
    const u64_t tie_mass = at_cut >= kept.min_weight ? fixed(at_cut) : 0;
    const u64_t own_ties = is_mine ? group_ties[threadIdx.x] : 0, limit = kept.ties;
    u64_t total;
    const u64_t ties = block_scan(own_ties, total);
    const u64_t ties_before = min(ties - own_ties, limit);
    const u64_t mass = (is_mine ? group_mass[threadIdx.x] : 0) + (min(ties, limit) - ties_before) * tie_mass;
    const u64_t up_to = block_scan(mass, total);
    const u64_t at = __umul64hi(draw_uniform(), total);
    if (up_to > at && up_to - mass <= at) {
        found.place = threadIdx.x;
        found.above = at - (up_to - mass);
        found.mass = mass;
        found.mass_above = limit - ties_before;
    }
    __syncthreads();
    const Found in = found;
    __syncthreads();
    kept.ties = (u32_t)in.mass_above;
    if (by_sums) weights.largest = value_of(group_order[in.place]);
    return draw_in_group(row, weights, kept, in.place, in.above, in.mass);
}

// The mass of a group as the scan summed it.
__device__ __forceinline__ u64_t summed_mass(const Partial& partial, const Weights& weights) {
    const double scale = (double)weights.weight(value_of(partial.score_order)) * (double)(1ull << FIXED_BITS);
    return __double2ull_rz(partial.score_sum * scale);
}

// The draw from all tokens: the groups' sums are known.
__device__ u32_t draw_of_all(const Row& row, const Partial* partials, const Weights& weights) {
    if (threadIdx.x < row.num_groups) {
        group_mass[threadIdx.x] = summed_mass(partials[threadIdx.x], weights);
        group_ties[threadIdx.x] = 0;
    }
    __syncthreads();
    return draw_by_groups(row, weights, {0, 0, 0.0f}, true);
}

// The draw from the kept tokens: every group that can have any is read for their mass.
__device__ u32_t draw_of_kept(const Row& row, const Weights& weights, const Kept& kept) {
    for (u32_t group = WARP; group < row.num_groups; group += WARPS) {
        u64_t mass = 0;
        u32_t ties = 0;
        const u32_t best = group_order[group];
        if (best >= kept.order && weights.weight(value_of(best)) >= kept.min_weight) {
            row.visit_group(group, [&](u32_t, float x) {
                ties += x == kept.cut();
                if (x <= kept.cut()) return;
                const float weight = weights.weight(x);
                if (weight >= kept.min_weight) mass += fixed(weight);
            });
        }
        mass = warp_sum(mass);
        ties = __reduce_add_sync(FULL_WARP, ties);
        if (LANE == 0) {
            group_mass[group] = mass;
            group_ties[group] = ties;
        }
    }
    __syncthreads();
    return draw_by_groups(row, weights, kept, false);
}

// ---- the whole ----

// What top-k and top-p keep, by reading the whole row.
__device__ Kept keep(const Row& row, const Weights& weights, bool cuts_k) {
    Kept kept = {0, NO_TOKEN, fminf(params.min_p, 1.0f)};
    count_octaves(row, weights);
    u64_t total = 0;
#pragma unroll 4
    for (u32_t octave = 0; octave <= DEEP; ++octave) total += octave_mass[octave];
    if (cuts_k) {
        const Cut cut = find_cut(row, weights, params.top_k, true);
        kept.order = cut.order;
        total = cut.mass_above + cut.mass;
    }
    if (params.top_p < 1.0f) {
        const u64_t target = share_of(params.top_p, total);
        const Cut cut = find_cut(row, weights, target, false);
        const u64_t each = max(weights.mass(value_of(cut.order)), 1ull);
        kept.order = cut.order;
        kept.ties = (u32_t)min((target - cut.mass_above + each - 1) / each, (u64_t)NO_TOKEN);
    }
    return kept;
}

__device__ u32_t draw(const Row& row, const Partial* partials, const Weights& weights) {
    const bool cuts_k = params.top_k > 0 && params.top_k < row.vocab, cuts_p = params.top_p < 1.0f;
    load_group_orders(partials, row.num_groups, true);
    if (!cuts_k && !cuts_p) {
        const float min_weight = fminf(params.min_p, 1.0f);
        if (min_weight <= 0.0f) return draw_of_all(row, partials, weights);
        return draw_of_kept(row, weights, {0, 0, min_weight});
    }
    bool covers_row;
    const u32_t rank = cuts_k ? params.top_k : min(NUCLEUS_GROUPS, row.num_groups);
    const u32_t count = collect_best(row, rank, covers_row);
    if (count <= CANDIDATES) {
        const u64_t own = threadIdx.x < row.num_groups ? summed_mass(partials[threadIdx.x], weights) : 0;
        const u64_t row_mass = block_sum(own);
        const u32_t token = draw_of_candidates(weights, count, cuts_k, covers_row, row_mass);
        if (token != NO_TOKEN) return token;
    }
    return draw_of_kept(row, weights, keep(row, weights, cuts_k));
}

// No `__restrict__`: the compiler may read a restricted pointer before the wait, when the kernel before still writes
// there.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_choose(const float* logits, const float* scores, const RowParams* rows, const Partial* partials,
                  i32_t* token_ids, float* logprobs, i32_t* top_ids, float* top_logprobs, int vocab, int num_groups,
                  int num_top, int vec) {
    wait_for_the_kernel_before();
    const u32_t row = blockIdx.x;
    const u64_t row_start = (u64_t)row * vocab;
    const Partial* own = partials + (u64_t)row * num_groups;
    if (WARP == 0) {
        const Whole merged = merge(own, num_groups, LANE);
        if (LANE == 0) whole = merged;
    }
    if (threadIdx.x == 32) params = rows[row];
    __syncthreads();
    const Row raw = {logits + row_start, (u32_t)vocab, (u32_t)num_groups, vec != 0};
    if (num_top > 0) {
        const u64_t first = (u64_t)row * num_top;
        best_tokens(raw, own, num_top, top_ids + first, top_logprobs + first);
    }
    u32_t token = NO_TOKEN;
    if (is_finite(whole.logit_order) && is_finite(whole.score_order)) {
        token = whole.score_id;
        if (params.temperature > 0.0f) {
            const Row scored = {params.flags & HAS_SCORES ? scores + row_start : raw.values, raw.vocab, raw.num_groups,
                                raw.vec};
            token = draw(scored, own, Weights(value_of(whole.score_order), params.temperature));
        }
    }
    if (threadIdx.x == 0) {
        token_ids[row] = (i32_t)token;
        logprobs[row] = token == NO_TOKEN ? NAN_F : (float)((double)raw.values[token] - whole.log_sum);
    }
}
