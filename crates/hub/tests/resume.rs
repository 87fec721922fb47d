//! Downloads that are interrupted, damaged, cut into parts.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{FakeHub, Reply, SHARDS, Server, id, pattern};
use foveal_hub::{FileProgress, Files, HubError, Progress, TotalProgress};

/// Of a blob of several pieces: what the crate asks for at once.
const PIECE: usize = 16 << 20;

#[test]
fn a_download_that_was_interrupted_goes_on_where_it_stopped() {
    let fake = FakeHub::with_model();
    fake.world().cuts.push((SHARDS[0], 123_456));
    let error = fake.impatient().snapshot(&id(), Files::All, &()).unwrap_err();
    assert!(matches!(&error, HubError::Interrupted { file, len_bytes: 300_000, .. } if file == SHARDS[0]), "{error}");
    let kept = fs::read(fake.incomplete(SHARDS[0])).unwrap();
    assert_eq!(kept, fake.file(SHARDS[0]).bytes[..123_456], "what came is kept");
    assert!(error.to_string().contains("123456 of 300000 bytes"), "{error}");

    fake.content.forget();
    fake.assert_complete(&fake.fetch().unwrap());
    let gets = fake.content.gets(SHARDS[0]);
    assert_eq!(gets.len(), 1);
    assert_eq!(gets[0].range, Some((123_456, Some(299_999))));
}

#[test]
fn a_lost_connection_is_made_again() {
    let fake = FakeHub::with_model();
    // More often than there are tries in a row: each brings something.
    fake.world().cuts.extend([1000, 2000, 3000, 4000, 5000, 6000].map(|bytes| (SHARDS[0], bytes)));
    fake.assert_complete(&fake.fetch().unwrap());
    let starts: Vec<_> =
        fake.content.gets(SHARDS[0]).iter().map(|get| get.range.map_or(0, |(start, _)| start)).collect();
    assert_eq!(starts, [0, 1000, 3000, 6000, 10_000, 15_000, 21_000]);
    // The address from the hub is asked for anew after a failure.
    assert_eq!(fake.hub.gets(SHARDS[0]).len(), 6);
}

#[test]
fn tries_that_bring_nothing_come_to_an_end() {
    let fake = FakeHub::with_model();
    fake.world().cuts.extend([(SHARDS[0], 0); 10]);
    let error = fake.fetch().unwrap_err();
    assert!(matches!(&error, HubError::Interrupted { file, done_bytes: 0, .. } if file == SHARDS[0]), "{error}");
    assert_eq!(fake.content.gets(SHARDS[0]).len(), 4);
}

#[test]
fn an_address_that_has_expired_is_asked_for_again() {
    let fake = FakeHub::with_model();
    fake.answer_instead("-00001-of-00002.safetensors?signature", Reply::status(403));
    fake.assert_complete(&fake.fetch().unwrap());
    assert_eq!(fake.hub.gets(SHARDS[0]).len(), 1);
}

#[test]
fn what_an_earlier_download_left_damaged_is_fetched_again() {
    for left in [pattern(1000, 9), pattern(300_000, 9), pattern(300_001, 9), vec![]] {
        let fake = FakeHub::with_model();
        fs::create_dir_all(fake.model_folder().join("blobs")).unwrap();
        fs::write(fake.incomplete(SHARDS[0]), &left).unwrap();
        fake.assert_complete(&fake.fetch().unwrap());
        let last = fake.content.gets(SHARDS[0]).pop().unwrap();
        assert_eq!(last.range, None, "the whole, from the beginning");
    }
}

#[test]
fn what_is_whole_but_not_in_its_place_is_not_fetched() {
    let fake = FakeHub::with_model();
    fs::create_dir_all(fake.model_folder().join("blobs")).unwrap();
    fs::write(fake.incomplete(SHARDS[0]), &*fake.file(SHARDS[0]).bytes).unwrap();
    fake.assert_complete(&fake.fetch().unwrap());
    assert!(fake.content.gets(SHARDS[0]).is_empty());
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    let fake = FakeHub::with_model();
    let mut wrong = fake.file(SHARDS[0]);
    let mut bytes = wrong.bytes.to_vec();
    bytes[777] ^= 1;
    wrong.bytes = Arc::new(bytes);
    let expected = wrong.etag.clone();
    fake.world().files.insert(SHARDS[0].to_owned(), wrong);
    let error = fake.fetch().unwrap_err();
    assert!(matches!(&error, HubError::WrongChecksum { file, expected: e, .. } if file == SHARDS[0] && *e == expected));
    assert!(!fake.blob(SHARDS[0]).exists() && !fake.incomplete(SHARDS[0]).exists());
    assert!(!fake.model_folder().join("refs/main").exists(), "the revision is not there yet");
}

