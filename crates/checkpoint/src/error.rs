//! What can be wrong with a model folder.

use foveal_device::DeviceError;
use thiserror::Error;

/// What can be wrong with a model folder. Every variant names the file and what was expected of it.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The path given is no directory.
    #[error("{path} is no model folder: {reason}; give the directory that holds config.json and model.safetensors")]
    NotAFolder {
        /// The path given.
        path: String,
        /// What is there instead.
        reason: String,
    },
    /// A file that the folder must have is not there.
    #[error("{file} does not exist; it holds {purpose}")]
    MissingFile {
        /// The file.
        file: String,
        /// What it is for.
        purpose: &'static str,
    },
    /// A file is there and can't be read.
    #[error("{file} can't be read: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// A file could not be written.
    #[error("{file} can't be written: {reason}")]
    Unwritable {
        /// The file.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// A file that should be JSON is not.
    #[error("{file} is no valid JSON: {reason} at line {line}, column {column}")]
    NotJson {
        /// The file.
        file: String,
        /// What is wrong in a few words.
        reason: &'static str,
        /// Line of the first wrong character, from 1.
        line: usize,
        /// Column of the first wrong character, from 1.
        column: usize,
    },
    /// A field of a JSON file is missing or has a value that can't be.
    #[error("{file}: `{field}` should be {expected}, and is {got}")]
    BadField {
        /// The file.
        file: String,
        /// The field's path, as `text_config.hidden_size`.
        field: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// The folder holds a model of a family that this engine does not know.
    #[error("{file}: the model type `{got}` is not known; known are {known}")]
    UnknownArchitecture {
        /// The file.
        file: String,
        /// Its `model_type`, or what stands in its place.
        got: String,
        /// The types known.
        known: String,
    },
    /// The model is known, and this version can't run it.
    #[error("this version can't run {model}: {feature} is not supported; {instead}")]
    Unsupported {
        /// The model's family, by its published name.
        model: &'static str,
        /// What is not supported.
        feature: String,
        /// Which version of the model would work.
        instead: String,
    },
    /// A safetensors file's header can't be understood.
    #[error("{file} is no valid safetensors file: {reason}")]
    CorruptShard {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A safetensors file is not as long as its header says.
    #[error(
        "{file} has {got} bytes and its header says {expected}; the download was cut short or damaged, fetch it again"
    )]
    WrongShardLength {
        /// The file.
        file: String,
        /// Bytes that the header asks for, header included.
        expected: u64,
        /// Bytes that the file has.
        got: u64,
    },
    /// The index names a weight file that is not there.
    #[error("{file} does not exist; {index} says that it holds {tensor}")]
    MissingShard {
        /// The index.
        index: String,
        /// The weight file.
        file: String,
        /// The first tensor that it should hold.
        tensor: String,
    },
    /// The index places a tensor in a file that does not hold it.
    #[error("{file} does not hold {tensor}, though {index} says so")]
    NotInShard {
        /// The index.
        index: String,
        /// The weight file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// One tensor is there twice.
    #[error("{tensor} is there twice: in {first} and in {second}")]
    DuplicateTensor {
        /// The tensor, in its canonical spelling.
        tensor: String,
        /// The file with its first copy, and the name there.
        first: String,
        /// The file with its second copy, and the name there.
        second: String,
    },
    /// A tensor that the model needs is not there.
    #[error("{tensor} of shape {expected:?} is missing from {location}")]
    MissingTensor {
        /// The tensor, in its canonical spelling.
        tensor: String,
        /// Where the weights come from.
        location: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the config asks for.
    #[error("{file}: {tensor} has shape {got:?}, and the config asks for {expected:?}")]
    WrongShape {
        /// The file.
        file: String,
        /// The tensor, as the file spells it.
        tensor: String,
        /// The shape that the config asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A tensor's elements are of a type that can't be used where it is asked for.
    #[error("{file}: {tensor} holds {got} elements; expected {expected}")]
    WrongDType {
        /// The file.
        file: String,
        /// The tensor, as the file spells it.
        tensor: String,
        /// The types that can be used.
        expected: &'static str,
        /// The type in the file.
        got: String,
    },
    /// An FP8 weight stands without its scales.
    #[error("{file}: {tensor} holds FP8 elements, and its scales are missing: there is no {scale}")]
    MissingScale {
        /// The file with the weight.
        file: String,
        /// The weight, as the file spells it.
        tensor: String,
        /// The names that its scales could have, in the canonical spelling.
        scale: String,
    },
    /// A tensor of scales has a shape that no kind of scale has.
    #[error(
        "{file}: {tensor} has shape {got:?}; scales of a weight {weight:?} have one element (per tensor), {} (per \
         channel) or {blocks:?} (128x128 blocks)",
        weight[0]
    )]
    WrongScaleShape {
        /// The file.
        file: String,
        /// The tensor of scales, as the file spells it.
        tensor: String,
        /// The shape of the weight.
        weight: [usize; 2],
        /// The shape of scales in blocks.
        blocks: [usize; 2],
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A scale is a number that nothing can be scaled by.
    #[error("{file}: element {index} of {tensor} is {got}; a scale is finite and above 0")]
    BadScale {
        /// The file.
        file: String,
        /// The tensor of scales, as the file spells it.
        tensor: String,
        /// Which of its elements, row-major.
        index: usize,
        /// The element.
        got: f32,
    },
    /// A layer's tensors are those of another FP8 format than the config's.
    #[error("{file}: {tensor} is there, which makes the layer's scales `{got}`; expected `{expected}`")]
    FormatMismatch {
        /// The file.
        file: String,
        /// The tensor of scales that decides, as the file spells it.
        tensor: String,
        /// The scales that the config promises.
        expected: String,
        /// The scales that the tensors have.
        got: String,
    },
    /// The folder holds tensors that the model has no place for.
    #[error("{location} holds {} tensor(s) that the config has no place for: {}", tensors.len(), first_few(tensors))]
    SurplusTensors {
        /// Where the weights come from.
        location: String,
        /// The tensors with their files, in the order of their names.
        tensors: Vec<String>,
    },
    /// A tensor made by the formula is not what the manifest says.
    #[error("{file}: the formula gives {tensor} the first bits {got:?}, and the manifest says {expected:?}")]
    FormulaMismatch {
        /// The manifest.
        file: String,
        /// The tensor.
        tensor: String,
        /// The manifest's bits.
        expected: Vec<u16>,
        /// The formula's bits.
        got: Vec<u16>,
    },
    /// Memory for a tensor could not be had, or its shape is impossible.
    #[error("{tensor}: {source}")]
    Device {
        /// The tensor.
        tensor: String,
        /// What the device said.
        source: DeviceError,
    },
}

/// How many names an error lists before it only counts.
const MAX_NAMES: usize = 8;

fn first_few(names: &[String]) -> String {
    let mut text = names.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(MAX_NAMES).filter(|&n| n > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
