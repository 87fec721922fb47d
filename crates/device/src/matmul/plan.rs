//! What the library is told of a product, and the algorithm that is used for it.

use cudarc::cublaslt::sys::{cublasComputeType_t as Compute, cudaDataType_t as Type};

use super::MatmulShape;
use super::library::{Algorithm, Descriptor, Layout, Library, Operands, Preference};
use super::tuned::TunedAlgorithms;
use crate::{DType, DeviceError};

/// Algorithms that the library is asked for.
const MAX_CANDIDATES: usize = 16;

/// From so many columns on the library proposes little but sums that are split among blocks and added afterwards.
const LONG_SUM: usize = 8192;
/// Columns of a product for which it proposes others.
const SHORT_SUM: usize = 2048;
/// For fewer rows than these the library proposes others, of which the quickest may be slower than one that it proposes for these.
const FEW_ROWS: usize = 128;

/// The largest alignment that any algorithm makes use of: of vector loads, and of bulk tensor copies.
const MAX_ALIGNMENT: u64 = 16;

/// An address for scales that are not known yet.
const SCALES_SOMEWHERE: u64 = 1 << 20;

/// Bytes that an operand's address is a multiple of, up to [`MAX_ALIGNMENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Alignment {
    pub(super) x: u8,
    pub(super) weight: u8,
    /// That of an absent bias is 16.
    pub(super) bias: u8,
    pub(super) out: u8,
}

/// Everything that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    pub(super) shape: MatmulShape,
    pub(super) alignment: Alignment,
}

fn alignment(address: u64) -> u8 {
    1 << address.trailing_zeros().min(MAX_ALIGNMENT.trailing_zeros())
}

impl PlanKey {
    pub(super) fn new(shape: &MatmulShape, operands: &Operands) -> Self {
        let Operands { x, weight, bias, out, .. } = *operands;
        let alignment =
            Alignment { x: alignment(x), weight: alignment(weight), bias: alignment(bias), out: alignment(out) };
        Self { shape: *shape, alignment }
    }

    /// A key for what may have the alignment of either.
    pub(super) fn least_aligned(self, other: Self) -> Self {
        let (a, b) = (self.alignment, other.alignment);
        let alignment = Alignment {
            x: a.x.min(b.x),
            weight: a.weight.min(b.weight),
            bias: a.bias.min(b.bias),
            out: a.out.min(b.out),
        };
        Self { alignment, ..self }
    }

    /// The key of all that differs in its rows alone.
    pub(super) fn family(self) -> Self {
        Self { shape: MatmulShape { m: 0, ..self.shape }, ..self }
    }

    pub(super) fn is_of_family(&self, other: &Self) -> bool {
        self.family() == other.family()
    }
}

/// The library's names for a product's element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Types {
    /// Of activations and weights.
    input: Type,
    out: Type,
    compute: Compute,
}

impl Types {
    pub(super) fn of(shape: &MatmulShape) -> Result<Self, DeviceError> {
        let compute = Compute::CUBLAS_COMPUTE_32F;
        let types = match (shape.x, shape.weight, shape.out) {
            (DType::BF16, DType::BF16, DType::BF16) => {
                Self { input: Type::CUDA_R_16BF, out: Type::CUDA_R_16BF, compute }
            }
            (DType::BF16, DType::BF16, DType::F32) => Self { input: Type::CUDA_R_16BF, out: Type::CUDA_R_32F, compute },
            (DType::F8E4M3, DType::F8E4M3, DType::BF16 | DType::F32) if shape.bias.is_none() => {
                let out = if shape.out == DType::BF16 { Type::CUDA_R_16BF } else { Type::CUDA_R_32F };
                Self { input: Type::CUDA_R_8F_E4M3, out, compute }
            }
            (DType::F32, DType::F32, DType::F32) => Self { input: Type::CUDA_R_32F, out: Type::CUDA_R_32F, compute },
            _ => {
                return Err(
                    shape.refused("bf16 by bf16 and f8_e4m3 by f8_e4m3 (without a bias) give bf16 or f32, f32 by f32 gives f32, and nothing else goes")
                );
            }
        };
        match shape.bias {
            Some(bias) if bias != shape.out => Err(shape.refused(format!("the bias must hold {}", shape.out))),
            _ => Ok(types),
        }
    }
}

