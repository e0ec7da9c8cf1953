//! Enough of Rust's lexical grammar to read paths: words and punctuation, no comments, no strings.

/// A word or a single character of punctuation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) text: &'a str,
}

impl Token<'_> {
    pub(super) fn is(&self, text: &str) -> bool {
        self.text == text
    }
}

/// The tokens of a Rust source file. Literals and comments are left out.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let (mut found, mut line, mut rest) = (Vec::new(), 1, source);
    while let Some(first) = rest.chars().next() {
        let (length, keep) = piece(rest, first);
        let (text, after) = rest.split_at(length);
        if keep {
            found.push(Token { line, text });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    found
}

/// The length in bytes of what stands first, and whether it is a token to keep.
fn piece(rest: &str, first: char) -> (usize, bool) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), false);
    }
    if first.is_whitespace() {
        return (first.len_utf8(), false);
    }
    if let Some(length) = raw_string(rest) {
        return (length, false);
    }
    if first == '"' {
        return (quoted(rest, '"'), false);
    }
    if first == '\'' {
        return (char_or_lifetime(rest), false);
    }
    if is_word(first) {
        return (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), true);
    }
    (first.len_utf8(), true)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if here.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// `r"…"`, `br#"…"#` and the like: no escapes inside, as many `#` at the end as at the start.
fn raw_string(rest: &str) -> Option<usize> {
    let body = ["r", "br", "cr"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = body.bytes().take_while(|b| *b == b'#').count();
    let inside = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let before = rest.len() - inside.len();
    Some(inside.find(&end).map_or(rest.len(), |at| before + at + end.len()))
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}

/// `'a'` and `'\n'` are literals; the `'` of `'a` alone begins a lifetime, whose name is a word.
fn char_or_lifetime(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => quoted(rest, '\''),
        (_, Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::tokens;

    #[test]
    fn literals_and_comments_are_left_out() {
        let table: [(&str, &[&str]); 8] = [
            ("a::b // c\nd", &["a", ":", ":", "b", "d"]),
            ("a /* b /* c */ d */ e", &["a", "e"]),
            (r#"f("crate::x \" crate::y")"#, &["f", "(", ")"]),
            (r##"r#"crate::" "# a"##, &["a"]),
            ("'{' b'}' '\\'' x", &["b", "x"]),
            ("&'a str", &["&", "a", "str"]),
            ("\"never ended", &[]),
            ("über ß", &["über", "ß"]),
        ];
        for (source, expected) in table {
            let found: Vec<_> = tokens(source).iter().map(|token| token.text).collect();
            assert_eq!(found, expected, "{source}");
        }
    }

    #[test]
    fn lines_are_counted_through_literals() {
        let found = tokens("a \"x\ny\" b\n/*\n*/ c");
        assert_eq!(found.iter().map(|token| token.line).collect::<Vec<_>>(), [1, 2, 4]);
    }
}
