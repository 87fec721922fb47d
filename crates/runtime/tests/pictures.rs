//! Pictures of every kind: an answer or a clear error, never a panic.

mod common;

use std::fs;
use std::path::Path;

use common::{Outcome, run_tiny, shapes};
use foveal_testkit::test_assets;

fn describe(picture: &Path) -> Outcome {
    run_tiny(["--image", picture.to_str().unwrap(), "--max-tokens", "4", "Describe the picture."])
}

#[track_caller]
fn refused(picture: &Path, text: &str) {
    let outcome = describe(picture);
    let error = outcome.refusal();
    assert!(error.contains(picture.to_str().unwrap()) && error.contains(text), "{text}: {error}");
}

#[test]
fn files_that_are_no_pictures_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    refused(&dir.path().join("missing.png"), "does not exist");
    refused(dir.path(), "directory");
    refused(&file("empty.png", b""), "format");
    refused(&file("text.png", b"not a picture at all"), "format");
    let png = fs::read(shapes()).unwrap();
    refused(&file("cut.png", &png[..png.len() / 2]), "PNG");
    refused(&file("header.png", &png[..20]), "PNG");
}

#[test]
fn the_second_of_two_pictures_is_the_one_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.png");
    let png = fs::read(shapes()).unwrap();
    fs::write(&cut, &png[..png.len() / 2]).unwrap();
    let shapes = shapes();
    let outcome =
        run_tiny(["--image", shapes.to_str().unwrap(), "--image", cut.to_str().unwrap(), "Compare the pictures."]);
    let error = outcome.refusal();
    assert!(error.contains("cut.png") && !error.contains("shapes.png"), "{error}");
}

#[test]
fn every_kind_of_picture_gives_an_answer_or_a_clear_error() {
    let Some(assets) = test_assets() else { return };
    let mut pictures: Vec<_> =
        fs::read_dir(assets.join("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pictures.retain(|path| path.extension().is_some_and(|e| e != "json" && e != "md"));
    pictures.sort();
    assert!(pictures.len() > 20);
    for picture in pictures {
        let name = picture.file_name().unwrap().to_str().unwrap();
        match name {
            "bad_truncated.jpg" => refused(&picture, "JPEG"),
            "bad_bomb_60000x60000.png" => refused(&picture, "3600000000 pixels"),
            "wide_251to1_over_limit.png" => refused(&picture, "200 times"),
            _ => {
                let outcome = describe(&picture);
                assert!(!outcome.answer().is_empty(), "{name}");
            }
        }
    }
}
