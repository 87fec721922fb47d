//! Without a hub: what is in the cache, if it is all there.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{COMMIT, FakeHub, Reply, SHARDS, id};
use foveal_hub::{Files, HubError, Snapshot};

fn offline(fake: &FakeHub, files: Files) -> Result<Snapshot, HubError> {
    fake.client().with_offline(true).snapshot(&id(), files, &())
}

#[test]
fn offline_asks_nobody() {
    let fake = FakeHub::with_model();
    let error = offline(&fake, Files::All).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert!(error.to_string().contains("HF_HUB_OFFLINE") && error.to_string().contains("org/model"), "{error}");
    let snapshot = fake.fetch().unwrap();
    fake.hub.forget();
    assert_eq!(offline(&fake, Files::All).unwrap(), snapshot);
    assert!(fake.hub.seen().is_empty());
}

#[test]
fn a_snapshot_that_stopped_midway_is_not_taken_for_a_whole_one() {
    let fake = FakeHub::with_model();
    fake.fetch().unwrap();
    fake.client().snapshot(&id(), Files::All, &()).unwrap();
    // Links without their blob are no files either.
    fs::remove_file(fake.blob(SHARDS[1])).unwrap();
    let error = offline(&fake, Files::All).unwrap_err();
    assert!(matches!(&error, HubError::Incomplete { missing, .. } if missing == SHARDS[1]), "{error}");
    assert!(offline(&fake, Files::WithoutWeights).is_ok());
    fs::remove_file(fake.blob("tokenizer.json")).unwrap();
    assert!(matches!(offline(&fake, Files::WithoutWeights), Err(HubError::Incomplete { .. })));
    fake.assert_complete(&fake.fetch().unwrap());
}

#[test]
fn without_a_listing_the_index_says_which_shards_there_are() {
    let fake = FakeHub::with_model();
    let snapshot = fake.fetch().unwrap();
    fs::remove_dir_all(fake.model_folder().join(".foveal")).unwrap();
    assert_eq!(offline(&fake, Files::All).unwrap(), snapshot);
    let missing = |name: &str| {
        let (path, aside) = (snapshot.folder().join(name), fake.cache().join("aside"));
        fs::rename(&path, &aside).unwrap();
        let result = offline(&fake, Files::All);
        fs::rename(&aside, &path).unwrap();
        match result {
            Err(HubError::Incomplete { missing, .. }) => missing,
            other => panic!("{name}: {other:?}"),
        }
    };
    for name in [SHARDS[0], SHARDS[1], "tokenizer.json", "config.json"] {
        assert_eq!(missing(name), name);
    }
    assert_eq!(missing("model.safetensors.index.json"), "model.safetensors");
}

/// A cache as the hub's own libraries leave it.
fn foreign_cache(fake: &FakeHub) {
    let folder = fake.model_folder();
    let snapshot = folder.join("snapshots").join(COMMIT);
    for made in [folder.join("blobs"), folder.join("refs"), snapshot.clone()] {
        fs::create_dir_all(made).unwrap();
    }
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors.index.json", SHARDS[0], SHARDS[1]] {
        let file = fake.file(name);
        fs::write(fake.blob(name), &*file.bytes).unwrap();
        symlink(format!("../../blobs/{}", file.etag), snapshot.join(name)).unwrap();
    }
}

#[test]
fn what_other_libraries_downloaded_is_found() {
    let fake = FakeHub::with_model();
    foreign_cache(&fake);
    fake.assert_complete(&offline(&fake, Files::All).unwrap());
    fake.assert_complete(&fake.fetch().unwrap());
    assert_eq!(fake.hub.seen().len(), 1, "nothing but the listing");

    // Newer ones leave a listing, too.
    let trees = fake.model_folder().join("trees");
    fs::create_dir_all(&trees).unwrap();
    let entry = |name: &str| (name.to_owned(), serde_json::json!({"size": 1, "blob_id": "x"}));
    let mut files: serde_json::Map<_, _> = fake.world().files.keys().map(|name| entry(name)).collect();
    files.extend([entry("chat_template.jinja")]);
    let tree = serde_json::json!({"format_version": 1, "files": files});
    fs::write(trees.join(format!("{COMMIT}.json")), tree.to_string()).unwrap();
    let error = offline(&fake, Files::All).unwrap_err();
    assert!(matches!(&error, HubError::Incomplete { missing, .. } if missing == "chat_template.jinja"), "{error}");
}

#[test]
fn without_a_connection_a_whole_snapshot_is_used_and_a_part_is_not() {
    let fake = FakeHub::with_model();
    // A port that was free a moment ago.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fetch = || fake.client().with_endpoint(&format!("http://{nobody}")).unwrap().snapshot(&id(), Files::All, &());
    let error = fetch().unwrap_err();
    assert!(matches!(&error, HubError::Unreachable { host, .. } if *host == nobody.to_string()), "{error}");
    let snapshot = fake.fetch().unwrap();
    assert_eq!(fetch().unwrap(), snapshot);
    fs::remove_file(fake.blob(SHARDS[0])).unwrap();
    assert!(matches!(fetch(), Err(HubError::Unreachable { .. })));
}

#[test]
fn a_hub_that_is_down_is_no_connection_but_one_that_refuses_is() {
    let fake = FakeHub::with_model();
    let snapshot = fake.fetch().unwrap();
    fake.hub.forget();
    fake.answer_instead("/api/", Reply::status(503));
    assert_eq!(fake.fetch().unwrap(), snapshot);
    assert_eq!(fake.hub.seen().len(), 1, "who has something to fall back on doesn't wait");
    fake.answer_instead("/api/", Reply::status(403).header("X-Error-Code", "GatedRepo"));
    assert!(matches!(fake.fetch(), Err(HubError::Gated { .. })));
}
