//! Which helpers and context fields this kernel has, found by loading programs that use them.

use std::ffi::CString;
use std::io;

use aya_obj::generated::{bpf_attach_type, bpf_func_id, bpf_insn, bpf_prog_type};

use super::syscall::{self, Program};

/// What is used where the kernel has it, and done without where it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// A connect hook may choose the error (6.1); without it, applications read EPERM and not
    /// ECONNREFUSED when the agent is away.
    pub set_retval: bool,
    /// `sk_lookup` knows the interface (5.17); without it, a captured connection whose application forged
    /// its source address is judged as one from outside.
    pub ingress_ifindex: bool,
}

impl Features {
    /// Tries them on this kernel.
    pub fn detect() -> Self {
        let [set_retval, ingress_ifindex] =
            OPTIONAL.map(|feature| matches!(feature.attempt(), Attempt::Loads));
        Self { set_retval, ingress_ifindex }
    }
}

/// A program type with every helper that our programs of that type call.
pub(super) struct Needed {
    pub name: &'static str,
    pub cost: &'static str,
    program_type: bpf_prog_type,
    attach_type: bpf_attach_type,
    helpers: &'static [(&'static str, bpf_func_id)],
}

impl Needed {
    /// The helpers that are missing, or why the type does not load at all.
    pub(super) fn missing(&self) -> Result<Vec<&'static str>, String> {
        match self.attempt(&[instruction(MOV, 0, 1), instruction(EXIT, 0, 0)]) {
            Attempt::Loads => {}
            Attempt::Refused(e) | Attempt::Failed(e) => return Err(format!("does not load: {e}")),
        }
        let lacks = |helper: bpf_func_id| {
            let call = [instruction(CALL, 0, helper as i32), instruction(EXIT, 0, 0)];
            matches!(self.attempt(&call), Attempt::Refused(_))
        };
        Ok(self.helpers.iter().filter(|(_, helper)| lacks(*helper)).map(|(name, _)| *name).collect())
    }

    fn attempt(&self, instructions: &[bpf_insn]) -> Attempt {
        attempt(self.program_type, self.attach_type, instructions)
    }
}

/// Something newer than the floor.
pub(super) struct Optional {
    pub name: &'static str,
    pub since: &'static str,
    pub cost: &'static str,
    program_type: bpf_prog_type,
    attach_type: bpf_attach_type,
    instructions: &'static [bpf_insn],
}

impl Optional {
    pub(super) fn attempt(&self) -> Attempt {
        attempt(self.program_type, self.attach_type, self.instructions)
    }
}

pub(super) enum Attempt {
    Loads,
    /// The verifier does not know what was asked of it.
    Refused(io::Error),
    /// Loading failed for a reason that says nothing about the feature.
    Failed(io::Error),
}

/// A call with nonsense arguments is refused too, but for another reason than an unknown helper.
fn attempt(program_type: bpf_prog_type, attach_type: bpf_attach_type, instructions: &[bpf_insn]) -> Attempt {
    let loaded = syscall::load(&Program {
        name: "probe",
        program_type: program_type as u32,
        attach_type: attach_type as u32,
        instructions,
        license: &CString::from(c"GPL"),
    });
    match loaded {
        Ok(_) => Attempt::Loads,
        Err((error, log)) => {
            let unknown = ["unknown func", "invalid func", "cannot use helper", "invalid bpf_context access"];
            if error.raw_os_error() == Some(libc::EPERM) {
                Attempt::Failed(error)
            } else if log.is_empty() || unknown.iter().any(|words| log.contains(words)) {
                Attempt::Refused(error)
            } else {
                Attempt::Failed(error)
            }
        }
    }
}

macro_rules! helpers {
    ($($helper:ident),* $(,)?) => { &[$((stringify!($helper), bpf_func_id::$helper)),*] };
}

