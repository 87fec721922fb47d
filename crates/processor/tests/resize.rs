//! Sizes and resized pixels against HF and torchvision.

mod common;

use common::{crc32, noise, reference, u32s};
use foveal_processor::{PictureError, PixelBudget, resize_rgb, smart_resize, smart_resize_video};
use proptest::prelude::*;

#[test]
fn resized_noise_equals_torchvision_bit_for_bit() {
    for case in reference("resize.json").as_array().expect("cases") {
        let (source, target) = (u32s(&case["source"]), u32s(&case["target"]));
        let pixels = noise((source[0] * source[1] * 3) as usize);
        let got = resize_rgb(&pixels, (source[0], source[1]), (target[0], target[1]));
        let first: Vec<u32> = got.iter().take(12).map(|&b| u32::from(b)).collect();
        assert_eq!(first, u32s(&case["first"]), "{source:?} -> {target:?}");
        assert_eq!(u64::from(crc32(&got)), case["crc32"], "{source:?} -> {target:?}");
    }
}

#[test]
fn sizes_equal_hfs() {
    let table = reference("smart_resize.json");
    let size = |v: &serde_json::Value| (!v.is_null()).then(|| (u32s(v)[0], u32s(v)[1]));
    let number = |v: &serde_json::Value| v.as_u64().expect("a number");
    for row in table["stills"].as_array().expect("rows") {
        let n: Vec<u64> = (0..5).map(|i| number(&row[i])).collect();
        let budget = PixelBudget { min_pixels: n[3], max_pixels: n[4] };
        let got = smart_resize(n[0] as u32, n[1] as u32, n[2] as u32, budget);
        assert_eq!(got.ok(), size(&row[5]), "{row}");
    }
    for row in table["videos"].as_array().expect("rows") {
        let n: Vec<u64> = (0..7).map(|i| number(&row[i])).collect();
        let budget = PixelBudget { min_pixels: n[5], max_pixels: n[6] };
        let got = smart_resize_video(n[0] as u32, n[1] as u32, n[2] as u32, n[3] as u32, n[4] as u32, budget);
        assert_eq!(got.ok(), size(&row[7]), "{row}");
    }
}

#[test]
fn strips_and_empty_pictures_are_refused() {
    let budget = PixelBudget { min_pixels: 3136, max_pixels: 12_845_056 };
    assert_eq!(smart_resize(8, 2010, 28, budget), Err(PictureError::AspectRatio { width: 2010, height: 8 }));
    assert_eq!(smart_resize(10, 2000, 28, budget), Ok((28, 812)));
    assert_eq!(smart_resize(0, 5, 28, budget), Err(PictureError::Empty { width: 5, height: 0 }));
    let any = PixelBudget { min_pixels: 0, max_pixels: 1 << 30 };
    assert_eq!(smart_resize(4, 100, 28, any), Err(PictureError::BelowOneCell { width: 100, height: 4, factor: 28 }));
}

/// `smart_resize` in whole numbers only, where those decide: the nearest multiple, a half going to the even one.
fn nearest_multiple(side: u64, factor: u64) -> u64 {
    let (whole, rest) = (side / factor, side % factor);
    let up = 2 * rest > factor || (2 * rest == factor && whole % 2 == 1);
    (whole + u64::from(up)) * factor
}

proptest! {
    #![proptest_config(common::cases(256))]
    #[test]
    fn sizes_keep_their_promises(h in 1_u32..5000, w in 1_u32..5000, factor in prop::sample::select(vec![28_u32, 32, 30]), lo in 1_u64..200_000, span in 0_u64..20_000_000) {
        let cell = u64::from(factor) * u64::from(factor);
        let budget = PixelBudget { min_pixels: lo, max_pixels: lo + span + 4 * cell };
        let aspect_ok = h.max(w) <= 200 * h.min(w);
        match smart_resize(h, w, factor, budget) {
            Ok((rh, rw)) => {
                prop_assert!(aspect_ok);
                prop_assert!(rh % factor == 0 && rw % factor == 0 && rh > 0 && rw > 0);
                let pixels = u64::from(rh) * u64::from(rw);
                // A side that would vanish is held at one cell, so only then the upper limit may be passed.
                prop_assert!(pixels <= budget.max_pixels || rh == factor || rw == factor);
                prop_assert!(pixels >= budget.min_pixels || pixels + 2 * u64::from(factor) * u64::from(rh.max(rw)) + cell > budget.min_pixels);
                let (nh, nw) = (nearest_multiple(h.into(), factor.into()), nearest_multiple(w.into(), factor.into()));
                if (budget.min_pixels..=budget.max_pixels).contains(&(nh * nw)) {
                    prop_assert_eq!((u64::from(rh), u64::from(rw)), (nh, nw));
                } else if nh * nw < budget.min_pixels {
                    prop_assert!(pixels >= budget.min_pixels);
                }
                prop_assert_eq!(smart_resize(w, h, factor, budget), Ok((rw, rh)));
            }
            Err(PictureError::AspectRatio { .. }) => prop_assert!(!aspect_ok),
            Err(PictureError::BelowOneCell { .. }) => {
                prop_assert!(nearest_multiple(h.into(), factor.into()) == 0 || nearest_multiple(w.into(), factor.into()) == 0);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn resizing_a_flat_picture_changes_no_value(h in 1_u32..60, w in 1_u32..60, th in 1_u32..60, tw in 1_u32..60, colour: [u8; 3]) {
        let pixels: Vec<u8> = (0..h * w).flat_map(|_| colour).collect();
        let got = resize_rgb(&pixels, (h, w), (th, tw));
        prop_assert_eq!(got.len() as u32, th * tw * 3);
        // The 16-bit weights of a window may sum to one unit more or less per tap.
        prop_assert!(got.chunks_exact(3).all(|p| p.iter().zip(&colour).all(|(a, b)| a.abs_diff(*b) <= 1)));
    }
}
