//! A blob while it is written.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::HubError;
use crate::names::Etag;

/// How much of an earlier try is read at once.
const READ_BYTES: usize = 1 << 20;

/// A blob while it is written. Pieces come in any order and are written in theirs, so that the file is a beginning of the blob
/// at every moment: whoever goes on later, this crate or another library, goes on at its end. The checksum grows with it.
#[derive(Debug)]
pub(crate) struct Sink {
    file: File,
    path: PathBuf,
    len_bytes: u64,
    written: u64,
    /// Where the etag is none, nothing can be checked but the size.
    digest: Option<Digest>,
    /// Pieces that came before those that belong in front of them, by their first byte.
    waiting: BTreeMap<u64, Vec<u8>>,
    /// Whether an earlier try began it.
    is_resumed: bool,
    is_completion_taken: bool,
}

struct Digest {
    expected: String,
    context: Context,
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.expected)
    }
}

impl Sink {
    /// Goes on with what an earlier try left, if that can be checked in the end; else begins.
    pub(crate) fn open(
        path: &Path,
        etag: &Etag,
        len_bytes: u64,
        is_stopped: impl Fn() -> bool,
    ) -> Result<Self, HubError> {
        let failed = |action| move |error| HubError::file(path, action, &error);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(failed("written"))?;
        let digest = etag.sha256().map(Digest::new);
        let mut sink = Self {
            file,
            path: path.to_owned(),
            len_bytes,
            written: 0,
            digest,
            waiting: BTreeMap::new(),
            is_resumed: false,
            is_completion_taken: false,
        };
        let there = sink.file.metadata().map_err(failed("read"))?.len();
        if sink.digest.is_some() && (1..=len_bytes).contains(&there) {
            sink.resume(is_stopped)?;
        } else {
            sink.file.set_len(0).map_err(failed("written"))?;
        }
        Ok(sink)
    }

    /// Takes in what is in the file.
    fn resume(&mut self, is_stopped: impl Fn() -> bool) -> Result<(), HubError> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if is_stopped() {
                return Err(HubError::Cancelled);
            }
            let read = self.file.read(&mut buffer).map_err(|error| HubError::file(&self.path, "read", &error))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            if let Some(digest) = &mut self.digest {
                digest.context.update(bytes);
            }
            self.written += read as u64;
        }
        self.is_resumed = true;
        Ok(())
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Writes bytes that begin where the file ends, or before; false for later ones.
    pub(crate) fn append(&mut self, start: u64, bytes: &[u8]) -> Result<bool, HubError> {
        if start > self.written {
            return Ok(false);
        }
        self.write(start, bytes)?;
        while let Some(next) = self.waiting.first_entry().filter(|next| *next.key() <= self.written) {
            let (start, bytes) = next.remove_entry();
            self.write(start, &bytes)?;
        }
        Ok(true)
    }

    /// Takes a piece, to be written when its turn comes.
    pub(crate) fn put(&mut self, start: u64, bytes: Vec<u8>) -> Result<(), HubError> {
        if !self.append(start, &bytes)? {
            self.waiting.insert(start, bytes);
        }
        Ok(())
    }

    fn write(&mut self, start: u64, bytes: &[u8]) -> Result<(), HubError> {
        let is_there = usize::try_from(self.written.saturating_sub(start)).unwrap_or(usize::MAX);
        let Some(new) = bytes.get(is_there..) else { return Ok(()) };
        self.file.write_all(new).map_err(|error| HubError::file(&self.path, "written", &error))?;
        if let Some(digest) = &mut self.digest {
            digest.context.update(new);
        }
        self.written += new.len() as u64;
        Ok(())
    }

    /// Whether all is written; true once, for the one who is to finish it.
    pub(crate) fn take_completion(&mut self) -> bool {
        let is_mine = self.written == self.len_bytes && !self.is_completion_taken;
        self.is_completion_taken |= is_mine;
        is_mine
    }

    /// Checks the whole and puts it in its place; gives itself back, empty, where an earlier try had left damaged bytes.
    pub(crate) fn finish(mut self, name: &str, blob: &Path) -> Result<Option<Self>, HubError> {
        if let Some(digest) = &self.digest {
            let got = digest.hex();
            if got != digest.expected {
                let expected = digest.expected.clone();
                if self.is_resumed {
                    tracing::warn!(
                        "{name}: what an earlier download left is damaged; it is downloaded from the beginning"
                    );
                    self.restart()?;
                    return Ok(Some(self));
                }
                // Nothing can go on from here.
                let _ = fs::remove_file(&self.path);
                return Err(HubError::WrongChecksum { file: name.to_owned(), expected, got });
            }
        }
        // A machine that stops must not leave a whole file's name to half of it.
        self.file.sync_all().map_err(|error| HubError::file(&self.path, "written", &error))?;
        fs::rename(&self.path, blob).map_err(|error| HubError::file(blob, "written", &error))?;
        Ok(None)
    }

    fn restart(&mut self) -> Result<(), HubError> {
        let start = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        start.map_err(|error| HubError::file(&self.path, "written", &error))?;
        self.digest = self.digest.take().map(|digest| Digest::new(&digest.expected));
        self.waiting.clear();
        (self.written, self.is_resumed, self.is_completion_taken) = (0, false, false);
        Ok(())
    }
}

