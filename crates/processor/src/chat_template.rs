//! The model's chat template, rendered as Python's jinja2 renders it in HF's environment: `trim_blocks`, `lstrip_blocks`,
//! Python's string methods, loop controls (`utils/chat_template_utils.py`, transformers 5.17).

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value as Jinja};
use serde_json::Value;

use crate::error::ProcessorError;
use crate::message::{ChatRequest, Content, ContentPart, Message};
use crate::model_files::ModelFiles;
use crate::template_functions::{Refusal, raise_exception, strftime_now, tojson};

/// The name of the template that stands for all requests.
const DEFAULT: &str = "default";
/// The name of the template that HF prefers for requests with tools.
const TOOL_USE: &str = "tool_use";

/// Whose words a string of the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A person, a system prompt, a tool or a tool's definition.
    Outside,
    /// The same, but a key of a JSON object, by which templates look values up.
    OutsideKey,
    /// The model's earlier answers.
    Model,
}

/// How strings of the request enter the template: as they are, or marked where they spell added tokens.
pub(crate) type Enter<'a> = dyn Fn(&str, Origin) -> Option<String> + 'a;

/// A model's templates, compiled.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like.
    special_tokens: Vec<(String, String)>,
    has_tool_use: bool,
}

impl ChatTemplate {
    /// Finds and compiles the templates: `chat_template.jinja`, else `chat_template.json`, else the field
    /// `chat_template` of `tokenizer_config.json`.
    pub(crate) fn load(files: &ModelFiles<'_>) -> Result<Self, ProcessorError> {
        let tokenizer_config = files.json("tokenizer_config.json")?.unwrap_or(Value::Null);
        let (file, sources) = if let Some(source) = files.text("chat_template.jinja")? {
            ("chat_template.jinja", vec![(DEFAULT.to_owned(), source)])
        } else if let Some(json) = files.json("chat_template.json")? {
            ("chat_template.json", named(&json["chat_template"]))
        } else {
            ("tokenizer_config.json", named(&tokenizer_config["chat_template"]))
        };
        if sources.is_empty() {
            let need = "without it, in this or another of its places, a chat can't be turned into a prompt";
            return Err(ProcessorError::MissingFile { file: "chat_template.jinja", need });
        }
        let mut environment = environment();
        for (name, source) in sources {
            environment.add_template_owned(name, without_generation_tags(&source)).map_err(|e| {
                ProcessorError::bad_file(file, format!("line {} isn't valid Jinja", e.line().unwrap_or(0)))
            })?;
        }
        let has = |name: &str| environment.get_template(name).is_ok();
        let has_tool_use = has(TOOL_USE);
        if !has(DEFAULT) {
            return Err(ProcessorError::bad_file(file, "none of the templates is named `default`"));
        }
        let special_tokens = special_tokens(&tokenizer_config);
        Ok(Self { environment, special_tokens, has_tool_use })
    }

    /// Shows every template's source.
    pub(crate) fn for_each_source(&self, mut see: impl FnMut(&str)) {
        self.environment.templates().for_each(|(_, template)| see(template.source()));
    }

    /// Renders the chat. `enter` sees every string of the request and may replace it.
    pub(crate) fn render(&self, chat: &ChatRequest, enter: &Enter<'_>) -> Result<String, ProcessorError> {
        let name = if chat.tools.is_some() && self.has_tool_use { TOOL_USE } else { DEFAULT };
        let outside = |value: &Value| to_jinja(value, Origin::Outside, enter);
        let mut variables: Vec<(Cow<'_, str>, Jinja)> = Vec::new();
        for (name, token) in &self.special_tokens {
            variables.push((name.into(), token.into()));
        }
        for (name, value) in &chat.template_kwargs {
            variables.push((name.into(), outside(value)));
        }
        let messages: Vec<Jinja> = chat.messages.iter().map(|m| message(m, enter)).collect();
        variables.push(("messages".into(), Jinja::from(messages)));
        variables.push(("tools".into(), chat.tools.as_ref().map_or(Jinja::from(()), outside)));
        variables.push(("documents".into(), Jinja::from(())));
        variables.push(("add_generation_prompt".into(), chat.add_generation_prompt.into()));
        let context = Jinja::from_pairs(variables.into_iter().map(|(k, v)| (Jinja::from(k.into_owned()), v)));
        let template = self.environment.get_template(name).map_err(|e| failure(&e))?;
        template.render(context).map_err(|e| failure(&e))
    }
}

/// Python's jinja2 as HF sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment
}

