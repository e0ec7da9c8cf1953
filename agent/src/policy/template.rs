//! Istio's path templates: `/a/{*}/b` and `/a/{**}`.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// `{*}` stands for one segment, `{**}` for any text: it may be empty, and the slash before it has to be there.
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
    #[error("{{**}} has to be the last operator")]
    NotLast,
    #[error(
        "{0:?} is no segment of a path template: only {{*}}, {{**}} or what a path's segment is written with"
    )]
    Segment(String),
}

impl PathTemplate {
    /// Whether a value that policies write for a path is meant as a template: no path has a brace, once it is in
    /// normal form.
    pub fn is_template(value: &str) -> bool {
        value.contains(['{', '}'])
    }

    /// # Errors
    /// The text breaks Istio's rules for templates.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let rest = text.strip_prefix('/').ok_or(TemplateError::NoSlash)?;
        let mut segments = Vec::new();
        let mut rest = rest.split('/').peekable();
        while let Some(segment) = rest.next() {
            segments.push(match segment {
                "{*}" | "{**}" if segments.contains(&Segment::Any) => return Err(TemplateError::NotLast),
                "{*}" => Segment::One,
                "{**}" => Segment::Any,
                // A slash may end it.
                "" if rest.peek().is_none() => Segment::Exact("".into()),
                _ if segment.is_empty() || !segment.bytes().all(is_literal) => {
                    return Err(TemplateError::Segment(segment.to_string()));
                }
                _ => Segment::Exact(segment.into()),
            });
        }
        Ok(Self { text: text.into(), segments: segments.into() })
    }

    /// What every path that fits begins with.
    pub(super) fn literal(&self) -> &str {
        let (before, after) = self.text.split_at(self.text.find('{').unwrap_or(self.text.len()));
        // `/a/{**}` is fit by `/a` too.
        let bare = before.strip_suffix('/').filter(|_| after.starts_with("{**}"));
        bare.unwrap_or(before)
    }

    pub fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let given: Vec<&str> = rest.split('/').collect();
        let Some(any) = self.segments.iter().position(|segment| *segment == Segment::Any) else {
            return given.len() == self.segments.len() && all(&self.segments, &given);
        };
        let (before, after) = (&self.segments[..any], &self.segments[any + 1..]);
        if given.len() <= before.len() + after.len() || !all(before, &given[..before.len()]) {
            return false;
        }
        // Istio's reference has `/foo/{**}/` match `/foo/bar/baz.txt`: a slash that ends the template is in what
        // `{**}` stands for.
        let directory = matches!(after, [Segment::Exact(text)] if text.is_empty());
        directory || all(after, &given[given.len() - after.len()..])
    }
}

/// RFC 3986's `pchar`, of which Istio takes no asterisk.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_istios_reference_hold() {
        for (template, path, matches) in [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/bar/baz", false),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo", false),
            ("/foo/{**}/", "/foo/bar/", true),
            ("/foo/{**}/", "/foo/bar/baz.txt", true),
            ("/foo/{**}/", "/foo//", true),
            ("/foo/{**}/", "/foo/bar", false),
            ("/foo/{**}", "/foo/", true),
            ("/foo/{**}", "/foo", false),
            ("/foo/{**}", "/food", false),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz/more", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar", false),
            ("/{**}", "/", true),
            ("/{*}", "foo", false),
        ] {
            assert_eq!(PathTemplate::parse(template).unwrap().matches(path), matches, "{template} {path}");
        }
    }

    #[test]
    fn what_istio_refuses_is_refused() {
        for template in [
            "/*/baz/{*}",
            "/**/baz/{*}",
            "/{**}/foo/{*}",
            "/foo/{*}.txt",
            "foo/{*}",
            "/{*}{*}",
            "/{{*}}",
            "/foo/{id}",
            "/foo/{*",
            "/foo/*}",
            "/foo/{}",
            "/a//{*}",
            "//{*}",
            "/{*}//",
            "/a b/{*}",
            "/a?b/{*}",
        ] {
            assert!(PathTemplate::parse(template).is_err(), "{template}");
        }
    }
}
