//! The CUDA launcher, and what other operators' launchers share.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{GROUP, OP, Quantize, QuantizeRows, Scales};
use crate::OpError;
use crate::check::Op;
use crate::cuda::{distinct, following};
use crate::packs::{HeldRow, MAX_HELD_ROW, Operand, blocks, pack_len};

static SOURCE: KernelSource =
    KernelSource { name: "quantize", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

/// `QUANTIZE` of the kernels: how an output is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Float = 0,
    PerRow = 1,
    PerGroup = 2,
    Fixed = 3,
}

impl Form {
    /// The forms that give FP8.
    pub(crate) const F8: [Self; 3] = [Self::PerRow, Self::PerGroup, Self::Fixed];

    pub(crate) fn of(quantize: Option<&Quantize<'_>>) -> Self {
        match quantize {
            None => Self::Float,
            Some(Quantize::PerRow(_)) => Self::PerRow,
            Some(Quantize::PerGroup(_)) => Self::PerGroup,
            Some(Quantize::Fixed(_)) => Self::Fixed,
        }
    }

    /// The element type of an output that else has `float`.
    pub(crate) fn out(self, float: DType) -> DType {
        if self == Self::Float { float } else { DType::F8E4M3 }
    }
}

/// A row in a block's registers, cut so that 16 lanes hold a group where scales are by group.
pub(crate) fn held_row(
    op: Op,
    form: Form,
    d: usize,
    operands: &[Operand],
    out: &foveal_device::Shape,
) -> Result<HeldRow, OpError> {
    let pack = pack_len(d, operands).min(8);
    if form == Form::PerGroup {
        check_group_pack(op, pack)?;
    }
    HeldRow::of(d, pack).ok_or_else(|| op.bad_shape("out", out, MAX_HELD_ROW.to_owned()))
}

/// Sixteen lanes hold a group.
pub(crate) fn check_group_pack(op: Op, pack: usize) -> Result<(), OpError> {
    if pack * 16 == GROUP {
        return Ok(());
    }
    let reason = "must be aligned to 16 bytes and have a multiple of 8 columns, for scales by group on CUDA";
    Err(OpError::Mismatch { op: op.0, arg: "out", reason })
}

/// The parameters of `QuantizeTo`, in order.
pub(crate) fn quantize_params(params: &mut Args, quantize: Option<&Quantize<'_>>) -> Result<(), DeviceError> {
    let (scales, factor, stride) = match quantize {
        None => (None, 1.0, 0),
        Some(Quantize::PerRow(scales)) => (Some(scales), 1.0, 0),
        Some(Quantize::PerGroup(scales)) => (Some(scales), 1.0, scales.shape().row_len()),
        Some(Quantize::Fixed(scale)) => (None, 1.0 / scale, 0),
    };
    params.ptr_or_null(scales.map(|scales| scales.as_view()).as_ref())?.f32(factor).usize_as_i32(stride)?;
    Ok(())
}

/// The parameters of `ScaledBy`, in order.
pub(crate) fn scale_params(params: &mut Args, scales: Option<&Scales<'_>>) -> Result<(), DeviceError> {
    params.ptr_or_null(scales.and_then(|scales| scales.rows.as_ref()))?;
    params.ptr_or_null(scales.map(|scales| &scales.columns))?;
    Ok(())
}

fn spec(x: DType, form: Form, row: HeldRow) -> KernelSpec {
    let HeldRow { pack, threads, items } = row;
    KernelSpec::new(&SOURCE, "quantize")
        .dtype("X_T", x)
        .int("QUANTIZE", form as i64)
        .int("VEC", pack as i64)
        .int("THREADS", threads as i64)
        .int("ITEMS", items as i64)
}

pub(super) fn quantize(stream: &CudaStream, args: &QuantizeRows<'_>, [m, d]: [usize; 2]) -> Result<(), OpError> {
    if m == 0 || d == 0 {
        return Ok(());
    }
    let form = Form::of(Some(&args.quantize));
    let of = |view: Result<Operand, DeviceError>| view.map_err(|source| OP.device(source));
    let operands = [of(Operand::of(&args.x))?, of(Operand::of_mut(&args.out))?];
    let row = held_row(OP, form, d, &operands, args.out.shape())?;
    launch(stream, args, [m, d], (form, row)).map_err(|source| OP.device(source))
}

fn launch(
    stream: &CudaStream,
    args: &QuantizeRows<'_>,
    [m, d]: [usize; 2],
    (form, row): (Form, HeldRow),
) -> Result<(), DeviceError> {
    let mut params = Args::new();
    params.ptr(&args.x)?.ptr_mut(&args.out)?;
    quantize_params(&mut params, Some(&args.quantize))?;
    params.usize_as_i32(d)?;
    let launch = Launch::new([blocks(m, 1)?, 1, 1], [row.threads as u32, 1, 1]);
    // SAFETY: `quantize` has checked that x and out are `[m, d]` and that there is a scale for each row or group, and the
    // parameters are the kernel's.
    unsafe { stream.launch(&spec(args.x.dtype(), form, row), following(stream, launch), &mut params) }
}

/// Weights of the published models, per row, and the attention's output of the last layer.
pub(crate) fn variants() -> Vec<KernelSpec> {
    let widths = [1536, 2048, 2560, 3584, 4096, 5120, 6144, 8192, 8960, 9728, 11_008, 12_288, 18_944, 25_600, 29_568];
    let rows = widths.into_iter().filter_map(|d| HeldRow::of(d, 8));
    distinct(rows.flat_map(|row| Form::F8.map(|form| spec(DType::BF16, form, row))))
}
