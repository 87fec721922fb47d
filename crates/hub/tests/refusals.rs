//! What is refused, and what is said then.

mod common;

use std::fs;
use std::time::Duration;

use common::{COMMIT, FakeHub, Reply, SHARDS, id};
use foveal_hub::{Files, HubError, ModelId, RetryPolicy};

/// The error of a download, and nothing in the cache.
#[track_caller]
fn refused(fake: &FakeHub) -> HubError {
    let error = fake.fetch().unwrap_err();
    let model = fake.model_folder();
    assert!(!model.join("refs").exists() && !model.join("snapshots").exists(), "{error}");
    error
}

#[test]
fn models_that_are_not_there_or_not_for_everybody() {
    type Check = fn(&HubError) -> bool;
    let cases: [(Reply, Check, &[&str]); 6] = [
        (Reply::status(404), |e| matches!(e, HubError::NotFound { .. }), &["org/model", "HF_TOKEN"]),
        (
            Reply::status(401).header("X-Error-Code", "RepoNotFound"),
            |e| matches!(e, HubError::NotFound { .. }),
            &["org/model", "spelling", "HF_TOKEN"],
        ),
        (
            Reply::status(404).header("X-Error-Code", "RevisionNotFound"),
            |e| matches!(e, HubError::RevisionNotFound { .. }),
            &["`main`"],
        ),
        (
            Reply::status(403).header("X-Error-Code", "GatedRepo"),
            |e| matches!(e, HubError::Gated { .. }),
            &["licence", "/org/model", "HF_TOKEN"],
        ),
        (Reply::status(401), |e| matches!(e, HubError::Refused { .. }), &["HF_TOKEN", "/org/model"]),
        (Reply::status(403), |e| matches!(e, HubError::Refused { .. }), &["HF_TOKEN", "licence"]),
    ];
    for (reply, is_right, texts) in cases {
        let fake = FakeHub::with_model();
        fake.answer_instead("/api/", reply.clone());
        let error = refused(&fake);
        assert!(is_right(&error), "{reply:?}: {error:?}");
        texts.iter().for_each(|text| assert!(error.to_string().contains(text), "{text} in {error}"));
        assert_eq!(fake.hub.seen().len(), 1, "asking again would change nothing");
    }
}

#[test]
fn a_gated_model_may_show_its_listing_and_nothing_more() {
    let fake = FakeHub::with_model();
    for name in ["config.json", SHARDS[0]] {
        fake.answer_instead(name, Reply::status(403).header("X-Error-Code", "GatedRepo"));
    }
    assert!(matches!(refused(&fake), HubError::Gated { .. }));
    let other: ModelId = "org/other".parse().unwrap();
    assert!(matches!(fake.client().snapshot(&other, Files::All, &()), Err(HubError::NotFound { .. })));
}

#[test]
fn a_server_says_when_to_come_back() {
    let fake = FakeHub::with_model();
    // The client's own pause would outlast every test.
    let hour = Duration::from_secs(3600);
    let policy = RetryPolicy { max_attempts: 3, first_delay: hour, max_delay: hour };
    fake.answer_instead("/api/", Reply::status(429).header("Retry-After", "0"));
    fake.answer_instead("config.json", Reply::status(503).header("Retry-After", "0"));
    fake.answer_instead(SHARDS[0], Reply::status(429).header("RateLimit", "\"resolvers\";r=0;t=0"));
    let snapshot = fake.client().with_retry_policy(policy).snapshot(&id(), Files::All, &()).unwrap();
    fake.assert_complete(&snapshot);
    assert_eq!(fake.hub.gets("/api/").len(), 2);
}

#[test]
fn failures_of_the_server_pass_or_are_named() {
    let fake = FakeHub::with_model();
    for status in [500, 502, 504] {
        fake.answer_instead("/api/", Reply::status(status));
    }
    fake.assert_complete(&fake.fetch().unwrap());

    let fake = FakeHub::with_model();
    (0..4).for_each(|_| fake.answer_instead("/api/", Reply::status(503)));
    let error = refused(&fake);
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
    assert_eq!(fake.hub.seen().len(), 4);
}

