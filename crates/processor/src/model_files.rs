//! Where a model's small files come from: a folder, or the program itself.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;

use crate::error::ProcessorError;

/// Gives a file's bytes by its name, `None` if there is no such file.
type ReadFile<'a> = dyn Fn(&str) -> Result<Option<Cow<'a, [u8]>>, ProcessorError> + 'a;

/// A model's files by name, read through a closure, so that a folder and an embedded model are the same.
pub(crate) struct ModelFiles<'a> {
    read: Box<ReadFile<'a>>,
}

impl<'a> ModelFiles<'a> {
    /// The files of a folder.
    pub(crate) fn folder(dir: &'a Path) -> Self {
        let read = move |name: &str| match std::fs::read(dir.join(name)) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => {
                let file = dir.join(name).display().to_string();
                Err(ProcessorError::UnreadableFile { file, reason: e.kind().to_string() })
            }
        };
        Self { read: Box::new(read) }
    }

    /// Files that a closure gives.
    pub(crate) fn closure(read: impl Fn(&str) -> Option<Cow<'a, [u8]>> + 'a) -> Self {
        Self { read: Box::new(move |name| Ok(read(name))) }
    }

    /// A file's bytes, if it exists.
    pub(crate) fn bytes(&self, name: &str) -> Result<Option<Cow<'a, [u8]>>, ProcessorError> {
        (self.read)(name)
    }

    /// A text file.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, ProcessorError> {
        self.bytes(name)?
            .map(|bytes| {
                String::from_utf8(bytes.into_owned()).map_err(|_| ProcessorError::bad_file(name, "not valid UTF-8"))
            })
            .transpose()
    }

    /// A JSON file.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Value>, ProcessorError> {
        self.bytes(name)?.map(|bytes| parse_json(&bytes, name)).transpose()
    }
}

/// JSON, or where it stops being that.
pub(crate) fn parse_json(bytes: &[u8], file: &str) -> Result<Value, ProcessorError> {
    serde_json::from_slice(bytes)
        .map_err(|e| ProcessorError::bad_file(file, format!("not JSON at line {} column {}", e.line(), e.column())))
}
