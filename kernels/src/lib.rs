//! The operators of the Foveal engine.
//!
//! Each operator is a folder: its contract (equation, shapes, dtypes and layout, numerics, source), its CPU
//! implementation and its tests, whose bodies take a device so that every device runs the same ones. An operator takes
//! its operands in one struct of borrowed views, checks every shape, dtype and index, and runs on the
//! [`foveal_device::Stream`] that it is given; it never allocates tensors, never synchronises and never reads the result
//! back. What doesn't fit is an [`OpError`] that names the operand.
//!
//! Operators are cut where kernels fuse: a decoder layer is [`norm`] -> [`linear`] -> [`qk_norm_rope`] ->
//! [`paged_attention`] -> [`linear`] -> [`norm`] -> [`linear`] -> [`activation`] -> [`linear`], and nothing else. A vision
//! block is the same with [`vision_rope`] and [`varlen_attention`]; before the first stand [`patch`] and
//! [`position_embed`]. [`embedding`] begins a step, [`rows`] and [`sampling`] end it.
//!
//! Numbers are read as float32, computed in float32 (long sums in float64 where that is cheap) and rounded once, when
//! they are stored. On the CPU, the result of a row depends on that row alone, bitwise: sums run along K in one fixed
//! order whatever the number of rows is.
//!
//! From compute capability 9.0 on, an operator's kernel may begin while the one ahead of it in the stream ends, and reads its
//! weights, biases and scales of columns before that has ended. Whatever makes those on the GPU is not the operator directly
//! ahead: another one lies between, or the host has waited.
//!
//! ```
//! use foveal_device::{DType, Device, Tensor};
//! use foveal_kernels::activation::{Activation, Gated, gated};
//!
//! let device = Device::cpu(2)?;
//! let gate_up = Tensor::from_slice(&device, &[0.0_f32, 100.0, 3.0, 2.0], &[1, 4])?;
//! let mut out = Tensor::zeros(&device, DType::F32, &[1, 2])?;
//! let args = Gated { gate_up: gate_up.view(), scales: None, kind: Activation::Silu, quantize: None, out: out.view_mut()? };
//! gated(device.stream(), args)?;
//! assert_eq!(out.view().as_slice::<f32>()?, [0.0, 200.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![allow(clippy::module_inception)]

pub mod activation;
pub mod embedding;
pub mod kv_layout;
pub mod linear;
pub mod norm;
pub mod paged_attention;
pub mod patch;
pub mod position_embed;
pub mod qk_norm_rope;
pub mod quantize;
pub mod rows;
pub mod sampling;
pub mod varlen_attention;
pub mod vision_rope;

mod attention;
mod check;
mod cuda;
mod error;
mod math;
mod packs;
mod parallel;
mod real;
mod reals;
mod shared_rows;
mod simd;
#[cfg(test)]
mod testing;

pub use cuda::kernel_variants;
pub use error::OpError;
pub use kv_layout::{KvLayout, KvScales};
