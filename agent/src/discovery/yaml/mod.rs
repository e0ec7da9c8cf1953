//! Strict reading of YAML that people write: unknown fields are refused (by the types), sizes and
//! nesting are bounded, and every complaint says line, column and field.

mod place;

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_saphyr::{Localizer, Location, MergeKeyPolicy, Options, UserMessageFormatter};

/// Larger documents are refused unread: about fifty thousand pods with their services.
pub const MAX_BYTES: usize = 32 << 20;

/// Reads one document.
///
/// # Errors
/// The first thing that is wrong with the document, with its place. Never panics, whatever the text.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Invalid> {
    if text.len() > MAX_BYTES {
        return Err(Invalid::one(Problem::too_long(text)));
    }
    let mut path = None;
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |document| {
        serde_path_to_error::deserialize(document).map_err(|error| {
            path = Some(error.path().to_string());
            error.into_inner()
        })
    })
    .map_err(|error| Invalid::one(Problem::from_parser(path, &error)))
}

/// Reads every document of a text, as JSON.
///
/// # Errors
/// The text is no YAML, or more than is read. Never panics, whatever the text.
pub fn read_all(text: &str) -> Result<Vec<serde_json::Value>, Invalid> {
    if text.len() > MAX_BYTES {
        return Err(Invalid::one(Problem::too_long(text)));
    }
    let mut options = options();
    // What kubectl takes; a mesh file, which is all ours, has no need of it.
    options.merge_keys = MergeKeyPolicy::Merge;
    if let Some(budget) = &mut options.budget {
        budget.max_documents = 100_000;
    }
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| Invalid::one(Problem::from_parser(None, &error)))
}

/// What is wrong with a document that does parse: collected while it is checked, placed afterwards.
#[derive(Debug, Default)]
pub struct Complaints {
    all: Vec<(Path, String)>,
}

impl Complaints {
    pub fn add(&mut self, path: Path, message: impl Into<String>) {
        self.all.push((path, message.into()));
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Finds the first complaints' places in the document that they are about.
    pub fn locate(mut self, text: &str) -> Vec<Problem> {
        self.all.truncate(MAX_PROBLEMS);
        let paths: Vec<&Path> = self.all.iter().map(|(path, _)| path).collect();
        let places = place::locate(text, &paths);
        let problem = |((path, message), (line, column)): ((Path, String), _)| Problem {
            line,
            column,
            path: path.to_string(),
            message,
        };
        self.all.into_iter().zip(places).map(problem).collect()
    }

    /// Ok if there is none.
    pub fn into_result(self, text: &str) -> Result<(), Invalid> {
        if self.is_empty() {
            return Ok(());
        }
        let total = self.all.len();
        let problems = self.locate(text);
        Err(Invalid { omitted: total - problems.len(), problems })
    }
}

const MAX_PROBLEMS: usize = 10;

/// The way to a field: `workloads[3].workloadIps[0]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<Segment>);

impl Path {
    pub fn key(&self, key: impl Into<String>) -> Self {
        self.with(Segment::Key(key.into()))
    }

    pub fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    fn with(&self, segment: Segment) -> Self {
        let mut path = self.clone();
        path.0.push(segment);
        path
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if at == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Why a document was refused. Has at least one problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Invalid {
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub omitted: usize,
}

impl Invalid {
    fn one(problem: Problem) -> Self {
        Self { problems: vec![problem], omitted: 0 }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "; " })?;
        }
        if self.omitted > 0 {
            write!(f, "; and {} more", self.omitted)?;
        }
        Ok(())
    }
}

/// One thing that is wrong, or doubtful, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// From 1; 0 where the whole document is meant.
    pub line: u64,
    /// From 1, in characters; 0 where the whole document is meant.
    pub column: u64,
    /// Empty where the whole document is meant.
    pub path: String,
    pub message: String,
}

impl Problem {
    fn too_long(text: &str) -> Self {
        let message =
            format!("the document has {} bytes, more than the {MAX_BYTES} that are read", text.len());
        Self { line: 0, column: 0, path: String::new(), message }
    }

