//! `foveal run` without a prompt: a chat through a pipe.

mod common;

use common::{foveal_with_stdin, run_tiny, run_tiny_args, shapes, tiny};
use foveal_checkpoint::ModelFolder;
use foveal_processor::{ChatRequest, ContentPart, ImageInput, Message, Role};
use foveal_runtime::{AnswerEvent, Chat, Model, ModelOptions, Picture};
use foveal_testkit::Golden;
use foveal_types::SamplingParams;
use serde_json::{Value, json};

const FIRST: &str = "Describe the picture.";
const SECOND: &str = "List the shapes as JSON.";

fn chat(args: &[&str], lines: &[&str]) -> common::Outcome {
    foveal_with_stdin(run_tiny_args(args), (lines.join("\n") + "\n").as_bytes())
}

fn with_picture(picture: &str) -> Vec<Value> {
    chat(&["--json", "--logprobs", "2"], &[&format!("/image {picture}"), FIRST, SECOND]).json_lines()
}

/// The best tokens of each step, best first.
type Best = Vec<Vec<(u64, f32)>>;

/// The second turn's best tokens, from a model that has not seen the first: nothing is reused.
fn second_turn_afresh(picture: &str, first_answer: &str) -> Best {
    let model = Model::load(&ModelFolder::open(tiny()).unwrap(), &ModelOptions::default(), |_, _| ()).unwrap();
    let image = ImageInput::Bytes(std::fs::read(picture).unwrap().into());
    let messages = vec![
        Message::parts(Role::User, vec![ContentPart::Image(image), ContentPart::Text(FIRST.to_owned())]),
        Message::text(Role::Assistant, first_answer),
        Message::text(Role::User, SECOND),
    ];
    let sampling = SamplingParams { logprobs: Some(2), ..model.default_sampling() };
    let request = model.prepare(&ChatRequest::new(messages), sampling).unwrap();
    let mut best = Vec::new();
    for event in model.answer(request) {
        match event.unwrap() {
            AnswerEvent::Token { token, .. } => {
                let top = token.logprobs.unwrap().top;
                best.push(top.into_iter().map(|(id, logprob)| (u64::from(id.0), logprob)).collect());
            }
            AnswerEvent::Finished { usage, .. } => assert_eq!(usage.cached_tokens, 0),
            _ => {}
        }
    }
    best
}

/// The same from JSON, whose numbers are the shortest that give the same float32.
fn best(logprobs: &Value) -> Best {
    let pair = |pair: &Value| (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap() as f32);
    let step = |step: &Value| step.as_array().unwrap().iter().map(pair).collect();
    logprobs.as_array().unwrap().iter().map(step).collect()
}

/// Tokens of a page of the KV cache.
const PAGE: u64 = 32;

#[test]
fn the_second_turn_sees_the_first_ones_picture_without_computing_it_again() {
    let shapes = shapes();
    let other = Golden::image("p11_0.png");
    let turns = with_picture(shapes.to_str().unwrap());
    let [first, second] = &turns[..] else { panic!("{turns:?}") };
    assert!(first["text"].as_str().unwrap().contains("a blue star on the right"));
    assert_eq!((&first["image_tokens"], &second["image_tokens"]), (&json!(48), &json!(48)));
    // The full pages of what was computed in the first turn: its prompt and its answer but the last token.
    let computed = first["prompt_tokens"].as_u64().unwrap() + first["completion_tokens"].as_u64().unwrap() - 1;
    let kept = computed / PAGE * PAGE;
    assert_eq!((&first["cached_tokens"], &second["cached_tokens"]), (&json!(0), &json!(kept)));
    // Another picture under the same words gives other tokens: the model looks.
    let others = with_picture(other.to_str().unwrap());
    assert_ne!(second["token_ids"], others[1]["token_ids"]);
    // Not a bit differs from computing the whole conversation anew.
    let afresh = second_turn_afresh(shapes.to_str().unwrap(), first["text"].as_str().unwrap());
    assert_eq!(best(&second["logprobs"]), afresh);
}

