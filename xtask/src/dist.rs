//! `cargo xtask dist`: a folder and an archive for a machine that has a GPU and neither Rust nor NVRTC: the program, its
//! compiled kernels, and the test and benchmark programs that need a GPU.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use cargo_metadata::{Artifact, Message, MetadataCommand, TargetKind};
use xshell::{Shell, cmd};

use crate::kernels::ARCHS;

/// Where to and what for.
#[derive(clap::Args)]
pub(crate) struct DistArgs {
    /// The folder that takes the distribution's folder and its archive [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// An architecture to compile the kernels for, as `sm_90a`; may be given again. By default sm_80, sm_89, sm_90a and
    /// sm_100a.
    #[arg(long = "arch", value_name = "ARCH")]
    archs: Vec<String>,
}

/// The most bytes of an archive.
const MAX_ARCHIVE_BYTES: u64 = 30_000_000;

/// Packages with test programs that may need a GPU.
const TESTED: [&str; 6] =
    ["foveal-device", "foveal-engine", "foveal-graphs", "foveal-kernels", "foveal-pinned", "foveal-tests"];

/// A test program that can fail for want of a GPU holds this name; others run as well where they were built.
const NEEDS_GPU: &[u8] = b"FOVEAL_REQUIRE_GPU";

/// The package of benchmarks, and its program that measures a GPU.
const BENCHES: &str = "foveal-benches";
const GPU_BENCH: &str = "gpu";
/// Its program that judges a form of a model.
const ACCURACY: &str = "accuracy";
/// Its program that switches one idea off at a time.
const IDEAS: &str = "ideas";

/// The example that fills a folder with compiled kernels.
const FILL: &str = "fill_cubins";

/// Folders of `tests/fixtures` that the programs read.
const FIXTURES: [&str; 4] = ["tiny", "goldens", "images", "reference"];

/// What programs may be linked with: glibc, its loader, and the unwinder that every system with a C++ library has.
const LIBRARIES: [&str; 5] = ["linux-vdso.so", "libc.so", "libm.so", "libgcc_s.so", "ld-linux-x86-64.so"];

/// Other programs that this needs, with the Debian packages that have them.
const TOOLS: [(&str, &str); 4] = [("tar", "tar"), ("xz", "xz-utils"), ("strip", "binutils"), ("ldd", "libc-bin")];

/// Window of the compressor: the tiny model is in the program and among the fixtures, and every program has the same
/// libraries, so that it has to reach across all of them.
const XZ: &str = "xz --threads=1 --lzma2=preset=6,dict=192MiB";

/// Builds, collects, checks and packs.
pub(crate) fn run(shell: &Shell, root: &Path, args: &DistArgs) -> anyhow::Result<()> {
    let missing: Vec<String> = TOOLS
        .iter()
        .filter(|(tool, _)| Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_err())
        .map(|(tool, package)| format!("{tool} (package {package})"))
        .collect();
    ensure!(missing.is_empty(), "these programs are missing: {}", missing.join(", "));

    let metadata = MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let has_bench = metadata.packages.iter().filter(|package| *package.name == BENCHES).any(|package| {
        package.targets.iter().any(|target| target.name == GPU_BENCH && target.kind.contains(&TargetKind::Bin))
    });
    let version = metadata.packages.iter().find(|package| *package.name == "foveal-runtime");
    let version = &version.context("no package foveal-runtime")?.version;
    let name = format!("foveal-{version}-{}-{}-gpu", std::env::consts::ARCH, std::env::consts::OS);
    let out = args.out.clone().unwrap_or_else(|| metadata.target_directory.as_std_path().join("dist"));
    // `tar` runs at the root, whatever folder this was started in.
    let out = std::path::absolute(out)?;
    let folder = out.join(&name);

    let program = build(shell, &["--package", "foveal-runtime", "--bin", "foveal"])?;
    let others = build(shell, &other_targets(has_bench))?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(folder.join("tests")).with_context(|| folder.display().to_string())?;
    let fill = collect(&program, &others, &folder)?;
    fill_cubins(&fill, &folder, &args.archs)?;
    for fixture in FIXTURES {
        copy_folder(&root.join("tests/fixtures").join(fixture), &folder.join("fixtures").join(fixture))?;
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(root.join(licence), folder.join(licence))?;
    }
    let script = folder.join("run-tests.sh");
    fs::write(&script, include_str!("dist/run-tests.sh"))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    pack(shell, &out, &name)
}

/// All but the program, in one build, so that they share their libraries.
fn other_targets(has_bench: bool) -> Vec<&'static str> {
    let mut targets = vec!["--tests", "--example", FILL];
    targets.extend(TESTED.iter().flat_map(|package| ["--package", package]));
    if has_bench {
        targets.extend(["--package", BENCHES, "--bin", GPU_BENCH, "--bin", ACCURACY, "--bin", IDEAS]);
    } else {
        println!("{BENCHES} has no program `{GPU_BENCH}`: left out");
    }
    targets
}

/// Builds in the release profile; gives the programs.
fn build(shell: &Shell, targets: &[&str]) -> anyhow::Result<Vec<Artifact>> {
    let messages = cmd!(shell, "cargo build --release --locked --message-format=json-render-diagnostics {targets...}");
    let messages = messages.read()?;
    let mut programs = Vec::new();
    for message in Message::parse_stream(messages.as_bytes()) {
        if let Message::CompilerArtifact(artifact) = message?
            && artifact.executable.is_some()
        {
            programs.push(artifact);
        }
    }
    Ok(programs)
}

