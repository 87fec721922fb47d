use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{Header, KernelSource};

static SOURCE: KernelSource = KernelSource {
    name: "norm",
    text: "#include \"a.cuh\"\nextern \"C\" __global__ void add_norm(float* x) { x[0] = ONE * N; }\n",
    headers: &[Header { name: "a.cuh", text: "#define ONE 1\n" }],
};
const SPEC: KernelSpec = KernelSpec::new(&SOURCE, "add_norm").int("N", 7);
const ARCH: &str = "sm_90a";

/// A compiler whose code says what it is for.
struct Fake {
    version: Option<CudaVersion>,
    num_compiled: AtomicUsize,
}

impl Fake {
    fn new(version: Option<(u32, u32)>) -> Arc<Self> {
        let version = version.map(|(major, minor)| CudaVersion { major, minor });
        Arc::new(Self { version, num_compiled: AtomicUsize::new(0) })
    }

    fn num_compiled(&self) -> usize {
        self.num_compiled.load(Ordering::Relaxed)
    }
}

impl Compile for Fake {
    fn version(&self) -> Result<CudaVersion, DeviceError> {
        let missing = || DeviceError::Unavailable { device: "cuda".into(), reason: "no compiler".into() };
        self.version.ok_or_else(missing)
    }

    fn compile(&self, spec: &KernelSpec, arch: &str) -> Result<Compiled, DeviceError> {
        let version = self.version()?;
        self.num_compiled.fetch_add(1, Ordering::Relaxed);
        Ok(Compiled { cubin: format!("{spec} {arch} {version}").into_bytes(), log: "ptxas warning : slow".into() })
    }
}

fn cache(folder: &Path, compiler: &Arc<Fake>) -> CubinCache {
    CubinCache::new(None, Some(folder.join("user")), Arc::<Fake>::clone(compiler))
}

fn code(arch: &str, version: &str) -> Vec<u8> {
    format!("norm:add_norm -DN=7 {arch} {version}").into_bytes()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

#[test]
fn a_kernel_is_compiled_once() {
    let dir = tempfile::tempdir().unwrap();
    let compiler = Fake::new(Some((13, 0)));
    for _ in 0..2 {
        // Another start of the program.
        let cache = cache(dir.path(), &compiler);
        assert_eq!(cache.get_or_compile(&SPEC, ARCH).unwrap(), code(ARCH, "13.0"));
    }
    assert_eq!(compiler.num_compiled(), 1);
    let [entry] = &*entries(&dir.path().join("user")) else { panic!("one entry") };
    assert!(entry.file_name().unwrap().to_str().unwrap().starts_with("norm-add_norm."));
    let options = fs::read_to_string(entry.join("options.txt")).unwrap();
    for line in ["nvrtc 13.0", "option --gpu-architecture=sm_90a", "option -DN=7", "header a.cuh "] {
        assert!(options.contains(line), "{line}: {options}");
    }
    assert_eq!(fs::read_to_string(entry.join("log.txt")).unwrap(), "ptxas warning : slow");
}

#[test]
fn another_define_architecture_or_compiler_is_another_entry() {
    let dir = tempfile::tempdir().unwrap();
    let compiler = Fake::new(Some((13, 0)));
    let cache_13_0 = cache(dir.path(), &compiler);
    cache_13_0.get_or_compile(&SPEC, ARCH).unwrap();
    cache_13_0.get_or_compile(&SPEC, "sm_80").unwrap();
    cache_13_0.get_or_compile(&SPEC.int("M", 1), ARCH).unwrap();
    assert_eq!(compiler.num_compiled(), 3);
    let newer = Fake::new(Some((13, 1)));
    assert_eq!(cache(dir.path(), &newer).get_or_compile(&SPEC, ARCH).unwrap(), code(ARCH, "13.1"));
    assert_eq!(entries(&dir.path().join("user")).len(), 4);
}

#[test]
fn a_damaged_entry_is_made_again() {
    let damages: [fn(&Path); 6] = [
        |entry| fs::write(entry.join("kernel.cubin"), "other").unwrap(),
        |entry| fs::write(entry.join("kernel.cubin"), "").unwrap(),
        |entry| fs::remove_file(entry.join("kernel.cubin")).unwrap(),
        |entry| fs::write(entry.join("options.txt"), "kernel").unwrap(),
        |entry| fs::remove_dir_all(entry).and_then(|()| fs::create_dir(entry)).unwrap(),
        |entry| fs::remove_dir_all(entry).and_then(|()| fs::write(entry, "a file")).unwrap(),
    ];
    for (i, damage) in damages.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let compiler = Fake::new(Some((13, 0)));
        let cache = cache(dir.path(), &compiler);
        cache.get_or_compile(&SPEC, ARCH).unwrap();
        damage(&entries(&dir.path().join("user"))[0]);
        for _ in 0..2 {
            assert_eq!(cache.get_or_compile(&SPEC, ARCH).unwrap(), code(ARCH, "13.0"), "damage {i}");
        }
        assert_eq!(compiler.num_compiled(), 2, "damage {i}");
        assert_eq!(entries(&dir.path().join("user")).len(), 1, "damage {i}: nothing is left lying about");
    }
}

