//! Compiled kernels on disk, so that only the first start on a machine compiles, and one beside a shipped binary never.
//!
//! Two folders are read. `cubins` beside the program comes with it, is never written, and needs no NVRTC on the
//! machine: its entries are found by the kernel and the architecture alone. The user's own, below `$FOVEAL_CACHE_DIR`,
//! else `$XDG_CACHE_HOME/foveal`, else `~/.cache/foveal`, is filled as kernels are compiled: there NVRTC's version is a
//! part of the key, since another compiler makes other code. A machine without NVRTC reads that folder too, by the key
//! without a version, as `fill` writes it.
//!
//! An entry appears whole or not at all (written aside, then renamed), carries a checksum, and is thrown away and made
//! again when that doesn't hold. The cache is a convenience: no failure to write it is an error.

mod entry;
mod key;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::libraries::CudaVersion;
use crate::{Compiled, DeviceError, KernelResources, KernelSpec, nvrtc};
use entry::{Entry, Lookup};
use key::entry_name;
pub(crate) use key::runs_on;

/// Names the folder that caches lie in.
pub(crate) const CACHE_VARIABLE: &str = "FOVEAL_CACHE_DIR";

/// The folder of compiled kernels, beside the program and in the cache.
const FOLDER: &str = "cubins";

/// What makes cubins; another one in tests.
trait Compile: Send + Sync {
    fn version(&self) -> Result<CudaVersion, DeviceError>;
    fn compile(&self, spec: &KernelSpec, arch: &str) -> Result<Compiled, DeviceError>;
}

struct Nvrtc;

impl Compile for Nvrtc {
    fn version(&self) -> Result<CudaVersion, DeviceError> {
        nvrtc::version()
    }

    fn compile(&self, spec: &KernelSpec, arch: &str) -> Result<Compiled, DeviceError> {
        nvrtc::compile(spec, arch)
    }
}

/// Compiled kernels on disk; what isn't there yet is compiled.
#[derive(Clone)]
pub struct CubinCache {
    shipped: Option<PathBuf>,
    user: Option<PathBuf>,
    compiler: Arc<dyn Compile>,
    /// An unwritable folder is told of once, not for each kernel.
    has_warned: Arc<AtomicBool>,
}

/// What [`CubinCache::fill`] did for one kernel and architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filled {
    /// The kernel.
    pub spec: KernelSpec,
    /// The architecture.
    pub arch: String,
    /// What it takes of the device; `None` if the log doesn't tell.
    pub resources: Option<KernelResources>,
    /// The compiler's warnings.
    pub warnings: Vec<String>,
    /// Whether it was compiled now, or lay there already.
    pub is_new: bool,
}

impl CubinCache {
    /// The folders of this program and this user. Never fails: without any, kernels are compiled at each start.
    #[must_use]
    pub fn open_default() -> Self {
        let cache = Self::new(shipped_folder(), user_folder(), Arc::new(Nvrtc));
        tracing::debug!(shipped = ?cache.shipped, user = ?cache.user, "compiled kernels");
        cache
    }

    fn new(shipped: Option<PathBuf>, user: Option<PathBuf>, compiler: Arc<dyn Compile>) -> Self {
        Self { shipped, user, compiler, has_warned: Arc::default() }
    }

    /// The folder of compiled kernels that came with the program, if it did.
    #[must_use]
    pub fn shipped_folder(&self) -> Option<&Path> {
        self.shipped.as_deref()
    }

    /// The folder that kernels compiled on this machine are kept in; it need not exist yet.
    #[must_use]
    pub fn user_folder(&self) -> Option<&Path> {
        self.user.as_deref()
    }

