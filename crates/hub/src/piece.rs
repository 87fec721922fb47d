//! One piece of a blob: asked for until it is there.

use std::io::Read;
use std::mem;
use std::ops::Range;

use ureq::http::StatusCode;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};

use crate::HubError;
use crate::download::{Blob, Download};
use crate::http::{Answer, text};
use crate::repo::{bad_answer, lost};
use crate::retry::{Failure, pause};

/// How much is read before anything else is looked at.
const READ_BYTES: u64 = 64 << 10;

/// How much is gathered before it is written, if it is its turn.
const WRITE_BYTES: usize = 1 << 20;

/// A piece that is being fetched.
struct Piece<'a> {
    download: &'a Download<'a>,
    index: usize,
    blob: &'a Blob,
    /// What has come and isn't written, and where it belongs.
    buffer: Vec<u8>,
    start: u64,
    end: u64,
}

/// Fetches a piece and hands it to the blob's file. What has come is kept, whatever comes after.
pub(crate) fn fetch(download: &Download<'_>, index: usize, blob: &Blob, range: Range<u64>) -> Result<(), HubError> {
    let Range { start, end } = range;
    let mut piece = Piece { download, index, blob, buffer: Vec::new(), start, end };
    let result = piece.persist();
    // On a failure only what it is the turn of: the rest has a hole before it, and nobody would fill that.
    let (start, bytes) = (piece.start, mem::take(&mut piece.buffer));
    match result {
        Ok(()) => download.with_sink(index, blob, |sink| sink.put(start, bytes)).map(|_| ()),
        Err(error) => {
            let _ = download.with_sink(index, blob, |sink| sink.append(start, &bytes));
            Err(error)
        }
    }
}

impl Piece<'_> {
    fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Asks until all of it is there, going on where it stopped.
    fn persist(&mut self) -> Result<(), HubError> {
        let mut attempts = 0;
        while self.position() < self.end {
            if self.download.is_stopped() {
                return Err(HubError::Cancelled);
            }
            let before = self.position();
            let (error, retry_after) = match self.ask() {
                Ok(()) => continue,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, retry_after }) => (error, retry_after),
            };
            attempts = if self.position() > before { 1 } else { attempts + 1 };
            if attempts >= self.download.policy.max_attempts {
                return Err(self.interrupted(&error));
            }
            tracing::debug!(%error, file = %self.blob.name, position = self.position(), "trying again");
            self.blob.forget_location();
            pause(self.download.policy.delay(attempts, retry_after), || self.download.is_stopped());
        }
        Ok(())
    }

    fn interrupted(&self, error: &HubError) -> HubError {
        HubError::Interrupted {
            file: self.blob.name.to_string(),
            done_bytes: self.position(),
            len_bytes: self.blob.len_bytes,
            reason: error.to_string(),
        }
    }

    /// Asks once, for what is missing.
    fn ask(&mut self) -> Result<(), Failure> {
        let (start, end, len) = (self.position(), self.end, self.blob.len_bytes);
        let range = (start > 0 || end < len).then(|| format!("bytes={start}-{}", end - 1));
        let Download { repo, commit, .. } = self.download;
        let answer = repo.content(commit, &self.blob.name, self.blob.location(), range.as_deref())?;
        let is_part = self.check(&answer, start)?;
        if is_part {
            self.download.queue.has_ranges(self.index);
        } else if range.is_some() && self.download.queue.has_no_ranges(self.index) {
            tracing::debug!(file = %self.blob.name, "the server sends no parts of it");
            self.end = len;
        }
        let Answer { response, uri } = answer;
        let mut reader = response.into_body().into_reader();
        if !is_part && start > 0 {
            let skipped = std::io::copy(&mut (&mut reader).take(start), &mut std::io::sink());
            if skipped.ok() != Some(start) {
                return Err(lost(&uri));
            }
        }
        self.read(&mut reader)?.then_some(()).ok_or_else(|| lost(&uri))?;
        // At its end a connection can be used again.
        let _ = reader.read(&mut [0]);
        Ok(())
    }

    /// Whether it is the part that was asked for; false for the whole.
    fn check(&self, answer: &Answer, start: u64) -> Result<bool, Failure> {
        let headers = answer.response.headers();
        let bad =
            |reason: &str| Err(Failure::Final(bad_answer(&answer.uri, &format!("{reason} of {}", self.blob.name))));
        let len = self.blob.len_bytes;
        if answer.response.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(headers, &CONTENT_RANGE).unwrap_or_default();
            let is_right = parse_content_range(range)
                .is_some_and(|(first, whole)| first == start && whole.is_none_or(|whole| whole == len));
            return if is_right { Ok(true) } else { bad("it sends another part than it was asked for") };
        }
        match text(headers, &CONTENT_LENGTH).and_then(|length| length.trim().parse::<u64>().ok()) {
            Some(other) if other != len => bad("it sends another number of bytes than it announced"),
            _ => Ok(false),
        }
    }

    /// Reads to the piece's end; false if the answer ends before.
    fn read(&mut self, reader: &mut impl Read) -> Result<bool, Failure> {
        while self.position() < self.end {
            if self.download.is_stopped() {
                return Err(HubError::Cancelled.into());
            }
            let room = READ_BYTES.min(self.end - self.position());
            let before = self.buffer.len();
            // What came before a failure is in the buffer, too.
            let is_lost = reader.take(room).read_to_end(&mut self.buffer).is_err();
            let new = self.buffer.len() - before;
            self.download.tracker.add(self.index, new as u64);
            // Again only when there is as much more: while it isn't its turn, asking would keep the others from writing.
            if self.buffer.len() / WRITE_BYTES > before / WRITE_BYTES {
                self.write_if_its_turn()?;
            }
            if is_lost || new == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write_if_its_turn(&mut self) -> Result<(), HubError> {
        let (start, bytes) = (self.start, &self.buffer);
        let written = self.download.with_sink(self.index, self.blob, |sink| sink.append(start, bytes))?;
        // Finished by others: what is here was there already.
        if written.unwrap_or(true) {
            self.start = self.position();
            self.buffer.clear();
        }
        Ok(())
    }
}

/// First byte and size of the whole of `bytes 0-99/1000`, or of `bytes 0-99/*`.
fn parse_content_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, whole) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let whole = if whole == "*" { None } else { Some(whole.trim().parse().ok()?) };
    Some((first.trim().parse().ok()?, whole))
}

#[cfg(test)]
mod tests {
    use super::parse_content_range;

    #[test]
    fn parts_say_where_they_begin() {
        assert_eq!(parse_content_range("bytes 5-99/1000"), Some((5, Some(1000))));
        assert_eq!(parse_content_range("bytes 0-99/*"), Some((0, None)));
        for bad in ["", "bytes", "bytes */1000", "5-99/1000", "bytes 5-99", "bytes x-9/10", "bytes 0-9/x"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
