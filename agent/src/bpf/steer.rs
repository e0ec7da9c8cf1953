//! The `steer` program, loaded once for each pod.
//!
//! A `sk_lookup` program cannot ask which namespace it runs in, so every pod gets a copy whose one
//! difference is a constant: the cookie of its namespace. Loading the whole object for that would
//! parse it, load its types and create maps each time; here it is parsed and cut down once, and a pod
//! costs one map of a few bytes, the verifier and the link.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya_obj::generated::{bpf_attach_type, bpf_insn, bpf_prog_type};
use aya_obj::{EbpfSectionKind, Object};
use underpass_common::name;

use super::{BpfError, maps, syscall};
use crate::model::NetnsCookie;

/// What a namespace's link attaches as.
pub(super) const ATTACH_TYPE: u32 = bpf_attach_type::BPF_SK_LOOKUP as u32;

const PROGRAM_TYPE: u32 = bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP as u32;

/// The program without its cookie.
pub(super) struct Steer {
    object: Object,
    /// The object's maps, those that all copies share, by name.
    shared: HashMap<String, OwnedFd>,
}

impl Steer {
    /// From the object with its other globals set, and the maps that were made or opened for it.
    pub(super) fn new(mut object: Object, loaded: &Ebpf) -> Result<Self, BpfError> {
        // Other programs' sections go; what programs may call (.text) stays.
        let others: HashSet<usize> = object
            .programs
            .iter()
            .filter(|(name, _)| *name != name::program::SK_LOOKUP)
            .map(|(_, program)| program.section_index)
            .collect();
        object.programs.retain(|name, _| name == name::program::SK_LOOKUP);
        object.functions.retain(|(section, _), _| !others.contains(section));
        object.btf = None;
        object.btf_ext = None;

        let mut shared = HashMap::new();
        for (name, map) in loaded.maps() {
            let Some(fd) = maps::fd(map) else { continue };
            let fd = fd.try_clone_to_owned().map_err(|source| BpfError::Call {
                call: "dup",
                object: format!("map {name}"),
                source,
            })?;
            shared.insert(name.to_owned(), fd);
        }
        Ok(Self { object, shared })
    }

    /// Loads the copy for one namespace.
    pub(super) fn load(&self, pod: NetnsCookie) -> Result<OwnedFd, BpfError> {
        let mut object = self.object.clone();
        let cookie = pod.0.to_ne_bytes();
        object
            .patch_map_data(HashMap::from([(name::global::NETNS_COOKIE, (&cookie[..], true))]))
            .map_err(unusable)?;

        let mut constants = Vec::new();
        let all: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
        for (_, map) in all.iter().filter(|(_, map)| is_constant(map)) {
            constants.push(syscall::read_only_data(map.data()).map_err(|source| BpfError::Call {
                call: "create",
                object: "the constants of program steer".to_owned(),
                source,
            })?);
        }
        let mut own = constants.iter();
        let mut fds = Vec::with_capacity(all.len());
        for (name, map) in &all {
            let fd: Option<BorrowedFd<'_>> = if is_constant(map) {
                own.next().map(AsFd::as_fd)
            } else {
                self.shared.get(name).map(AsFd::as_fd)
            };
            let fd = fd.ok_or_else(|| BpfError::Object(format!("map {name} was not loaded")))?;
            fds.push((name.as_str(), fd.as_raw_fd(), map));
        }
        let text = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(fds.into_iter(), &text).map_err(unusable)?;
        object.relocate_calls(&text).map_err(unusable)?;
        // The program holds its maps from here on.
        self.load_relocated(&object)
    }

    fn load_relocated(&self, object: &Object) -> Result<OwnedFd, BpfError> {
        let missing = || BpfError::Object("it has no program steer".to_owned());
        let program = object.programs.get(name::program::SK_LOOKUP).ok_or_else(missing)?;
        let instructions: &[bpf_insn] =
            &object.functions.get(&program.function_key()).ok_or_else(missing)?.instructions;
        syscall::load(&syscall::Program {
            name: name::program::SK_LOOKUP,
            program_type: PROGRAM_TYPE,
            attach_type: ATTACH_TYPE,
            instructions,
            license: &program.license,
        })
        .map_err(|(error, log)| BpfError::Refused {
            program: name::program::SK_LOOKUP.to_owned(),
            message: format!("{error}\n{log}"),
        })
    }
}

fn is_constant(map: &aya_obj::Map) -> bool {
    map.section_kind() == EbpfSectionKind::Rodata
}

fn unusable(error: impl std::fmt::Display) -> BpfError {
    BpfError::Object(error.to_string())
}
