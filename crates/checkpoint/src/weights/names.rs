//! Tensor names of every generation, brought to one spelling.

/// The parts of a checkpoint, by the canonical prefix of their tensors.
pub mod prefix {
    /// The vision tower.
    pub const VISION: &str = "model.visual";
    /// The decoder, with its embedding table.
    pub const TEXT: &str = "model.language_model";
    /// The output head; it has no tensor where it is tied to the embedding table.
    pub const HEAD: &str = "lm_head";
    /// Everything, for [`crate::WeightSource::finish`].
    pub const ALL: &str = "";
}

/// The canonical spelling: that of transformers since 4.52. Before, the tower was `visual.` and the decoder `model.`.
pub(super) fn canonical(written: &str) -> String {
    if let Some(rest) = written.strip_prefix("visual.") {
        return format!("{}.{rest}", prefix::VISION);
    }
    match written.strip_prefix("model.") {
        Some(rest) if !rest.starts_with("visual.") && !rest.starts_with("language_model.") => {
            format!("{}.{rest}", prefix::TEXT)
        }
        _ => written.to_owned(),
    }
}

/// Whether `name` is `prefix` or below it.
pub(super) fn is_under(name: &str, prefix: &str) -> bool {
    match name.strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('.'),
        None => false,
    }
}

/// Rotary frequencies, which old tools saved as if they were weights: they follow from the config.
pub(super) fn is_buffer(name: &str) -> bool {
    name.ends_with(".inv_freq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_meet_in_one_spelling() {
        for (written, expected) in [
            ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
            ("model.visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
            ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
            ("model.language_model.norm.weight", "model.language_model.norm.weight"),
            ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
            ("lm_head.weight", "lm_head.weight"),
            ("mtp.fc.weight", "mtp.fc.weight"),
        ] {
            assert_eq!(canonical(written), expected);
        }
    }

    #[test]
    fn a_prefix_ends_at_a_dot() {
        assert!(is_under("model.visual.merger.norm.weight", prefix::VISION));
        assert!(!is_under("model.visuals.weight", prefix::VISION));
        assert!(is_under("lm_head.weight", prefix::HEAD) && is_under("x", prefix::ALL));
        assert!(!is_under("model", prefix::TEXT));
    }
}
