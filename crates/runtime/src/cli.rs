//! The command line: arguments, commands, what is printed where.

pub(crate) mod args;
mod bench;
mod bench_serve;
mod chat;
pub(crate) mod config;
mod doctor;
mod error;
mod hub;
mod input;
mod inspect;
mod printer;
mod progress;
mod run;
mod sampling;
mod serve;
mod stderr;
mod verify;

use foveal_checkpoint::ModelFolder;
use foveal_runtime::{RuntimeError, built_in_model};

use config::{Config, ModelPlace};
pub(crate) use error::CliError;
use stderr::say;

/// Does what the command line asks for.
pub(crate) fn execute(config: Config) -> Result<(), CliError> {
    match config {
        Config::Run(config) => run::run(*config),
        Config::Inspect(config) => inspect::inspect(&config),
        Config::Doctor(output) => doctor::doctor(output),
        Config::Verify(config) => verify::verify(&config),
        Config::Bench(config) => bench::bench(&config),
        Config::BenchServe(config) => bench_serve::bench_serve(&config),
        Config::Serve(config) => serve::serve(*config),
    }
}

/// Says on stderr what went wrong, once, and what would help.
pub(crate) fn show(error: &CliError) {
    say(format_args!("error: {error}"));
    if let Some(hint) = error.hint() {
        say(format_args!("  {hint}"));
    }
}

/// The model folder, the hub's after its download, or the built-in one.
fn open(place: &ModelPlace) -> Result<ModelFolder, CliError> {
    let open = |path| ModelFolder::open(path).map_err(RuntimeError::from);
    match place {
        ModelPlace::Folder(path) => Ok(open(path.clone())?),
        ModelPlace::Hub { id, files } => Ok(open(hub::download(id, *files)?)?.named(&id.to_string())),
        ModelPlace::BuiltIn => {
            let folder = built_in_model()?;
            say("No --model: this is the built-in demonstration model; it knows shapes, colours and numbers.");
            Ok(folder)
        }
    }
}
