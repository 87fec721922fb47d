//! Matrix products by cuBLASLt.
//!
//! A row-major `[m, k]` is a column-major `[k, m]`, so `out = x · weightᵀ` is asked for as the column-major product
//! `outᵀ[n, m] = weight[k, n]ᵀ · x[k, m]`: weights are the library's A, transposed, and activations its B. Nothing is
//! copied or repacked.
//!
//! What is computed is planned once (descriptors and an algorithm) and kept; a call looks its plan up and launches. The
//! algorithm is the one that tuning found best for the shape, else the one of a shape of a few more rows, else the
//! first of the library's own ranking. Partial sums of a split K are added in float32 alone, never in bf16.

mod library;
mod plan;
mod tuned;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::counters::LAUNCHES;
use crate::cuda::{CudaStream, DeviceMemory, Event};
use crate::{CubinCache, DType, DeviceError, View, ViewMut};
use library::{Algorithm, Library, Operands, Workspace};
use plan::{Plan, PlanKey, Problem};
use tuned::{Tuned, TunedAlgorithms};

/// What NVIDIA recommends for Hopper; smaller cards get along with it.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Plans that are kept. Prompts come in any length; a plan takes about a kilobyte, and a new one tens of microseconds.
const MAX_PLANS: usize = 8192;

/// What is multiplied: `out[m, n] = x[m, k] · weight[n, k]ᵀ + bias[n]`, summed in float32.
///
/// `x` and `weight` both bf16 or both f8_e4m3 give bf16 or f32; both f32 give f32, with true float32 products. `bias`
/// has the dtype of `out`, and there is none for f8_e4m3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatmulShape {
    /// Rows of `x` and `out`.
    pub m: usize,
    /// Rows of `weight`, columns of `out`.
    pub n: usize,
    /// Columns of `x` and `weight`.
    pub k: usize,
    /// What `x` holds.
    pub x: DType,
    /// What `weight` holds.
    pub weight: DType,
    /// What `out` holds.
    pub out: DType,
    /// What `bias` holds, if there is one.
    pub bias: Option<DType>,
    /// Elements from a row of `out` to the next one: more than `n` where other columns lie between.
    pub ldo: usize,
    /// What an FP8 product is made with; not looked at for other types.
    pub f8: F8Product,
}

/// How a product of FP8 operands is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct F8Product {
    /// Sums may stay in the tensor cores, which keep about 14 bits of them, for all of `k`; else they are moved to
    /// float32 registers every few instructions.
    pub fast_accumulation: bool,
    /// Both operands have a scale for each block: [`BlockScales`].
    pub has_block_scales: bool,
}

/// The scales of operands that are scaled by blocks, float32: each 128 columns of a row of `x` have one, and each
/// 128 x 128 elements of `weight`.
#[derive(Clone, Copy, Debug)]
pub struct BlockScales<'a> {
    /// `[ceil(k / 128), m]`, m a multiple of 4.
    pub x: View<'a>,
    /// `[ceil(n / 128), ceil(k / 128)]`, the columns a multiple of 4.
    pub weight: View<'a>,
}

/// What goes into a product.
#[derive(Clone, Copy, Debug)]
pub struct MatmulInputs<'a> {
    /// `[m, k]`
    pub x: View<'a>,
    /// `[n, k]`
    pub weight: View<'a>,
    /// `[n]`
    pub bias: Option<View<'a>>,
    /// Where the shape says that there are any.
    pub scales: Option<BlockScales<'a>>,
}

/// Rows and columns of a block with one scale.
const BLOCK: usize = 128;

impl fmt::Display for MatmulShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { m, n, k, x, weight, out, bias, ldo, f8 } = self;
        write!(f, "{x} [{m}, {k}] x {weight} [{n}, {k}]^T")?;
        if let Some(bias) = bias {
            write!(f, " + {bias} [{n}]")?;
        }
        if f8.has_block_scales {
            write!(f, " with block scales")?;
        }
        write!(f, " -> {out} [{m}, {n}] in rows of {ldo}")
    }
}

