//! The card under test, and how anything is timed on it.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use foveal_device::{CudaStream, Device, Times, probe};
use foveal_pinned::{PinnedPool, PinnedUploader};

use super::ceilings::{Ceilings, Cost, Rate};
use super::operands::ROTATION_BYTES;
use super::results::Results;
use super::uploads::PausableUploads;

/// Page-locked memory for copies.
const PINNED_BYTES: usize = 256 << 20;
/// How long the calls that are recorded together should take at least: far longer than starting a replay.
const REPLAY_US: f64 = 2000.0;
/// How long the card rests before something is timed. Large products take it to its power limit, and its clock needs a tenth of a
/// second to come back: what is timed after one would be slower by up to a fifth.
const REST: Duration = Duration::from_millis(200);
/// Runs that are timed on the host, after those that warm up.
const HOST_RUNS: usize = 10;
const WARM_UP_RUNS: usize = 2;

/// The card, its ceilings as measured here, and where results go.
pub struct Bench {
    pub(crate) device: Device,
    uploads: Arc<PausableUploads>,
    filter: String,
    results: Results,
    ceilings: Ceilings,
    /// Memory that a rotation's operands take, at least.
    pub(super) rotation_bytes: usize,
    num_failed: usize,
}

impl Bench {
    /// The most calls that are recorded together.
    pub(super) const MAX_CALLS: usize = 256;
    const MIN_CALLS: usize = 4;

    /// Opens the first GPU and measures its ceilings. Lines that don't hold `filter` are left out.
    ///
    /// # Errors
    /// When there is no GPU, or `csv` can't be written.
    pub fn open(filter: &str, commit: &str, csv: Option<&Path>) -> anyhow::Result<Self> {
        let device = Device::cuda(0)?;
        let cuda = device.stream().cuda().context("a GPU was opened")?;
        let pool = PinnedPool::with_capacity_bytes(&device, PINNED_BYTES);
        let uploads = Arc::new(PausableUploads::new(PinnedUploader::new(pool)));
        cuda.set_upload(uploads.clone());
        let driver = probe().driver_version.unwrap_or_else(|| "unknown".to_owned());
        println!("{device:?}, driver {driver}, commit {commit}");
        let results = Results::new(cuda.device().name(), &driver, commit, csv)?;
        let ceilings = Ceilings { bytes_per_s: f64::NAN, flops_per_s: f64::NAN };
        let filter = filter.to_owned();
        let rotation_bytes = ROTATION_BYTES;
        let mut bench = Self { device, uploads, filter, results, ceilings, rotation_bytes, num_failed: 0 };
        bench.ceilings = Ceilings::measure(&bench)?;
        let Ceilings { bytes_per_s, flops_per_s } = bench.ceilings;
        println!("ceilings: copy {:.0} GB/s, bf16 product {:.0} TFLOP/s", bytes_per_s / 1e9, flops_per_s / 1e12);
        Ok(bench)
    }

    /// From now on an operator's operands are the same in every call, so that they come from the card's cache where they fit, as a
    /// step's rows do from one kernel to the next. A product's weights do as well, which no step has.
    pub fn keep_operands(&mut self) {
        self.rotation_bytes = 0;
    }

    /// The GPU's stream.
    ///
    /// # Errors
    /// Never: [`Bench::open`] opened a GPU.
    pub(crate) fn cuda(&self) -> anyhow::Result<&CudaStream> {
        self.device.stream().cuda().context("a GPU was opened")
    }

    /// Whether a line is wanted.
    pub(super) fn wants(&self, op: &str, shape: &str) -> bool {
        format!("{op} {shape}").contains(&self.filter)
    }

    /// Times an operator if its line is wanted; `work` is given the number of its call. What it uploads must be on the
    /// card already: see [`PausableUploads`].
    pub(super) fn time(
        &mut self,
        op: &str,
        shape: &str,
        cost: Cost,
        work: impl FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if !self.wants(op, shape) {
            return Ok(());
        }
        let times = self.time_calls(cost, work);
        self.conclude(op, shape, times, cost)
    }

