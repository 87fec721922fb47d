//! What a download leaves in the cache, and what it takes from there.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use common::{COMMIT, FakeHub, Reply, SHARDS, TOKEN, id};
use foveal_hub::{FileProgress, Files, ModelId, Progress, TotalProgress};

#[test]
fn a_model_is_laid_out_as_the_hubs_own_libraries_do_it() {
    let fake = FakeHub::with_model();
    let snapshot = fake.fetch().unwrap();
    fake.assert_complete(&snapshot);
    assert_eq!(snapshot.commit(), COMMIT);
    for name in ["config.json", SHARDS[0]] {
        let etag = fake.file(name).etag;
        let link = fs::read_link(snapshot.folder().join(name)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(&etag));
        assert!(fake.cache().join(".locks/models--org--model").join(format!("{etag}.lock")).is_file());
    }
    assert_eq!(fs::read_to_string(fake.model_folder().join("refs/main")).unwrap(), COMMIT);
    for unneeded in ["README.md", "pytorch_model.bin"] {
        assert!(fake.hub.seen().iter().all(|request| !request.path.contains(unneeded)));
    }
}

#[test]
fn what_is_there_is_not_downloaded_again() {
    let fake = FakeHub::with_model();
    let first = fake.fetch().unwrap();
    fake.hub.forget();
    fake.content.forget();
    assert_eq!(fake.fetch().unwrap(), first);
    let paths: Vec<String> = fake.hub.seen().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/api/models/org/model/revision/main"], "only whether there is a new commit");
    assert!(fake.content.seen().is_empty());

    fake.hub.forget();
    let pinned: ModelId = format!("org/model@{COMMIT}").parse().unwrap();
    assert_eq!(fake.client().snapshot(&pinned, Files::All, &()).unwrap(), first);
    assert!(fake.hub.seen().is_empty(), "a commit never changes");

    // One file that went missing is fetched alone.
    fs::remove_file(snapshot_file(&fake, SHARDS[1])).unwrap();
    fs::remove_file(fake.blob(SHARDS[1])).unwrap();
    fake.assert_complete(&fake.fetch().unwrap());
    let paths: Vec<String> = fake.content.seen().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, [format!("/{}?signature=x", SHARDS[1])]);
}

fn snapshot_file(fake: &FakeHub, name: &str) -> std::path::PathBuf {
    fake.model_folder().join("snapshots").join(COMMIT).join(name)
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let fake = FakeHub::with_model();
    fake.fetch().unwrap();
    let bearer = format!("Bearer {TOKEN}");
    assert!(fake.hub.seen().iter().all(|request| request.authorization.as_deref() == Some(&bearer)));
    assert!(fake.content.seen().len() >= 2, "the large files came from there");
    assert!(fake.content.seen().iter().all(|request| request.authorization.is_none()));
}

#[test]
fn a_download_redirected_by_the_get_itself_takes_no_token_along() {
    // The hub describes a small file itself, but sends whoever wants its bytes to another server.
    let fake = FakeHub::with_model();
    let name = "config.json";
    let file = fake.file(name);
    let described = Reply::ok(file.bytes.to_vec()).header("ETag", &format!("\"{}\"", file.etag));
    fake.answer_instead("resolve/0123456789abcdef0123456789abcdef01234567/config.json", described);
    let redirect = Reply::status(307).header("Location", &format!("{}/{name}", fake.content.base()));
    fake.answer_instead("resolve/0123456789abcdef0123456789abcdef01234567/config.json", redirect);
    fake.assert_complete(&fake.fetch().unwrap());
    let at_content = fake.content.gets(name);
    assert_eq!(at_content.len(), 1);
    assert_eq!(at_content[0].authorization, None);
}

#[test]
fn weights_that_are_made_up_need_none_downloaded() {
    let fake = FakeHub::with_model();
    let snapshot = fake.client().snapshot(&id(), Files::WithoutWeights, &()).unwrap();
    assert!(snapshot.folder().join("config.json").is_file() && snapshot.folder().join("tokenizer.json").is_file());
    assert!(fake.content.seen().is_empty() && !snapshot.folder().join(SHARDS[0]).exists());
    // The rest comes when it is asked for.
    fake.assert_complete(&fake.fetch().unwrap());
}