impl MatmulShape {
    fn refused(&self, reason: impl Into<String>) -> DeviceError {
        DeviceError::Matmul { shape: self.to_string(), reason: reason.into() }
    }

    /// The address of an operand of `rows` by `columns` elements.
    fn operand(&self, name: &str, view: &View<'_>, dtype: DType, sizes: [usize; 2]) -> Result<u64, DeviceError> {
        let [rows, columns] = sizes;
        if view.dtype() != dtype {
            return Err(self.refused(format!("{name} holds {}", view.dtype())));
        }
        if rows.checked_mul(columns) != Some(view.shape().num_elements()) {
            return Err(self.refused(format!("{name} is {}", view.shape())));
        }
        address(view)
    }

    /// The operands' addresses, after checks that everything read and written lies inside of them.
    fn operands(
        &self,
        inputs: &MatmulInputs<'_>,
        (out, out_offset): (&ViewMut<'_>, usize),
    ) -> Result<Operands, DeviceError> {
        let MatmulInputs { x, weight, bias, scales } = inputs;
        let x = self.operand("x", x, self.x, [self.m, self.k])?;
        let weight = self.operand("weight", weight, self.weight, [self.n, self.k])?;
        let bias = match (bias, self.bias) {
            (None, None) => 0,
            (Some(bias), Some(dtype)) => self.operand("bias", bias, dtype, [1, self.n])?,
            (given, _) => {
                return Err(self.refused(format!("bias is {}", if given.is_some() { "given" } else { "missing" })));
            }
        };
        if out.dtype() != self.out {
            return Err(self.refused(format!("out holds {}", out.dtype())));
        }
        let last_row = self.m.saturating_sub(1).saturating_mul(self.ldo);
        // Without rows nothing is written, and `out` need have no element.
        let end = if self.m == 0 { 0 } else { last_row.saturating_add(self.n).saturating_add(out_offset) };
        if self.n > self.ldo || end > out.shape().num_elements() {
            return Err(self.refused(format!("out is {}, written from element {out_offset} on", out.shape())));
        }
        let out = address(&out.as_view())? + (out_offset * self.out.size_bytes()) as u64;
        Ok(Operands { x, weight, bias, out, scales: self.scales(scales.as_ref())? })
    }

    /// The addresses of the scales of weight and x; 0 for none.
    fn scales(&self, scales: Option<&BlockScales<'_>>) -> Result<[u64; 2], DeviceError> {
        let Some(scales) = scales.filter(|_| self.f8.has_block_scales) else {
            return match self.f8.has_block_scales {
                true => Err(self.refused("its block scales are missing")),
                false => Ok([0; 2]),
            };
        };
        let (rows, columns) = (self.n.div_ceil(BLOCK), self.k.div_ceil(BLOCK));
        if !columns.is_multiple_of(4) || !self.m.is_multiple_of(4) {
            return Err(self.refused("with block scales k must be a multiple of 512, m of 4"));
        }
        let weight = self.operand("the scales of weight", &scales.weight, DType::F32, [rows, columns])?;
        let x = self.operand("the scales of x", &scales.x, DType::F32, [columns, self.m])?;
        Ok([weight, x])
    }
}

/// Where a view's elements are, which must be at a multiple of their size.
fn address(view: &View<'_>) -> Result<u64, DeviceError> {
    let address = view.device_ptr()?;
    if address.is_multiple_of(view.dtype().size_bytes() as u64) {
        Ok(address)
    } else {
        Err(DeviceError::Misaligned { dtype: view.dtype() })
    }
}

impl CudaStream {
    /// `out = x · weightᵀ + bias`. The product's first column is element `out_offset` of `out` and its rows are
    /// `shape.ldo` apart, so that several weights can write columns of one `out`.
    ///
    /// No sizes or pointers need be multiples of anything, but those of 16 bytes are quicker; for f8_e4m3 `n`, `k` and
    /// all addresses must be multiples of 16. Without rows or columns nothing is done.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] without cuBLASLt, [`DeviceError::Matmul`] for element types that it doesn't
    /// multiply or operands that don't have the shape (`k` = 0 among them), [`DeviceError::NotOnDevice`].
    pub fn matmul(
        &self,
        shape: &MatmulShape,
        inputs: &MatmulInputs<'_>,
        out: &mut ViewMut<'_>,
        out_offset: usize,
    ) -> Result<(), DeviceError> {
        let operands = shape.operands(inputs, (&*out, out_offset))?;
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        self.device().bind()?;
        self.matmuls()?.run(self, shape, &operands)
    }

