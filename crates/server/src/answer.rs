//! A begun request to a response: whole, or as server-sent events. What differs between chats and texts is a [`Format`].

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use foveal_processor::AnswerEvent;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use serde::Serialize;

use crate::api::usage::Usage;
use crate::choices::{ChoiceEvent, Choices};
use crate::error::ApiError;
use crate::record::Record;
use crate::state::Admission;

/// How often a stream without news shows that it lives: proxies close what is silent for half a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How an endpoint writes its answers.
pub(crate) trait Format: Send + 'static {
    /// What is sent, whole or in pieces.
    type Body: Serialize;

    /// The piece that an event comes to, or nothing if it tells the client nothing.
    fn chunk(&mut self, index: usize, event: AnswerEvent) -> Option<Self::Body>;

    /// The last piece of a stream: the counts.
    fn usage(&self, usage: Usage) -> Self::Body;

    /// Puts the counts so far into a piece.
    fn with_usage(body: Self::Body, usage: Usage) -> Self::Body;

    /// Takes in an event of an answer that is sent whole.
    fn collect(&mut self, index: usize, event: AnswerEvent);

    /// The whole answer.
    fn whole(self, usage: Usage) -> Self::Body;
}

/// A request that the engine has been given, and how its answer is sent.
pub(crate) struct Begun<F> {
    pub(crate) choices: Choices,
    pub(crate) format: F,
    pub(crate) admission: Admission,
    /// None: whole.
    pub(crate) stream: Option<StreamUsage>,
}

/// A request that the engine has.
struct Running<F> {
    choices: Choices,
    format: F,
    record: Record,
    /// Held until the answer has ended.
    #[expect(dead_code, reason = "only its end matters")]
    admission: Admission,
}

/// What a stream holds besides the answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamUsage {
    /// The counts at the end.
    pub(crate) at_end: bool,
    /// The counts so far in every piece.
    pub(crate) in_every_chunk: bool,
}

/// Sends the answer, or what kept the request from beginning.
pub(crate) async fn respond<F: Format>(begun: Result<Begun<F>, ApiError>, mut record: Record) -> Response {
    match begun {
        Ok(Begun { choices, format, admission, stream }) => {
            record.counts(choices.usage());
            let running = Running { choices, format, record, admission };
            match stream {
                Some(usage) => running.stream(usage),
                None => running.whole().await,
            }
        }
        Err(error) => {
            record.failed(error.status.as_u16());
            error.into_response()
        }
    }
}

impl<F: Format> Running<F> {
    async fn next(&mut self) -> Option<Result<(usize, AnswerEvent), ApiError>> {
        let ChoiceEvent { index, event } = self.choices.next().await?;
        Some(match event {
            Ok(event) => {
                match &event {
                    AnswerEvent::Prefill { .. } => self.record.begun(self.choices.usage()),
                    AnswerEvent::Token { .. } => self.record.token(),
                    AnswerEvent::Finished { reason, .. } => self.record.finished(*reason, self.choices.usage()),
                    _ => {}
                }
                Ok((index, event))
            }
            Err(error) => {
                let error = ApiError::from(error);
                self.record.counts(self.choices.usage());
                self.record.failed(error.status.as_u16());
                Err(error)
            }
        })
    }

    /// The whole answer in one piece.
    async fn whole(mut self) -> Response {
        while let Some(next) = self.next().await {
            match next {
                Ok((index, event)) => self.format.collect(index, event),
                Err(error) => return error.into_response(),
            }
        }
        let usage = Usage::from(self.choices.usage());
        Json(self.format.whole(usage)).into_response()
    }

    /// The answer as events.
    fn stream(self, usage: StreamUsage) -> Response {
        let events = unfold(Stage::Answers(Box::new(self)), move |stage| stage.step(usage));
        let sse = Sse::new(events.map(Ok::<_, Infallible>))
            .keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive"));
        // Nginx holds streams back unless it is told not to.
        let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        ([unbuffered], sse).into_response()
    }
}

/// Where a stream is.
enum Stage<F> {
    Answers(Box<Running<F>>),
    /// The request has ended, and its place is free; `[DONE]` is left to say.
    Done,
    Ended,
}

impl<F: Format> Stage<F> {
    /// The next event, and where the stream is then.
    async fn step(self, usage: StreamUsage) -> Option<(Event, Self)> {
        let mut running = match self {
            Self::Answers(running) => running,
            Self::Done => return Some((Event::default().data("[DONE]"), Self::Ended)),
            Self::Ended => return None,
        };
        loop {
            match running.next().await {
                Some(Ok((index, event))) => {
                    let Some(mut body) = running.format.chunk(index, event) else { continue };
                    if usage.in_every_chunk {
                        body = F::with_usage(body, Usage::from(running.choices.usage()));
                    }
                    return Some((event_of(&body), Self::Answers(running)));
                }
                // The other answers are cancelled as the request is dropped.
                Some(Err(error)) => return Some((event_of(&error.body()), Self::Done)),
                None if usage.at_end => {
                    let body = running.format.usage(Usage::from(running.choices.usage()));
                    return Some((event_of(&body), Self::Done));
                }
                None => return Some((Event::default().data("[DONE]"), Self::Ended)),
            }
        }
    }
}

fn event_of(body: &impl Serialize) -> Event {
    // None of our types can fail to be written.
    Event::default().data(serde_json::to_string(body).unwrap_or_default())
}
