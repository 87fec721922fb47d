//! The locks and counts that the life cycle of a block stands on. `tests/interleavings.rs` compiles the same source
//! over loom's.

pub(crate) use std::sync::{Arc, Mutex, MutexGuard};
