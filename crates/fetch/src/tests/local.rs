//! Which files of this machine are read.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{fetch, fetcher, file_url, policy, refusal};
use crate::{Fetcher, Policy, PolicyError};

/// A folder `pictures` that may be read, beside a folder `pictures-secret` and a file that may not.
struct Folders {
    parent: TempDir,
}

impl Folders {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        for folder in ["pictures/sub", "pictures-secret"] {
            fs::create_dir_all(parent.path().join(folder)).unwrap();
        }
        for file in ["pictures/a.png", "pictures/sub/b c.png", "pictures/100%.png", "pictures-secret/s.png", "s.png"] {
            fs::write(parent.path().join(file), file).unwrap();
        }
        Self { parent }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.parent.path().join(path)
    }

    fn fetcher(&self) -> Fetcher {
        allowing(&self.path("pictures"))
    }
}

fn allowing(root: &Path) -> Fetcher {
    fetcher(Policy { allowed_local_media_path: Some(root.to_owned()), ..policy(&[]) })
}

#[test]
fn files_in_the_folder_are_read() {
    let folders = Folders::new();
    symlink("a.png", folders.path("pictures/link.png")).unwrap();
    symlink("pictures", folders.path("pictures-link")).unwrap();
    let root = file_url(&folders.path("pictures"));
    for (url, content) in [
        (format!("{root}/a.png"), "pictures/a.png"),
        (format!("FILE{}/a.png", root.strip_prefix("file").unwrap()), "pictures/a.png"),
        (format!("{root}/sub/b%20c.png"), "pictures/sub/b c.png"),
        (format!("{root}/100%25.png"), "pictures/100%.png"),
        (format!("{root}/sub/../a.png"), "pictures/a.png"),
        (format!("{root}/sub/%2e%2e/a.png"), "pictures/a.png"),
        (format!("{root}/link.png"), "pictures/a.png"),
        (format!("{root}-link/a.png"), "pictures/a.png"),
    ] {
        assert_eq!(fetch(&folders.fetcher(), &url).unwrap(), content.as_bytes(), "{url}");
        assert_eq!(fetch(&allowing(&folders.path("pictures-link")), &url).unwrap(), content.as_bytes(), "{url}");
    }
}

/// Files outside and files that aren't there give the same answer.
#[test]
fn no_way_leads_out_of_the_folder() {
    let folders = Folders::new();
    symlink("../s.png", folders.path("pictures/out.png")).unwrap();
    symlink("..", folders.path("pictures/up")).unwrap();
    symlink("/", folders.path("pictures/root")).unwrap();
    symlink("loop.png", folders.path("pictures/loop.png")).unwrap();
    let root = file_url(&folders.path("pictures"));
    let (_, missing) = refusal(fetch(&folders.fetcher(), &format!("{root}/missing.png")));
    for url in [
        format!("{root}/out.png"),
        format!("{root}/up/s.png"),
        format!("{root}/up/missing.png"),
        format!("{root}/root/etc/passwd"),
        format!("{root}/loop.png"),
        format!("{root}/../s.png"),
        format!("{root}/%2e%2e/s.png"),
        format!("{root}/.%2E/s.png"),
        format!("{root}/..%2fs.png"),
        format!("{root}/..%2Fpictures-secret%2Fs.png"),
        format!("{root}/%2e%2e%2fs.png"),
        format!("{root}/sub/..%2f..%2fs.png"),
        format!("{root}-secret/s.png"),
        format!("{root}/a.png/"),
        format!("{root}/a.png%00.png"),
        format!("{root}/%252e%252e/s.png"),
        "file:///etc/passwd".to_owned(),
        "file:////etc/passwd".to_owned(),
        "file:///no/such/file".to_owned(),
        "file:///".to_owned(),
        "file:///proc/self/environ".to_owned(),
        "file:///dev/zero".to_owned(),
    ] {
        let (code, message) = refusal(fetch(&folders.fetcher(), &url));
        assert_eq!(code, "local_media_not_allowed", "{url}");
        assert_eq!(message, missing, "{url}");
    }
}

#[test]
fn other_forms_are_refused() {
    let folders = Folders::new();
    for url in [
        "file:",
        "file:a.png",
        "file:/etc/passwd",
        "file://etc/passwd",
        "file://localhost/etc/passwd",
        "file://host/share/a.png",
        "file:\\\\host\\a.png",
        "file:///a\\..\\b.png",
        "file:///a b.png",
        "file:///a\n.png",
        "file:///a.png?version=1",
        "file:///a.png#1",
    ] {
        assert_eq!(refusal(fetch(&folders.fetcher(), url)).0, "invalid_image_url", "{url}");
    }
}

#[test]
fn nothing_is_read_without_a_folder() {
    let folders = Folders::new();
    let url = file_url(&folders.path("pictures/a.png"));
    let (code, message) = refusal(fetch(&fetcher(policy(&["*"])), &url));
    assert_eq!(code, "local_media_not_allowed");
    assert!(message.contains("data URL"), "{message}");
}

/// Opening a pipe would wait for its writer, and reading a device might never end.
#[test]
fn only_regular_files_are_read() {
    let folders = Folders::new();
    let pipe = folders.path("pictures/pipe.png");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let socket = folders.path("pictures/socket.png");
    let _listener = UnixListener::bind(&socket).unwrap();
    for path in [pipe, socket, folders.path("pictures/sub"), folders.path("pictures")] {
        let (code, message) = refusal(fetch(&folders.fetcher(), &file_url(&path)));
        assert_eq!(code, "local_media_not_allowed");
        assert!(message.contains("regular file"), "{message}");
    }
    let (_, message) = refusal(fetch(&allowing(Path::new("/dev")), "file:///dev/zero"));
    assert!(message.contains("regular file"), "{message}");
}

#[test]
fn an_empty_file_is_no_picture() {
    let folders = Folders::new();
    fs::write(folders.path("pictures/empty.png"), "").unwrap();
    let url = file_url(&folders.path("pictures/empty.png"));
    assert_eq!(refusal(fetch(&folders.fetcher(), &url)).0, "invalid_image");
}

#[test]
fn the_folder_must_be_one() {
    let folders = Folders::new();
    let policy = Policy { allowed_local_media_path: Some(folders.path("s.png")), ..Policy::default() };
    assert!(matches!(Fetcher::new(policy), Err(PolicyError::NotAFolder { .. })));
}
