//! The tile cache: what is evicted when, the cap, the counts.

use std::sync::Arc;

use foveal_mrope::{GridThw, TileCache, TileCacheStats};
use proptest::prelude::*;

/// A value that claims a weight.
#[derive(Debug, PartialEq)]
struct Weighted {
    id: u32,
    num_bytes: usize,
}

const FLOOR: usize = TileCache::<Weighted>::MIN_ENTRY_BYTES;

fn cache(capacity_bytes: usize) -> TileCache<Weighted> {
    TileCache::new(capacity_bytes, |value| value.num_bytes)
}

fn grid(id: u32) -> GridThw {
    GridThw { t: 1, h: 2 * id, w: 2 }
}

fn insert(cache: &mut TileCache<Weighted>, id: u32, num_bytes: usize) -> Arc<Weighted> {
    cache.get_or_insert_with(grid(id), || Weighted { id, num_bytes })
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut cache = cache(300);
    for id in 1..=3 {
        insert(&mut cache, id, 100);
    }
    assert_eq!(insert(&mut cache, 1, 0).num_bytes, 100, "a hit gives the old value and makes it young");
    insert(&mut cache, 4, 100); // 2 goes
    assert_eq!([1, 2, 3, 4].map(|id| cache.contains(grid(id))), [true, false, true, true]);
    assert!(cache.get(grid(3)).is_some());
    insert(&mut cache, 5, 150); // 1 and 4 go
    assert_eq!([1, 3, 4, 5].map(|id| cache.contains(grid(id))), [false, true, false, true]);
    let expected = TileCacheStats { hits: 2, misses: 5, evictions: 3, entries: 2, bytes: 250, capacity_bytes: 300 };
    assert_eq!(cache.stats(), expected);
}

#[test]
fn grids_are_told_apart_by_each_extent() {
    let mut cache = TileCache::new(10_000, |_: &[u32; 3]| 100);
    let grids = [[1, 4, 6], [1, 6, 4], [2, 4, 6], [4, 1, 6]];
    for extents in grids {
        cache.get_or_insert_with(extents.into(), || extents);
    }
    for extents in grids {
        assert_eq!(*cache.get(extents.into()).unwrap(), extents);
    }
}

#[test]
fn what_exceeds_the_cap_is_given_but_not_kept() {
    let mut cache = cache(300);
    insert(&mut cache, 1, 200);
    assert_eq!(insert(&mut cache, 2, 301).id, 2);
    assert!(cache.contains(grid(1)) && !cache.contains(grid(2)));
    let expected = TileCacheStats { hits: 0, misses: 2, evictions: 0, entries: 1, bytes: 200, capacity_bytes: 300 };
    assert_eq!(cache.stats(), expected);
    insert(&mut cache, 3, 300); // exactly the cap
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (300, 1));
    let mut none = self::cache(0);
    assert_eq!(insert(&mut none, 1, 0).id, 1);
    assert_eq!(none.stats().entries, 0);
}

#[test]
fn values_outlive_their_eviction() {
    let mut cache = cache(100);
    let first = insert(&mut cache, 1, 100);
    insert(&mut cache, 2, 100);
    assert!(!cache.contains(grid(1)));
    assert_eq!(first.id, 1);
    assert_eq!(Arc::strong_count(&first), 1);
}

#[test]
fn a_failure_is_passed_on_and_not_kept() {
    let mut cache = cache(100);
    let failed: Result<_, &str> = cache.get_or_try_insert_with(grid(1), || Err("no memory"));
    assert_eq!(failed.unwrap_err(), "no memory");
    let made = cache.get_or_try_insert_with(grid(1), || Ok::<_, &str>(Weighted { id: 1, num_bytes: 50 }));
    assert_eq!(made.unwrap().id, 1);
    let hit: Result<_, &str> = cache.get_or_try_insert_with(grid(1), || Err("not called"));
    assert_eq!(hit.unwrap().id, 1);
    assert_eq!((cache.stats().hits, cache.stats().misses, cache.stats().entries), (1, 2, 1));
    cache.clear();
    assert_eq!((cache.stats().hits, cache.stats().entries, cache.stats().bytes), (1, 0, 0));
    assert!(cache.get(grid(1)).is_none());
}

/// Ten thousand pictures of as many sizes, all claiming to weigh nothing.
#[test]
fn weightless_values_do_not_pile_up() {
    let mut cache = cache(100 * FLOOR);
    for id in 1..=10_000 {
        insert(&mut cache, id, 0);
    }
    assert_eq!((cache.stats().entries, cache.stats().evictions), (100, 9_900));
}

proptest! {
    /// Against a plain list, youngest last: the same entries, counts and bytes after every step, never above the cap.
    #[test]
    fn behaves_as_a_list(
        capacity in 0_usize..400,
        steps in prop::collection::vec((1_u32..12, 0_usize..200, any::<bool>()), 0..200),
    ) {
        let mut cache = cache(capacity);
        let mut list: Vec<(u32, usize)> = vec![];
        let (mut hits, mut misses, mut evictions) = (0, 0, 0);
        for (id, num_bytes, only_look) in steps {
            let found = list.iter().position(|&(known, _)| known == id);
            match found {
                Some(at) => {
                    hits += 1;
                    let entry = list.remove(at);
                    list.push(entry);
                }
                None => {
                    misses += 1;
                    let weight = num_bytes.max(FLOOR);
                    if !only_look && weight <= capacity {
                        while list.iter().map(|entry| entry.1).sum::<usize>() + weight > capacity {
                            list.remove(0);
                            evictions += 1;
                        }
                        list.push((id, weight));
                    }
                }
            }
            if only_look {
                prop_assert_eq!(cache.get(grid(id)).map(|value| value.id), found.map(|_| id));
            } else {
                prop_assert_eq!(insert(&mut cache, id, num_bytes).id, id);
            }
            let bytes = list.iter().map(|entry| entry.1).sum();
            let expected =
                TileCacheStats { hits, misses, evictions, entries: list.len(), bytes, capacity_bytes: capacity };
            prop_assert_eq!(cache.stats(), expected);
            prop_assert!(bytes <= capacity);
            for id in 1..12 {
                prop_assert_eq!(cache.contains(grid(id)), list.iter().any(|entry| entry.0 == id));
            }
        }
    }
}
