//! The MLP block of a decoder layer, as models compose it from operators: norm, gate and up projection, SwiGLU, down
//! projection, residual addition. Prints the last row.
//!
//! `cargo run -p foveal-kernels --example layer`

use foveal_device::{DType, Device, Tensor};
use foveal_kernels::activation::{Activation, Gated, gated};
use foveal_kernels::linear::{Linear, linear};
use foveal_kernels::norm::{AddNorm, NormKind, add_norm};

const NUM_TOKENS: usize = 3;
const HIDDEN: usize = 8;
const INTERMEDIATE: usize = 16;

/// Small numbers of both signs in place of trained weights.
fn weights(device: &Device, dims: &[usize], step: f32) -> Result<Tensor, Box<dyn std::error::Error>> {
    let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|i| (i as f32 * step).sin() * 0.3).collect();
    Ok(Tensor::from_slice(device, &values, dims)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::cpu(0)?;
    let stream = device.stream();
    let norm_weight = Tensor::from_slice(&device, &[1.0_f32; HIDDEN], &[HIDDEN])?;
    let (gate, up) = (weights(&device, &[INTERMEDIATE, HIDDEN], 0.7)?, weights(&device, &[INTERMEDIATE, HIDDEN], 1.3)?);
    let down = weights(&device, &[HIDDEN, INTERMEDIATE], 0.9)?;

    // What a layer keeps and what it works in; the engine makes them once.
    let mut residual = weights(&device, &[NUM_TOKENS, HIDDEN], 0.5)?;
    let mut normed = Tensor::zeros(&device, DType::F32, &[NUM_TOKENS, HIDDEN])?;
    let mut gate_up = Tensor::zeros(&device, DType::F32, &[NUM_TOKENS, 2 * INTERMEDIATE])?;
    let mut hidden = Tensor::zeros(&device, DType::F32, &[NUM_TOKENS, INTERMEDIATE])?;
    let mut mlp_out = Tensor::zeros(&device, DType::F32, &[NUM_TOKENS, HIDDEN])?;

    let norm = |residual: &mut Tensor, add: Option<&Tensor>, out: &mut Tensor| {
        let args = AddNorm {
            residual: residual.view_mut()?,
            add: add.map(Tensor::view),
            add_scales: None,
            extra: None,
            weight: norm_weight.view(),
            bias: None,
            kind: NormKind::Rms,
            eps: 1e-6,
            quantize: None,
            out: out.view_mut()?,
        };
        Ok::<_, Box<dyn std::error::Error>>(add_norm(stream, args)?)
    };

    norm(&mut residual, None, &mut normed)?;
    // Gate and up lie apart in the checkpoint and are one product here.
    let parts = [gate.view(), up.view()];
    linear(stream, Linear { x: normed.view(), weight: &parts, bias: None, scales: None, out: gate_up.view_mut()? })?;
    gated(
        stream,
        Gated {
            gate_up: gate_up.view(),
            scales: None,
            kind: Activation::Silu,
            quantize: None,
            out: hidden.view_mut()?,
        },
    )?;
    linear(
        stream,
        Linear { x: hidden.view(), weight: &[down.view()], bias: None, scales: None, out: mlp_out.view_mut()? },
    )?;
    // The next layer's norm adds what this one gave.
    norm(&mut residual, Some(&mlp_out), &mut normed)?;

    let last = normed.rows(NUM_TOKENS - 1..NUM_TOKENS)?;
    println!("{:.4?}", last.as_slice::<f32>()?);
    Ok(())
}
