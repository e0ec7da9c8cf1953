//! One document of a file, replaced or added; the others stay as they are, byte for byte.

use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::certs::keeping::write_whole;
use crate::cli::why;
use crate::discovery::manifest;
use crate::policy::Object;

/// Writes the object to the file that has it already, or to the only file there is. Returns which that was.
///
/// # Errors
/// It is not clear where it belongs, or the file cannot be read or written.
pub(super) fn write(
    given: &[PathBuf],
    object: &Object,
    yaml: &str,
    replaces: bool,
) -> anyhow::Result<PathBuf> {
    let files = why::list(given)?;
    let mut found = None;
    for file in &files {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("reading {} failed", file.display()))?;
        if let Some(edited) = replaced(&text, object, yaml) {
            found = Some((file, edited));
            break;
        }
    }
    let (file, edited) = match (found, &files[..]) {
        (Some(found), _) => found,
        (None, _) if replaces => bail!(
            "Enforcement {}/{} is no YAML document of its own in the files, but an item of a list, or JSON: replace it there by what is printed without --in-place",
            object.meta.namespace,
            object.meta.name
        ),
        (None, [file]) if !is_json(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("reading {} failed", file.display()))?;
            (file, added(&text, yaml))
        }
        (None, _) => bail!(
            "there is no such Enforcement yet, and it is not clear to which file it belongs: apply what is printed without --in-place, or give one YAML file with -f"
        ),
    };
    // What a link leads to, so that it stays one.
    let file = std::fs::canonicalize(file).with_context(|| format!("finding {} failed", file.display()))?;
    let mode = std::fs::metadata(&file).with_context(|| format!("reading {} failed", file.display()))?;
    write_whole(&file, edited.as_bytes(), mode.permissions().mode() & 0o777)?;
    Ok(file)
}

fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|end| end == "json")
}

/// None: it is no document of this text.
fn replaced(text: &str, object: &Object, yaml: &str) -> Option<String> {
    let at = documents(text).into_iter().find(|at| is(&text[at.clone()], object))?;
    let kept = head(&text[at.clone()]);
    Some(format!("{}{}{yaml}{}", &text[..at.start], kept, &text[at.end..]))
}

fn added(text: &str, yaml: &str) -> String {
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let line = if text.trim().is_empty() { "" } else { "---\n" };
    format!("{text}{end}{line}{yaml}")
}

/// Whether this one document is the object and nothing else.
fn is(document: &str, object: &Object) -> bool {
    let Ok(read) = manifest::read(document) else { return false };
    // One in JSON stays JSON.
    let yaml = !document.trim_start().starts_with('{');
    let same = |other: &Object| {
        other.is(&object.group, &object.kind)
            && (&other.meta.namespace, &other.meta.name) == (&object.meta.namespace, &object.meta.name)
            && document.lines().all(|line| !line.trim_start().starts_with("items:"))
    };
    yaml && matches!(&read[..], [Ok(other)] if same(other))
}

/// The comments before it.
fn head(document: &str) -> &str {
    let lines = document.split_inclusive('\n');
    let comment = |line: &&str| line.trim().is_empty() || line.starts_with('#');
    let length: usize = lines.take_while(comment).map(str::len).sum();
    &document[..length]
}

/// Where the documents of a text are, without the lines that part them: such a line is one wherever it stands.
fn documents(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut start, mut at) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        let parts =
            line.strip_prefix("---").is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace));
        if parts {
            found.push(start..at);
            start = at + line.len();
        }
        at += line.len();
    }
    found.push(start..at);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str =
        "# ours\nkind:   Namespace\napiVersion: v1\nmetadata: {name: shop}   # spaces stay\n";
    const PHASE: &str = "apiVersion: underpass.io/v1alpha1\nkind: Enforcement\nmetadata: {name: p, namespace: shop}\nspec: {phase: Enforce}\n";
    const NEW: &str = "NEW\n";

    fn object() -> Object {
        manifest::read(PHASE).unwrap().remove(0).unwrap()
    }

    #[test]
    fn one_document_is_replaced_and_the_others_stay() {
        let text = format!("{OTHERS}---\n# why\n\n{PHASE}--- \n\n{OTHERS}");
        let edited = replaced(&text, &object(), NEW).unwrap();
        assert_eq!(edited, format!("{OTHERS}---\n# why\n\n{NEW}--- \n\n{OTHERS}"));
        assert_eq!(replaced(PHASE, &object(), NEW).unwrap(), NEW);
        let other = PHASE.replace("name: p", "name: q");
        assert_eq!(replaced(&format!("{OTHERS}---\n{other}"), &object(), NEW), None, "another one");
    }

    #[test]
    fn an_item_of_a_list_is_not_cut_out() {
        let item = PHASE.replace('\n', "\n  ");
        let list = format!("apiVersion: v1\nkind: List\nitems:\n- {item}\n");
        assert_eq!(replaced(&list, &object(), NEW), None);
    }

    #[test]
    fn what_is_added_is_a_document_of_its_own() {
        assert_eq!(added(OTHERS, NEW), format!("{OTHERS}---\n{NEW}"));
        assert_eq!(added("a: 1", NEW), format!("a: 1\n---\n{NEW}"));
        assert_eq!(added("", NEW), NEW);
    }
}
