//! What a tower derives from a picture's size, kept for the next picture of that size.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use foveal_device::Tensor;
use foveal_mrope::{GridThw, RopeTile, TileCache, VisionRopeTable};
use foveal_processor::smart_resize;
use foveal_vision::{Normalisation, Patches, VisionInput, VisionOutput, VisionTower, Workspace};

use super::context::Context;
use super::equal::{Equal, ensure_same};
use super::table::{Idea, Measured, Table};
use super::turns::{in_turns, microseconds, settled};
use crate::gpu::bits;

/// Positions, rows of the position table with their weights, and windows: what the tower's operators read.
pub(super) const GEOMETRY: Idea = Idea { name: "positions of a picture's patches", with: "kept", without: "anew" };
/// cos and sin of every patch, as `foveal-mrope` keeps them for towers whose operators don't look them up themselves.
const TILES: Idea = Idea { name: "cos and sin of a picture's patches", with: "kept", without: "anew" };

const MIB: f64 = (1 << 20) as f64;
/// The cap of a cache that keeps everything.
const CAPACITY_BYTES: usize = 256 << 20;

/// Pictures of one size, encoded together: how many, width and height in pixels.
type Pictures = (usize, [u32; 2]);
const PICTURES: [Pictures; 3] = [(1, [512, 512]), (8, [512, 512]), (1, [1920, 1080])];
const SMALLEST: [Pictures; 3] = [(1, [64, 64]), (2, [64, 64]), (1, [96, 64])];

/// Both caches, for batches of typical pictures.
pub(super) fn rope(context: &Context<'_>, table: &mut Table) -> anyhow::Result<()> {
    let weights = context.dummy_weights()?;
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
    let tower = VisionTower::load(&context.config.vision, normalisation, &weights, context.device())?;
    for pictures in context.size(PICTURES, SMALLEST) {
        let (case, grids) = batch(context, pictures)?;
        let result = tiles(context, &case, &grids, table);
        table.keep(TILES, &case, result);
        let result = geometry(context, &tower, (&case, &grids), table);
        table.keep(GEOMETRY, &case, result);
    }
    Ok(())
}

/// What a batch is called, and its pictures' grids as the model gets them.
fn batch(context: &Context<'_>, (count, [width, height]): Pictures) -> anyhow::Result<(String, Vec<GridThw>)> {
    let processor = context.processor()?;
    let vision = processor.vision_config().context("the model takes no pictures")?;
    let (h, w) = smart_resize(height, width, vision.factor(), vision.budget)?;
    let grid = GridThw { t: 1, h: h / vision.patch_size, w: w / vision.patch_size };
    Ok((format!("{count} x {width}x{height} ({} patches)", count * grid.num_patches()), vec![grid; count]))
}

/// On the host alone, whatever the device.
fn tiles(context: &Context<'_>, case: &str, grids: &[GridThw], table: &mut Table) -> anyhow::Result<()> {
    let vision = &context.config.vision;
    let merge = u32::try_from(vision.spatial_merge_size)?;
    let side = grids.iter().map(|grid| grid.h.max(grid.w)).max().unwrap_or(1);
    let rope = VisionRopeTable::new(vision.rope_theta, vision.head_dim(), side as usize)?;
    let look_up = |cache: &mut TileCache<RopeTile>| {
        grids.iter().try_for_each(|&grid| {
            black_box(cache.get_or_try_insert_with(grid, || rope.tile(grid, merge))?);
            anyhow::Ok(())
        })
    };
    let mut kept = TileCache::new(CAPACITY_BYTES, RopeTile::num_bytes);
    let mut anew = TileCache::new(0, RopeTile::num_bytes);
    look_up(&mut kept)?;
    look_up(&mut anew)?;
    for &grid in grids {
        let tile = kept.get(grid).context("a tile was not kept")?;
        ensure!(anew.get(grid).is_none() && *tile == rope.tile(grid, merge)?, "a kept tile is not the grid's");
    }
    let times = in_turns(context.effort, || look_up(&mut kept), || look_up(&mut anew), settled)?;
    let note =
        format!("on the host; {:.2} MiB kept; this tower's operators look theirs up", kept.stats().bytes as f64 / MIB);
    table.measured(TILES, case, Measured { times, equal: Equal::Bitwise, note });
    Ok(())
}

