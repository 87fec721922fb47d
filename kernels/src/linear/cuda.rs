//! The CUDA launcher: kernels of our own where a few rows are multiplied, cuBLASLt for all others.
#![allow(unsafe_code)]

use foveal_device::{
    Args, BlockScales, CudaStream, DType, DeviceError, F8Product, KernelSource, KernelSpec, Launch, MatmulInputs,
    MatmulShape, View, ViewMut,
};

use super::hopper::{self, Size, Skinny};
use super::{Linear, OP};
use crate::OpError;
use crate::cuda::{PRELUDE, WEIGHT_PARTS, following};
use crate::quantize::group_stride;

static GEMV: KernelSource =
    KernelSource { name: "linear", text: include_str!("gemv.cu"), headers: &[PRELUDE, WEIGHT_PARTS] };

/// The most rows of activations that `gemv.cu` is used for.
const MAX_GEMV_ROWS: usize = 8;

/// Rows of activations, and of a group of weights, in a tile of the kernel's tensor-core instruction.
const TILE_ROWS: usize = 8;
/// With scales by block the library takes sums over multiples of it: rows of scales are copied 16 bytes at a time.
const BLOCKS_MULTIPLE: usize = 512;
/// Stacked weights of one launch.
const MAX_PARTS: usize = 3;
/// Bytes of a load of activations or weights, and what sizes and addresses are multiples of for Hopper's tensor maps and bulk copies.
const LOAD_BYTES: usize = 16;
/// The kernels count columns and rows of weight by an `int` and step beyond the last.
const MAX_COLUMNS: usize = 1 << 30;

/// Warps of a multiprocessor, whose registers they fill.
const WARPS_PER_SM: usize = 16;

/// How our own kernel shares the work out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gemv {
    /// Groups of eight weight rows of a block.
    groups: usize,
    /// Warps of a block, which share the columns.
    warps: u32,
}

/// What decides between the kernels.
#[derive(Clone, Copy, Debug)]
struct Product {
    m: usize,
    /// Rows of all weights.
    n: usize,
    k: usize,
    /// Whether there are scales by block.
    is_scaled: bool,
    x: DType,
    /// Whether activations and weights begin at multiples of [`LOAD_BYTES`].
    is_aligned: bool,
    /// Tiles of the weights for Hopper's own kernel; `None` for operands or a card that it isn't for.
    skinny_tiles: Option<usize>,
}

impl Product {
    /// Scales by block that the library doesn't take: our own kernels do all rows, as many at a time as a launch of theirs has.
    fn is_ours_alone(&self) -> bool {
        self.is_scaled && !self.k.is_multiple_of(BLOCKS_MULTIPLE)
    }
}

/// A kernel of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Gemv(Gemv),
    Skinny(Skinny),
}

/// The kernel of our own for a product, or `None` for cuBLASLt.
fn plan(product: Product, num_sms: u32) -> Option<Ours> {
    let Product { m, n, k, is_scaled, skinny_tiles, .. } = product;
    let gemv = gemv(product, num_sms);
    let size = skinny_tiles.map(|tiles| Size { m, tiles, k, is_scaled });
    let is_for_skinny = |size: &Size| {
        let is_slow = |gemv: Gemv| size.is_very_long() && !gemv.comes_out_even(n, num_sms);
        let is_few = m <= MAX_GEMV_ROWS && gemv.is_some_and(is_slow);
        let are_more = m > MAX_GEMV_ROWS && (m <= size.most_rows(num_sms) || product.is_ours_alone());
        k != 0 && (is_few || are_more)
    };
    match size.filter(is_for_skinny) {
        Some(size) => Some(Ours::Skinny(Skinny::new(size, num_sms))),
        None => gemv.map(Ours::Gemv),
    }
}