    /// How long a call of an operator takes, several of them recorded as one graph.
    ///
    /// # Errors
    /// Of the operator, or of the device.
    pub(crate) fn time_calls(
        &self,
        cost: Cost,
        work: impl FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Times> {
        let num_calls = (REPLAY_US / self.ceilings.floor_us(cost).max(1.0)) as usize;
        self.time_so_many(num_calls.clamp(Self::MIN_CALLS, Self::MAX_CALLS), work)
    }

    /// As [`Bench::time_calls`], for a given number of calls.
    ///
    /// # Errors
    /// Of the operator, or of the device.
    pub(super) fn time_so_many(
        &self,
        num_calls: usize,
        work: impl FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Times> {
        let _pause = self.uploads.pause();
        rest();
        self.cuda()?.time_calls(num_calls, work)
    }

    /// Times a whole pass, as the host sees it and recorded as a graph.
    pub(super) fn time_pass(
        &mut self,
        op: &str,
        shape: &str,
        cost: Cost,
        mut pass: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.time_eager(&format!("{op} eager"), shape, cost, &mut pass)?;
        self.time_recorded(&format!("{op} graph"), shape, cost, pass)
    }

    /// Times passes as the host gives them, each waited for.
    pub(super) fn time_eager(
        &mut self,
        op: &str,
        shape: &str,
        cost: Cost,
        mut pass: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if !self.wants(op, shape) {
            return Ok(());
        }
        let times = self.time_on_host(&mut pass);
        self.conclude(op, shape, times, cost)
    }

    /// Times one pass of a graph. It runs once before, for its uploads.
    pub(super) fn time_recorded(
        &mut self,
        op: &str,
        shape: &str,
        cost: Cost,
        mut pass: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if !self.wants(op, shape) {
            return Ok(());
        }
        let times = self.time_graph(&mut pass);
        self.conclude(op, shape, times, cost)
    }

    /// How long a pass takes as a graph. It runs once before, for its uploads.
    ///
    /// # Errors
    /// Of the pass, or of the device.
    pub(crate) fn time_graph(&self, mut pass: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Times> {
        pass()?;
        self.time_so_many(1, |_| pass())
    }

    /// The page-locked memory that uploads go through.
    pub(crate) fn pinned(&self) -> &PinnedPool {
        self.uploads.pool()
    }

    /// How long it takes from the host's first call to the GPU's end.
    fn time_on_host(&self, mut pass: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Times> {
        rest();
        let mut times = Vec::with_capacity(HOST_RUNS);
        for run in 0..WARM_UP_RUNS + HOST_RUNS {
            let start = Instant::now();
            pass()?;
            self.device.stream().synchronize()?;
            if run >= WARM_UP_RUNS {
                times.push(start.elapsed().as_secs_f32() * 1e6);
            }
        }
        Ok(Times::of(times))
    }

    /// Prints a line, or why there is none: the other lines are wanted all the same.
    fn conclude(&mut self, op: &str, shape: &str, times: anyhow::Result<Times>, cost: Cost) -> anyhow::Result<()> {
        match times {
            Ok(times) => self.report(op, shape, times, cost),
            Err(error) => {
                println!("{op} {shape} failed: {error:#}");
                self.num_failed += 1;
                Ok(())
            }
        }
    }

    /// Whether every line could be measured.
    ///
    /// # Errors
    /// When some failed.
    pub fn finish(self) -> anyhow::Result<()> {
        ensure!(self.num_failed == 0, "{} lines failed", self.num_failed);
        Ok(())
    }

    /// Prints a line.
    pub(super) fn report(&mut self, op: &str, shape: &str, times: Times, cost: Cost) -> anyhow::Result<()> {
        self.results.print(op, shape, times, self.ceilings.rate(cost, times.median_us))
    }

    /// Prints a line of something that the card's ceilings don't bound.
    pub(super) fn report_value(
        &mut self,
        op: &str,
        shape: &str,
        times: Times,
        (value, unit): (f64, &'static str),
    ) -> anyhow::Result<()> {
        self.results.print(op, shape, times, Rate { value, unit, share: f64::NAN })
    }
}

/// Lets the card get its clock back.
fn rest() {
    thread::sleep(REST);
}
