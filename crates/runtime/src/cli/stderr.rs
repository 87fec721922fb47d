//! What is said on stderr.

use std::fmt;
use std::io::Write;

/// Writes a line. Whether anybody reads it changes nothing: `eprintln!` would panic where stderr can't be written.
pub(crate) fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Writes the beginning of a line that somebody else ends.
pub(crate) fn prompt(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}
