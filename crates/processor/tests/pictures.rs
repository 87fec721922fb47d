//! Decoded pictures against Pillow's.

mod common;

use std::sync::Arc;

use common::{crc32, reference};
use foveal_processor::{ImageInput, Limits, PictureError, RgbPicture, decode, probe};
use serde_json::Value;

fn decode_bytes(bytes: Vec<u8>) -> Result<RgbPicture<'static>, PictureError> {
    let input = ImageInput::Bytes(bytes.into());
    let RgbPicture { width, height, pixels } = decode(&input, &Limits::default())?;
    Ok(RgbPicture { width, height, pixels: pixels.into_owned().into() })
}

/// The largest and the mean distance of two equally large pictures.
fn distance(got: &RgbPicture<'_>, want: &RgbPicture<'_>) -> (u8, f64) {
    assert_eq!((got.width, got.height), (want.width, want.height));
    let each = || got.pixels.iter().zip(want.pixels.iter()).map(|(a, b)| a.abs_diff(*b));
    (each().max().unwrap_or(0), each().map(f64::from).sum::<f64>() / got.pixels.len() as f64)
}

/// What a name's format may differ by: the largest and the mean level.
fn tolerance(name: &str) -> (u8, f64) {
    match name {
        // Another chroma upsampling and inverse transform than libjpeg-turbo's.
        n if n.ends_with(".jpg") => (4, 0.5),
        _ => (0, 0.0),
    }
}

