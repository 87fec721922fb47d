//! What is chosen before a launch: tiles by the head and the card, and sizes of the memory that a step lends.

use foveal_device::DType;

use crate::KvLayout;

/// Packed rows (a row of a sequence times a query head of its group) of a prefill tile: `TILE_ROWS` of the kernels.
const TILE_ROWS: usize = 128;
/// Packed rows of a slot of partial results, and the most of a decode tile: `UNIT_ROWS` of the kernels.
const UNIT_ROWS: usize = 16;
/// Warps of a block.
pub(super) const NUM_WARPS: usize = 4;
/// Blocks that a multiprocessor holds at once, on any card.
const MAX_CTAS_PER_SM: usize = 2;
/// `i32`s of the list before its items, and of an item.
pub(super) const HEADER_INTS: usize = 16;
pub(super) const ITEM_INTS: usize = 12;
/// Counters of the queues, before those of the slots.
pub(super) const QUEUE_COUNTERS: usize = 3;

/// Sizes of what a step lends to [`plan`](super::plan) and [`paged_attention`](super::paged_attention) on CUDA, one
/// memory for all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkSize {
    /// i32 elements of the list.
    pub list_len: usize,
    /// i32 elements of the counters.
    pub counters_len: usize,
    /// f32 elements of the partial results.
    pub partials_len: usize,
}

/// What any batch of up to `max_tokens` rows and `max_seqs` sequences (those without rows not counted) needs at most,
/// on a card of `num_sms` multiprocessors.
///
/// Split tiles are what takes room, and they are few whatever the contexts are: no piece but a tile's last is shorter
/// than a block's even share of its queue's keys (half of it for decode), so all of them together are at most two per
/// block and share (a tile is split only if it is longer than one piece).
#[must_use]
pub fn work_size(max_tokens: usize, max_seqs: usize, num_heads: usize, layout: KvLayout, num_sms: usize) -> WorkSize {
    let num_kv_heads = layout.num_kv_heads.max(1);
    let num_ctas = MAX_CTAS_PER_SM * num_sms;
    let packed_rows = max_tokens.saturating_mul((num_heads / num_kv_heads).max(1));
    let num_seqs = max_seqs.min(max_tokens);
    // One tile more than the whole ones per sequence: its last, or that of its decode rows.
    let num_tiles = (packed_rows / TILE_ROWS).saturating_add(num_seqs);
    let num_items = num_tiles.saturating_add((3 * num_ctas).div_ceil(num_kv_heads));
    let decode_slots = (4 * num_ctas).min(num_seqs.saturating_mul(num_kv_heads).saturating_add(2 * num_ctas));
    let prefill_pieces = (2 * num_ctas).min(num_tiles.saturating_mul(num_kv_heads).saturating_add(num_ctas));
    let prefill_slots = prefill_pieces * packed_rows.div_ceil(UNIT_ROWS).min(TILE_ROWS / UNIT_ROWS);
    let num_slots = decode_slots + prefill_slots;
    WorkSize {
        list_len: num_items.saturating_mul(ITEM_INTS).saturating_add(HEADER_INTS),
        counters_len: QUEUE_COUNTERS + num_slots,
        partials_len: num_slots.saturating_mul(slot_len(layout.head_dim)),
    }
}

/// f32 elements of a slot: 16 rows of sums, each with its maximum and total.
fn slot_len(head_dim: usize) -> usize {
    UNIT_ROWS * (head_dim + 2)
}

/// How the kernel is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    pub(super) head_dim: usize,
    /// Pages hold FP8, else bf16.
    pub(super) is_f8: bool,
    /// Keys of a block of the prefill body, of which two are in shared memory.
    pub(super) block_n: usize,
    /// Tiles of keys in the ring of each warp of the decode body.
    pub(super) decode_stages: usize,
    pub(super) ctas_per_sm: usize,
}

impl Tiles {
    /// The best that the card's shared memory holds: two blocks per multiprocessor, so that one's softmax runs beside
    /// the other's products; then wide blocks of keys and deep rings. One block of anything fits every card.
    pub(super) fn choose(layout: KvLayout, compute_capability: (u32, u32)) -> Self {
        let KvLayout { head_dim, dtype, .. } = layout;
        let is_f8 = dtype == DType::F8E4M3;
        // Widths below 128 leave no registers for wide blocks; 128 itself, whose addresses are simpler, does. Nor does FP8,
        // which is widened.
        let most_keys = if is_f8 || (head_dim > 80 && head_dim < 128) { 32 } else { 64 };
        let tiles = |(block_n, decode_stages, ctas_per_sm): (usize, _, _)| Self {
            head_dim,
            is_f8,
            block_n: block_n.min(most_keys),
            decode_stages,
            ctas_per_sm,
        };
        let last = tiles((64, 3, 1));
        let by_preference = [(64, 3, 2), (64, 2, 2), (32, 2, 2)].map(tiles);
        let most = shared_per_sm(compute_capability);
        by_preference.into_iter().find(|tiles| tiles.fits(most)).unwrap_or(last)
    }

