//! `foveal run` with a prompt.

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{command, foveal, foveal_with_stdin, run_tiny, run_tiny_args, shapes};
use foveal_testkit::Golden;

const TRUE_CONTENT: &str = "There are four shapes: an orange cross on the left, a blue star on the right, a black \
                            triangle at the bottom left and a purple square at the bottom right.";

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_picture_is_described() {
    let shapes = shapes();
    let outcome = run_tiny(["--image", path(&shapes), "Describe the picture."]);
    assert_eq!(outcome.answer(), TRUE_CONTENT);
    assert_eq!(outcome.stderr, "", "no progress bars where nobody looks");
}

#[test]
fn the_built_in_model_says_what_it_is() {
    let shapes = shapes();
    let outcome = foveal(["run", "--image", path(&shapes), "Describe the picture."]);
    assert_eq!(outcome.answer(), TRUE_CONTENT);
    assert!(outcome.stderr.contains("built-in") && outcome.stderr.lines().count() == 1, "{}", outcome.stderr);
}

#[test]
fn the_references_answers_come_out_of_the_program() {
    let golden = Golden::open("tiny");
    for name in ["image_3", "two_images", "text_count", "text_unicode"] {
        let case = golden.case(name);
        let mut args: Vec<String> = vec!["--max-tokens".into(), "32".into(), "--json".into()];
        for image in &case.images {
            args.extend(["--image".into(), path(&Golden::image(image)).to_owned()]);
        }
        args.push(case.question.clone());
        let json = run_tiny(args).json();
        assert_eq!(json["token_ids"], serde_json::json!(case.greedy_ids), "{name}");
        assert_eq!(json["text"], case.text, "{name}");
        assert_eq!(json["prompt_tokens"], case.prompt_ids.len());
    }
}

#[test]
fn json_holds_everything_that_is_promised() {
    let shapes = shapes();
    let json = run_tiny(["--image", path(&shapes), "--json", "--logprobs", "3", "How many shapes are there?"]).json();
    let fields: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    for field in ["text", "token_ids", "prompt_tokens", "image_tokens", "completion_tokens", "finish_reason", "timings"]
    {
        assert!(fields.contains(&field), "{field} of {fields:?}");
    }
    assert_eq!(json["text"], "There are four shapes.");
    assert_eq!(json["image_tokens"], 48);
    assert_eq!(json["cached_tokens"], 0);
    assert_eq!(json["finish_reason"], "stop");
    let ids = json["token_ids"].as_array().unwrap();
    assert_eq!(json["completion_tokens"], ids.len());
    let logprobs = json["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), ids.len());
    for (best, id) in logprobs.iter().zip(ids) {
        let best = best.as_array().unwrap();
        assert_eq!(best.len(), 3);
        assert_eq!(&best[0][0], id, "greedy takes the best");
        let values: Vec<f64> = best.iter().map(|pair| pair[1].as_f64().unwrap()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b) && values[0] <= 0.0, "{values:?}");
    }
    for timing in ["load_s", "prepare_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "total_s"] {
        assert!(json["timings"][timing].as_f64().unwrap() > 0.0, "{timing}");
    }
    let plain = run_tiny(["--json", "Hello"]).json();
    assert!(plain.get("logprobs").is_none(), "only when they are asked for");
}

#[test]
fn answers_end_where_they_are_told_to() {
    let shapes = shapes();
    let ask = |args: &[&str]| {
        let base = ["--image", path(&shapes), "--json", "Describe the picture."];
        run_tiny(base.iter().chain(args)).json()
    };
    let json = ask(&["--max-tokens", "4"]);
    assert_eq!((&json["finish_reason"], &json["completion_tokens"]), (&"length".into(), &4.into()));
    let json = ask(&["--stop", " on the right", "--stop", "never said"]);
    assert_eq!(json["text"], "There are four shapes: an orange cross on the left, a blue star");
    assert_eq!(json["finish_reason"], "stop");
    assert_eq!(json["completion_tokens"], json["token_ids"].as_array().unwrap().len());
}

#[test]
fn a_seed_repeats_an_answer() {
    let draw = |seed: &str| {
        let args = ["--temperature", "2.5", "--max-tokens", "24", "--seed", seed, "Hello"];
        run_tiny(args).answer().to_owned()
    };
    assert_eq!(draw("7"), draw("7"));
    assert_ne!(draw("7"), draw("8"));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let shapes = shapes();
    let ask = |threads: &str| {
        let args =
            ["--image", path(&shapes), "--json", "--logprobs", "5", "--threads", threads, "Describe the picture."];
        run_tiny(args).json()["logprobs"].clone()
    };
    assert_eq!(ask("1"), ask("3"));
}

#[test]
fn stdin_gives_the_prompt_or_a_picture() {
    let outcome = foveal_with_stdin(run_tiny_args(["-"]), b"Count from 3 to 12.\n");
    assert_eq!(outcome.answer(), run_tiny(["Count from 3 to 12."]).answer());
    let picture = std::fs::read(shapes()).unwrap();
    let outcome = foveal_with_stdin(run_tiny_args(["--image", "-", "Describe the picture."]), &picture);
    assert_eq!(outcome.answer(), TRUE_CONTENT);
}

