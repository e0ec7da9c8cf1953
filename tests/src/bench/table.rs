//! The result as markdown.

use std::fmt::Write as _;

use super::memory::Memory;
use super::rounds::{Column, Rounds, columns};
use super::rows::{ROWS, Row};
use super::site::Site;
use super::{Plan, cost};
use crate::load::stats::median;

pub(super) fn print(plan: &Plan, sites: &[Site], rounds: &Rounds, memories: &[Memory]) -> String {
    let mut t = String::new();
    for site in sites {
        let _ = writeln!(t, "{}: {}; access log {}", site.name, site.product.describe(), on(plan.access_log));
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kept = "Checked on the wire first: plain TCP shows its marker, the mesh only TLS.";
    let _ = writeln!(
        t,
        "{} CPUs, kernel {}; {} rounds, {:.1} s a measurement. {}\n\
         Medians; in parentheses the median of the ratios in the same round, and the least and greatest of \
         them: to plain TCP, or of judged requests to others on the same path.\n",
        cost::all_cpus().len(),
        kernel.trim(),
        rounds.0.len(),
        plan.run.as_secs_f64(),
        if plan.verify { kept } else { "NOT checked on the wire." }
    );
    let heads = sites.iter().map(|s| format!(" {0} same node | {0} cross node |", s.name));
    let _ = writeln!(t, "| | plain same node | plain cross node |{}", heads.collect::<String>());
    let columns = columns(sites.len());
    let _ = writeln!(t, "|---|{}", "---|".repeat(columns.len()));
    for row in
        ROWS.iter().filter(|r| rounds.0.first().is_some_and(|x| x.keys().any(|(test, _)| *test == r.test)))
    {
        let cells = columns.iter().map(|c| format!(" {} |", cell(row, *c, rounds)));
        let _ = writeln!(t, "| {} |{}", row.label, cells.collect::<String>());
    }
    memory_rows(&mut t, memories);
    t
}

fn cell(row: &Row, column: Column, rounds: &Rounds) -> String {
    let value = |round: usize, test, column| rounds.0[round].get(&(test, column)).and_then(row.value);
    let base = match row.against {
        Some(test) => (test, column),
        None => (row.test, Column { site: None, cross: column.cross }),
    };
    let (mut values, mut ratios) = (vec![], vec![]);
    for round in 0..rounds.0.len() {
        let Some(v) = value(round, row.test, column) else { continue };
        values.push(v);
        if let (Some(_), Some(base)) = (column.site, value(round, base.0, base.1)) {
            ratios.push(v / base);
        }
    }
    let Some(middle) = median(&values) else { return "–".into() };
    match median(&ratios) {
        None => show(middle),
        Some(ratio) => {
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            format!("{} ({}×; {}–{})", show(middle), show(ratio), show(least), show(most))
        }
    }
}

fn memory_rows(t: &mut String, memories: &[Memory]) {
    let mib = |kib: u64| show(kib as f64 / 1024.0);
    let row = |label: &str, cells: &dyn Fn(&Memory) -> [String; 2]| {
        let cells = memories.iter().flat_map(cells).map(|c| format!(" {c} |")).collect::<String>();
        format!("| {label} | – | – |{cells}\n")
    };
    t.push_str(&row("both agents' memory, idle (MiB)", &|m| [mib(m.idle_kib), mib(m.idle_kib)]));
    let Some(n) = memories.iter().map(|m| m.connections).max().filter(|n| *n > 0) else { return };
    let label = format!("both agents' memory with {n} idle conns (MiB)");
    t.push_str(&row(&label, &|m| m.held_kib.map(mib)));
    let each = |m: &Memory| m.kib_each.map(|k| k.map_or_else(|| "–".into(), show));
    t.push_str(&row("memory per idle conn, both ends (KiB)", &each));
}

/// Three significant digits, or all of a large number's.
fn show(x: f64) -> String {
    match x.abs() {
        a if a >= 1000.0 => format!("{x:.0}"),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

fn on(yes: bool) -> &'static str {
    if yes { "on" } else { "off" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rounds::Sample;
    use std::collections::BTreeMap;

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine halves its speed in the second round; the ratio does not change.
        let sample = |us| Sample { p50_us: Some(us), ..Sample::default() };
        let (plain, mesh) = (Column { site: None, cross: true }, Column { site: Some(0), cross: true });
        let round = |us| BTreeMap::from([(("rr1", plain), sample(us)), (("rr1", mesh), sample(us * 5.0))]);
        let rounds = Rounds(vec![round(10.0), round(20.0), round(10.0)]);
        let row = ROWS.iter().find(|r| r.test == "rr1").unwrap();
        assert_eq!(cell(row, plain, &rounds), "10.0");
        assert_eq!(cell(row, mesh, &rounds), "50.0 (5.00×; 5.00–5.00)");
        assert_eq!(cell(row, Column { site: Some(1), cross: true }, &rounds), "–");
    }

    #[test]
    fn judged_requests_are_compared_with_others_on_the_same_path() {
        let sample = |us| Sample { p50_us: Some(us), ..Sample::default() };
        let (plain, mesh) = (Column { site: None, cross: true }, Column { site: Some(0), cross: true });
        let round = |us| {
            let all = [
                ("http1p", plain, 1.0),
                ("http1p", mesh, 4.0),
                ("judged1p", plain, 1.0),
                ("judged1p", mesh, 6.0),
            ];
            all.into_iter().map(|(test, column, times)| ((test, column), sample(us * times))).collect()
        };
        let rounds = Rounds(vec![round(10.0), round(20.0), round(10.0)]);
        let row = ROWS.iter().find(|r| r.test == "judged1p").unwrap();
        assert_eq!(cell(row, mesh, &rounds), "60.0 (1.50×; 1.50–1.50)");
        assert_eq!(cell(row, plain, &rounds), "10.0");
    }

    #[test]
    fn figures_keep_three_digits() {
        for (x, text) in
            [(0.1234, "0.123"), (9.87, "9.87"), (14.25, "14.2"), (334.4, "334"), (28636.0, "28636")]
        {
            assert_eq!(show(x), text);
        }
    }
}
