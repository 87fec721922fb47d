//! What the card gives at most, and what that makes of an operator's work.

use foveal_device::{DType, Tensor};
use foveal_kernels::linear::{Linear, linear, tune};
use foveal_kernels::rows::{Gather, gather};

use super::Bench;

/// Bytes of the tensor that is copied.
const COPY_BYTES: usize = 2 << 30;
/// Elements of the copied tensor's rows.
const COPY_WIDTH: usize = 4096;
/// Rows and columns of the product's matrices.
const PRODUCT_SIDE: usize = 8192;

/// The least that an operator must do: each input read once, each output written once, each product and sum done once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Bytes read and written.
    pub(crate) bytes: f64,
    /// Floating-point operations of the tensor cores.
    pub(crate) flops: f64,
}

impl Cost {
    /// Of an operator without tensor cores' work.
    pub(crate) fn of_bytes(bytes: usize) -> Self {
        Self { bytes: bytes as f64, flops: 0.0 }
    }

    /// Of several things one after the other.
    pub(super) fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, flops: self.flops + other.flops }
    }
}

/// A card's ceilings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceilings {
    /// Of a large copy within the card, read and written.
    pub(super) bytes_per_s: f64,
    /// Of a large bf16 product.
    pub(super) flops_per_s: f64,
}

/// How quick something was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) value: f64,
    pub(super) unit: &'static str,
    /// The least time that the ceilings allow, over the time it took.
    pub(super) share: f64,
}

impl Ceilings {
    /// The least microseconds that the card can take.
    pub(super) fn floor_us(&self, cost: Cost) -> f64 {
        1e6 * (cost.bytes / self.bytes_per_s).max(cost.flops / self.flops_per_s)
    }

    /// In the unit of whatever bounds it.
    pub(super) fn rate(&self, cost: Cost, us: f32) -> Rate {
        let us = f64::from(us);
        let share = self.floor_us(cost) / us;
        if cost.bytes / self.bytes_per_s >= cost.flops / self.flops_per_s {
            Rate { value: cost.bytes / us / 1e3, unit: "GB/s", share }
        } else {
            Rate { value: cost.flops / us / 1e6, unit: "TFLOP/s", share }
        }
    }

    /// Measures them.
    pub(super) fn measure(bench: &Bench) -> anyhow::Result<Self> {
        Ok(Self { bytes_per_s: copy(bench)?, flops_per_s: product(bench)? })
    }
}

fn copy(bench: &Bench) -> anyhow::Result<f64> {
    let rows = COPY_BYTES / (COPY_WIDTH * DType::BF16.size_bytes());
    let x = bench.random(&[rows, COPY_WIDTH])?;
    let mut out = Tensor::zeros(&bench.device, DType::BF16, &[rows, COPY_WIDTH])?;
    let index = bench.ints(0..rows as i32, &[rows])?;
    let stream = bench.device.stream();
    let times = bench.time_so_many(2, |_| {
        let out = out.view_mut()?;
        Ok(gather(stream, Gather { x: x.view(), index: index.view(), out })?)
    })?;
    Ok(2.0 * COPY_BYTES as f64 / f64::from(times.median_us) * 1e6)
}

fn product(bench: &Bench) -> anyhow::Result<f64> {
    let dims = [PRODUCT_SIDE, PRODUCT_SIDE];
    let (x, weight) = (bench.random(&dims)?, bench.random(&dims)?);
    let mut out = Tensor::zeros(&bench.device, DType::BF16, &dims)?;
    let stream = bench.device.stream();
    tune(
        stream,
        Linear { x: x.view(), weight: &[weight.view()], bias: None, scales: None, out: out.view_mut()? },
        &[],
    )?;
    let times = bench.time_so_many(4, |_| {
        let out = out.view_mut()?;
        Ok(linear(stream, Linear { x: x.view(), weight: &[weight.view()], bias: None, scales: None, out })?)
    })?;
    Ok(2.0 * (PRODUCT_SIDE as f64).powi(3) / f64::from(times.median_us) * 1e6)
}

#[cfg(test)]
mod tests {
    use super::{Ceilings, Cost, Rate};

    #[test]
    fn the_slower_of_memory_and_tensor_cores_is_the_floor() {
        let card = Ceilings { bytes_per_s: 1e12, flops_per_s: 1e14 };
        let read = Cost { bytes: 1e6, flops: 1e7 };
        assert_eq!(card.floor_us(read), 1.0);
        assert_eq!(card.rate(read, 2.0), Rate { value: 500.0, unit: "GB/s", share: 0.5 });
        let product = Cost { bytes: 1e6, flops: 1e9 };
        assert_eq!(card.floor_us(product), 10.0);
        assert_eq!(card.rate(product, 10.0), Rate { value: 100.0, unit: "TFLOP/s", share: 1.0 });
    }
}
