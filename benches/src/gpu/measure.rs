//! What is measured, against what the card gives, and how it is printed.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use foveal_device::{CudaStream, DType, Device, Tensor, UniformFill};
use foveal_kernels::OpError;

/// What bounds an operator.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// Bytes that it must read and write.
    Bytes(f64),
    /// Floating-point operations that it must do.
    Flops(f64),
}

/// Weights and other operands rotate over at least as much memory, so that none comes from the cache.
pub(super) const ROTATION_BYTES: usize = 256 << 20;

/// The card, its ceilings as measured here, and where results go.
pub struct Bench {
    pub(super) device: Device,
    filter: String,
    commit: String,
    csv: Option<File>,
    /// Bytes a second of a large copy, read and written.
    bytes_per_s: f64,
    /// Operations a second of a large bf16 product.
    flops_per_s: f64,
}

impl Bench {
    /// Opens the first GPU. Lines whose text doesn't hold `filter` are left out.
    ///
    /// # Errors
    /// When there is no GPU, or `csv` can't be written.
    pub fn open(filter: &str, commit: &str, csv: Option<&Path>) -> anyhow::Result<Self> {
        let csv = csv.map(|path| File::create(path).with_context(|| path.display().to_string())).transpose()?;
        let device = Device::cuda(0)?;
        println!("{device:?}, commit {commit}");
        let (filter, commit) = (filter.to_owned(), commit.to_owned());
        let mut bench = Self { device, filter, commit, csv, bytes_per_s: f64::NAN, flops_per_s: f64::NAN };
        if let Some(csv) = &mut bench.csv {
            writeln!(csv, "gpu,commit,what,us,value,unit,share")?;
        }
        bench.measure_ceilings()?;
        Ok(bench)
    }

    /// The GPU.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its stream.
    ///
    /// # Errors
    /// Never: [`Bench::open`] opened a GPU.
    pub(super) fn cuda(&self) -> anyhow::Result<&CudaStream> {
        self.device.stream().cuda().context("a GPU was opened")
    }

    /// Random bf16 values made on the card: zeros would run faster than anything real.
    pub(super) fn random(&self, dims: &[usize]) -> anyhow::Result<Tensor> {
        let mut tensor = Tensor::zeros(&self.device, DType::BF16, dims)?;
        let len = tensor.shape().num_elements();
        let state = len as u64 ^ 0x5EED;
        let fill = UniformFill { state, offset: 0.0, scale: 1.0, rows: 1, row_len: len, placed_len: len };
        self.cuda()?.fill_uniform(fill, tensor.view_mut()?)?;
        Ok(tensor)
    }

    /// As many tensors of one shape as it takes for none to stay in the cache.
    pub(super) fn rotation(&self, dims: &[usize]) -> anyhow::Result<Vec<Tensor>> {
        let len_bytes = dims.iter().product::<usize>() * DType::BF16.size_bytes();
        (0..ROTATION_BYTES.div_ceil(len_bytes.max(1)).clamp(1, 64)).map(|_| self.random(dims)).collect()
    }

    fn measure_ceilings(&mut self) -> anyhow::Result<()> {
        use foveal_kernels::linear::{Linear, linear};
        use foveal_kernels::rows::{Gather, gather};
        let rows = 1 << 18;
        let (x, mut out) = (self.random(&[rows, 4096])?, Tensor::zeros(&self.device, DType::BF16, &[rows, 4096])?);
        let index: Vec<i32> = (0..rows as i32).collect();
        let index = Tensor::from_slice(&self.device, &index, &[rows])?;
        let stream = self.device.stream();
        let us = self.cuda()?.time_calls(2, |_| {
            let out = out.view_mut()?;
            Ok::<_, anyhow::Error>(gather(stream, Gather { x: x.view(), index: index.view(), out })?)
        })?;
        self.bytes_per_s = 2.0 * x.len_bytes() as f64 / f64::from(us) * 1e6;
        drop((x, out));
        let side = 8192;
        let (a, b) = (self.random(&[side, side])?, self.random(&[side, side])?);
        let mut out = Tensor::zeros(&self.device, DType::BF16, &[side, side])?;
        let us = self.cuda()?.time_calls(4, |_| {
            let out = out.view_mut()?;
            Ok::<_, anyhow::Error>(linear(stream, Linear { x: a.view(), weight: &[b.view()], bias: None, out })?)
        })?;
        self.flops_per_s = 2.0 * (side as f64).powi(3) / f64::from(us) * 1e6;
        println!(
            "ceilings: copy {:.2} TB/s, bf16 product {:.0} TFLOP/s",
            self.bytes_per_s / 1e12,
            self.flops_per_s / 1e12
        );
        Ok(())
    }

    /// Whether a line is wanted.
    pub(super) fn wants(&self, what: &str) -> bool {
        what.contains(&self.filter)
    }

    /// Times `work` if its line is wanted; it is given the number of its call.
    pub(super) fn time(
        &mut self,
        what: &str,
        bound: Bound,
        mut work: impl FnMut(usize) -> Result<(), OpError>,
    ) -> anyhow::Result<()> {
        if !self.wants(what) {
            return Ok(());
        }
        // Enough calls for a replay to take far longer than starting it.
        let calls = match bound {
            Bound::Bytes(bytes) => (4e9 / bytes.max(1.0)) as usize,
            Bound::Flops(flops) => (1e12 / flops.max(1.0)) as usize,
        };
        let us = self.cuda()?.time_calls(calls.clamp(4, 64), |i| work(i).map_err(anyhow::Error::from))?;
        self.report(what, us, bound)
    }

    /// Prints a line.
    pub(super) fn report(&mut self, what: &str, us: f32, bound: Bound) -> anyhow::Result<()> {
        let (rate, ceiling, unit, scale) = match bound {
            Bound::Bytes(bytes) => (bytes / f64::from(us) * 1e6, self.bytes_per_s, "TB/s", 1e12),
            Bound::Flops(flops) => (flops / f64::from(us) * 1e6, self.flops_per_s, "TFLOP/s", 1e12),
        };
        let (value, share) = (rate / scale, rate / ceiling);
        println!("{what:<52} {us:>10.1} us {value:>8.2} {unit:<7} {:>4.0} %", share * 100.0);
        if let Some(csv) = &mut self.csv {
            let gpu = self.device.stream().cuda().map_or(String::new(), |cuda| cuda.device().name().to_owned());
            writeln!(csv, "{gpu},{},{what},{us:.2},{value:.3},{unit},{share:.3}", self.commit)?;
        }
        Ok(())
    }
}
