//! One run from its options to its report.

use std::path::Path;
use std::time::Duration;

use crate::arrivals::arrivals;
use crate::body::Ask;
use crate::client::{Client, Target};
use crate::error::LoadError;
use crate::options::LoadOptions;
use crate::prompt::PromptText;
use crate::report::LoadReport;
use crate::schedule::send_all;
use crate::workload::Workload;

/// What a run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Requests are made: text, pictures, JSON.
    Preparing,
    /// Requests that aren't measured are answered.
    WarmingUp,
    /// Requests are answered.
    Measuring,
}

/// Sends synthetic requests to one server.
#[derive(Debug)]
pub struct LoadGenerator {
    target: Target,
    model: String,
    text: PromptText,
}

impl LoadGenerator {
    /// Speaks with a server: asks it for its first model unless one is named, and without the model's `tokenizer.json` (the file
    /// or its folder) for the tokens of a text.
    ///
    /// # Errors
    /// A server that isn't there or doesn't say, a tokenizer that can't be read.
    pub fn new(target: Target, model: Option<String>, tokenizer: Option<&Path>) -> Result<Self, LoadError> {
        let client = Client::new(&target)?;
        let model = match model {
            Some(model) => model,
            None => client.first_model()?,
        };
        let text = match tokenizer {
            Some(path) => PromptText::from_file(path)?,
            None => PromptText::from_server(client, &model)?,
        };
        Ok(Self { target, model, text })
    }

    /// Waits until a server says that it is ready, and gives the time that took.
    ///
    /// # Errors
    /// [`LoadError::NotReady`] after `timeout`.
    pub fn wait_until_ready(target: &Target, timeout: Duration) -> Result<Duration, LoadError> {
        Client::new(target)?.wait_until_ready(timeout)
    }

    /// The model's name at the server.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Makes all requests, sends those that warm up, then those that are measured; `on_progress` is told how many of how many of a
    /// stage are done, from any thread.
    ///
    /// Requests that fail are counted in the report: only a run that can't begin is an error.
    ///
    /// # Errors
    /// [`LoadError::Options`], text of a length that doesn't come about, pictures that can't be encoded, too few threads.
    pub fn run(
        &self,
        options: &LoadOptions,
        on_progress: impl Fn(Stage, usize, usize) + Sync,
    ) -> Result<LoadReport, LoadError> {
        options.validate()?;
        let ask = Ask { api: self.target.api, model: &self.model, output_len: options.shape.output_len };
        let num_all = options.num_warmups + options.num_prompts;
        let Workload { warmups, measured } =
            Workload::new(ask, &self.text, options, |done| on_progress(Stage::Preparing, done, num_all))?;
        let send = |bodies: &[Vec<u8>], due: &[Duration], stage| {
            // Connections of its own: none has been idle since an earlier run.
            let client = Client::new(&self.target)?;
            let body = |index: usize| bodies.get(index).map(Vec::as_slice).unwrap_or_default();
            let num_workers = options.num_workers().min(bodies.len());
            send_all(due, num_workers, |index| client.ask(body(index)), |done| on_progress(stage, done, bodies.len()))
        };
        send(&warmups, &vec![Duration::ZERO; warmups.len()], Stage::WarmingUp)?;
        let due = arrivals(options.num_prompts, options.request_rate, options.burstiness, options.seed);
        let outcomes = send(&measured, &due, Stage::Measuring)?;
        Ok(LoadReport::new(self.target.api, &self.model, options, outcomes))
    }
}
