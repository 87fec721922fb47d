//! Many requests at once on the built-in model.

use foveal_device::DeviceKind;
use foveal_runtime::{Model, ModelOptions, ThroughputOptions, built_in_model, throughput};

fn model(options: ModelOptions) -> Model {
    let options = ModelOptions { device: DeviceKind::Cpu, threads: 2, max_model_len: Some(256), ..options };
    Model::load(&built_in_model().unwrap(), &options, |_, _| {}).unwrap()
}

fn options(seed: u64) -> ThroughputOptions {
    ThroughputOptions {
        num_prompts: 6,
        concurrency: 3,
        input_len: 70,
        output_len: 5,
        num_images: 1,
        image_size: [128, 96],
        seed,
    }
}

/// Every request has the lengths that were asked for, and nothing in common with another: neither in its run nor in the next.
#[test]
fn requests_are_of_exact_lengths_and_all_different() {
    let model = model(ModelOptions { max_num_seqs: Some(3), run_ahead: true, ..ModelOptions::default() });
    for seed in [0, 1] {
        let report = throughput(&model, &options(seed), |_| {}).unwrap();
        assert_eq!((report.completed, report.total_output_tokens), (6, 30));
        assert_eq!(report.total_input_tokens, 6 * 70 + report.total_image_tokens);
        assert!(report.total_image_tokens >= 6 * 12);
        assert_eq!((report.cached_tokens, report.cached_pictures), (0, 0));
        assert!(report.ttft_ms.p50 > 0.0 && report.e2el_ms.p99 <= report.duration * 1e3);
    }
    // The same seed again finds its pages: two whole ones of each prompt, with the picture in them.
    let again = throughput(&model, &options(1), |_| {}).unwrap();
    assert_eq!(again.cached_tokens, 6 * 2 * 32, "{again:?}");
}

#[test]
fn what_the_model_does_not_take_is_said() {
    let model = model(ModelOptions::default());
    let too_long = ThroughputOptions { input_len: 300, ..options(0) };
    assert!(throughput(&model, &too_long, |_| {}).unwrap_err().to_string().contains("256"));
    let no_picture = ThroughputOptions { image_size: [100_000, 1], ..options(0) };
    assert!(throughput(&model, &no_picture, |_| {}).is_err());
}
