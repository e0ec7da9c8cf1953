//! The bpf() commands that aya does not offer: links that can be pinned and updated, and single
//! programs loaded without a whole object around them.
//!
//! Attributes are declared here as the kernel's UAPI has them (include/uapi/linux/bpf.h); a kernel
//! takes a shorter attribute than its own and reads the rest as zero.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_cmd, bpf_insn, bpf_prog_info};

/// Attaches a program; the link lives as long as a descriptor or a pin does.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: i32,
        target_fd: i32,
        attach_type: u32,
        flags: u32,
    }
    let attr = Attr { prog_fd: program.as_raw_fd(), target_fd: target.as_raw_fd(), attach_type, flags: 0 };
    new_fd(bpf_cmd::BPF_LINK_CREATE, &attr)
}

/// Puts another program in a link's place, with no moment without either.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: i32,
        new_prog_fd: i32,
        flags: u32,
        old_prog_fd: i32,
    }
    let attr = Attr { link_fd: link.as_raw_fd(), new_prog_fd: program.as_raw_fd(), flags: 0, old_prog_fd: 0 };
    bpf(bpf_cmd::BPF_LINK_UPDATE, &attr).map(drop)
}

/// Detaches at once, whoever else holds the link.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: i32,
    }
    bpf(bpf_cmd::BPF_LINK_DETACH, &Attr { link_fd: link.as_raw_fd() }).map(drop)
}

/// The programs that are attached to a network namespace, by id.
pub(super) fn attached(netns: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attr {
        target_fd: i32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
    }
    // As many as the kernel lets be attached (kernel/bpf/net_namespace.c, `netns_bpf_max_progs`).
    let mut ids = [0u32; 64];
    let mut attr = Attr {
        target_fd: netns.as_raw_fd(),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
    };
    bpf_mut(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    Ok(ids.into_iter().take(attr.prog_cnt as usize).collect())
}

/// The name that a program was loaded under, at most 15 bytes of it.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    #[repr(C)]
    struct ById {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    #[repr(C)]
    struct Attr {
        bpf_fd: i32,
        info_len: u32,
        info: u64,
    }
    let program = new_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &ById { id, next_id: 0, open_flags: 0 })?;
    // SAFETY: plain numbers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let attr = Attr {
        bpf_fd: program.as_raw_fd(),
        info_len: size_of::<bpf_prog_info>() as u32,
        info: (&raw mut info) as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    let bytes = info.name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// What a link connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkInfo {
    /// To the cgroup of this id (its folder's inode), 0 when that is gone.
    Cgroup {
        id: u64,
        attach_type: u32,
    },
    /// To the network namespace of this inode, 0 when that is gone.
    Netns {
        inode: u32,
    },
    Other,
}

/// What a link connects, and the id of its program.
///
/// # Errors
/// Also when the descriptor is no link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<(LinkInfo, u32)> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        prog_id: u32,
        pad: u32,
        /// cgroup: id (u64), attach type; netns: inode, attach type.
        target: [u32; 4],
    }
    #[repr(C)]
    struct Attr {
        bpf_fd: i32,
        info_len: u32,
        info: u64,
    }
    // Maps and programs answer this command too, with something else.
    // A created link calls itself bpf_link, one from a pin bpf-link, and brackets came later.
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", link.as_raw_fd()))?;
    let name = kind.to_string_lossy();
    if !name.contains("bpf_link") && !name.contains("bpf-link") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is no link")));
    }
    let mut info = Info::default();
    let attr =
        Attr { bpf_fd: link.as_raw_fd(), info_len: size_of::<Info>() as u32, info: (&raw mut info) as u64 };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    let [first, second, third, _] = info.target;
    const CGROUP: u32 = 3;
    const NETNS: u32 = 5;
    let connects = match info.kind {
        CGROUP => LinkInfo::Cgroup {
            id: u64::from_ne_bytes(concat(first.to_ne_bytes(), second.to_ne_bytes())),
            attach_type: third,
        },
        NETNS => LinkInfo::Netns { inode: first },
        _ => LinkInfo::Other,
    };
    Ok((connects, info.prog_id))
}

/// Pins any object below a bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(bpf_cmd::BPF_OBJ_PIN, &PathAttr::new(&path, object.as_raw_fd())).map(drop)
}

/// Opens what is pinned.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    new_fd(bpf_cmd::BPF_OBJ_GET, &PathAttr::new(&path, 0))
}