    /// Whether `ctas_per_sm` blocks fit, each with a KiB that the card takes for itself and one for static variables.
    fn fits(self, shared_per_sm: usize) -> bool {
        self.ctas_per_sm * (self.shared_bytes() + (2 << 10)) <= shared_per_sm
    }

    /// Dynamic shared memory of a block: the larger of the two bodies', the merge of the warps' sums and that of
    /// splits.
    pub(super) const fn shared_bytes(self) -> usize {
        // Chunks of 16 bytes: pairs of them of keys and values, of queries as many elements in two bytes each.
        let of_pair = if self.is_f8 { 32 } else { 16 };
        let kv_chunks = if self.head_dim > 96 { 256 / of_pair } else { self.head_dim.div_ceil(of_pair) * 2 };
        let q_chunks = if self.is_f8 { 2 * kv_chunks } else { kv_chunks };
        let (q_bytes, kv_bytes) = (row_bytes(q_chunks), row_bytes(kv_chunks));
        let decode_keys = if self.head_dim > 64 && !self.is_f8 { 16 } else { 32 };
        let sizes = [
            TILE_ROWS * q_bytes + 4 * self.block_n * kv_bytes,
            NUM_WARPS * self.decode_stages * 2 * decode_keys * kv_bytes,
            NUM_WARPS * UNIT_ROWS * (self.head_dim + 8 + 2) * size_of::<f32>(),
            TILE_ROWS * MAX_SPLITS * size_of::<f32>(),
        ];
        let mut most = 0;
        let mut i = 0;
        while i < sizes.len() {
            if sizes[i] > most {
                most = sizes[i];
            }
            i += 1;
        }
        most
    }
}

/// Rows are swizzled, or padded to an odd number of chunks.
const fn row_bytes(chunks: usize) -> usize {
    if chunks.is_multiple_of(8) { chunks * 16 } else { (chunks + 1) * 16 }
}

/// The most pieces of a tile: `MAX_SPLITS` of the list's kernel.
const MAX_SPLITS: usize = 64;

/// Shared memory of a multiprocessor, by the CUDA programming guide's table of compute capabilities.
fn shared_per_sm(compute_capability: (u32, u32)) -> usize {
    let kib = match compute_capability {
        (8, 0 | 7) => 164,
        (9..=11, _) => 228,
        _ => 100,
    };
    kib << 10
}

#[cfg(test)]
mod tests {
    use foveal_device::DType;
    use proptest::prelude::*;

    use super::{HEADER_INTS, ITEM_INTS, MAX_SPLITS, QUEUE_COUNTERS, TILE_ROWS, Tiles, UNIT_ROWS, slot_len, work_size};
    use crate::KvLayout;

    const LAYOUT: KvLayout = KvLayout { page: 32, dtype: DType::BF16, num_kv_heads: 8, head_dim: 128 };

    #[test]
    fn two_blocks_per_multiprocessor_where_they_fit() {
        let cut = |head_dim, capability| {
            let tiles = Tiles::choose(KvLayout { head_dim, ..LAYOUT }, capability);
            (tiles.block_n, tiles.decode_stages, tiles.ctas_per_sm, tiles.shared_bytes() >> 10)
        };
        assert_eq!(cut(128, (9, 0)), (64, 3, 2, 96));
        assert_eq!(cut(128, (10, 0)), (64, 3, 2, 96));
        assert_eq!(cut(128, (8, 0)), (32, 2, 2, 64));
        assert_eq!(cut(128, (8, 9)), (64, 3, 1, 96));
        assert_eq!(cut(64, (9, 0)), (64, 3, 2, 96));
        assert_eq!(cut(64, (8, 0)), (64, 2, 2, 64));
        assert_eq!(cut(64, (8, 6)), (64, 3, 1, 96));
        assert_eq!(cut(64, (12, 0)), (64, 3, 1, 96));
        assert_eq!(cut(120, (9, 0)), (32, 3, 2, 96));
        // Rows of 10 chunks, padded to 11.
        assert_eq!(Tiles::choose(KvLayout { head_dim: 80, ..LAYOUT }, (9, 0)).shared_bytes(), (128 + 256) * 11 * 16);
    }