    /// Times the algorithms that the library proposes for a product and uses the quickest from now on, also in later
    /// processes on cards of this name. Gives the microseconds that it takes. What was tuned before isn't timed again.
    ///
    /// `other_weights` are of the same shape and are taken in turn, with the same scales: with more of them than the
    /// card's second-level cache holds, as in a model's layers, none comes from it. `out` holds a product of one of
    /// them afterwards. Waits for the GPU, and captures the stream: nothing else may be given to it meanwhile.
    ///
    /// # Errors
    /// As [`CudaStream::matmul`].
    pub fn tune_matmul(
        &self,
        shape: &MatmulShape,
        inputs: &MatmulInputs<'_>,
        other_weights: &[View<'_>],
        out: &mut ViewMut<'_>,
        out_offset: usize,
    ) -> Result<f32, DeviceError> {
        let weights = std::iter::once(inputs.weight).chain(other_weights.iter().copied());
        let operands = weights.map(|weight| shape.operands(&MatmulInputs { weight, ..*inputs }, (&*out, out_offset)));
        let operands = operands.collect::<Result<Vec<_>, _>>()?;
        if shape.m == 0 || shape.n == 0 {
            return Ok(0.0);
        }
        self.device().bind()?;
        self.matmuls()?.tune(self, shape, &operands)
    }
}

/// The matrix products of one stream.
pub(crate) struct Matmuls {
    state: Mutex<State>,
    /// Used by one product after the other, in the stream's order.
    workspace: DeviceMemory,
}

struct State {
    // Descriptors go before the library.
    plans: HashMap<PlanKey, Plan>,
    tuned: TunedAlgorithms,
    library: Library,
}

impl Matmuls {
    /// Opens the library, and allocates all the memory that products will ever take.
    pub(crate) fn new(stream: &CudaStream) -> Result<Self, DeviceError> {
        let cubins = CubinCache::open_default();
        let folder = cubins.user_folder().and_then(|folder| folder.parent()).map(|cache| cache.join("matmuls"));
        Self::with_folder(stream, folder)
    }

    /// With the folder in which tuned algorithms are kept.
    fn with_folder(stream: &CudaStream, folder: Option<PathBuf>) -> Result<Self, DeviceError> {
        stream.device().bind()?;
        let library = Library::open()?;
        let tuned = TunedAlgorithms::open(folder, stream.device().name(), library.version());
        let workspace = DeviceMemory::zeroed(stream, WORKSPACE_BYTES)?;
        Ok(Self { state: Mutex::new(State { plans: HashMap::new(), tuned, library }), workspace })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workspace(&self) -> Workspace {
        let bytes = self.workspace.bytes();
        Workspace { address: bytes.ptr, len_bytes: bytes.len }
    }

    /// The stream's context is current, and the operands are those of the shape.
    fn run(&self, stream: &CudaStream, shape: &MatmulShape, operands: &Operands) -> Result<(), DeviceError> {
        let key = PlanKey::new(shape, operands);
        let State { plans, tuned, library } = &mut *self.lock();
        if plans.len() >= MAX_PLANS && !plans.contains_key(&key) {
            plans.clear();
        }
        let plan = match plans.entry(key) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::new(library, &key, tuned, WORKSPACE_BYTES)?),
        };
        LAUNCHES.add_one();
        library.run(&plan.problem, &plan.algorithm, operands, self.workspace(), stream.raw())
    }

