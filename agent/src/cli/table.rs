//! Aligned columns, as kubectl prints them.

use super::output::printable;

/// Three spaces between columns, none at the end of a line; `-` for an empty cell.
pub(super) fn table<'a>(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>> + 'a) -> String {
    let mut lines: Vec<Vec<String>> = vec![headers.iter().map(|h| (*h).to_owned()).collect()];
    lines.extend(rows.into_iter().map(|row| row.iter().map(|cell| shown(cell)).collect()));
    let width =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..headers.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            text += cell;
            text.extend(std::iter::repeat_n(' ', width - cell.chars().count() + GAP));
        }
        out += text.trim_end();
        out.push('\n');
    }
    out
}

const GAP: usize = 3;

fn shown(cell: &str) -> String {
    if cell.is_empty() { "-".to_owned() } else { printable(cell) }
}
