//! Element types.

use std::fmt;

use half::{bf16, f16};

use crate::F8E4M3;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// bfloat16: float32's exponent, 8 bits of mantissa.
    BF16,
    /// IEEE binary16.
    F16,
    /// FP8 with four bits of exponent: quantised weights, activations and caches. See [`F8E4M3`].
    F8E4M3,
    /// Unsigned bytes: pixels, and quantised weights as they lie in the file.
    U8,
    /// Token ids, row indices (-1: none), lengths.
    I32,
    /// Slots of the paged KV cache (-1: none).
    I64,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::F8E4M3 | Self::U8 => 1,
            Self::I64 => 8,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::F8E4M3 => "f8_e4m3",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is an element type. Sealed: the list is [`DType`]'s.
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync {
    /// Its element type.
    const DTYPE: DType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

element!(f32 => F32, bf16 => BF16, f16 => F16, F8E4M3 => F8E4M3, u8 => U8, i32 => I32, i64 => I64);
