//! Settings from the environment, as the hub's own libraries read them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Hub, HubError};

/// A hub as variables say, which `lookup` finds.
pub(crate) fn hub(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Hub, HubError> {
    // An empty variable is one that isn't set.
    let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let home = lookup("HOME").map(PathBuf::from);
    let path = |name: &str| lookup(name).map(|value| expanded(PathBuf::from(value), home.as_deref()));
    let hf_home = path("HF_HOME")
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(home.as_deref()?.join(".cache/huggingface")));
    let cache = path("HF_HUB_CACHE").or_else(|| Some(hf_home.as_deref()?.join("hub")));
    let mut hub = Hub::new(cache.ok_or(HubError::NoCacheFolder)?);
    if let Some(endpoint) = text("HF_ENDPOINT", lookup("HF_ENDPOINT"))? {
        hub = hub.with_endpoint(&endpoint)?;
    }
    let token = match text("HF_TOKEN", lookup("HF_TOKEN"))? {
        Some(token) => Some(token),
        None => token_file(path("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token"))))?,
    };
    if let Some(token) = token {
        hub = hub.with_token(&token)?;
    }
    let is_offline =
        lookup("HF_HUB_OFFLINE").and_then(|value| value.into_string().ok()).is_some_and(|value| is_true(&value));
    Ok(hub.with_offline(is_offline))
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

fn text(setting: &'static str, value: Option<OsString>) -> Result<Option<String>, HubError> {
    let invalid = |_| HubError::InvalidSetting { setting, reason: "it is no UTF-8 text" };
    value.map(|value| value.into_string().map_err(invalid)).transpose()
}

fn token_file(path: Option<PathBuf>) -> Result<Option<String>, HubError> {
    let Some(path) = path else { return Ok(None) };
    match fs::read_to_string(&path) {
        Ok(token) => Ok(Some(token)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(HubError::file(&path, "read", &error)),
    }
}

/// `~/x` is below the home folder, as in a shell.
fn expanded(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::{Hub, HubError, fs, hub};

    fn from(pairs: &[(&str, &str)]) -> Result<Hub, HubError> {
        hub(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_is_where_the_hubs_own_libraries_have_it() {
        let cache = |pairs: &[(&str, &str)]| from(pairs).unwrap().cache().display().to_string();
        let home = ("HOME", "/home/me");
        assert_eq!(cache(&[home]), "/home/me/.cache/huggingface/hub");
        let xdg = ("XDG_CACHE_HOME", "/xdg");
        assert_eq!(cache(&[home, xdg]), "/xdg/huggingface/hub");
        assert_eq!(cache(&[home, xdg, ("HF_HOME", "/hf")]), "/hf/hub");
        assert_eq!(cache(&[home, xdg, ("HF_HOME", "~/hf")]), "/home/me/hf/hub");
        assert_eq!(cache(&[home, xdg, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")]), "/cache");
        assert_eq!(cache(&[home, ("HF_HOME", "")]), "/home/me/.cache/huggingface/hub");
        assert!(matches!(from(&[]), Err(HubError::NoCacheFolder)));
    }

    #[test]
    fn tokens_come_from_a_variable_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        let has_token = |pairs: &[(&str, &str)]| format!("{:?}", from(pairs).unwrap()).contains("Token(..)");
        let home = ("HF_HOME", folder);
        assert!(!has_token(&[home]));
        assert!(has_token(&[home, ("HF_TOKEN", "abc")]));
        fs::write(dir.path().join("token"), "abc\n").unwrap();
        assert!(has_token(&[home]));
        assert!(!has_token(&[home, ("HF_TOKEN_PATH", &format!("{folder}/none"))]), "the path counts more");
        let error = from(&[home, ("HF_TOKEN_PATH", folder)]).unwrap_err();
        assert!(error.to_string().contains(folder), "{error}");
        let error = from(&[home, ("HF_TOKEN", "a\u{7}b")]).unwrap_err().to_string();
        assert!(error.starts_with("HF_TOKEN") && !error.contains('\u{7}'), "{error}");
    }

    #[test]
    fn offline_and_the_endpoint() {
        let is_offline = |value: &str| {
            format!("{:?}", from(&[("HF_HOME", "/x"), ("HF_HUB_OFFLINE", value)])).contains("is_offline: true")
        };
        assert_eq!(["1", "true", "YES", "0", "", "no"].map(is_offline), [true, true, true, false, false, false]);
        assert!(
            from(&[("HF_HOME", "/x"), ("HF_ENDPOINT", "hub.example")]).unwrap_err().to_string().contains("HF_ENDPOINT")
        );
    }
}
