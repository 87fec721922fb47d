//! Which pictures' embeddings stand where in the arena, and which pictures a step encodes.

use std::collections::HashMap;
use std::ops::Range;

use foveal_types::{ContentHash, PreparedImage};
use lru::LruCache;

use super::Limits;
use super::arena::Arena;
use super::picture_span::{num_embeds, num_patches};
use super::step_plan::EncodeBatch;

/// Embeddings by their picture's content. An entry has as many users as sequences have rows of it still to be computed;
/// without users it stays until room is needed, that which was used longest ago going first.
#[derive(Debug)]
pub(crate) struct EncoderCache {
    arena: Arena,
    max_patches: usize,
    merge_size: u32,
    entries: HashMap<ContentHash, Entry>,
    /// Entries without users, the one that was used longest ago first.
    unused: LruCache<ContentHash, ()>,
    batch: Batch,
    num_hits: u64,
}

#[derive(Debug)]
struct Entry {
    /// Of the arena; of the batch while the entry is in it.
    rows: Range<usize>,
    num_users: usize,
    /// It may be what made a sequence fail: it goes with its last user.
    is_condemned: bool,
}

/// What the step that is being planned encodes.
#[derive(Debug, Default)]
struct Batch {
    images: Vec<PreparedImage>,
    entries: HashMap<ContentHash, Entry>,
    num_patches: usize,
    num_rows: usize,
    /// A sequence has to wait for room: those behind it take nothing new, so that the room comes.
    is_closed: bool,
}

impl EncoderCache {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            arena: Arena::new(limits.encoder_rows),
            max_patches: limits.max_patches,
            merge_size: limits.merge_size,
            entries: HashMap::new(),
            unused: LruCache::unbounded(),
            batch: Batch::default(),
            num_hits: 0,
        }
    }

    /// One more user of a picture, which is encoded in this step if it isn't there. `false` if it can't be had in this step.
    pub(crate) fn acquire(&mut self, image: &PreparedImage) -> bool {
        let is_there = !self.batch.is_closed && (self.reuse(image.hash) || self.enqueue(image));
        self.batch.is_closed |= !is_there;
        is_there
    }

    fn reuse(&mut self, hash: ContentHash) -> bool {
        if let Some(entry) = self.batch.entries.get_mut(&hash) {
            entry.num_users += 1;
        } else if let Some(entry) = self.entries.get_mut(&hash).filter(|entry| !entry.is_condemned) {
            entry.num_users += 1;
            if entry.num_users == 1 && !self.has_room_for(self.batch.num_rows) {
                // It would stand in the way of what is encoded already in this step.
                self.release(hash);
                return false;
            }
            self.unused.pop(&hash);
        } else {
            return false;
        }
        self.num_hits += 1;
        true
    }

    fn enqueue(&mut self, image: &PreparedImage) -> bool {
        let (patches, len) = (num_patches(image.grid_thw), num_embeds(image.grid_thw, self.merge_size));
        let num_patches = self.batch.num_patches.saturating_add(patches);
        let rows = self.batch.num_rows..self.batch.num_rows.saturating_add(len);
        let is_known = self.entries.contains_key(&image.hash);
        if is_known || num_patches > self.max_patches || !self.has_room_for(rows.end) {
            return false;
        }
        (self.batch.num_patches, self.batch.num_rows) = (num_patches, rows.end);
        self.batch.images.push(image.clone());
        self.batch.entries.insert(image.hash, Entry { rows, num_users: 1, is_condemned: false });
        true
    }

    /// Whether a batch of `num_rows` finds room beside the entries that are in use.
    fn has_room_for(&self, num_rows: usize) -> bool {
        let in_use = self.entries.values().filter(|entry| entry.num_users > 0).map(|entry| entry.rows.clone());
        num_rows == 0 || self.arena.largest_gap_between(in_use.collect()) >= num_rows
    }

    /// Ends a step's planning: what it encodes, and to which rows. The next step may encode as much again.
    pub(crate) fn finish_step(&mut self) -> Option<EncodeBatch> {
        let Batch { images, entries, num_rows, .. } = std::mem::take(&mut self.batch);
        if images.is_empty() {
            return None;
        }
        let rows = loop {
            if let Some(rows) = self.arena.allocate(num_rows) {
                break rows;
            }
            let evicted = self.unused.pop_lru().and_then(|(hash, ())| self.entries.remove(&hash));
            debug_assert!(evicted.is_some(), "there was room for {num_rows} rows");
            self.arena.free(evicted?.rows);
        };
        self.entries.extend(entries.into_iter().map(|(hash, mut entry)| {
            entry.rows = rows.start + entry.rows.start..rows.start + entry.rows.end;
            (hash, entry)
        }));
        Some(EncodeBatch { images, rows })
    }

    /// Where the embeddings of a picture that has users stand.
    pub(crate) fn rows_of(&self, hash: ContentHash) -> Option<Range<usize>> {
        self.entries.get(&hash).map(|entry| entry.rows.clone())
    }

    /// One user less.
    pub(crate) fn release(&mut self, hash: ContentHash) {
        let Some(entry) = self.entries.get_mut(&hash) else { return };
        debug_assert!(entry.num_users > 0, "{hash:?} has no users");
        entry.num_users = entry.num_users.saturating_sub(1);
        match (entry.num_users, entry.is_condemned) {
            (0, false) => drop(self.unused.put(hash, ())),
            (0, true) => self.entries.remove(&hash).into_iter().for_each(|entry| self.arena.free(entry.rows)),
            _ => {}
        }
    }

    /// Nobody else is to take the rows of a picture that is in use: they may be bad. It is encoded anew once its users are gone.
    pub(crate) fn condemn(&mut self, hash: ContentHash) {
        if let Some(entry) = self.entries.get_mut(&hash) {
            debug_assert!(entry.num_users > 0, "{hash:?} has no users");
            entry.is_condemned = true;
        }
    }

    /// How often a picture was there already.
    pub(crate) fn num_hits(&self) -> u64 {
        self.num_hits
    }

    /// Rows that hold embeddings, in use or not.
    pub(crate) fn num_rows_taken(&self) -> usize {
        self.arena.num_rows() - self.arena.num_free()
    }
}

