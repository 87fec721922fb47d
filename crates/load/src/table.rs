//! Runs as rows: CSV for programs, markdown for people.

use std::fmt::Write as _;

use crate::peers::Peer;
use crate::report::LoadReport;

/// The median, between the middle two of an even number; 0 of none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    crate::statistics::percentile(&values, 0.5)
}

/// A row for each run, in the order in which they ran, below a row of names.
pub(crate) fn csv(label: &str, reports: &[LoadReport]) -> String {
    let mut csv = "date,label,model,backend,input_len,output_len,num_images,image_width,image_height,max_concurrency,\
                   num_prompts,seed,completed,failed,duration_s,request_throughput,output_throughput,\
                   total_token_throughput"
        .to_owned();
    for name in ["ttft", "tpot", "itl", "e2el"] {
        for rank in ["mean", "median", "std", "p90", "p99"] {
            let _ = write!(csv, ",{rank}_{name}_ms");
        }
    }
    csv.push('\n');
    for report in reports {
        let (options, shape) = (&report.options, &report.options.shape);
        let [width, height] = shape.image_size;
        let mut fields = vec![report.date.clone(), quoted(label), quoted(&report.model)];
        fields.push(report.api.backend().to_owned());
        fields.extend([shape.input_len, shape.output_len, shape.num_images].map(|len| len.to_string()));
        fields.extend([width, height].map(|side| side.to_string()));
        fields.push(options.max_concurrency.map_or_else(String::new, |concurrency| concurrency.to_string()));
        fields.extend([options.num_prompts.to_string(), options.seed.to_string()]);
        fields.extend([report.completed, report.failed].map(|count| count.to_string()));
        let rates = [report.request_throughput, report.output_throughput, report.total_token_throughput];
        fields.push(format!("{:.4}", report.duration));
        fields.extend(rates.map(|rate| format!("{rate:.4}")));
        for of in [report.ttft_ms, report.tpot_ms, report.itl_ms, report.e2el_ms] {
            fields.extend([of.mean, of.p50, of.std, of.p90, of.p99].map(|ms| format!("{ms:.4}")));
        }
        csv.push_str(&fields.join(","));
        csv.push('\n');
    }
    csv
}

/// A field that may hold a comma or a quote.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// Three tables, engines by concurrencies: the first row is the sweep's, the others are the peers'.
pub(crate) fn markdown(ours: &Peer, reports: &[LoadReport], peers: &[Peer]) -> String {
    let mut text = format!("# Serving benchmark: {}\n\n", cell(&ours.label));
    if let Some(report) = reports.first() {
        let (shape, [width, height]) = (&report.options.shape, report.options.shape.image_size);
        let pictures = match shape.num_images {
            0 => String::new(),
            num => format!(" + {num} picture(s) of {width}x{height}"),
        };
        let (input_len, output_len) = (shape.input_len, shape.output_len);
        let _ = writeln!(
            text,
            "{}, {} tokens of text{pictures}, {} tokens of answer; {}. Columns are requests at once; medians of the runs in \
             results.csv.",
            cell(&report.model),
            input_len,
            output_len,
            report.date
        );
        let failed: usize = reports.iter().map(|report| report.failed).sum();
        if failed > 0 {
            let _ = writeln!(text, "\n{failed} request(s) failed and are in none of the figures.");
        }
    }
    let kinds: [Kind; 3] = [
        ("Output tokens a second", 0, |point| point.output_throughput),
        ("Time to first token, median, ms", 1, |point| point.ttft_ms),
        ("Time per output token, median, ms", 2, |point| point.tpot_ms),
    ];
    for (title, decimals, of) in kinds {
        let _ = writeln!(text, "\n## {title}\n");
        let concurrencies: Vec<usize> = ours.points.iter().map(|point| point.max_concurrency).collect();
        let heads = concurrencies.iter().map(|concurrency| format!(" {concurrency} |"));
        let _ = writeln!(text, "| |{}", heads.collect::<String>());
        let _ = writeln!(text, "| --- |{}", " ---: |".repeat(concurrencies.len()));
        for peer in [ours].into_iter().chain(peers) {
            let cells = concurrencies.iter().map(|concurrency| {
                let point = peer.points.iter().find(|point| point.max_concurrency == *concurrency);
                point.and_then(of).map_or_else(|| " - |".to_owned(), |value| format!(" {value:.decimals$} |"))
            });
            let _ = writeln!(text, "| {} |{}", cell(&peer.label), cells.collect::<String>());
        }
    }
    if !peers.is_empty() {
        text.push_str("\n## Sources\n\nFigures compare on the same model and the same card only.\n\n");
        for peer in peers {
            let _ = writeln!(text, "- {}: {}", cell(&peer.label), cell(&peer.source));
        }
    }
    text
}

/// A table's title, its decimals and its figure.
type Kind = (&'static str, usize, fn(&crate::peers::PeerPoint) -> Option<f64>);

/// Text that doesn't end a table's cell or a line.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn medians() {
        let of = |values: &[f64]| median(values.iter().copied());
        assert_eq!([of(&[]), of(&[2.0]), of(&[9.0, 1.0]), of(&[3.0, 1.0, 2.0])], [0.0, 2.0, 5.0, 2.0]);
    }

    #[test]
    fn every_row_has_every_field() {
        let csv = csv("a \"b\", c", &[report(), report()]);
        let lines: Vec<&str> = csv.lines().collect();
        let num_fields = lines[0].split(',').count();
        assert_eq!((lines.len(), num_fields), (3, 38));
        assert!(
            lines[1].starts_with("20260131-235959,\"a \"\"b\"\", c\",m,openai-chat,5,3,1,8,4,2,4,4,3,1,2.0000,1.5000,")
        );
        // The quoted label has a comma of its own.
        assert!(lines[1..].iter().all(|line| line.split(',').count() == num_fields + 1));
        assert!(lines[1].contains(",343.3333,20.0000,"));
    }
}
