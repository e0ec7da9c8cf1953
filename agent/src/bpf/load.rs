//! Brings the programs into the kernel: first start, restart, and upgrade are one path.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use aya::maps::{MapData, RingBuf};
use aya::programs::{CgroupSkb, CgroupSock, CgroupSockAddr, Program, ProgramError, SockOps};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use aya_obj::generated::bpf_attach_type;
use underpass_common::name;

use super::BpfError;
use super::config::Config;
use super::features::Features;
use super::links;
use super::maps::{self, Maps};
use super::mount::{self, Cgroup};
use super::object;
use super::pins::Pins;
use super::programs::Programs;
use super::steer::Steer;
use crate::model::NetnsCookie;

/// Attached to the cgroup at once, guards before what they guard against.
const CGROUP: [(&str, bpf_attach_type); 6] = [
    (name::program::EGRESS_GUARD, bpf_attach_type::BPF_CGROUP_INET_EGRESS),
    (name::program::POST_BIND4, bpf_attach_type::BPF_CGROUP_INET4_POST_BIND),
    (name::program::POST_BIND6, bpf_attach_type::BPF_CGROUP_INET6_POST_BIND),
    (name::program::SOCK_OPS, bpf_attach_type::BPF_CGROUP_SOCK_OPS),
    (name::program::CONNECT4, bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    (name::program::CONNECT6, bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
];

/// Attached to the cgroup when the first pod is captured by loopback addresses.
pub(super) const PEERNAME: [(&str, bpf_attach_type); 2] = [
    (name::program::GETPEERNAME4, bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME),
    (name::program::GETPEERNAME6, bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME),
];

pub(super) fn load(config: &Config, features: Features) -> Result<Programs, BpfError> {
    let bytecode = object::bytecode()?;
    let pins = Pins::new(&config.pin_root, &config.instance)?;
    if mount::ensure_bpffs(&config.pin_root)? {
        tracing::info!("mounted a bpffs at /sys/fs/bpf");
    }
    let cgroup = Cgroup::open(config.cgroup.as_deref())?;
    pins.create()?;

    let globals = Globals::new(config, features);
    let mut declared = object::parse(bytecode)?;
    object::check_pinned_maps(&declared, &pins)?;
    let mut ebpf = load_object(bytecode, &pins, &globals)?;
    declared.patch_map_data(globals.all().into()).map_err(|e| BpfError::Object(e.to_string()))?;
    let steer = Steer::new(declared, &ebpf)?;
    // The verifier's word on the one program that is not needed before the first pod.
    steer.load(NetnsCookie(0))?;

    for (program, attach_type) in CGROUP {
        let fd = load_program(&mut ebpf, program)?;
        let attached = links::attach_cgroup(&pins.link(program), &cgroup, fd.as_fd(), attach_type as u32)?;
        tracing::debug!(program, how = ?attached, "attached");
    }
    let peername = load_peername(&mut ebpf, &pins, &cgroup)?;

    let agent_sockets = map_fd(&ebpf, name::map::AGENT_SOCKETS)?;
    let loopback = map_fd(&ebpf, name::map::LOOPBACK_DESTINATIONS)?;
    let flow = map_fd(&ebpf, name::map::FLOW)?;
    let ring = ebpf.take_map(name::map::FLOWS).ok_or_else(|| missing(name::map::FLOWS))?;
    let flows = RingBuf::<MapData>::try_from(ring).map_err(|e| BpfError::Object(e.to_string()))?;
    let logger = EbpfLogger::init(&mut ebpf).map_err(|e| BpfError::Object(e.to_string()))?;
    let mut maps = Maps::take(&mut ebpf)?;
    forget_ended(&mut maps, &pins)?;

    Ok(Programs {
        pins,
        _lock: None,
        cgroup,
        maps: Mutex::new(maps),
        steer,
        unpinned: Mutex::default(),
        peername,
        agent_sockets,
        loopback,
        flow,
        flows: Mutex::new(Some(flows)),
        logger: Mutex::new(Some(logger)),
    })
}

/// What is fixed at load time.
struct Globals {
    set_retval: [u8; 1],
    ingress_ifindex: [u8; 1],
    log_level: [u8; 1],
}

impl Globals {
    fn new(config: &Config, features: Features) -> Self {
        Self {
            set_retval: [features.set_retval.into()],
            ingress_ifindex: [features.ingress_ifindex.into()],
            log_level: [config.log_level.as_global()],
        }
    }

    fn all(&self) -> [(&str, (&[u8], bool)); 3] {
        [
            (name::global::HAS_SET_RETVAL, (&self.set_retval, true)),
            (name::global::HAS_INGRESS_IFINDEX, (&self.ingress_ifindex, true)),
            (aya_log::LEVEL, (&self.log_level, true)),
        ]
    }
}

/// Maps that are pinned are opened, the others made and pinned.
fn load_object(bytecode: &[u8], pins: &Pins, globals: &Globals) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    for name in name::map::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    for (name, (value, must_exist)) in globals.all() {
        loader.override_global(name, value, must_exist);
    }
    loader.load(bytecode).map_err(|e| BpfError::Refused { program: "object".to_owned(), message: chain(&e) })
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd, BpfError> {
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    let refused = |e: ProgramError| BpfError::Refused { program: name.to_owned(), message: chain(&e) };
    match program {
        Program::CgroupSkb(program) => CgroupSkb::load(program),
        Program::CgroupSock(program) => CgroupSock::load(program),
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::SockOps(program) => SockOps::load(program),
        _ => return Err(BpfError::Object(format!("program {name} is of an unexpected type"))),
    }
    .map_err(refused)?;
    let fd = program.fd().map_err(refused)?;
    fd.as_fd().try_clone_to_owned().map_err(|source| BpfError::Call {
        call: "dup",
        object: format!("program {name}"),
        source,
    })
}

/// Attaches them only if a former agent had.
fn load_peername(
    ebpf: &mut Ebpf,
    pins: &Pins,
    cgroup: &Cgroup,
) -> Result<[OwnedFd; PEERNAME.len()], BpfError> {
    let [first, second] = PEERNAME.map(|(program, attach_type)| {
        let fd = load_program(ebpf, program)?;
        let pin = pins.link(program);
        if pin.exists() {
            links::attach_cgroup(&pin, cgroup, fd.as_fd(), attach_type as u32)?;
        }
        Ok(fd)
    });
    Ok([first?, second?])
}

/// Pods whose namespaces ended while no agent was looking. Those without a row were released, with a link
/// that is severed all the same: whoever tidies them looks for their namespaces first.
fn forget_ended(maps: &mut Maps, pins: &Pins) -> Result<(), BpfError> {
    for pod in pins.pods()? {
        let pin = pins.pod(pod);
        if maps.pod(pod)?.is_some() && !links::is_alive(&pin)? {
            tracing::info!(netns = %pod, "forgetting a pod whose network namespace is gone");
            maps.forget(pod)?;
            links::detach(&pin)?;
        }
    }
    Ok(())
}

fn map_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, BpfError> {
    let map = ebpf.map(name).and_then(maps::fd).ok_or_else(|| missing(name))?;
    map.try_clone_to_owned().map_err(|source| BpfError::Call {
        call: "dup",
        object: format!("map {name}"),
        source,
    })
}

fn missing(name: &str) -> BpfError {
    BpfError::Object(format!("it has no {name}"))
}

/// An error with its causes: aya's own messages leave them to `source`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