#[test]
fn a_chat_prints_one_answer_for_each_line_and_forgets_on_request() {
    let shapes = shapes();
    let image = format!("/image {}", shapes.display());
    let outcome = chat(&[], &[&image, FIRST, "", "/clear", &image, FIRST, "/quit", "never asked"]);
    let once = run_tiny(["--image", shapes.to_str().unwrap(), FIRST]);
    let answers: Vec<&str> = outcome.answer().lines().collect();
    assert_eq!(answers, [once.answer(), once.answer()]);
    assert_eq!(outcome.stderr, "");
}

#[test]
fn a_picture_on_the_command_line_belongs_to_the_first_turn() {
    let shapes = shapes();
    let turns =
        chat(&["--json", "--max-tokens", "4", "--image", shapes.to_str().unwrap()], &[FIRST, "Hello"]).json_lines();
    assert_eq!(turns[0]["image_tokens"], 48);
    assert_eq!(turns[1]["image_tokens"], 48, "it stays in the conversation");
}

#[test]
fn a_system_message_stands_before_everything() {
    let with = run_tiny(["--json", "--max-tokens", "1", "--system", "Be brief.", "Hello"]).json();
    let without = run_tiny(["--json", "--max-tokens", "1", "Hello"]).json();
    assert!(with["prompt_tokens"].as_u64() > without["prompt_tokens"].as_u64());
}

#[test]
fn in_a_pipe_a_wrong_turn_ends_the_chat() {
    let outcome = chat(&[], &["/image no/such/file.png", "Hello"]);
    assert!(outcome.refusal().contains("no/such/file.png"));
    let outcome = foveal_with_stdin(run_tiny_args::<&str>([]), b"caf\xe9\n");
    assert!(outcome.refusal().contains("stdin can't be read: it is no UTF-8 text"));
    let outcome = chat(&["--max-model-len", "64"], &[&"one two three ".repeat(60)]);
    assert!(outcome.refusal().contains("64"));
}

#[test]
fn pictures_of_a_message_that_failed_wait_for_the_next_one() {
    let options = ModelOptions { max_model_len: Some(160), ..ModelOptions::default() };
    let model = Model::load(&ModelFolder::open(tiny()).unwrap(), &options, |_, _| ()).unwrap();
    let sampling = SamplingParams { max_tokens: Some(1), ..model.default_sampling() };
    let good = Picture::read(&shapes()).unwrap();
    let png = std::fs::read(shapes()).unwrap();
    // The header is whole, the pixels are not.
    let cut = Picture::from_bytes(png[..png.len() / 2].to_vec(), "cut.png").unwrap();
    let names = |chat: &Chat<'_>| -> Vec<String> {
        chat.waiting_pictures().iter().map(|picture| picture.name().to_owned()).collect()
    };
    let mut chat = Chat::new(&model, None);
    chat.add_picture(cut);
    chat.add_picture(good.clone());
    let error = chat.ask("Hello", &sampling).unwrap_err().to_string();
    assert!(error.starts_with("cut.png"), "{error}");
    assert_eq!(names(&chat), [good.name()], "only the one that can be used");
    assert!(chat.ask(&"one two three ".repeat(60), &sampling).is_err());
    assert_eq!(names(&chat), [good.name()]);
    drop(chat.ask("Hello", &sampling).unwrap());
    assert!(names(&chat).is_empty());
    chat.take_back();
    chat.take_back();
    assert_eq!(names(&chat), [good.name()]);
    let image_tokens = chat.ask("Hello", &sampling).unwrap().find_map(|event| match event.unwrap() {
        AnswerEvent::Finished { usage, .. } => Some(usage.image_tokens),
        _ => None,
    });
    assert_eq!(image_tokens, Some(48));
    chat.clear();
    chat.take_back();
    assert!(names(&chat).is_empty());
}
