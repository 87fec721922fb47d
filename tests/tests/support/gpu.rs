//! The GPU that tests run on.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use foveal_testkit::gpu;

/// Keeps a program's other tests waiting: they share the GPU, and the counters are the whole process's.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}