#[test]
fn names_that_lead_out_of_the_cache_refuse_everything() {
    for evil in ["../../config.json", "/tmp/x.json", "..\\..\\x.safetensors", "a/../../../x.json"] {
        let fake = FakeHub::with_model();
        fake.add(evil, b"evil");
        let error = refused(&fake);
        assert!(matches!(&error, HubError::UnsafeFileName { file, .. } if file == evil), "{error}");
        assert_eq!(fs::read_dir(fake.cache()).unwrap().count(), 0, "nothing was written");
        assert_eq!(fake.hub.seen().len(), 1, "nothing was asked for");
    }
}

#[test]
fn answers_that_no_hub_gives_are_named() {
    let ok = |text: &str| Reply::ok(text.as_bytes().to_vec());
    let file = |etag: &str| ok("{}").header("ETag", etag).header("X-Repo-Commit", COMMIT);
    let large = |headers: &[(&str, &str)]| {
        let reply = Reply::status(302).header("Location", "http://127.0.0.1:1/x");
        headers.iter().fold(reply, |reply, (name, value)| reply.header(name, value))
    };
    let cases = [
        ("/api/", ok("<html>Please sign in to the Wi-Fi</html>")),
        ("/api/", ok("{\"sha\": \"../../x\", \"siblings\": []}")),
        ("/api/", ok("{\"sha\": \"main\", \"siblings\": []}")),
        ("/api/", Reply::status(302)),
        ("/api/", Reply::status(302).header("Location", "file:///etc/passwd")),
        ("config.json", ok("{}")),
        ("config.json", file("\"../../x\"")),
        ("config.json", file("\"a/b\"")),
        ("config.json", ok("{}").header("ETag", "\"abc\"").header("X-Repo-Commit", &"f".repeat(40))),
        ("config.json", Reply::status(404).header("X-Error-Code", "EntryNotFound")),
        (SHARDS[0], large(&[("X-Linked-Etag", "\"abc\"")])),
        (SHARDS[0], large(&[("X-Linked-Size", "100")])),
    ];
    for (path, reply) in cases {
        let fake = FakeHub::with_model();
        fake.answer_instead(path, reply.clone());
        let error = refused(&fake);
        assert!(matches!(error, HubError::BadAnswer { .. }), "{reply:?}: {error:?}");
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
    }
}

#[test]
fn redirects_in_circles_end() {
    let fake = FakeHub::with_model();
    let to_itself = Reply::status(307).header("Location", "/api/models/org/model/revision/main");
    (0..50).for_each(|_| fake.answer_instead("/api/", to_itself.clone()));
    assert!(matches!(refused(&fake), HubError::BadAnswer { .. }));
    let fake = FakeHub::with_model();
    let to_itself = Reply::status(307).header("Location", &format!("/org/model/resolve/{COMMIT}/config.json"));
    (0..50).for_each(|_| fake.answer_instead("config.json", to_itself.clone()));
    assert!(matches!(refused(&fake), HubError::BadAnswer { .. }));
}

#[test]
fn contents_of_another_size_or_place_are_refused() {
    let part = |range: &str| {
        let reply = Reply { status: 206, ..Reply::ok(vec![0; 10]) };
        reply.header("Content-Range", range)
    };
    for reply in [Reply::ok(vec![0; 10]), part("bytes 5-14/300000"), part("bytes 0-9/10"), part("nonsense")] {
        let fake = FakeHub::with_model();
        fake.answer_instead("-00001-of-00002.safetensors?signature", reply.clone());
        let error = fake.fetch().unwrap_err();
        assert!(matches!(&error, HubError::BadAnswer { .. }), "{reply:?}: {error:?}");
        assert!(error.to_string().contains(SHARDS[0]), "{error}");
    }
}

#[test]
fn repositories_of_other_things_are_refused() {
    let fake = FakeHub::with_model();
    fake.world().files.retain(|name, _| !name.ends_with(".safetensors"));
    let error = refused(&fake);
    assert!(matches!(error, HubError::NotAModel { .. }) && error.to_string().contains("safetensors"), "{error}");
}

#[test]
fn a_cache_that_can_not_be_written_is_named() {
    let fake = FakeHub::with_model();
    fs::create_dir_all(fake.model_folder()).unwrap();
    let blobs = fake.model_folder().join("blobs");
    fs::write(&blobs, "in the way").unwrap();
    let error = fake.fetch().unwrap_err();
    assert!(matches!(error, HubError::File { .. }), "{error:?}");
    assert!(error.to_string().contains(blobs.to_str().unwrap()), "{error}");
}
