//! `foveal run` without a prompt: a chat over the lines of stdin.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use foveal_runtime::{Chat, Picture};
use foveal_types::SamplingParams;

use super::config::Output;
use super::error::CliError;
use super::input::{ChatLine, MAX_LINE_BYTES, read_line};
use super::printer::{Before, print_answer};
use super::show;
use super::stderr::{prompt, say};

const HELP: &str = "\
/image FILE   adds a picture to the next message
/drop         takes back the pictures that wait for the next message
/clear        forgets the conversation and its pictures
/help         shows this
/quit         ends the chat; so does the end of input (Ctrl-D)
Everything else is a message.";

/// What a line of the chat means.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Message(&'a str),
    Image(&'a str),
    Drop,
    Clear,
    Help,
    Quit,
    Unknown(&'a str),
}

fn parse(line: &str) -> Line<'_> {
    let line = line.trim();
    let (command, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(c, rest)| (c, rest.trim()));
    match command {
        "" => Line::Nothing,
        "/image" => Line::Image(rest),
        "/drop" => Line::Drop,
        "/clear" => Line::Clear,
        "/help" => Line::Help,
        "/quit" | "/exit" => Line::Quit,
        _ if command.starts_with('/') && !command[1..].contains('/') => Line::Unknown(command),
        _ => Line::Message(line),
    }
}

/// Reads turns until the input ends. At a terminal an error is shown and the chat goes on; in a pipe, where nobody can
/// answer it, it ends the program.
pub(crate) fn chat(
    mut session: Chat<'_>,
    sampling: &SamplingParams,
    output: Output,
    mut before: Before,
) -> Result<(), CliError> {
    let stdin = std::io::stdin();
    let is_terminal = stdin.is_terminal();
    if is_terminal {
        say("Type a message, /image FILE to show a picture, /help for more.");
    }
    let mut lines = stdin.lock();
    loop {
        if is_terminal {
            prompt("> ");
        }
        let result = match read_line(&mut lines, MAX_LINE_BYTES)? {
            ChatLine::End => return Ok(()),
            ChatLine::Unusable(error) => Err(error),
            ChatLine::Text(line) => match parse(&line) {
                Line::Quit => return Ok(()),
                Line::Message(text) => turn(&mut session, text, sampling, output, std::mem::take(&mut before)),
                command => obey(&mut session, &command),
            },
        };
        match result {
            Err(error) if is_terminal && error.exit_status() == 2 => {
                show(&error);
                tell_waiting(&session);
            }
            result => result?,
        }
    }
}

/// Does what needs no answer of the model.
fn obey(session: &mut Chat<'_>, command: &Line<'_>) -> Result<(), CliError> {
    match command {
        Line::Help => say(HELP),
        Line::Drop => session.drop_pictures(),
        Line::Clear => session.clear(),
        Line::Image(path) => session.add_picture(Picture::read(Path::new(path))?),
        Line::Unknown(command) => say(format_args!("{command} is no command; /help lists them")),
        Line::Nothing | Line::Quit | Line::Message(_) => {}
    }
    Ok(())
}

/// After an error: which pictures the next message will have.
fn tell_waiting(session: &Chat<'_>) {
    let names: Vec<&str> = session.waiting_pictures().iter().map(Picture::name).collect();
    if !names.is_empty() {
        say(format_args!("  waiting for the next message: {} (/drop takes them back)", names.join(", ")));
    }
}

fn turn(
    session: &mut Chat<'_>,
    text: &str,
    sampling: &SamplingParams,
    output: Output,
    before: Before,
) -> Result<(), CliError> {
    let start = Instant::now();
    let answer = session.ask(text, sampling)?;
    let prepare: Duration = start.elapsed();
    match print_answer(answer, output, Before { prepare, ..before }) {
        Ok(text) => {
            session.keep(text);
            Ok(())
        }
        Err(error) => {
            session.take_back();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, parse};

    #[test]
    fn lines_are_messages_unless_they_name_a_command() {
        assert_eq!(parse("  \n"), Line::Nothing);
        assert_eq!(parse(" What is this? \r\n"), Line::Message("What is this?"));
        assert_eq!(parse("/image my cat.jpg\n"), Line::Image("my cat.jpg"));
        assert_eq!(parse("/image\n"), Line::Image(""));
        assert_eq!(
            [parse("/drop"), parse("/clear"), parse("/help"), parse("/quit"), parse("/exit")],
            [Line::Drop, Line::Clear, Line::Help, Line::Quit, Line::Quit]
        );
        assert_eq!(parse("/imgae x"), Line::Unknown("/imgae"));
        assert_eq!(parse("/usr/bin is a folder"), Line::Message("/usr/bin is a folder"));
    }
}
