//! Prepares a question about a picture with the tiny model's files and prints what the engine would get.
//!
//! `cargo run -p foveal-processor --example prepare [PICTURE]`

use std::path::{Path, PathBuf};

use foveal_mrope::{PositionRule, TemporalRule};
use foveal_processor::{ChatRequest, ContentPart, ImageInput, Limits, Message, Processor, ProcessorSettings, Role};
use foveal_types::{HeapPixels, SamplingParams, TokenId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let picture = std::env::args_os().nth(1).map_or_else(|| fixtures.join("goldens/images/p11_0.png"), PathBuf::from);
    // The tiny model's numbers; another model's stand in its config.json.
    let settings = ProcessorSettings {
        image_token_id: TokenId(1010),
        video_token_id: TokenId(1011),
        vision_start_token_id: TokenId(1007),
        vision_end_token_id: TokenId(1008),
        position_rule: PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FramesBetweenTimestamps },
        max_model_len: 8192,
        limits: Limits::default(),
    };
    let processor = Processor::open(&fixtures.join("tiny"), settings)?;

    let image = ContentPart::Image(ImageInput::Bytes(std::fs::read(picture)?.into()));
    let question = ContentPart::Text("Describe the picture.".to_owned());
    let chat = ChatRequest::new(vec![Message::parts(Role::User, vec![image, question])]);
    let request = processor.prepare(&chat, SamplingParams::default(), &HeapPixels)?;

    println!("template    {:?}", processor.render(&chat)?);
    println!("tokens      {}", request.input_ids.len());
    let ids: Vec<u32> = request.input_ids.iter().map(|id| id.0).collect();
    println!("ids         {ids:?}");
    println!("pictures at {:?}", request.image_token_ranges);
    println!("rope delta  {}", request.rope_delta);
    for image in &request.images {
        println!("grid (thw)  {:?}", image.grid_thw);
        println!("pixels      {} bytes", image.pixels.bytes().len());
        println!("hash        {:?}", image.hash);
    }

    let mut detokenizer = processor.detokenizer(&[]);
    let mut answer = Vec::new();
    processor.tokenizer().encode_plain("A naïve 🙂.", &mut answer)?;
    let chunks: Vec<String> = answer.iter().map(|&id| detokenizer.push(id).text).collect();
    println!("streamed    {chunks:?}");
    Ok(())
}
