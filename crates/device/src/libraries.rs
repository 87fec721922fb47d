//! NVIDIA's libraries: found at run time, loaded once, never unloaded.
//!
//! cudarc opens its libraries by name at the first call and panics where one is missing; the loader knows neither
//! Python's wheels nor a toolkit that nobody entered in its configuration. So each library is looked for here first and
//! loaded by its path, after which opening it by name finds the loaded one. Every way to the driver or to cuBLASLt
//! passes [`ensure_driver`] or [`ensure_cublaslt`] before it calls cudarc.
//!
//! The order: the folders that the variable `FOVEAL_CUDA_LIBS` names, the loader's own, `$CUDA_HOME`, `$CUDA_PATH`,
//! the usual toolkit folders, Conda's and Python's packages.
#![allow(unsafe_code)]

mod search;

use std::ffi::{OsStr, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use crate::DeviceError;
use search::Places;

/// Folders that are searched first for NVIDIA's libraries, separated as in `PATH`.
pub(crate) const LIBRARIES_VARIABLE: &str = "FOVEAL_CUDA_LIBS";

/// The CUDA that this program is written for: libraries of another major version have other structures.
pub(crate) const CUDA_MAJOR: u32 = 13;

/// One of NVIDIA's libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LibraryKind {
    /// `libcuda`, a part of the driver.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Matrix products.
    CublasLt,
}

impl LibraryKind {
    /// The name that the library is loaded by.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Driver => "libcuda.so.1",
            Self::Nvrtc => "libnvrtc.so.13",
            Self::CublasLt => "libcublasLt.so.13",
        }
    }

    /// What makes a missing library appear.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Driver => "install NVIDIA's driver 580 or newer (in a container: start it with `--gpus all`)",
            Self::Nvrtc => "pip install 'nvidia-cuda-nvrtc==13.0.*', or install the CUDA toolkit 13",
            Self::CublasLt => "pip install 'nvidia-cublas==13.*', or install the CUDA toolkit 13",
        }
    }

    /// The name without a version, by which a linker takes it and cudarc opens it first.
    const fn link_name(self) -> &'static str {
        match self {
            Self::Driver => "libcuda.so",
            Self::Nvrtc => "libnvrtc.so",
            Self::CublasLt => "libcublasLt.so",
        }
    }

    const fn loaded(self) -> &'static OnceLock<Result<Loaded, NotFound>> {
        static DRIVER: OnceLock<Result<Loaded, NotFound>> = OnceLock::new();
        static NVRTC: OnceLock<Result<Loaded, NotFound>> = OnceLock::new();
        static CUBLASLT: OnceLock<Result<Loaded, NotFound>> = OnceLock::new();
        match self {
            Self::Driver => &DRIVER,
            Self::Nvrtc => &NVRTC,
            Self::CublasLt => &CUBLASLT,
        }
    }
}

/// A version of CUDA or of a library of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CudaVersion {
    /// Libraries of one major version fit together.
    pub major: u32,
    /// Within a major version, newer ones can more.
    pub minor: u32,
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Whether a library can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LibraryStatus {
    /// It is loaded.
    Found {
        /// Its file.
        path: PathBuf,
        /// What it says that it is.
        version: CudaVersion,
    },
    /// There is none that fits.
    Missing {
        /// Where it was looked for, after the loader's own folders.
        looked_in: Vec<PathBuf>,
        /// What was found and can't be used, a sentence each.
        refused: Vec<String>,
    },
}

impl LibraryStatus {
    /// Looks for the library, and loads it. The answer stays the same as long as the program runs.
    #[must_use]
    pub fn of(kind: LibraryKind) -> Self {
        match load(kind) {
            Ok(loaded) => Self::Found { path: loaded.path.clone(), version: loaded.version },
            Err(NotFound { looked_in, refused, .. }) => {
                Self::Missing { looked_in: looked_in.clone(), refused: refused.clone() }
            }
        }
    }
}

/// A library in use.
pub(crate) struct Loaded {
    pub(crate) library: Library,
    pub(crate) path: PathBuf,
    pub(crate) version: CudaVersion,
    /// What it needs at run time; dropping would unload it.
    _companions: Vec<Library>,
}

/// Why a library can't be used.
#[derive(Debug)]
pub(crate) struct NotFound {
    kind: LibraryKind,
    looked_in: Vec<PathBuf>,
    refused: Vec<String>,
}

