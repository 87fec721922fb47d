//! Which files of a repository an engine needs.

use crate::HubError;
use crate::names::FileName;

/// Which files of a model to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// All that an engine reads.
    All,
    /// Those that say what the model is (config, tokenizer, templates): for weights that are made up.
    WithoutWeights,
}

/// What a repository has to hold to be a model.
pub(crate) const CONFIG: &str = "config.json";

/// What files of weights end with.
const WEIGHTS: &str = ".safetensors";

/// Chooses from the names that a server lists.
///
/// # Errors
/// [`HubError::UnsafeFileName`] where a file that would be chosen has a name that leads out of the model's folder, and
/// [`HubError::NotAModel`].
pub(crate) fn select<'a>(
    id: &str,
    names: impl IntoIterator<Item = &'a str>,
    files: Files,
) -> Result<Vec<FileName>, HubError> {
    let mut selected = Vec::new();
    for name in names {
        let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
        match FileName::parse(name) {
            Some(name) if name.depth() == 0 && is_wanted(last, files) => selected.push(name),
            Some(_) => {}
            // Pictures uploaded by a careless system have such names; those are not ours to write.
            None if !is_wanted(last, files) => tracing::warn!(?name, "{id} lists a file whose name can't be used"),
            None => return Err(HubError::UnsafeFileName { id: id.to_owned(), file: name.to_owned() }),
        }
    }
    selected.sort();
    selected.dedup();
    let lacks = |what| HubError::NotAModel { id: id.to_owned(), what };
    if !selected.iter().any(|name| name.as_str() == CONFIG) {
        return Err(lacks(CONFIG));
    }
    if files == Files::All && !selected.iter().any(|name| name.as_str().ends_with(WEIGHTS)) {
        return Err(lacks("*.safetensors"));
    }
    Ok(selected)
}

/// Whether an engine reads a file of this name in a model's folder itself. Folders below hold other forms of the same weights.
fn is_wanted(name: &str, files: Files) -> bool {
    if name.ends_with(WEIGHTS) {
        // The same weights once more, in their maker's own form.
        return files == Files::All && !name.starts_with("consolidated");
    }
    let is_text = name.ends_with(".json") || name.ends_with(".jinja");
    // An index of weights in a form that isn't fetched.
    let is_other_index = name.ends_with(".index.json") && !name.ends_with(".safetensors.index.json");
    is_text && !is_other_index || matches!(name, "merges.txt" | "vocab.txt" | "tokenizer.model")
}

#[cfg(test)]
mod tests {
    use super::{Files, HubError, select};

    const REPOSITORY: [&str; 22] = [
        ".gitattributes",
        "README.md",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "consolidated.safetensors",
        "figures/bench.png",
        "generation_config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.gguf",
        "model.pth",
        "model.safetensors.index.json",
        "original/config.json",
        "original/model.safetensors",
        "preprocessor_config.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tokenizer.json",
        "video_preprocessor_config.json",
        "img\\a.png",
    ];

    #[test]
    fn an_engine_gets_what_it_reads_and_nothing_else() {
        let names = |files| -> Vec<String> {
            let selected = select("a/b", REPOSITORY, files).unwrap();
            selected.iter().map(ToString::to_string).collect()
        };
        let small = [
            "chat_template.jinja",
            "chat_template.json",
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model.safetensors.index.json",
            "preprocessor_config.json",
            "tokenizer.json",
            "video_preprocessor_config.json",
        ];
        assert_eq!(names(Files::WithoutWeights), small);
        let all: Vec<String> = names(Files::All).into_iter().filter(|name| !small.contains(&&**name)).collect();
        assert_eq!(all, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
    }

    #[test]
    fn files_that_would_lie_elsewhere_refuse_the_whole() {
        for evil in
            ["../config.json", "/etc/config.json", "a/../../tokenizer.json", "..\\model.safetensors", "C:\\x.json"]
        {
            let error = select("a/b", ["config.json", "model.safetensors", evil], Files::All).unwrap_err();
            assert!(matches!(&error, HubError::UnsafeFileName { file, .. } if file == evil), "{error}");
        }
    }

    #[test]
    fn repositories_of_something_else_are_named() {
        let error = |names: &[&str]| select("a/b", names.iter().copied(), Files::All).unwrap_err().to_string();
        assert!(error(&["model.gguf"]).contains("no config.json"));
        assert!(error(&["config.json", "pytorch_model.bin"]).contains("no *.safetensors"));
        assert!(select("a/b", ["config.json"], Files::WithoutWeights).is_ok());
    }
}
