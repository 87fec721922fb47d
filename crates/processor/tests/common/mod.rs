//! What several tests share.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use foveal_mrope::{PositionRule, TemporalRule};
use foveal_processor::{
    ChatRequest, Content, ContentPart, ImageInput, ImagePixels, Limits, Message, Processor, ProcessorError,
    ProcessorSettings, Role, VideoFrames, VideoMeta,
};
use foveal_types::{HeapPixels, PreparedRequest, SamplingParams, TokenId};
use proptest::test_runner::Config as ProptestConfig;
use serde_json::Value;

/// A file or folder beside the scripts that wrote it.
pub fn reference_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
}

/// A JSON file beside the script that wrote it.
pub fn reference(name: &str) -> Value {
    let path = reference_path(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// A file or folder of the repository's fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A part of the third-party test data, or `None` with a word that the test is skipped.
pub fn assets(part: &str) -> Option<PathBuf> {
    match std::env::var_os("FOVEAL_TEST_ASSETS") {
        Some(folder) => Some(Path::new(&folder).join(part)),
        None => {
            eprintln!("skipped: FOVEAL_TEST_ASSETS doesn't name the folder of third-party test data");
            None
        }
    }
}

/// The noise of `noise.py`.
pub fn noise(len: usize) -> Vec<u8> {
    (1..=len as u64)
        .map(|i| {
            let mut x = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((x ^ (x >> 31)) >> 56) as u8
        })
        .collect()
}

/// zlib's CRC-32.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

/// A list of numbers as `u32`.
pub fn u32s(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|v| v.as_u64().expect("a number") as u32).collect()
}

/// The settings of the tiny model and of the golden ones, by the name of a golden family.
pub fn settings(family: &str) -> ProcessorSettings {
    let temporal = match family {
        "qwen2_vl" => TemporalRule::FrameIndex,
        "qwen2_5_vl" => TemporalRule::Seconds { tokens_per_second: 2 },
        _ => TemporalRule::FramesBetweenTimestamps,
    };
    ProcessorSettings {
        image_token_id: TokenId(1010),
        video_token_id: TokenId(1011),
        vision_start_token_id: TokenId(1007),
        vision_end_token_id: TokenId(1008),
        position_rule: PositionRule { spatial_merge_size: 2, temporal },
        max_model_len: 8192,
        limits: Limits::default(),
    }
}

/// A processor with the tiny model's text and a golden family's pictures.
pub fn golden_processor(family: &str) -> Processor {
    let read = |name: &str| {
        let folder = if name == "preprocessor_config.json" && family != "tiny" {
            fixture(&format!("goldens/{family}"))
        } else {
            fixture("tiny")
        };
        std::fs::read(folder.join(name)).ok().map(Cow::Owned)
    };
    Processor::from_reader(read, settings(family)).expect("a processor")
}

/// The tiny model's processor.
pub fn tiny() -> Processor {
    golden_processor("tiny")
}

/// A picture of noise, decoded.
pub fn noise_picture(width: u32, height: u32) -> ImageInput {
    ImageInput::Rgb { width, height, pixels: noise((width * height * 3) as usize).into() }
}

/// A message as the chats of `chats.json` and of API requests have it.
pub fn message(json: &Value) -> Message {
    let mut fields = json.as_object().expect("an object").clone();
    let role: Role = fields.remove("role").and_then(|r| r.as_str()?.parse().ok()).expect("a role");
    let content = match fields.remove("content").expect("content") {
        Value::String(text) => Content::Text(text),
        parts => Content::Parts(
            parts
                .as_array()
                .expect("parts")
                .iter()
                .map(|part| match part["type"].as_str().expect("a type") {
                    "image" => ContentPart::Image(noise_picture(64, 64)),
                    "video" => ContentPart::Video(VideoFrames {
                        frames: vec![noise_picture(64, 64), noise_picture(64, 64)],
                        meta: VideoMeta { source_fps: 2.0, total_num_frames: 2, frame_indices: vec![0, 1] },
                    }),
                    _ => ContentPart::Text(part["text"].as_str().expect("text").to_owned()),
                })
                .collect(),
        ),
    };
    Message { role, content, fields }
}

/// A chat of `chats.json`.
pub fn chat(json: &Value) -> ChatRequest {
    ChatRequest {
        messages: json["messages"].as_array().expect("messages").iter().map(message).collect(),
        tools: json.get("tools").cloned(),
        add_generation_prompt: json["add_generation_prompt"].as_bool().unwrap_or(true),
        template_kwargs: json["kwargs"].as_object().cloned().unwrap_or_default(),
        image_pixels: ImagePixels::default(),
    }
}

/// Properties with this many cases; a failing case is printed, and no file is written beside the tests.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Prepares a chat as it comes.
pub fn prepare(processor: &Processor, chat: &ChatRequest) -> Result<PreparedRequest, ProcessorError> {
    processor.prepare(chat, SamplingParams::default(), &HeapPixels)
}

/// One turn of the user.
pub fn user(parts: Vec<ContentPart>) -> ChatRequest {
    ChatRequest::new(vec![Message::parts(Role::User, parts)])
}

/// A part of a turn.
pub fn text(text: &str) -> ContentPart {
    ContentPart::Text(text.to_owned())
}
