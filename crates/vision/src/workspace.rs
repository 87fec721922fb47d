//! Memory of one encode, made once.

use foveal_checkpoint::VisionConfig;
use foveal_device::{CopyLane, Device, DeviceError, Stream, Tensor, View, ViewMut};
use foveal_mrope::{GridThw, TileCache, TileCacheStats, VisionRopeTable};

use crate::VisionError;
use crate::batch::{BatchLayout, BatchShape};
use crate::geometry::FrameGeometry;
use crate::weights::inner_size;

/// The most that derived geometry may take: about 100 frames of 16384 patches (positions and four taps each).
const GEOMETRY_CAPACITY_BYTES: usize = 64 << 20;

/// Everything that [`crate::VisionTower::encode`] writes besides its result, for batches of up to `max_patches`
/// patches.
///
/// Make it once with [`crate::VisionTower::new_workspace`] and use it for every batch: encoding then allocates no
/// tensor. It also keeps what was derived from each grid (positions, table rows, window order) for the next picture of
/// that size.
pub struct Workspace {
    pub(crate) max_patches: usize,
    pub(crate) config: VisionConfig,
    pub(crate) batch: BatchLayout,
    pub(crate) activations: Activations,
    pub(crate) rope: RopeTensors,
    /// On a GPU: brings one input's pixels after another, up to `max_patches * patch_len` bytes, beside the work before.
    pub(crate) pixels: Option<CopyLane>,
    geometry: TileCache<FrameGeometry>,
}

/// The rotary table by patch row or column.
pub(crate) struct RopeTensors {
    /// f32 `[max_hw, head_dim / 4]`
    pub(crate) cos: Tensor,
    /// f32 `[max_hw, head_dim / 4]`
    pub(crate) sin: Tensor,
}

/// Memory of the device's activation type that takes any shape that fits.
pub(crate) struct FlatBuffer(Tensor);

/// The activations of a batch. A block writes `normed` (its norm), `wide` (qkv, then the MLP's inside), `narrow` (after
/// the activation function) and `branch` (what the next norm adds to `residual`).
pub(crate) struct Activations {
    pub(crate) residual: FlatBuffer,
    pub(crate) branch: FlatBuffer,
    pub(crate) normed: FlatBuffer,
    pub(crate) wide: FlatBuffer,
    pub(crate) narrow: FlatBuffer,
}

impl FlatBuffer {
    fn new(device: &Device, len: usize) -> Result<Self, DeviceError> {
        Ok(Self(Tensor::zeros(device, device.activation_dtype(), &[len])?))
    }

    /// The first elements as `[rows, width]`, to read.
    pub(crate) fn view(&self, dims: &[usize]) -> Result<View<'_>, DeviceError> {
        self.0.rows(0..dims.iter().product())?.reshape(dims)
    }

    /// The first elements as `[rows, width]`, to write.
    pub(crate) fn view_mut(&mut self, dims: &[usize]) -> Result<ViewMut<'_>, DeviceError> {
        self.0.rows_mut(0..dims.iter().product())?.reshape(dims)
    }
}

impl Activations {
    fn new(device: &Device, config: &VisionConfig, max_patches: usize) -> Result<Self, DeviceError> {
        let (hidden, inside) = (config.hidden_size, inner_size(device, config));
        let up = inside * if config.gated_mlp { 2 } else { 1 };
        // The merger's rows are as long per patch as the blocks'; its output only may be longer.
        let merged_out = config.out_hidden_size.div_ceil(config.merge_unit());
        let wide = up.max(3 * hidden).max(config.patch_len());
        let buffer = |width: usize| FlatBuffer::new(device, max_patches.saturating_mul(width));
        Ok(Self {
            residual: buffer(hidden)?,
            branch: buffer(hidden.max(merged_out))?,
            normed: buffer(hidden)?,
            wide: buffer(wide)?,
            narrow: buffer(inside.max(hidden))?,
        })
    }
}

impl Workspace {
    pub(crate) fn new(device: &Device, config: &VisionConfig, max_patches: usize) -> Result<Self, VisionError> {
        let (min, max) = (config.merge_unit(), i32::MAX as usize);
        if !(min..=max).contains(&max_patches) {
            return Err(VisionError::WorkspaceSize { max_patches, min, max });
        }
        // A grid is at least one cell wide: no picture that fits has more rows than this.
        let max_hw = max_patches / config.spatial_merge_size;
        let table = VisionRopeTable::new(config.rope_theta, config.head_dim(), max_hw)?;
        let dims = [max_hw, config.head_dim() / 4];
        let rope = RopeTensors {
            cos: Tensor::from_slice(device, table.cos(), &dims)?,
            sin: Tensor::from_slice(device, table.sin(), &dims)?,
        };
        let pixels = || CopyLane::new(device, max_patches.saturating_mul(config.patch_len()));
        Ok(Self {
            max_patches,
            config: config.clone(),
            batch: BatchLayout::new(device, config, max_patches)?,
            activations: Activations::new(device, config, max_patches)?,
            rope,
            pixels: device.is_cuda().then(pixels).transpose()?,
            geometry: TileCache::new(GEOMETRY_CAPACITY_BYTES, FrameGeometry::num_bytes),
        })
    }

    /// Describes the batch in `self.batch`.
    pub(crate) fn describe(
        &mut self,
        stream: &Stream,
        grids: impl Iterator<Item = GridThw>,
    ) -> Result<(), VisionError> {
        self.batch.describe(stream, grids, &self.config, &mut self.geometry)
    }

    /// What the launches of the batch depend on that was loaded last.
    #[must_use]
    pub fn shape(&self) -> BatchShape {
        self.batch.shape()
    }

    /// The most patches of one batch, all pictures together.
    #[must_use]
    pub fn max_patches(&self) -> usize {
        self.max_patches
    }

    /// Bounds the derived geometry, of which what is there is forgotten; with 0 every picture's is derived anew.
    pub fn set_geometry_capacity(&mut self, capacity_bytes: usize) {
        self.geometry = TileCache::new(capacity_bytes, FrameGeometry::num_bytes);
    }

    /// Hits, misses and bytes of the derived geometry, for metrics.
    #[must_use]
    pub fn geometry_stats(&self) -> TileCacheStats {
        self.geometry.stats()
    }
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workspace({} patches)", self.max_patches)
    }
}
