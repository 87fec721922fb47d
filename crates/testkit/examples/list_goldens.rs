//! Lists the reference answers: one line per request.

use foveal_testkit::Golden;

fn main() {
    for family in Golden::FAMILIES {
        for case in Golden::open(family).cases() {
            let (name, tokens, images) = (&case.name, case.prompt_ids.len(), case.images.len());
            println!("{family:14} {name:14} {tokens:5} tokens {images} pictures {:?}", case.text);
        }
    }
}
