//! Tables of cosines and sines.

mod table;
mod text;
mod vision;

pub use text::TextRopeTable;
pub use vision::{RopeTile, VisionRopeTable};