#[test]
fn one_content_under_two_names_is_fetched_once() {
    let fake = FakeHub::with_model();
    fake.add("chat_template.json", b"{\"x\": 2}");
    fake.add("processor_config.json", b"{\"x\": 2}");
    fake.assert_complete(&fake.fetch().unwrap());
    let gets = [fake.hub.gets("chat_template.json"), fake.hub.gets("processor_config.json")].concat();
    assert_eq!(gets.len(), 1, "{gets:?}");
}

#[test]
fn a_revision_of_several_parts_is_one_part_of_the_address() {
    let fake = FakeHub::with_model();
    let id: ModelId = "org/model@refs/pr/1".parse().unwrap();
    let snapshot = fake.client().snapshot(&id, Files::All, &()).unwrap();
    fake.assert_complete(&snapshot);
    assert_eq!(fake.hub.seen()[0].path, "/api/models/org/model/revision/refs%2Fpr%2F1");
    assert_eq!(fs::read_to_string(fake.model_folder().join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert!(!fake.model_folder().join("refs/main").exists());
}

#[test]
fn a_new_commit_shares_what_has_not_changed() {
    let fake = FakeHub::with_model();
    let old = "f".repeat(40);
    let first = fake.fetch().unwrap();
    // As if what is there were of another commit.
    fs::rename(first.folder(), first.folder().with_file_name(&old)).unwrap();
    fs::write(fake.model_folder().join("refs/main"), &old).unwrap();
    fake.add("config.json", b"{\"new\": true}");
    fake.content.forget();
    fake.assert_complete(&fake.fetch().unwrap());
    assert!(fake.content.seen().is_empty(), "the shards are the same");
    assert_eq!(fs::read_to_string(fake.model_folder().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(fake.model_folder().join("snapshots").join(old).join("config.json")).unwrap(), b"{}");
}

/// Remembers the last of each file.
#[derive(Default)]
struct Watch {
    planned: Mutex<Vec<(String, u64)>>,
    last: Mutex<Vec<(u64, TotalProgress)>>,
}

impl Progress for Watch {
    fn planned(&self, files: &[FileProgress<'_>]) {
        *self.planned.lock().unwrap() = files.iter().map(|file| (file.name.to_owned(), file.len_bytes)).collect();
        let none = TotalProgress { done_bytes: 0, len_bytes: 0 };
        *self.last.lock().unwrap() = vec![(0, none); files.len()];
    }

    fn advanced(&self, file: FileProgress<'_>, total: TotalProgress) {
        assert!(file.done_bytes <= file.len_bytes && total.done_bytes <= total.len_bytes, "{file:?} {total:?}");
        let planned = &self.planned.lock().unwrap()[file.index];
        assert_eq!((planned.0.as_str(), planned.1), (file.name, file.len_bytes));
        let place = &mut self.last.lock().unwrap()[file.index];
        // Of calls that overtake one another the furthest counts.
        *place = (place.0.max(file.done_bytes), if total.done_bytes > place.1.done_bytes { total } else { place.1 });
    }
}

#[test]
fn progress_ends_at_the_sizes_that_were_planned() {
    let fake = FakeHub::with_model();
    let watch = Watch::default();
    fake.client().snapshot(&id(), Files::All, &watch).unwrap();
    let planned = watch.planned.lock().unwrap().clone();
    assert_eq!(planned.len(), 5);
    let sizes: u64 = planned.iter().map(|(name, _)| fake.file(name).bytes.len() as u64).sum();
    let last = watch.last.lock().unwrap();
    assert!(last.iter().zip(&planned).all(|((done, _), (_, len))| done == len));
    let furthest = last.iter().map(|(_, total)| total.done_bytes).max();
    assert_eq!((furthest, last[0].1.len_bytes), (Some(sizes), sizes));

    let silent = Watch::default();
    fake.client().snapshot(&id(), Files::All, &silent).unwrap();
    assert!(silent.planned.lock().unwrap().is_empty(), "nothing is missing, nothing is planned");
}