    #[test]
    fn one_block_fits_every_card() {
        // The least that a block can have on sm_80 and later: 99 KiB.
        let all = (8..=128).step_by(8).flat_map(|d| {
            let layouts = [DType::BF16, DType::F8E4M3].map(|dtype| KvLayout { dtype, head_dim: d, ..LAYOUT });
            layouts.into_iter().flat_map(|layout| [(8, 0), (8, 9), (9, 0), (12, 0)].map(|cc| Tiles::choose(layout, cc)))
        });
        assert!({ all }.all(|tiles| tiles.shared_bytes() <= 99 << 10));
    }

    #[test]
    fn a_large_step_takes_moderate_memory() {
        let size = work_size(8192, 256, 32, LAYOUT, 132);
        assert_eq!(size.list_len, 16 + 12 * (256 + 256 + 99));
        assert_eq!(size.counters_len, 3 + 4 * 264 + 2 * 264 * 8);
        assert_eq!(size.partials_len, 5280 * 16 * 130);
        // One decode row.
        let size = work_size(1, 1, 32, LAYOUT, 132);
        assert_eq!(size.counters_len, 3 + (8 + 2 * 264) + (8 + 264));
        assert_eq!(work_size(0, 0, 0, KvLayout { num_kv_heads: 0, ..LAYOUT }, 132).list_len, 16 + 12 * 3 * 264);
    }

    /// The list of `work_list.cu`, as its numbers of items and slots.
    fn listed(sequences: &[(usize, usize)], group: usize, num_kv_heads: usize, num_ctas: usize) -> (usize, usize) {
        let tiles = |is_decode: bool| -> Vec<(usize, usize)> {
            let of = sequences.iter().filter(|(rows, _)| *rows > 0 && (rows * group <= UNIT_ROWS) == is_decode);
            of.flat_map(|&(rows, keys)| {
                (0..rows * group).step_by(TILE_ROWS).map(move |first| {
                    let count = TILE_ROWS.min(rows * group - first);
                    (count, keys - rows + 1 + (first + count - 1) / group)
                })
            })
            .collect()
        };
        let split = |end: usize, longest: usize| {
            let num = end.div_ceil(longest).min(MAX_SPLITS);
            end.div_ceil(end.div_ceil(num).next_multiple_of(64))
        };
        let share = |tiles: &[(usize, usize)]| {
            (tiles.iter().map(|(_, end)| end).sum::<usize>() * num_kv_heads).div_ceil(num_ctas)
        };
        let (prefill, decode) = (tiles(false), tiles(true));
        let choices = (0..9).map(|i| (share(&decode) * (8 + i) / 8).next_multiple_of(64).max(128));
        let pieces = |span| decode.iter().map(|&(_, end)| split(end, span)).sum::<usize>() * num_kv_heads;
        let half = share(&decode).div_ceil(2).next_multiple_of(64).max(128);
        let decode_span = { choices }.find(|&span| pieces(span) <= num_ctas).unwrap_or(half);
        let prefill_span = share(&prefill).next_multiple_of(64).max(512);
        let (mut items, mut slots) = (0, 0);
        for (tiles, span) in [(prefill, prefill_span), (decode, decode_span)] {
            for (count, end) in tiles {
                let num = split(end, span);
                items += num;
                slots += if num > 1 { num * num_kv_heads * count.div_ceil(UNIT_ROWS) } else { 0 };
            }
        }
        (items, slots)
    }

    proptest! {
        #[test]
        fn no_batch_needs_more(
            // Rows of a chunk or of a decode step, and what is before them.
            sequences in prop::collection::vec(
                (prop_oneof![0_usize..4, 0_usize..3000], prop_oneof![0_usize..300, 0_usize..100_000]), 1..40),
            group in 1_usize..17,
            num_kv_heads in 1_usize..17,
            num_sms in 1_usize..150,
            ctas_per_sm in 1_usize..3,
        ) {
            let sequences: Vec<_> = sequences.into_iter().map(|(rows, before)| (rows, rows + before)).collect();
            let layout = KvLayout { num_kv_heads, ..LAYOUT };
            let max_tokens = sequences.iter().map(|(rows, _)| rows).sum();
            let num_seqs = sequences.iter().filter(|(rows, _)| *rows > 0).count();
            let size = work_size(max_tokens, num_seqs, group * num_kv_heads, layout, num_sms);
            let (items, slots) = listed(&sequences, group, num_kv_heads, num_sms * ctas_per_sm);
            prop_assert!(HEADER_INTS + items * ITEM_INTS <= size.list_len, "{items} items");
            prop_assert!(QUEUE_COUNTERS + slots <= size.counters_len, "{slots} slots");
            prop_assert!(slots * slot_len(128) <= size.partials_len);
        }
    }
}
