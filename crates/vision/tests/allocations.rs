//! What loading and encoding allocate. Alone in its program: the counters are the process's.

mod support;

use foveal_device::{allocated_bytes, allocation_count};
use foveal_mrope::GridThw;
use foveal_vision::{Patches, VisionInput};

use support::{FAMILIES, load, noise, output};

#[test]
fn weights_stay_in_place_and_encoding_allocates_no_tensor() {
    for family in FAMILIES {
        let before = allocated_bytes();
        let model = load(family);
        let config = &model.config;
        let still_convolution = config.hidden_size * config.patch_len() / config.temporal_patch_size;
        let joined_biases = if config.gated_mlp { config.depth * 2 * config.intermediate_size } else { 0 };
        let copied = size_of::<f32>() * (still_convolution + joined_biases);
        assert_eq!(allocated_bytes() - before, copied as u64, "{family}");

        let still = GridThw { t: 1, h: 8, w: 6 };
        let video = GridThw { t: 2, h: 4, w: 10 };
        let pixels = noise(1, still.num_patches() * model.config.patch_len() / model.config.temporal_patch_size);
        let frames = noise(2, video.num_patches() * model.config.patch_len());
        let inputs = [
            VisionInput { grid: still, patches: Patches::Still(&pixels) },
            VisionInput { grid: video, patches: Patches::Video(&frames) },
        ];
        let mut workspace = model.workspace(&inputs);
        let mut tensors = model.outputs([still, video]);
        let before = allocation_count();
        for _ in 0..2 {
            model.tower.encode(model.device.stream(), &inputs, &mut workspace, output(&mut tensors)).unwrap();
        }
        assert_eq!(allocation_count(), before, "{family}");
    }
}
