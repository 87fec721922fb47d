//! Server-sent events out of bytes that come in pieces of any size.

/// The most bytes of one event; a server that sends more isn't streaming tokens.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// An event of more bytes than any token has.
#[derive(Debug, PartialEq)]
pub(crate) struct EventTooLong;

/// Reads the `data` of events, as the HTML standard's section on server-sent events interprets a stream; other fields and
/// comments are passed over.
#[derive(Debug, Default)]
pub(crate) struct EventStream {
    line: Vec<u8>,
    /// The lines of data of the event that is coming in, each with its end.
    data: Vec<u8>,
    /// A line feed that follows belongs to the line that has ended.
    after_carriage_return: bool,
}

impl EventStream {
    /// Takes bytes and calls `on_event` with the data of every event that they complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(&[u8])) -> Result<(), EventTooLong> {
        if !bytes.is_empty() && std::mem::take(&mut self.after_carriage_return) {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(at) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (line, rest) = bytes.split_at(at);
            self.line.extend_from_slice(line);
            self.end_line(&mut on_event);
            bytes = match rest {
                [b'\r', b'\n', rest @ ..] => rest,
                [b'\r'] => {
                    self.after_carriage_return = true;
                    &[]
                }
                [_, rest @ ..] => rest,
                [] => &[],
            };
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() + self.data.len() > MAX_EVENT_BYTES { Err(EventTooLong) } else { Ok(()) }
    }

    fn end_line(&mut self, on_event: &mut impl FnMut(&[u8])) {
        if self.line.is_empty() {
            if let Some((_, data)) = self.data.split_last() {
                on_event(data);
            }
            self.data.clear();
        } else if let Some(value) = self.line.strip_prefix(b"data:") {
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.data.push(b'\n');
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "\u{feff}\n: ping\n\ndata: one\n\nevent: x\r\ndata:two\r\nid: 7\r\n\r\ndata: a\rdata:  b\r\r\
                          data: \u{e9}\u{1f600}\n\ndata\ndatum: no\n\ndata: [DONE]\n\ndata: never ended";

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut stream, mut events) = (EventStream::default(), Vec::new());
        for piece in pieces {
            stream.push(piece, |data| events.push(String::from_utf8(data.to_vec()).unwrap())).unwrap();
        }
        events
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let bytes = STREAM.as_bytes();
        let expected = ["one", "two", "a\n b", "\u{e9}\u{1f600}", "[DONE]"];
        assert_eq!(events(&[bytes]), expected);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(events(&pieces), expected, "cut at {first} and {second}");
            }
        }
        assert_eq!(events(&bytes.chunks(1).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut stream = EventStream::default();
        let piece = vec![b'x'; 1 << 20];
        let results: Vec<_> = (0..5).map(|_| stream.push(&piece, |_| ())).collect();
        assert_eq!(results, [Ok(()), Ok(()), Ok(()), Ok(()), Err(EventTooLong)]);
    }
}
