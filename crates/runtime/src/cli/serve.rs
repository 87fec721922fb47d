//! `foveal serve`.

pub(crate) mod args;
pub(crate) mod config;

use std::io;
use std::time::Instant;

use foveal_processor::{ChatRequest, Content, ContentPart, ImageInput, Message, Role};
use foveal_runtime::Model;
use foveal_server::{ServedModel, Server, ServerHandle};
use foveal_types::SamplingParams;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use self::config::ServeConfig;
use super::config::ModelPlace;
use super::error::CliError;
use super::open;
use super::progress::Progress;
use super::stderr::say;

/// Serves until it is told to stop.
pub(crate) fn serve(config: ServeConfig) -> Result<(), CliError> {
    let runtime = Builder::new_multi_thread().enable_all().thread_name("foveal-server").build();
    let runtime: Runtime = runtime.map_err(|error| CliError::Serve(error.to_string()))?;
    let result = runtime.block_on(serve_on(config));
    // What still loads or decodes is of no use to anybody.
    runtime.shutdown_background();
    result
}

async fn serve_on(config: ServeConfig) -> Result<(), CliError> {
    let ServeConfig { model, address, names, server, options } = config;
    let is_open = server.api_keys.is_empty();
    let server = Server::bind(&address, server).await?;
    let address = server.local_addr()?;
    if is_open && !address.ip().is_loopback() {
        say("Anybody who reaches this address may ask: --api-key asks for a key.");
    }
    let handle = server.handle();
    // Ready when loading has failed; whoever stops the server meanwhile doesn't wait for it.
    let (failed, has_failed) = oneshot::channel();
    let signal = stop_signal()?;
    tokio::task::spawn_blocking(move || {
        let loading = Loading { place: model, options, names, url: format!("http://{address}") };
        if let Err(error) = loading.load(&handle) {
            let _ = failed.send(error);
        }
    });
    let mut failure = None;
    let stop = async {
        // A sender that is gone without a word has loaded the model.
        let failed = async {
            match has_failed.await {
                Ok(error) => error,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = signal => {}
            error = failed => failure = Some(error),
        }
    };
    server.run(stop).await;
    failure.map_or(Ok(()), Err)
}

/// A model on its way to the server.
struct Loading {
    place: ModelPlace,
    options: foveal_runtime::ModelOptions,
    names: Vec<String>,
    url: String,
}

impl Loading {
    fn load(self, server: &ServerHandle) -> Result<(), CliError> {
        let start = Instant::now();
        let folder = open(&self.place)?;
        let progress = Progress::of_bytes("Loading");
        let model = Model::load(&folder, &self.options, progress.reporter())?;
        progress.clear();
        answer_once(&model)?;
        let names = if self.names.is_empty() { vec![model.name().to_owned()] } else { self.names };
        let name = names.join(", ");
        server.set_model(ServedModel {
            names,
            root: None,
            processor: model.processor().clone(),
            engine: model.engine().clone(),
            default_sampling: model.default_sampling(),
        });
        say(format_args!("{}", model.engine().memory_plan()));
        say(format_args!("{name} on {} is ready after {:.1} s", self.url, start.elapsed().as_secs_f64()));
        Ok(())
    }
}

/// Side of the picture that is asked about first.
const SIDE: u32 = 64;

/// Asks the model something, with a picture if it takes any: whoever is told that it is ready finds it so.
fn answer_once(model: &Model) -> Result<(), CliError> {
    let text = ContentPart::Text("Hello".to_owned());
    let pixels = vec![127; (SIDE * SIDE * 3) as usize].into();
    let picture = ContentPart::Image(ImageInput::Rgb { width: SIDE, height: SIDE, pixels });
    let parts = if model.processor().vision_config().is_some() { vec![picture, text] } else { vec![text] };
    let message = Message { role: Role::User, content: Content::Parts(parts), fields: serde_json::Map::new() };
    let sampling = SamplingParams { max_tokens: Some(2), ignore_eos: true, ..SamplingParams::default() };
    let request = model.prepare(&ChatRequest::new(vec![message]), sampling).map_err(foveal_types::Error::from)?;
    for event in model.answer(request) {
        event?;
    }
    Ok(())
}

/// Ready at the first SIGTERM or Ctrl-C. The second one ends the program at once.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (first, is_first) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        let _ = first.send(());
        next().await;
        say("A second signal: ending at once.");
        std::process::exit(1);
    });
    Ok(async {
        let _ = is_first.await;
    })
}