/// What the library is told of a product.
pub(super) struct Problem {
    pub(super) descriptor: Descriptor,
    weight: Layout,
    x: Layout,
    out: Layout,
}

impl Problem {
    pub(super) fn new(library: &Library, key: &PlanKey) -> Result<Self, DeviceError> {
        let shape = &key.shape;
        let Types { input, out, compute } = Types::of(shape)?;
        let MatmulShape { m, n, k, ldo, .. } = *shape;
        if k == 0 {
            return Err(shape.refused("there is nothing to sum"));
        }
        let descriptor = Descriptor::new(library, compute)?;
        if shape.bias.is_some() {
            descriptor.add_bias()?;
            // The library reads the alignment off the address when it proposes algorithms.
            descriptor.set_bias(u64::from(key.alignment.bias))?;
        }
        if shape.x == DType::F8E4M3 {
            // Block scales are applied outside of the tensor cores in any case.
            if shape.f8.fast_accumulation && !shape.f8.has_block_scales {
                descriptor.accumulate_fast()?;
            }
            if shape.f8.has_block_scales {
                descriptor.scale_blocks()?;
                // Where they are is told with each product; what the library proposes needs them to be somewhere.
                descriptor.set_scales([SCALES_SOMEWHERE; 2])?;
            }
        }
        Ok(Self {
            descriptor,
            weight: Layout::new(library, input, [k, n], k)?,
            x: Layout::new(library, input, [k, m], k)?,
            out: Layout::new(library, out, [n, m], ldo)?,
        })
    }

    /// A, B and D of the library.
    pub(super) fn layouts(&self) -> [&Layout; 3] {
        [&self.weight, &self.x, &self.out]
    }

    /// The algorithms that are worth timing, the library's favourite first: its proposals for this product, for one of fewer
    /// columns where there are many, and for one of more rows where there are few.
    pub(super) fn worth_timing(
        &self,
        library: &Library,
        key: &PlanKey,
        workspace_bytes: usize,
    ) -> Result<Vec<Algorithm>, DeviceError> {
        let mut algorithms = self.candidates(library, key, workspace_bytes)?;
        let shorter = (key.shape.k >= LONG_SUM).then_some(MatmulShape { k: SHORT_SUM, ..key.shape });
        let taller = (key.shape.m < FEW_ROWS).then_some(MatmulShape { m: FEW_ROWS, ..key.shape });
        for shape in [shorter, taller].into_iter().flatten() {
            let like = PlanKey { shape, ..*key };
            let others = Self::new(library, &like)?.candidates(library, &like, workspace_bytes).unwrap_or_default();
            for other in others {
                if !algorithms.contains(&other) && self.takes(library, &other, workspace_bytes) {
                    algorithms.push(other);
                }
            }
        }
        Ok(algorithms)
    }

    /// The algorithms that the library proposes, its favourite first; at least one.
    fn candidates(
        &self,
        library: &Library,
        key: &PlanKey,
        workspace_bytes: usize,
    ) -> Result<Vec<Algorithm>, DeviceError> {
        let Alignment { x, weight, bias, out } = key.alignment;
        let alignment = [weight, x, out.min(bias)].map(u32::from);
        let preference = match key.shape.f8.has_block_scales {
            true => Preference::within(workspace_bytes)?,
            false => Preference::new(library, workspace_bytes, alignment)?,
        };
        let proposed = library.candidates::<MAX_CANDIDATES>(&self.descriptor, self.layouts(), &preference);
        let fitting = proposed.into_iter().filter(|candidate| candidate.workspace_bytes <= workspace_bytes);
        let algorithms: Vec<Algorithm> = fitting.map(|candidate| candidate.algorithm).collect();
        if algorithms.is_empty() {
            return Err(key.shape.refused("cuBLASLt has no algorithm for it"));
        }
        Ok(algorithms)
    }

    /// Whether an algorithm computes this with so much workspace.
    pub(super) fn takes(&self, library: &Library, algorithm: &Algorithm, workspace_bytes: usize) -> bool {
        let needed = library.check(&self.descriptor, self.layouts(), algorithm);
        needed.is_some_and(|needed| needed <= workspace_bytes)
    }
}

