//! `foveal run`.

use std::time::Instant;

use foveal_runtime::{Chat, Model};

use super::chat::chat;
use super::config::{Prompt, RunConfig};
use super::error::CliError;
use super::input::{read_picture, read_prompt};
use super::open;
use super::printer::{Before, print_answer};
use super::progress::Progress;

pub(crate) fn run(config: RunConfig) -> Result<(), CliError> {
    // Cheap things first: a file that is not there should not cost the loading of a model.
    let pictures = config.images.iter().map(read_picture).collect::<Result<Vec<_>, _>>()?;
    let prompt = match &config.prompt {
        Prompt::Text(text) => Some(text.clone()),
        Prompt::Stdin => Some(read_prompt()?),
        Prompt::Chat => None,
    };
    let folder = open(&config.model)?;
    let start = Instant::now();
    let progress = Progress::of_bytes("Loading");
    let model = Model::load(&folder, &config.options, progress.reporter())?;
    drop(progress);
    let mut before = Before { load: start.elapsed(), ..Before::default() };

    let sampling = config.sampling.apply(model.default_sampling());
    let mut session = Chat::new(&model, config.system.as_deref());
    pictures.into_iter().for_each(|picture| session.add_picture(picture));
    let Some(prompt) = prompt else { return chat(session, &sampling, config.output, before) };
    let start = Instant::now();
    let answer = session.ask(&prompt, &sampling)?;
    before.prepare = start.elapsed();
    print_answer(answer, config.output, before)?;
    Ok(())
}
