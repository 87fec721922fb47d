//! The device and its stream.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::DeviceError;

/// Which device was asked for: `--device auto|cpu|cuda[:N]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The best device that works here.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this ordinal.
    Cuda(usize),
}

impl FromStr for DeviceKind {
    type Err = DeviceError;

    fn from_str(s: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::UnknownDevice { given: s.to_owned() };
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// A device that tensors live on and operators run on. Cheap to clone.
#[derive(Clone)]
#[non_exhaustive]
pub enum Device {
    /// The CPU, with a compute thread pool of its own.
    Cpu(Stream),
}

impl Device {
    /// The CPU with `threads` compute threads; 0 takes one per available core.
    ///
    /// # Errors
    /// [`DeviceError::Threads`] when the threads can't be started.
    pub fn cpu(threads: usize) -> Result<Self, DeviceError> {
        Stream::cpu(threads).map(Self::Cpu)
    }

    /// Opens the device asked for; `threads` is for the CPU, as in [`Device::cpu`].
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] for a device that this build can't use.
    pub fn open(kind: DeviceKind, threads: usize) -> Result<Self, DeviceError> {
        match kind {
            DeviceKind::Auto | DeviceKind::Cpu => Self::cpu(threads),
            DeviceKind::Cuda(_) => Err(DeviceError::Unavailable {
                device: kind.to_string(),
                reason: "this version runs on the CPU only; use --device cpu".to_owned(),
            }),
        }
    }

    /// Where operators run.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        match self {
            Self::Cpu(stream) => stream,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(stream) => write!(f, "cpu ({} threads)", stream.num_threads()),
        }
    }
}

/// Where operators run, in the order in which they are given. On the CPU each has ended when its call returns.
#[derive(Clone)]
pub struct Stream {
    pool: Arc<rayon::ThreadPool>,
}

impl Stream {
    fn cpu(threads: usize) -> Result<Self, DeviceError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("foveal-cpu-{i}"))
            .build()
            .map_err(|e| DeviceError::Threads { threads, reason: e.to_string() })?;
        Ok(Self { pool: Arc::new(pool) })
    }

    /// Runs `work` inside the stream's threads: rayon's parallel iterators in it use those and no others.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// How many compute threads there are.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}

#[cfg(test)]
mod tests {
    use super::{Device, DeviceKind};

    #[test]
    fn names_are_parsed_and_printed_alike() {
        for name in ["auto", "cpu", "cuda:0", "cuda:7"] {
            let kind: DeviceKind = name.parse().unwrap();
            assert_eq!(kind.to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceKind>().unwrap(), DeviceKind::Cuda(0));
        for name in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(name.parse::<DeviceKind>().unwrap_err().to_string().contains("use auto, cpu, cuda"), "{name}");
        }
    }

    #[test]
    fn work_runs_in_the_pool() {
        let device = Device::cpu(2).unwrap();
        assert_eq!(device.stream().install(rayon::current_num_threads), 2);
        assert_eq!(device.stream().num_threads(), 2);
    }
}