#[test]
fn servers_without_ranges_are_taken_as_they_are() {
    let fake = FakeHub::with_model();
    fake.add_large(SHARDS[0], pattern(2 * PIECE + 5, 7));
    fs::create_dir_all(fake.model_folder().join("blobs")).unwrap();
    let left = fake.file(SHARDS[0]).bytes[..100_000].to_vec();
    fs::write(fake.incomplete(SHARDS[0]), left).unwrap();
    fake.world().ignores_ranges = true;
    fake.world().cuts.push((SHARDS[0], PIECE + 1));
    fake.assert_complete(&fake.fetch().unwrap());
    let starts: Vec<_> = fake.content.gets(SHARDS[0]).iter().map(|get| get.range.unwrap().0).collect();
    assert_eq!(starts, [100_000, PIECE + 1], "one request for the whole, and one after the loss");
}

#[test]
fn large_files_come_in_parts_each_byte_once() {
    let fake = FakeHub::with_model();
    let len = 3 * PIECE + 12_345;
    fake.add_large(SHARDS[0], pattern(len, 4));
    fake.assert_complete(&fake.fetch().unwrap());
    let mut ranges: Vec<_> = fake.content.gets(SHARDS[0]).iter().map(|get| get.range.unwrap()).collect();
    ranges.sort_unstable();
    let expected = [(0, PIECE - 1), (PIECE, 2 * PIECE - 1), (2 * PIECE, 3 * PIECE - 1), (3 * PIECE, len - 1)];
    assert_eq!(ranges, expected.map(|(first, last)| (first, Some(last))));
}

#[test]
fn parts_that_are_lost_midway_leave_no_holes() {
    let fake = FakeHub::with_model();
    fake.add_large(SHARDS[0], pattern(4 * PIECE + 1, 5));
    let cuts = [5_000_001, 1, 9_999_999, 0, 16_000_000, 65_536, 3_141_592];
    fake.world().cuts.extend(cuts.map(|bytes| (SHARDS[0], bytes)));
    fake.assert_complete(&fake.fetch().unwrap());
}

#[test]
fn several_parts_are_on_their_way_at_once() {
    let bytes = Arc::new(pattern(4 * PIECE, 6));
    let fake = FakeHub::with_model();
    fake.add_large(SHARDS[0], bytes.to_vec());
    // Parts but the first are answered in pairs only: a download that asks for one after the other would wait for ever.
    let waiting = Arc::new((Mutex::new(0_usize), Condvar::new()));
    let paired = Arc::new(AtomicUsize::new(0));
    let (for_server, num_paired) = (Arc::clone(&waiting), Arc::clone(&paired));
    let server = Server::start(move |request| {
        let (start, end) = request.range.unwrap();
        let end = end.unwrap() + 1;
        if start > 0 {
            let mut arrived = for_server.0.lock().unwrap();
            *arrived += 1;
            for_server.1.notify_all();
            let both = |arrived: &mut usize| *arrived < 2;
            let (_guard, wait) = for_server.1.wait_timeout_while(arrived, Duration::from_secs(20), both).unwrap();
            num_paired.fetch_add(usize::from(!wait.timed_out()), Ordering::SeqCst);
        }
        let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
        Reply { status: 206, ..Reply::ok(bytes[start..end].to_vec()) }.header("Content-Range", &range)
    });
    let etag = fake.file(SHARDS[0]).etag;
    let redirect = Reply::status(302)
        .header("Location", &format!("{}/x", server.base()))
        .header("X-Linked-Etag", &format!("\"{etag}\""))
        .header("X-Linked-Size", &(4 * PIECE).to_string());
    fake.answer_instead("model-00001-of-00002.safetensors", redirect);
    fake.assert_complete(&fake.fetch().unwrap());
    assert_eq!(paired.load(Ordering::SeqCst), 3);
}

/// Gives up after so many bytes.
struct Cancel {
    after: u64,
    done: AtomicU64,
}

impl Progress for Cancel {
    fn advanced(&self, _: FileProgress<'_>, total: TotalProgress) {
        self.done.fetch_max(total.done_bytes, Ordering::SeqCst);
    }

    fn is_cancelled(&self) -> bool {
        self.done.load(Ordering::SeqCst) >= self.after
    }
}

#[test]
fn a_cancelled_download_keeps_what_it_has() {
    let fake = FakeHub::with_model();
    fake.add_large(SHARDS[0], pattern(2 * PIECE, 8));
    let cancel = Cancel { after: 3 << 20, done: AtomicU64::new(0) };
    let one_at_a_time = fake.client().with_max_connections(1);
    assert!(matches!(one_at_a_time.snapshot(&id(), Files::All, &cancel), Err(HubError::Cancelled)));
    let kept = fs::read(fake.incomplete(SHARDS[0])).unwrap();
    assert!((2 << 20..PIECE).contains(&kept.len()), "{}", kept.len());
    assert!(kept == fake.file(SHARDS[0]).bytes[..kept.len()]);

    fake.content.forget();
    fake.assert_complete(&fake.fetch().unwrap());
    let starts: BTreeSet<_> = fake.content.gets(SHARDS[0]).iter().map(|get| get.range.unwrap().0).collect();
    assert_eq!(starts.first(), Some(&kept.len()));
}
