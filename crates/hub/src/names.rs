//! Names that a server gives and that become paths: checked once, here.

use std::fmt;

/// A file of a repository: a relative path of ordinary parts, separated by `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileName(String);

impl FileName {
    /// None for what could lead out of a folder on any system: absolute, with `..`, a backslash or a drive.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let is_ordinary = |part: &str| !matches!(part, "" | "." | "..");
        let has_odd_character = name.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'));
        (name.len() <= 1024 && !has_odd_character && name.split('/').all(is_ordinary)).then(|| Self(name.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// How many folders it lies in.
    pub(crate) fn depth(&self) -> usize {
        self.0.matches('/').count()
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A commit: the name of a snapshot's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit(String);

impl Commit {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        is_commit(text).then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether it is a full hash, of SHA-1 or SHA-256.
pub(crate) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && is_lower_hex(text)
}

/// What names a file's content: the name of its blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Etag(String);

impl Etag {
    /// From a header: `"..."`, or `W/"..."`.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let text = header.trim();
        let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        let is_name = text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
        (is_name && (1..=128).contains(&text.len()) && !text.starts_with('.')).then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The SHA-256 of the content in hexadecimal digits, where the tag is one: so for all large files.
    pub(crate) fn sha256(&self) -> Option<&str> {
        (self.0.len() == 64 && is_lower_hex(&self.0)).then_some(self.as_str())
    }
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::{Commit, Etag, FileName};

    #[test]
    fn file_names_that_lead_out_of_a_folder_are_none() {
        for name in ["config.json", "a/b/c.json", "..a", "a..b/c", "model-00001-of-00002.safetensors", "ü b.json"] {
            assert_eq!(FileName::parse(name).expect(name).as_str(), name);
        }
        for name in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "..\\a",
            "C:x",
            "a\0b",
            "a\nb",
        ] {
            assert_eq!(FileName::parse(name), None, "{name}");
        }
        assert_eq!(FileName::parse("a/b/c").unwrap().depth(), 2);
    }

    #[test]
    fn tags_lose_their_quotes_and_never_lead_out_of_a_folder() {
        let sha = "ab".repeat(32);
        assert_eq!(Etag::parse(&format!("\"{sha}\"")).unwrap().sha256(), Some(&*sha));
        assert_eq!(Etag::parse(&format!("W/\"{sha}\"")).unwrap().sha256(), Some(&*sha));
        assert_eq!(Etag::parse("\"abc-1\"").unwrap().sha256(), None);
        assert_eq!(Etag::parse(&sha.to_uppercase()).unwrap().sha256(), None);
        for header in ["", "\"\"", "\"..\"", "\"a/b\"", "\".locks\"", "a\\b", "a b", "a\"b", &"a".repeat(129)] {
            assert_eq!(Etag::parse(header), None, "{header}");
        }
    }

    #[test]
    fn commits_are_full_hashes() {
        assert!(Commit::parse(&"a".repeat(40)).is_some());
        for text in ["main", "", "..", &"a".repeat(39), &"g".repeat(40), &"A".repeat(40)] {
            assert_eq!(Commit::parse(text), None, "{text}");
        }
    }
}
