//! What must hold for every batch, whatever the weights.

mod support;

use foveal_checkpoint::{VisionConfig, WindowConfig};
use foveal_device::{DType, Tensor};
use foveal_mrope::GridThw;
use foveal_testkit::max_abs_relative_to_max;
use foveal_vision::{Normalisation, Patches, VisionError, VisionInput, VisionTower};

use support::{FAMILIES, Features, Loaded, load, noise, output};

/// Sizes on and off the window grid, tall, wide, smallest.
const GRIDS: [[u32; 3]; 5] = [[1, 8, 12], [1, 2, 2], [1, 10, 6], [1, 4, 26], [1, 16, 16]];

fn still_len(model: &Loaded, grid: GridThw) -> usize {
    grid.num_patches() * model.config.patch_len() / model.config.temporal_patch_size
}

fn stills(model: &Loaded) -> Vec<(GridThw, Vec<u8>)> {
    let grids = GRIDS.into_iter().map(GridThw::from);
    grids.zip(1..).map(|(grid, seed)| (grid, noise(seed, still_len(model, grid)))).collect()
}

fn inputs(pictures: &[(GridThw, Vec<u8>)]) -> Vec<VisionInput<'_>> {
    pictures.iter().map(|(grid, bytes)| VisionInput { grid: *grid, patches: Patches::Still(bytes) }).collect()
}

/// The features of several batches, one after the other.
fn concat(parts: impl IntoIterator<Item = Features>) -> Features {
    parts
        .into_iter()
        .reduce(|mut all, part| {
            all.embeds.extend(part.embeds);
            for (all, part) in all.deepstack.iter_mut().zip(part.deepstack) {
                all.extend(part);
            }
            all
        })
        .unwrap()
}

/// A video of `grid` as its rows; its frames all differ.
fn video(model: &Loaded, grid: GridThw, seed: u64) -> Vec<u8> {
    noise(seed, grid.num_patches() * model.config.patch_len())
}

/// The still's patches with every temporal slice the same: `[n, C, P * P]` to `[n, C, T, P * P]`.
fn doubled(model: &Loaded, still: &[u8]) -> Vec<u8> {
    let plane = model.config.patch_size * model.config.patch_size;
    still.chunks(plane).flat_map(|plane| plane.repeat(model.config.temporal_patch_size)).collect()
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    for family in FAMILIES {
        let model = load(family);
        let pictures = stills(&model);
        let inputs = inputs(&pictures);
        let alone: Vec<Features> = inputs.iter().map(|input| model.encode(&[*input])).collect();
        assert!(alone.iter().flat_map(|f| &f.embeds).all(|v| v.is_finite()), "{family}");
        assert!(model.encode(&inputs) == concat(alone.clone()), "{family}: together and alone differ");

        let order = [3, 0, 4, 1, 2];
        let shuffled: Vec<_> = order.iter().map(|&i| inputs[i]).collect();
        let expected = concat(order.iter().map(|&i| alone[i].clone()));
        assert!(model.encode(&shuffled) == expected, "{family}: the order matters");
    }
}

/// What is kept of a grid is what is derived from it.
#[test]
fn kept_geometry_changes_nothing() {
    for family in FAMILIES {
        let model = load(family);
        let pictures = stills(&model);
        let inputs = inputs(&pictures);
        let (mut kept, mut anew) = (model.workspace(&inputs), model.workspace(&inputs));
        anew.set_geometry_capacity(0);
        let expected = model.encode_in(&mut kept, &inputs);
        for workspace in [&mut kept, &mut anew] {
            assert!(model.encode_in(workspace, &inputs) == expected, "{family}");
        }
        let n = inputs.len() as u64;
        assert_eq!([kept.geometry_stats().hits, anew.geometry_stats().hits], [n, 0], "{family}");
        assert_eq!([kept.geometry_stats().misses, anew.geometry_stats().misses], [n, n], "{family}");
    }
}

/// Grids alone make no batch that could be launched.
#[test]
fn a_description_is_no_batch() {
    let model = load("tiny");
    let grid = GridThw { t: 1, h: 4, w: 6 };
    let bytes = noise(1, still_len(&model, grid));
    let inputs = [VisionInput { grid, patches: Patches::Still(&bytes) }];
    let (stream, mut workspace) = (model.device.stream(), model.workspace(&inputs));
    model.tower.load_inputs(stream, &inputs, &mut workspace).unwrap();
    let loaded = workspace.shape();
    assert_eq!(model.tower.describe(stream, &[grid], &mut workspace).unwrap(), loaded);
    let error = model.tower.launch(stream, &mut workspace, output(&mut model.outputs([grid]))).unwrap_err();
    assert!(matches!(error, VisionError::EmptyBatch), "{error}");
    let refusal = |grids: &[GridThw]| {
        let mut workspace = model.workspace(&inputs);
        model.tower.describe(stream, grids, &mut workspace).unwrap_err()
    };
    assert!(matches!(refusal(&[]), VisionError::EmptyBatch));
    assert!(matches!(refusal(&[grid, grid]), VisionError::TooManyPatches { got: 48, max: 24 }));
    assert!(matches!(refusal(&[grid, GridThw { w: 5, ..grid }]), VisionError::Grid { index: 1, .. }));
}

