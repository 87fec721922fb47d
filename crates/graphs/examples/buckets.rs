//! Work of many sizes by a few graphs: `cargo run -p foveal-graphs --example buckets`.

use std::error::Error;
use std::time::Instant;

use foveal_device::{DType, Device, DeviceError, DeviceKind, Stream, Tensor, UniformFill};
use foveal_graphs::{Buckets, Graphs, Record};

/// Launches of a step.
const LAUNCHES: u64 = 200;
const ROW_LEN: usize = 1024;

/// Rows that a step fills again and again.
struct Fill {
    rows: Tensor,
}

impl Record for Fill {
    type Key = usize;
    type Error = DeviceError;

    fn launch(&mut self, stream: &Stream, rows: usize) -> Result<(), DeviceError> {
        let Some(cuda) = stream.cuda() else { return Ok(()) };
        for state in 0..LAUNCHES {
            let fill = UniformFill { state, offset: 0.0, scale: 1.0, rows, row_len: ROW_LEN, placed_len: ROW_LEN };
            cuda.fill_uniform(fill, self.rows.rows_mut(0..rows)?)?;
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::open(DeviceKind::Auto, 0)?;
    let buckets = Buckets::with_waste(1, 256, 0.25);
    println!("{device:?}, buckets {:?}, waste at most {:.0} %", buckets.sizes(), buckets.max_waste() * 100.0);
    let mut graphs =
        Graphs::new(&device, Fill { rows: Tensor::zeros(&device, DType::BF16, &[buckets.max(), ROW_LEN])? });
    for round in ["launch by launch", "by graphs"] {
        let start = Instant::now();
        for rows in 1..=buckets.max() {
            let Some(bucket) = buckets.of(rows) else { continue };
            graphs.run(bucket)?;
            graphs.count_rows(rows, bucket);
        }
        device.stream().synchronize()?;
        println!("{round}: {:.1} us a step", start.elapsed().as_secs_f64() * 1e6 / buckets.max() as f64);
        println!("{}", graphs.capture_all(buckets.sizes().iter().rev().copied(), 1 << 30)?);
    }
    println!("{:?}, {:.0} % of the rows were padding", graphs.stats(), graphs.stats().waste() * 100.0);
    Ok(())
}
