//! One request's answer as it comes in.

use std::time::Duration;

use crate::chunk::Chunk;

/// The event that ends a stream.
const DONE: &[u8] = b"[DONE]";

/// An answer that came completely. Times are from the sending of its request on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Until the first token.
    pub(crate) ttft: Duration,
    /// Between neighbouring chunks of tokens.
    pub(crate) itl: Vec<Duration>,
    /// Until its end.
    pub(crate) latency: Duration,
    /// Tokens of the prompt and of the answer as the server counts them, if it says so.
    pub(crate) usage: Option<(usize, usize)>,
}

impl Answer {
    /// Chunks that stood for tokens.
    pub(crate) fn num_chunks(&self) -> usize {
        self.itl.len() + 1
    }

    /// Tokens of the answer; where the server doesn't say, chunks.
    pub(crate) fn output_tokens(&self) -> usize {
        self.usage.map_or_else(|| self.num_chunks(), |(_, completion)| completion)
    }
}

/// Puts an answer together, event by event.
#[derive(Debug, Default)]
pub(crate) struct AnswerReader {
    first: Option<Duration>,
    last_tokens: Duration,
    answer: Answer,
    is_finished: bool,
    error: Option<String>,
}

impl AnswerReader {
    /// Takes an event whose last byte came at `at`.
    pub(crate) fn event(&mut self, data: &[u8], at: Duration) {
        if data == DONE {
            self.is_finished = true;
            return;
        }
        let Some(chunk) = Chunk::parse(data) else {
            self.error.get_or_insert_with(|| "the server sent an event that is no chunk of an answer".to_owned());
            return;
        };
        if let Some(error) = chunk.error {
            self.error.get_or_insert(error);
        }
        if chunk.has_tokens {
            if self.first.is_some() {
                self.answer.itl.push(at.saturating_sub(self.last_tokens));
            }
            self.first.get_or_insert(at);
            self.last_tokens = at;
        }
        if chunk.is_answer {
            self.answer.latency = at;
        }
        self.is_finished |= chunk.is_finished;
        self.answer.usage = chunk.usage.or(self.answer.usage);
    }

    /// What the server said it gave up for, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The answer, once the stream has ended.
    pub(crate) fn finish(self) -> Result<Answer, String> {
        if let Some(error) = self.error {
            return Err(error);
        }
        match self.first {
            Some(ttft) if self.is_finished => Ok(Answer { ttft, ..self.answer }),
            Some(_) => Err("the stream ended before the answer did".to_owned()),
            None => Err("the stream ended without a token".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(events: &[(&str, u64)]) -> Result<Answer, String> {
        let mut reader = AnswerReader::default();
        for (data, ms) in events {
            reader.event(data.as_bytes(), Duration::from_millis(*ms));
        }
        reader.finish()
    }

    const ROLE: &str = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
    const TOKEN: &str = r#"{"choices":[{"delta":{"content":"x"}}]}"#;
    const END: &str = r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#;

    #[test]
    fn times_are_those_of_tokens() {
        let events = [(ROLE, 1), (TOKEN, 10), (TOKEN, 13), (TOKEN, 20), (END, 21), (USAGE, 50), ("[DONE]", 60)];
        let answer = read(&events).unwrap();
        let ms = Duration::from_millis;
        assert_eq!((answer.ttft, answer.itl.clone(), answer.latency), (ms(10), vec![ms(3), ms(7)], ms(21)));
        assert_eq!((answer.usage, answer.output_tokens()), (Some((9, 3)), 3));
        let no_usage = read(&[(TOKEN, 1), (TOKEN, 2), (END, 3)]).unwrap();
        assert_eq!((no_usage.usage, no_usage.output_tokens()), (None, 2));
    }

    #[test]
    fn what_is_no_complete_answer_fails() {
        assert!(read(&[(ROLE, 1), (TOKEN, 2)]).unwrap_err().contains("before the answer did"));
        assert!(read(&[(ROLE, 1), ("[DONE]", 2)]).unwrap_err().contains("without a token"));
        assert!(read(&[(TOKEN, 1), ("nonsense", 2), (END, 3)]).unwrap_err().contains("no chunk"));
        assert_eq!(read(&[(TOKEN, 1), (r#"{"error":{"message":"gone"}}"#, 2), ("[DONE]", 3)]).unwrap_err(), "gone");
    }
}
