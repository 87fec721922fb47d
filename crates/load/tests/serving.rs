//! Whole runs against a small server.

mod fake_server;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fake_server::{Behaviour, FakeServer};
use foveal_load::{Api, ImageFormat, LoadError, LoadGenerator, LoadOptions, LoadReport, RequestShape, Stage, Target};
use foveal_processor::Tokenizer;
use serde_json::json;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny")
}

fn target(server: &FakeServer) -> Target {
    Target { base_url: server.url.clone(), endpoint: None, api: Api::Chat, api_key: None }
}

fn options(num_prompts: usize, max_concurrency: Option<usize>) -> LoadOptions {
    LoadOptions {
        shape: RequestShape {
            input_len: 20,
            output_len: 4,
            num_images: 0,
            image_size: [16, 16],
            image_format: ImageFormat::Png,
        },
        num_prompts,
        num_warmups: 0,
        max_concurrency,
        request_rate: f64::INFINITY,
        burstiness: 1.0,
        seed: 0,
    }
}

fn run(server: &FakeServer, options: &LoadOptions) -> LoadReport {
    let generator = LoadGenerator::new(target(server), None, Some(&tiny())).unwrap();
    generator.run(options, |_, _, _| ()).unwrap()
}

#[test]
fn requests_are_exactly_what_was_asked_for() {
    let server = FakeServer::quick();
    let target =
        Target { api_key: Some("secret".to_owned()), base_url: server.url.clone() + "/v1/", ..target(&server) };
    assert!(!format!("{target:?}").contains("secret"));
    let generator = LoadGenerator::new(target, None, Some(&tiny())).unwrap();
    assert_eq!(generator.model(), "tiny");
    let mut options = options(5, Some(2));
    options.num_warmups = 3;
    options.shape =
        RequestShape { input_len: 50, output_len: 40, num_images: 2, image_size: [33, 17], ..options.shape };
    let stages = Mutex::new(HashSet::new());
    let report = generator.run(&options, |stage, done, total| _ = stages.lock().unwrap().insert((stage, done, total)));
    // Every step of every stage was told.
    let expected = [(Stage::Preparing, 8), (Stage::WarmingUp, 3), (Stage::Measuring, 5)];
    let expected: HashSet<_> =
        expected.iter().flat_map(|&(s, total)| (1..=total).map(move |n| (s, n, total))).collect();
    assert_eq!(stages.into_inner().unwrap(), expected);
    let report = report.unwrap();
    assert_eq!((report.completed, report.failed, report.num_of_other_length), (5, 0, 0));
    assert_eq!((report.total_input_tokens, report.total_output_tokens), (5 * 77, 5 * 40));

    let asked = server.asked();
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(tiny().join("tokenizer.json")).unwrap()).unwrap();
    let (mut texts, mut pictures, mut lens) = (HashSet::new(), HashSet::new(), Vec::new());
    for request in &asked {
        assert_eq!(request.authorization.as_deref(), Some("Bearer secret"));
        let body = &request.body;
        assert_eq!(
            (&body["model"], &body["stream"], &body["ignore_eos"]),
            (&json!("tiny"), &json!(true), &json!(true))
        );
        assert_eq!((&body["temperature"], &body["stream_options"]), (&json!(0), &json!({ "include_usage": true })));
        lens.push(body["max_completion_tokens"].as_u64().unwrap());
        let message = &body["messages"][0];
        assert_eq!((&message["role"], body["messages"].as_array().unwrap().len()), (&json!("user"), 1));
        let [first, second, text] = message["content"].as_array().unwrap().as_slice() else { panic!("{message}") };
        for picture in [first, second] {
            let url = picture["image_url"]["url"].as_str().unwrap();
            let file = STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
            let picture = image::load_from_memory(&file).unwrap().to_rgb8();
            assert_eq!(picture.dimensions(), (33, 17));
            pictures.insert(picture.into_raw());
        }
        let text = text["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap().len(), 50, "{text}");
        texts.insert(text.to_owned());
    }
    // Warm-ups are shorter and have nothing in common with what is measured.
    assert_eq!(lens, [32, 32, 32, 40, 40, 40, 40, 40]);
    assert_eq!((texts.len(), pictures.len()), (8, 16));
    // Nor has another seed.
    generator.run(&LoadOptions { seed: 1, num_warmups: 0, ..options }, |_, _, _| ()).unwrap();
    let later: Vec<_> = server.asked().split_off(8);
    assert!(
        later
            .iter()
            .all(|request| !texts.contains(request.body["messages"][0]["content"][2]["text"].as_str().unwrap()))
    );
}

