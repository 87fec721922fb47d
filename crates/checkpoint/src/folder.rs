//! A model folder: a directory on disk, or files held in memory.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foveal_device::SharedBytes;
use serde_json::Value;
use serde_json::error::Category;

use crate::CheckpointError;
use crate::weights::map_file;

/// A model folder as the hub has it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    name: Arc<str>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(Arc<Path>),
    Embedded(Arc<[(&'static str, &'static [u8])]>),
}

impl ModelFolder {
    /// A directory on disk.
    ///
    /// # Errors
    /// [`CheckpointError::NotAFolder`] when there is no directory at `path`. Its files are looked at when they are
    /// asked for.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let not = |reason: String| CheckpointError::NotAFolder { path: path.display().to_string(), reason };
        let metadata = fs::metadata(path).map_err(|error| not(io_reason(&error)))?;
        if !metadata.is_dir() {
            return Err(not("it is a file".to_owned()));
        }
        let full = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let name = full.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        Ok(Self { name: name.into(), place: Place::Disk(path.into()) })
    }

    /// Files held in memory, by their names in the folder: a model that is part of the program itself.
    #[must_use]
    pub fn embedded(name: &str, files: Vec<(&'static str, &'static [u8])>) -> Self {
        Self { name: name.into(), place: Place::Embedded(files.into()) }
    }

    /// The folder's name without the directories above it: what the model is called when nobody says otherwise.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls the model otherwise: a folder of a cache has a name that says nothing.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// The path that a file of the folder has or would have; none for a folder in memory.
    #[must_use]
    pub fn path_of(&self, file: &str) -> Option<PathBuf> {
        match &self.place {
            Place::Disk(path) => Some(path.join(file)),
            Place::Embedded(_) => None,
        }
    }

    /// How errors name a file of the folder.
    #[must_use]
    pub fn locate(&self, file: &str) -> String {
        match self.path_of(file) {
            Some(path) => path.display().to_string(),
            None => format!("{}/{file} (embedded)", self.name),
        }
    }

    /// The bytes of a file, or none when the folder has no such file. For the small files; weights are mapped by
    /// [`crate::WeightSource::open`].
    ///
    /// # Errors
    /// [`CheckpointError::Unreadable`].
    pub fn file(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>, CheckpointError> {
        match &self.place {
            Place::Disk(path) => match fs::read(path.join(file)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(self.unreadable(file, &error)),
            },
            Place::Embedded(_) => Ok(self.embedded_file(file).map(Cow::Borrowed)),
        }
    }

    /// The text of a file, or none when the folder has no such file.
    ///
    /// # Errors
    /// [`CheckpointError::Unreadable`], also for bytes that are no UTF-8.
    pub fn text(&self, file: &str) -> Result<Option<String>, CheckpointError> {
        let not_utf8 =
            |_| CheckpointError::Unreadable { file: self.locate(file), reason: "it is no UTF-8 text".to_owned() };
        self.file(file)?.map(|bytes| String::from_utf8(bytes.into_owned()).map_err(not_utf8)).transpose()
    }

    /// A JSON file, or none when the folder has no such file.
    ///
    /// # Errors
    /// [`CheckpointError::Unreadable`] and [`CheckpointError::NotJson`].
    pub fn json(&self, file: &str) -> Result<Option<Value>, CheckpointError> {
        let Some(bytes) = self.file(file)? else { return Ok(None) };
        parse_json(&bytes, &self.locate(file)).map(Some)
    }

    /// The bytes of a weight file, mapped where it lies on disk.
    pub(crate) fn shared(&self, file: &str) -> Result<Option<SharedBytes>, CheckpointError> {
        match &self.place {
            Place::Disk(path) => match map_file(&path.join(file)) {
                Ok(map) => Ok(Some(map)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(self.unreadable(file, &error)),
            },
            Place::Embedded(_) => Ok(self.embedded_file(file).map(|bytes| Arc::new(bytes) as SharedBytes)),
        }
    }

    fn embedded_file(&self, file: &str) -> Option<&'static [u8]> {
        match &self.place {
            Place::Disk(_) => None,
            Place::Embedded(files) => files.iter().find(|(name, _)| *name == file).map(|(_, bytes)| *bytes),
        }
    }

    fn unreadable(&self, file: &str, error: &io::Error) -> CheckpointError {
        CheckpointError::Unreadable { file: self.locate(file), reason: io_reason(error) }
    }
}

/// Parses JSON that came from `location`.
pub(crate) fn parse_json(bytes: &[u8], location: &str) -> Result<Value, CheckpointError> {
    serde_json::from_slice(bytes).map_err(|error| CheckpointError::NotJson {
        file: location.to_owned(),
        reason: match error.classify() {
            Category::Eof => "it ends too early",
            Category::Io | Category::Syntax | Category::Data => "a character is out of place",
        },
        line: error.line(),
        column: error.column(),
    })
}

/// A system's complaint in our own words where there are some.
pub(crate) fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        kind => kind.to_string(),
    }
}