#[test]
fn a_lost_log_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let compiler = Fake::new(Some((13, 0)));
    let cache = cache(dir.path(), &compiler);
    cache.get_or_compile(&SPEC, ARCH).unwrap();
    fs::remove_file(entries(&dir.path().join("user"))[0].join("log.txt")).unwrap();
    cache.get_or_compile(&SPEC, ARCH).unwrap();
    assert_eq!(compiler.num_compiled(), 1);
}

#[test]
fn many_writers_leave_one_whole_entry() {
    let dir = tempfile::tempdir().unwrap();
    let compiler = Fake::new(Some((13, 0)));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = cache(dir.path(), &compiler);
                for n in 0..20 {
                    let cubin = cache.get_or_compile(&SPEC.int("M", n), ARCH).unwrap();
                    assert!(String::from_utf8(cubin).unwrap().contains(&format!("-DM={n} ")));
                }
            });
        }
    });
    let entries = entries(&dir.path().join("user"));
    assert_eq!(entries.len(), 20, "{entries:?}");
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    // A file where the folder should be: that stops root too.
    fs::write(dir.path().join("user"), "").unwrap();
    let compiler = Fake::new(Some((13, 0)));
    let cache = cache(dir.path(), &compiler);
    assert_eq!(cache.get_or_compile(&SPEC, ARCH).unwrap(), code(ARCH, "13.0"));
    assert!(cache.has_warned.load(Ordering::Relaxed));
    let nowhere = CubinCache::new(None, None, Arc::<Fake>::clone(&compiler));
    assert_eq!(nowhere.get_or_compile(&SPEC, ARCH).unwrap(), code(ARCH, "13.0"));
}

#[test]
fn whether_it_can_be_written_is_found_out_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let cache = |folder: &str| CubinCache::new(None, Some(dir.path().join(folder)), Fake::new(None));
    assert!(cache("").try_writing().unwrap().is_ok());
    assert!(cache("not/there/yet").try_writing().unwrap().is_ok());
    assert!(entries(dir.path()).is_empty());
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(cache("file").try_writing().unwrap().is_err());
    assert!(cache("file/cubins").try_writing().unwrap().is_err());
    assert!(CubinCache::new(None, None, Fake::new(None)).try_writing().is_none());
}

#[test]
fn a_machine_without_a_compiler_runs_from_a_filled_folder() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = dir.path().join("cubins");
    let builder = CubinCache::new(None, None, Fake::new(Some((13, 0))));
    assert_eq!(builder.fill(&shipped, &[SPEC], &["sm_80", ARCH]).unwrap().len(), 2);

    let without = Fake::new(None);
    for (shipped_to, user) in [(Some(shipped.clone()), None), (None, Some(shipped.clone()))] {
        let cache = CubinCache::new(shipped_to, user, Arc::<Fake>::clone(&without));
        assert_eq!(cache.get_or_compile(&SPEC, ARCH).unwrap(), code(ARCH, "13.0"));
        assert_eq!(cache.get_or_compile(&SPEC, "sm_86").unwrap(), code("sm_80", "13.0"), "an older one's code runs");
        let error = cache.get_or_compile(&SPEC, "sm_75").unwrap_err();
        assert!(error.to_string().contains("no compiler"), "{error}");
    }
}

