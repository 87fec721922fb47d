//! What a caller may set of one request: its pixel limits, or its tokens.

mod common;

use std::sync::Arc;

use common::{golden_processor, prepare, user};
use foveal_processor::{ChatRequest, ContentPart, ImageInput, ImagePixels, ProcessorError};
use foveal_types::{SamplingParams, TokenId};

/// The picture's pixel limits of one chat: inside of the model's they hold, outside they are refused by name.
#[test]
fn a_chat_may_narrow_the_pixel_limits() {
    let processor = golden_processor("tiny");
    let own = processor.vision_config().expect("pictures").budget;
    let pixels: Arc<[u8]> = vec![7; 300 * 400 * 3].into();
    let chat = |min, max| {
        let image = ImageInput::Rgb { width: 400, height: 300, pixels: Arc::clone(&pixels) };
        ChatRequest { image_pixels: ImagePixels { min, max }, ..user(vec![ContentPart::Image(image)]) }
    };
    let patches = |min, max| {
        let request = prepare(&processor, &chat(min, max)).expect("a request");
        let [t, h, w] = request.images[0].grid_thw;
        u64::from(t * h * w)
    };
    let patch_pixels = u64::from(processor.vision_config().expect("pictures").patch_size).pow(2);
    let half = own.max_pixels.min(300 * 400) / 2;
    assert!(patches(None, Some(half)) * patch_pixels <= half);
    assert_eq!(patches(Some(own.min_pixels), Some(own.max_pixels)), patches(None, None));
    for (min, max, name) in [
        (None, Some(own.max_pixels + 1), "max_pixels"),
        (None, Some(0), "max_pixels"),
        (Some(own.max_pixels + 1), None, "min_pixels"),
        (Some(half + 1), Some(half), "min_pixels"),
    ] {
        let error = foveal_types::Error::from(prepare(&processor, &chat(min, max)).unwrap_err());
        let foveal_types::Error::Request(error) = error else { panic!("{error}") };
        assert_eq!((error.code, error.param.as_deref()), ("invalid_value", Some(name)));
    }
}

/// A prompt without a chat is taken as it is, and none of its tokens can claim a picture.
#[test]
fn tokens_alone_are_positioned_in_a_row() {
    let processor = golden_processor("tiny");
    let ids = processor.tokenizer().encode("<|im_start|>user\nCount.<|im_end|>").expect("ids");
    let request = processor.prepare_tokens(ids.clone(), SamplingParams::default()).expect("a request");
    let row: Vec<i32> = (0..ids.len() as i32).collect();
    assert_eq!((request.input_ids, request.rope_delta), (ids.clone(), 0));
    assert_eq!(request.positions, [row.clone(), row.clone(), row].concat());
    let with_picture: Vec<TokenId> =
        ids.iter().copied().chain(processor.tokenizer().added_token_id("<|image_pad|>")).collect();
    let error = processor.prepare_tokens(with_picture, SamplingParams::default()).unwrap_err();
    assert_eq!(error, ProcessorError::PlaceholderInText { index: ids.len() });
    assert!(processor.prepare_tokens(Vec::new(), SamplingParams::default()).is_err());
}
