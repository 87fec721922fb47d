//! Runs the real binary.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use foveal_testkit::fixtures_dir;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The standard output of a run that must have succeeded, without its last newline.
    #[track_caller]
    pub(crate) fn answer(&self) -> &str {
        assert_eq!(self.code(), Some(0), "{self:?}");
        self.stdout.strip_suffix('\n').expect("the output ends with a newline")
    }

    /// The error text of a run that must have been refused: status 2, one line on stderr, nothing on stdout.
    #[track_caller]
    pub(crate) fn refusal(&self) -> &str {
        assert_eq!(self.code(), Some(2), "{self:?}");
        assert_eq!(self.stdout, "", "nothing half-printed");
        let text = self.stderr.trim_end();
        assert!(text.starts_with("error: "), "{self:?}");
        assert_eq!(text.matches("error: ").count(), 1, "said once: {self:?}");
        text
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.answer()).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// One JSON value for each line.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        self.answer().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub(crate) fn tiny() -> PathBuf {
    fixtures_dir().join("tiny")
}

pub(crate) fn shapes() -> PathBuf {
    fixtures_dir().join("images/shapes.png")
}

/// `foveal` with the given arguments, its environment free of log settings.
pub(crate) fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foveal"));
    command.args(args).env_remove("FOVEAL_LOG");
    command
}

/// Runs `foveal` with nothing on stdin.
pub(crate) fn foveal<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Outcome {
    foveal_with_stdin(args, b"")
}

/// Runs `foveal` with `stdin`.
pub(crate) fn foveal_with_stdin<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, stdin: &[u8]) -> Outcome {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A run that fails early closes its end.
    let _ = child.stdin.take().expect("stdin is piped").write_all(stdin);
    let output = child.wait_with_output().expect("the binary ends");
    Outcome {
        status: output.status,
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

/// Runs `foveal run --model tiny` with more arguments.
pub(crate) fn run_tiny<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Outcome {
    foveal_with_stdin(run_tiny_args(args), b"")
}

/// The arguments of `foveal run --model tiny ...`.
pub(crate) fn run_tiny_args<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Vec<std::ffi::OsString> {
    let head = ["run".into(), "--model".into(), tiny().into_os_string()];
    head.into_iter().chain(args.into_iter().map(|arg| arg.as_ref().to_owned())).collect()
}

/// A writable copy of the tiny model's folder.
pub(crate) fn tiny_copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e != "py") {
            // Not `fs::copy`: a read-only checkout would give read-only files.
            std::fs::write(dir.path().join(path.file_name().unwrap()), std::fs::read(&path).unwrap()).unwrap();
        }
    }
    dir
}

/// Asks the model in `dir` one question.
pub(crate) fn ask(dir: &Path) -> Outcome {
    foveal(["run".as_ref(), "--model".as_ref(), dir.as_os_str(), "Hello".as_ref()])
}
