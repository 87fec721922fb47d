//! A report as text.

use std::fmt;

use crate::report::LoadReport;

/// Columns of a line, of a name and of a value, as `vllm bench serve` has them.
const WIDTH: usize = 50;

/// Writes what `vllm bench serve` prints, in its order, with standard deviations.
pub(crate) fn write(report: &LoadReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{:=^WIDTH$}", " Serving Benchmark Result ")?;
    count(f, "Successful requests:", report.completed)?;
    count(f, "Failed requests:", report.failed)?;
    if let Some(max_concurrency) = report.options.max_concurrency {
        count(f, "Maximum request concurrency:", max_concurrency)?;
    }
    if report.options.request_rate.is_finite() {
        number(f, "Request rate configured (RPS):", report.options.request_rate)?;
    }
    number(f, "Benchmark duration (s):", report.duration)?;
    count(f, "Total input tokens:", report.total_input_tokens)?;
    count(f, "Total generated tokens:", report.total_output_tokens)?;
    number(f, "Request throughput (req/s):", report.request_throughput)?;
    number(f, "Output token throughput (tok/s):", report.output_throughput)?;
    number(f, "Peak output token throughput (tok/s):", report.max_output_tokens_per_s)?;
    number(f, "Peak concurrent requests:", report.max_concurrent_requests as f64)?;
    number(f, "Total token throughput (tok/s):", report.total_token_throughput)?;
    let groups = [
        ("Time to First Token", "TTFT", report.ttft_ms),
        ("Time per Output Token (excl. 1st token)", "TPOT", report.tpot_ms),
        ("Inter-token Latency", "ITL", report.itl_ms),
        ("End-to-end Latency", "E2EL", report.e2el_ms),
    ];
    for (title, name, of) in groups {
        writeln!(f, "{title:-^WIDTH$}")?;
        let values = [("Mean", of.mean), ("Median", of.p50), ("Std", of.std), ("P90", of.p90), ("P99", of.p99)];
        for (rank, value) in values {
            number(f, &format!("{rank} {name} (ms):"), value)?;
        }
    }
    write!(f, "{:=<WIDTH$}", "")
}

fn count(f: &mut fmt::Formatter<'_>, name: &str, value: usize) -> fmt::Result {
    writeln!(f, "{name:<40} {value:<10}")
}

fn number(f: &mut fmt::Formatter<'_>, name: &str, value: f64) -> fmt::Result {
    writeln!(f, "{name:<40} {value:<10.2}")
}

#[cfg(test)]
mod tests {
    use crate::report::tests::report;

    const EXPECTED: &str = "\
============ Serving Benchmark Result ============
Successful requests:                     3
Failed requests:                         1
Maximum request concurrency:             2
Request rate configured (RPS):           2.50
Benchmark duration (s):                  2.00
Total input tokens:                      21
Total generated tokens:                  9
Request throughput (req/s):              1.50
Output token throughput (tok/s):         4.50
Peak output token throughput (tok/s):    6.00
Peak concurrent requests:                2.00
Total token throughput (tok/s):          15.00
---------------Time to First Token----------------
Mean TTFT (ms):                          343.33
Median TTFT (ms):                        20.00
Std TTFT (ms):                           464.35
P90 TTFT (ms):                           804.00
P99 TTFT (ms):                           980.40
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          55.67
Median TPOT (ms):                        15.00
Std TPOT (ms):                           66.91
P90 TPOT (ms):                           123.00
P99 TPOT (ms):                           147.30
---------------Inter-token Latency----------------
Mean ITL (ms):                           55.67
Median ITL (ms):                         15.00
Std ITL (ms):                            72.93
P90 ITL (ms):                            150.00
P99 ITL (ms):                            195.00
----------------End-to-end Latency----------------
Mean E2EL (ms):                          454.67
Median E2EL (ms):                        40.00
Std E2EL (ms):                           597.78
P90 E2EL (ms):                           1048.00
P99 E2EL (ms):                           1274.80
==================================================";

    #[test]
    fn a_report_is_laid_out_as_vllm_does() {
        let mut report = report();
        report.options.request_rate = 2.5;
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines.join("\n"), EXPECTED);
        assert!(text.lines().skip(1).filter(|line| line.contains(':')).all(|line| line.len() >= 51));
        // A closed loop has no rate.
        report.options.request_rate = f64::INFINITY;
        assert!(!report.to_string().contains("rate configured"));
        report.options.max_concurrency = None;
        assert!(!report.to_string().contains("Maximum request"));
    }
}