#[test]
fn what_was_shipped_goes_before_a_compiler() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = dir.path().join("cubins");
    CubinCache::new(None, None, Fake::new(Some((13, 0)))).fill(&shipped, &[SPEC], &[ARCH]).unwrap();
    let compiler = Fake::new(Some((13, 2)));
    let cache = CubinCache::new(Some(shipped.clone()), Some(dir.path().join("user")), Arc::<Fake>::clone(&compiler));
    assert_eq!(cache.get_or_compile(&SPEC, ARCH).unwrap(), code(ARCH, "13.0"));
    assert_eq!(compiler.num_compiled(), 0);

    // Damaged, it is passed by, and stays: the folder isn't ours.
    let entry = entries(&shipped).remove(0);
    fs::write(entry.join("kernel.cubin"), "other").unwrap();
    assert_eq!(cache.get_or_compile(&SPEC, ARCH).unwrap(), code(ARCH, "13.2"));
    assert_eq!(fs::read(entry.join("kernel.cubin")).unwrap(), b"other");
}

#[test]
fn filling_compiles_what_is_missing_old_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let compiler = Fake::new(Some((13, 0)));
    let cache = CubinCache::new(None, None, Arc::<Fake>::clone(&compiler));
    let fill = |cache: &CubinCache, specs: &[KernelSpec]| {
        let filled = cache.fill(dir.path(), specs, &["sm_80", ARCH]).unwrap();
        assert!(filled.iter().all(|filled| filled.warnings == ["ptxas warning : slow"]), "{filled:?}");
        filled.iter().map(|filled| filled.is_new).collect::<Vec<_>>()
    };
    assert_eq!(fill(&cache, &[SPEC]), [true, true]);
    assert_eq!(fill(&cache, &[SPEC, SPEC.int("M", 1)]), [false, false, true, true]);
    fs::write(entries(dir.path())[0].join("kernel.cubin"), "other").unwrap();
    assert_eq!(fill(&cache, &[SPEC, SPEC.int("M", 1)]).iter().filter(|is_new| **is_new).count(), 1);
    let newer = CubinCache::new(None, None, Fake::new(Some((13, 1))));
    assert_eq!(fill(&newer, &[SPEC]), [true, true]);
    assert_eq!(entries(dir.path()).len(), 4);
}

#[test]
fn a_folder_that_cannot_be_filled_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let cache = CubinCache::new(None, None, Fake::new(Some((13, 0))));
    let error = cache.fill(&dir.path().join("file"), &[SPEC], &[ARCH]).unwrap_err();
    assert!(error.to_string().contains("can't be written to"), "{error}");
}

#[test]
fn the_cache_lies_where_the_user_says() {
    let folder = |vars: &[(&str, &str)]| {
        cache_folder(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
    };
    let all = [("FOVEAL_CACHE_DIR", "/mine"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/me")];
    assert_eq!(folder(&all), Some(PathBuf::from("/mine")));
    assert_eq!(folder(&all[1..]), Some(PathBuf::from("/xdg/foveal")));
    assert_eq!(folder(&all[2..]), Some(PathBuf::from("/home/me/.cache/foveal")));
    assert_eq!(folder(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]), Some(PathBuf::from("/h/.cache/foveal")));
    assert_eq!(folder(&[("HOME", "")]), None);
}

#[test]
fn a_real_kernel_goes_through_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CubinCache::new(None, Some(dir.path().join("user")), Arc::new(Nvrtc));
    let first = match cache.get_or_compile(&SPEC, "sm_80") {
        Err(error @ DeviceError::Unavailable { .. }) => return println!("skipped: {error}"),
        outcome => outcome.unwrap(),
    };
    assert!(first.starts_with(b"\x7fELF"));
    assert_eq!(cache.get_or_compile(&SPEC, "sm_80").unwrap(), first);
    let filled = cache.fill(&dir.path().join("cubins"), &[SPEC], &["sm_80", "sm_90a"]).unwrap();
    assert!(filled.iter().all(|filled| filled.resources.is_some_and(|r| r.spill_bytes == 0)), "{filled:?}");
}
