//! Writes a model folder of random bf16 weights for a published configuration, to measure speed where the weights can't
//! be had: `random_checkpoint CONFIG_FOLDER TOKENIZER_JSON OUT_FOLDER`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, bail};
use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};

fn main() -> anyhow::Result<()> {
    let args: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [config_folder, tokenizer, out] = args.as_slice() else {
        bail!("usage: random_checkpoint CONFIG_FOLDER TOKENIZER_JSON OUT_FOLDER");
    };
    let config = ModelConfig::load(&ModelFolder::open(config_folder)?)?;
    fs::create_dir_all(out)?;
    for entry in fs::read_dir(config_folder)? {
        let entry = entry?;
        // Read and written, not copied: the source may be read-only and its mode would come along.
        fs::write(out.join(entry.file_name()), fs::read(entry.path())?)?;
    }
    fs::write(out.join("tokenizer.json"), fs::read(tokenizer).with_context(|| tokenizer.display().to_string())?)?;
    // Written under another name first: a run that is cut short leaves no file that looks complete.
    let partial = out.join("model.safetensors.partial");
    WeightSource::dummy(&config, 1)?.write_safetensors(&partial)?;
    fs::rename(partial, out.join("model.safetensors"))?;
    Ok(())
}
