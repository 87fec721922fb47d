//! What ends the program before its work is done.

use foveal_hub::HubError;
use foveal_load::LoadError;
use foveal_runtime::RuntimeError;
use foveal_server::ServerError;
use thiserror::Error;

/// A command line that makes no sense: which option, and what would.
#[derive(Debug, Error)]
#[error("{0}; `--help` after the command explains its options")]
pub(crate) struct UsageError(String);

impl UsageError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// What ends the program before its work is done.
#[derive(Debug, Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("{variable} is `{directives}`; use a level (info, debug) or pairs as foveal_engine=debug")]
    Log { variable: &'static str, directives: String },
    /// Nobody reads stdout any more (`foveal ... | head`): no error, only an end.
    #[error("stdout was closed")]
    StdoutClosed,
    #[error("stdout can't be written: {0}")]
    Stdout(std::io::ErrorKind),
    #[error("no device can be used")]
    NoDevice,
    #[error("the answers are not within the reference's own bfloat16 noise")]
    NotVerified,
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the server can't run: {0}")]
    Serve(String),
    #[error(transparent)]
    Load(LoadError),
    #[error("no request was answered; the first failed with: {0}")]
    NoAnswer(String),
    #[error("stdin can't be read: {0}")]
    Stdin(String),
}

impl CliError {
    /// Which options would help, where the library can't know that there are options.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Runtime(RuntimeError::Request(foveal_types::Error::Request(error)))
                if error.code == "context_length_exceeded" =>
            {
                Some("--max-model-len raises the limit, --max-pixels makes pictures smaller, /clear empties a chat")
            }
            Self::Hub(HubError::NotFound { .. } | HubError::Offline { .. } | HubError::Unreachable { .. }) => {
                Some("there is no folder of that name either; a model is a folder or a hub id")
            }
            _ => None,
        }
    }

    /// 2 for what the caller can mend, 1 for a device that failed, 0 for a reader that has had enough.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::StdoutClosed => 0,
            Self::Stdout(_) | Self::Serve(_) | Self::NoDevice | Self::NotVerified | Self::NoAnswer(_) => 1,
            Self::Load(LoadError::Connection { .. } | LoadError::Status { .. } | LoadError::NotReady { .. }) => 1,
            Self::Runtime(error) if error.is_internal() => 1,
            Self::Usage(_)
            | Self::Log { .. }
            | Self::Runtime(_)
            | Self::Hub(_)
            | Self::Load(_)
            | Self::Server(_)
            | Self::Stdin(_) => 2,
        }
    }
}

impl From<foveal_types::Error> for CliError {
    fn from(error: foveal_types::Error) -> Self {
        Self::Runtime(error.into())
    }
}

impl From<std::io::Error> for CliError {
    /// For stdout: the only stream that is written without being asked about.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::StdoutClosed,
            kind => Self::Stdout(kind),
        }
    }
}
