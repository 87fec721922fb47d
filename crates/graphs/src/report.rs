//! What recording cost, and what replaying came to.

use std::fmt;
use std::time::Duration;

/// What [`crate::Graphs::capture_all`] did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CaptureReport {
    /// Graphs that were recorded.
    pub num_captured: usize,
    /// Keys that have none, for want of memory; their work runs as it is.
    pub num_left_out: usize,
    /// Bytes of the GPU's memory that recording took, modules loaded meanwhile included.
    pub bytes: u64,
    /// How many it was allowed.
    pub budget_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl CaptureReport {
    /// Counts what another recording did, within the same budget.
    pub fn add(&mut self, other: Self) {
        self.num_captured += other.num_captured;
        self.num_left_out += other.num_left_out;
        self.bytes += other.bytes;
        self.elapsed += other.elapsed;
    }
}

impl fmt::Display for CaptureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Self { num_captured, num_left_out, bytes, budget_bytes, elapsed } = self;
        let seconds = elapsed.as_secs_f32();
        write!(f, "{num_captured} graphs in {seconds:.1} s, {:.0} of {:.0} MiB", mib(*bytes), mib(*budget_bytes))?;
        if *num_left_out > 0 {
            write!(f, "; {num_left_out} left out for want of memory")?;
        }
        Ok(())
    }
}

/// What a set of graphs has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphStats {
    /// Calls that were replayed.
    pub replays: u64,
    /// Calls that ran as they are.
    pub eager_runs: u64,
    /// Rows that somebody wanted.
    pub rows: u64,
    /// Rows that were computed, padding included.
    pub padded_rows: u64,
    /// Times that all graphs were dropped, because memory was freed while the work's own was lent.
    pub resets: u64,
}

impl GraphStats {
    /// The share of the computed rows that was padding.
    #[must_use]
    pub fn waste(&self) -> f64 {
        self.padded_rows.saturating_sub(self.rows) as f64 / self.padded_rows.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_well() {
        let report = CaptureReport {
            num_captured: 3,
            num_left_out: 0,
            bytes: 5 << 20,
            budget_bytes: 1 << 30,
            elapsed: Duration::from_millis(1250),
        };
        assert_eq!(report.to_string(), "3 graphs in 1.2 s, 5 of 1024 MiB");
        let short = CaptureReport { num_left_out: 2, ..report };
        assert_eq!(short.to_string(), "3 graphs in 1.2 s, 5 of 1024 MiB; 2 left out for want of memory");
        let stats = GraphStats { rows: 30, padded_rows: 40, ..GraphStats::default() };
        assert!((stats.waste() - 0.25).abs() < 1e-9);
        assert!(GraphStats::default().waste().abs() < 1e-9);
    }
}