#[cfg(test)]
impl EncoderCache {
    /// Panics unless every entry has as many users as it has in `users`, and every row is in one place.
    pub(crate) fn check(&self, users: impl IntoIterator<Item = ContentHash>) {
        let mut counts: HashMap<ContentHash, usize> = HashMap::new();
        users.into_iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
        let mut taken = vec![false; self.arena.num_rows()];
        for (hash, entry) in &self.entries {
            assert_eq!(entry.num_users, counts.remove(hash).unwrap_or(0), "users of {hash:?}");
            assert_eq!(self.unused.contains(hash), entry.num_users == 0);
            for row in entry.rows.clone() {
                assert!(!std::mem::replace(&mut taken[row], true), "row {row} has two owners");
            }
        }
        assert!(counts.is_empty(), "{counts:?} are used and not there");
        assert_eq!(taken.iter().filter(|is_taken| **is_taken).count(), self.num_rows_taken(), "a row is lost");
        assert!(self.batch.images.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{limits, picture};

    /// Room for 16 embeddings, a batch of 32 patches (8 embeddings).
    fn cache() -> EncoderCache {
        EncoderCache::new(&Limits { encoder_rows: 16, max_patches: 32, ..limits() })
    }

    /// Four embeddings.
    fn small(number: u8) -> PreparedImage {
        picture([1, 4, 4], number)
    }

    fn hash(number: u8) -> ContentHash {
        small(number).hash
    }

    /// The pictures of a step, and where they go.
    fn encoded(batch: Option<EncodeBatch>) -> (Vec<u8>, Range<usize>) {
        let EncodeBatch { images, rows } = batch.unwrap();
        (images.iter().map(|image| image.hash.0[0]).collect(), rows)
    }

    #[test]
    fn one_step_encodes_one_contiguous_batch_and_each_picture_once() {
        let mut cache = cache();
        assert!(cache.acquire(&small(1)) && cache.acquire(&small(2)) && cache.acquire(&small(1)));
        assert!(!cache.acquire(&small(3)), "patches");
        assert!(!cache.acquire(&small(1)), "those behind who waits take nothing new");
        assert_eq!(encoded(cache.finish_step()), (vec![1, 2], 0..8));
        assert_eq!((cache.rows_of(hash(1)), cache.rows_of(hash(2))), (Some(0..4), Some(4..8)));
        cache.check([1, 2, 1].map(hash));
        assert!(cache.acquire(&small(2)) && cache.acquire(&small(3)));
        assert_eq!(encoded(cache.finish_step()), (vec![3], 8..12));
        assert_eq!(cache.num_hits(), 2);
        assert!(cache.finish_step().is_none());
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_in_use_stays() {
        let mut cache = cache();
        for number in 1..=4 {
            assert!(cache.acquire(&small(number)));
            cache.finish_step();
        }
        assert!(!cache.acquire(&small(5)), "all four are in use");
        cache.finish_step();
        for number in [2, 1, 3] {
            cache.release(hash(number));
        }
        assert!(cache.acquire(&small(1)), "used again");
        assert!(cache.acquire(&small(5)));
        assert_eq!(encoded(cache.finish_step()), (vec![5], 4..8), "in the place of picture 2");
        assert!(cache.rows_of(hash(2)).is_none() && cache.rows_of(hash(3)).is_some());
        cache.check([1, 4, 5].map(hash));
    }

    #[test]
    fn what_is_found_does_not_take_the_room_of_what_is_encoded_in_the_same_step() {
        let mut cache = cache();
        for number in 1..=4 {
            assert!(cache.acquire(&small(number)));
            cache.finish_step();
            cache.release(hash(number));
        }
        // Eight rows in one piece: only without 2 or 3 together with the outer one.
        assert!(cache.acquire(&picture([1, 4, 8], 9)));
        assert!(cache.acquire(&small(2)), "3 and 4 can go");
        assert!(!cache.acquire(&small(3)), "now they can't");
        assert_eq!(encoded(cache.finish_step()), (vec![9], 8..16));
        cache.check([2, 9].map(hash));
    }

    #[test]
    fn failed_rows_are_not_found_and_go_with_their_last_user() {
        let mut cache = cache();
        assert!(cache.acquire(&small(1)) && cache.acquire(&small(1)));
        cache.finish_step();
        cache.condemn(hash(1));
        assert!(!cache.acquire(&small(1)), "neither found nor encoded while somebody reads it");
        assert!(cache.finish_step().is_none());
        cache.release(hash(1));
        cache.check([hash(1)]);
        cache.release(hash(1));
        assert_eq!((cache.rows_of(hash(1)), cache.num_rows_taken()), (None, 0));
    }
}
