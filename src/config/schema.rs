//! The JSON Schema and the reference page of `deploy.yml`, both written from the table of keys.
//!
//! The schema says no more than an editor can check: what names mean and what fits together only loading knows.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::shape::{Object, Shape};
use super::table;

/// The JSON Schema (2020-12) of `deploy.yml`, pretty-printed, with a final line break.
pub fn json_schema() -> String {
    let mut schema = object(&table::PROJECT);
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("jiji deploy.yml"));
    let mut text = serde_json::to_string_pretty(&Value::Object(schema)).expect("a schema of texts and maps is JSON");
    text.push('\n');
    text
}

fn object(object: &Object) -> Map<String, Value> {
    let mut properties = Map::new();
    for field in object.fields {
        let Value::Object(mut property) = shape(&field.shape) else {
            continue;
        };
        let description = match field.default {
            Some(default) => format!("{} (default {default})", field.doc),
            None => field.doc.to_owned(),
        };
        property.insert("description".to_owned(), Value::String(description));
        properties.insert(field.name.to_owned(), Value::Object(property));
    }
    let required: Vec<&str> = object.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), Value::Object(properties));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    if object.extensions {
        schema.insert("patternProperties".to_owned(), json!({ "^x-": {} }));
    }
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

fn shape(of: &Shape) -> Value {
    // A variable may stand for every scalar.
    let variable = json!({ "type": "string", "pattern": "\\$\\{" });
    match of {
        Shape::Text => json!({ "type": ["string", "number", "boolean"] }),
        Shape::Bool => json!({ "anyOf": [{ "type": "boolean" }, variable] }),
        Shape::Integer { least, most } => {
            json!({ "anyOf": [{ "type": "integer", "minimum": least, "maximum": most }, variable] })
        }
        Shape::Duration { seconds: false } => json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$|\\$\\{" }),
        Shape::Duration { seconds: true } => json!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$|\\$\\{" },
            ]
        }),
        Shape::Word(words) => json!({ "anyOf": [{ "enum": words }, variable] }),
        Shape::List(inner) => json!({ "type": "array", "items": shape(inner) }),
        Shape::Map { values, .. } => json!({ "type": "object", "additionalProperties": shape(values) }),
        Shape::Object(inner) => Value::Object(object(inner)),
        Shape::Either(shapes) => json!({ "anyOf": shapes.iter().map(shape).collect::<Vec<_>>() }),
        Shape::Anything => json!({}),
    }
}

/// The reference page of `deploy.yml` in Markdown: a table of keys for each map.
pub fn reference() -> String {
    let mut text = "# `.jiji/deploy.yml`\n\n\
        Written from the table that checks the file. Unknown keys are errors; keys at the top that begin with `x-` are let through \
        and may hold anchors.\n\n\
        - `jiji -e ENV …` lays `.jiji/deploy.ENV.yml` over this file: maps key by key, lists and single values whole; a key \
        without a value (or `null`) takes the key away.\n\
        - `${NAME}` in a value stands for an environment variable, `${NAME:-DEFAULT}` for a default where it is unset or empty, \
        `$${` for a plain `${`. A variable without value and default is an error.\n\
        - Durations are a whole number with `ms`, `s`, `m` or `h`.\n"
        .to_owned();
    section(&mut text, "", &table::PROJECT);
    text
}

fn section(text: &mut String, path: &str, object: &Object) {
    if path.is_empty() {
        text.push_str("\n## The file\n\n");
    } else {
        let _ = write!(text, "\n## `{path}`\n\n");
    }
    text.push_str("| key | what it takes | what it is for |\n| --- | --- | --- |\n");
    for field in object.fields {
        let taken = field.shape.describe().replace('|', "\\|");
        let after = match (field.required, field.default) {
            (true, _) => ". Needed".to_owned(),
            (false, Some(default)) => format!(". Default {default}"),
            (false, None) => String::new(),
        };
        let _ = writeln!(text, "| `{}` | {taken} | {}{after} |", field.name, field.doc);
    }
    for field in object.fields {
        let here = super::shape::join(path, field.name);
        inner(text, &here, &field.shape);
    }
}

fn inner(text: &mut String, path: &str, of: &Shape) {
    match of {
        Shape::Object(object) => section(text, path, object),
        Shape::Map { values, .. } => inner(text, &format!("{path}.NAME"), values),
        Shape::Either(shapes) => shapes.iter().for_each(|of| inner(text, path, of)),
        _ => {}
    }
}