/// Copies the programs to their places, stripped; gives the one that compiles kernels, which stays where it is.
fn collect(program: &[Artifact], others: &[Artifact], folder: &Path) -> anyhow::Result<PathBuf> {
    let executable = |artifact: &Artifact| artifact.executable.clone().context("no program was built");
    let [program] = program else { bail!("one program, not {}", program.len()) };
    copy_program(executable(program)?.as_std_path(), &folder.join("foveal"))?;
    let mut fill = None;
    for artifact in others {
        let from = executable(artifact)?;
        if artifact.target.kind.contains(&TargetKind::Example) {
            fill = (artifact.target.name == FILL).then_some(from.into_std_path_buf()).or(fill);
            continue;
        }
        if !artifact.profile.test {
            copy_program(from.as_std_path(), &folder.join(format!("bench-{}", artifact.target.name)))?;
            continue;
        }
        let name = test_name(artifact)?;
        let to = folder.join("tests").join(&name);
        copy_program(from.as_std_path(), &to)?;
        if !fs::read(&to)?.windows(NEEDS_GPU.len()).any(|window| window == NEEDS_GPU) {
            println!("{name} needs no GPU: left out");
            fs::remove_file(&to)?;
        }
    }
    fill.with_context(|| format!("the example {FILL} was not built"))
}

/// The package, and behind it the file of tests where they are not the library's own.
fn test_name(artifact: &Artifact) -> anyhow::Result<String> {
    let manifest = &artifact.manifest_path;
    let folder = manifest.parent().and_then(|folder| folder.file_name()).with_context(|| manifest.to_string())?;
    let is_own = artifact.target.kind.contains(&TargetKind::Lib);
    Ok(if is_own { folder.to_owned() } else { format!("{folder}-{}", artifact.target.name) })
}

/// A copy without symbols that is linked with nothing but glibc.
fn copy_program(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("strip").arg("--strip-all").arg("-o").arg(to).arg(from).status()?;
    ensure!(status.success(), "strip {}: {status}", from.display());
    let output = Command::new("ldd").arg(to).output()?;
    ensure!(output.status.success(), "ldd {}: {}", to.display(), String::from_utf8_lossy(&output.stderr));
    let foreign = foreign_libraries(&String::from_utf8_lossy(&output.stdout));
    ensure!(foreign.is_empty(), "{} is linked with {}", to.display(), foreign.join(", "));
    Ok(())
}

/// The libraries of `ldd`'s lines that not every machine has.
fn foreign_libraries(lines: &str) -> Vec<String> {
    let names = lines.lines().filter_map(|line| line.split_whitespace().next());
    let file = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    names.map(file).filter(|name| !LIBRARIES.iter().any(|library| name.starts_with(library))).collect()
}

/// Fills `cubins`, and lets the test programs find it too.
fn fill_cubins(fill: &Path, folder: &Path, archs: &[String]) -> anyhow::Result<()> {
    let archs = if archs.is_empty() { ARCHS.map(str::to_owned).to_vec() } else { archs.to_vec() };
    let status = Command::new(fill).arg(folder.join("cubins")).args(archs).status()?;
    ensure!(
        status.success(),
        "the kernels could not be compiled. That needs NVRTC but no GPU: `pip install nvidia-cuda-nvrtc==13.0.88`, and \
         FOVEAL_CUDA_LIBS names the folder of libnvrtc.so.13"
    );
    Ok(symlink("../cubins", folder.join("tests/cubins"))?)
}

/// A folder of fixtures without the scripts that made them.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to)?;
        } else if from.extension().is_none_or(|extension| extension != "py") {
            // Not `fs::copy`: a read-only checkout would give read-only files.
            fs::write(&to, fs::read(&from)?)?;
        }
    }
    Ok(())
}

/// One archive of all, under the limit.
fn pack(shell: &Shell, out: &Path, name: &str) -> anyhow::Result<()> {
    for part in ["foveal", "tests", "cubins", "fixtures"] {
        println!("{:6.1} MB  {part}", size(&out.join(name).join(part))? as f64 / 1e6);
    }
    let archive = out.join(format!("{name}.tar.xz"));
    let (compress, sorted) = (XZ, ["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    cmd!(shell, "tar --create --file {archive} --use-compress-program {compress} {sorted...} --directory {out} {name}")
        .run()?;
    let bytes = fs::metadata(&archive)?.len();
    println!("{:6.1} MB  {}", bytes as f64 / 1e6, archive.display());
    ensure!(bytes <= MAX_ARCHIVE_BYTES, "the archive has {bytes} bytes, at most {MAX_ARCHIVE_BYTES}");
    Ok(())
}

/// Bytes of a file, or of all files below a folder; links aren't followed.
fn size(path: &Path) -> anyhow::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::foreign_libraries;

    #[test]
    fn only_glibc_is_everywhere() {
        let lines = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)\n\
                     \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                     \tlibonig.so.5 => /lib/x86_64-linux-gnu/libonig.so.5 (0x00007f)\n\
                     \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(foreign_libraries(lines), ["libonig.so.5"]);
    }
}
