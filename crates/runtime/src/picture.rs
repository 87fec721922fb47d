//! Picture files.

use std::path::Path;

use foveal_processor::{ImageInput, Limits, probe};

use crate::RuntimeError;

/// A picture whose header has been read: of a known format, and within the limits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Picture {
    name: String,
    input: ImageInput,
}

impl Picture {
    /// Reads a file. One that is too large is refused before it is read.
    ///
    /// # Errors
    /// [`RuntimeError::File`] or [`RuntimeError::Picture`], both with the path.
    pub fn read(path: &Path) -> Result<Self, RuntimeError> {
        let name = path.display().to_string();
        let unreadable = |reason: String| RuntimeError::File { path: name.clone(), reason };
        let of_io = |error: std::io::Error| unreadable(reason(&error));
        let metadata = std::fs::metadata(path).map_err(of_io)?;
        let (len_bytes, max_bytes) = (metadata.len(), Limits::default().max_image_bytes as u64);
        if metadata.is_dir() {
            return Err(unreadable("it is a directory".to_owned()));
        }
        if len_bytes > max_bytes {
            return Err(unreadable(format!("it has {len_bytes} bytes; pictures may have {max_bytes}")));
        }
        let bytes = std::fs::read(path).map_err(of_io)?;
        Self::from_bytes(bytes, &name)
    }

    /// The bytes of a whole file; `name` is how errors call it.
    ///
    /// # Errors
    /// [`RuntimeError::Picture`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self, RuntimeError> {
        let input = ImageInput::Bytes(bytes.into());
        match probe(&input, &Limits::default()) {
            Ok(_) => Ok(Self { name: name.to_owned(), input }),
            Err(source) => Err(RuntimeError::Picture { name: name.to_owned(), source }),
        }
    }

    /// How errors call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn input(&self) -> ImageInput {
        self.input.clone()
    }
}

/// A system's complaint in our own words where there are some.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        kind => kind.to_string(),
    }
}
