//! The command line: arguments, commands, what is printed where.

pub(crate) mod args;
mod bench;
mod chat;
pub(crate) mod config;
mod doctor;
mod error;
mod input;
mod inspect;
mod printer;
mod progress;
mod run;
mod sampling;
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
    }
}

/// Says on stderr what went wrong, once, and what would help.
pub(crate) fn show(error: &CliError) {
    say(format_args!("error: {error}"));
    if let Some(hint) = error.hint() {
        say(format_args!("  {hint}"));
    }
}

/// The model folder, or the built-in one.
fn open(place: &ModelPlace) -> Result<ModelFolder, RuntimeError> {
    match place {
        ModelPlace::Folder(path) => Ok(ModelFolder::open(path)?),
        ModelPlace::BuiltIn => {
            let folder = built_in_model()?;
            say("No --model: this is the built-in demonstration model; it knows shapes, colours and numbers.");
            Ok(folder)
        }
    }
}
