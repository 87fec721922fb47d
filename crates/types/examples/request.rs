//! A request of three tokens, checked: `cargo run -p foveal-types --example request`.

use foveal_types::{PreparedRequest, RequestError, SamplingParams, TokenId};

fn main() -> Result<(), RequestError> {
    let request = PreparedRequest {
        input_ids: vec![TokenId(9707), TokenId(1879), TokenId(0)],
        image_token_ranges: Vec::new(),
        // Text alone: t, h and w are all 0, 1, 2.
        positions: vec![0, 1, 2, 0, 1, 2, 0, 1, 2],
        rope_delta: 0,
        images: Vec::new(),
        sampling: SamplingParams { temperature: 0.7, top_p: 0.9, max_tokens: Some(32), ..SamplingParams::default() },
    };
    request.validate(2)?;
    println!("{} tokens, ready to be answered", request.input_ids.len());

    let wrong = PreparedRequest { positions: vec![0], ..request };
    if let Err(error) = wrong.validate(2) {
        println!("without its positions: {error}");
    }
    Ok(())
}
