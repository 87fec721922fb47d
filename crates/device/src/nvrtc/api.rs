//! NVRTC's functions, called by the handle that `libraries` has checked.
//!
//! Not by cudarc's table: that opens whatever `libnvrtc.so` the loader has first, panics where a symbol is missing, and
//! takes the result as an enum, which a number of a newer NVRTC would make undefined behaviour.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

use libloading::{Library, Symbol};

use super::string;
use crate::libraries::{self, CudaVersion, LibraryKind, Loaded, NotFound};
use crate::{DeviceError, KernelSpec};

/// `nvrtcProgram`.
type Handle = *mut c_void;
/// `nvrtcResult`: 0 is success.
type Status = c_int;
type Strings = *const *const c_char;
type Create = unsafe extern "C" fn(*mut Handle, *const c_char, *const c_char, c_int, Strings, Strings) -> Status;
type CompileProgram = unsafe extern "C" fn(Handle, c_int, Strings) -> Status;
type Destroy = unsafe extern "C" fn(*mut Handle) -> Status;
type GetSize = unsafe extern "C" fn(Handle, *mut usize) -> Status;
type GetBytes = unsafe extern "C" fn(Handle, *mut c_char) -> Status;
type ErrorString = unsafe extern "C" fn(Status) -> *const c_char;

/// The compiler's functions.
pub(super) struct Nvrtc {
    version: CudaVersion,
    create: Symbol<'static, Create>,
    compile: Symbol<'static, CompileProgram>,
    destroy: Symbol<'static, Destroy>,
    log_size: Symbol<'static, GetSize>,
    log: Symbol<'static, GetBytes>,
    cubin_size: Symbol<'static, GetSize>,
    cubin: Symbol<'static, GetBytes>,
    error_string: Symbol<'static, ErrorString>,
}

impl Nvrtc {
    /// The compiler of this machine.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] where there is none.
    pub(super) fn get() -> Result<&'static Self, DeviceError> {
        static NVRTC: OnceLock<Result<Nvrtc, DeviceError>> = OnceLock::new();
        let found = || Self::new(libraries::load(LibraryKind::Nvrtc).map_err(NotFound::to_error)?);
        NVRTC.get_or_init(found).as_ref().map_err(Clone::clone)
    }

    fn new(loaded: &'static Loaded) -> Result<Self, DeviceError> {
        let library = &loaded.library;
        // SAFETY: the names and signatures are those of nvrtc.h, the same in all of 13.x, which `libraries` has checked.
        let create = unsafe { symbol::<Create>(library, "nvrtcCreateProgram") }?;
        // SAFETY: as above.
        let compile = unsafe { symbol::<CompileProgram>(library, "nvrtcCompileProgram") }?;
        // SAFETY: as above.
        let destroy = unsafe { symbol::<Destroy>(library, "nvrtcDestroyProgram") }?;
        // SAFETY: as above.
        let log_size = unsafe { symbol::<GetSize>(library, "nvrtcGetProgramLogSize") }?;
        // SAFETY: as above.
        let log = unsafe { symbol::<GetBytes>(library, "nvrtcGetProgramLog") }?;
        // SAFETY: as above.
        let cubin_size = unsafe { symbol::<GetSize>(library, "nvrtcGetCUBINSize") }?;
        // SAFETY: as above.
        let cubin = unsafe { symbol::<GetBytes>(library, "nvrtcGetCUBIN") }?;
        // SAFETY: as above.
        let error_string = unsafe { symbol::<ErrorString>(library, "nvrtcGetErrorString") }?;
        Ok(Self { version: loaded.version, create, compile, destroy, log_size, log, cubin_size, cubin, error_string })
    }

    pub(super) fn version(&self) -> CudaVersion {
        self.version
    }

    /// The status as a result, in NVRTC's own words.
    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it takes any number and returns a static string.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return Err(format!("NVRTC failed with {status}"));
        }
        // SAFETY: not null, and by nvrtc.h a C string that is never freed.
        let text = unsafe { CStr::from_ptr(text) };
        Err(format!("NVRTC failed: {}", text.to_string_lossy()))
    }
}

/// # Safety
/// The function of this name has the type `F`.
unsafe fn symbol<F>(library: &'static Library, name: &str) -> Result<Symbol<'static, F>, DeviceError> {
    // SAFETY: the caller vouches for the type.
    let symbol = unsafe { library.get::<F>(name) };
    let reason = |error| format!("{} lacks {name}: {error}", LibraryKind::Nvrtc.file_name());
    symbol.map_err(|error| DeviceError::Unavailable { device: "cuda".to_owned(), reason: reason(error) })
}

/// A text in the compiler's hands.
pub(super) struct Program {
    nvrtc: &'static Nvrtc,
    handle: Handle,
}

impl Program {
    /// Hands a kernel's text and headers over; they are copied.
    pub(super) fn new(nvrtc: &'static Nvrtc, spec: &KernelSpec) -> Result<Self, String> {
        let source = spec.source();
        let text = string(source.text)?;
        let name = string(format!("{}.cu", source.name))?;
        let header_texts = source.headers.iter().map(|h| string(h.text)).collect::<Result<Vec<_>, _>>()?;
        let header_names = source.headers.iter().map(|h| string(h.name)).collect::<Result<Vec<_>, _>>()?;
        let num_headers = c_int::try_from(source.headers.len()).map_err(|_| "there are too many headers".to_owned())?;
        let (header_texts, header_names) = (pointers(&header_texts), pointers(&header_names));
        let mut handle = ptr::null_mut();
        let (texts, names) = (header_texts.as_ptr(), header_names.as_ptr());
        // SAFETY: every pointer is to a C string or to `num_headers` of them, all alive until the call returns, and
        // NVRTC copies what it keeps.
        let status =
            unsafe { (nvrtc.create)(&raw mut handle, text.as_ptr(), name.as_ptr(), num_headers, texts, names) };
        nvrtc.check(status).map(|()| Self { nvrtc, handle })
    }

    /// Compiles it; whatever comes of it, the log says more.
    pub(super) fn compile(&self, options: &[CString]) -> Result<(), String> {
        let options = pointers(options);
        let num_options = c_int::try_from(options.len()).map_err(|_| "there are too many options".to_owned())?;
        // SAFETY: the handle is alive, and `options` are `num_options` C strings that outlive the call.
        self.nvrtc.check(unsafe { (self.nvrtc.compile)(self.handle, num_options, options.as_ptr()) })
    }

    /// What the compiler said; empty if it won't tell.
    pub(super) fn log(&self) -> String {
        let bytes = self.bytes(&self.nvrtc.log_size, &self.nvrtc.log).unwrap_or_default();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
    }

    /// The machine code.
    pub(super) fn cubin(&self) -> Result<Vec<u8>, String> {
        let cubin = self.bytes(&self.nvrtc.cubin_size, &self.nvrtc.cubin)?;
        if cubin.is_empty() {
            Err("NVRTC gave no cubin; is the architecture a virtual one?".to_owned())
        } else {
            Ok(cubin)
        }
    }

    fn bytes(&self, size: &GetSize, get: &GetBytes) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: the handle is alive, and `len` is a local of ours.
        self.nvrtc.check(unsafe { size(self.handle, &raw mut len) })?;
        let mut bytes = vec![0_u8; len];
        // SAFETY: the handle is alive, and NVRTC writes as many bytes as it has just said.
        self.nvrtc.check(unsafe { get(self.handle, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: `new` made the handle, and nothing uses it any more.
        unsafe { (self.nvrtc.destroy)(&raw mut self.handle) };
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}
