//! Features against HF transformers 5.17 in float32.

mod support;

use std::fs;

use foveal_mrope::GridThw;
use foveal_processor::{ImageInput, Limits, decode, resize_rgb};
use foveal_testkit::{Golden, max_abs_relative_to_max};
use foveal_vision::{Patches, VisionInput};

use support::{FAMILIES, Features, Loaded, load};

/// Share of the reference's largest value that a feature can be off: ten times what float32 sums in another order give.
const TOLERANCE: f64 = 2e-5;

/// Compares a batch's features with the reference's `{case}.{embeds_name}` and `{case}.deepstack.i`, which hold every
/// `step`-th token.
fn compare(got: &Features, golden: &Golden, case: &str, embeds_name: &str, step: usize) {
    let names = (0..got.deepstack.len()).map(|level| format!("{case}.deepstack.{level}"));
    let names = [format!("{case}.{embeds_name}")].into_iter().chain(names);
    for (name, features) in names.zip([&got.embeds].into_iter().chain(&got.deepstack)) {
        let reference = golden.array(&name);
        let kept: Vec<f32> = features.chunks(reference.shape[1]).step_by(step).flatten().copied().collect();
        let error = max_abs_relative_to_max(&kept, &reference.values);
        eprintln!("{name}: off by {error:.1e} of the largest value");
        assert!(error < TOLERANCE, "{name}: off by {error:e} of the largest value");
    }
    let is_level = |name: &&String| name.starts_with(&format!("{case}.deepstack."));
    assert_eq!(golden.array_names().iter().filter(is_level).count(), got.deepstack.len(), "{case}");
}

#[test]
fn videos_are_the_references() {
    for family in FAMILIES {
        let (model, golden) = (load(family), Golden::open(family));
        let grid = GridThw { t: 2, h: 4, w: 6 };
        let rows = golden.array("video.pixel_values").values;
        eprintln!("{family}");
        compare(&model.encode(&[VisionInput { grid, patches: Patches::Rows(&rows) }]), &golden, "video", "embeds", 1);
    }
}

/// The patches of one temporal copy of a reference picture, resized to the reference's grid: `[h * w, C, P, P]`, merge
/// cell by merge cell.
fn still(model: &Loaded, image: &str, grid: GridThw) -> Vec<u8> {
    let bytes = fs::read(Golden::image(image)).unwrap();
    let input = ImageInput::Bytes(bytes.into());
    let picture = decode(&input, &Limits::default()).unwrap();
    let patch = model.config.patch_size;
    let (height, width) = (grid.h as usize * patch, grid.w as usize * patch);
    let size = (picture.height, picture.width);
    let pixels = resize_rgb(&picture.pixels, size, (height as u32, width as u32)); // [height, width, C]
    let merge = model.config.spatial_merge_size;
    let mut out = Vec::with_capacity(pixels.len());
    for (top, left) in
        (0..height).step_by(merge * patch).flat_map(|y| (0..width).step_by(merge * patch).map(move |x| (y, x)))
    {
        for (row, column) in (0..merge).flat_map(|row| (0..merge).map(move |column| (row, column))) {
            for channel in 0..3 {
                for (y, x) in (0..patch).flat_map(|y| (0..patch).map(move |x| (y, x))) {
                    let (y, x) = (top + row * patch + y, left + column * patch + x);
                    out.push(pixels[(y * width + x) * 3 + channel]);
                }
            }
        }
    }
    out
}

#[test]
fn pictures_are_the_references() {
    for family in FAMILIES {
        let (model, golden) = (load(family), Golden::open(family));
        eprintln!("{family}");
        for case in golden.cases().iter().filter(|case| !case.images.is_empty()) {
            let grids: Vec<GridThw> =
                case.image_grid_thw.iter().map(|grid| GridThw::from(grid.map(|side| side as u32))).collect();
            let pixels: Vec<Vec<u8>> =
                case.images.iter().zip(&grids).map(|(image, grid)| still(&model, image, *grid)).collect();
            let inputs: Vec<_> = grids
                .iter()
                .zip(&pixels)
                .map(|(&grid, pixels)| VisionInput { grid, patches: Patches::Still(pixels) })
                .collect();
            compare(&model.encode(&inputs), &golden, &case.name, "image_embeds", 3);
        }
    }
}
