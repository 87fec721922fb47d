//! What preparing a request of text alone is spared.

use anyhow::{Context as _, ensure};
use foveal_processor::{ChatRequest, ContentPart, ImageInput, Message, Processor, Role};
use foveal_types::{HeapPixels, PreparedRequest, SamplingParams, TokenId};

use super::context::Context;
use super::equal::Equal;
use super::rope::noise;
use super::table::{Idea, Measured, Table};
use super::turns::{in_turns, settled};

pub(super) const PREPARE: Idea = Idea { name: "preparing a request", with: "text alone", without: "with a picture" };

/// Sides of the picture: as small as any, and as most are.
const SIDES: [u32; 2] = [64, 512];
const SMALLEST: [u32; 2] = [32, 64];
/// Of which the text is made; how often it is said.
const SENTENCE: &str = "On the quay two women sorted the catch by size, and a boy wrote the numbers into a book. ";
const REPEATS: usize = 40;

/// The same text alone, and behind a picture that is decoded already.
pub(super) fn prepare(context: &Context<'_>, table: &mut Table) -> anyhow::Result<()> {
    let processor = context.processor()?;
    let text = SENTENCE.repeat(context.size(REPEATS, 2));
    let alone = ChatRequest::new(vec![Message::text(Role::User, text.clone())]);
    for side in context.size(SIDES, SMALLEST) {
        let picture = picture(side);
        let parts = vec![ContentPart::Image(picture), ContentPart::Text(text.clone())];
        let beside = ChatRequest::new(vec![Message::parts(Role::User, parts)]);
        let num_tokens = check(context, &processor, &alone, &beside)?;
        let run = |chat: &ChatRequest| request(&processor, chat).map(|_| ());
        let times = in_turns(context.effort, || run(&alone), || run(&beside), settled)?;
        let note = "template, tokens and positions on either way; resizing, patches and hashing on one".to_owned();
        let case = format!("{num_tokens} tokens of text, {side}x{side}");
        table.measured(PREPARE, case, Measured { times, equal: Equal::SameTokens, note });
    }
    Ok(())
}

fn picture(side: u32) -> ImageInput {
    ImageInput::Rgb { width: side, height: side, pixels: noise((side * side * 3) as usize).into() }
}

fn request(processor: &Processor, chat: &ChatRequest) -> anyhow::Result<PreparedRequest> {
    Ok(processor.prepare(chat, SamplingParams::default(), &HeapPixels)?)
}

/// The same tokens but for the picture's own, and no picture code for text alone; the number of tokens.
fn check(
    context: &Context<'_>,
    processor: &Processor,
    alone: &ChatRequest,
    beside: &ChatRequest,
) -> anyhow::Result<usize> {
    let decoded = processor.num_decoded_pictures();
    let text = request(processor, alone)?;
    ensure!(processor.num_decoded_pictures() == decoded, "text alone had a picture decoded");
    let both = request(processor, beside)?;
    ensure!(processor.num_decoded_pictures() == decoded + 1, "a picture was not decoded");
    let config = &context.config;
    let vision = [config.image_token_id, config.vision_start_token_id, config.vision_end_token_id].map(TokenId);
    let others: Vec<TokenId> = both.input_ids.iter().copied().filter(|id| !vision.contains(id)).collect();
    ensure!(others == text.input_ids, "the text has other tokens behind a picture");
    let placeholders = both.image_token_ranges.first().context("the picture has no placeholders")?;
    let patches = both.images.first().map(|image| image.grid_thw.iter().product::<u32>());
    ensure!(!placeholders.is_empty() && patches > Some(0), "the picture is empty");
    ensure!(text.images.is_empty() && text.image_token_ranges.is_empty(), "text alone has a picture");
    Ok(text.input_ids.len())
}
