//! Descriptors for the bulk tensor copies of Hopper and later.
#![allow(unsafe_code)]

use std::ffi::c_void;

use cudarc::driver::sys;

use super::CudaDevice;
use super::context::driver_error;
use crate::{DType, DeviceError, View};

/// How a tile's 16-byte pieces are permuted in shared memory, by the width of the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Over 32 bytes.
    Bytes32,
    /// Over 64 bytes.
    Bytes64,
    /// Over 128 bytes.
    Bytes128,
}

/// A tensor map: what a bulk tensor copy reads a tile of a tensor by. Copied by value into a kernel's parameters.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub struct TensorMap([u64; 16]);

impl TensorMap {
    /// No map at all.
    pub(crate) const EMPTY: Self = Self([0; 16]);

    /// A map of a row-major matrix `[rows, columns]` (the view's last dimension is the columns) for tiles of
    /// `box_rows` by `box_columns`. Elements beyond the matrix read as zeros. The map holds the address: it must not be
    /// used after the tensor is gone.
    ///
    /// # Errors
    /// [`DeviceError::NotOnDevice`], [`DeviceError::Driver`] for an address or row that is no multiple of 16 bytes, or a
    /// box that is too large.
    pub fn matrix(
        device: &CudaDevice,
        view: &View<'_>,
        [box_rows, box_columns]: [u32; 2],
        swizzle: Swizzle,
    ) -> Result<Self, DeviceError> {
        device.bind()?;
        let dtype = view.dtype();
        let columns = view.shape().last().copied().unwrap_or(1);
        let rows = view.shape().num_elements().checked_div(columns).unwrap_or(0);
        let dims = [columns as u64, rows as u64];
        let strides = [(columns * dtype.size_bytes()) as u64];
        let boxes = [box_columns, box_rows];
        let steps = [1_u32, 1];
        let address: *mut c_void = std::ptr::without_provenance_mut(view.device_ptr()? as usize);
        let mut map = Self::EMPTY;
        // SAFETY: all arrays outlive the call and have as many entries as the rank says; `map` is of the type's size and
        // alignment; the driver checks the rest.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                data_type(dtype),
                2,
                address,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle.code(),
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        result.result().map_err(driver_error("cuTensorMapEncodeTiled"))?;
        Ok(map)
    }
}

impl Swizzle {
    fn code(self) -> sys::CUtensorMapSwizzle {
        match self {
            Self::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Self::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Self::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Self::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        }
    }
}

fn data_type(dtype: DType) -> sys::CUtensorMapDataType {
    use sys::CUtensorMapDataType as Type;
    match dtype {
        DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::BF16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::F8E4M3 | DType::U8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        DType::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
        DType::I64 => Type::CU_TENSOR_MAP_DATA_TYPE_INT64,
    }
}
