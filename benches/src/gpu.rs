//! Benchmarks that need an NVIDIA GPU: the program `gpu`.

mod accumulation;
mod attention;
mod ceilings;
mod decode;
mod decoder_rows;
mod kernels;
mod linear;
mod load;
mod measure;
mod operands;
mod prefill;
mod results;
mod sampling;
mod session;
mod shapes;
mod uploads;
mod vision_rows;

pub(crate) use ceilings::Cost;
pub use decode::decode;
pub use kernels::kernels;
pub use load::load;
pub use measure::Bench;
pub(crate) use operands::{Rotation, bits};
pub use prefill::prefill;
pub use session::ModelForm;
pub(crate) use session::{SEED, Session, Step, config};
pub(crate) use shapes::BF16;
