//! Which modules of the crate's root a source file names.

use super::tokens::{Token, tokens};

/// A path from the crate's root: its first segment, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) line: usize,
    pub(super) module: String,
}

/// Every root module that `source` names by `crate::…`, or by `super::…` from `depth` modules down.
pub(super) fn of_root(source: &str, depth: usize) -> Vec<Use> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut inline = InlineModules::default();
    let mut at = 0;
    while at < tokens.len() {
        inline.see(&tokens, at);
        let starts_path = at < 2 || !(tokens[at - 1].is(":") && tokens[at - 2].is(":"));
        let supers = count_supers(&tokens, at);
        if starts_path && tokens[at].is("crate") {
            first_segments(&tokens, at + 1, &mut found);
        } else if starts_path && supers > 0 && supers == depth + inline.open() {
            first_segments(&tokens, at + supers * 3 - 2, &mut found);
        }
        at += 1;
    }
    found
}

/// The names in `mod name;`, in order.
pub(super) fn modules(source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let declared = tokens.windows(3).filter(|it| it[0].is("mod") && it[2].is(";"));
    declared.map(|it| it[1].text.to_owned()).collect()
}

/// How many `super` follow each other from here, joined by `::`.
fn count_supers(tokens: &[Token<'_>], at: usize) -> usize {
    let nth = |n: usize| tokens.get(at + n * 3);
    let joined = |n: usize| n == 0 || (tokens[at + n * 3 - 1].is(":") && tokens[at + n * 3 - 2].is(":"));
    (0..).take_while(|n| nth(*n).is_some_and(|it| it.is("super")) && joined(*n)).count()
}

/// What follows `crate`: `::name`, or the first name of each branch of `::{…}`.
fn first_segments(tokens: &[Token<'_>], at: usize, found: &mut Vec<Use>) {
    let Some([a, b, first, ..]) = tokens.get(at..) else { return };
    if !(a.is(":") && b.is(":")) {
        return;
    }
    let mut add = |it: &Token<'_>| found.push(Use { line: it.line, module: it.text.to_owned() });
    if !first.is("{") {
        return add(first);
    }
    let (mut depth, mut starts) = (0, true);
    for token in &tokens[at + 2..] {
        match token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => starts = true,
            _ if depth == 1 && starts => {
                add(token);
                starts = false;
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

/// Modules written inside the file, whose `super` is the file's own module.
#[derive(Default)]
struct InlineModules {
    braces: usize,
    /// The brace depth outside each module that is open.
    outside: Vec<usize>,
}

impl InlineModules {
    fn see(&mut self, tokens: &[Token<'_>], at: usize) {
        if tokens[at].is("{") {
            if at >= 2 && tokens[at - 2].is("mod") {
                self.outside.push(self.braces);
            }
            self.braces += 1;
        } else if tokens[at].is("}") {
            self.braces = self.braces.saturating_sub(1);
            if self.outside.last() == Some(&self.braces) {
                self.outside.pop();
            }
        }
    }

    fn open(&self) -> usize {
        self.outside.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(source: &str, depth: usize) -> Vec<String> {
        of_root(source, depth).into_iter().map(|it| it.module).collect()
    }

    #[test]
    fn paths_from_the_root_are_found() {
        let table: [(&str, usize, &[&str]); 9] = [
            ("use crate::a::B;", 1, &["a"]),
            ("use crate::{a::{B, c::D}, e, f::G as H};", 1, &["a", "e", "f"]),
            ("let x = crate::a::b(crate::c::D);", 1, &["a", "c"]),
            ("use super::x;", 1, &["x"]),
            ("use super::x;", 2, &[]),
            ("use super::super::{x::Y, z};", 2, &["x", "z"]),
            ("use other::crate_name::x; pub(crate) fn f() {}", 1, &[]),
            ("mod t { use super::super::x; fn f() {} } use super::y;", 1, &["x", "y"]),
            ("mod t { mod u {} use super::x; }", 1, &[]),
        ];
        for (source, depth, expected) in table {
            assert_eq!(named(source, depth), expected, "{source}");
        }
    }

    #[test]
    fn declared_modules_keep_their_order() {
        assert_eq!(modules("//! mod no;\npub mod b;\nmod a;\nmod tests { }"), ["b", "a"]);
    }
}