impl Digest {
    fn new(expected: &str) -> Self {
        Self { expected: expected.to_owned(), context: Context::new(&SHA256) }
    }

    fn hex(&self) -> String {
        let digest = self.context.clone().finish();
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Etag, HubError, Sink, fs};

    /// `printf abcdefgh | sha256sum`
    const SHA: &str = "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab";

    fn open(dir: &tempfile::TempDir, etag: &str) -> Sink {
        let etag = Etag::parse(etag).unwrap();
        Sink::open(&dir.path().join("x.incomplete"), &etag, 8, || false).unwrap()
    }

    #[test]
    fn pieces_in_any_order_make_the_file_and_it_is_always_a_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let content = || fs::read_to_string(dir.path().join("x.incomplete")).unwrap();
        let mut sink = open(&dir, SHA);
        sink.put(6, b"gh".to_vec()).unwrap();
        sink.put(3, b"def".to_vec()).unwrap();
        assert_eq!((content().as_str(), sink.written()), ("", 0));
        assert!(!sink.append(2, b"c").unwrap(), "it isn't its turn");
        assert!(sink.append(0, b"ab").unwrap());
        assert_eq!(content(), "ab");
        assert!(!sink.take_completion());
        // Bytes that are there already come again.
        sink.put(1, b"bc".to_vec()).unwrap();
        assert_eq!((content().as_str(), sink.written()), ("abcdefgh", 8));
        assert!(sink.take_completion() && !sink.take_completion());
        assert!(sink.finish("x", &dir.path().join("x")).unwrap().is_none());
        assert_eq!(fs::read_to_string(dir.path().join("x")).unwrap(), "abcdefgh");
    }

    #[test]
    fn what_an_earlier_try_left_is_used_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join("x.incomplete");
        fs::write(&partial, "abcd").unwrap();
        let mut sink = open(&dir, SHA);
        assert_eq!(sink.written(), 4);
        sink.put(4, b"efgh".to_vec()).unwrap();
        assert!(sink.finish("x", &dir.path().join("x")).unwrap().is_none());

        fs::write(&partial, "aXcd").unwrap();
        let mut sink = open(&dir, SHA);
        sink.put(4, b"efgh".to_vec()).unwrap();
        let mut sink = sink.finish("x", &dir.path().join("x")).unwrap().expect("it was damaged");
        assert_eq!((sink.written(), fs::read(&partial).unwrap().len()), (0, 0));
        sink.put(0, b"abcdefgX".to_vec()).unwrap();
        let error = sink.finish("x", &dir.path().join("x")).unwrap_err();
        assert!(matches!(error, HubError::WrongChecksum { expected, .. } if expected == SHA));
        assert!(!partial.exists(), "nothing damaged is left to go on with");

        fs::write(&partial, "abcd").unwrap();
        assert_eq!(open(&dir, "0123").written(), 0, "what can't be checked is not used");
        fs::write(&partial, "abcdefghi").unwrap();
        assert_eq!(open(&dir, SHA).written(), 0, "nor is what is too long");
    }
}
