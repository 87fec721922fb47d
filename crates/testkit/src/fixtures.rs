//! Where fixtures lie.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The workspace's `tests/fixtures`: our own tiny model, reference answers and pictures. `FOVEAL_FIXTURES` names another
/// place, for test programs that were built elsewhere.
#[must_use]
pub fn fixtures_dir() -> PathBuf {
    let built_from = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    env::var_os("FOVEAL_FIXTURES").map_or_else(built_from, PathBuf::from)
}

/// The folder of third-party test data that `FOVEAL_TEST_ASSETS` names; it is not part of the repository. Without it a
/// test returns early, and this prints that the test was skipped.
#[must_use]
pub fn test_assets() -> Option<PathBuf> {
    let assets = env::var_os("FOVEAL_TEST_ASSETS").filter(|path| !path.is_empty()).map(PathBuf::from);
    if assets.is_none() {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        eprintln!("skipped: {test} needs FOVEAL_TEST_ASSETS");
    }
    assets
}

/// The folder with the config of a reference checkpoint.
pub(crate) fn model_dir(family: &str) -> PathBuf {
    if family == "tiny" { fixtures_dir().join("tiny") } else { fixtures_dir().join("goldens").join(family) }
}

/// Copies the small files of a model folder into `to`: config, generation and processor config of the reference
/// checkpoint `family` (as `qwen2_vl` or `tiny`), tokenizer and template of the tiny model. For a whole folder, write
/// its `model.safetensors` beside them (`foveal_checkpoint::WeightSource::rebuilt` of the family's `manifest.json`, then
/// `write_safetensors`; `tiny` is a whole folder in the fixtures already).
///
/// # Panics
/// When a fixture can't be copied.
pub fn lay_out_model_folder(family: &str, to: &Path) {
    let fixtures = fixtures_dir();
    let copy = |from: &Path, file: &str| {
        // Not `fs::copy`: it would keep the permissions, and a read-only checkout would give read-only files.
        let bytes = fs::read(from.join(file)).unwrap_or_else(|e| panic!("{}: {e}", from.join(file).display()));
        fs::write(to.join(file), bytes).unwrap_or_else(|e| panic!("{}: {e}", to.join(file).display()));
    };
    for file in ["config.json", "generation_config.json", "preprocessor_config.json"] {
        copy(&model_dir(family), file);
    }
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        copy(&fixtures.join("tiny"), file);
    }
}