/// The launch of `gemv.cu`, if it takes the product.
fn gemv(product: Product, num_sms: u32) -> Option<Gemv> {
    let Product { m, n, k, x, is_aligned, .. } = product;
    let load_len = LOAD_BYTES / x.size_bytes();
    let can_load = x != DType::F32 && is_aligned && k.is_multiple_of(load_len) && k <= MAX_COLUMNS;
    // Without columns nothing is loaded, and cuBLASLt refuses.
    if k != 0 && ((m > MAX_GEMV_ROWS && !product.is_ours_alone()) || !can_load) {
        return None;
    }
    let num_sms = num_sms as usize;
    // Two groups halve the reads of activations; with fewer blocks than multiprocessors some would be idle.
    let groups = if n.div_ceil(2 * TILE_ROWS) >= num_sms { 2 } else { 1 };
    // Sixteen warps fill a multiprocessor's registers: of two blocks, or of one where there are no more.
    let warps = if groups == 2 || n.div_ceil(TILE_ROWS) > num_sms { 8 } else { 16 };
    Some(Gemv { groups, warps })
}

impl Gemv {
    /// Blocks that a multiprocessor has at once.
    fn blocks_per_sm(self) -> usize {
        WARPS_PER_SM / self.warps as usize
    }

    /// Tiles of `n` rows of weight.
    fn tiles(self, n: usize) -> usize {
        n.div_ceil(self.groups * TILE_ROWS)
    }

    /// Whether most blocks have as many tiles as any. `skinny_sm90.cu` has smaller shares, but ends later: where blocks wait for
    /// others and sums are long, it is quicker.
    fn comes_out_even(self, n: usize, num_sms: u32) -> bool {
        let (tiles, blocks) = (self.tiles(n), num_sms as usize * self.blocks_per_sm());
        tiles <= blocks || tiles * 10 >= tiles.div_ceil(blocks) * blocks * 7
    }

    fn spec(self, weight: DType, out: DType, is_scaled: bool) -> KernelSpec {
        let spec = KernelSpec::new(&GEMV, "gemv").dtype("W_T", weight).dtype("OUT_T", out);
        let spec = spec.int("IS_F8", i64::from(weight == DType::F8E4M3)).int("SCALED", i64::from(is_scaled));
        spec.int("GROUPS", self.groups as i64).int("WARPS", i64::from(self.warps))
    }
}

/// Every kernel that a model may need; cuBLASLt brings its own.
pub(crate) fn variants() -> Vec<KernelSpec> {
    let launches = [(1, 8), (1, 16), (2, 8)].into_iter().map(|(groups, warps)| Gemv { groups, warps });
    let weights = [(DType::BF16, false), (DType::F8E4M3, false), (DType::F8E4M3, true)];
    let outs = [DType::BF16, DType::F32];
    launches
        .flat_map(|gemv| weights.map(|(weight, is_scaled)| outs.map(|out| gemv.spec(weight, out, is_scaled))))
        .flatten()
        .chain(hopper::variants())
        .collect()
}

/// Whether a view begins at a multiple of [`LOAD_BYTES`].
fn is_aligned(view: &View<'_>) -> Result<bool, OpError> {
    let address = view.device_ptr().map_err(|e| OP.device(e))?;
    Ok(address.is_multiple_of(LOAD_BYTES as u64))
}

/// Rows of a part of the weights.
fn num_rows(part: &View<'_>) -> usize {
    part.shape().first().copied().unwrap_or(0)
}

