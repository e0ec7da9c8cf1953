//! Istio's path templates: `/a/{*}/b` and `/a/{**}`.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// `{*}` stands for one segment, `{**}` for any number of them, none included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    text: Arc<str>,
    segments: Box<[Segment]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Exact(Box<str>),
    One,
    Any,
}

/// Why something is no path template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("a path template begins with \"/\"")]
    NoSlash,
    #[error("{{**}} may stand once only")]
    SecondAny,
    #[error(
        "{0:?} is no segment of a path template: only {{*}}, {{**}} or text without braces and asterisks"
    )]
    Segment(String),
}

impl PathTemplate {
    /// Whether a value that policies write for a path is meant as a template.
    pub fn is_template(value: &str) -> bool {
        value.contains("{*}") || value.contains("{**}")
    }

    /// # Errors
    /// The text breaks Istio's rules for templates.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let rest = text.strip_prefix('/').ok_or(TemplateError::NoSlash)?;
        let mut segments = Vec::new();
        for segment in rest.split('/') {
            segments.push(match segment {
                "{*}" => Segment::One,
                "{**}" if segments.contains(&Segment::Any) => return Err(TemplateError::SecondAny),
                "{**}" => Segment::Any,
                _ if segment.contains(['{', '}', '*']) => {
                    return Err(TemplateError::Segment(segment.to_string()));
                }
                _ => Segment::Exact(segment.into()),
            });
        }
        Ok(Self { text: text.into(), segments: segments.into() })
    }

    pub fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let given: Vec<&str> = rest.split('/').collect();
        let Some(any) = self.segments.iter().position(|segment| *segment == Segment::Any) else {
            return given.len() == self.segments.len() && all(&self.segments, &given);
        };
        let (before, after) = (&self.segments[..any], &self.segments[any + 1..]);
        given.len() >= before.len() + after.len()
            && all(before, &given[..before.len()])
            && all(after, &given[given.len() - after.len()..])
    }
}

fn all(segments: &[Segment], given: &[&str]) -> bool {
    segments.iter().zip(given).all(|(segment, given)| match segment {
        Segment::Exact(text) => **text == **given,
        // As Envoy's: a segment that is empty is none.
        Segment::One => !given.is_empty(),
        Segment::Any => true,
    })
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for PathTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}
