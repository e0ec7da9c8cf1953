//! The embedded object file: what it declares, and what is pinned of it already.

use std::io;
use std::path::Path;

use aya::maps::MapData;
use aya_obj::Object;
use underpass_common::name;

use super::pins::Pins;
use super::{BpfError, syscall};

/// The kernel programs, when this binary was built with them.
#[cfg(embedded_bpf)]
pub(super) fn bytecode() -> Result<&'static [u8], BpfError> {
    Ok(aya::include_bytes_aligned!(env!("UNDERPASS_BPF_OBJECT")))
}

/// This binary was built without them.
#[cfg(not(embedded_bpf))]
pub(super) fn bytecode() -> Result<&'static [u8], BpfError> {
    Err(BpfError::NoBytecode)
}

pub(super) fn parse(bytecode: &[u8]) -> Result<Object, BpfError> {
    Object::parse(bytecode).map_err(|e| BpfError::Object(e.to_string()))
}

/// Checks every map that is pinned already against what the object declares. The loader takes any
/// pinned map as it is: programs would then read and write past the ends of foreign values.
pub(super) fn check_pinned_maps(object: &Object, pins: &Pins) -> Result<(), BpfError> {
    for name in name::map::ALL {
        let declared =
            object.maps.get(name).ok_or_else(|| BpfError::Object(format!("it has no map {name}")))?;
        let path = pins.map(name);
        if let Some(found) = Shape::of_pin(&path)? {
            let expected = Shape::declared(declared);
            if found != expected {
                return Err(BpfError::ForeignPin {
                    path,
                    expected: expected.to_string(),
                    found: found.to_string(),
                });
            }
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Shape {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

impl Shape {
    fn declared(map: &aya_obj::Map) -> Self {
        const RING: u32 = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
        let is_ring = map.map_type() == RING;
        Self {
            map_type: map.map_type(),
            // The object names what a ring's entries are; the kernel knows bytes only.
            key_size: if is_ring { 0 } else { map.key_size() },
            value_size: if is_ring { 0 } else { map.value_size() },
            max_entries: map.max_entries(),
            flags: map.map_flags(),
        }
    }

    /// `None` when nothing is pinned there.
    fn of_pin(path: &Path) -> Result<Option<Self>, BpfError> {
        let foreign = |found: String| BpfError::ForeignPin {
            path: path.to_owned(),
            expected: "one of Underpass's maps".to_owned(),
            found,
        };
        let fd = match syscall::open_pin(path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(foreign(e.to_string())),
        };
        let kind = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)));
        let is_map = kind.as_ref().is_ok_and(|kind| kind.to_string_lossy().contains("bpf-map"));
        if !is_map {
            return Err(foreign(kind.map_or_else(|e| e.to_string(), |kind| kind.display().to_string())));
        }
        let data = MapData::from_fd(fd).map_err(|e| foreign(e.to_string()))?;
        let info = data.info().map_err(|e| foreign(e.to_string()))?;
        let map_type = info.map_type().map_err(|e| foreign(e.to_string()))?;
        Ok(Some(Self {
            map_type: map_type as u32,
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            flags: info.map_flags(),
        }))
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { map_type, key_size, value_size, max_entries, flags } = self;
        write!(
            f,
            "type {map_type} with keys of {key_size} and values of {value_size} bytes, {max_entries} \
             entries, flags {flags:#x}"
        )
    }
}
