//! The OpenAPI document, made from the types that are sent.

use axum::Json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::{chat, completions, info};

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Foveal",
        description = "OpenAI-compatible inference for the Qwen vision-language family.",
        license(identifier = "MIT OR Apache-2.0")
    ),
    modifiers(&Keys),
    security(("key" = []), ()),
    paths(
        chat::chat_completions,
        completions::completions,
        info::models,
        info::model,
        info::health,
        info::metrics,
        info::version,
        info::tokenize,
        info::detokenize,
    )
)]
struct Document;

/// How a key is sent, where the operator has set one.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("key", bearer);
    }
}

/// What this server offers, for programs that make clients of it.
pub(crate) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::parameters::{Endpoint, Treatment};

    fn json() -> Value {
        serde_json::to_value(Document::openapi()).unwrap()
    }

    /// Fields of a schema, those of what it is put together from included.
    fn fields(document: &Value, schema: &Value, into: &mut BTreeSet<String>) {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap();
            return fields(document, &document["components"]["schemas"][name], into);
        }
        into.extend(schema["properties"].as_object().into_iter().flat_map(|map| map.keys().cloned()));
        schema["allOf"].as_array().into_iter().flatten().for_each(|part| fields(document, part, into));
    }

    /// The document names what is honoured, no more and no less.
    #[test]
    fn the_document_has_the_honoured_parameters() {
        let document = json();
        for (endpoint, path) in [(Endpoint::Chat, "/v1/chat/completions"), (Endpoint::Completion, "/v1/completions")] {
            let schema = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
            let mut named = BTreeSet::new();
            fields(&document, schema, &mut named);
            let honoured: BTreeSet<String> = endpoint
                .parameters()
                .filter(|(_, treatment)| *treatment == Treatment::Honoured)
                .map(|(name, _)| name.to_owned())
                .collect();
            assert_eq!(named, honoured, "{path}");
        }
    }

    /// `FOVEAL_BLESS=1` writes the file anew, for a change on purpose.
    #[test]
    fn the_document_changes_only_on_purpose() {
        let now = serde_json::to_string_pretty(&json()).unwrap() + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        if std::env::var_os("FOVEAL_BLESS").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(now == kept, "the document isn't crates/server/openapi.json any more: FOVEAL_BLESS=1 writes it anew");
    }
}
