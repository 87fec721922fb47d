//! What a tower derives from a grid alone, kept for the next picture of that size.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use lru::LruCache;

use crate::GridThw;

/// Keeps what was derived from a `(t, h, w)` grid, least recently used out first, never above a cap in bytes.
///
/// The caller chooses the value (cos/sin rows, window indices, interpolated position rows, a device tensor) and says how
/// many bytes one takes. The cache belongs to one owner; wrap it in a mutex to share it. A value handed out lives on
/// after its eviction.
///
/// ```
/// use foveal_mrope::{GridThw, RopeTile, TileCache, VisionRopeTable};
///
/// let table = VisionRopeTable::new(10_000.0, 64, 128)?;
/// let mut tiles = TileCache::new(64 << 20, RopeTile::num_bytes);
/// let grid = GridThw { t: 1, h: 32, w: 32 };
/// for _ in 0..3 {
///     let tile = tiles.get_or_try_insert_with(grid, || table.tile(grid, 2))?;
///     assert_eq!(tile.cos().len(), grid.num_patches() * 32);
/// }
/// assert_eq!((tiles.stats().misses, tiles.stats().hits), (1, 2));
/// # Ok::<(), foveal_mrope::MropeError>(())
/// ```
pub struct TileCache<V> {
    entries: LruCache<GridThw, Entry<V>>,
    weigh: fn(&V) -> usize,
    capacity_bytes: usize,
    bytes: usize,
    hits: u64,
    misses: u64,
    evictions: u64,
}

struct Entry<V> {
    value: Arc<V>,
    num_bytes: usize,
}

/// Counts of a [`TileCache`], for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TileCacheStats {
    /// Look-ups that found their grid.
    pub hits: u64,
    /// Look-ups that did not, whether or not the value was then made and kept.
    pub misses: u64,
    /// Entries that made room for others.
    pub evictions: u64,
    /// Entries now.
    pub entries: usize,
    /// Bytes now, as the weigher counts them; never above `capacity_bytes`.
    pub bytes: usize,
    /// The cap.
    pub capacity_bytes: usize,
}

impl<V> TileCache<V> {
    /// What an entry counts at least: the key and the value's own size, so that values which claim to weigh nothing
    /// can't pile up.
    pub const MIN_ENTRY_BYTES: usize = size_of::<GridThw>() + size_of::<V>();

    /// An empty cache of at most `capacity_bytes`. `weigh` gives the bytes of a value, what it owns on the heap or the
    /// device included.
    pub fn new(capacity_bytes: usize, weigh: fn(&V) -> usize) -> Self {
        Self { entries: LruCache::unbounded(), weigh, capacity_bytes, bytes: 0, hits: 0, misses: 0, evictions: 0 }
    }

    /// The value of a grid, if it is here; it becomes the most recently used.
    pub fn get(&mut self, grid: GridThw) -> Option<Arc<V>> {
        let found = self.entries.get(&grid).map(|entry| Arc::clone(&entry.value));
        *(if found.is_some() { &mut self.hits } else { &mut self.misses }) += 1;
        found
    }

    /// The value of a grid, made by `make` if it is not here. A value that weighs more than the cap is given back but not
    /// kept, and evicts nothing.
    pub fn get_or_insert_with(&mut self, grid: GridThw, make: impl FnOnce() -> V) -> Arc<V> {
        let Ok(value) = self.get_or_try_insert_with(grid, || Ok::<V, Infallible>(make()));
        value
    }

    /// As [`TileCache::get_or_insert_with`], for a `make` that can fail.
    ///
    /// # Errors
    /// What `make` returns; the cache is then unchanged but for the miss.
    pub fn get_or_try_insert_with<E>(
        &mut self,
        grid: GridThw,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        if let Some(value) = self.get(grid) {
            return Ok(value);
        }
        let value = Arc::new(make()?);
        self.keep(grid, &value);
        Ok(value)
    }

    /// Whether a grid is here; counts as no look-up.
    pub fn contains(&self, grid: GridThw) -> bool {
        self.entries.contains(&grid)
    }

    /// Drops every entry; the counts of hits, misses and evictions go on.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// The counts now.
    pub fn stats(&self) -> TileCacheStats {
        TileCacheStats {
            hits: self.hits,
            misses: self.misses,
            evictions: self.evictions,
            entries: self.entries.len(),
            bytes: self.bytes,
            capacity_bytes: self.capacity_bytes,
        }
    }

    /// The grid is not here. Makes room first, so that the cap holds at every moment.
    fn keep(&mut self, grid: GridThw, value: &Arc<V>) {
        let num_bytes = (self.weigh)(value).max(Self::MIN_ENTRY_BYTES);
        if num_bytes > self.capacity_bytes {
            return;
        }
        while self.bytes > self.capacity_bytes - num_bytes {
            let Some((_, evicted)) = self.entries.pop_lru() else { break };
            self.bytes -= evicted.num_bytes;
            self.evictions += 1;
        }
        self.bytes += num_bytes;
        self.entries.put(grid, Entry { value: Arc::clone(value), num_bytes });
    }
}

impl<V> fmt::Debug for TileCache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TileCache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
