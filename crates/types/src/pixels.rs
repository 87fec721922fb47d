//! Memory that the engine lends for pixels, so that they are written once, where the device copies them from.

use std::sync::Arc;

use crate::Exhausted;

/// A block of lent memory that one owner writes. Dropping it gives it back.
pub trait PixelBlock: Send {
    /// The bytes, for the processor to write.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// The bytes as they are from now on, for the device to read. They go back when nobody holds them any more.
    fn finish(self: Box<Self>) -> Arc<dyn Pixels>;
}

/// Pixels that have been written.
pub trait Pixels: Send + Sync {
    /// The bytes, for the device to read.
    fn bytes(&self) -> &[u8];
}

/// Lends memory for pixels. The processor asks for exactly the bytes of one picture and writes every one of them.
pub trait PixelLender: Send + Sync {
    /// Lends `len_bytes` bytes of unspecified content.
    ///
    /// # Errors
    /// [`Exhausted`] when the lender's byte cap is reached.
    fn lend(&self, len_bytes: usize) -> Result<Box<dyn PixelBlock>, Exhausted>;
}

/// Lends ordinary heap memory without a cap: for a device that reads the host's memory, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapPixels;

impl PixelLender for HeapPixels {
    fn lend(&self, len_bytes: usize) -> Result<Box<dyn PixelBlock>, Exhausted> {
        Ok(Box::new(vec![0_u8; len_bytes]))
    }
}

impl PixelBlock for Vec<u8> {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn finish(self: Box<Self>) -> Arc<dyn Pixels> {
        Arc::new(*self)
    }
}

impl Pixels for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}