#[test]
fn completions_have_a_prompt_and_no_pictures() {
    let server = FakeServer::quick();
    let target = Target { api: Api::Completions, ..target(&server) };
    let generator = LoadGenerator::new(target, Some("other".to_owned()), Some(&tiny())).unwrap();
    let report = generator.run(&options(2, Some(1)), |_, _, _| ()).unwrap();
    assert_eq!((report.completed, report.total_output_tokens, report.num_without_usage), (2, 8, 0));
    assert_eq!(report.to_json(false)["backend"], "openai");
    let asked = server.asked();
    assert!(asked.iter().all(|request| request.path == "/v1/completions" && request.body["model"] == "other"));
    assert!(asked[0].body["prompt"].is_string() && asked[0].body["max_tokens"] == 4);
    let mut with_picture = options(1, Some(1));
    with_picture.shape.num_images = 1;
    let error = generator.run(&with_picture, |_, _, _| ()).unwrap_err();
    assert!(matches!(error, LoadError::Options { option: "num_images", .. }));
}

#[test]
fn streams_may_be_cut_anywhere() {
    for piece_bytes in [1, 2, 3, 7, 50, 1000] {
        let pause = Duration::ZERO;
        let server = FakeServer::start(
            vec![Behaviour::Answer { piece_bytes, first_pause: pause, pause, has_usage: true }],
            0,
            None,
        );
        let report = run(&server, &options(3, Some(1)));
        assert_eq!((report.completed, report.total_output_tokens, report.total_input_tokens), (3, 12, 231));
        let itls = report.to_json(true)["itls"].clone();
        assert!(itls.as_array().unwrap().iter().all(|itl| itl.as_array().unwrap().len() == 3), "{itls}");
    }
}

/// A sleep is never too short, so that these times have a least value on any machine.
#[test]
fn times_hold_what_the_server_waited() {
    let [first_pause, pause] = [40, 10].map(Duration::from_millis);
    let behaviour = Behaviour::Answer { piece_bytes: usize::MAX, first_pause, pause, has_usage: false };
    let report = run(&FakeServer::start(vec![behaviour], 0, None), &options(4, Some(2)));
    let least = [report.ttft_ms.p50, report.itl_ms.p50, report.tpot_ms.p50, report.e2el_ms.p50];
    for (got, least) in least.into_iter().zip([40.0, 10.0, 10.0, 70.0]) {
        assert!(got >= least * 0.9, "{got} is below {least}");
    }
    // Without usage, tokens are chunks and the prompt is its text.
    assert_eq!((report.num_without_usage, report.total_output_tokens, report.total_input_tokens), (4, 16, 80));
    // Two waves of two.
    assert!(report.duration >= 2.0 * 0.07 && report.max_concurrent_requests <= 2);
}

