//! Writes an example of a document from its types: a value's YAML, and above each field what the type
//! says about it.

use std::collections::HashSet;

use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::Value;

use super::Config;

/// The whole configuration with every default, each field explained.
pub fn example() -> String {
    let head = "The configuration of `underpass agent`. Every field may be left out; these are the defaults.";
    explained(head, &Config::default())
}

/// `value` in YAML under the comment `head`. A field that occurs several times, in the items of a list,
/// is explained the first time.
pub(super) fn explained<T: Serialize + JsonSchema>(head: &str, value: &T) -> String {
    let schema = SchemaGenerator::default().into_root_schema_for::<T>().to_value();
    let options = serde_saphyr::ser_options! { compact_list_indent: true };
    let yaml = serde_saphyr::to_string_with_options(value, options).unwrap_or_else(|e| format!("# {e}\n"));
    let mut writer =
        Writer { schema: &schema, open: Vec::new(), explained: HashSet::new(), out: String::new() };
    writer.comment(0, head);
    for line in yaml.lines() {
        writer.line(line);
    }
    writer.out
}

struct Writer<'a> {
    schema: &'a Value,
    /// The fields that the current line lies in, each with its indentation.
    open: Vec<(usize, String)>,
    explained: HashSet<Vec<String>>,
    out: String,
}

impl Writer<'_> {
    fn line(&mut self, line: &str) {
        let content = line.trim_start_matches([' ', '-']);
        let indent = line.len() - content.len();
        if let Some((key, _)) = content.split_once(':')
            && key.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            self.open.retain(|(at, _)| *at < indent);
            self.open.push((indent, key.to_string()));
            self.explain(line.len() - line.trim_start().len());
        }
        self.out.push_str(line);
        self.out.push('\n');
    }

    fn explain(&mut self, indent: usize) {
        let path: Vec<String> = self.open.iter().map(|(_, key)| key.clone()).collect();
        if let Some(text) = describe(self.schema, self.schema, &path)
            && self.explained.insert(path)
        {
            if self.open.len() == 1 {
                self.out.push('\n');
            }
            self.comment(indent, &text);
        }
    }

    fn comment(&mut self, indent: usize, text: &str) {
        for line in wrapped(text, WIDTH.saturating_sub(indent + 2)) {
            self.out.push_str(&" ".repeat(indent));
            self.out.push_str("# ");
            self.out.push_str(&line);
            self.out.push('\n');
        }
    }
}

const WIDTH: usize = 100;

/// What the schema says about the field at `path`, looking through references, options, lists and maps.
fn describe(root: &Value, schema: &Value, path: &[String]) -> Option<String> {
    let schema = resolve(root, schema);
    let Some((key, rest)) = path.split_first() else {
        return schema.get("description")?.as_str().map(str::to_string);
    };
    if let Some(field) = schema.get("properties").and_then(|fields| fields.get(key)) {
        // A field's own words before those of its type.
        let own = field.get("description").and_then(Value::as_str).map(str::to_string);
        return if rest.is_empty() {
            own.or_else(|| describe(root, field, rest))
        } else {
            describe(root, field, rest)
        };
    }
    let items = schema.get("items").and_then(|items| describe(root, items, path));
    items.or_else(|| {
        let values = schema.get("additionalProperties").filter(|values| values.is_object())?;
        if rest.is_empty() { None } else { describe(root, values, rest) }
    })
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = |schema: &'a Value| {
        let name = schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
        root.get("$defs")?.get(name)
    };
    let alternatives = schema.get("anyOf").and_then(Value::as_array).into_iter().flatten();
    target(schema).or_else(|| alternatives.filter_map(target).next()).unwrap_or(schema)
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, String::len);
        match lines.last_mut() {
            Some(last) if line == 0 => last.push_str(word),
            Some(last) if line + 1 + word.len() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}
