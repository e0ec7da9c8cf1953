//! For tests: the part of a page under `docs/` that is written from the code.

/// Compares what stands between the marks of this name with `table`, and says what follows it on the page. With
/// `UPDATE_DOCS` set it writes the table there instead, and says nothing.
pub(crate) fn lists(name: &str, mark: &str, table: &str) -> Option<String> {
    let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    let (begin, end) = (format!("<!-- begin: {mark} -->\n"), format!("<!-- end: {mark} -->\n"));
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(&begin).unwrap();
    let (listed, after) = rest.split_once(&end).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
        return None;
    }
    assert_eq!(listed, table, "docs/{name} has drifted; see the comment in it");
    Some(after.to_owned())
}
