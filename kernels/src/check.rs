//! Checks that every operator makes of its operands.

use foveal_device::{DType, DeviceError, Element, Shape, View, ViewMut};

use crate::OpError;
use crate::reals::FLOATS;

/// The operator that is checking, for its messages.
#[derive(Clone, Copy)]
pub(crate) struct Op(pub(crate) &'static str);

impl Op {
    /// `got` must be exactly `dims`.
    pub(crate) fn shape(self, arg: &'static str, got: &Shape, dims: &[usize]) -> Result<(), OpError> {
        if **got == *dims { Ok(()) } else { Err(self.bad_shape(arg, got, format!("{dims:?}"))) }
    }

    /// `got` must have `rank` dimensions.
    pub(crate) fn rank<const RANK: usize>(self, arg: &'static str, got: &Shape) -> Result<[usize; RANK], OpError> {
        <[usize; RANK]>::try_from(&got[..]).map_err(|_| self.bad_shape(arg, got, format!("{RANK} dimensions")))
    }

    pub(crate) fn bad_shape(self, arg: &'static str, got: &Shape, expected: String) -> OpError {
        OpError::Shape { op: self.0, arg, expected, got: *got }
    }

    pub(crate) fn bad_dtype(self, arg: &'static str, got: DType, expected: &'static str) -> OpError {
        OpError::DType { op: self.0, arg, expected, got }
    }

    /// `got` must be `want`.
    pub(crate) fn dtype(
        self,
        arg: &'static str,
        got: DType,
        want: DType,
        expected: &'static str,
    ) -> Result<(), OpError> {
        if got == want { Ok(()) } else { Err(self.bad_dtype(arg, got, expected)) }
    }

    /// `got` must be one of the floating-point types.
    pub(crate) fn float(self, arg: &'static str, got: DType) -> Result<(), OpError> {
        match got {
            DType::F32 | DType::BF16 | DType::F16 => Ok(()),
            _ => Err(self.bad_dtype(arg, got, FLOATS)),
        }
    }

    /// `view` must begin where 16 bytes can be moved at once; on CUDA.
    pub(crate) fn aligned(self, arg: &'static str, view: &View<'_>) -> Result<(), OpError> {
        let ptr = view.device_ptr().map_err(|source| self.device(source))?;
        match ptr.is_multiple_of(16) {
            true => Ok(()),
            false => Err(OpError::Mismatch { op: self.0, arg, reason: "is not aligned to 16 bytes" }),
        }
    }

    pub(crate) fn slice<'a, T: Element>(self, view: &View<'a>) -> Result<&'a [T], OpError> {
        view.as_slice().map_err(|source| self.device(source))
    }

    pub(crate) fn slice_mut<'a, T: Element>(self, view: &'a mut ViewMut<'_>) -> Result<&'a mut [T], OpError> {
        view.as_mut_slice().map_err(|source| self.device(source))
    }

    pub(crate) fn device(self, source: DeviceError) -> OpError {
        OpError::Device { op: self.0, source }
    }
}
