//! Makes an FP8 checkpoint of a float one: `fp8_checkpoint FROM TO SCHEME [INPUT_SCALES]`, where SCHEME is tensor-static,
//! tensor-dynamic, channel, block or modelopt, and INPUT_SCALES a JSON object of a number for each layer by its name in the
//! file, for the schemes whose activations have scales beforehand.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use foveal_testkit::fp8::{Quantizer, Scheme};

const USAGE: &str = "fp8_checkpoint FROM TO tensor-static|tensor-dynamic|channel|block|modelopt [INPUT_SCALES.json]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(from), Some(to), Some(scheme)) = (args.first(), args.get(1), args.get(2).and_then(|word| scheme(word)))
    else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let scales: BTreeMap<String, f32> = args.get(3).map_or_else(BTreeMap::new, |file| {
        let text = fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
    });
    fs::create_dir_all(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    Quantizer::new(scheme)
        .input_scale(|layer| match args.get(3) {
            None => Quantizer::INPUT_SCALE,
            Some(file) => *scales
                .get(layer)
                .unwrap_or_else(|| panic!("{file} has no scale for {layer}: name layers as model.safetensors does")),
        })
        .folder(Path::new(from), Path::new(to));
    ExitCode::SUCCESS
}

fn scheme(word: &str) -> Option<Scheme> {
    Some(match word {
        "tensor-static" => Scheme::TensorStatic,
        "tensor-dynamic" => Scheme::TensorDynamic,
        "channel" => Scheme::ChannelDynamic,
        "block" => Scheme::Block,
        "modelopt" => Scheme::ModelOpt,
        _ => return None,
    })
}
