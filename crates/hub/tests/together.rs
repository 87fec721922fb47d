//! Several downloads of one model at once.

mod common;

use std::fs::{self, File};

use common::{FakeHub, SHARDS, id};
use foveal_hub::Files;

#[test]
fn two_at_once_fetch_every_file_once() {
    let fake = FakeHub::with_model();
    fake.add_large(SHARDS[0], common::pattern(20 << 20, 1));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| fake.assert_complete_later(&fake.fetch().unwrap()));
        }
    });
    fake.assert_complete(&fake.fetch().unwrap());
    for name in ["config.json", "tokenizer.json"] {
        assert_eq!(fake.hub.gets(&format!("resolve/{}/{name}", common::COMMIT)).len(), 1, "{name}");
    }
    let mut ranges: Vec<_> = fake.content.gets(SHARDS[0]).iter().map(|get| get.range).collect();
    let num_requests = ranges.len();
    ranges.sort_unstable();
    ranges.dedup();
    assert_eq!(ranges.len(), num_requests, "no part twice");
    assert_eq!(fake.content.gets(SHARDS[1]).len(), 1);
}

impl FakeHub {
    /// While somebody else may still be at work on nothing.
    fn assert_complete_later(&self, snapshot: &foveal_hub::Snapshot) {
        for name in ["config.json", SHARDS[0], SHARDS[1]] {
            assert!(fs::read(snapshot.folder().join(name)).unwrap() == *self.file(name).bytes, "{name}");
        }
    }
}

#[test]
fn a_file_that_another_process_downloads_is_waited_for() {
    let fake = FakeHub::with_model();
    let file = fake.file(SHARDS[0]);
    let locks = fake.cache().join(".locks/models--org--model");
    fs::create_dir_all(&locks).unwrap();
    let lock = File::create(locks.join(format!("{}.lock", file.etag))).unwrap();
    lock.lock().unwrap();
    std::thread::scope(|scope| {
        let download = scope.spawn(|| fake.client().snapshot(&id(), Files::All, &()).unwrap());
        // The others come meanwhile.
        while !fake.blob(SHARDS[1]).exists() {
            std::thread::yield_now();
        }
        assert!(!download.is_finished() && fake.content.gets(SHARDS[0]).is_empty());
        let elsewhere = fake.cache().join("elsewhere");
        fs::write(&elsewhere, &*file.bytes).unwrap();
        fs::rename(elsewhere, fake.blob(SHARDS[0])).unwrap();
        drop(lock);
        fake.assert_complete(&download.join().unwrap());
    });
    assert!(fake.content.gets(SHARDS[0]).is_empty(), "the other one's was taken");
}