impl NotFound {
    pub(crate) fn to_error(&self) -> DeviceError {
        DeviceError::Unavailable { device: "cuda".to_owned(), reason: self.to_string() }
    }
}

impl fmt::Display for NotFound {
    /// What is missing and what would mend it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.refused.as_slice() {
            [] => write!(f, "{} was not found by the loader nor in the usual folders", self.kind.file_name())?,
            refused => f.write_str(&refused.join("; "))?,
        }
        write!(f, ". To mend it: {}; {LIBRARIES_VARIABLE} can name the folder it is in", self.kind.remedy())
    }
}

/// Loads the library, at most once in a process.
pub(crate) fn load(kind: LibraryKind) -> Result<&'static Loaded, &'static NotFound> {
    kind.loaded().get_or_init(|| find(kind, &Places::here())).as_ref()
}

/// Makes sure that cudarc finds the driver, and that it serves this CUDA.
pub(crate) fn ensure_driver() -> Result<(), &'static NotFound> {
    load(LibraryKind::Driver).map(drop)
}

/// Makes sure that cudarc finds cuBLASLt, in the version that its bindings are for.
pub(crate) fn ensure_cublaslt() -> Result<(), &'static NotFound> {
    load(LibraryKind::CublasLt).map(drop)
}

fn find(kind: LibraryKind, places: &Places<'_>) -> Result<Loaded, NotFound> {
    let mut refused = Vec::new();
    let mut looked_in = places.named();
    let mut found = looked_in.iter().find_map(|folder| from_folder(kind, folder, &mut refused));
    if found.is_none() {
        found = from_loader(kind, &mut refused);
    }
    if found.is_none() {
        let usual = places.usual(kind);
        found = usual.iter().find_map(|folder| from_folder(kind, folder, &mut refused));
        looked_in.extend(usual);
    }
    match found.map(|loaded| check_link_name(kind, loaded)) {
        Some(Ok(loaded)) => Ok(loaded),
        Some(Err(reason)) => Err(NotFound { kind, looked_in, refused: vec![reason] }),
        None => Err(NotFound { kind, looked_in, refused }),
    }
}

/// The library as the loader finds it by its name.
fn from_loader(kind: LibraryKind, refused: &mut Vec<String>) -> Option<Loaded> {
    let library = open(OsStr::new(kind.file_name())).ok()?;
    let path = mapped_file(kind.link_name()).unwrap_or_else(|| PathBuf::from(kind.file_name()));
    accept(kind, library, path, refused)
}

/// The library of a folder. Neighbours of other versions are named: who has one of them wonders why it isn't taken.
fn from_folder(kind: LibraryKind, folder: &Path, refused: &mut Vec<String>) -> Option<Loaded> {
    let path = folder.join(kind.file_name());
    if !path.exists() {
        let other = |name: &String| name.strip_prefix(kind.link_name()).is_some_and(|rest| rest.starts_with(".1"));
        refused.extend(search::names(folder).into_iter().filter(other).map(|name| {
            format!("{} is of another version, and {} is needed", folder.join(name).display(), kind.file_name())
        }));
        return None;
    }
    // Before the library itself: it opens its companion by name.
    let companions = companions(kind, folder);
    match open(path.as_os_str()) {
        Ok(library) => accept(kind, library, path, refused).map(|loaded| Loaded { _companions: companions, ..loaded }),
        Err(reason) => {
            refused.push(format!("{} can't be loaded: {reason}", path.display()));
            None
        }
    }
}

/// NVRTC's builtins lie beside it, and it opens them by name when it compiles: loaded before, they are found.
fn companions(kind: LibraryKind, folder: &Path) -> Vec<Library> {
    if kind != LibraryKind::Nvrtc {
        return Vec::new();
    }
    let builtins = |name: &String| name.starts_with("libnvrtc-builtins.so.13");
    let files = search::names(folder).into_iter().filter(builtins).map(|name| folder.join(name));
    files.filter_map(|file| open(file.as_os_str()).ok()).collect()
}

