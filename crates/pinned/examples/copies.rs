//! Bytes on their way to a device: `cargo run -p foveal-pinned --example copies`.

use std::error::Error;

use foveal_device::{DType, Device, DeviceKind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::open(DeviceKind::Auto, 0)?;
    let pool = foveal_pinned::install(&device, 64 << 20);
    println!("{device:?}");

    // Written by one, then read by many: a picture's pixels.
    let mut block = pool.acquire(3 * 224 * 224)?;
    block.fill(128);
    let pixels = block.freeze();
    let mut picture = Tensor::zeros(&device, DType::U8, &[224, 224, 3])?;
    pixels.copy_to(device.stream(), 0..pixels.len(), picture.view_mut()?)?;

    // Memory of any kind, through the pool that was installed.
    let weights = vec![0.5_f32; 1 << 20];
    let mut tensor = Tensor::zeros(&device, DType::F32, &[1024, 1024])?;
    device.stream().write(bytemuck::cast_slice(&weights), tensor.view_mut()?)?;

    // The block goes back after its last owner and its last copy.
    drop(pixels);
    device.stream().synchronize()?;
    println!("{:?}", pool.stats());

    // What doesn't fit is refused with figures.
    if let Err(error) = pool.acquire(65 << 20) {
        println!("{error}");
    }
    Ok(())
}