impl Linear<'_> {
    /// Shapes and element types, as CUDA takes them.
    fn check(&self, stream: &CudaStream) -> Result<Product, OpError> {
        let [m, k] = OP.rank("x", self.x.shape())?;
        self.check_scales(m, k)?;
        let x = self.x.dtype();
        if !matches!(x, DType::F32 | DType::BF16 | DType::F8E4M3) {
            return Err(OP.bad_dtype("x", x, "bf16, f8_e4m3 or f32 on CUDA"));
        }
        if x == DType::F8E4M3 && !stream.has_f8() {
            return Err(OP.bad_dtype(
                "x",
                x,
                "bf16 or f32: this GPU multiplies no FP8, which begins with compute capability 8.9",
            ));
        }
        let mut n = 0_usize;
        for part in self.weight {
            let [num_rows, _] = OP.rank("weight", part.shape())?;
            OP.shape("weight", part.shape(), &[num_rows, k])?;
            OP.dtype("weight", part.dtype(), x, "the dtype of x on CUDA")?;
            // Without columns, rows cost no memory: their number may be anything.
            n = n.saturating_add(num_rows);
        }
        OP.shape("out", self.out.shape(), &[m, n])?;
        let out = self.out.dtype();
        match x {
            DType::BF16 | DType::F8E4M3 if !matches!(out, DType::BF16 | DType::F32) => {
                return Err(OP.bad_dtype("out", out, "bf16 or f32 on CUDA"));
            }
            DType::F32 => OP.dtype("out", out, DType::F32, "f32 on CUDA where x is f32")?,
            _ => {}
        }
        if let Some(bias) = &self.bias {
            if x == DType::F8E4M3 {
                let reason = "is given, but a product of FP8 has none: it comes after the scaling";
                return Err(OpError::Mismatch { op: OP.0, arg: "bias", reason });
            }
            OP.shape("bias", bias.shape(), &[n])?;
            OP.dtype("bias", bias.dtype(), out, "the dtype of out on CUDA")?;
        }
        let mut are_aligned = true;
        for operand in self.weight.iter().chain([&self.x]) {
            are_aligned &= is_aligned(operand)?;
        }
        let is_scaled = self.scales.is_some();
        let skinny_tiles = if are_aligned && hopper::serves(stream) { self.skinny_tiles(k)? } else { None };
        Ok(Product { m, n, k, is_scaled, x, is_aligned: are_aligned, skinny_tiles })
    }

    /// Tiles of the weights for Hopper's own kernel, if types, sizes and addresses are such as it takes.
    fn skinny_tiles(&self, k: usize) -> Result<Option<usize>, OpError> {
        let mut fits = self.x.dtype() == DType::F8E4M3 && self.out.dtype() == DType::BF16;
        // Sums of 128 columns are short enough.
        fits &= FAST_ACCUMULATION || self.scales.is_some();
        fits &= k.is_multiple_of(LOAD_BYTES) && k <= MAX_COLUMNS && is_aligned(&self.out.as_view())?;
        if let Some(scales) = &self.scales {
            fits &= is_aligned(&scales.x)?;
        }
        let mut tiles = 0_usize;
        for part in self.weight {
            let n = num_rows(part);
            fits &= n.is_multiple_of(LOAD_BYTES) && n <= MAX_COLUMNS;
            tiles = tiles.saturating_add(hopper::tiles(n));
        }
        Ok(fits.then_some(tiles))
    }
}

pub(super) fn linear(stream: &CudaStream, mut args: Linear<'_>) -> Result<(), OpError> {
    let product = args.check(stream)?;
    if product.m == 0 || product.n == 0 {
        return Ok(());
    }
    let by_blocks = product.is_scaled && product.m > MAX_GEMV_ROWS && !product.is_ours_alone();
    if by_blocks && !product.m.is_multiple_of(group_stride(1)) {
        return Err(OP.bad_shape(
            "x",
            args.x.shape(),
            "rows that are a multiple of 4, with block scales on CUDA".to_owned(),
        ));
    }
    let computed = match plan(product, stream.num_sms()) {
        Some(ours) => by_ours(stream, product, ours, args),
        None => each_part(product, &mut args, |_, shape, Part { inputs, out, column }| {
            stream.matmul(shape, &inputs, out, column)
        }),
    };
    computed.map_err(|e| OP.device(e))
}

pub(super) fn tune(stream: &CudaStream, mut args: Linear<'_>, others: &[&[View<'_>]]) -> Result<(), OpError> {
    let product = args.check(stream)?;
    if product.m == 0 || product.n == 0 || plan(product, stream.num_sms()).is_some() {
        return Ok(());
    }
    let tuned = each_part(product, &mut args, |index, shape, Part { inputs, out, column }| {
        let others: Vec<View<'_>> = others.iter().filter_map(|parts| parts.get(index).copied()).collect();
        stream.tune_matmul(shape, &inputs, &others, out, column).map(|_| ())
    });
    tuned.map_err(|e| OP.device(e))
}

