//! A small server that speaks as much of OpenAI's API as a load generator asks for, and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What one answer is like.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// Chunks of a token each, cut into pieces of so many bytes on the wire, after these pauses.
    Answer { piece_bytes: usize, first_pause: Duration, pause: Duration, has_usage: bool },
    /// A status and a body.
    Status(u16, String),
    /// So many tokens, then the connection is closed within the stream.
    Drop { tokens: usize },
    /// A stream that ends in order, after so many tokens and without the answer's end.
    Truncated { tokens: usize },
    /// A token, then an event that says what went wrong.
    ErrorEvent(String),
}

impl Behaviour {
    /// Answers at once.
    pub(crate) fn quick() -> Self {
        Self::Answer { piece_bytes: usize::MAX, first_pause: Duration::ZERO, pause: Duration::ZERO, has_usage: true }
    }
}

/// A request for an answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

/// What the server does and what it saw.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) asked: Mutex<Vec<Asked>>,
    /// By the number of the request; the last one for all that follow.
    behaviours: Vec<Behaviour>,
    /// The first so many answers wait for each other.
    meeting: usize,
    /// Requests under way: now, and the most so far.
    under_way: Mutex<[usize; 2]>,
    changed: Condvar,
    /// Counts a text's tokens, if there is such a route.
    tokenize: Option<fn(&str) -> usize>,
    health_questions: AtomicUsize,
}

pub(crate) struct FakeServer {
    pub(crate) url: String,
    pub(crate) state: Arc<State>,
}

impl FakeServer {
    /// Answers as many requests as come, until the test's process ends.
    pub(crate) fn start(behaviours: Vec<Behaviour>, meeting: usize, tokenize: Option<fn(&str) -> usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State { behaviours, meeting, tokenize, ..State::default() });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                thread::spawn(move || connection(&stream.unwrap(), &state));
            }
        });
        Self { url, state }
    }

    pub(crate) fn quick() -> Self {
        Self::start(vec![Behaviour::quick()], 0, None)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.state.under_way.lock().unwrap()[1]
    }
}

/// Requests over one connection, until either side closes it.
fn connection(stream: &TcpStream, state: &State) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream);
    while let Some((head, body)) = request(&mut reader) {
        let mut words = head[0].split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let authorization = head.iter().find_map(|line| line.strip_prefix("authorization: ").map(str::to_owned));
        let is_open = match (method, path, state.tokenize) {
            ("GET", "/health", _) => {
                let status = if state.health_questions.fetch_add(1, Ordering::Relaxed) < 2 { 503 } else { 200 };
                respond(stream, status, "")
            }
            ("GET", "/v1/models", _) => {
                respond(stream, 200, r#"{"object":"list","data":[{"id":"tiny"},{"id":"other"}]}"#)
            }
            ("POST", "/tokenize", Some(count)) => {
                let body: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!((&body["model"], &body["add_special_tokens"]), (&json!("tiny"), &json!(false)));
                let count = count(body["prompt"].as_str().unwrap());
                respond(stream, 200, &json!({ "count": count, "max_model_len": 99 }).to_string())
            }
            ("POST", "/v1/chat/completions" | "/v1/completions", _) => {
                let body = serde_json::from_slice(&body).unwrap();
                answer(stream, state, Asked { path: path.to_owned(), authorization, body })
            }
            _ => respond(stream, 404, r#"{"error":{"message":"no such route"}}"#),
        };
        if !is_open {
            return;
        }
    }
}

/// The lines of a head, names in lower case, and a body.
fn request(reader: &mut BufReader<&TcpStream>) -> Option<(Vec<String>, Vec<u8>)> {
    let (mut head, mut len) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let line = match line.split_once(": ") {
            Some((name, value)) => format!("{}: {value}", name.to_lowercase()),
            None => line.to_owned(),
        };
        if let Some(value) = line.strip_prefix("content-length: ") {
            len = value.parse().unwrap();
        }
        head.push(line);
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn respond(mut stream: &TcpStream, status: u16, body: &str) -> bool {
    let head =
        format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).is_ok()
}

/// Gives whether the connection stays open.
fn answer(mut stream: &TcpStream, state: &State, asked: Asked) -> bool {
    let is_chat = asked.path.contains("chat");
    let limit = if is_chat { "max_completion_tokens" } else { "max_tokens" };
    let num_tokens = asked.body[limit].as_u64().unwrap() as usize;
    let number = {
        let mut all = state.asked.lock().unwrap();
        all.push(asked);
        all.len() - 1
    };
    enter(state, number);
    let behaviour = state.behaviours.get(number).or(state.behaviours.last()).unwrap();
    let token =
        if is_chat { r#"{"choices":[{"delta":{"content":"é "}}]}"# } else { r#"{"choices":[{"text":"é "}]}"# };
    let role = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
    let end = r#"{"choices":[{"delta":{},"text":"","finish_reason":"length"}]}"#;
    let mut events: Vec<String> = Vec::new();
    let (mut piece, mut pauses, mut is_whole) = (usize::MAX, [Duration::ZERO; 2], true);
    match behaviour {
        Behaviour::Status(status, body) => {
            leave(state);
            return respond(stream, *status, body);
        }
        Behaviour::Answer { piece_bytes, first_pause, pause, has_usage } => {
            (piece, pauses) = (*piece_bytes, [*first_pause, *pause]);
            events.push(role.to_owned());
            events.extend(vec![token.to_owned(); num_tokens]);
            events.push(end.to_owned());
            if *has_usage {
                let usage = json!({ "prompt_tokens": 77, "completion_tokens": num_tokens });
                events.push(json!({ "choices": [], "usage": usage }).to_string());
            }
            events.push("[DONE]".to_owned());
        }
        Behaviour::Drop { tokens } => {
            events.extend(vec![token.to_owned(); *tokens]);
            is_whole = false;
        }
        Behaviour::Truncated { tokens } => events.extend(vec![token.to_owned(); *tokens]),
        Behaviour::ErrorEvent(message) => {
            events.push(token.to_owned());
            events.push(json!({ "error": { "message": message } }).to_string());
        }
    }
    let mut send = |bytes: &[u8]| stream.write_all(bytes).and_then(|()| stream.flush()).is_ok();
    send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    for (number, event) in events.iter().enumerate() {
        thread::sleep(match number {
            0 => Duration::ZERO,
            1 => pauses[0],
            _ => pauses[1],
        });
        // Each piece is a chunk of HTTP; pieces end anywhere, within a character too.
        for part in format!("data: {event}\n\n").as_bytes().chunks(piece) {
            send(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
        }
    }
    // Before the last byte, so that a request that follows isn't counted beside this one.
    leave(state);
    if is_whole {
        send(b"0\r\n\r\n");
    }
    is_whole
}

/// Counts a request in. The first of them wait for each other, so that a test knows that they were under way together.
fn enter(state: &State, number: usize) {
    let mut under_way = state.under_way.lock().unwrap();
    under_way[0] += 1;
    under_way[1] = under_way[1].max(under_way[0]);
    state.changed.notify_all();
    if number < state.meeting {
        let long = Duration::from_secs(20);
        let (_still, result) =
            state.changed.wait_timeout_while(under_way, long, |under_way| under_way[1] < state.meeting).unwrap();
        assert!(!result.timed_out(), "fewer than {} requests came at once", state.meeting);
    }
}

fn leave(state: &State) {
    state.under_way.lock().unwrap()[0] -= 1;
}
