//! cuBLASLt's functions, each with what it asks for.
#![allow(unsafe_code)]

use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;

use crate::DeviceError;
use crate::cuda::without_captures;
use crate::libraries;

/// An algorithm with all that is set in it, as the library serialises it: for the same version of the library alone.
pub(super) type Algorithm = [u64; 8];

/// Addresses of a product's operands, which lie in GPU memory. No bias is 0, nor are no scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) weight: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
    /// Of the weights' and the activations' blocks.
    pub(super) scales: [u64; 2],
}

/// Scratch memory of the GPU.
#[derive(Clone, Copy)]
pub(super) struct Workspace {
    pub(super) address: u64,
    pub(super) len_bytes: usize,
}

/// What the library said of a call.
pub(super) fn error(call: &'static str) -> impl Fn(CublasError) -> DeviceError {
    move |CublasError(status)| DeviceError::Driver { call, reason: format!("{status:?}") }
}

/// The library, ready for the current context's GPU.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
}

// SAFETY: the library's functions may be called from any thread with the context current; the lock around it lets one in
// at a time.
unsafe impl Send for Library {}

impl Library {
    pub(super) fn open() -> Result<Self, DeviceError> {
        libraries::ensure_cublaslt().map_err(|missing| missing.to_error())?;
        let handle = result::create_handle().map_err(error("cublasLtCreate"))?;
        Ok(Self { handle })
    }

    /// Algorithms are only understood by the version that gave them.
    pub(super) fn version(&self) -> usize {
        // SAFETY: it takes nothing; the library was found when `self` was made.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// Up to `MAX` algorithms, the one that the library deems best first. None is no error here.
    pub(super) fn candidates<const MAX: usize>(
        &self,
        descriptor: &Descriptor,
        [weight, x, out]: [&Layout; 3],
        preference: &Preference,
    ) -> Vec<Candidate> {
        let empty = sys::cublasLtMatmulHeuristicResult_t {
            algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut results = [empty; MAX];
        let mut count = 0;
        // SAFETY: all objects live until their `drop`, and `results` has as many entries as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                descriptor.0,
                weight.0,
                x.0,
                out.0,
                out.0,
                preference.0,
                MAX as i32,
                results.as_mut_ptr(),
                &raw mut count,
            )
        };
        if let Err(CublasError(status)) = status.result() {
            tracing::debug!(?status, "cuBLASLt proposes no algorithm");
            return Vec::new();
        }
        let proposed = results.iter().take(usize::try_from(count).unwrap_or(0));
        let usable = proposed.filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        usable.map(|result| Candidate { algorithm: result.algo.data, workspace_bytes: result.workspaceSize }).collect()
    }

