//! A picture's file: what its header says, and, of a small one, its pixels, within the memory that its limits stand for.
#![no_main]

use foveal_processor::{ImageInput, Limits, decode, probe};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The longest side of a picture that is decoded, in pixels.
const MAX_SIDE: u32 = 256;
/// The most memory that a picture within the limits may take: several times its pixels, and the decoder's tables.
const MAX_MEMORY_BYTES: usize = 2 << 20;
/// What a lossy WebP may take besides: one of its partitions, as long as it is declared (in 24 bits).
const MAX_PARTITION_BYTES: usize = 1 << 24;
/// What a lossless WebP may take besides, for each of its bytes: tables of prefix codes, 4 KiB for some ten bytes.
const MAX_TABLE_BYTES_PER_BYTE: usize = 512;

fuzz_target!(|file: &[u8]| {
    let limits =
        Limits { max_image_bytes: 1 << 16, max_image_pixels: u64::from(MAX_SIDE * MAX_SIDE), ..Limits::default() };
    let input = ImageInput::Bytes(file.into());
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();

    if let Ok((width, height)) = probe(&input, &limits)
        && width.max(height) <= MAX_SIDE
        && let Ok(picture) = decode(&input, &limits)
    {
        assert_eq!((picture.width, picture.height), (width, height));
        assert_eq!(picture.pixels.len() as u64, u64::from(width) * u64::from(height) * 3);
    }
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let max = max_memory_bytes(file);
    assert!(taken <= max, "{taken} bytes of memory, at most {max} are allowed");
});

fn max_memory_bytes(file: &[u8]) -> usize {
    let of_webp = MAX_PARTITION_BYTES + MAX_TABLE_BYTES_PER_BYTE * file.len();
    MAX_MEMORY_BYTES + if file.starts_with(b"RIFF") { of_webp } else { 0 }
}
