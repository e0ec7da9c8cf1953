//! What is in the kernel, as the kernel tells it and not our own code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData, MapInfo};
use aya::programs::{loaded_links, loaded_programs};
use underpass::model::NetnsCookie;
use underpass_common::{InboundKey, OwnAddressKey, name};

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

/// How many rows of its plan and of its addresses a pod has.
pub fn rows_of(pod: NetnsCookie, root: &Path, instance: &str) -> Result<usize> {
    let map = |name| -> Result<Map> {
        Ok(Map::HashMap(MapData::from_pin(root.join(instance).join("v1/maps").join(name))?))
    };
    let plan: HashMap<_, InboundKey, u8> = map(name::map::INBOUND)?.try_into()?;
    let addresses: HashMap<_, OwnAddressKey, u8> = map(name::map::OWN_ADDRESSES)?.try_into()?;
    let plan = plan.keys().flatten().filter(|key| key.netns == pod.0).count();
    Ok(plan + addresses.keys().flatten().filter(|key| key.netns == pod.0).count())
}
