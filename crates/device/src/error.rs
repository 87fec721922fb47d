//! What can go wrong with memory and devices.

use thiserror::Error;

use crate::{DType, Shape};

/// What can go wrong with memory and devices.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// `--device` was given something else than `auto`, `cpu`, `cuda` or `cuda:N`.
    #[error("`{given}` is no device; use auto, cpu, cuda or cuda:N")]
    UnknownDevice {
        /// What was given.
        given: String,
    },
    /// The device exists by name but this build or machine can't use it.
    #[error("device {device} can't be used: {reason}")]
    Unavailable {
        /// The device asked for.
        device: String,
        /// What is missing.
        reason: String,
    },
    /// The thread pool could not be started.
    #[error("could not start {threads} compute threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// A shape with more dimensions than a tensor can have, or whose byte count overflows.
    #[error("shape {dims:?} is not possible: {reason}")]
    BadShape {
        /// The dimensions given.
        dims: Vec<usize>,
        /// Why not.
        reason: &'static str,
    },
    /// Memory could not be had.
    #[error("{len_bytes} bytes of {device} memory could not be allocated")]
    OutOfMemory {
        /// The bytes asked for.
        len_bytes: usize,
        /// Whose memory.
        device: &'static str,
    },
    /// The bytes given are not those of the shape.
    #[error("{got} bytes were given for {dtype} {shape}, which takes {expected}")]
    SizeMismatch {
        /// The dtype.
        dtype: DType,
        /// The shape.
        shape: Shape,
        /// The bytes that it takes.
        expected: usize,
        /// The bytes given.
        got: usize,
    },
    /// A view was read as another type than it holds.
    #[error("a {actual} tensor was read as {wanted}")]
    WrongDType {
        /// What it holds.
        actual: DType,
        /// What it was read as.
        wanted: DType,
    },
    /// The bytes don't start at a multiple of the element's size, so they can't be read in place.
    #[error("a {dtype} tensor starts at a byte that is no multiple of {} and can't be read in place", dtype.size_bytes())]
    Misaligned {
        /// What it holds.
        dtype: DType,
    },
    /// Rows outside of the tensor.
    #[error("rows {start}..{end} of {shape}")]
    OutOfRange {
        /// The first row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// The tensor's shape.
        shape: Shape,
    },
    /// Shared memory (a mapped file) can't be written.
    #[error("the tensor is a view of shared memory and can't be written")]
    ReadOnly,
    /// Memory of a GPU was to be read or written by the host.
    #[error("a {dtype} tensor lies in a GPU's memory, where the host can't reach it")]
    NotOnHost {
        /// What it holds.
        dtype: DType,
    },
    /// Host memory was given where a GPU's was needed.
    #[error("a {dtype} tensor lies in the host's memory; copy it to the GPU first")]
    NotOnDevice {
        /// What it holds.
        dtype: DType,
    },
    /// A count that a kernel's parameters or a block can't hold.
    #[error("{value} is more than fits")]
    TooLarge {
        /// The count.
        value: usize,
    },
    /// The driver refused a call, or reports what went wrong on the GPU before it.
    #[error("{call}: {reason}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// A kernel could not be launched.
    #[error("kernel {kernel} could not be launched with {launch}: {reason}")]
    Launch {
        /// Its name.
        kernel: &'static str,
        /// The launch's shape.
        launch: String,
        /// What the driver said.
        reason: String,
    },
    /// A kernel could not be compiled.
    #[error("kernel {kernel} could not be compiled for {arch}: {log}")]
    Compile {
        /// Source and entry.
        kernel: String,
        /// The architecture.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// Work that was to be recorded allocated memory, which a graph can't do twice.
    #[error("the recorded work allocated {allocated} times; allocate before it is recorded")]
    Capture {
        /// How often.
        allocated: u64,
    },
    /// A matrix product that the library doesn't have.
    #[error("the matrix product {shape} can't be computed: {reason}")]
    Matmul {
        /// Sizes and element types.
        shape: String,
        /// Why not.
        reason: String,
    },
    /// Compiled kernels could not be written to the folder that was asked for.
    #[error("compiled kernels can't be written to {folder}: {reason}")]
    CubinFolder {
        /// The folder.
        folder: String,
        /// What the system said.
        reason: String,
    },
}
