//! Whether anything of a cluster is left: by looking at the machine, not at what was removed.

use std::fs;

use super::cgroups;
use super::places::{PREFIX, folder};

/// Everything that is left, as one would name it.
pub fn all() -> Vec<String> {
    let folder = folder().display().to_string();
    let mut left = vec![];
    if fs::exists(&folder).unwrap_or(true) {
        left.push(format!("the folder {folder}"));
    }
    for name in names("/run/netns").filter(|name| name.starts_with(&format!("{PREFIX}-"))) {
        left.push(format!("the network namespace {name}"));
    }
    left.extend(cgroups::standing(PREFIX).iter().map(|dir| format!("the cgroup {}", dir.display())));
    left.extend(mounts_under(&fs::read_to_string("/proc/self/mounts").unwrap_or_default(), &folder));
    left.extend(processes(&folder));
    left
}

fn mounts_under(mounts: &str, folder: &str) -> Vec<String> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points.filter(|at| at.starts_with(folder)).map(|at| format!("the mount {at}")).collect()
}

/// Whoever was started with a file of the cluster's, or stands in one of its cgroups.
fn processes(folder: &str) -> Vec<String> {
    let ours = |pid: &String| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (command, groups) = (read("cmdline"), read("cgroup"));
        String::from_utf8_lossy(&command).contains(&format!("{folder}/"))
            || String::from_utf8_lossy(&groups).contains(&format!(":/{PREFIX}-"))
    };
    // A zombie has no command line, and whoever started it reaps it.
    let pids = names("/proc").filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter(ours);
    pids.map(|pid| format!("the process {pid}")).collect()
}

fn names(dir: &str) -> impl Iterator<Item = String> {
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_in_the_folder_is_left_over() {
        let mounts = "tmpfs /tmp/underpass-x/node1/lib tmpfs rw 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(mounts_under(mounts, "/tmp/underpass-x"), ["the mount /tmp/underpass-x/node1/lib"]);
        assert!(mounts_under(mounts, "/tmp/underpass-y").is_empty());
    }

    #[test]
    fn a_process_with_a_file_of_the_folder_is_left_over() {
        let folder = format!("/nowhere/underpass-{}", std::process::id());
        let mut sleeper = std::process::Command::new("sh");
        let sleeper = sleeper.args(["-c", "read line", &format!("{folder}/x")]);
        let mut sleeper = sleeper.stdin(std::process::Stdio::piped()).spawn().unwrap();
        // What is forked has its parent's command line until it becomes another program.
        let seen = crate::wait::until_true(crate::wait::PATIENCE, "it is seen", || {
            processes(&folder) == [format!("the process {}", sleeper.id())]
        });
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        seen.unwrap();
        assert!(processes(&folder).is_empty());
    }
}
