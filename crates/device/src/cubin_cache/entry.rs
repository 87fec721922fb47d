//! One entry: a folder with `kernel.cubin`, `options.txt` and `log.txt`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::libraries::CudaVersion;
use crate::{Compiled, KernelSpec, nvrtc};

const CUBIN: &str = "kernel.cubin";
const OPTIONS: &str = "options.txt";
const LOG: &str = "log.txt";

/// The line of `options.txt` with the cubin's hash, and the one with the compiler's version.
const CHECKSUM: &str = "blake3 ";
const VERSION: &str = "nvrtc ";

/// An entry's place, whether it is there or not.
pub(super) struct Entry {
    folder: PathBuf,
    name: String,
    path: PathBuf,
}

/// What lies at an entry's place.
pub(super) enum Lookup {
    Hit(Found),
    Miss,
    /// Something that isn't a whole entry, and why not.
    Corrupt(&'static str),
}

pub(super) struct Found {
    pub(super) cubin: Vec<u8>,
    pub(super) log: String,
    pub(super) nvrtc: String,
}

impl Entry {
    pub(super) fn new(folder: &Path, name: String) -> Self {
        Self { folder: folder.to_owned(), path: folder.join(&name), name }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read(&self) -> Lookup {
        let options = match fs::read_to_string(self.path.join(OPTIONS)) {
            Ok(options) => options,
            Err(error) if is_absent(&error) && !self.path.exists() => return Lookup::Miss,
            Err(_) => return Lookup::Corrupt("options.txt can't be read"),
        };
        let line = |key| options.lines().find_map(|line| line.strip_prefix(key));
        let (Some(checksum), Some(nvrtc)) = (line(CHECKSUM), line(VERSION)) else {
            return Lookup::Corrupt("options.txt is cut off");
        };
        let Ok(cubin) = fs::read(self.path.join(CUBIN)) else {
            return Lookup::Corrupt("kernel.cubin can't be read");
        };
        if blake3::hash(&cubin).to_hex().as_str() != checksum {
            return Lookup::Corrupt("kernel.cubin isn't what was written");
        }
        // Only for people: its loss costs nothing.
        let log = fs::read_to_string(self.path.join(LOG)).unwrap_or_default();
        Lookup::Hit(Found { cubin, log, nvrtc: nvrtc.to_owned() })
    }

    /// Writes the entry aside and renames it into place. Whoever comes second leaves what the first one wrote: the same.
    pub(super) fn write(&self, spec: &KernelSpec, arch: &str, compiled: &Compiled, by: CudaVersion) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let aside = self.aside();
        let written = fs::create_dir(&aside).and_then(|()| {
            write_file(&aside.join(CUBIN), &compiled.cubin)?;
            write_file(&aside.join(LOG), compiled.log.as_bytes())?;
            write_file(&aside.join(OPTIONS), describe(spec, arch, compiled, by).as_bytes())?;
            sync_folder(&aside)?;
            fs::rename(&aside, &self.path)
        });
        match written {
            Ok(()) => sync_folder(&self.folder),
            Err(error) => {
                let _ = fs::remove_dir_all(&aside);
                // Not by the kind of the error, which differs between file systems.
                if matches!(self.read(), Lookup::Hit(_)) { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Takes the entry away at once, for readers beside us too.
    pub(super) fn delete(&self) -> io::Result<()> {
        let aside = self.aside();
        match fs::rename(&self.path, &aside) {
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(()) if aside.is_dir() => fs::remove_dir_all(&aside),
            Ok(()) => fs::remove_file(&aside),
        }
    }

    fn aside(&self) -> PathBuf {
        aside(&self.folder, &self.name)
    }
}

/// A hidden name that no other thread or process takes.
fn aside(folder: &Path, name: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!(".{name}.{}.{count}", std::process::id()))
}

/// The architecture that the entry at `path` was compiled for.
pub(super) fn arch(path: &Path) -> Option<String> {
    let options = fs::read_to_string(path.join(OPTIONS)).ok()?;
    options.lines().find_map(|line| line.strip_prefix("option --gpu-architecture=")).map(str::to_owned)
}

/// Makes a file that goes again in the folder, or in the one that it would be made in.
pub(super) fn try_writing(folder: &Path) -> io::Result<()> {
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let file = aside(existing, "foveal");
    write_file(&file, b"")?;
    fs::remove_file(file)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// So that a name survives a power cut, not only the bytes.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// `options.txt`: how the cubin came about, for people and for the check.
fn describe(spec: &KernelSpec, arch: &str, compiled: &Compiled, by: CudaVersion) -> String {
    let mut text = format!("kernel {spec}\n{VERSION}{by}\n");
    for option in nvrtc::options(spec, arch) {
        // Writing to a string can't fail.
        let _ = writeln!(text, "option {option}");
    }
    for header in spec.source().headers {
        let _ = writeln!(text, "header {} {}", header.name, blake3::hash(header.text.as_bytes()).to_hex());
    }
    let _ = writeln!(text, "source {}", blake3::hash(spec.source().text.as_bytes()).to_hex());
    let _ = writeln!(text, "{CHECKSUM}{}", blake3::hash(&compiled.cubin).to_hex());
    text
}
