//! On the CPU everywhere, and on a GPU where there is one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use foveal_device::{DType, Device, DeviceError, Stream, Tensor, UniformFill};
use foveal_graphs::{Graphs, Record};
use foveal_testkit::gpu;

const LEN: usize = 64;

/// Tests run one after another: what is freed is counted for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies a number of rows from one tensor to another by way of random numbers: what is there before shows.
struct Rows {
    out: Tensor,
    /// Made anew at each launch, where it is to be.
    scratch: Option<Tensor>,
    allocates: bool,
    launches: usize,
}

impl Rows {
    fn new(device: &Device) -> Self {
        let out = Tensor::zeros(device, DType::BF16, &[8, LEN]).unwrap();
        Self { out, scratch: None, allocates: false, launches: 0 }
    }

    /// The bits of each row, which are zeros until it is filled.
    fn filled(&self) -> Vec<bool> {
        let bits = self.out.to_vec::<half::bf16>().unwrap();
        bits.chunks(LEN).map(|row| row.iter().any(|x| x.to_bits() != 0)).collect()
    }
}

impl Record for Rows {
    type Key = usize;
    type Error = DeviceError;

    fn launch(&mut self, stream: &Stream, rows: usize) -> Result<(), DeviceError> {
        self.launches += 1;
        let Some(cuda) = stream.cuda() else {
            return stream.write(&vec![1; rows * LEN * 2], self.out.rows_mut(0..rows)?);
        };
        if self.allocates {
            self.scratch = Some(Tensor::zeros(&Device::cuda(0)?, DType::U8, &[1])?);
        }
        let fill = UniformFill { state: 1, offset: 2.0, scale: 1.0, rows, row_len: LEN, placed_len: LEN };
        cuda.fill_uniform(fill, self.out.rows_mut(0..rows)?)
    }
}

fn clear(graphs: &mut Graphs<Rows>) {
    graphs.with_work(|work, stream| stream.write(&[0; 8 * LEN * 2], work.out.view_mut().unwrap())).unwrap();
}

#[test]
fn a_cpu_runs_the_work_as_it_is() {
    let _alone = alone();
    let device = Device::cpu(1).unwrap();
    let mut graphs = Graphs::new(&device, Rows::new(&device));
    let report = graphs.capture_all([8, 2], 1 << 30).unwrap();
    assert_eq!((report.num_captured, graphs.num_graphs(), graphs.work().launches), (0, 0, 0));
    graphs.run(2).unwrap();
    graphs.count_rows(1, 2);
    assert_eq!(graphs.work().filled(), [true, true, false, false, false, false, false, false]);
    let stats = graphs.stats();
    assert_eq!((stats.replays, stats.eager_runs, stats.rows, stats.padded_rows), (0, 1, 1, 2));
}

#[test]
fn a_replay_does_what_the_launches_do() {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let mut graphs = Graphs::new(&device, Rows::new(&device));
    let report = graphs.capture_all([8, 2], 1 << 30).unwrap();
    assert_eq!((report.num_captured, report.num_left_out), (2, 0));
    let launches = graphs.work().launches;
    clear(&mut graphs);
    graphs.run(2).unwrap();
    let replayed = graphs.work().out.to_vec::<half::bf16>().unwrap();
    assert_eq!(graphs.work().filled(), [true, true, false, false, false, false, false, false]);
    // A key without a graph, and graphs that are switched off.
    graphs.run(3).unwrap();
    assert_eq!((graphs.work().launches, graphs.stats().replays, graphs.stats().eager_runs), (launches + 1, 1, 1));
    let mut eager = Graphs::new(&device, Rows::new(&device)).switched(false);
    assert_eq!(eager.capture_all([2], 1 << 30).unwrap().num_captured, 0);
    eager.run(2).unwrap();
    assert_eq!(eager.work().out.to_vec::<half::bf16>().unwrap(), replayed);
}

#[test]
fn work_that_allocates_is_refused() {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let mut graphs = Graphs::new(&device, Rows::new(&device));
    graphs.with_work(|work, _| work.allocates = true);
    assert!(graphs.capture(2).is_err());
    assert_eq!(graphs.num_graphs(), 0);
    // The stream is well, and the work still runs.
    graphs.with_work(|work, _| work.allocates = false);
    graphs.capture(2).unwrap();
    graphs.run(2).unwrap();
    assert!(graphs.work().filled()[1]);
}

#[test]
fn no_graph_outlives_what_it_reads() {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let mut graphs = Graphs::new(&device, Rows::new(&device));
    graphs.capture(2).unwrap();
    graphs.with_work(|work, _| work.launches = 0);
    assert_eq!((graphs.num_graphs(), graphs.stats().resets), (1, 0));
    graphs.with_work(|work, _| *work = Rows::new(&device));
    assert_eq!((graphs.num_graphs(), graphs.stats().resets), (0, 1));
    graphs.run(2).unwrap();
    assert!(graphs.work().filled()[1]);
}

#[test]
fn recording_keeps_to_its_budget() {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let mut graphs = Graphs::new(&device, Rows::new(&device));
    let report = graphs.capture_all(1..=8, 0).unwrap();
    assert_eq!((report.num_captured, report.num_left_out, graphs.num_graphs()), (0, 8, 0));
    // Over calls as well: what was taken stays taken.
    let taken: u64 = (1..=8).map(|key| graphs.capture_all([key], 1 << 30).unwrap().bytes).sum();
    assert_eq!(graphs.num_graphs(), 8);
    let report = graphs.capture_all([8], taken).unwrap();
    assert_eq!((report.num_captured, report.num_left_out), (0, 1), "{taken} bytes were taken");
}

#[test]
fn memory_that_was_moved_out_is_missed_when_it_is_freed() {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let mut graphs = Graphs::new(&device, Rows::new(&device));
    graphs.capture(2).unwrap();
    let other = Rows::new(&device);
    let moved = graphs.with_work(|work, _| std::mem::replace(work, other));
    assert_eq!(graphs.num_graphs(), 1, "nothing is freed yet");
    drop(moved);
    graphs.run(2).unwrap();
    assert_eq!((graphs.num_graphs(), graphs.stats().resets, graphs.stats().replays), (0, 1, 0));
    assert!(graphs.work().filled()[1]);
    // Nor does what is gone count against a budget.
    assert_eq!(graphs.capture_all([2], 1).unwrap().num_captured, 1);
}