    /// The architectures that the kernels beside the program are for.
    pub(crate) fn shipped_archs(&self) -> Vec<String> {
        let entries = self.shipped.as_deref().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
        let archs = entries.flatten().filter_map(|file| entry::arch(&file.path()));
        archs.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// Whether kernels compiled here can be kept; `None` if nobody said where. Leaves nothing behind.
    pub(crate) fn try_writing(&self) -> Option<io::Result<()>> {
        self.user.as_deref().map(entry::try_writing)
    }

    /// The cubin of a kernel for an architecture, as `sm_80` or `sm_90a`; compiled where no folder has it.
    ///
    /// Without NVRTC, machine code for an older device of the same family is taken if that is all there is: it runs.
    ///
    /// # Errors
    /// Those of [`compile`](crate::compile).
    pub fn get_or_compile(&self, spec: &KernelSpec, arch: &str) -> Result<Vec<u8>, DeviceError> {
        if let Some(cubin) = self.shipped.as_deref().and_then(|folder| read_only(folder, spec, arch)) {
            return Ok(cubin);
        }
        let version = match self.compiler.version() {
            Ok(version) => version,
            Err(error) => return self.without_compiler(spec, arch).ok_or(error),
        };
        let Some(folder) = self.user.as_deref() else {
            return self.compile(spec, arch).map(|compiled| compiled.cubin);
        };
        let entry = Entry::new(folder, entry_name(spec, arch, Some(version)));
        match entry.read() {
            Lookup::Hit(found) => return Ok(found.cubin),
            Lookup::Corrupt(reason) => {
                tracing::warn!(entry = %entry.path().display(), reason, "a compiled kernel is damaged; compiling it again");
                // If it can't be deleted it can't be replaced either, which `store` tells.
                let _ = entry.delete();
            }
            Lookup::Miss => {}
        }
        let compiled = self.compile(spec, arch)?;
        self.store(&entry, spec, arch, &compiled, version);
        Ok(compiled.cubin)
    }

    /// Compiles whatever of `specs` × `archs` the folder lacks, by the compiler that is here, so that a program beside
    /// whose binary the folder lies as `cubins` needs no compiler.
    ///
    /// # Errors
    /// [`DeviceError::CubinFolder`] if the folder can't be written, and those of [`compile`](crate::compile).
    pub fn fill(&self, folder: &Path, specs: &[KernelSpec], archs: &[&str]) -> Result<Vec<Filled>, DeviceError> {
        let version = self.compiler.version()?;
        let cannot_write = |error: io::Error| DeviceError::CubinFolder {
            folder: folder.display().to_string(),
            reason: error.to_string(),
        };
        std::fs::create_dir_all(folder).map_err(cannot_write)?;
        let all: Vec<(&KernelSpec, &str)> = specs.iter().flat_map(|s| archs.iter().map(move |a| (s, *a))).collect();
        let fill_one = |(spec, arch): (&KernelSpec, &str)| {
            let entry = Entry::new(folder, entry_name(spec, arch, None));
            let (log, is_new) = match entry.read() {
                Lookup::Hit(found) if found.nvrtc == version.to_string() => (found.log, false),
                found => {
                    // Compiled before deleting: what another compiler made is better than nothing.
                    let compiled = self.compile(spec, arch)?;
                    if !matches!(found, Lookup::Miss) {
                        entry.delete().map_err(cannot_write)?;
                    }
                    entry.write(spec, arch, &compiled, version).map_err(cannot_write)?;
                    (compiled.log, true)
                }
            };
            let compiled = Compiled { cubin: Vec::new(), log };
            let (resources, warnings) = (compiled.resources(spec.entry()), compiled.warnings());
            Ok(Filled { spec: *spec, arch: arch.to_owned(), resources, warnings, is_new })
        };
        all.into_par_iter().map(fill_one).collect()
    }

    fn compile(&self, spec: &KernelSpec, arch: &str) -> Result<Compiled, DeviceError> {
        let start = std::time::Instant::now();
        let compiled = self.compiler.compile(spec, arch)?;
        tracing::info!(kernel = %spec, arch, seconds = start.elapsed().as_secs_f32(), "compiled");
        for warning in compiled.warnings() {
            tracing::warn!(kernel = %spec, arch, warning);
        }
        Ok(compiled)
    }

    /// What the folders have for a machine that can't compile.
    fn without_compiler(&self, spec: &KernelSpec, arch: &str) -> Option<Vec<u8>> {
        let folders = [self.shipped.as_deref(), self.user.as_deref()];
        runs_on(arch).into_iter().find_map(|arch| {
            let cubin = folders.iter().flatten().find_map(|folder| read_only(folder, spec, &arch))?;
            tracing::debug!(kernel = %spec, arch, "taken as it was compiled elsewhere");
            Some(cubin)
        })
    }

    fn store(&self, entry: &Entry, spec: &KernelSpec, arch: &str, compiled: &Compiled, version: CudaVersion) {
        if let Err(error) = entry.write(spec, arch, compiled, version)
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            let folder = entry.path().parent().unwrap_or(entry.path()).display();
            tracing::warn!(%folder, %error, "compiled kernels can't be kept, so that each start compiles them again");
        }
    }
}

impl fmt::Debug for CubinCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CubinCache").field("shipped", &self.shipped).field("user", &self.user).finish_non_exhaustive()
    }
}

/// The entry of a folder that isn't ours to mend.
fn read_only(folder: &Path, spec: &KernelSpec, arch: &str) -> Option<Vec<u8>> {
    let entry = Entry::new(folder, entry_name(spec, arch, None));
    match entry.read() {
        Lookup::Hit(found) => Some(found.cubin),
        Lookup::Miss => None,
        Lookup::Corrupt(reason) => {
            tracing::warn!(entry = %entry.path().display(), reason, "a compiled kernel is damaged and isn't used");
            None
        }
    }
}

/// Beside the program, or where a link to it leads.
fn shipped_folder() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let beside = |program: &Path| program.parent().map(|folder| folder.join(FOLDER));
    let linked = program.canonicalize().ok().and_then(|program| beside(&program));
    [beside(&program), linked].into_iter().flatten().find(|folder| folder.is_dir())
}

/// Below the first of the three places that is given.
fn user_folder() -> Option<PathBuf> {
    cache_folder(|name| std::env::var_os(name)).map(|folder| folder.join(FOLDER))
}

fn cache_folder(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let given = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // By the XDG specification a relative path is to be ignored.
    let xdg = || given("XDG_CACHE_HOME").filter(|folder| folder.is_absolute()).map(|folder| folder.join("foveal"));
    given(CACHE_VARIABLE).or_else(xdg).or_else(|| given("HOME").map(|home| home.join(".cache/foveal")))
}

#[cfg(test)]
mod tests;
