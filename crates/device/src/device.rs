//! The device and its stream.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::cuda::{CudaDevice, CudaStream};
use crate::probe::probe;
use crate::{DType, DeviceError, ViewMut};

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
    /// An NVIDIA GPU, with the stream on which operators run.
    Cuda(Stream),
}

impl Device {
    /// The CPU with `threads` compute threads; 0 takes one per available core.
    ///
    /// # Errors
    /// [`DeviceError::Threads`] when the threads can't be started.
    pub fn cpu(threads: usize) -> Result<Self, DeviceError> {
        Stream::cpu(threads).map(Self::Cpu)
    }

    /// The NVIDIA GPU of this ordinal, with a stream of its own.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] says what is missing.
    pub fn cuda(ordinal: usize) -> Result<Self, DeviceError> {
        let stream = CudaStream::new(&CudaDevice::open(ordinal)?)?;
        Ok(Self::Cuda(Stream(Kind::Cuda(stream))))
    }

    /// Opens the device asked for; `threads` is for the CPU, as in [`Device::cpu`]. `auto` takes the first GPU if there is
    /// one that can be used.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] for a device that can't be used here.
    pub fn open(kind: DeviceKind, threads: usize) -> Result<Self, DeviceError> {
        match kind {
            DeviceKind::Auto => match first_gpu() {
                Ok(gpu) => Ok(gpu),
                Err(reason) => {
                    tracing::info!(reason, "running on the CPU");
                    Self::cpu(threads)
                }
            },
            DeviceKind::Cpu => Self::cpu(threads),
            DeviceKind::Cuda(ordinal) => Self::cuda(ordinal),
        }
    }

    /// Where operators run.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        match self {
            Self::Cpu(stream) | Self::Cuda(stream) => stream,
        }
    }

    /// The element type in which models keep activations here: the CPU computes in float32, a GPU's tensor cores take
    /// bfloat16.
    #[must_use]
    pub fn activation_dtype(&self) -> DType {
        match self {
            Self::Cpu(_) => DType::F32,
            Self::Cuda(_) => DType::BF16,
        }
    }

    /// Whether it is a GPU.
    #[must_use]
    pub fn is_cuda(&self) -> bool {
        matches!(self, Self::Cuda(_))
    }
}

/// The first GPU, if everything is there that a model needs on it; else what is missing.
fn first_gpu() -> Result<Device, String> {
    let probe = probe();
    match probe.problems.iter().find(|problem| problem.is_fatal) {
        Some(problem) => Err(problem.what.clone()),
        None => Device::cuda(0).map_err(|error| error.to_string()),
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stream().cuda() {
            Some(cuda) => write!(f, "{:?}", cuda.device()),
            None => write!(f, "cpu ({} threads)", self.stream().num_threads()),
        }
    }
}

/// Where operators run, in the order in which they are given. On the CPU each has ended when its call returns; on a GPU
/// it has only been given to the stream.
#[derive(Clone)]
pub struct Stream(Kind);

#[derive(Clone)]
enum Kind {
    Cpu(Arc<rayon::ThreadPool>),
    Cuda(CudaStream),
}

impl Stream {
    fn cpu(threads: usize) -> Result<Self, DeviceError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("foveal-cpu-{i}"))
            .build()
            .map_err(|e| DeviceError::Threads { threads, reason: e.to_string() })?;
        Ok(Self(Kind::Cpu(Arc::new(pool))))
    }

    /// The GPU's stream; `None` on the CPU.
    #[must_use]
    pub fn cuda(&self) -> Option<&CudaStream> {
        match &self.0 {
            Kind::Cpu(_) => None,
            Kind::Cuda(stream) => Some(stream),
        }
    }

    /// Runs `work` inside the stream's threads: rayon's parallel iterators in it use those and no others. On a GPU it runs
    /// where it is called.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            Kind::Cpu(pool) => pool.install(work),
            Kind::Cuda(_) => work(),
        }
    }

    /// How many compute threads there are; on a GPU the one that gives it work.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        match &self.0 {
            Kind::Cpu(pool) => pool.current_num_threads(),
            Kind::Cuda(_) => 1,
        }
    }

    /// Writes host bytes to a tensor of this stream's device, in its order. `bytes` may be changed when it returns.
    ///
    /// # Errors
    /// [`DeviceError::SizeMismatch`] when `to` doesn't take as many bytes, [`DeviceError::NotOnHost`] or
    /// [`DeviceError::NotOnDevice`] for a tensor of another device, [`DeviceError::Driver`].
    pub fn write(&self, bytes: &[u8], to: ViewMut<'_>) -> Result<(), DeviceError> {
        if let Kind::Cuda(cuda) = &self.0 {
            return cuda.upload(bytes, to);
        }
        let (dtype, shape, expected) = (to.dtype(), *to.shape(), to.len_bytes());
        if expected != bytes.len() {
            return Err(DeviceError::SizeMismatch { dtype, shape, expected, got: bytes.len() });
        }
        to.into_mut_bytes()?.copy_from_slice(bytes);
        Ok(())
    }

    /// Waits until everything that was given to it has run.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also for a fault of what ran.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        match &self.0 {
            Kind::Cpu(_) => Ok(()),
            Kind::Cuda(stream) => stream.synchronize(),
        }
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
