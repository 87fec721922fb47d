//! The memory map of a weight file.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use foveal_device::SharedBytes;
use memmap2::Mmap;

/// Maps a file for reading.
pub(crate) fn map_file(path: &Path) -> io::Result<SharedBytes> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // SAFETY: the bytes must not change while the map lives. No code here can promise that, since another process may
    // write or shorten the file; whoever runs the engine guarantees it by leaving the model folder alone while a
    // model is loaded, as with every program that maps its input. We only ever read, through `&[u8]`.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(Arc::new(map))
}