    fn from_parser(path: Option<String>, error: &serde_saphyr::Error) -> Self {
        let place = error.location().filter(|at| *at != Location::UNKNOWN);
        // A key that does not parse has no name to show.
        let path = path.unwrap_or_default();
        let path = path.trim_start_matches('.').trim_end_matches(".?").trim_end_matches('?').to_string();
        let message = error
            .without_snippet()
            .render_with_formatter(&UserMessageFormatter.with_localizer(&WithoutPlace));
        Self {
            line: place.map_or(0, |at| at.line()),
            column: place.map_or(0, |at| at.column()),
            path,
            message,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Key(String),
    Index(usize),
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_documents: 2,
            max_events: 8_000_000,
            max_nodes: 8_000_000,
            max_aliases: 10_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 200_000,
            max_replay_stack_depth: 8,
        },
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Our own form of a place goes in front of the message.
struct WithoutPlace;

impl Localizer for WithoutPlace {
    fn attach_location<'a>(&self, base: Cow<'a, str>, _: Location) -> Cow<'a, str> {
        base
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Document {
        name: String,
        #[serde(default)]
        ports: BTreeMap<u16, u16>,
        #[serde(default)]
        list: Vec<Document>,
    }

    #[test]
    fn complaints_of_the_parser_say_where() {
        for (text, expected) in [
            ("name: a\nfoo: 1\n", "2:1: foo: unknown field `foo`, expected one of name, ports, list"),
            ("name: a\nlist:\n- name: b\n- ports: {}\n", "4:3: list[1]: missing field `name`"),
            ("name: a\nlist:\n- name: b\n  ports: {80: 99999}\n", "4:15: list[0].ports.80: invalid u16"),
            ("name: a\nports:\n  x: 1\n", "3:3: ports: invalid u16"),
            ("name: a\nname: b\n", "2:1: duplicate mapping key `name` is not allowed here"),
            ("name: [a\n", "1:7: name: expected string scalar"),
            ("", "1:1: unexpected end of file"),
            ("name: a\n---\nname: b\n", "3:1: only single YAML document expected but multiple found"),
        ] {
            assert_eq!(read::<Document>(text).unwrap_err().to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn complaints_of_ours_are_placed() {
        let text = "name: a\nlist:\n- name: b\n  ports:\n    80: 1\n    90: 2\n- name: c\n";
        let root = Path::default();
        let cases = [
            (root.clone(), 1, 1),
            (root.key("name"), 1, 7),
            (root.key("list"), 3, 3),
            (root.key("list").index(0), 3, 3),
            (root.key("list").index(0).key("ports").key("90"), 6, 9),
            (root.key("list").index(1).key("name"), 7, 9),
            // What is not there is looked for one level up.
            (root.key("list").index(1).key("ports").key("80"), 7, 3),
            (root.key("list").index(7), 3, 3),
        ];
        let mut all = Complaints::default();
        let mut expected = Vec::new();
        for (path, line, column) in cases {
            let mut one = Complaints::default();
            one.add(path.clone(), "wrong");
            all.add(path.clone(), "wrong");
            let problem = Problem { line, column, path: path.to_string(), message: "wrong".into() };
            assert_eq!(one.into_result(text).unwrap_err().problems, std::slice::from_ref(&problem));
            expected.push(problem);
        }
        assert_eq!(all.locate(text), expected);
    }

    #[test]
    fn no_more_than_ten_are_listed() {
        let mut complaints = Complaints::default();
        for at in 0..13 {
            complaints.add(Path::default().key("list").index(at), "wrong");
        }
        let invalid = complaints.into_result("list: [1]").unwrap_err();
        assert_eq!((invalid.problems.len(), invalid.omitted), (10, 3));
        assert!(invalid.to_string().ends_with("; and 3 more"), "{invalid}");
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "[".repeat(100_000);
        let deep_block = (0..200).map(|n| format!("{}list:\n", " ".repeat(n))).collect::<String>();
        let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_string();
        for (name, of) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f"), ("h", "g")]
        {
            bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 10].join(","));
        }
        let long = format!("name: {}", "x".repeat(MAX_BYTES));
        for text in [&deep, &deep_block, &bomb, &long] {
            assert!(read::<serde_json::Value>(text).is_err(), "{:.40}", text);
        }
    }
}
