//! What runs beside a request, which pages and pictures it shares, and whether steps are sent off ahead of results, changes no
//! bit of its answer.

mod support;

use foveal_device::Device;
use foveal_types::{Delta, PreparedRequest, TokenOutput};
use support::{Reference, answer};

fn side_by_side(family: &str) {
    let reference = Reference::open(family, Device::cpu(2).unwrap());
    let requests: Vec<PreparedRequest> = reference.golden.cases().iter().map(|case| reference.prepare(case)).collect();
    let alone = reference.engine().max_num_seqs(1).prefix_caching(false).build().unwrap();
    let expected: Vec<Vec<TokenOutput>> = requests.iter().map(|request| answer(&alone, request.clone())).collect();
    for run_ahead in [false, true] {
        // The pages of one long request, shared by all.
        let engine = reference.engine().max_num_batched_tokens(100).run_ahead(run_ahead).build().unwrap();
        for round in ["new", "again"] {
            let streams: Vec<_> = requests.iter().map(|request| engine.generate(request.clone())).collect();
            for ((stream, expected), case) in streams.into_iter().zip(&expected).zip(reference.golden.cases()) {
                let tokens = stream.blocking().filter_map(|delta| match delta.unwrap() {
                    Delta::Token(token) => Some(token),
                    _ => None,
                });
                // `PartialEq` of floats: equal log-probabilities, not close ones.
                assert_eq!(tokens.collect::<Vec<_>>(), *expected, "{family}, {}, {round}", case.name);
            }
        }
        let stats = engine.stats();
        assert!(stats.prefix_hit_tokens > 0, "{stats:?}");
    }
}

#[test]
fn the_small_model() {
    side_by_side("tiny");
}

#[test]
fn windowed_attention_and_absolute_time() {
    side_by_side("qwen2_5_vl");
}

#[test]
fn no_windows_and_no_deepstack() {
    side_by_side("qwen2_vl");
}
