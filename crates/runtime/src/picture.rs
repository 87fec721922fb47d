//! Picture files.

use std::fs::{File, Metadata};
use std::io::Read;
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
    /// Reads a file or a pipe to its end, and never more than a picture may have. A file that is too large is refused
    /// before it is read; devices and sockets, which need not end, are refused, too.
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
        if !metadata.is_file() && !is_pipe(&metadata) {
            return Err(unreadable("it is neither a file nor a pipe".to_owned()));
        }
        let mut bytes = Vec::new();
        // The length is no promise: a pipe has none, and a file may grow.
        File::open(path).and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes)).map_err(of_io)?;
        if bytes.len() as u64 > max_bytes {
            return Err(unreadable(format!("it has more than {max_bytes} bytes, the most that pictures may have")));
        }
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

#[cfg(unix)]
fn is_pipe(metadata: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    metadata.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_pipe(_metadata: &Metadata) -> bool {
    false
}

/// A system's complaint in our own words where there are some.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        kind => kind.to_string(),
    }
}