/// The engine's failure as ours.
fn failure(error: &minijinja::Error) -> ProcessorError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref::<Refusal>() {
            return ProcessorError::TemplateRefused { message: message.clone() };
        }
        source = cause.source();
    }
    let reason = match error.kind() {
        minijinja::ErrorKind::UndefinedError => "it reads a field that isn't there",
        minijinja::ErrorKind::UnknownFilter | minijinja::ErrorKind::UnknownFunction => "it calls an unknown function",
        minijinja::ErrorKind::UnknownTest | minijinja::ErrorKind::UnknownMethod => "it calls an unknown method",
        _ => "it does something that these values don't allow",
    };
    ProcessorError::TemplateFailed { line: error.line().unwrap_or(0), reason }
}

/// `chat_template` is one template, or a list of named ones, or an object of them.
fn named(field: &Value) -> Vec<(String, String)> {
    match field {
        Value::String(source) => vec![(DEFAULT.to_owned(), source.clone())],
        Value::Array(list) => list
            .iter()
            .filter_map(|entry| Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned())))
            .collect(),
        Value::Object(map) => {
            map.iter().filter_map(|(name, source)| Some((name.clone(), source.as_str()?.to_owned()))).collect()
        }
        _ => Vec::new(),
    }
}

/// `bos_token` and its like from `tokenizer_config.json`, each a string or an object with `content`.
fn special_tokens(config: &Value) -> Vec<(String, String)> {
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]
        .into_iter()
        .filter_map(|name| {
            let token = config[name].as_str().or_else(|| config[name]["content"].as_str())?;
            Some((name.to_owned(), token.to_owned()))
        })
        .collect()
}

/// `{% generation %}` only marks a region for training; an `if true` in its place keeps the white-space rules.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + len];
        let word = tag.trim_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => Some(tag.replace("generation", "if true")),
            "endgeneration" => Some(tag.replace("endgeneration", "endif")),
            _ => None,
        };
        out.push_str(&rest[..start + 2]);
        out.push_str(replacement.as_deref().unwrap_or(tag));
        out.push_str("%}");
        rest = &rest[start + len + 2..];
    }
    out.push_str(rest);
    out
}

/// One message as templates see it.
fn message(message: &Message, enter: &Enter<'_>) -> Jinja {
    let origin = if message.role == crate::message::Role::Assistant { Origin::Model } else { Origin::Outside };
    let text = |text: &str| Jinja::from(enter(text, origin).unwrap_or_else(|| text.to_owned()));
    let content = match &message.content {
        Content::Text(t) => text(t),
        Content::Parts(parts) => Jinja::from(
            parts
                .iter()
                .map(|part| match part {
                    ContentPart::Text(t) => Jinja::from_pairs([("type", Jinja::from("text")), ("text", text(t))]),
                    ContentPart::Image(_) => Jinja::from_pairs([("type", "image")]),
                    ContentPart::Video(_) => Jinja::from_pairs([("type", "video")]),
                })
                .collect::<Vec<_>>(),
        ),
    };
    let own = [("role".to_owned(), Jinja::from(message.role.as_str())), ("content".to_owned(), content)];
    let fields = message.fields.iter().map(|(name, value)| {
        // A tool call's arguments may repeat anyone's words, so only the model's reasoning is taken as its own.
        let origin = if name == "reasoning_content" { origin } else { Origin::Outside };
        (name.clone(), to_jinja(value, origin, enter))
    });
    Jinja::from_pairs(own.into_iter().chain(fields))
}

/// JSON as a template value, every string through `enter`; keys too, for a template may print them.
fn to_jinja(value: &Value, origin: Origin, enter: &Enter<'_>) -> Jinja {
    let text = |text: &str| enter(text, origin).unwrap_or_else(|| text.to_owned());
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(b) => Jinja::from(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), ..) => Jinja::from(i),
            (_, Some(u), _) => Jinja::from(u),
            (.., f) => Jinja::from(f.unwrap_or(f64::NAN)),
        },
        Value::String(s) => Jinja::from(text(s)),
        Value::Array(items) => Jinja::from(items.iter().map(|v| to_jinja(v, origin, enter)).collect::<Vec<_>>()),
        Value::Object(map) => {
            let key = |key: &str| enter(key, Origin::OutsideKey).unwrap_or_else(|| key.to_owned());
            Jinja::from_pairs(map.iter().map(|(k, value)| (key(k), to_jinja(value, origin, enter))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::without_generation_tags;

    #[test]
    fn generation_tags_become_conditions_that_always_hold() {
        let source = "a{% for x in y %}{%- generation -%} b {% endgeneration %}{% endfor %}{{ '{%' }} generation";
        let want = "a{% for x in y %}{%- if true -%} b {% endif %}{% endfor %}{{ '{%' }} generation";
        assert_eq!(without_generation_tags(source), want);
    }
}
