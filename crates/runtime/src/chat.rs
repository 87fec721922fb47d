//! A conversation that keeps its pictures.

use foveal_processor::{ChatRequest, ContentPart, Message, ProcessorError, Role};
use foveal_types::SamplingParams;

use crate::{Answer, Model, Picture, RuntimeError};

/// A conversation with a model. Each turn's request begins with all that was said before. What of it the engine still
/// has from its last request, pictures included, is not computed again; a request of somebody else in between, or a
/// template that writes earlier turns in another way, costs that.
#[derive(Debug)]
pub struct Chat<'m> {
    model: &'m Model,
    system: Option<Message>,
    messages: Vec<Message>,
    /// The pictures in `messages`, in order.
    pictures: Vec<Picture>,
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
            pictures: Vec::new(),
            next_pictures: Vec::new(),
            before_ask: (0, 0),
        }
    }

    /// Adds a picture to the next message, before its text.
    pub fn add_picture(&mut self, picture: Picture) {
        self.next_pictures.push(picture);
    }

    /// The pictures that the next message will have.
    #[must_use]
    pub fn waiting_pictures(&self) -> &[Picture] {
        &self.next_pictures
    }

    /// Takes back the pictures that wait for the next message.
    pub fn drop_pictures(&mut self) {
        self.next_pictures.clear();
    }

    /// Asks. When the answer is there, give its text to [`Chat::keep`]; if it fails, call [`Chat::take_back`].
    ///
    /// # Errors
    /// What is wrong with the conversation: a picture by its name, its length. The message is then taken back. Its
    /// pictures wait for the next one, without the one that can't be used.
    pub fn ask(&mut self, text: &str, sampling: &SamplingParams) -> Result<Answer, RuntimeError> {
        self.before_ask = (self.messages.len(), self.pictures.len());
        let pictures = std::mem::take(&mut self.next_pictures);
        let mut parts: Vec<ContentPart> = pictures.iter().map(|picture| ContentPart::Image(picture.input())).collect();
        let message = if parts.is_empty() {
            Message::text(Role::User, text)
        } else {
            parts.push(ContentPart::Text(text.to_owned()));
            Message::parts(Role::User, parts)
        };
        self.pictures.extend(pictures);
        self.messages.push(message);
        let messages = self.system.iter().chain(&self.messages).cloned().collect();
        match self.model.prepare(&ChatRequest::new(messages), sampling.clone()) {
            Ok(request) => Ok(self.model.answer(request)),
            Err(error) => {
                self.take_back();
                Err(self.named(error))
            }
        }
    }

    /// Remembers what was answered.
    pub fn keep(&mut self, answer: impl Into<String>) {
        self.messages.push(Message::text(Role::Assistant, answer));
    }

    /// Forgets the last message, and its answer if it was kept. Its pictures wait for the next message again, before
    /// those that were added since. A second call changes nothing.
    pub fn take_back(&mut self) {
        let (messages, pictures) = self.before_ask;
        self.messages.truncate(messages);
        let pictures = self.pictures.split_off(pictures.min(self.pictures.len()));
        self.next_pictures.splice(0..0, pictures);
    }

    /// Forgets everything but the system message.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.pictures.clear();
        self.next_pictures.clear();
        self.before_ask = (0, 0);
    }

    /// The error of a message that was taken back, with the picture's name in the place of its number. The picture no
    /// longer waits: it would spoil the next message, too.
    fn named(&mut self, error: ProcessorError) -> RuntimeError {
        let ProcessorError::Picture { index, source, .. } = error else {
            return foveal_types::Error::from(error).into();
        };
        let picture = match index.checked_sub(self.pictures.len()) {
            Some(index) if index < self.next_pictures.len() => Some(self.next_pictures.remove(index)),
            _ => self.pictures.get(index).cloned(),
        };
        let name = picture.map_or_else(|| format!("picture {index}"), |picture| picture.name().to_owned());
        RuntimeError::Picture { name, source }
    }
}
