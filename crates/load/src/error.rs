//! What can go wrong before or after a run. What goes wrong with a request is part of the run's report.

use std::path::PathBuf;

use thiserror::Error;

/// What ended a benchmark before its report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// An address that no request can be sent to.
    #[error("`{url}` is no server's address; use one as http://127.0.0.1:8000")]
    Address {
        /// As it was given.
        url: String,
    },
    /// Nobody answers there, or the connection broke.
    #[error("{url}: {reason}")]
    Connection {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The server answered with an error.
    #[error("{url}: the server answered with status {status}{}", detail(message))]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP's number.
        status: u16,
        /// What the server said; may be empty.
        message: String,
    },
    /// The server answered with something else than was asked for.
    #[error("{url}: {reason}")]
    Response {
        /// What was asked for.
        url: String,
        /// What is missing.
        reason: &'static str,
    },
    /// The server didn't say in time that it is ready.
    #[error("{url}: not ready within {seconds} s; last: {last}")]
    NotReady {
        /// What was asked for.
        url: String,
        /// How long it was asked.
        seconds: u64,
        /// What came of the last time.
        last: String,
    },
    /// There is no way to count tokens.
    #[error("{url}: this server has no /tokenize; give the folder that holds the model's tokenizer.json")]
    NoTokenizer {
        /// What was asked for.
        url: String,
    },
    /// A tokenizer that can't be used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Text of this length didn't come about.
    #[error(
        "no text of exactly {asked} tokens was found (the last had {got}); try another length or another tokenizer"
    )]
    PromptLength {
        /// Tokens that were asked for.
        asked: usize,
        /// Tokens of the last attempt.
        got: usize,
    },
    /// A combination of options that makes no sense.
    #[error("{option}: {reason}")]
    Options {
        /// The field's name.
        option: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A picture that can't be encoded in the format asked for.
    #[error("a picture of {width}x{height} can't be encoded as {format}; use a smaller one")]
    Picture {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The format's name.
        format: &'static str,
    },
    /// The system gives no more threads.
    #[error("{asked} requests at once need as many threads, and the system gave {got}; ask for fewer")]
    Threads {
        /// How many were needed.
        asked: usize,
        /// How many there were.
        got: usize,
    },
    /// A file that can't be read or written, or holds something else.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl LoadError {
    pub(crate) fn file(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        Self::File { path: path.into(), reason: error.kind().to_string() }
    }
}