/// Takes a library if its version fits.
fn accept(kind: LibraryKind, library: Library, path: PathBuf, refused: &mut Vec<String>) -> Option<Loaded> {
    let version = match version(kind, &library) {
        Ok(version) => version,
        Err(reason) => {
            refused.push(format!("{} {reason}", path.display()));
            return None;
        }
    };
    if let Some(reason) = misfit(kind, version) {
        refused.push(format!("{} {reason}", path.display()));
        return None;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let companions = folder.map(|folder| companions(kind, folder)).unwrap_or_default();
    Some(Loaded { library, path, version, _companions: companions })
}

/// Why a version can't be used. A driver serves every older program; libraries fit within their major version.
fn misfit(kind: LibraryKind, version: CudaVersion) -> Option<String> {
    match kind {
        LibraryKind::Driver if version.major < CUDA_MAJOR => {
            Some(format!("belongs to a driver for CUDA {version}, and CUDA {CUDA_MAJOR}.0 (driver 580) is needed"))
        }
        LibraryKind::Nvrtc | LibraryKind::CublasLt if version.major != CUDA_MAJOR => {
            Some(format!("is version {version}, and {CUDA_MAJOR} is needed"))
        }
        _ => None,
    }
}

/// cudarc opens the name without a version first: refuses what the loader would give it if that doesn't fit.
fn check_link_name(kind: LibraryKind, loaded: Loaded) -> Result<Loaded, String> {
    // Our own table calls NVRTC, by the handle that was checked.
    if kind == LibraryKind::Nvrtc {
        return Ok(loaded);
    }
    let Ok(library) = open(OsStr::new(kind.link_name())) else {
        return Ok(loaded);
    };
    let reason = match version(kind, &library) {
        Ok(version) => misfit(kind, version),
        Err(reason) => Some(reason),
    };
    match reason {
        None => Ok(loaded),
        Some(reason) => Err(format!(
            "{} on the loader's path {reason}, and would be taken instead of {}; take its folder out of LD_LIBRARY_PATH",
            kind.link_name(),
            loaded.path.display()
        )),
    }
}

/// What a library says that it is.
fn version(kind: LibraryKind, library: &Library) -> Result<CudaVersion, String> {
    match kind {
        LibraryKind::Driver => driver_version(library),
        LibraryKind::Nvrtc => nvrtc_version(library),
        LibraryKind::CublasLt => cublaslt_version(library),
    }
}

fn driver_version(library: &Library) -> Result<CudaVersion, String> {
    /// `CUDA_ERROR_STUB_LIBRARY`: the toolkit's library for linking, which can do nothing.
    const STUB: c_int = 34;
    // SAFETY: the symbol has this signature in every driver (cuda.h; `CUresult` is an int).
    let get = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDriverGetVersion") };
    let get = get.map_err(|error| format!("is no driver: {error}"))?;
    let mut version = 0;
    // SAFETY: it writes one int to where it is told, and that is a local of ours; it needs no initialisation.
    match unsafe { get(&raw mut version) } {
        0 => Ok(thousands(version)),
        STUB => Err("is the toolkit's stub for linking, not the driver".to_owned()),
        status => Err(format!("can't say its version (error {status})")),
    }
}

fn nvrtc_version(library: &Library) -> Result<CudaVersion, String> {
    // SAFETY: the symbol has this signature in every NVRTC (nvrtc.h; `nvrtcResult` is an int).
    let get = unsafe { library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>("nvrtcVersion") };
    let get = get.map_err(|error| format!("is no NVRTC: {error}"))?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it writes two ints to where it is told, and those are locals of ours.
    match unsafe { get(&raw mut major, &raw mut minor) } {
        0 => Ok(CudaVersion { major: major.unsigned_abs(), minor: minor.unsigned_abs() }),
        status => Err(format!("can't say its version (error {status})")),
    }
}

fn cublaslt_version(library: &Library) -> Result<CudaVersion, String> {
    // SAFETY: the symbol has this signature in every cuBLASLt (cublasLt.h).
    let get = unsafe { library.get::<unsafe extern "C" fn() -> usize>("cublasLtGetVersion") };
    let get = get.map_err(|error| format!("is no cuBLASLt: {error}"))?;
    // SAFETY: it takes nothing and needs no initialisation.
    let version = unsafe { get() };
    // 10000 * major + 100 * minor + patch.
    let part = |n: usize| u32::try_from(n).unwrap_or(0);
    Ok(CudaVersion { major: part(version / 10_000), minor: part(version / 100 % 100) })
}

/// 1000 * major + 10 * minor, as the driver counts.
fn thousands(version: c_int) -> CudaVersion {
    let version = version.unsigned_abs();
    CudaVersion { major: version / 1000, minor: version % 1000 / 10 }
}

/// Opens a library by path or name, its symbols visible to those that are loaded later.
fn open(file: &OsStr) -> Result<Library, String> {
    #[cfg(unix)]
    let opened = {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        // SAFETY: running the library's initialisers is what loading is for; the user's machine vouches for the files
        // of its toolkit and driver. It stays loaded, or is dropped before anything of it was kept.
        unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) }.map(Into::into)
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let opened = unsafe { Library::new(file) };
    opened.map_err(|error: libloading::Error| error.to_string())
}

