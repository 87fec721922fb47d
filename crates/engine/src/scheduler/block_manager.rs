//! Who owns which page of the KV cache.

use foveal_types::BlockId;

/// The free pages of the KV cache. A page is either here or in exactly one block table.
#[derive(Debug)]
pub(crate) struct BlockManager {
    /// Used as a stack: the page given back last is handed out first, while it is still in the CPU's caches.
    free: Vec<BlockId>,
    page: usize,
}

impl BlockManager {
    pub(crate) fn new(num_blocks: usize, page: usize) -> Self {
        let last = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self { free: (0..last).rev().map(BlockId).collect(), page }
    }

    /// Makes `table` long enough for `len` tokens. `false`, and nothing taken, if there are too few free pages.
    pub(crate) fn grow(&mut self, table: &mut Vec<BlockId>, len: usize) -> bool {
        let missing = len.div_ceil(self.page).saturating_sub(table.len());
        let Some(keep) = self.free.len().checked_sub(missing) else { return false };
        table.extend(self.free.drain(keep..).rev());
        true
    }

    /// Takes back the pages of `table` that lie wholly beyond its first `len` tokens.
    pub(crate) fn shrink(&mut self, table: &mut Vec<BlockId>, len: usize) {
        let keep = len.div_ceil(self.page).min(table.len());
        self.free.extend(table.drain(keep..).rev());
    }

    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn page(&self) -> usize {
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn nothing_is_taken_when_too_little_is_free() {
        let mut blocks = BlockManager::new(3, 32);
        let mut table = Vec::new();
        assert!(blocks.grow(&mut table, 33));
        assert_eq!((table.len(), blocks.num_free()), (2, 1));
        let mut other = Vec::new();
        assert!(!blocks.grow(&mut other, 33));
        assert_eq!((other.len(), blocks.num_free()), (0, 1));
        blocks.shrink(&mut table, 32);
        assert!(blocks.grow(&mut other, 64));
        blocks.shrink(&mut table, 0);
        blocks.shrink(&mut other, 0);
        assert_eq!(blocks.num_free(), 3);
    }

    proptest! {
        #[test]
        fn a_page_has_one_owner(lens in proptest::collection::vec((0_usize..3, 0_usize..400), 1..60)) {
            let mut blocks = BlockManager::new(10, 32);
            let mut tables = vec![Vec::new(); 3];
            for (table, len) in lens {
                let before = tables[table].clone();
                if blocks.grow(&mut tables[table], len) {
                    blocks.shrink(&mut tables[table], len);
                    prop_assert_eq!(tables[table].len(), len.div_ceil(32));
                    let common = before.len().min(tables[table].len());
                    prop_assert_eq!(&tables[table][..common], &before[..common], "earlier pages stay in place");
                } else {
                    prop_assert_eq!(&tables[table], &before);
                }
                let owned: Vec<BlockId> = tables.iter().flatten().copied().chain(blocks.free.iter().copied()).collect();
                prop_assert_eq!(owned.len(), 10);
                prop_assert_eq!(owned.into_iter().collect::<HashSet<_>>().len(), 10);
            }
        }
    }
}
