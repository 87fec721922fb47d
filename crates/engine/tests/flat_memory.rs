//! Requests that never end leave nothing behind: ten thousand of them, each with a picture of its own.

#[path = "support/prompts.rs"]
mod prompts;

use std::sync::Arc;

use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};
use foveal_device::{Device, allocated_bytes};
use foveal_engine::Engine;
use foveal_testkit::{fixtures_dir, gpu};
use foveal_types::{ContentHash, Delta, PreparedRequest};
use foveal_vision::Normalisation;
use prompts::{Piece, prompt};

const NUM_REQUESTS: usize = 10_000;
/// Before this many, caches fill and allocators settle.
const NUM_WARM: usize = 2_000;
/// Callers at once.
const NUM_CALLERS: usize = 16;
/// What the resident memory may grow by: a leak of a picture's 3 KiB a request would be 24 MiB.
const MAX_GROWTH: u64 = 8 << 20;

/// The CPU, and the GPU where there is one.
fn devices() -> Vec<Device> {
    [Device::cpu(2).unwrap()].into_iter().chain(gpu()).collect()
}

fn engine(device: &Device) -> Engine {
    let folder = ModelFolder::open(fixtures_dir().join("tiny")).unwrap();
    Engine::builder()
        .model(ModelConfig::load(&folder).unwrap(), WeightSource::open(&folder).unwrap())
        .normalisation(Normalisation { mean: [0.5; 3], std: [0.5; 3] })
        .device(device.clone())
        .max_model_len(128)
        .max_num_batched_tokens(128)
        .max_num_seqs(8)
        .max_patches(64)
        .encoder_cache_bytes(1 << 18)
        .num_blocks(40)
        .run_ahead(true)
        .build()
        .unwrap()
}

/// Request number `i`: a picture that nobody has seen, and a few words that differ.
fn request(i: usize) -> PreparedRequest {
    // More than a page, so that some of it stays findable.
    let words: Vec<u32> = (0..30).map(|k| 200 + ((i * 31 + k * 7) % 600) as u32).collect();
    let mut request = prompt(&[Piece::Text(&words), Piece::Picture([1, 2, 2], 1), Piece::Text(&words[..4])]);
    let number = (i as u64).to_le_bytes();
    let mut pixels = request.images[0].pixels.bytes().to_vec();
    pixels[..8].copy_from_slice(&number);
    request.images[0].pixels = Arc::new(pixels);
    let mut hash = [7; 32];
    hash[..8].copy_from_slice(&number);
    request.images[0].hash = ContentHash(hash);
    request.sampling.max_tokens = Some(1 + i % 2);
    request.sampling.logprobs = None;
    request
}

fn answer_all(engine: &Engine, numbers: std::ops::Range<usize>) {
    std::thread::scope(|scope| {
        for caller in 0..NUM_CALLERS {
            let numbers = numbers.clone().skip(caller).step_by(NUM_CALLERS);
            scope.spawn(move || {
                for i in numbers {
                    // One of eight callers loses interest after the first token.
                    let mut deltas = engine.generate(request(i)).blocking();
                    let finished = deltas.any(|delta| match delta.unwrap() {
                        Delta::Token(_) => i % 8 == 0,
                        delta => matches!(delta, Delta::Finished { .. }),
                    });
                    assert!(finished);
                }
            });
        }
    });
}

/// Bytes of this process that are in memory; `None` on a system that doesn't say.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[test]
fn ten_thousand_requests_with_fresh_pictures_leave_memory_flat() {
    for device in devices() {
        let engine = engine(&device);
        answer_all(&engine, 0..NUM_WARM);
        let (resident, on_device) = (resident_bytes(), allocated_bytes());
        answer_all(&engine, NUM_WARM..NUM_REQUESTS);
        let (resident_after, on_device_after) = (resident_bytes(), allocated_bytes());
        println!(
            "{device:?}: resident {resident:?} then {resident_after:?}, tensors {on_device} then {on_device_after}"
        );
        assert_eq!(on_device_after, on_device, "tensors");
        if let Some((before, after)) = resident.zip(resident_after) {
            assert!(after.saturating_sub(before) < MAX_GROWTH, "{before} bytes resident, then {after}");
        }
        // Those who lost interest are noticed by the next step at the latest.
        answer_all(&engine, 0..1);
        let stats = engine.stats();
        assert_eq!((stats.running, stats.waiting, stats.kv_pages_used), (0, 0, 0), "{stats:?}");
        assert!(stats.encoder_rows_used <= stats.encoder_rows_total, "{stats:?}");
        engine.shutdown();
    }
}
