//! Linear layers in FP8 (e4m3) as data: which scales belong to a layer's weight and to its input.

use std::fmt;

/// Rows and columns of a weight that share one scale in [`WeightScaleKind::Block`], and elements of an input's row that
/// share one there.
pub const FP8_BLOCK: usize = 128;

/// How many scales a weight has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightScaleKind {
    /// One.
    Tensor,
    /// One for each row (output).
    Channel,
    /// One for each block of [`FP8_BLOCK`] rows and columns.
    Block,
}

impl fmt::Display for WeightScaleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tensor => "per tensor",
            Self::Channel => "per channel",
            Self::Block => "128x128 blocks",
        })
    }
}

/// When the scale of a layer's input is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputScaleKind {
    /// With the input: for each row, or for [`FP8_BLOCK`] elements of a row where the weight is scaled in blocks.
    Dynamic,
    /// Before: the checkpoint has it, one for each layer.
    Static,
}

/// The kinds of scales of one FP8 layer: what can be told from the names and shapes of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fp8Scheme {
    /// Those of its weight.
    pub weight: WeightScaleKind,
    /// Those of its input.
    pub input: InputScaleKind,
}

impl Fp8Scheme {
    /// The input's scales in words.
    #[must_use]
    pub fn input_scales(self) -> &'static str {
        match (self.input, self.weight) {
            (InputScaleKind::Static, _) => "static per tensor",
            (InputScaleKind::Dynamic, WeightScaleKind::Block) => "dynamic per 128",
            (InputScaleKind::Dynamic, _) => "dynamic per token",
        }
    }
}

impl fmt::Display for Fp8Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {}, input {}", self.weight, self.input_scales())
    }
}

/// What a linear layer's weight is in the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum LinearFormat {
    /// Elements of a float type, without scales.
    Float,
    /// FP8 elements and their scales.
    Fp8(Fp8Format),
}

/// The scales of an FP8 layer. Every value is finite and above 0, and multiplies, whatever its tensor is called
/// (`weight_scale_inv` is a factor, too).
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8Format {
    /// Those of its weight.
    pub weight: WeightScales,
    /// Those of its input.
    pub input: InputScale,
}

impl Fp8Format {
    /// The kinds of the scales, without their values.
    #[must_use]
    pub fn scheme(&self) -> Fp8Scheme {
        let weight = match self.weight {
            WeightScales::Tensor(_) => WeightScaleKind::Tensor,
            WeightScales::Channel(_) => WeightScaleKind::Channel,
            WeightScales::Block(_) => WeightScaleKind::Block,
        };
        let input = match self.input {
            InputScale::Dynamic => InputScaleKind::Dynamic,
            InputScale::Static(_) => InputScaleKind::Static,
        };
        Fp8Scheme { weight, input }
    }
}

/// What the elements of an FP8 weight `[n, k]` are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightScales {
    /// One for all.
    Tensor(f32),
    /// One for each row: `[n]`.
    Channel(Vec<f32>),
    /// One for each block of [`FP8_BLOCK`] rows and columns, those at the end smaller: `[ceil(n / 128), ceil(k / 128)]`,
    /// row-major.
    Block(Vec<f32>),
}

impl WeightScales {
    /// The scale of the element in `row` and `column` of a weight of `k` columns; none outside of it.
    #[must_use]
    pub fn at(&self, k: usize, row: usize, column: usize) -> Option<f32> {
        match self {
            Self::Tensor(scale) => Some(*scale),
            Self::Channel(rows) => rows.get(row).copied(),
            Self::Block(blocks) => blocks.get(row / FP8_BLOCK * k.div_ceil(FP8_BLOCK) + column / FP8_BLOCK).copied(),
        }
    }
}

/// What the elements of an FP8 layer's input are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InputScale {
    /// Found with the input; see [`InputScaleKind::Dynamic`].
    Dynamic,
    /// One for all.
    Static(f32),
}