#[test]
fn a_videos_frames_are_pictures() {
    for family in FAMILIES {
        let model = load(family);
        let grid = GridThw { t: 3, h: 6, w: 10 };
        let bytes = video(&model, grid, 7);
        let whole = model.encode(&[VisionInput { grid, patches: Patches::Video(&bytes) }]);
        let frames = bytes
            .chunks(bytes.len() / 3)
            .map(|frame| model.encode(&[VisionInput { grid: grid.frame(), patches: Patches::Video(frame) }]));
        assert!(whole == concat(frames), "{family}");
    }
}

#[test]
fn stills_and_videos_share_a_batch() {
    for family in FAMILIES {
        let model = load(family);
        let pictures = stills(&model);
        let stills = inputs(&pictures);
        let grid = GridThw { t: 2, h: 4, w: 6 };
        let bytes = video(&model, grid, 9);
        let video = VisionInput { grid, patches: Patches::Video(&bytes) };
        let rows: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 100.0 - 1.0).collect();
        let rows = VisionInput { grid, patches: Patches::Rows(&rows) };
        let batch = [stills[0], stills[1], video, rows, stills[2]];
        assert!(model.encode(&batch) == concat(batch.map(|input| model.encode(&[input]))), "{family}");
    }
}

/// A still has one copy of its pixels, and the summed convolution; the reference has two copies and the whole
/// convolution.
#[test]
fn the_summed_convolution_is_the_whole_one() {
    for family in FAMILIES {
        let model = load(family);
        for (grid, bytes) in stills(&model) {
            let twice = doubled(&model, &bytes);
            let still = model.encode(&[VisionInput { grid, patches: Patches::Still(&bytes) }]);
            let whole = model.encode(&[VisionInput { grid, patches: Patches::Video(&twice) }]);
            let parts =
                [(&still.embeds, &whole.embeds)].into_iter().chain(still.deepstack.iter().zip(&whole.deepstack));
            for (still, whole) in parts {
                let error = max_abs_relative_to_max(still, whole);
                assert!(error < 1e-5, "{family} {grid}: {error:e} of the largest value");
            }
        }
    }
}

/// uint8 pixels go through the tower's normalisation, rows come with theirs done.
#[test]
fn rows_are_normalised_pixels() {
    for family in FAMILIES {
        let model = load(family);
        let Normalisation { mean, std } = support::normalisation(family);
        let grid = GridThw { t: 1, h: 4, w: 6 };
        let bytes = video(&model, grid, 5);
        let channel_len = model.config.patch_len() / 3;
        let rows: Vec<f32> = bytes
            .iter()
            .enumerate()
            .map(|(i, &byte)| {
                let channel = i / channel_len % 3;
                ((f64::from(byte) / 255.0 - f64::from(mean[channel])) / f64::from(std[channel])) as f32
            })
            .collect();
        let from_bytes = model.encode(&[VisionInput { grid, patches: Patches::Video(&bytes) }]);
        let from_rows = model.encode(&[VisionInput { grid, patches: Patches::Rows(&rows) }]);
        let error = max_abs_relative_to_max(&from_bytes.embeds, &from_rows.embeds);
        assert!(error < 1e-5, "{family}: {error:e} of the largest value");
    }
}

#[test]
fn a_used_workspace_gives_the_same() {
    for family in FAMILIES {
        let model = load(family);
        let pictures = stills(&model);
        let inputs = inputs(&pictures);
        let mut workspace = model.workspace(&inputs);
        let first = model.encode_in(&mut workspace, &inputs[3..]);
        model.encode_in(&mut workspace, &inputs);
        assert!(model.encode_in(&mut workspace, &inputs[3..]) == first, "{family}");
        let stats = workspace.geometry_stats();
        assert_eq!((stats.misses, stats.hits), (5, 4), "{family}");
    }
}

