//! What others have measured.

use std::path::Path;

use serde::Deserialize;

use crate::error::LoadError;
use crate::options::RequestShape;

/// The figures of others at one workload, as they were published or measured.
const PUBLISHED: &str = include_str!("../data/published.json");

/// Another engine's figures, to be shown beside a [`Sweep`](crate::Sweep)'s.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Peer {
    /// The engine and its version.
    pub label: String,
    /// Where the figures come from: card, date, who measured, and what is special about them.
    pub source: String,
    /// One for each number of requests at once.
    pub points: Vec<PeerPoint>,
}

/// Figures at one concurrency.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct PeerPoint {
    /// Requests at once.
    pub max_concurrency: usize,
    /// Tokens of answers a second.
    pub output_throughput: Option<f64>,
    /// Milliseconds to the first token.
    pub ttft_ms: Option<f64>,
    /// Milliseconds for each token behind the first.
    pub tpot_ms: Option<f64>,
}

#[derive(Deserialize)]
struct Published {
    workload: Workload,
    peers: Vec<PublishedPeer>,
}

#[derive(Deserialize)]
struct Workload {
    model: String,
    input_len: usize,
    output_len: usize,
    num_images: usize,
    image_size: [u32; 2],
}

#[derive(Deserialize)]
struct PublishedPeer {
    label: String,
    card: String,
    date: String,
    source: String,
    points: Vec<PeerPoint>,
}

/// A line of a results file, of this crate or of vLLM.
#[derive(Deserialize)]
struct SavedResult {
    date: String,
    model_id: String,
    max_concurrency: Option<usize>,
    output_throughput: f64,
    median_ttft_ms: f64,
    median_tpot_ms: f64,
}

impl Peer {
    /// The published figures that come with this crate, for requests of this shape; none for others. They say which model and
    /// which card they are of: only the same ones compare.
    ///
    /// # Errors
    /// None, unless the crate's own data are broken.
    pub fn published(shape: &RequestShape) -> Result<Vec<Self>, LoadError> {
        let file = Path::new("published.json");
        let Published { workload, peers } = serde_json::from_str(PUBLISHED)
            .map_err(|error| LoadError::File { path: file.to_owned(), reason: error.to_string() })?;
        let lens = [workload.input_len, workload.output_len, workload.num_images];
        if lens != [shape.input_len, shape.output_len, shape.num_images] || workload.image_size != shape.image_size {
            return Ok(Vec::new());
        }
        let model = workload.model;
        let peers = peers.into_iter().map(|PublishedPeer { label, card, date, source, points }| Self {
            label,
            source: format!("{model}, {card}, {date}: {source}"),
            points,
        });
        Ok(peers.collect())
    }

    /// The results in a file that `--save-result` wrote, of this crate or of `vllm bench serve`: one JSON object, or one a line.
    /// Several of one concurrency become their median.
    ///
    /// # Errors
    /// [`LoadError::File`] for what can't be read, has no results, or has results without a concurrency.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let bad = |reason: &str| LoadError::File { path: path.to_owned(), reason: reason.to_owned() };
        let text = std::fs::read_to_string(path).map_err(|error| LoadError::file(path, &error))?;
        let results: Result<Vec<SavedResult>, _> = serde_json::Deserializer::from_str(&text).into_iter().collect();
        let results =
            results.map_err(|_| bad("it holds something else than results of `bench serve --save-result`"))?;
        let Some(first) = results.first() else { return Err(bad("it holds no results")) };
        let source = format!("{} of {}", first.model_id, first.date);
        let mut concurrencies = Vec::new();
        for result in &results {
            concurrencies.push(result.max_concurrency.ok_or_else(|| bad("a result has no max_concurrency"))?);
        }
        concurrencies.sort_unstable();
        concurrencies.dedup();
        let points = concurrencies.into_iter().map(|concurrency| {
            let runs = || results.iter().filter(|result| result.max_concurrency == Some(concurrency));
            let median = |of: fn(&SavedResult) -> f64| Some(crate::table::median(runs().map(of)));
            PeerPoint {
                max_concurrency: concurrency,
                output_throughput: median(|result| result.output_throughput),
                ttft_ms: median(|result| result.median_ttft_ms),
                tpot_ms: median(|result| result.median_tpot_ms),
            }
        });
        let label = path.file_stem().map_or_else(|| "other".to_owned(), |stem| stem.to_string_lossy().into_owned());
        Ok(Self { label, source, points: points.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::ImageFormat;
    use crate::report::tests::report;

    const SHAPE: RequestShape = RequestShape {
        input_len: 1000,
        output_len: 1000,
        num_images: 1,
        image_size: [512, 512],
        image_format: ImageFormat::Jpeg,
    };

    #[test]
    fn published_figures_are_of_one_shape() {
        let peers = Peer::published(&SHAPE).unwrap();
        assert!(peers.len() >= 3);
        for peer in &peers {
            assert!(peer.points.is_sorted_by_key(|point| point.max_concurrency));
            assert!(peer.source.starts_with("Qwen3-VL-8B"));
        }
        // A picture less, or another size of it, is another workload.
        assert!(Peer::published(&RequestShape { num_images: 0, ..SHAPE }).unwrap().is_empty());
        assert!(Peer::published(&RequestShape { image_size: [512, 256], ..SHAPE }).unwrap().is_empty());
    }

    #[test]
    fn saved_results_are_read_back() {
        let path = std::env::temp_dir().join(format!("foveal-load-peer-{}.json", std::process::id()));
        let mut reports = [report(), report(), report()];
        reports[1].output_throughput = 100.0;
        reports[2].options.max_concurrency = Some(1);
        let lines: Vec<String> = reports.iter().map(|report| report.to_json(true).to_string()).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let peer = Peer::read(&path).unwrap();
        std::fs::write(&path, "{}").unwrap();
        let other = Peer::read(&path);
        std::fs::remove_file(&path).unwrap();
        let throughputs: Vec<_> = peer.points.iter().map(|p| (p.max_concurrency, p.output_throughput)).collect();
        assert_eq!(throughputs, [(1, Some(4.5)), (2, Some(52.25))]);
        assert_eq!(peer.points[0].ttft_ms, Some(20.0));
        assert!(peer.source.contains("20260131"));
        assert!(other.unwrap_err().to_string().contains("something else"));
        assert!(Peer::read(Path::new("/nowhere.json")).is_err());
    }
}