#[test]
fn every_format_and_mode_gives_pillows_pixels() {
    let folder = common::reference_path("pictures");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder of pictures")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("an ASCII name"))
        .filter(|name| !name.ends_with(".rgb.png"))
        .collect();
    names.sort();
    assert!(names.len() > 37, "{names:?}");
    let mut wrong = Vec::new();
    for name in names {
        let read = |file: &str| decode_bytes(std::fs::read(folder.join(file)).expect(file)).expect(file);
        let (max, mean) = distance(&read(&name), &read(&format!("{name}.rgb.png")));
        let (max_allowed, mean_allowed) = tolerance(&name);
        eprintln!("{name}: largest difference {max}, mean {mean:.3}");
        if max > max_allowed || mean > mean_allowed {
            wrong.push(format!("{name}: {max}, {mean:.3}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn public_pictures_decode_as_pillow_does_or_are_refused() {
    let Some(folder) = common::assets("images") else { return };
    let expected: Value = reference("public_pictures.json");
    for (name, want) in expected.as_object().expect("an object") {
        let result = decode_bytes(std::fs::read(folder.join(name)).expect(name));
        if want.is_null() {
            let error = result.expect_err(name);
            eprintln!("{name}: {error}");
            continue;
        }
        let got = result.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(u64::from(got.width), want["width"], "{name}");
        assert_eq!(u64::from(got.height), want["height"], "{name}");
        let (max_allowed, mean_allowed) = tolerance(name);
        if max_allowed == 0 {
            assert_eq!(u64::from(crc32(&got.pixels)), want["crc32"], "{name}");
        }
        let step = want["step"].as_u64().expect("a step") as usize;
        let samples = want["samples"].as_array().expect("samples");
        let differences: Vec<u64> = got
            .pixels
            .iter()
            .step_by(step)
            .zip(samples)
            .map(|(&g, w)| u64::from(g).abs_diff(w.as_u64().expect("a byte")))
            .collect();
        assert_eq!(differences.len(), samples.len());
        let max = differences.iter().max().copied().unwrap_or(0);
        let mean = differences.iter().sum::<u64>() as f64 / differences.len() as f64;
        eprintln!("{name}: largest difference {max}, mean {mean:.3} of {} samples", samples.len());
        assert!(max <= u64::from(max_allowed) && mean <= mean_allowed, "{name}: {max}, {mean}");
    }
}

#[test]
fn a_jpeg_cut_anywhere_is_called_truncated_or_damaged() {
    let bytes = std::fs::read(common::reference_path("pictures/420.jpg")).expect("420.jpg");
    for end in (2..bytes.len() - 1).step_by(7) {
        let error = decode_bytes(bytes[..end].to_vec()).expect_err("a cut JPEG");
        assert!(
            matches!(
                error,
                PictureError::Truncated { .. } | PictureError::Undecodable { .. } | PictureError::UnknownFormat
            ),
            "{end}: {error:?}"
        );
    }
    let in_scan = decode_bytes(bytes[..bytes.len() * 9 / 10].to_vec()).expect_err("a cut JPEG");
    assert_eq!(in_scan, PictureError::Truncated { format: "JPEG" });
}

#[test]
fn cut_and_damaged_files_never_panic() {
    for name in
        ["rgba.png", "palette.gif", "lossy_alpha.webp", "lossless.webp", "palette.bmp", "progressive.jpg", "rgb16.png"]
    {
        let bytes = std::fs::read(common::reference_path("pictures").join(name)).expect(name);
        for at in (0..bytes.len()).step_by(bytes.len() / 97 + 1) {
            let _ = decode_bytes(bytes[..at].to_vec());
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x5A;
            let _ = decode_bytes(damaged);
        }
    }
}

/// One pixel of a palette of so many bytes.
fn paletted_png(palette_bytes: usize) -> Vec<u8> {
    let palette = vec![0x80; palette_bytes];
    // Two bytes, stored, between zlib's header and its checksum: a row's filter and its pixel.
    let row = [0x78, 0x01, 0x01, 0x02, 0x00, 0xFD, 0xFF, 0x00, 0x00, 0x00, 0x02, 0x00, 0x01];
    let header = [0, 0, 0, 1, 0, 0, 0, 1, 8, 3, 0, 0, 0];
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, data) in
        [(b"IHDR", &header[..]), (b"PLTE", &palette), (b"tRNS", &[0x40]), (b"IDAT", &row), (b"IEND", &[])]
    {
        let chunk = [&name[..], data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&chunk);
        file.extend(crc32(&chunk).to_be_bytes());
    }
    file
}

#[test]
fn a_palette_that_ends_within_an_entry_is_damaged() {
    for palette_bytes in 1..16 {
        let decoded = decode_bytes(paletted_png(palette_bytes));
        match palette_bytes % 3 {
            0 => assert_eq!(decoded.unwrap().pixels.as_ref(), [0x80; 3]),
            _ => assert_eq!(decoded.unwrap_err(), PictureError::Undecodable { format: "PNG" }, "{palette_bytes}"),
        }
    }
}

/// The picture with its first scan, which gives the lowest frequency, written `times` times: the pixels stay the same.
fn with_first_scan_repeated(jpeg: &[u8], times: usize) -> Vec<u8> {
    let is_marker = |at: &usize| jpeg[*at] == 0xFF && !matches!(jpeg[at + 1], 0 | 0xFF | 0xD0..=0xD7);
    let start = (0..jpeg.len() - 1).find(|&at| jpeg[at..].starts_with(&[0xFF, 0xDA])).expect("a scan");
    let end = (start + 2..jpeg.len() - 1).find(is_marker).expect("the next marker");
    [&jpeg[..start], &jpeg[start..end].repeat(times), &jpeg[end..]].concat()
}

#[test]
fn a_jpeg_has_a_hundred_scans_at_most() {
    let bytes = std::fs::read(common::reference_path("pictures/progressive.jpg")).expect("progressive.jpg");
    let num_scans = bytes.windows(2).filter(|pair| pair == &[0xFF, 0xDA]).count();
    let repeated = |total: usize| decode_bytes(with_first_scan_repeated(&bytes, total - num_scans + 1));
    let plain = decode_bytes(bytes.clone());
    assert!(plain.is_ok() && repeated(100) == plain);
    for total in [101, 5000] {
        assert_eq!(repeated(total), Err(PictureError::TooManyScans { max_scans: 100 }));
    }
    // The decoder library doesn't count the scans of a file that isn't progressive.
    let baseline = std::fs::read(common::reference_path("pictures/420.jpg")).expect("420.jpg");
    assert!(decode_bytes(with_first_scan_repeated(&baseline, 100)).is_ok());
    let error = decode_bytes(with_first_scan_repeated(&baseline, 101));
    assert_eq!(error, Err(PictureError::TooManyScans { max_scans: 100 }));
}

#[test]
fn limits_hold_before_decoding() {
    let bytes: Arc<[u8]> = std::fs::read(common::reference_path("pictures/rgb.png")).expect("rgb.png").into();
    let input = ImageInput::Bytes(Arc::clone(&bytes));
    let few_pixels = Limits { max_image_pixels: 61 * 46 - 1, ..Limits::default() };
    assert!(matches!(probe(&input, &few_pixels), Err(PictureError::TooManyPixels { pixels: 2806, .. })));
    assert!(matches!(decode(&input, &few_pixels), Err(PictureError::TooManyPixels { .. })));
    let few_bytes = Limits { max_image_bytes: bytes.len() - 1, ..Limits::default() };
    assert!(matches!(probe(&input, &few_bytes), Err(PictureError::TooManyBytes { .. })));
    let exact = Limits { max_image_pixels: 61 * 46, max_image_bytes: bytes.len(), ..Limits::default() };
    assert_eq!(probe(&input, &exact), Ok((61, 46)));
    let raw = ImageInput::Rgb { width: 2, height: 2, pixels: vec![0; 11].into() };
    assert!(matches!(decode(&raw, &exact), Err(PictureError::RawSize { expected_bytes: 12, .. })));
}

#[test]
fn a_header_that_declares_a_huge_picture_is_refused_by_its_size() {
    // A PNG whose header says 60000 x 60000, without any pixel data behind it.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    let header = [0_u8, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60, 8, 2, 0, 0, 0];
    png.extend(header);
    png.extend(crc32(&[b"IHDR".as_slice(), &header].concat()).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT");
    png.extend(crc32(b"IDAT").to_be_bytes());
    let error = decode_bytes(png).expect_err("a bomb");
    assert!(matches!(error, PictureError::TooManyPixels { pixels: 3_600_000_000, .. }), "{error:?}");
}
