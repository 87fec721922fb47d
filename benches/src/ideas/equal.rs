//! Whether two ways give the same.

use std::fmt;

use anyhow::{bail, ensure};
use foveal_device::{DType, Device, F8E4M3, Tensor, View};
use half::bf16;
use serde::Serialize;

/// How far a GPU's logits may be apart whose batches differ, of the largest of them: the CPU alone promises bits there.
const MAX_LOGIT_ERROR: f32 = 0.02;
/// How far a row's scale may be apart, of itself: its largest element rounded to bf16 or not.
const MAX_SCALE_ERROR: f32 = 1.0 / 256.0;

/// How equal they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Equal {
    /// In every bit.
    Bitwise,
    /// In every token, where tokens are what comes of it.
    SameTokens,
    /// In all but the last digit of an FP8 number, where one way rounds to bf16 before.
    OneFp8Step,
    /// As far as a GPU's sums of other batches are.
    Near,
}

impl fmt::Display for Equal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bitwise => "bitwise",
            Self::SameTokens => "in every token",
            Self::OneFp8Step => "to one step of FP8",
            Self::Near => "nearly",
        })
    }
}

/// The bytes of a tensor, wherever it is.
pub(super) fn bytes(tensor: &Tensor) -> anyhow::Result<Vec<u8>> {
    Ok(match tensor.dtype() {
        DType::F32 => tensor.to_vec::<f32>()?.into_iter().flat_map(f32::to_ne_bytes).collect(),
        DType::BF16 => tensor.to_vec::<bf16>()?.into_iter().flat_map(bf16::to_ne_bytes).collect(),
        DType::F8E4M3 => tensor.to_vec::<F8E4M3>()?.into_iter().map(F8E4M3::to_bits).collect(),
        DType::U8 => tensor.to_vec::<u8>()?,
        other => bail!("elements of type {other} are not compared"),
    })
}

/// Numbers that both ways must give bit by bit.
///
/// # Errors
/// When one differs.
pub(super) fn ensure_same(what: &str, a: &Tensor, b: &Tensor) -> anyhow::Result<()> {
    let (a, b) = (bytes(a)?, bytes(b)?);
    let first = a.iter().zip(&b).position(|(a, b)| a != b);
    ensure!(first.is_none() && a.len() == b.len(), "{what}: the two ways differ from byte {} on", first.unwrap_or(0));
    Ok(())
}

/// Rows rounded to FP8 with a scale each, by an operator itself and by another behind it.
pub(super) struct RoundedRows<'a> {
    pub(super) values: &'a Tensor,
    pub(super) scales: &'a Tensor,
}

impl RoundedRows<'_> {
    /// # Errors
    /// When they differ by more than a rounding to bf16 in between can explain; on the CPU there is none.
    pub(super) fn compare(&self, other: &Self, device: &Device) -> anyhow::Result<Equal> {
        let (a, b) = (bytes(self.values)?, bytes(other.values)?);
        let (scales, others) = (self.scales.to_vec::<f32>()?, other.scales.to_vec::<f32>()?);
        let is_same = a == b && scales.iter().zip(&others).all(|(a, b)| a.to_bits() == b.to_bits());
        if is_same {
            return Ok(Equal::Bitwise);
        }
        ensure!(device.is_cuda(), "rows rounded to FP8 differ");
        let worst = a.iter().zip(&b).map(|(&a, &b)| steps_apart(a, b)).max().unwrap_or(0);
        ensure!(worst <= 1, "rows rounded to FP8 are {worst} steps apart");
        let far = scales.iter().zip(&others).find(|(a, b)| (**a - **b).abs() > MAX_SCALE_ERROR * a.abs());
        ensure!(far.is_none(), "scales of rows differ: {far:?}");
        Ok(Equal::OneFp8Step)
    }
}

/// FP8 numbers between two of them; both zeros are one.
fn steps_apart(a: u8, b: u8) -> u16 {
    let place = |bits: u8| {
        let magnitude = i16::from(bits & 0x7F);
        if bits & 0x80 == 0 { magnitude } else { -magnitude }
    };
    place(a).abs_diff(place(b))
}