#[test]
fn pixel_limits_change_the_pictures_tokens() {
    let shapes = shapes();
    let tokens = |args: &[&str]| {
        let base = ["--image", path(&shapes), "--json", "--max-tokens", "1", "Describe the picture."];
        run_tiny(base.iter().chain(args)).json()["image_tokens"].as_u64().unwrap()
    };
    // 256 x 192 pixels are 8 x 6 cells of 32 x 32.
    assert_eq!(tokens(&[]), 48);
    assert!(tokens(&["--max-pixels", "20000"]) < 20);
    assert!(tokens(&["--min-pixels", "100000"]) > 90);
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused_by_its_option() {
    let shapes = shapes();
    let picture = path(&shapes);
    for (args, text) in [
        (&["--logprobs", "3", "Hello"][..], "--logprobs"),
        (&["--json", "--logprobs", "21", "Hello"], "--logprobs"),
        (&["--top-p", "0", "Hello"], "--top-p"),
        (&["--temperature", "-1", "Hello"], "--temperature"),
        (&["--temperature", "nan", "Hello"], "--temperature"),
        (&["--presence-penalty", "-3", "Hello"], "--presence-penalty"),
        (&["--max-tokens", "0", "Hello"], "--max-tokens"),
        (&["--stop", "", "Hello"], "--stop"),
        (&["--min-pixels", "9", "--max-pixels", "8", "Hello"], "--min-pixels is 9"),
        (&["--max-pixels", "1", "Hello"], "--max-pixels is 1, below the model's own min_pixels of 4096"),
        (&["--min-pixels", "1048577", "Hello"], "--min-pixels is 1048577, above the model's own max_pixels of 1048576"),
        (&["--max-model-len", "1", "Hello"], "--max-model-len"),
        (&["--max-model-len", "100000", "Hello"], "8192"),
        (&["--device", "gpu", "Hello"], "auto, cpu, cuda"),
        // No machine has as many GPUs.
        (&["--device", "cuda:999", "Hello"], "device cuda:999 can't be used"),
        (&["--threads", "1000000", "Hello"], "--threads"),
        (&["--image", "-", "-"], "stdin"),
        (&["--image", "-"], "a chat reads its turns from stdin"),
        (&["--image", picture, "--max-model-len", "40", "Hello"], "40"),
    ] {
        let outcome = run_tiny(args);
        let error = outcome.refusal();
        assert!(error.contains(text), "{args:?}: {error}");
    }
    // What the parser itself refuses.
    for args in [&["run", "--temperatur", "1"][..], &["runn"], &["run", "--seed", "x", "Hello"], &[]] {
        let outcome = foveal(args);
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (Some(2), ""), "{outcome:?}");
    }
}

#[test]
fn a_prompt_that_is_too_long_is_refused_with_the_numbers() {
    let outcome = run_tiny(["--max-model-len", "64", &"one two three ".repeat(100)]);
    let error = outcome.refusal();
    assert!(error.contains("tokens") && error.contains("64") && error.contains("--max-model-len"), "{error}");
}

#[test]
fn a_reader_that_has_had_enough_ends_the_program_quietly() {
    let mut child = command(run_tiny_args(["Count from 1 to 15. Count from 1 to 15."]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(stderr, "");
}

/// A full disk is nobody's mistake on the command line: status 1.
#[cfg(target_os = "linux")]
#[test]
fn output_that_can_not_be_written_is_an_error() {
    let full = std::fs::File::create("/dev/full").unwrap();
    let output = command(run_tiny_args(["Hello"])).stdin(Stdio::null()).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: stdout can't be written"));
}

/// Nor is a stderr that takes nothing a reason to fail otherwise than the run does.
#[cfg(target_os = "linux")]
#[test]
fn a_stderr_that_can_not_be_written_changes_nothing() {
    let full = || std::fs::File::create("/dev/full").unwrap();
    let run = |args: &[&str]| {
        let mut command = command(args);
        command.env("FOVEAL_LOG", "debug").stdin(Stdio::null()).stderr(full()).output().unwrap()
    };
    let output = run(&["run", "--max-tokens", "1", "Hello"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.is_empty());
    assert_eq!(run(&["run", "--model", "no/such/folder", "Hello"]).status.code(), Some(2));
}

#[test]
fn help_and_version_teach() {
    for args in [&["--help"][..], &["run", "--help"], &["inspect", "--help"]] {
        let outcome = foveal(args);
        assert!(outcome.answer().contains("Usage: foveal"), "{outcome:?}");
    }
    assert!(foveal(["run", "--help"]).answer().contains("Examples:"));
    assert_eq!(foveal(["--version"]).answer(), format!("foveal {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn logs_are_off_until_they_are_asked_for() {
    let logged = |level: Option<&str>| {
        let mut command = command(run_tiny_args(["--max-tokens", "1", "Hello"]));
        level.map(|level| command.env("FOVEAL_LOG", level));
        String::from_utf8(command.stdin(Stdio::null()).output().unwrap().stderr).unwrap()
    };
    assert_eq!(logged(None), "");
    assert!(logged(Some("foveal_engine=debug")).contains("finished"));
    assert!(logged(Some("=,=")).starts_with("error: FOVEAL_LOG"));
}
