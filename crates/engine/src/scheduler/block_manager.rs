//! Who owns which page of the KV cache, and which pages can be found again.

use std::collections::HashMap;

use foveal_types::BlockId;
use lru::LruCache;

use super::page_hash::PageHash;

/// The pages of the KV cache. A page is in as many block tables as it has owners; without one it is free, or it is cached:
/// its rows can be found by their hash until the room is needed.
#[derive(Debug)]
pub(crate) struct BlockManager {
    page: usize,
    pages: Vec<Page>,
    /// Pages that hold nothing. Used as a stack: the page given back last is handed out first, while it is still in the
    /// CPU's caches.
    free: Vec<BlockId>,
    /// Pages without owners that can be found, the one that was given back longest ago first.
    cached: LruCache<BlockId, ()>,
    findable: HashMap<PageHash, BlockId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    num_owners: usize,
    /// What it is found by.
    hash: Option<PageHash>,
}

impl BlockManager {
    pub(crate) fn new(num_blocks: usize, page: usize) -> Self {
        let last = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self {
            page,
            pages: vec![Page::default(); num_blocks],
            free: (0..last).rev().map(BlockId).collect(),
            cached: LruCache::unbounded(),
            findable: HashMap::new(),
        }
    }

    /// Tokens of a page.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Pages that nobody owns.
    pub(crate) fn num_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Pages that somebody owns.
    pub(crate) fn num_owned(&self) -> usize {
        self.pages.len() - self.num_available()
    }

    /// The pages that hold the rows of the first of `hashes`, as far as they are there.
    pub(crate) fn find(&self, hashes: &[PageHash]) -> Vec<BlockId> {
        hashes.iter().map_while(|hash| self.findable.get(hash).copied()).collect()
    }

    /// Whether `num_pages` more pages can be had once somebody owns those of `found`.
    pub(crate) fn has_room_besides(&self, found: &[BlockId], num_pages: usize) -> bool {
        let taken = found.iter().filter(|block| self.cached.contains(*block)).count();
        self.num_available() - taken >= num_pages
    }

    /// One more owner for each of `blocks`.
    pub(crate) fn share(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            self.cached.pop(block);
            if let Some(page) = page_mut(&mut self.pages, *block) {
                page.num_owners += 1;
            }
        }
    }

    /// Makes `table` long enough for `len` tokens with pages of its own; cached ones go when there are no others. `false`,
    /// and nothing taken, if there are too few.
    pub(crate) fn grow(&mut self, table: &mut Vec<BlockId>, len: usize) -> bool {
        let missing = len.div_ceil(self.page).saturating_sub(table.len());
        if missing > self.num_available() {
            return false;
        }
        for _ in 0..missing {
            let Some(block) = self.free.pop().or_else(|| self.evict()) else { return false };
            if let Some(page) = page_mut(&mut self.pages, block) {
                page.num_owners = 1;
            }
            table.push(block);
        }
        true
    }

    /// Gives back all pages of `table`. The last ones come first, so that a prefix outlives what follows it.
    pub(crate) fn release(&mut self, table: &mut Vec<BlockId>) {
        while let Some(block) = table.pop() {
            let Some(page) = page_mut(&mut self.pages, block) else { continue };
            debug_assert!(page.num_owners > 0, "{block:?} is given back by who doesn't own it");
            page.num_owners = page.num_owners.saturating_sub(1);
            match (page.num_owners, page.hash) {
                (0, Some(_)) => drop(self.cached.put(block, ())),
                (0, None) => self.free.push(block),
                _ => {}
            }
        }
    }

    /// From now on `block`, which somebody owns and nobody writes any more, is found by `hash`; unless another page is: one
    /// of two equal ones is enough.
    pub(crate) fn publish(&mut self, block: BlockId, hash: PageHash) {
        let Some(page) = page_mut(&mut self.pages, block) else { return };
        debug_assert!(page.num_owners > 0, "{block:?} has no owner");
        if page.hash.is_none() && !self.findable.contains_key(&hash) {
            page.hash = Some(hash);
            self.findable.insert(hash, block);
        }
    }

    /// From now on none of `blocks` is found.
    pub(crate) fn withdraw(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            self.forget(block);
            if self.cached.pop(&block).is_some() {
                self.free.push(block);
            }
        }
    }

    fn evict(&mut self) -> Option<BlockId> {
        let (block, ()) = self.cached.pop_lru()?;
        self.forget(block);
        Some(block)
    }

    fn forget(&mut self, block: BlockId) {
        if let Some(hash) = page_mut(&mut self.pages, block).and_then(|page| page.hash.take()) {
            self.findable.remove(&hash);
        }
    }
}

fn page_mut(pages: &mut [Page], block: BlockId) -> Option<&mut Page> {
    let page = pages.get_mut(block.0 as usize);
    debug_assert!(page.is_some(), "{block:?} is no page of this cache");
    page
}