/// Logits on the host.
pub(super) fn logits(device: &Device, view: View<'_>) -> anyhow::Result<Vec<f32>> {
    let Some(cuda) = device.stream().cuda() else { return Ok(view.as_slice::<f32>()?.to_vec()) };
    let mut copy = Tensor::zeros(device, DType::F32, &[view.shape().num_elements()])?;
    let flat = view.reshape(&[view.shape().num_elements()])?;
    cuda.copy(flat, copy.view_mut()?)?;
    Ok(copy.to_vec::<f32>()?)
}

/// Compares logits.
///
/// # Errors
/// When they are not the same on the CPU, or far apart on a GPU.
pub(super) fn compare_logits(device: &Device, a: &[f32], b: &[f32]) -> anyhow::Result<Equal> {
    ensure!(a.len() == b.len() && a.iter().all(|x| x.is_finite()), "{} and {} logits", a.len(), b.len());
    if a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()) {
        return Ok(Equal::Bitwise);
    }
    let top = a.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
    // A NaN is no number to be the largest, so it is looked for apart.
    let worst = a.iter().zip(b).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
    let is_near = b.iter().all(|x| x.is_finite()) && worst <= MAX_LOGIT_ERROR * top;
    ensure!(device.is_cuda() && is_near, "logits differ by up to {worst}, where the largest is {top}");
    Ok(Equal::Near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_found() {
        let device = Device::cpu(1).unwrap();
        let tensor = |values: &[f32]| Tensor::from_slice(&device, values, &[values.len()]).unwrap();
        ensure_same("it", &tensor(&[1.0, 2.0]), &tensor(&[1.0, 2.0])).unwrap();
        let error = ensure_same("it", &tensor(&[1.0, 2.0]), &tensor(&[1.0, -2.0])).unwrap_err();
        assert_eq!(error.to_string(), "it: the two ways differ from byte 7 on");
        assert!(ensure_same("it", &tensor(&[0.0]), &tensor(&[-0.0])).is_err());
        assert_eq!(compare_logits(&device, &[1.0, 2.0], &[1.0, 2.0]).unwrap(), Equal::Bitwise);
        assert!(compare_logits(&device, &[1.0, 2.0], &[1.0, 2.000_001]).is_err());
        assert!(compare_logits(&device, &[1.0], &[1.0, 2.0]).is_err());
    }

    #[test]
    fn steps_are_those_of_the_format() {
        let bits = |x: f32| F8E4M3::from_f32(x).to_bits();
        let apart = |a: f32, b: f32| steps_apart(bits(a), bits(b));
        assert_eq!([apart(1.0, 1.125), apart(1.0, 0.9375), apart(2.0, -2.0), apart(0.0, -0.0)], [1, 1, 128, 0]);
        // The smallest numbers of either sign are two apart: zero lies between.
        assert_eq!(apart(2_f32.powi(-9), -2_f32.powi(-9)), 2);
    }

    #[test]
    fn rounded_rows_are_compared_bit_by_bit_on_a_cpu() {
        let device = Device::cpu(1).unwrap();
        let rows = |values: [f32; 2], scale: f32| {
            let values = values.map(F8E4M3::from_f32);
            let values = Tensor::from_slice(&device, &values, &[1, 2]).unwrap();
            (values, Tensor::from_slice(&device, &[scale], &[1]).unwrap())
        };
        let compare = |a: &(Tensor, Tensor), b: &(Tensor, Tensor)| {
            let [a, b] = [a, b].map(|(values, scales)| RoundedRows { values, scales });
            a.compare(&b, &device)
        };
        let one = rows([1.0, 2.0], 0.5);
        assert_eq!(compare(&one, &rows([1.0, 2.0], 0.5)).unwrap(), Equal::Bitwise);
        assert!(compare(&one, &rows([1.125, 2.0], 0.5)).is_err());
        assert!(compare(&one, &rows([1.0, 2.0], 0.5001)).is_err());
    }
}