/// Operands of the product with one part of the weights, which gives the columns of `out` from `column` on.
struct Part<'p, 'a> {
    inputs: MatmulInputs<'p>,
    out: &'p mut ViewMut<'a>,
    column: usize,
}

/// Sums of FP8 products may stay in the tensor cores, cuBLASLt's and `skinny_sm90.cu`'s: what that costs is measured with whole models.
const FAST_ACCUMULATION: bool = true;

/// A product of its own for each part that has rows.
fn each_part(
    product: Product,
    args: &mut Linear<'_>,
    mut multiply: impl FnMut(usize, &MatmulShape, Part<'_, '_>) -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    let Linear { x, weight, bias, scales, out } = args;
    let f8 = F8Product { fast_accumulation: FAST_ACCUMULATION, has_block_scales: scales.is_some() };
    let mut column = 0;
    for (index, weight) in weight.iter().enumerate() {
        let n = num_rows(weight);
        if n == 0 {
            continue;
        }
        let shape = MatmulShape {
            m: product.m,
            n,
            k: product.k,
            x: x.dtype(),
            weight: weight.dtype(),
            out: out.dtype(),
            bias: bias.map(|bias| bias.dtype()),
            ldo: product.n,
            f8: if product.x == DType::F8E4M3 { f8 } else { F8Product::default() },
        };
        let bias = bias.map(|bias| bias.rows(column..column + n)).transpose()?;
        let scales = scales.and_then(|scales| Some(BlockScales { x: scales.x, weight: *scales.weight.get(index)? }));
        let inputs = MatmulInputs { x: *x, weight: *weight, bias, scales };
        multiply(index, &shape, Part { inputs, out: &mut out.reborrow(), column })?;
        column += n;
    }
    Ok(())
}

/// A kernel of our own, over as many rows and parts as there are. A model's product is one launch; more rows or parts than one takes
/// are several.
fn by_ours(stream: &CudaStream, product: Product, ours: Ours, args: Linear<'_>) -> Result<(), DeviceError> {
    let Product { m, n, .. } = product;
    let Linear { x, weight, bias, scales, out } = args;
    let len = m * n;
    let mut out = out.reshape(&[len])?;
    let rows = match ours {
        Ours::Gemv(_) => TILE_ROWS,
        Ours::Skinny(skinny) => skinny.x_rows(),
    };
    for first in (0..m).step_by(rows) {
        let x = x.rows(first..m.min(first + rows))?;
        let mut column = 0;
        for (chunk, parts) in weight.chunks(MAX_PARTS).enumerate() {
            let bias = bias.map(|bias| bias.rows(column..n)).transpose()?;
            let out = out.reborrow().rows(first * n + column..len)?;
            let scales = scales.map(|scales| PartScales {
                x: scales.x,
                first,
                weight: scales.weight.chunks(MAX_PARTS).nth(chunk).unwrap_or_default(),
            });
            let of_launch = Parts { x, weight: parts, bias, scales };
            match ours {
                Ours::Gemv(gemv) => launch(stream, gemv, &of_launch, &out, n)?,
                Ours::Skinny(skinny) => hopper::launch(stream, skinny, &of_launch, &out, n)?,
            }
            column += parts.iter().map(num_rows).sum::<usize>();
        }
    }
    Ok(())
}

/// What one launch reads: as many rows of `x` as its kernel takes, at most three parts. `bias` begins at the first part's first column.
pub(super) struct Parts<'a> {
    pub(super) x: View<'a>,
    pub(super) weight: &'a [View<'a>],
    bias: Option<View<'a>>,
    pub(super) scales: Option<PartScales<'a>>,
}

impl<'a> Parts<'a> {
    /// Rows and columns of `x`.
    pub(super) fn sizes(&self) -> [usize; 2] {
        [0, 1].map(|i| self.x.shape().get(i).copied().unwrap_or(0))
    }