    /// As [`Matmuls::run`]; one set of operands for each of the weights.
    fn tune(&self, stream: &CudaStream, shape: &MatmulShape, operands: &[Operands]) -> Result<f32, DeviceError> {
        let Some(key) = operands.iter().map(|operands| PlanKey::new(shape, operands)).reduce(PlanKey::least_aligned)
        else {
            return Ok(0.0);
        };
        let State { plans, tuned, library } = &mut *self.lock();
        let problem = Problem::new(library, &key)?;
        if let Some(known) = tuned.exact(&key)
            && problem.takes(library, &known.algorithm, WORKSPACE_BYTES)
        {
            return Ok(known.microseconds);
        }
        let mut best: Option<Tuned> = None;
        for algorithm in problem.worth_timing(library, &key, WORKSPACE_BYTES)? {
            let limit = best.map_or(f32::INFINITY, |best| best.microseconds * HOPELESS);
            let microseconds = self.time(library, &problem, &algorithm, operands, (stream, limit))?;
            if let Some(microseconds) = microseconds
                && best.is_none_or(|best| microseconds < best.microseconds)
            {
                best = Some(Tuned { algorithm, microseconds });
            }
        }
        let best = best.ok_or_else(|| shape.refused("cuBLASLt could run none of its algorithms"))?;
        tuned.insert(key, best);
        plans.retain(|other, _| !other.is_of_family(&key));
        Ok(best.microseconds)
    }

    /// Microseconds that an algorithm takes; `None` if the library doesn't run it after all, if it can't be recorded, or if it
    /// takes longer than the limit twice.
    fn time(
        &self,
        library: &Library,
        problem: &Problem,
        algorithm: &Algorithm,
        operands: &[Operands],
        (stream, limit): (&CudaStream, f32),
    ) -> Result<Option<f32>, DeviceError> {
        let Some(first) = operands.first() else { return Ok(None) };
        let run = |operands: &Operands| {
            LAUNCHES.add_one();
            library.run(problem, algorithm, operands, self.workspace(), stream.raw())
        };
        // The first launch loads the algorithm's kernel, the second one tells how many to time.
        if let Err(error) = run(first) {
            tracing::debug!(%error, "a proposed algorithm doesn't run");
            return Ok(None);
        }
        let mut start = Event::with_timing(stream.device())?;
        let mut end = Event::with_timing(stream.device())?;
        stream.record(&mut start)?;
        run(first)?;
        stream.record(&mut end)?;
        end.wait()?;
        let count = repetitions(end.milliseconds_since(&start)? * 1e3);
        let weights_in_turn = |i: usize| operands.get(i % operands.len()).map_or(Ok(()), run);
        // Twice, so that a hiccup doesn't decide.
        let is_hopeless = |times: &[f32]| times.len() == 2 && times.iter().all(|&time| time > limit);
        let is_enough = |times: &[f32]| times.len() >= ROUNDS || is_hopeless(times);
        let times = match stream.time_calls_until(count, weights_in_turn, is_enough) {
            Ok(times) => times,
            Err(error) => {
                tracing::debug!(%error, "a proposed algorithm can't be recorded");
                return Ok(None);
            }
        };
        Ok(if is_hopeless(&times) { None } else { times.into_iter().reduce(f32::min) })
    }
}

/// Rounds of repetitions, of which the quickest counts.
const ROUNDS: usize = 3;
/// So many times the best time in two rounds, and an algorithm isn't timed any further.
const HOPELESS: f32 = 1.5;
/// About how long a round lasts, but for the shortest products: far longer than it takes to start one.
const ROUND_MICROSECONDS: f32 = 500.0;

/// How often a product that took `first` microseconds by itself is run in a round.
fn repetitions(first: f32) -> usize {
    (ROUND_MICROSECONDS / first.max(1.0)).ceil().clamp(1.0, 64.0) as usize
}