/// The file that a library was loaded from, by the list of this process' mappings; `None` where there is no such list.
fn mapped_file(link_name: &str) -> Option<PathBuf> {
    mapped_in(&std::fs::read_to_string("/proc/self/maps").ok()?, link_name)
}

fn mapped_in(maps: &str, link_name: &str) -> Option<PathBuf> {
    let mut files = maps.lines().filter_map(|line| line.find('/').and_then(|start| line.get(start..)).map(Path::new));
    let is_named = |file: &&Path| file.file_name().and_then(OsStr::to_str).is_some_and(|n| n.starts_with(link_name));
    files.find(is_named).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn missing(kind: LibraryKind) -> NotFound {
        NotFound { kind, looked_in: vec![PathBuf::from("/a")], refused: Vec::new() }
    }

    #[test]
    fn whatever_is_missing_is_named_with_what_mends_it() {
        for (kind, remedy) in [
            (LibraryKind::Driver, "driver 580"),
            (LibraryKind::Nvrtc, "pip install 'nvidia-cuda-nvrtc==13.0.*'"),
            (LibraryKind::CublasLt, "pip install 'nvidia-cublas==13.*'"),
        ] {
            let message = missing(kind).to_error().to_string();
            assert!(message.contains(kind.file_name()) && message.contains(remedy), "{message}");
            assert!(message.contains("FOVEAL_CUDA_LIBS"), "{message}");
        }
    }

    #[test]
    fn a_library_of_another_major_version_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("libnvrtc.so.12"), "").unwrap();
        let mut refused = Vec::new();
        assert!(from_folder(LibraryKind::Nvrtc, folder.path(), &mut refused).is_none());
        assert!(refused[0].contains("libnvrtc.so.12 is of another version"), "{refused:?}");
        let old = CudaVersion { major: 12, minor: 9 };
        assert!(misfit(LibraryKind::CublasLt, old).unwrap().contains("is version 12.9, and 13 is needed"));
        assert!(misfit(LibraryKind::Driver, old).unwrap().contains("CUDA 12.9"));
    }

    #[test]
    fn a_newer_driver_serves_and_a_newer_library_does_not() {
        let next = CudaVersion { major: 14, minor: 0 };
        assert_eq!(misfit(LibraryKind::Driver, next), None);
        assert!(misfit(LibraryKind::Nvrtc, next).is_some());
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("libcublasLt.so.13"), "not ELF").unwrap();
        let mut refused = Vec::new();
        assert!(from_folder(LibraryKind::CublasLt, folder.path(), &mut refused).is_none());
        assert!(refused[0].contains("can't be loaded"), "{refused:?}");
    }

    #[test]
    fn another_library_under_the_name_is_refused() {
        let Ok(libc) = open(OsStr::new("libc.so.6")) else { return };
        for kind in [LibraryKind::Driver, LibraryKind::Nvrtc, LibraryKind::CublasLt] {
            let reason = version(kind, &libc).unwrap_err();
            assert!(reason.starts_with("is no "), "{reason}");
        }
    }

    #[test]
    fn versions_are_read_as_each_library_counts() {
        assert_eq!(thousands(13010), CudaVersion { major: 13, minor: 1 });
        assert_eq!(thousands(12090).to_string(), "12.9");
    }

    #[test]
    fn the_mapped_file_is_found_in_the_list() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/libc.so.6\n\
                    7f02-7f03 r--p 00000000 08:01 13                 /opt/my cuda/lib64/libnvrtc.so.13.0.88\n";
        assert_eq!(
            mapped_in(maps, "libnvrtc.so").as_deref(),
            Some(Path::new("/opt/my cuda/lib64/libnvrtc.so.13.0.88"))
        );
        assert_eq!(mapped_in(maps, "libcuda.so"), None);
    }

    #[test]
    fn the_answer_stays_the_same() {
        for kind in [LibraryKind::Driver, LibraryKind::Nvrtc, LibraryKind::CublasLt] {
            assert_eq!(LibraryStatus::of(kind), LibraryStatus::of(kind));
        }
    }
}