    /// Rows of each part; a part that there isn't has none.
    pub(super) fn rows(&self) -> [usize; MAX_PARTS] {
        std::array::from_fn(|i| self.weight.get(i).map_or(0, num_rows))
    }

    /// The launch's first row of `x` among those that have block scales, and the numbers in a row of those; 0 without any.
    pub(super) fn x_scales_place(&self) -> (usize, usize) {
        self.scales.as_ref().map_or((0, 0), |scales| (scales.first, scales.x.shape().row_len()))
    }

    /// The scales of each part.
    pub(super) fn part_scales(&self) -> [Option<&View<'a>>; MAX_PARTS] {
        std::array::from_fn(|i| self.scales.as_ref().and_then(|scales| scales.weight.get(i)))
    }
}

/// Block scales of a launch, whose first row of `x` is row `first` of all.
pub(super) struct PartScales<'a> {
    pub(super) x: View<'a>,
    pub(super) first: usize,
    weight: &'a [View<'a>],
}

impl<'a> PartScales<'a> {
    /// The scales of `x`, `[k / 128, all rows]`, from the launch's first row on.
    pub(super) fn of_rows(&self) -> Result<View<'a>, DeviceError> {
        let len = self.x.shape().num_elements();
        self.x.reshape(&[len])?.rows(self.first..len)
    }
}

