//! Rendered templates against Python's jinja2.

mod common;

use std::borrow::Cow;

use foveal_processor::{Processor, ProcessorError};

#[test]
fn published_templates_render_as_in_python() {
    let Some(folder) = common::assets("") else { return };
    let tokenizer = std::fs::read(common::fixture("tiny/tokenizer.json")).expect("a tokenizer");
    let (chats, expected) = (common::reference("chats.json"), common::reference("templates.json"));
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (model, cases) in expected["models"].as_object().expect("models") {
        let read = |name: &str| match name {
            "tokenizer.json" => Some(Cow::Borrowed(tokenizer.as_slice())),
            "preprocessor_config.json" | "video_preprocessor_config.json" => None,
            _ => std::fs::read(folder.join("models").join(model).join(name)).ok().map(Cow::Owned),
        };
        let processor = Processor::from_reader(read, common::settings("tiny")).expect(model);
        for (name, index) in cases.as_object().expect("cases") {
            let want = &expected["texts"][index.as_u64().expect("an index") as usize];
            let got = processor.render(&common::chat(&chats[name]));
            compared += 1;
            match (want.as_str(), want["refused"].as_str(), got) {
                (Some(want), _, Ok(got)) if got == want => {}
                // What the template itself refuses has the template's words.
                (None, Some(words), Err(ProcessorError::TemplateRefused { message })) if message == words => {}
                // What fails in Python fails here, too.
                (None, Some(words), Err(ProcessorError::TemplateFailed { .. }))
                    if words.starts_with("list object") || words.starts_with("Can only get") => {}
                (.., got) => wrong.push(format!("{model}/{name}:\n  got  {got:?}\n  want {want}")),
            }
        }
    }
    eprintln!("{compared} renderings compared");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 400, "{compared}");
}

/// A processor with this template in this file.
fn with_files(files: &[(&str, &str)]) -> Result<Processor, ProcessorError> {
    let tokenizer = std::fs::read(common::fixture("tiny/tokenizer.json")).expect("a tokenizer");
    let read = |name: &str| match name {
        "tokenizer.json" => Some(Cow::Owned(tokenizer.clone())),
        _ => files.iter().find(|(file, _)| *file == name).map(|(_, text)| Cow::Owned(text.as_bytes().to_vec())),
    };
    Processor::from_reader(read, common::settings("tiny"))
}

#[test]
fn templates_are_found_in_their_order() {
    let jinja = ("chat_template.jinja", "from jinja");
    let json = ("chat_template.json", r#"{"chat_template": "from json"}"#);
    let config = (
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ eos_token }} default"}], "eos_token": {"content": "</s>"}}"#,
    );
    let mut chat = common::chat(&serde_json::json!({"messages": []}));
    let render = |files: &[(&str, &str)], chat: &_| with_files(files).expect("a processor").render(chat).expect("text");
    assert_eq!(render(&[jinja, json, config], &chat), "from jinja");
    assert_eq!(render(&[json, config], &chat), "from json");
    assert_eq!(render(&[config], &chat), "</s> default");
    chat.tools = Some(serde_json::json!([]));
    assert_eq!(render(&[config], &chat), "tools");
    assert!(matches!(with_files(&[]), Err(ProcessorError::MissingFile { file: "chat_template.jinja", .. })));
    let broken = with_files(&[("chat_template.jinja", "a\n{% if %}")]).expect_err("broken");
    assert_eq!(broken.to_string(), "`chat_template.jinja`: line 2 isn't valid Jinja");
}

#[test]
fn functions_of_the_environment_are_pythons() {
    let template = concat!(
        "{{ x | tojson }}|{{ x | tojson(indent=2) }}|{{ x | tojson(separators=(',', ':'), sort_keys=true) }}|",
        "{{ x | tojson(ensure_ascii=true) }}|{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}",
        "{% endfor %}|{%- generation %} g {%- endgeneration %}|{{ strftime_now('%Y') | length }}"
    );
    let processor = with_files(&[("chat_template.jinja", template)]).expect("a processor");
    let chat =
        common::chat(&serde_json::json!({"messages": [], "kwargs": {"x": {"b": [1, 2.0, "é🙂\n"], "a": {}, "c": []}}}));
    // The first four from Python's json.dumps.
    let want = concat!(
        "{\"b\": [1, 2.0, \"é🙂\\n\"], \"a\": {}, \"c\": []}|",
        "{\n  \"b\": [\n    1,\n    2.0,\n    \"é🙂\\n\"\n  ],\n  \"a\": {},\n  \"c\": []\n}|",
        "{\"a\":{},\"b\":[1,2.0,\"é🙂\\n\"],\"c\":[]}|",
        "{\"b\": [1, 2.0, \"\\u00e9\\ud83d\\ude42\\n\"], \"a\": {}, \"c\": []}|13| g|4"
    );
    assert_eq!(processor.render(&chat).expect("text"), want);
}
