//! The admin socket: only root may open it, and a dead agent's leftover does not stand in the way.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use super::AdminError;

pub(super) struct UnixSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode, to know the file as ours when it is removed.
    file: (u64, u64),
}

impl UnixSocket {
    pub(super) fn bind(path: &Path) -> Result<Self, AdminError> {
        let fail = |call| move |source| AdminError::Socket { call, path: path.into(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(fail("create the folder of"))?;
        }
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(fail("open a socket for"))?;
        socket.set_nonblocking(true).map_err(fail("open a socket for"))?;
        let address = SockAddr::unix(path).map_err(fail("name"))?;
        socket.bind(&address).map_err(fail("bind"))?;
        // Nobody can connect before `listen`, so the mode is in force for everybody.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail("set the mode of"))?;
        socket.listen(BACKLOG).map_err(fail("listen on"))?;
        let file = identity_of(path).map_err(fail("look at"))?;
        let listener = UnixListener::from_std(socket.into()).map_err(fail("listen on"))?;
        Ok(Self { listener, path: path.into(), file })
    }
}

const BACKLOG: i32 = 32;

/// Removes a socket at which nobody listens any more; that there is none is fine.
///
/// # Errors
/// [`AdminError::InUse`] when somebody does listen.
pub fn remove_stale(path: &Path) -> Result<(), AdminError> {
    let fail = |call| move |source| AdminError::Socket { call, path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(fail("look at")(e)),
        Ok(found) if !found.file_type().is_socket() => return Err(AdminError::NotASocket(path.into())),
        Ok(_) => {}
    }
    match BlockingStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A listener whose backlog is full is a listener too.
        _ => return Err(AdminError::InUse(path.into())),
    }
    fs::remove_file(path).map_err(fail("remove the stale"))
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

impl Drop for UnixSocket {
    /// Removes the file, unless somebody has put another in its place.
    fn drop(&mut self) {
        if identity_of(&self.path).is_ok_and(|now| now == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
