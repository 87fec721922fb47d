//! Models by hub id: the binary against a hub of this machine's own.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use common::{Outcome, command, run_tiny, tiny};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that has one model, `foveal/tiny`.
struct FakeHub {
    address: SocketAddr,
    /// Method and path of each request.
    seen: Arc<Mutex<Vec<String>>>,
    home: tempfile::TempDir,
}

impl FakeHub {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let for_thread = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&for_thread);
                std::thread::spawn(move || serve(&stream, &seen));
            }
        });
        Self { address, seen, home: tempfile::tempdir().unwrap() }
    }

    /// Runs `foveal`, for which this hub is the hub.
    fn foveal(&self, args: &[&str], is_offline: bool) -> Outcome {
        let mut command = command(args);
        for variable in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"] {
            command.env_remove(variable);
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", format!("http://{}", self.address));
        command.env("HF_HUB_OFFLINE", if is_offline { "1" } else { "0" });
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn has_seen(&self, text: &str) -> bool {
        self.seen.lock().unwrap().iter().any(|request| request.contains(text))
    }
}

fn serve(mut stream: &TcpStream, seen: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let head: Vec<String> = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let Some((method, path)) = head.first().and_then(|line| line.split_once(' ')) else { return };
        let path = path.split(' ').next().unwrap();
        seen.lock().unwrap().push(format!("{method} {path}"));
        let (status, etag, body) = answer(path);
        let head = format!("HTTP/1.1 {status} .\r\nContent-Length: {}\r\nETag: \"{etag}\"\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        if method == "GET" {
            stream.write_all(&body).unwrap();
        }
    }
}

/// Status, etag and body.
fn answer(path: &str) -> (u16, String, Vec<u8>) {
    if path == "/api/models/foveal/tiny/revision/main" {
        let names = std::fs::read_dir(tiny()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
        let listing = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        return (200, String::new(), listing.to_string().into_bytes());
    }
    let name = path.strip_prefix(&format!("/foveal/tiny/resolve/{COMMIT}/"));
    match name.and_then(|name| Some((name, std::fs::read(tiny().join(name)).ok()?))) {
        Some((name, body)) => (200, format!("tag-of-{name}"), body),
        None => (404, String::new(), Vec::new()),
    }
}

#[test]
fn a_model_by_its_id_answers_as_its_folder_does() {
    let hub = FakeHub::new();
    let args = ["run", "--model", "foveal/tiny", "--temperature", "0", "Count from 3 to 12."];
    let online = hub.foveal(&args, false);
    assert_eq!(online.answer(), run_tiny(["--temperature", "0", "Count from 3 to 12."]).answer());
    assert!(online.stderr.contains("Downloading foveal/tiny"), "{online:?}");
    assert!(!hub.has_seen("train.py"), "nothing that no engine reads");
    let snapshot = hub.home.path().join("hub/models--foveal--tiny/snapshots").join(COMMIT);
    assert!(snapshot.join("model.safetensors").is_file());

    let again = hub.foveal(&args, true);
    assert_eq!((again.answer(), again.stderr.as_str()), (online.answer(), ""));
}

#[test]
fn made_up_weights_are_not_downloaded() {
    let hub = FakeHub::new();
    let args = ["run", "--model", "foveal/tiny@main", "--load-format", "dummy", "--json", "--max-tokens", "2", "Hello"];
    let answer = hub.foveal(&args, false).json();
    assert_eq!(answer["completion_tokens"], 2);
    assert!(hub.has_seen("tokenizer.json") && !hub.has_seen("safetensors"));
    // The real ones are missing, and are said to be.
    let refusal = hub.foveal(&["run", "--model", "foveal/tiny", "Hello"], true);
    assert!(refusal.refusal().contains("lacks model.safetensors"), "{refusal:?}");
}

#[test]
fn inspect_calls_a_model_by_its_id() {
    let hub = FakeHub::new();
    let report = hub.foveal(&["inspect", "foveal/tiny", "--json"], false).json();
    assert_eq!(report["model"], "foveal/tiny");
    assert_eq!(report["model_type"], "qwen3_vl");
}

#[test]
fn what_is_neither_folder_nor_id_is_refused_as_both() {
    let hub = FakeHub::new();
    for model in ["no/such/folder", "./tiny", "/no/such", "Qwen3-VL-2B", "a--b/c", "org/name@"] {
        assert!(!Path::new(model).exists());
        let outcome = hub.foveal(&["run", "--model", model, "Hello"], false);
        let error = outcome.refusal();
        for text in [model, "does not exist", "no hub id"] {
            assert!(error.contains(text), "{text} in {error}");
        }
    }
    assert_eq!(hub.seen.lock().unwrap().len(), 0, "nobody was asked");
}

#[test]
fn ids_that_the_hub_does_not_know_are_named() {
    let hub = FakeHub::new();
    for (is_offline, texts) in [(false, ["no model org/none", "no folder"]), (true, ["HF_HUB_OFFLINE", "no folder"])] {
        let outcome = hub.foveal(&["run", "--model", "org/none", "Hello"], is_offline);
        texts.iter().for_each(|text| assert!(outcome.refusal().contains(text), "{text} in {outcome:?}"));
    }
}
