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

/// What never ends is not read to its end, whatever its length is said to be.
#[cfg(target_os = "linux")]
#[test]
fn devices_and_endless_pipes_are_refused() {
    refused(Path::new("/dev/zero"), "neither a file nor a pipe");
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let end = pipe.clone();
    let writer = std::thread::spawn(move || {
        let mut zeros = std::io::repeat(0);
        // Ends with an error when the reader has had enough.
        std::io::copy(&mut zeros, &mut fs::OpenOptions::new().write(true).open(end).unwrap()).unwrap_err()
    });
    refused(&pipe, "more than 20971520 bytes");
    assert_eq!(writer.join().unwrap().kind(), std::io::ErrorKind::BrokenPipe);
    let writer = std::thread::spawn({
        let end = pipe.clone();
        move || fs::write(end, fs::read(shapes()).unwrap()).unwrap()
    });
    assert!(!describe(&pipe).answer().is_empty(), "a picture through a pipe");
    writer.join().unwrap();
}

/// Strips and small pictures can come out larger than `--max-pixels`.
#[test]
fn pictures_that_outgrow_the_pixel_limit_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    for (width, height, limits) in [
        (150, 100, &["--min-pixels", "65536", "--max-pixels", "65536"][..]),
        (4000, 20, &["--max-pixels", "60000"]),
        (10, 10, &["--min-pixels", "1", "--max-pixels", "1"]),
    ] {
        let path = dir.path().join(format!("{width}x{height}.bmp"));
        fs::write(&path, bmp(width, height)).unwrap();
        let head = ["--image", path.to_str().unwrap(), "--max-tokens", "1", "Describe the picture."];
        let outcome = run_tiny(head.iter().chain(limits));
        outcome.answer();
    }
}

/// A grey picture of 24 bits per pixel.
fn bmp(width: u32, height: u32) -> Vec<u8> {
    let data_len = (width * 3).next_multiple_of(4) * height;
    let header = [54 + data_len, 0, 54, 40, width, height, 1 | 24 << 16, 0, data_len, 0, 0, 0, 0];
    let header = header.iter().flat_map(|word: &u32| word.to_le_bytes());
    b"BM".iter().copied().chain(header).chain(std::iter::repeat_n(127, data_len as usize)).collect()
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
