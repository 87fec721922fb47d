//! Ids of models.

use std::fmt;
use std::str::FromStr;

use crate::HubError;
use crate::names::is_commit;

/// The hub's limit for each part of an id.
const MAX_PART_LEN: usize = 96;

/// What a revision may have: Git takes more, a path should not.
const MAX_REVISION_LEN: usize = 256;

/// The branch that is meant where no revision is named.
const DEFAULT_REVISION: &str = "main";

/// A model on the hub: `org/name` or `name`, and `@revision` (a branch, a tag or a commit) where it isn't `main`.
///
/// Parts of an id become parts of a path, so an id that parses is safe as one.
///
/// ```
/// use foveal_hub::ModelId;
///
/// let id: ModelId = "Qwen/Qwen3-VL-8B-Instruct-FP8@v1.0".parse()?;
/// assert_eq!((id.repo(), id.revision()), ("Qwen/Qwen3-VL-8B-Instruct-FP8", "v1.0"));
/// assert!("../../etc/passwd".parse::<ModelId>().is_err());
/// # Ok::<(), foveal_hub::HubError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelId {
    repo: String,
    revision: Option<String>,
}

impl ModelId {
    /// `org/name`, or `name`.
    #[must_use]
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The organisation or the user that the model belongs to; the hub's oldest models have none.
    #[must_use]
    pub fn organisation(&self) -> Option<&str> {
        self.repo.split_once('/').map(|(organisation, _)| organisation)
    }

    /// A branch, a tag or a commit; `main` where none was named.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The folder of the cache that belongs to the model.
    pub(crate) fn folder_name(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }

    /// Whether the revision is a commit, whose files never change.
    pub(crate) fn is_pinned(&self) -> bool {
        is_commit(self.revision())
    }
}

impl FromStr for ModelId {
    type Err = HubError;

    /// # Errors
    /// [`HubError::InvalidId`] with the rule that the id breaks.
    fn from_str(text: &str) -> Result<Self, HubError> {
        let invalid = |reason| HubError::InvalidId { id: text.to_owned(), reason };
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        if repo.matches('/').count() > 1 {
            return Err(invalid("it has more than one `/`"));
        }
        repo.split('/').try_for_each(check_part).map_err(invalid)?;
        revision.map_or(Ok(()), check_revision).map_err(invalid)?;
        Ok(Self { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// The hub's rules for an organisation and for a model's name.
fn check_part(part: &str) -> Result<(), &'static str> {
    if part.is_empty() {
        return Err("a part of it is empty");
    }
    if part.len() > MAX_PART_LEN {
        return Err("a part of it has more than 96 characters");
    }
    if !part.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c)) {
        return Err("it has a character that is neither a letter, a digit, `-`, `_` nor `.`");
    }
    if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
        return Err("a part of it begins or ends with `-` or `.`");
    }
    // The cache writes `/` as `--`.
    if part.contains("--") || part.contains("..") {
        return Err("it has `--` or `..`");
    }
    if part.ends_with(".git") {
        return Err("it ends with `.git`");
    }
    Ok(())
}

/// What Git allows, without what a path or a URL would make something else of.
fn check_revision(revision: &str) -> Result<(), &'static str> {
    if revision.is_empty() || revision.len() > MAX_REVISION_LEN {
        return Err("its revision has no or more than 256 characters");
    }
    if !revision.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_./+".contains(&c)) {
        return Err("its revision has a character that is neither a letter, a digit nor one of `-_./+`");
    }
    if revision.split('/').any(|part| part.is_empty() || part.starts_with(['.', '-']) || part.contains("..")) {
        return Err("a part of its revision is empty, begins with `.` or `-`, or has `..`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::ModelId;

    #[test]
    fn ids_of_the_hub_parse_and_print_as_they_were() {
        for text in ["gpt2", "Qwen/Qwen3-VL-8B-Instruct-FP8", "a/b_c.d-e", "_a/1", "org/name@main", "o/n@refs/pr/1"] {
            let id: ModelId = text.parse().expect(text);
            assert_eq!(id.to_string(), text);
            assert_eq!(id.folder_name().matches('/').count(), 0);
        }
        let id: ModelId = "org/name".parse().unwrap();
        assert_eq!((id.revision(), id.organisation(), id.is_pinned()), ("main", Some("org"), false));
        assert_eq!(id.folder_name(), "models--org--name");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(format!("org/name@{commit}").parse::<ModelId>().unwrap().is_pinned());
        assert_eq!("gpt2".parse::<ModelId>().unwrap().organisation(), None);
    }

    #[test]
    fn what_would_leave_the_cache_is_no_id() {
        let long = "a".repeat(97);
        let texts = [
            "",
            "/",
            "a/",
            "/a",
            "..",
            "../a",
            "a/..",
            "a/b/c",
            "a\\b",
            "a/b\\..",
            "a--b/c",
            "a/b..c",
            ".a/b",
            "a/-b",
            "a/b.",
            "a b/c",
            "a/b\0",
            "a/ü",
            "a/b.git",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b@/x",
            "a/b@x//y",
            "a/b@x y",
            "a/b@x?y",
            "a/b@.x",
            "a/b@x@y",
            "C:/x",
            &long,
        ];
        for text in texts {
            let error = text.parse::<ModelId>().expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