/// A map of one value that programs only read, filled and frozen: what a compiler calls `.rodata`.
pub(super) fn read_only_data(data: &[u8]) -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    const RDONLY_PROG: u32 = 1 << 7;
    let size = u32::try_from(data.len()).map_err(io::Error::other)?;
    let map = map_create(ARRAY, 4, size, 1, RDONLY_PROG)?;
    let borrowed = std::os::fd::AsFd::as_fd(&map);
    map_update(borrowed, &0u32.to_ne_bytes(), data)?;
    #[repr(C)]
    struct Attr {
        map_fd: i32,
    }
    // Frozen, its content is a constant to the verifier, which removes what it rules out.
    bpf(bpf_cmd::BPF_MAP_FREEZE, &Attr { map_fd: map.as_raw_fd() })?;
    Ok(map)
}

pub(super) fn map_create(
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    new_fd(bpf_cmd::BPF_MAP_CREATE, &Attr { map_type, key_size, value_size, max_entries, map_flags })
}

/// Writes one element. The slices must have the map's sizes: callers hold typed values.
pub(super) fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &ElementAttr::new(map, key, value.as_ptr() as u64)).map(drop)
}

/// Reads one element into `value`, which must have the map's size.
pub(super) fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &ElementAttr::new(map, key, value.as_mut_ptr() as u64)).map(drop)
}

/// A program to load.
pub(super) struct Program<'a> {
    pub name: &'a str,
    pub program_type: u32,
    pub attach_type: u32,
    pub instructions: &'a [bpf_insn],
    pub license: &'a CString,
}

/// Loads a program.
///
/// # Errors
/// With the verifier's words when it is the verifier who refuses.
pub(super) fn load(program: &Program<'_>) -> Result<OwnedFd, (io::Error, String)> {
    match load_with_log(program, &mut []) {
        Ok(fd) => Ok(fd),
        Err(error) => {
            // A second try with a log: the first one spares every success the cost of it.
            let mut log = vec![0u8; 256 * 1024];
            let _ = load_with_log(program, &mut log);
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            Err((error, String::from_utf8_lossy(&log[..end]).trim_end().to_owned()))
        }
    }
}

fn load_with_log(program: &Program<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let mut prog_name = [0; 16];
    let length = program.name.len().min(15);
    prog_name[..length].copy_from_slice(&program.name.as_bytes()[..length]);
    let attr = Attr {
        prog_type: program.program_type,
        insn_cnt: program.instructions.len() as u32,
        insns: program.instructions.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: program.attach_type,
    };
    // The verifier gives way to signals with EAGAIN.
    let mut left = 5;
    loop {
        match new_fd(bpf_cmd::BPF_PROG_LOAD, &attr) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && left > 0 => left -= 1,
            result => return result,
        }
    }
}

#[repr(C)]
struct PathAttr {
    pathname: u64,
    bpf_fd: i32,
    file_flags: u32,
}

impl PathAttr {
    fn new(path: &CString, bpf_fd: i32) -> Self {
        Self { pathname: path.as_ptr() as u64, bpf_fd, file_flags: 0 }
    }
}

#[repr(C)]
struct ElementAttr {
    map_fd: i32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElementAttr {
    fn new(map: BorrowedFd<'_>, key: &[u8], value: u64) -> Self {
        Self { map_fd: map.as_raw_fd(), pad: 0, key: key.as_ptr() as u64, value, flags: 0 }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn concat(a: [u8; 4], b: [u8; 4]) -> [u8; 8] {
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

fn new_fd<T>(command: bpf_cmd, attr: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: these commands return a new descriptor (with O_CLOEXEC set), which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn bpf<T>(command: bpf_cmd, attr: &T) -> io::Result<libc::c_long> {
    call(command, std::ptr::from_ref(attr))
}

/// For a command that answers in its attribute.
fn bpf_mut<T>(command: bpf_cmd, attr: &mut T) -> io::Result<libc::c_long> {
    call(command, std::ptr::from_mut(attr))
}

fn call<T>(command: bpf_cmd, attr: *const T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` has the size that is passed with it, is laid out as the command's attribute, and
    // the addresses in it are those of live values for as long as the call lasts. Commands that write
    // do so only where a caller took a mutable borrow.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_link_is_not_taken_for_one() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = link_info(file.as_fd()).unwrap_err();
        assert!(error.to_string().contains("is no link"), "{error}");
    }

    #[test]
    fn a_path_with_a_nul_is_an_error() {
        assert!(open_pin(Path::new("/sys/fs/bpf/a\0b")).is_err());
    }
}
