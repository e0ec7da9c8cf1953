//! Finds network namespaces by their cookie: for those that the maps remember and no file names any
//! more.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::model::NetnsCookie;
use crate::sys::netns::Netns;

/// Every namespace with one of these cookies that a process lives in, or that is kept by a name under
/// `/run/netns`. One that cannot be opened is passed over: it is about to end, or not ours to enter.
pub fn by_cookie(wanted: &HashSet<NetnsCookie>) -> Vec<Netns> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for path in candidates() {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if !seen.insert(meta.ino()) {
            continue;
        }
        if let Ok(netns) = Netns::open(&path)
            && wanted.contains(&netns.cookie())
        {
            found.push(netns);
        }
    }
    found
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let processes = entries("/proc").filter(|p| {
        p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
    });
    entries("/run/netns").chain(entries("/var/run/netns")).chain(processes.map(|p| p.join("ns/net")))
}

fn entries(dir: &str) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()))
}