/// A product that can be launched.
pub(super) struct Plan {
    pub(super) problem: Problem,
    pub(super) algorithm: Algorithm,
}

impl Plan {
    /// With the algorithm that was tuned for these or a few more rows, else the library's favourite.
    pub(super) fn new(
        library: &Library,
        key: &PlanKey,
        tuned: &TunedAlgorithms,
        workspace_bytes: usize,
    ) -> Result<Self, DeviceError> {
        let problem = Problem::new(library, key)?;
        let known = tuned.of_rows(key).map(|tuned| tuned.algorithm);
        let algorithm = match known.filter(|algorithm| problem.takes(library, algorithm, workspace_bytes)) {
            Some(algorithm) => Some(algorithm),
            None => problem.candidates(library, key, workspace_bytes)?.first().copied(),
        };
        let algorithm = algorithm.ok_or_else(|| key.shape.refused("cuBLASLt has no algorithm for it"))?;
        Ok(Self { problem, algorithm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::F8Product;

    const SHAPE: MatmulShape = MatmulShape {
        m: 5,
        n: 6,
        k: 7,
        x: DType::BF16,
        weight: DType::BF16,
        out: DType::BF16,
        bias: None,
        ldo: 9,
        f8: F8Product { fast_accumulation: false, has_block_scales: false },
    };

    #[test]
    fn alignments_are_powers_of_two_up_to_sixteen() {
        let addresses = [0, 1, 2, 6, 4, 8, 24, 16, 48, 256, 1 << 40];
        assert_eq!(addresses.map(alignment), [16, 1, 2, 2, 4, 8, 8, 16, 16, 16, 16]);
    }

    #[test]
    fn keys_tell_alignments_apart_and_families_join_rows() {
        let operands = Operands { x: 256, weight: 512, bias: 0, out: 258, scales: [0; 2] };
        let key = PlanKey::new(&SHAPE, &operands);
        assert_eq!(key.alignment, Alignment { x: 16, weight: 16, bias: 16, out: 2 });
        assert_ne!(key, PlanKey::new(&SHAPE, &Operands { out: 256, ..operands }));
        let more_rows = PlanKey::new(&MatmulShape { m: 50, ..SHAPE }, &operands);
        assert!(key.is_of_family(&more_rows) && key != more_rows);
        assert!(!key.is_of_family(&PlanKey::new(&MatmulShape { ldo: 10, ..SHAPE }, &operands)));
        let least = key.least_aligned(PlanKey::new(&SHAPE, &Operands { x: 8, out: 16, ..operands }));
        assert_eq!(least.alignment, Alignment { x: 8, weight: 16, bias: 16, out: 2 });
    }

    #[test]
    fn types_that_the_library_multiplies_are_named() {
        use DType::{BF16, F8E4M3, F16, F32, I32};
        let of = |x, weight, out, bias| Types::of(&MatmulShape { x, weight, out, bias, ..SHAPE });
        let types = of(BF16, BF16, F32, Some(F32)).unwrap();
        assert_eq!((types.input, types.out), (Type::CUDA_R_16BF, Type::CUDA_R_32F));
        // Not CUBLAS_COMPUTE_32F_FAST_TF32, which would round the operands.
        assert_eq!(of(F32, F32, F32, None).unwrap().compute, Compute::CUBLAS_COMPUTE_32F);
        assert!(of(BF16, BF16, BF16, Some(BF16)).is_ok());
        assert_eq!(of(F8E4M3, F8E4M3, BF16, None).unwrap().input, Type::CUDA_R_8F_E4M3);
        for (x, weight, out, bias) in [
            (F32, BF16, F32, None),
            (BF16, F32, F32, None),
            (F32, F32, BF16, None),
            (F16, F16, F16, None),
            (BF16, BF16, I32, None),
            (BF16, BF16, BF16, Some(F32)),
            (BF16, BF16, F32, Some(BF16)),
            (F8E4M3, F8E4M3, BF16, Some(BF16)),
            (F8E4M3, BF16, BF16, None),
        ] {
            let message = of(x, weight, out, bias).unwrap_err().to_string();
            assert!(message.contains(&format!("{x} [5, 7] x {weight} [6, 7]^T")), "{message}");
        }
    }
}
