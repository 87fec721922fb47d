//! Reads what the command line names.

use std::io::Read;

use foveal_runtime::Picture;

use super::config::Input;
use super::error::CliError;

/// The most bytes that are taken from stdin: more than any picture or prompt may have.
const MAX_STDIN_BYTES: u64 = 64 << 20;

/// A picture, its header checked.
pub(crate) fn read_picture(input: &Input) -> Result<Picture, CliError> {
    match input {
        Input::Stdin => Ok(Picture::from_bytes(read_stdin()?, "the picture on stdin")?),
        Input::File(path) => Ok(Picture::read(path)?),
    }
}

/// The whole of stdin as a prompt; one newline at its end is not part of it.
pub(crate) fn read_prompt() -> Result<String, CliError> {
    let text = String::from_utf8(read_stdin()?).map_err(|_| CliError::Stdin("it is no UTF-8 text".to_owned()))?;
    Ok(text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)).to_owned())
}

fn read_stdin() -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX_STDIN_BYTES + 1).read_to_end(&mut bytes);
    match read {
        Ok(len) if len as u64 > MAX_STDIN_BYTES => {
            Err(CliError::Stdin(format!("it holds more than {MAX_STDIN_BYTES} bytes")))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(CliError::Stdin(error.kind().to_string())),
    }
}
