//! A hub of this machine's own: the hub's protocol over plain HTTP, its content server at another port, and faults on demand.
#![allow(dead_code, reason = "each test file takes what it needs")]

mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use foveal_hub::{Files, Hub, HubError, ModelId, RetryPolicy, Snapshot};

pub(crate) use server::{Reply, Request, Server};

/// The commit that the hub is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const TOKEN: &str = "a-secret";

/// A file of the repository.
#[derive(Clone)]
pub(crate) struct RepoFile {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) etag: String,
    /// Its bytes come from the content server and its etag is their SHA-256.
    is_large: bool,
}

/// What the hub has, and what it does wrong.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) files: BTreeMap<String, RepoFile>,
    /// Answers instead of the right ones, first to last, to requests whose path contains the text.
    pub(crate) instead: Vec<(&'static str, Reply)>,
    /// Contents that are cut off after so many bytes, once each, by the path of the request.
    pub(crate) cuts: Vec<(&'static str, usize)>,
    /// The whole comes, whatever part is asked for.
    pub(crate) ignores_ranges: bool,
}

/// The hub and its content server.
pub(crate) struct FakeHub {
    pub(crate) hub: Server,
    pub(crate) content: Server,
    pub(crate) world: Arc<Mutex<World>>,
    cache: tempfile::TempDir,
}

impl FakeHub {
    pub(crate) fn new() -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let for_content = Arc::clone(&world);
        let content = Server::start(move |request| content(&mut lock(&for_content), request));
        let (for_hub, base) = (Arc::clone(&world), content.base());
        let hub = Server::start(move |request| hub(&mut lock(&for_hub), &base, request));
        Self { hub, content, world, cache: tempfile::tempdir().unwrap() }
    }

    /// A hub with a model of two shards and things that nobody needs.
    pub(crate) fn with_model() -> Self {
        let this = Self::new();
        this.add("README.md", b"# A model");
        this.add("config.json", b"{}");
        this.add("tokenizer.json", b"{\"a\": 1}");
        this.add("model.safetensors.index.json", INDEX);
        this.add_large(SHARDS[0], pattern(300_000, 1));
        this.add_large(SHARDS[1], pattern(200_000, 2));
        this.add_large("pytorch_model.bin", pattern(100, 3));
        this
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    pub(crate) fn add(&self, name: &str, bytes: &[u8]) {
        let etag = hex(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref());
        let file = RepoFile { bytes: Arc::new(bytes.to_vec()), etag, is_large: false };
        self.world().files.insert(name.to_owned(), file);
    }

    pub(crate) fn add_large(&self, name: &str, bytes: Vec<u8>) {
        let etag = hex(ring::digest::digest(&ring::digest::SHA256, &bytes).as_ref());
        self.world().files.insert(name.to_owned(), RepoFile { bytes: Arc::new(bytes), etag, is_large: true });
    }

    pub(crate) fn file(&self, name: &str) -> RepoFile {
        self.world().files[name].clone()
    }

    /// The next answer to a request for such a path is another one.
    pub(crate) fn answer_instead(&self, path: &'static str, reply: Reply) {
        self.world().instead.push((path, reply));
    }

    pub(crate) fn cache(&self) -> &Path {
        self.cache.path()
    }

    pub(crate) fn model_folder(&self) -> PathBuf {
        self.cache().join("models--org--model")
    }

    pub(crate) fn blob(&self, name: &str) -> PathBuf {
        self.model_folder().join("blobs").join(self.file(name).etag)
    }

    pub(crate) fn incomplete(&self, name: &str) -> PathBuf {
        self.blob(name).with_extension("incomplete")
    }

    /// A client with a token that doesn't wait long.
    pub(crate) fn client(&self) -> Hub {
        let policy =
            RetryPolicy { max_attempts: 4, first_delay: Duration::from_millis(1), max_delay: Duration::from_millis(4) };
        let hub = Hub::new(self.cache()).with_endpoint(&self.hub.base()).unwrap().with_token(TOKEN).unwrap();
        hub.with_retry_policy(policy)
    }

    /// A client that gives up at once.
    pub(crate) fn impatient(&self) -> Hub {
        let policy = RetryPolicy { max_attempts: 1, first_delay: Duration::ZERO, max_delay: Duration::ZERO };
        self.client().with_retry_policy(policy)
    }

    pub(crate) fn fetch(&self) -> Result<Snapshot, HubError> {
        self.client().snapshot(&id(), Files::All, &())
    }

    /// Every file of the engine's is there with its bytes, whatever happened on the way.
    #[track_caller]
    pub(crate) fn assert_complete(&self, snapshot: &Snapshot) {
        assert_eq!(snapshot.folder(), self.model_folder().join("snapshots").join(COMMIT));
        let mut there: Vec<String> = std::fs::read_dir(snapshot.folder())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        let needed =
            self.world().files.keys().filter(|name| !NOT_NEEDED.contains(&&***name)).cloned().collect::<Vec<_>>();
        assert_eq!(there, needed);
        for name in needed {
            assert!(
                std::fs::read(snapshot.folder().join(&name)).unwrap() == *self.file(&name).bytes,
                "{name} is damaged"
            );
        }
        let blobs = std::fs::read_dir(self.model_folder().join("blobs")).unwrap();
        let left: Vec<_> = blobs.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub(crate) const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const NOT_NEEDED: [&str; 2] = ["README.md", "pytorch_model.bin"];
const INDEX: &[u8] =
    br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;

pub(crate) fn id() -> ModelId {
    "org/model".parse().unwrap()
}

/// Bytes that are nowhere like their neighbours.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// What the hub answers.
fn hub(world: &mut World, content_base: &str, request: &Request) -> Reply {
    if let Some(reply) = instead(world, request) {
        return reply;
    }
    if request.path.starts_with("/api/models/org/model/revision/") {
        let siblings: Vec<_> = world.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let listing = serde_json::json!({"id": "org/model", "sha": COMMIT, "siblings": siblings});
        return Reply::ok(listing.to_string().into_bytes());
    }
    let Some(name) = request.path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/")) else {
        return Reply::status(404).header("X-Error-Code", "RepoNotFound");
    };
    let Some(file) = world.files.get(name) else {
        return Reply::status(404).header("X-Error-Code", "EntryNotFound");
    };
    let (etag, len) = (format!("\"{}\"", file.etag), file.bytes.len().to_string());
    if file.is_large {
        let reply = Reply::status(302).header("Location", &format!("{content_base}/{name}?signature=x"));
        return reply.header("X-Linked-Etag", &etag).header("X-Linked-Size", &len).header("X-Repo-Commit", COMMIT);
    }
    bytes(world, request, name).header("ETag", &etag).header("X-Repo-Commit", COMMIT)
}

/// What the content server answers: bytes for whoever has the address.
fn content(world: &mut World, request: &Request) -> Reply {
    let reply = instead(world, request);
    let name = request.path.trim_start_matches('/').split('?').next().unwrap_or_default();
    reply.unwrap_or_else(|| bytes(world, request, name))
}

fn instead(world: &mut World, request: &Request) -> Option<Reply> {
    let place = world.instead.iter().position(|(path, _)| request.path.contains(path))?;
    Some(world.instead.remove(place).1)
}

fn bytes(world: &mut World, request: &Request, name: &str) -> Reply {
    let Some(file) = world.files.get(name) else { return Reply::status(404) };
    let whole = file.bytes.len();
    let reply = match request.range.filter(|_| !world.ignores_ranges) {
        None => Reply::ok(file.bytes.to_vec()),
        Some((start, end)) => {
            let end = end.map_or(whole, |end| end + 1);
            Reply { status: 206, ..Reply::ok(file.bytes[start..end].to_vec()) }
                .header("Content-Range", &format!("bytes {start}-{}/{whole}", end - 1))
        }
    };
    let cut = world.cuts.iter().position(|(path, _)| name.contains(path)).filter(|_| request.method == "GET");
    Reply { cut_after: cut.map(|place| world.cuts.remove(place).1), ..reply }
}
