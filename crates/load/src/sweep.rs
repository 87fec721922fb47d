//! Several runs, side by side and beside others' figures.

use std::fs;
use std::path::{Path, PathBuf};

use crate::chart::Chart;
use crate::error::LoadError;
use crate::options::options;
use crate::peers::{Peer, PeerPoint};
use crate::report::LoadReport;
use crate::table::{csv, markdown, median};

/// Runs at several concurrencies, each once or more often.
#[derive(Debug)]
pub struct Sweep {
    label: String,
    reports: Vec<LoadReport>,
}

impl Sweep {
    /// None yet. `label` is the engine's name in tables and legends.
    #[must_use]
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), reports: Vec::new() }
    }

    /// Adds a run.
    pub fn push(&mut self, report: LoadReport) {
        self.reports.push(report);
    }

    /// Writes the runs so far into a folder, which is made if it isn't there, and gives the files: `results.csv` (every run),
    /// `results.md` (medians by concurrency, peers beside them), `throughput.svg`, `ttft.svg` and `tpot.svg`.
    ///
    /// # Errors
    /// [`LoadError::Options`] for a run without a concurrency, [`LoadError::File`] for what can't be written.
    pub fn write(&self, folder: &Path, peers: &[Peer]) -> Result<Vec<PathBuf>, LoadError> {
        let ours = self.medians()?;
        fs::create_dir_all(folder).map_err(|error| LoadError::file(folder, &error))?;
        let files = [
            ("results.csv", csv(&self.label, &self.reports)),
            ("results.md", markdown(&ours, &self.reports, peers)),
            ("throughput.svg", chart(&ours, peers, ["Output throughput", "tokens a second"], |p| p.output_throughput)),
            ("ttft.svg", chart(&ours, peers, ["Time to first token", "ms, median"], |p| p.ttft_ms)),
            ("tpot.svg", chart(&ours, peers, ["Time per output token", "ms, median"], |p| p.tpot_ms)),
        ];
        let write = |(name, text): (&str, String)| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| LoadError::file(&path, &error))?;
            Ok(path)
        };
        files.into_iter().map(write).collect()
    }

    /// Each concurrency's medians over its runs.
    fn medians(&self) -> Result<Peer, LoadError> {
        let mut concurrencies = Vec::new();
        for report in &self.reports {
            let concurrency = report.options.max_concurrency;
            concurrencies.push(
                concurrency.ok_or_else(|| {
                    options("max_concurrency", "a table and charts by concurrency need one".to_owned())
                })?,
            );
        }
        concurrencies.sort_unstable();
        concurrencies.dedup();
        let points = concurrencies.into_iter().map(|concurrency| {
            let runs = || self.reports.iter().filter(|report| report.options.max_concurrency == Some(concurrency));
            let of = |figure: fn(&LoadReport) -> f64| Some(median(runs().map(figure)));
            PeerPoint {
                max_concurrency: concurrency,
                output_throughput: of(|report| report.output_throughput),
                ttft_ms: of(|report| report.ttft_ms.p50),
                tpot_ms: of(|report| report.tpot_ms.p50),
            }
        });
        Ok(Peer { label: self.label.clone(), source: String::new(), points: points.collect() })
    }
}

fn chart(ours: &Peer, peers: &[Peer], [title, y_label]: [&str; 2], of: fn(&PeerPoint) -> Option<f64>) -> String {
    let series = [ours].into_iter().chain(peers).map(|peer| {
        let points = peer.points.iter().filter_map(|point| Some((point.max_concurrency, of(point)?)));
        (peer.label.as_str(), points.collect())
    });
    Chart { title, x_label: "requests at once", y_label, series: series.collect() }.svg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    const EXPECTED: &str = "\
# Serving benchmark: Foveal

m, 5 tokens of text + 1 picture(s) of 8x4, 3 tokens of answer; 20260131-235959. Columns are requests at once; medians of \
the runs in results.csv.

4 request(s) failed and are in none of the figures.

## Output tokens a second

| | 1 | 2 |
| --- | ---: | ---: |
| Foveal | 4 | 30 |
| a\\|b | 7 | - |

## Time to first token, median, ms

| | 1 | 2 |
| --- | ---: | ---: |
| Foveal | 20.0 | 20.0 |
| a\\|b | - | - |

## Time per output token, median, ms

| | 1 | 2 |
| --- | ---: | ---: |
| Foveal | 15.00 | 15.00 |
| a\\|b | 0.50 | - |

## Sources

Figures compare on the same model and the same card only.

- a\\|b: a card
";

    #[test]
    fn runs_become_a_table_and_charts() {
        let mut sweep = Sweep::new("Foveal");
        for (concurrency, throughput) in [(2, 10.0), (2, 30.0), (1, 4.5), (2, 40.0)] {
            let mut report = report();
            report.options.max_concurrency = Some(concurrency);
            report.output_throughput = throughput;
            sweep.push(report);
        }
        let point = |max_concurrency, tpot_ms| PeerPoint {
            max_concurrency,
            output_throughput: Some(7.4),
            ttft_ms: None,
            tpot_ms,
        };
        let points = vec![point(1, Some(0.5)), point(64, None)];
        let peer = Peer { label: "a|b".to_owned(), source: "a card".to_owned(), points };
        let folder = std::env::temp_dir().join(format!("foveal-load-sweep-{}", std::process::id()));
        let files = sweep.write(&folder, &[peer]).unwrap();
        let texts: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        std::fs::remove_dir_all(&folder).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["results.csv", "results.md", "throughput.svg", "ttft.svg", "tpot.svg"]);
        assert_eq!(texts[0].lines().count(), 5);
        assert_eq!(texts[1], EXPECTED);
        // Our two points and the peer's two; no time to a first token of the peer's.
        assert_eq!([&texts[2], &texts[3], &texts[4]].map(|svg| svg.matches("<circle").count()), [4, 2, 3]);
        assert!(texts[2].contains("tokens a second") && texts[2].contains(">64</text>"));
    }

    #[test]
    fn an_open_loop_is_no_sweep() {
        let mut sweep = Sweep::new("x");
        let mut report = report();
        report.options.max_concurrency = None;
        sweep.push(report);
        let error = sweep.write(Path::new("/nowhere/at/all"), &[]).unwrap_err();
        assert!(matches!(error, LoadError::Options { option: "max_concurrency", .. }));
    }
}