#[cfg(test)]
impl BlockManager {
    /// Panics unless every page is owned exactly as often as it stands in `tables`, and is findable, cached and free as it
    /// should be.
    pub(crate) fn check<'a>(&self, tables: impl IntoIterator<Item = &'a [BlockId]>) {
        let mut owners = vec![0; self.pages.len()];
        tables.into_iter().flatten().for_each(|block| owners[block.0 as usize] += 1);
        for (block, (page, owners)) in (0..).map(BlockId).zip(self.pages.iter().zip(owners)) {
            assert_eq!(page.num_owners, owners, "owners of {block:?}");
            let places = [owners > 0, self.free.contains(&block), self.cached.contains(&block)];
            assert_eq!(places.iter().filter(|is_there| **is_there).count(), 1, "{block:?}: {places:?}");
            assert!(!self.free.contains(&block) || page.hash.is_none(), "{block:?} is free and can be found");
            assert!(!self.cached.contains(&block) || page.hash.is_some(), "{block:?} is cached and can't be found");
            assert!(page.hash.is_none_or(|hash| self.findable[&hash] == block));
        }
        assert_eq!(self.findable.len(), self.pages.iter().filter(|page| page.hash.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::page_hash::RowContent;
    use foveal_types::TokenId;
    use proptest::prelude::*;

    fn hash(number: u32) -> PageHash {
        PageHash::new(None, [RowContent { token: TokenId(number), position: [0; 3], picture: None }])
    }

    #[test]
    fn nothing_is_taken_when_too_little_is_there() {
        let mut blocks = BlockManager::new(3, 32);
        let (mut table, mut other) = (Vec::new(), Vec::new());
        assert!(blocks.grow(&mut table, 33));
        assert_eq!((table.len(), blocks.num_available(), blocks.num_owned()), (2, 1, 2));
        assert!(!blocks.grow(&mut other, 33));
        assert_eq!((other.len(), blocks.num_available()), (0, 1));
        blocks.release(&mut table);
        assert!(blocks.grow(&mut other, 96));
        blocks.release(&mut other);
        assert_eq!(blocks.num_available(), 3);
    }

    #[test]
    fn pages_are_found_until_their_room_is_needed_the_oldest_last_page_first() {
        let mut blocks = BlockManager::new(4, 1);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        blocks.grow(&mut a, 2);
        blocks.grow(&mut b, 1);
        let (pages_of_a, page_of_b) = (a.clone(), b[0]);
        for (number, block) in (0..).zip(a.iter().chain(&b)) {
            blocks.publish(*block, hash(number));
        }
        blocks.release(&mut a);
        blocks.release(&mut b);
        assert_eq!(blocks.find(&[hash(0), hash(1)]), pages_of_a);
        assert_eq!(blocks.find(&[hash(0), hash(9), hash(1)]), pages_of_a[..1], "up to the first that is missing");
        let mut c = Vec::new();
        blocks.grow(&mut c, 1);
        assert_eq!(blocks.find(&[hash(1)]).len(), 1, "the free page goes first");
        blocks.grow(&mut c, 2);
        assert_eq!(blocks.find(&[hash(1)]), [], "then the end of what was given back first");
        blocks.grow(&mut c, 3);
        assert_eq!((blocks.find(&[hash(0)]), blocks.find(&[hash(2)])), (vec![], vec![page_of_b]));
        assert!(blocks.has_room_besides(&[], 1) && !blocks.has_room_besides(&[page_of_b], 1));
        blocks.share(&[page_of_b]);
        assert!(!blocks.grow(&mut c, 4), "an owned page stays");
        blocks.check([&c[..], &[page_of_b]]);
    }

    #[test]
    fn one_of_two_equal_pages_is_found_and_a_withdrawn_one_is_not() {
        let mut blocks = BlockManager::new(4, 1);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        blocks.grow(&mut a, 1);
        blocks.grow(&mut b, 1);
        blocks.publish(a[0], hash(1));
        blocks.publish(b[0], hash(1));
        assert_eq!(blocks.find(&[hash(1)]), a);
        blocks.withdraw(&a);
        assert_eq!(blocks.find(&[hash(1)]), []);
        blocks.check([&a[..], &b]);
        blocks.publish(b[0], hash(1));
        let page_of_b = b.clone();
        blocks.release(&mut b);
        blocks.withdraw(&page_of_b);
        blocks.check([&a[..]]);
    }

    proptest! {
        /// Whatever is taken, shared, published and given back: every page is somewhere, once.
        #[test]
        fn every_page_is_somewhere(steps in proptest::collection::vec((0_usize..4, 0_usize..4, 0_u32..6), 1..80)) {
            let mut blocks = BlockManager::new(8, 32);
            let mut tables: Vec<Vec<BlockId>> = vec![Vec::new(); 4];
            for (action, table, number) in steps {
                match action {
                    0 => {
                        let (before, room) = (tables[table].clone(), blocks.num_available());
                        let len = 32 * number as usize;
                        let has_grown = blocks.grow(&mut tables[table], len);
                        prop_assert_eq!(has_grown, len.div_ceil(32) <= before.len() + room);
                        prop_assert_eq!(&tables[table][..before.len()], &before[..], "earlier pages stay in place");
                    }
                    1 => blocks.release(&mut tables[table]),
                    2 => if let Some(&block) = tables[table].last() {
                        blocks.publish(block, hash(number));
                    },
                    _ => if tables[table].is_empty() {
                        let found = blocks.find(&[hash(number)]);
                        blocks.share(&found);
                        tables[table] = found;
                    },
                }
                blocks.check(tables.iter().map(Vec::as_slice));
            }
        }
    }
}
