//! Two turns about one picture, with the small model that is part of the program:
//!
//! ```text
//! cargo run -p foveal-runtime --example chat
//! ```

use std::path::Path;

use foveal_runtime::{AnswerEvent, Chat, Model, ModelOptions, Picture, built_in_model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::load(&built_in_model()?, &ModelOptions::default(), |_, _| ())?;
    let mut chat = Chat::new(&model, None);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/images/shapes.png");
    chat.add_picture(Picture::read(Path::new(file))?);
    for question in ["Describe the picture.", "How many shapes are there?"] {
        let mut text = String::new();
        for event in chat.ask(question, &model.default_sampling())? {
            match event? {
                AnswerEvent::Token { text: piece, .. } => text.push_str(&piece),
                AnswerEvent::Finished { text: piece, usage, .. } => {
                    text.push_str(&piece);
                    println!("{question}\n  {text}");
                    println!("  {} of {} prompt tokens were there already", usage.cached_tokens, usage.prompt_tokens);
                }
                _ => {}
            }
        }
        chat.keep(text);
    }
    Ok(())
}
