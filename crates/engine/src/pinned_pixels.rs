//! Page-locked memory that the processor writes pictures to, where the GPU copies them from.

use std::sync::Arc;

use foveal_pinned::{FrozenBlock, PinnedBlock, PinnedPool};
use foveal_types::{Exhausted, PixelBlock, PixelLender, Pixels};

/// Lends blocks of the engine's pool.
#[derive(Clone)]
pub(crate) struct PinnedPixels(pub(crate) PinnedPool);

struct Block(PinnedBlock);
struct Written(FrozenBlock);

impl PixelLender for PinnedPixels {
    fn lend(&self, len_bytes: usize) -> Result<Box<dyn PixelBlock>, Exhausted> {
        match self.0.acquire(len_bytes) {
            Ok(block) => Ok(Box::new(Block(block))),
            Err(error) => Err(Exhausted::new(format!("no memory for a picture's pixels now: {error}"))),
        }
    }
}

impl PixelBlock for Block {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn finish(self: Box<Self>) -> Arc<dyn Pixels> {
        Arc::new(Written(self.0.freeze()))
    }
}

impl Pixels for Written {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}
