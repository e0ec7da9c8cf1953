//! What the pinned maps hold, read without our own code.

use std::path::Path;

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData};
use underpass::model::NetnsCookie;
use underpass_common::{InboundKey, OwnAddressKey, name};

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
