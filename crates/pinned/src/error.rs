//! What can go wrong with page-locked memory.

use foveal_device::DeviceError;
use thiserror::Error;

/// What can go wrong with page-locked memory.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinnedError {
    /// The pool's blocks are all held by somebody: try again when one has been given back.
    #[error("{wanted_bytes} bytes of page-locked memory were wanted; {in_use_bytes} of {cap_bytes} are in use")]
    Exhausted {
        /// The most bytes that may be in use.
        cap_bytes: usize,
        /// Bytes of blocks in use.
        in_use_bytes: usize,
        /// Bytes asked for.
        wanted_bytes: usize,
    },
    /// A part that the block doesn't have.
    #[error("bytes {start}..{end} of a block of {len_bytes}")]
    OutOfRange {
        /// The first byte asked for.
        start: usize,
        /// One past the last byte asked for.
        end: usize,
        /// Bytes of the block.
        len_bytes: usize,
    },
    /// The pool's memory was made for another device than the stream's.
    #[error("a block of a pool for {pool} can't be copied on {stream}")]
    WrongDevice {
        /// What the pool is for.
        pool: String,
        /// The stream.
        stream: String,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<PinnedError> for DeviceError {
    fn from(error: PinnedError) -> Self {
        let unavailable = |device, reason| Self::Unavailable { device, reason };
        match error {
            PinnedError::Device(error) => error,
            PinnedError::Exhausted { wanted_bytes, .. } => {
                Self::OutOfMemory { len_bytes: wanted_bytes, device: "page-locked host" }
            }
            PinnedError::OutOfRange { end, .. } => Self::TooLarge { value: end },
            PinnedError::WrongDevice { pool, stream } => unavailable(stream, format!("the pool is for {pool}")),
        }
    }
}