#[test]
fn bad_batches_are_refused() {
    let model = load("qwen2_5_vl");
    let grid = GridThw { t: 1, h: 4, w: 6 };
    let bytes = noise(1, still_len(&model, grid));
    let good = VisionInput { grid, patches: Patches::Still(&bytes) };
    let mut workspace = model.tower.new_workspace(grid.num_patches()).unwrap();
    let mut tensors = model.outputs([grid]);
    let mut refusal = |inputs: &[VisionInput<'_>]| {
        model.tower.encode(model.device.stream(), inputs, &mut workspace, output(&mut tensors)).unwrap_err()
    };
    assert!(matches!(refusal(&[]), VisionError::EmptyBatch));
    let huge = u32::MAX - 1;
    for (bad, reason) in [
        ([0, 4, 6], "at least 1"),
        ([1, 0, 6], "at least 1"),
        ([1, 4, 0], "at least 1"),
        ([1, 3, 8], "multiple"),
        ([1, 8, 3], "multiple"),
        ([2, 4, 6], "t 1"),
        ([1, huge, huge], "counted"),
    ] {
        let error = refusal(&[good, VisionInput { grid: bad.into(), ..good }]);
        assert!(matches!(error, VisionError::Grid { index: 1, .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let error = refusal(&[VisionInput { grid, patches: Patches::Still(&bytes[1..]) }]);
    assert!(matches!(error, VisionError::PatchLen { index: 0, .. }), "{error}");
    let error = refusal(&[VisionInput { grid, patches: Patches::Video(&bytes) }]);
    assert!(matches!(error, VisionError::PatchLen { index: 0, .. }), "{error}");
    assert!(matches!(refusal(&[good, good]), VisionError::TooManyPatches { got: 48, max: 24 }));
    assert_eq!(
        refusal(&[good, good]).to_string(),
        "the batch holds 48 patches, the workspace 24; encode fewer pictures at once or make it larger"
    );
}

#[test]
fn bad_outputs_and_workspaces_are_refused() {
    let model = load("qwen3_vl_tied");
    let grid = GridThw { t: 1, h: 4, w: 6 };
    let bytes = noise(1, still_len(&model, grid));
    let inputs = [VisionInput { grid, patches: Patches::Still(&bytes) }];
    let mut workspace = model.workspace(&inputs);
    let stream = model.device.stream();
    let mut tensors = model.outputs([grid]);
    let error = model.tower.encode(stream, &inputs, &mut workspace, output(&mut tensors[..3])).unwrap_err();
    assert!(matches!(error, VisionError::DeepstackLevels { expected: 3, got: 2 }), "{error}");
    tensors[2] = Tensor::zeros(&model.device, DType::F32, &[5, 256]).unwrap();
    let error = model.tower.encode(stream, &inputs, &mut workspace, output(&mut tensors)).unwrap_err();
    assert_eq!(error.to_string(), "`deepstack[1]` is [5, 256], expected [6, 256]");
    tensors[2] = Tensor::zeros(&model.device, DType::BF16, &[6, 256]).unwrap();
    let error = model.tower.encode(stream, &inputs, &mut workspace, output(&mut tensors)).unwrap_err();
    assert_eq!(error.to_string(), "`deepstack[1]` holds bf16, expected f32, as the tower's device computes");
    for max_patches in [0, 3, usize::MAX] {
        let error = model.tower.new_workspace(max_patches).unwrap_err();
        assert!(matches!(error, VisionError::WorkspaceSize { min: 4, .. }), "{error}");
    }
    let mut foreign = load("tiny").tower.new_workspace(24).unwrap();
    let error = model.tower.encode(stream, &inputs, &mut foreign, output(&mut model.outputs([grid]))).unwrap_err();
    assert!(matches!(error, VisionError::ForeignWorkspace), "{error}");
}

#[test]
fn impossible_settings_are_refused() {
    let model = load("qwen3_vl_tied");
    let weights = support::weights("qwen3_vl_tied");
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
    type Change = fn(&mut VisionConfig);
    let cases: [(&str, Change); 6] = [
        ("in_channels", |c| c.in_channels = 1),
        ("depth", |c| c.depth = 0),
        ("hidden_size", |c| c.hidden_size = 145),
        ("deepstack_visual_indexes", |c| c.deepstack_visual_indexes = vec![1, 0]),
        ("deepstack_visual_indexes", |c| c.deepstack_visual_indexes = vec![4]),
        ("window_size", |c| {
            c.window = Some(WindowConfig { window_size: 16, fullatt_block_indexes: vec![] });
        }),
    ];
    for (name, change) in cases {
        let mut config = model.config.clone();
        change(&mut config);
        let error = VisionTower::load(&config, normalisation, &weights, &model.device).unwrap_err();
        assert!(matches!(error, VisionError::Config { field, .. } if field == name), "{error}");
    }
    // A tensor that the config asks for and the folder lacks is named.
    let mut config = model.config.clone();
    config.depth += 1;
    let error = VisionTower::load(&config, normalisation, &weights, &model.device).unwrap_err();
    assert!(error.to_string().contains("model.visual.blocks.4."), "{error}");
}
