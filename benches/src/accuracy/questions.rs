//! Questions about pictures with their answers, as `tests/reference/tiny_questions.py` writes them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context;
use foveal_processor::{ChatRequest, ContentPart, ImageInput, Message, Role};
use serde::Deserialize;

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    /// What the user says, behind the pictures.
    pub text: String,
    /// What is right, word for word.
    pub answer: String,
    images: Vec<ImageFile>,
}

/// Where a picture's file is: a file of its own, or a part of one.
#[derive(Clone, Debug)]
struct ImageFile {
    path: PathBuf,
    /// Begin and length.
    part: Option<(u64, u64)>,
}

#[derive(Deserialize)]
struct Line {
    images: Vec<ImageEntry>,
    question: String,
    answer: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ImageEntry {
    Whole(PathBuf),
    Part { file: PathBuf, offset: u64, len_bytes: u64 },
}

/// Reads a file of questions, one JSON object a line, at most `limit` of them; pictures are read when they are needed.
///
/// # Errors
/// When it can't be read, with the line that is wrong.
pub fn read_questions(path: &Path, limit: Option<usize>) -> anyhow::Result<Vec<Question>> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("{name}"))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let lines = text.lines().enumerate().take(limit.unwrap_or(usize::MAX));
    lines
        .map(|(i, line)| {
            let line: Line = serde_json::from_str(line).with_context(|| format!("{name}, line {}", i + 1))?;
            let Line { images, question, answer } = line;
            let images = images.into_iter().map(|entry| match entry {
                ImageEntry::Whole(path) => ImageFile { path: folder.join(path), part: None },
                ImageEntry::Part { file, offset, len_bytes } => {
                    ImageFile { path: folder.join(file), part: Some((offset, len_bytes)) }
                }
            });
            Ok(Question { text: question, answer, images: images.collect() })
        })
        .collect()
}

impl Question {
    /// The words by which questions are put together in a table: the first two.
    pub(super) fn kind(&self) -> String {
        self.text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// The question as a chat; reads its pictures.
    pub(super) fn chat(&self) -> anyhow::Result<ChatRequest> {
        let text = self.text.clone();
        if self.images.is_empty() {
            return Ok(ChatRequest::new(vec![Message::text(Role::User, text)]));
        }
        let mut parts = Vec::with_capacity(self.images.len() + 1);
        for image in &self.images {
            let bytes = image.read().with_context(|| image.path.display().to_string())?;
            parts.push(ContentPart::Image(ImageInput::Bytes(bytes.into())));
        }
        parts.push(ContentPart::Text(text));
        Ok(ChatRequest::new(vec![Message::parts(Role::User, parts)]))
    }
}

impl ImageFile {
    fn read(&self) -> std::io::Result<Vec<u8>> {
        let Some((offset, len_bytes)) = self.part else { return fs::read(&self.path) };
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        let len = file.take(len_bytes).read_to_end(&mut bytes)?;
        if len as u64 == len_bytes {
            return Ok(bytes);
        }
        let reason = format!("ends after {len} of the {len_bytes} bytes from {offset} on; write the questions again");
        Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason))
    }
}
