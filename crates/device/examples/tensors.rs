//! A tensor, its rows, and work in the device's threads: `cargo run -p foveal-device --example tensors`.

use foveal_device::{DType, Device, DeviceError, DeviceKind, Tensor};

fn main() -> Result<(), DeviceError> {
    let device = Device::open(DeviceKind::Auto, 0)?;
    println!("{device:?}");

    // A buffer for the largest step, of which a smaller step borrows the first rows.
    let mut buffer = Tensor::zeros(&device, DType::F32, &[8, 4])?;
    let mut step = buffer.rows_mut(0..2)?;
    device.stream().install(|| -> Result<(), DeviceError> {
        step.as_mut_slice::<f32>()?.fill(1.0);
        Ok(())
    })?;
    println!("{buffer:?}: its first three rows are {:?}", buffer.rows(0..3)?.as_slice::<f32>()?);

    if let Err(error) = buffer.rows(7..9) {
        println!("rows 7..9: {error}");
    }
    Ok(())
}
