//! A GPU whose memory others have taken: what is refused, what goes on, and that all is well once they give it back. A test program
//! of its own: nobody else may free memory meanwhile. Without a GPU it says `skipped`; with `FOVEAL_REQUIRE_GPU` set, it fails
//! instead.

mod support;

use foveal_device::{DType, Device, DeviceError, Tensor};
use foveal_engine::Engine;
use foveal_testkit::gpu;
use foveal_types::{Delta, Error, PreparedRequest, TokenOutput};
use support::{Reference, answer};

/// Less than what anything here asks for.
const GRAIN_BYTES: usize = 1 << 14;

/// Takes all of a GPU's memory, in pieces that are halved when none is left.
fn take_all(device: &Device) -> Vec<Tensor> {
    let mut taken = Vec::new();
    let mut len_bytes = 16 << 30;
    while len_bytes >= GRAIN_BYTES {
        match Tensor::zeros(device, DType::U8, &[len_bytes]) {
            Ok(tensor) => taken.push(tensor),
            Err(DeviceError::OutOfMemory { .. }) => len_bytes /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    taken
}

/// An answer's tokens, or what it ended with.
fn outcome(engine: &Engine, request: PreparedRequest) -> Result<Vec<TokenOutput>, Error> {
    let mut tokens = Vec::new();
    for delta in engine.generate(request).blocking() {
        if let Delta::Token(token) = delta? {
            tokens.push(token);
        }
    }
    Ok(tokens)
}

#[test]
fn memory_that_is_missing_is_the_requests_failure_and_not_the_engines() {
    let Some(device) = gpu() else { return };
    let reference = Reference::open("tiny", device.clone());
    let request = |case: &str| reference.prepare(reference.golden.case(case));
    let penalised = || {
        let mut request = request("text_count");
        request.sampling.presence_penalty = 0.5;
        request
    };
    // What a cache has may have been computed in other chunks.
    let build = || reference.engine().prefix_caching(false).build();
    let engine = build().unwrap();
    let expected = ["text_count", "image_0"].map(|case| answer(&engine, request(case)));

    // The tables for penalties are taken when the first such request comes.
    let taken = take_all(&device);
    let error = outcome(&engine, penalised()).unwrap_err();
    assert!(matches!(&error, Error::Exhausted(_)), "{error:?}");
    assert!(error.to_string().contains("try again later"), "{error}");
    assert!(engine.stopped().is_none());
    assert_eq!(["text_count", "image_0"].map(|case| answer(&engine, request(case))), expected);
    let refused = build().unwrap_err();
    assert!(refused.to_string().contains("memory"), "{refused}");

    drop(taken);
    assert_eq!(answer(&engine, penalised()), answer(&build().unwrap(), penalised()));
    assert_eq!(["text_count", "image_0"].map(|case| answer(&engine, request(case))), expected);
    assert_eq!(engine.stats().running, 0);
}