pub(super) const PROGRAMS: [Needed; 5] = [
    Needed {
        name: "cgroup/connect",
        cost: "outgoing connections could not be captured",
        program_type: bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        attach_type: bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
        helpers: helpers![
            BPF_FUNC_get_netns_cookie,
            BPF_FUNC_get_socket_cookie,
            BPF_FUNC_getsockopt,
            BPF_FUNC_setsockopt,
            BPF_FUNC_sk_release,
            BPF_FUNC_sk_storage_delete,
            BPF_FUNC_sk_storage_get,
        ],
    },
    Needed {
        name: "cgroup_skb",
        cost: "a captured connection could leave in plaintext when its rule is lost",
        program_type: bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB,
        attach_type: bpf_attach_type::BPF_CGROUP_INET_EGRESS,
        helpers: helpers![BPF_FUNC_sk_storage_get],
    },
    Needed {
        name: "cgroup/post_bind",
        cost: "others could answer on the agent's ports",
        program_type: bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK,
        attach_type: bpf_attach_type::BPF_CGROUP_INET4_POST_BIND,
        helpers: helpers![BPF_FUNC_get_netns_cookie, BPF_FUNC_sk_storage_get],
    },
    Needed {
        name: "sk_lookup",
        cost: "connections could not be handed to the agent with their addresses kept",
        program_type: bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP,
        attach_type: bpf_attach_type::BPF_SK_LOOKUP,
        helpers: helpers![BPF_FUNC_sk_assign, BPF_FUNC_sk_release],
    },
    Needed {
        name: "sock_ops",
        cost: "flows that are left alone could not be counted",
        program_type: bpf_prog_type::BPF_PROG_TYPE_SOCK_OPS,
        attach_type: bpf_attach_type::BPF_CGROUP_SOCK_OPS,
        helpers: helpers![
            BPF_FUNC_get_netns_cookie,
            BPF_FUNC_ktime_get_ns,
            BPF_FUNC_ringbuf_reserve,
            BPF_FUNC_setsockopt,
            BPF_FUNC_sk_storage_delete,
            BPF_FUNC_sk_storage_get,
            BPF_FUNC_sock_ops_cb_flags_set,
            BPF_FUNC_tcp_sock,
        ],
    },
];

/// In the order of [`Features`]' fields.
pub(super) const OPTIONAL: [Optional; 2] = [
    Optional {
        name: "connect hooks choose their error",
        since: "6.1",
        cost: "applications read EPERM instead of ECONNREFUSED while the agent is away",
        program_type: bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        attach_type: bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
        instructions: &[
            instruction(MOV, 1, -libc::ECONNREFUSED),
            instruction(CALL, 0, bpf_func_id::BPF_FUNC_set_retval as i32),
            instruction(MOV, 0, 1),
            instruction(EXIT, 0, 0),
        ],
    },
    Optional {
        name: "sk_lookup knows the interface",
        since: "5.17",
        cost: "a captured connection with a forged source is judged as one from outside",
        program_type: bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP,
        attach_type: bpf_attach_type::BPF_SK_LOOKUP,
        instructions: &[load_word(0, 1, INGRESS_IFINDEX), instruction(MOV, 0, 1), instruction(EXIT, 0, 0)],
    },
];

/// The offset of `ingress_ifindex` in `struct bpf_sk_lookup`.
const INGRESS_IFINDEX: i16 = 64;

/// BPF_ALU64 | BPF_MOV | BPF_K
const MOV: u8 = 0xb7;
/// BPF_JMP | BPF_CALL
const CALL: u8 = 0x85;
/// BPF_JMP | BPF_EXIT
const EXIT: u8 = 0x95;
/// BPF_LDX | BPF_MEM | BPF_W
const LOAD_WORD: u8 = 0x61;

const fn instruction(code: u8, to: u8, imm: i32) -> bpf_insn {
    encode(code, to, 0, imm)
}

const fn load_word(to: u8, from: u8, offset: i16) -> bpf_insn {
    encode(LOAD_WORD, to | from << 4, offset, 0)
}

const fn encode(code: u8, registers: u8, offset: i16, imm: i32) -> bpf_insn {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = imm.to_ne_bytes();
    // SAFETY: an instruction is eight bytes in this order; the two registers share one byte, the
    // destination in its lower half on little-endian machines.
    unsafe { std::mem::transmute::<[u8; 8], bpf_insn>([code, registers, o0, o1, i0, i1, i2, i3]) }
}
