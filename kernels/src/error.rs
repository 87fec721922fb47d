//! What an operator refuses.

use foveal_device::{DType, DeviceError, Shape};
use thiserror::Error;

/// What an operator refuses. Every message names the operator and the operand.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpError {
    /// An operand of the wrong shape.
    #[error("{op}: `{arg}` is {got}, expected {expected}")]
    Shape {
        /// The operator.
        op: &'static str,
        /// The operand.
        arg: &'static str,
        /// The shape that the other operands ask for.
        expected: String,
        /// Its shape.
        got: Shape,
    },
    /// An operand of an element type that the operator doesn't take.
    #[error("{op}: `{arg}` holds {got}, expected {expected}")]
    DType {
        /// The operator.
        op: &'static str,
        /// The operand.
        arg: &'static str,
        /// The element types that it can hold.
        expected: &'static str,
        /// What it holds.
        got: DType,
    },
    /// A value inside of an operand that points outside of another (a token id above the vocabulary, say).
    #[error("{op}: `{arg}`[{index}] is {value}, expected {expected}")]
    Value {
        /// The operator.
        op: &'static str,
        /// The operand.
        arg: &'static str,
        /// Where.
        index: usize,
        /// The value found.
        value: i64,
        /// The values that are possible.
        expected: String,
    },
    /// An operand that is missing beside the others, or one too many.
    #[error("{op}: `{arg}` {reason}")]
    Mismatch {
        /// The operator.
        op: &'static str,
        /// The operand.
        arg: &'static str,
        /// What doesn't go together.
        reason: &'static str,
    },
    /// A view could not be made or read.
    #[error("{op}: {source}")]
    Device {
        /// The operator.
        op: &'static str,
        /// What happened.
        source: DeviceError,
    },
}
