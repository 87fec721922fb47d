//! What [`super::Sample::workspace`] holds, and which kernels a call needs: pure choices.

use super::RowSampling;

/// Elements of a row that one warp reads: `GROUP` of sampling.cuh.
pub(super) const GROUP: usize = 512;

/// The most groups of a row: `MAX_GROUPS` of sampling.cuh.
pub(super) const MAX_GROUPS: usize = 1024;

/// Bytes of `Partial` of sampling.cuh.
const PARTIAL_BYTES: usize = 32;

/// Bytes of `RowParams` of sampling.cuh.
pub(super) const ROW_BYTES: usize = 64;

/// What the kernels' widest loads are aligned to.
pub(super) const ALIGN: usize = 16;

/// Where things begin in the workspace: first what the host sends, then what the kernels tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) num_groups: usize,
    pub(super) banned_at: usize,
    /// Bytes that the host sends.
    pub(super) sent_bytes: usize,
    pub(super) partials_at: usize,
    pub(super) len_bytes: usize,
}

impl Layout {
    pub(super) fn new(num_rows: usize, vocab_size: usize, num_banned: usize) -> Self {
        let num_groups = vocab_size.div_ceil(GROUP);
        let banned_at = num_rows * ROW_BYTES;
        let sent_bytes = banned_at + num_banned * size_of::<u32>();
        let partials_at = sent_bytes.next_multiple_of(ALIGN);
        let len_bytes = partials_at + num_rows * num_groups * PARTIAL_BYTES;
        Self { num_groups, banned_at, sent_bytes, partials_at, len_bytes }
    }
}

/// Bytes of [`super::Sample::workspace`] on a GPU for that many rows with that many banned tokens in all.
#[must_use]
pub fn workspace_bytes(num_rows: usize, vocab_size: usize, num_banned: usize) -> usize {
    Layout::new(num_rows, vocab_size, num_banned).len_bytes
}

/// Whether every row takes its best token as the logits are, so that nothing need be sent.
pub(super) fn is_all_greedy(rows: &[RowSampling], banned: &[&[u32]], num_top: usize) -> bool {
    let is_plain = |row: &RowSampling| !is_drawn(row) && !row.reads_output();
    num_top == 0 && rows.iter().all(is_plain) && banned.iter().all(|ids| ids.is_empty())
}

/// A temperature of NaN is as good as none.
fn is_drawn(row: &RowSampling) -> bool {
    row.temperature > 0.0
}

/// What the host sends: the rows' settings, then all banned tokens. `None` for more banned tokens than 32 bits count.
pub(super) fn pack(rows: &[RowSampling], banned: &[&[u32]], layout: Layout) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(layout.sent_bytes);
    let mut first_banned = 0_u32;
    for (i, row) in rows.iter().enumerate() {
        let num_banned = u32::try_from(banned.get(i).map_or(0, |ids| ids.len())).ok()?;
        let floats = [row.temperature, row.top_p, row.min_p, row.repetition_penalty];
        let floats = floats.into_iter().chain([row.presence_penalty, row.frequency_penalty]);
        let words = [row.top_k, flags(row, num_banned)];
        let streams = [row.seed, row.draw].into_iter().flat_map(|x| [x as u32, (x >> 32) as u32]);
        let words = words.into_iter().chain(streams).chain([first_banned, num_banned, 0, 0]);
        bytes.extend(floats.map(f32::to_bits).chain(words).flat_map(u32::to_le_bytes));
        first_banned = first_banned.checked_add(num_banned)?;
    }
    bytes.extend(banned.iter().flat_map(|ids| ids.iter()).flat_map(|id| id.to_le_bytes()));
    Some(bytes)
}

/// `READS_PROMPT`, `READS_COUNTS` and `HAS_SCORES` of sampling.cuh.
fn flags(row: &RowSampling, num_banned: u32) -> u32 {
    let reads_counts = row.presence_penalty != 0.0 || row.frequency_penalty != 0.0;
    let has_scores = row.reads_output() || num_banned > 0;
    u32::from(row.reads_prompt()) | u32::from(reads_counts) << 1 | u32::from(has_scores) << 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: RowSampling = RowSampling {
        temperature: 0.0,
        top_k: 7,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 1 << 40 | 5,
        draw: 9,
    };

    #[test]
    fn parts_follow_each_other() {
        let layout = Layout::new(3, 151_936, 5);
        assert_eq!((layout.num_groups, layout.banned_at, layout.sent_bytes), (297, 192, 212));
        assert_eq!((layout.partials_at, layout.len_bytes), (224, 224 + 3 * 297 * 32));
        assert_eq!(workspace_bytes(0, 0, 0), 0);
        let banned: [&[u32]; 3] = [&[1, 2], &[], &[3, 4, 5]];
        let bytes = pack(&[PLAIN; 3], &banned, layout).unwrap();
        assert_eq!(bytes.len(), layout.sent_bytes);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([word(24), word(28), word(32), word(36), word(40), word(44)], [7, 4, 5, 1 << 8, 9, 0]);
        assert_eq!([word(128 + 28), word(128 + 48), word(128 + 52)], [4, 2, 3]);
        assert_eq!([word(64 + 28), word(64 + 48), word(64 + 52)], [0, 2, 0]);
        assert_eq!([word(192), word(208)], [1, 5]);
    }

    #[test]
    fn only_the_plainest_rows_are_quick() {
        assert!(is_all_greedy(&[PLAIN; 2], &[], 0) && is_all_greedy(&[PLAIN; 2], &[&[], &[]], 0));
        assert!(is_all_greedy(&[RowSampling { temperature: f32::NAN, ..PLAIN }], &[], 0));
        assert!(!is_all_greedy(&[PLAIN], &[&[3]], 0) && !is_all_greedy(&[PLAIN], &[], 1));
        for row in [
            RowSampling { temperature: 0.1, ..PLAIN },
            RowSampling { presence_penalty: 0.1, ..PLAIN },
            RowSampling { frequency_penalty: 0.1, ..PLAIN },
            RowSampling { repetition_penalty: f32::NAN, ..PLAIN },
        ] {
            assert!(!is_all_greedy(&[PLAIN, row], &[], 0), "{row:?}");
        }
    }
}