/// What the host does before it looks at a pixel.
fn geometry(
    context: &Context<'_>,
    tower: &VisionTower,
    (case, grids): (&str, &[GridThw]),
    table: &mut Table,
) -> anyhow::Result<()> {
    let stream = context.device().stream();
    let num_patches = grids.iter().map(GridThw::num_patches).sum();
    let (mut kept, mut anew) = (tower.new_workspace(num_patches)?, tower.new_workspace(num_patches)?);
    anew.set_geometry_capacity(0);
    // The second time everything is found.
    encode(context, tower, grids, &mut kept)?;
    let (features, encode_time) = encode(context, tower, grids, &mut kept)?;
    let (others, _) = encode(context, tower, grids, &mut anew)?;
    for (a, b) in features.iter().zip(&others) {
        ensure_same("embeddings", a, b)?;
    }
    let (kept_stats, anew_stats) = (kept.geometry_stats(), anew.geometry_stats());
    ensure!(kept_stats.hits >= grids.len() as u64, "nothing was kept: {kept_stats:?}");
    ensure!(anew_stats.hits == 0, "something was kept: {anew_stats:?}");
    let describe = |workspace: &mut Workspace| Ok(tower.describe(stream, grids, workspace).map(|_| ())?);
    let settle = || Ok(stream.synchronize()?);
    let times = in_turns(context.effort, || describe(&mut kept), || describe(&mut anew), settle)?;
    let share = f64::from(times[1].median_us - times[0].median_us) / f64::from(microseconds(encode_time)) * 100.0;
    let note = format!("on the host; saves {share:.2} % of an encode of {:.1} ms", encode_time.as_secs_f64() * 1e3);
    table.measured(GEOMETRY, case, Measured { times, equal: Equal::Bitwise, note });
    Ok(())
}

/// The tower's output for pictures of noise, and how long that took.
fn encode(
    context: &Context<'_>,
    tower: &VisionTower,
    grids: &[GridThw],
    workspace: &mut Workspace,
) -> anyhow::Result<(Vec<Tensor>, Duration)> {
    let (device, vision) = (context.device(), tower.config());
    let patch_bytes = vision.patch_len() / vision.temporal_patch_size;
    let pixels: Vec<Vec<u8>> = grids.iter().map(|grid| noise(grid.num_patches() * patch_bytes)).collect();
    let inputs: Vec<VisionInput<'_>> = grids
        .iter()
        .zip(&pixels)
        .map(|(&grid, pixels)| VisionInput { grid, patches: Patches::Still(pixels) })
        .collect();
    let mut features = Features::new(context, tower, grids)?;
    let start = Instant::now();
    tower.encode(device.stream(), &inputs, workspace, features.output()?)?;
    device.stream().synchronize()?;
    Ok((features.tensors, start.elapsed()))
}

/// Bytes that look like nothing in particular.
pub(super) fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|i| (bits(i) >> 24) as u8).collect()
}

/// Where the tower writes.
pub(super) struct Features {
    /// The embeddings, then each deepstack level.
    pub(super) tensors: Vec<Tensor>,
}

impl Features {
    pub(super) fn new(context: &Context<'_>, tower: &VisionTower, grids: &[GridThw]) -> anyhow::Result<Self> {
        let device = context.device();
        let dims = [grids.iter().map(|&grid| tower.num_tokens(grid)).sum(), tower.out_hidden_size()];
        let tensor = |_| Tensor::zeros(device, device.activation_dtype(), &dims);
        Ok(Self { tensors: (0..=tower.num_deepstack()).map(tensor).collect::<Result<_, _>>()? })
    }

    pub(super) fn output(&mut self) -> anyhow::Result<VisionOutput<'_>> {
        let (embeds, deepstack) = self.tensors.split_first_mut().context("a tower gives embeddings")?;
        let deepstack = deepstack.iter_mut().map(Tensor::view_mut).collect::<Result<_, _>>()?;
        Ok(VisionOutput { embeds: embeds.view_mut()?, deepstack })
    }
}
