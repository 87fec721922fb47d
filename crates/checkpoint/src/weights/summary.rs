//! What a checkpoint holds, without reading it.

use std::collections::BTreeMap;
use std::fmt;

use super::open::dtype_name;
use super::{WeightSource, names, prefix};

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The vision tower.
    Vision,
    /// The decoder with its embedding table.
    Text,
    /// The output head, where it is not the embedding table.
    Head,
    /// Tensors that no part of a model has a place for.
    Other,
}

impl Component {
    fn of(name: &str) -> Self {
        let parts = [(prefix::VISION, Self::Vision), (prefix::TEXT, Self::Text), (prefix::HEAD, Self::Head)];
        parts.into_iter().find(|(p, _)| names::is_under(name, p)).map_or(Self::Other, |(_, component)| component)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vision => "vision tower",
            Self::Text => "decoder",
            Self::Head => "output head",
            Self::Other => "other",
        })
    }
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Its canonical name.
    pub name: &'a str,
    /// Its name in the file.
    pub written_name: &'a str,
    /// The part that it belongs to.
    pub component: Component,
    /// The file that it is in.
    pub file: &'a str,
    /// Its element type, as `bf16`.
    pub dtype: String,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its bytes.
    pub len_bytes: usize,
}

/// What a part of a model takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComponentSummary {
    /// Its tensors.
    pub num_tensors: usize,
    /// Its elements.
    pub num_parameters: u64,
    /// Its bytes.
    pub len_bytes: u64,
    /// Bytes by element type.
    pub dtypes: BTreeMap<String, u64>,
}

impl WeightSource {
    /// All tensors, in the order of their canonical names.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorInfo<'_>> {
        self.entries.iter().map(|(name, entry)| TensorInfo {
            name,
            written_name: &entry.written_name,
            component: Component::of(name),
            file: &entry.file,
            dtype: dtype_name(entry.dtype),
            shape: &entry.shape,
            len_bytes: entry.len_bytes,
        })
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// What each part takes; parts without a tensor are left out.
    #[must_use]
    pub fn summary(&self) -> BTreeMap<Component, ComponentSummary> {
        let mut parts = BTreeMap::<_, ComponentSummary>::new();
        for tensor in self.tensors() {
            let part = parts.entry(tensor.component).or_default();
            part.num_tensors += 1;
            part.num_parameters += tensor.shape.iter().map(|&d| d as u64).product::<u64>();
            part.len_bytes += tensor.len_bytes as u64;
            *part.dtypes.entry(tensor.dtype).or_default() += tensor.len_bytes as u64;
        }
        parts
    }
}
