//! Reads fields of a JSON object with errors that say where and what.

use serde_json::{Map, Value};

use super::describe;
use crate::CheckpointError;

/// The largest size that any field may have: far above every model, far below an overflow.
const MAX_SIZE: u64 = 1 << 24;

/// An object of a JSON file with its path in it.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    location: &'a str,
    path: String,
}

impl<'a> Fields<'a> {
    /// The outermost object.
    pub(super) fn root(value: &'a Value, location: &'a str) -> Result<Self, CheckpointError> {
        match value {
            Value::Object(map) => Ok(Self { map, location, path: String::new() }),
            other => Err(CheckpointError::BadField {
                file: location.to_owned(),
                field: "(the whole file)".to_owned(),
                expected: "an object".to_owned(),
                got: describe(Some(other)),
            }),
        }
    }

    /// How errors name the file.
    pub(super) fn location(&self) -> &'a str {
        self.location
    }

    /// An error about `key`.
    pub(super) fn bad(&self, key: &str, expected: &str) -> CheckpointError {
        CheckpointError::BadField {
            file: self.location.to_owned(),
            field: format!("{}{key}", self.path),
            expected: expected.to_owned(),
            got: describe(self.map.get(key)),
        }
    }

    /// A value; null counts as not there.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether a value is there and is null.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// An object inside of this one.
    pub(super) fn section(&self, key: &str) -> Result<Option<Self>, CheckpointError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Self { map, location: self.location, path: format!("{}{key}.", self.path) }))
            }
            Some(_) => Err(self.bad(key, "an object")),
        }
    }

    /// The objects that are this one's values, in their order.
    pub(super) fn sections(&self) -> Result<Vec<Self>, CheckpointError> {
        let keys = self.map.keys();
        keys.map(|key| self.section(key)?.ok_or_else(|| self.bad(key, "an object"))).collect()
    }

    /// A positive integer, if it is there.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n @ 1..=MAX_SIZE) => Ok(Some(n as usize)),
            _ => Err(self.bad(key, &format!("an integer from 1 to {MAX_SIZE}"))),
        }
    }

    /// A positive integer.
    pub(super) fn required_size(&self, key: &str) -> Result<usize, CheckpointError> {
        self.size(key)?.ok_or_else(|| self.bad(key, "a positive integer"))
    }

    /// A positive integer of at most `max`: what counts layers or experts, or is a picture's side.
    pub(super) fn size_within(&self, key: &str, default: Option<usize>, max: usize) -> Result<usize, CheckpointError> {
        let expected = format!("an integer from 1 to {max}");
        let size = self.size(key)?.or(default).ok_or_else(|| self.bad(key, &expected))?;
        if size > max { Err(self.bad(key, &expected)) } else { Ok(size) }
    }

    /// A positive integer with a default.
    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, CheckpointError> {
        Ok(self.size(key)?.unwrap_or(default))
    }

    /// A list of integers, zero included, if it is there.
    pub(super) fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>, CheckpointError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let item = |v: &Value| v.as_u64().filter(|&n| n <= MAX_SIZE).map(|n| n as usize);
        let list = value.as_array().and_then(|items| items.iter().map(item).collect());
        list.map(Some).ok_or_else(|| self.bad(key, "a list of integers"))
    }

    /// A token id with a default.
    pub(super) fn id_or(&self, key: &str, default: u32) -> Result<u32, CheckpointError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        as_id(value).ok_or_else(|| self.bad(key, "a token id"))
    }

    /// One token id or a list of them; empty when there is none.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, CheckpointError> {
        let list = match self.value(key) {
            None => Some(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(as_id).collect(),
            Some(value) => as_id(value).map(|id| vec![id]),
        };
        list.ok_or_else(|| self.bad(key, "a token id or a list of token ids"))
    }

    /// A list of strings; empty when there is none.
    pub(super) fn names(&self, key: &str) -> Result<Vec<String>, CheckpointError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let list = value.as_array().and_then(|items| items.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        list.ok_or_else(|| self.bad(key, "a list of names"))
    }

    /// A finite number of at least `min`, if it is there.
    pub(super) fn number(&self, key: &str, min: f64) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x >= min => Ok(Some(x)),
            _ => Err(self.bad(key, &format!("a number of at least {min}"))),
        }
    }

    /// A truth value with a default.
    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.bad(key, "true or false")),
        }
    }

    /// A string, if it is there.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.bad(key, "a string")),
        }
    }
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
