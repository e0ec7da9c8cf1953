//! What is in the kernel, as the kernel tells it and not our own code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;
use aya::maps::MapInfo;
use aya::programs::{loaded_links, loaded_programs};

/// The maps that are pinned for an instance.
pub fn map_ids(root: &Path, instance: &str) -> Result<BTreeSet<u32>> {
    fs::read_dir(root.join(instance).join("v1/maps"))?
        .map(|entry| Ok(MapInfo::from_pin(entry?.path())?.id()))
        .collect()
}

/// The programs that use a pinned map of the instance, and are attached.
pub fn program_ids(root: &Path, instance: &str) -> Result<BTreeSet<u32>> {
    let maps = map_ids(root, instance)?;
    let attached: BTreeSet<u32> = loaded_links().flatten().map(|link| link.program_id()).collect();
    Ok(loaded_programs()
        .flatten()
        .filter(|p| attached.contains(&p.id()))
        .filter(|p| {
            let used = p.map_ids().ok().flatten().unwrap_or_default();
            used.iter().any(|map| maps.contains(map))
        })
        .map(|p| p.id())
        .collect())
}

pub fn link_ids(programs: &BTreeSet<u32>) -> Result<BTreeSet<u32>> {
    Ok(loaded_links()
        .flatten()
        .filter(|link| programs.contains(&link.program_id()))
        .map(|link| link.id())
        .collect())
}
