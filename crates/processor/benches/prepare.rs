//! What preparing a request costs on one core. `RAYON_NUM_THREADS=1 cargo bench -p foveal-processor`.
//!
//! With `FOVEAL_TEST_ASSETS` the Qwen tokenizer is measured, too; the tiny model's, with its 1,024 tokens, always is.

use std::borrow::Cow;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use foveal_mrope::{PositionRule, TemporalRule};
use foveal_processor::{ChatRequest, ContentPart, ImageInput, Limits, Message, Processor, ProcessorSettings, Role};
use foveal_types::{HeapPixels, SamplingParams, TokenId};

/// The length of the measured text requests.
const PROMPT_TOKENS: usize = 1000;

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The tiny model's files, with another tokenizer or another `preprocessor_config.json` where given.
fn processor(tokenizer: Option<&Path>, config: Option<&Path>) -> Processor {
    let qwen = tokenizer.is_some();
    let id = |tiny: u32, qwen_id: u32| TokenId(if qwen { qwen_id } else { tiny });
    let settings = ProcessorSettings {
        image_token_id: id(1010, 151_655),
        video_token_id: id(1011, 151_656),
        vision_start_token_id: id(1007, 151_652),
        vision_end_token_id: id(1008, 151_653),
        position_rule: PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FramesBetweenTimestamps },
        max_model_len: 32_768,
        limits: Limits::default(),
    };
    let read = |name: &str| {
        let path = match (name, tokenizer, config) {
            ("tokenizer.json", Some(path), _) | ("preprocessor_config.json", _, Some(path)) => path.to_owned(),
            _ => root("../../tests/fixtures/tiny").join(name),
        };
        std::fs::read(path).ok().map(Cow::Owned)
    };
    Processor::from_reader(read, settings).expect("a processor")
}

/// Words of seven random letters, of which a tokenizer has hardly seen any, one after another without end.
fn new_words(seed: &mut u64) -> impl Iterator<Item = String> + '_ {
    std::iter::repeat_with(move || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (0..7).map(|i| char::from(b'a' + ((*seed >> (20 + 6 * i)) % 26) as u8)).collect()
    })
}

/// A chat of at least `PROMPT_TOKENS` tokens, and few more, made of `words`.
fn chat_of(processor: &Processor, words: impl Iterator<Item = String>) -> ChatRequest {
    let mut text = String::new();
    for (i, word) in words.enumerate() {
        text.push_str(&word);
        text.push_str(if i % 11 == 10 { ",\n" } else { " " });
        if processor.tokenizer().encode(&text).expect("ids").len() >= PROMPT_TOKENS {
            break;
        }
    }
    ChatRequest::new(vec![Message::text(Role::User, text)])
}

const PROSE: &str = "The harbour lay quiet under a thin fog when the first boats came back. On the quay two women sorted \
the catch by size, and a boy wrote the numbers 17, 230 and 4.5 into a book whose corners had gone soft. \"We'll be done \
by nine,\" said the elder, \"if the ice doesn't melt before that!\" Nobody answered; a gull watched from the third post.\n\
Later the sun broke through, the stones began to steam, and the smell of tar mixed with coffee from the open windows. ";

fn text(c: &mut Criterion) {
    let qwen = std::env::var_os("FOVEAL_TEST_ASSETS").map(|f| Path::new(&f).join("tokenizer/tokenizer.json"));
    let mut group = c.benchmark_group("text_1000_tokens");
    for (name, processor) in
        [("tiny", Some(processor(None, None))), ("qwen", qwen.as_ref().map(|p| processor(Some(p), None)))]
    {
        let Some(processor) = processor else { continue };
        let prepare =
            |chat: &ChatRequest| processor.prepare(chat, SamplingParams::default(), &HeapPixels).expect("ids");
        let prose = chat_of(&processor, PROSE.split(' ').map(str::to_owned).cycle());
        eprintln!("{name}: {} tokens", prepare(&prose).input_ids.len());
        group.bench_function(format!("{name}/known_words"), |b| b.iter(|| black_box(prepare(black_box(&prose)))));
        // What the `tokenizers` crate alone takes for the same ids.
        if let Some(path) = qwen.as_ref().filter(|_| name == "qwen") {
            let alone = tokenizers::Tokenizer::from_file(path).expect("a tokenizer");
            let rendered = processor.render(&prose).expect("text");
            group.bench_function("qwen/crate_alone", |b| {
                b.iter(|| alone.encode_fast(black_box(rendered.as_str()), false))
            });
        }
        // Warm processor, text of words that were never seen: what a first request of its kind costs.
        let mut seed = 7;
        let per_word = if name == "tiny" { 7 } else { 4 };
        let mut fresh = || {
            let words: Vec<String> = new_words(&mut seed).take(PROMPT_TOKENS / per_word).collect();
            ChatRequest::new(vec![Message::text(Role::User, words.join(" "))])
        };
        eprintln!("{name}: {} tokens of new words", prepare(&fresh()).input_ids.len());
        group.bench_function(format!("{name}/new_words"), |b| {
            b.iter_batched(&mut fresh, |chat| black_box(prepare(&chat)), BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn picture(c: &mut Criterion) {
    let bytes: std::sync::Arc<[u8]> = std::fs::read(root("tests/reference/photo_512.jpg")).expect("a photo").into();
    let mut group = c.benchmark_group("jpeg_512x512");
    let qwen2 = root("../../tests/fixtures/goldens/qwen2_vl/preprocessor_config.json");
    for (name, processor) in [("to_512x512", processor(None, None)), ("to_448x448", processor(None, Some(&qwen2)))] {
        let image = ContentPart::Image(ImageInput::Bytes(bytes.clone()));
        let chat =
            ChatRequest::new(vec![Message::parts(Role::User, vec![image, ContentPart::Text("What is it?".into())])]);
        let prepare = || processor.prepare(&chat, SamplingParams::default(), &HeapPixels).expect("a request");
        eprintln!("{name}: grid {:?}", prepare().images[0].grid_thw);
        group.bench_function(name, |b| b.iter(|| black_box(prepare())));
    }
    let limits = Limits::default();
    let input = ImageInput::Bytes(bytes.clone());
    group.bench_function("decode_alone", |b| b.iter(|| foveal_processor::decode(black_box(&input), &limits)));
    let rgb = foveal_processor::decode(&input, &limits).expect("pixels");
    group.bench_function("resize_alone_to_504x504", |b| {
        b.iter(|| foveal_processor::resize_rgb(black_box(&rgb.pixels), (512, 512), (504, 504)));
    });
    group.finish();
}

criterion_group!(benches, text, picture);
criterion_main!(benches);
