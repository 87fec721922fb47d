//! Reads what the command line names.

use std::io::{BufRead, Read};

use foveal_runtime::Picture;

use super::config::Input;
use super::error::CliError;

/// The most bytes that are taken from stdin: more than any picture or prompt may have.
const MAX_STDIN_BYTES: u64 = 64 << 20;
/// The most bytes of a line of a chat: as much text as a request may have.
pub(crate) const MAX_LINE_BYTES: u64 = 16 << 20;

/// A picture, its header checked.
pub(crate) fn read_picture(input: &Input) -> Result<Picture, CliError> {
    match input {
        Input::Stdin => Ok(Picture::from_bytes(read_stdin()?, "the picture on stdin")?),
        Input::File(path) => Ok(Picture::read(path)?),
    }
}

/// The whole of stdin as a prompt; one newline at its end is not part of it.
pub(crate) fn read_prompt() -> Result<String, CliError> {
    let text = text(read_stdin()?)?;
    Ok(text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)).to_owned())
}

fn read_stdin() -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    match std::io::stdin().lock().take(MAX_STDIN_BYTES + 1).read_to_end(&mut bytes) {
        Ok(len) if len as u64 > MAX_STDIN_BYTES => {
            Err(CliError::Stdin(format!("it holds more than {MAX_STDIN_BYTES} bytes")))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(unreadable(&error)),
    }
}

/// One line of a chat.
#[derive(Debug)]
pub(crate) enum ChatLine {
    Text(String),
    /// No turn can be made of it; the next line may be one.
    Unusable(CliError),
    End,
}

/// The next line of a chat, of at most `max_bytes`. What is longer stays unread.
pub(crate) fn read_line(lines: &mut impl BufRead, max_bytes: u64) -> Result<ChatLine, CliError> {
    let mut bytes = Vec::new();
    lines.take(max_bytes).read_until(b'\n', &mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.is_empty() {
        return Ok(ChatLine::End);
    }
    if bytes.len() as u64 >= max_bytes && bytes.last() != Some(&b'\n') {
        return Ok(ChatLine::Unusable(CliError::Stdin(format!("a line has more than {max_bytes} bytes"))));
    }
    Ok(text(bytes).map_or_else(ChatLine::Unusable, ChatLine::Text))
}

fn text(bytes: Vec<u8>) -> Result<String, CliError> {
    String::from_utf8(bytes).map_err(|_| CliError::Stdin("it is no UTF-8 text".to_owned()))
}

fn unreadable(error: &std::io::Error) -> CliError {
    CliError::Stdin(error.kind().to_string())
}

#[cfg(test)]
mod tests {
    use super::{ChatLine, read_line};

    #[test]
    fn a_line_that_is_no_turn_is_told_and_the_next_one_is_read() {
        let mut lines = b"one\n\xff\nlast".as_slice();
        let mut next = || read_line(&mut lines, 8).unwrap();
        assert!(matches!(next(), ChatLine::Text(text) if text == "one\n"));
        assert!(matches!(next(), ChatLine::Unusable(error) if error.to_string().contains("UTF-8")));
        assert!(matches!(next(), ChatLine::Text(text) if text == "last"));
        assert!(matches!(next(), ChatLine::End));
    }

    #[test]
    fn a_line_without_end_is_not_read_to_its_end() {
        let mut endless = std::io::BufReader::new(std::io::repeat(b'x'));
        let line = read_line(&mut endless, 1000).unwrap();
        assert!(matches!(line, ChatLine::Unusable(error) if error.to_string().contains("more than 1000 bytes")));
    }
}
