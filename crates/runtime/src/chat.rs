//! A conversation that keeps its pictures.

use foveal_processor::{ChatRequest, ContentPart, Message, ProcessorError, Role};
use foveal_types::SamplingParams;

use crate::{Answer, Model, Picture, RuntimeError};

/// A conversation with a model. Each turn's request begins with all that was said before, so that the engine computes
/// only what is new and encodes no picture twice.
#[derive(Debug)]
pub struct Chat<'m> {
    model: &'m Model,
    system: Option<Message>,
    messages: Vec<Message>,
    /// Names of the pictures in `messages`, in order, for errors.
    picture_names: Vec<String>,
    /// Pictures of the next message.
    next_pictures: Vec<Picture>,
    /// Messages and pictures before the last [`Chat::ask`].
    before_ask: (usize, usize),
}

impl<'m> Chat<'m> {
    /// A conversation that has not begun. `system` is what the model is told before it.
    #[must_use]
    pub fn new(model: &'m Model, system: Option<&str>) -> Self {
        Self {
            model,
            system: system.map(|text| Message::text(Role::System, text)),
            messages: Vec::new(),
            picture_names: Vec::new(),
            next_pictures: Vec::new(),
            before_ask: (0, 0),
        }
    }

    /// Adds a picture to the next message, before its text.
    pub fn add_picture(&mut self, picture: Picture) {
        self.next_pictures.push(picture);
    }

    /// Asks. When the answer is there, give its text to [`Chat::keep`]; if it fails, call [`Chat::take_back`].
    ///
    /// # Errors
    /// What is wrong with the conversation: a picture by its name, its length. The message is then taken back, with its
    /// pictures.
    pub fn ask(&mut self, text: &str, sampling: &SamplingParams) -> Result<Answer, RuntimeError> {
        self.before_ask = (self.messages.len(), self.picture_names.len());
        let pictures = std::mem::take(&mut self.next_pictures);
        let mut parts: Vec<ContentPart> = pictures.iter().map(|picture| ContentPart::Image(picture.input())).collect();
        let message = if parts.is_empty() {
            Message::text(Role::User, text)
        } else {
            parts.push(ContentPart::Text(text.to_owned()));
            Message::parts(Role::User, parts)
        };
        self.picture_names.extend(pictures.iter().map(|picture| picture.name().to_owned()));
        self.messages.push(message);
        let messages = self.system.iter().chain(&self.messages).cloned().collect();
        match self.model.prepare(&ChatRequest::new(messages), sampling.clone()) {
            Ok(request) => Ok(self.model.answer(request)),
            Err(error) => {
                let error = self.named(error);
                self.take_back();
                Err(error)
            }
        }
    }

    /// Remembers what was answered.
    pub fn keep(&mut self, answer: impl Into<String>) {
        self.messages.push(Message::text(Role::Assistant, answer));
    }

    /// Forgets the last message, as if it had not been asked.
    pub fn take_back(&mut self) {
        let (messages, pictures) = self.before_ask;
        self.messages.truncate(messages);
        self.picture_names.truncate(pictures);
    }

    /// Forgets everything but the system message.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.picture_names.clear();
        self.next_pictures.clear();
    }

    /// An error with the picture's name in the place of its number.
    fn named(&self, error: ProcessorError) -> RuntimeError {
        match error {
            ProcessorError::Picture { index, source, .. } if index < self.picture_names.len() => {
                let name = self.picture_names.get(index).cloned().unwrap_or_default();
                RuntimeError::Picture { name, source }
            }
            error => foveal_types::Error::from(error).into(),
        }
    }
}