#[test]
fn failures_are_counted_and_the_first_is_told() {
    let behaviours = vec![
        Behaviour::quick(),
        Behaviour::Status(503, r#"{"error":{"message":"no room for more","code":503}}"#.to_owned()),
        Behaviour::Drop { tokens: 2 },
        Behaviour::Drop { tokens: 0 },
        Behaviour::Truncated { tokens: 2 },
        Behaviour::Truncated { tokens: 0 },
        Behaviour::ErrorEvent("the device failed".to_owned()),
        Behaviour::Status(500, "<html>oops".to_owned()),
        Behaviour::quick(),
    ];
    let report = run(&FakeServer::start(behaviours, 0, None), &options(9, Some(1)));
    assert_eq!((report.completed, report.failed), (2, 7));
    assert_eq!(report.first_error.as_deref(), Some("the server answered with status 503: no room for more"));
    let json = report.to_json(true);
    let errors: Vec<&str> = json["errors"].as_array().unwrap().iter().map(|error| error.as_str().unwrap()).collect();
    let expected = ["", "no room", "connection broke", "connection broke", "before the answer", "without a token"];
    for (error, expected) in errors.iter().zip(expected.into_iter().chain(["the device failed", "500: <html>oops", ""]))
    {
        assert!(error.contains(expected) && error.is_empty() == expected.is_empty(), "{errors:?}");
    }
    // What failed is in no figure.
    assert_eq!((report.total_output_tokens, report.total_input_tokens), (8, 154));
    assert_eq!(json["output_lens"], json!([4, 0, 0, 0, 0, 0, 0, 0, 4]));
}

#[test]
fn a_closed_loop_is_full_and_never_fuller() {
    for concurrency in [1, 3, 16] {
        let server = FakeServer::start(vec![Behaviour::quick()], concurrency, None);
        let report = run(&server, &options(5 * concurrency, Some(concurrency)));
        assert_eq!((report.completed, server.most_at_once()), (5 * concurrency, concurrency));
    }
    // More places than requests.
    let server = FakeServer::start(vec![Behaviour::quick()], 2, None);
    assert_eq!((run(&server, &options(2, Some(64))).completed, server.most_at_once()), (2, 2));
}

#[test]
fn an_infinite_rate_sends_all_at_once() {
    let server = FakeServer::start(vec![Behaviour::quick()], 40, None);
    let report = run(&server, &options(40, None));
    assert_eq!((report.completed, server.most_at_once()), (40, 40));
    assert_eq!(report.to_json(false)["max_concurrency"], json!(null));
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let mut options = options(20, None);
    options.request_rate = 100.0;
    let report = run(&FakeServer::quick(), &options);
    // The last request is due 20 / 100 s after the start, whatever came before.
    assert!(report.completed == 20 && report.duration >= 0.1999, "{}", report.duration);
    let starts = report.to_json(true)["start_times"].clone();
    let starts: Vec<f64> = starts.as_array().unwrap().iter().map(|start| start.as_f64().unwrap()).collect();
    assert!(starts[19] >= 0.1999, "{starts:?}");
}

/// Words of more than four letters are two tokens here.
fn count(text: &str) -> usize {
    text.split(' ').map(|word| if word.len() > 4 { 2 } else { 1 }).sum()
}

#[test]
fn without_a_tokenizer_the_server_counts() {
    let server = FakeServer::start(vec![Behaviour::quick()], 0, Some(count));
    let generator = LoadGenerator::new(target(&server), None, None).unwrap();
    generator.run(&options(6, Some(2)), |_, _, _| ()).unwrap();
    let asked = server.asked();
    assert!(asked.iter().all(|request| count(request.body["messages"][0]["content"].as_str().unwrap()) == 20));
    let error = LoadGenerator::new(target(&FakeServer::quick()), None, None).unwrap_err();
    assert!(matches!(error, LoadError::NoTokenizer { .. }), "{error}");
    assert!(error.to_string().contains("tokenizer.json"));
}

#[test]
fn a_server_is_waited_for() {
    let server = FakeServer::quick();
    LoadGenerator::wait_until_ready(&target(&server), Duration::from_secs(20)).unwrap();
    // A port that nobody listens at.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = Target { base_url: format!("http://{free}"), ..target(&server) };
    let error = LoadGenerator::wait_until_ready(&nobody, Duration::ZERO).unwrap_err();
    assert!(matches!(error, LoadError::NotReady { .. }) && error.to_string().contains("connection refused"), "{error}");
    let error = LoadGenerator::new(nobody, None, Some(&tiny())).unwrap_err();
    assert!(matches!(error, LoadError::Connection { .. }), "{error}");
}

#[test]
fn what_makes_no_sense_is_said() {
    let server = FakeServer::quick();
    for url in ["127.0.0.1:8000", "ftp://host", "http://", ""] {
        let target = Target { base_url: url.to_owned(), ..target(&server) };
        let error = LoadGenerator::new(target, None, Some(&tiny())).unwrap_err();
        assert!(matches!(error, LoadError::Address { .. }), "{url}: {error}");
    }
    let generator = LoadGenerator::new(target(&server), None, Some(&tiny())).unwrap();
    let refused = |change: fn(&mut LoadOptions)| {
        let mut options = options(1, Some(1));
        change(&mut options);
        match generator.run(&options, |_, _, _| ()) {
            Err(LoadError::Options { option, .. }) => option,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(|options| options.num_prompts = 0), "num_prompts");
    assert_eq!(refused(|options| options.max_concurrency = Some(0)), "max_concurrency");
    assert_eq!(refused(|options| options.shape.output_len = 0), "output_len");
    assert_eq!(refused(|options| options.request_rate = 0.0), "request_rate");
    assert_eq!(refused(|options| options.burstiness = f64::NAN), "burstiness");
    assert_eq!(refused(|options| (options.shape.num_images, options.shape.image_size) = (1, [0, 4])), "image_size");
    assert!(server.asked().is_empty());
}
