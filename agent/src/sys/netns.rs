//! Network namespaces: open one by path, work in it for a moment, know it by its cookie.

use std::fs::{File, OpenOptions};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns};

use super::{Named, SysError};
use crate::model::NetnsCookie;

/// An open network namespace. The descriptor keeps it alive.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    inode: u64,
    cookie: NetnsCookie,
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/NAME`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// When the path cannot be opened, or is not a network namespace.
    pub fn open(path: &Path) -> Result<Self, SysError> {
        // A pipe, which is what an operator's mistake may name, would wait for its writer.
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = open.named("open", || path.display().to_string())?;
        let inode = file.metadata().named("fstat", || path.display().to_string())?.ino();
        let cookie = within(file.as_fd(), path, own_cookie)??;
        Ok(Self { file, path: path.into(), inode, cookie })
    }

    /// The kernel's name for the namespace, by which the eBPF programs know it.
    pub fn cookie(&self) -> NetnsCookie {
        self.cookie
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether this is the namespace that the process itself lives in.
    pub fn is_home(&self) -> bool {
        home().is_ok_and(|h| h.metadata().is_ok_and(|m| m.ino() == self.inode))
    }

    /// Whether `path` now names another namespace than the one that is open here (a sandbox that was
    /// made anew under the same name), or nothing at all.
    pub fn is_stale(&self) -> bool {
        std::fs::metadata(&self.path).map_or(true, |m| m.ino() != self.inode)
    }

    /// Runs `f` inside the namespace, on this thread, and comes back. `f` must not await, and sockets
    /// that it makes stay in the namespace.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> Result<T, SysError> {
        within(self.fd(), &self.path, f)
    }

    /// The addresses on the namespace's interfaces, loopback's 127/8 and ::1 left out.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, SysError> {
        self.run(|| {
            let all = nix::ifaddrs::getifaddrs().named("getifaddrs", || self.path.display().to_string())?;
            let mut found: Vec<IpAddr> = all
                .filter_map(|i| i.address)
                .filter_map(|a| {
                    a.as_sockaddr_in()
                        .map(|v4| IpAddr::V4(v4.ip()))
                        .or_else(|| a.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
                })
                .filter(|a| !a.is_loopback())
                .collect();
            found.sort_unstable();
            found.dedup();
            Ok(found)
        })?
    }
}

/// Remembers the namespace that the process was started in. Called once, first thing in `main`.
///
/// # Errors
/// When `/proc` is not mounted or not readable.
pub fn remember_home() -> Result<(), SysError> {
    home().map(|_| ())
}

/// The cookie of the namespace that the process was started in.
pub fn home_cookie() -> Result<NetnsCookie, SysError> {
    own_cookie()
}

fn home() -> Result<&'static File, SysError> {
    static HOME: OnceLock<File> = OnceLock::new();
    if let Some(file) = HOME.get() {
        return Ok(file);
    }
    // The process's namespace, not the thread's: another thread may be inside a pod just now.
    let path = "/proc/self/ns/net";
    let file = File::open(path).named("open", || path.into())?;
    Ok(HOME.get_or_init(|| file))
}

fn within<T>(fd: BorrowedFd<'_>, path: &Path, f: impl FnOnce() -> T) -> Result<T, SysError> {
    let home = home()?;
    setns(fd, CloneFlags::CLONE_NEWNET).named("setns", || path.display().to_string())?;
    let _back = Back(home);
    Ok(f())
}

/// Brings the thread home, also when the work panicked.
struct Back(&'static File);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(e) = setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET) {
            // A worker thread left in a pod's namespace would open the next pod's sockets there.
            eprintln!(
                "underpass: setns back to the host's namespace: {e}; giving up rather than mixing pods"
            );
            std::process::abort();
        }
    }
}

fn own_cookie() -> Result<NetnsCookie, SysError> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)
        .named("socket", || "AF_UNIX".into())?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `cookie`, which is that large.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        let e = std::io::Error::last_os_error();
        return Err(SysError::new("getsockopt", "SO_NETNS_COOKIE, which needs Linux 5.14", e));
    }
    Ok(NetnsCookie(cookie))
}

/// asm-generic/socket.h; Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
