//! What of a machine's console a developer has to see after a failure.

/// The most lines that are shown of one command, and of the end of a console.
const LINES: usize = 120;

/// What the commands that failed printed, as `vm-init` separates them; where none did, how it all ended.
pub(super) fn what_failed(console: &str) -> Vec<&str> {
    let lines: Vec<&str> = console.lines().collect();
    let mut shown = Vec::new();
    let mut begin = 0;
    for (at, line) in lines.iter().enumerate() {
        // The kernel writes to the same console, and may begin before a line has ended.
        let Some((_, said)) = line.split_once("vm-init: ") else { continue };
        match said.rsplit_once("` ended with ") {
            Some((_, "exit status: 0")) => {}
            Some(_) => shown.extend(last(&lines[begin..=at])),
            None => begin = at,
        }
    }
    if shown.is_empty() { last(&lines).to_vec() } else { shown }
}

fn last<'a, 'b>(lines: &'b [&'a str]) -> &'b [&'a str] {
    &lines[lines.len().saturating_sub(LINES)..]
}

#[cfg(test)]
mod tests {
    use super::what_failed;

    #[test]
    fn of_a_failure_the_command_is_shown_and_not_what_came_after() {
        let console = "booting\nvm-init: Linux 6.1\nvm-init: check\nall is well\n\
            vm-init: `check` ended with exit status: 0\nvm-init: demo\nit is untrue\n\
            vm-init: `demo` ended with exit status: 1\n[ 2.0] noise vm-init: story\nfine\n\
            vm-init: `story` ended with exit status: 0\nvm-init: commands ended with status 1\n";
        let expected = ["vm-init: demo", "it is untrue", "vm-init: `demo` ended with exit status: 1"];
        assert_eq!(what_failed(console), expected);
    }

    #[test]
    fn without_a_command_that_failed_the_end_is_shown() {
        let console = "line\n".repeat(300) + "panic";
        let shown = what_failed(&console);
        assert_eq!((shown.len(), shown.last()), (super::LINES, Some(&"panic")));
    }
}