    /// The workspace that an algorithm takes for a product; `None` if it doesn't compute that product on this GPU.
    pub(super) fn check(
        &self,
        descriptor: &Descriptor,
        [weight, x, out]: [&Layout; 3],
        algorithm: &Algorithm,
    ) -> Option<usize> {
        let algorithm = sys::cublasLtMatmulAlgo_t { data: *algorithm };
        let mut result = sys::cublasLtMatmulHeuristicResult_t {
            algo: algorithm,
            workspaceSize: 0,
            state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        // SAFETY: all objects live until their `drop`; `algorithm` and `result` are locals of the library's types.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle,
                descriptor.0,
                weight.0,
                x.0,
                out.0,
                out.0,
                &raw const algorithm,
                &raw mut result,
            )
        };
        status.result().ok().map(|()| result.workspaceSize)
    }

    /// Gives a product to a stream. The caller has checked that the operands are as large as the layouts say and lie in
    /// memory of the current context's GPU, and that the stream is of that context.
    pub(super) fn run(
        &self,
        problem: &super::Problem,
        algorithm: &Algorithm,
        operands: &Operands,
        workspace: Workspace,
        stream: CUstream,
    ) -> Result<(), DeviceError> {
        if operands.bias != 0 {
            problem.descriptor.set_bias(operands.bias)?;
        }
        if operands.scales != [0; 2] {
            problem.descriptor.set_scales(operands.scales)?;
        }
        let [weight, x, out] = problem.layouts();
        let (alpha, beta) = (1.0_f32, 0.0_f32);
        let algorithm = sys::cublasLtMatmulAlgo_t { data: *algorithm };
        // SAFETY: all objects live until their `drop`, scalars and algorithm are read during the call; the caller vouches
        // for operands and stream.
        let launched = unsafe {
            result::matmul(
                self.handle,
                problem.descriptor.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(operands.weight),
                weight.0,
                pointer(operands.x),
                x.0,
                pointer(operands.out),
                out.0,
                pointer(operands.out),
                out.0,
                &raw const algorithm,
                pointer(workspace.address),
                workspace.len_bytes,
                stream.cast(),
            )
        };
        launched.map_err(error("cublasLtMatmul"))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // It may wait for the GPU.
        let _captures = without_captures();
        // SAFETY: created in `open`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// An algorithm that the library proposes.
pub(super) struct Candidate {
    pub(super) algorithm: Algorithm,
    pub(super) workspace_bytes: usize,
}

/// What is computed, without the sizes.
pub(super) struct Descriptor(sys::cublasLtMatmulDesc_t);

// SAFETY: a plain object of the library, used by one thread at a time.
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// `Aᵀ · B` with float32 scalars.
    pub(super) fn new(_: &Library, compute: sys::cublasComputeType_t) -> Result<Self, DeviceError> {
        /// `CUBLAS_OP_T`, an int.
        const TRANSPOSED: i32 = 1;
        let scale = sys::cudaDataType_t::CUDA_R_32F;
        let descriptor = Self(result::create_matmul_desc(compute, scale).map_err(error("cublasLtMatmulDescCreate"))?);
        descriptor.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        Ok(descriptor)
    }

    /// Adds a bias to each row of A's transpose, from the address last set by [`Descriptor::set_bias`].
    pub(super) fn add_bias(&self) -> Result<(), DeviceError> {
        let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)
    }

    pub(super) fn set_bias(&self, address: u64) -> Result<(), DeviceError> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)
    }

    /// Sums of FP8 products stay in the tensor cores.
    pub(super) fn accumulate_fast(&self) -> Result<(), DeviceError> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1_i8)
    }

    /// A has a scale for each 128 x 128 block, B for each 128 rows of a column, at the addresses last set by
    /// [`Descriptor::set_scales`].
    pub(super) fn scale_blocks(&self) -> Result<(), DeviceError> {
        use sys::cublasLtMatmulDescAttributes_t as What;
        use sys::cublasLtMatmulMatrixScale_t as Scale;
        self.set(
            What::CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
            &(Scale::CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F as u32),
        )?;
        self.set(What::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &(Scale::CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F as u32))
    }

    pub(super) fn set_scales(&self, [a, b]: [u64; 2]) -> Result<(), DeviceError> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &a)?;
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &b)
    }

    fn set<T: bytemuck::Pod>(&self, what: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), DeviceError> {
        // SAFETY: the descriptor lives until `drop`; the value is read during the call, which checks its size.
        let set = unsafe {
            result::set_matmul_desc_attribute(self.0, what, std::ptr::from_ref(value).cast(), size_of::<T>())
        };
        set.map_err(error("cublasLtMatmulDescSetAttribute"))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// How a matrix lies in memory, by columns.
pub(super) struct Layout(sys::cublasLtMatrixLayout_t);

// SAFETY: a plain object of the library, used by one thread at a time.
unsafe impl Send for Layout {}

impl Layout {
    /// `stride` elements from a column to the next.
    pub(super) fn new(
        _: &Library,
        dtype: sys::cudaDataType_t,
        [rows, columns]: [usize; 2],
        stride: usize,
    ) -> Result<Self, DeviceError> {
        let stride = i64::try_from(stride).map_err(|_| DeviceError::TooLarge { value: stride })?;
        let layout = result::create_matrix_layout(dtype, rows as u64, columns as u64, stride);
        layout.map(Self).map_err(error("cublasLtMatrixLayoutCreate"))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What algorithms must do with.
pub(super) struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// Algorithms that take at most so much workspace, work with operands at multiples of so many bytes, and add partial
    /// sums in the type of the sums.
    pub(super) fn new(_: &Library, workspace_bytes: usize, [weight, x, out]: [u32; 3]) -> Result<Self, DeviceError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as What;
        /// Others keep partial sums in the output's type, and would round each to bf16.
        const REDUCTION: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let preference = Self::within(workspace_bytes)?;
        preference.set(What::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &REDUCTION)?;
        preference.set(What::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &weight)?;
        preference.set(What::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x)?;
        preference.set(What::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out)?;
        preference.set(What::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out)?;
        Ok(preference)
    }

    /// Any algorithms that take at most so much workspace: for products with block scales, of which the library proposes
    /// none where more is asked for, and which it doesn't split.
    pub(super) fn within(workspace_bytes: usize) -> Result<Self, DeviceError> {
        let preference = Self(result::create_matmul_pref().map_err(error("cublasLtMatmulPreferenceCreate"))?);
        let what = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        preference.set(what, &(workspace_bytes as u64))?;
        Ok(preference)
    }

    fn set<T: bytemuck::Pod>(
        &self,
        what: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), DeviceError> {
        // SAFETY: the preference lives until `drop`; the value is read during the call, which checks its size.
        let set = unsafe {
            result::set_matmul_pref_attribute(self.0, what, std::ptr::from_ref(value).cast(), size_of::<T>())
        };
        set.map_err(error("cublasLtMatmulPreferenceSetAttribute"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// An address of the GPU, which the host never follows.
fn pointer(address: u64) -> *mut c_void {
    std::ptr::without_provenance_mut(address as usize)
}