/// One launch. `out` begins at the first part's first column, and its rows are `out_stride` apart.
fn launch(
    stream: &CudaStream,
    gemv: Gemv,
    parts: &Parts<'_>,
    out: &ViewMut<'_>,
    out_stride: usize,
) -> Result<(), DeviceError> {
    let Parts { x, weight, bias, scales } = parts;
    let (rows, [m, k]) = (parts.rows(), parts.sizes());
    let tiles: usize = rows.into_iter().map(|rows| gemv.tiles(rows)).sum();
    let mut args = Args::new();
    args.ptr(x)?;
    for i in 0..MAX_PARTS {
        args.ptr_or_null(weight.get(i))?;
    }
    args.ptr_or_null(bias.as_ref())?.ptr_mut(out)?;
    for rows in rows {
        args.usize_as_i32(rows)?;
    }
    args.usize_as_i32(m)?.usize_as_i32(k)?.usize_as_i32(out_stride)?;
    args.ptr_or_null(scales.as_ref().map(|scales| &scales.x))?;
    for of_part in parts.part_scales() {
        args.ptr_or_null(of_part)?;
    }
    let (first, stride) = parts.x_scales_place();
    args.usize_as_i32(first)?.usize_as_i32(stride)?;
    // Blocks stay, and go from tile to tile.
    let blocks = tiles.min(stream.num_sms() as usize * gemv.blocks_per_sm());
    let blocks = u32::try_from(blocks).map_err(|_| DeviceError::TooLarge { value: blocks })?;
    let launch = Launch::new([blocks, 1, 1], [32 * gemv.warps, 1, 1]);
    let spec = gemv.spec(x.dtype(), out.dtype(), scales.is_some());
    // SAFETY: the parameters are those of `gemv` in gemv.cu. `check` has compared all shapes and types, and `plan` what its
    // loads ask for; it reads k elements of the rows given and the scales of their blocks, and writes as many rows and
    // columns of `out` as there are.
    unsafe { stream.launch(&spec, following(stream, launch), &mut args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200_SMS: u32 = 132;
    const QKV: Product =
        Product { m: 1, n: 6144, k: 4096, is_scaled: false, x: DType::BF16, is_aligned: true, skinny_tiles: None };

    fn gemv(product: Product) -> Option<(usize, u32)> {
        match plan(product, H200_SMS) {
            Some(Ours::Gemv(gemv)) => Some((gemv.groups, gemv.warps)),
            _ => None,
        }
    }

    #[test]
    fn a_few_dozen_rows_of_fp8_take_hoppers_own_kernel() {
        // What is ours alone are scaled sums that are no multiple of 512.
        let product = |m, is_scaled, is_ours_alone| Product {
            m,
            k: if is_ours_alone { QKV.k + 128 } else { QKV.k },
            x: DType::F8E4M3,
            is_scaled,
            skinny_tiles: Some(hopper::tiles(QKV.n)),
            ..QKV
        };
        let is_skinny = |product| matches!(plan(product, H200_SMS), Some(Ours::Skinny(_)));
        let of = |product: &dyn Fn(usize) -> Product| [8, 9, 64, 65, 128, 129].map(|m| is_skinny(product(m)));
        assert_eq!(of(&|m| product(m, false, false)), [false, true, true, false, false, false]);
        assert_eq!(of(&|m| product(m, true, false)), [false, true, true, true, true, false]);
        let many_tiles = |m| Product { skinny_tiles: Some(384), ..product(m, true, false) };
        assert_eq!(of(&many_tiles), [false, true, true, false, false, false]);
        assert_eq!(of(&|m| product(m, true, true)), [false, true, true, true, true, true]);
        // A few rows, and without columns any number, are the other's, unless its blocks have unlike shares of long sums: down and o
        // of a 32B, but not down of an 8B or a 4B, nor shorter sums.
        let takes_few = |m, n, k, is_scaled| {
            is_skinny(Product { n, k, skinny_tiles: Some(hopper::tiles(n)), ..product(m, is_scaled, false) })
        };
        let sizes = [(5120, 25_600), (5120, 8192), (4096, 12_288), (2560, 9728), (5120, 4096)];
        for (m, is_scaled) in [(1, false), (8, false), (1, true), (8, true)] {
            let taken = sizes.map(|(n, k)| takes_few(m, n, k, is_scaled));
            assert_eq!(taken, [true, true, false, false, false], "{m} {is_scaled}");
        }
        assert!(gemv(product(8, true, true)).is_some());
        assert!(gemv(Product { k: 0, ..product(20, false, false) }).is_some());
        // Another card, or operands that it doesn't take.
        assert!(!is_skinny(Product { skinny_tiles: None, ..product(20, true, true) }));
    }

    #[test]
    fn a_few_rows_take_our_own_kernel() {
        assert!(gemv(QKV).is_some());
        assert!(gemv(Product { m: 8, ..QKV }).is_some());
        assert_eq!(gemv(Product { m: 9, ..QKV }), None);
        assert_eq!(gemv(Product { x: DType::F32, ..QKV }), None);
        assert_eq!(gemv(Product { is_aligned: false, ..QKV }), None);
        assert_eq!(gemv(Product { k: 4092, ..QKV }), None);
        assert_eq!(gemv(Product { k: MAX_COLUMNS + 8, ..QKV }), None);
        let f8 = Product { x: DType::F8E4M3, ..QKV };
        assert!(gemv(f8).is_some());
        assert_eq!(gemv(Product { k: 4104, ..f8 }), None);
        // Nothing is loaded then, so anything goes.
        assert!(gemv(Product { m: 100, k: 0, x: DType::F32, is_aligned: false, ..QKV }).is_some());
    }

    #[test]
    fn all_multiprocessors_have_work() {
        assert_eq!(gemv(QKV), Some((2, 8)));
        assert_eq!(gemv(Product { n: 4096, ..QKV }), Some((2, 8)));
        // 128 and 65 blocks.
        assert_eq!(gemv(Product { n: 1024, ..QKV }), Some((1, 16)));
        assert_eq!(gemv(Product { n: 513, ..QKV }), Some((1, 16)));
        assert_eq!(gemv(Product { n: 2048, ..QKV }), Some((1, 8)));
        assert_eq!(gemv(Product { n: 16 * 132, ..QKV }), Some((2, 8)));
        assert_eq!(gemv(Product { n: 151_936, ..QKV }), Some((2, 8)));
    }

    #[test]
    fn every_launch_is_compiled_ahead() {
        let variants = variants();
        for n in [1, 1024, 2048, 2112, 6144] {
            for out in [DType::BF16, DType::F32] {
                let gemv = super::gemv(Product { n, ..QKV }, H200_SMS).unwrap();
                assert!(variants.contains(&gemv.spec(DType::BF16, out, false)), "{n}");
            }
        }
    }
}
