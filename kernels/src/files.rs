//! Files in the folder that the containers of a runner's pod share.
//!
//! The folder has the sticky bit, and the containers may have different users: another user's file can be emptied where
//! its mode allows it, not removed. And a job can put there what it likes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// For whatever user the job's image has: the folder is in no container of other pods, and what has this mode goes as
/// soon as it is read.
pub const OPEN: u32 = 0o666;
/// For all to read.
pub const READABLE: u32 = 0o644;
/// For all to run.
pub const PROGRAM: u32 = 0o755;

/// Writes a whole file or none, never readable by more than it should be. A file from an earlier try is replaced.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let partial = path.with_extension("partial");
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&partial)?;
    file.write_all(bytes)?;
    // The mode of creation is cut by the umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    fs::rename(&partial, path)
}

/// Listens on a socket in that folder, for whatever user the other container has. One of an earlier start is replaced.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(OPEN))?;
    Ok(listener)
}

/// What a file holds, at most `limit` bytes of it. What is no file, such as a pipe or a link, is not waited for.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![];
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Replaces the text of a file in place: a termination message is a mount and cannot be renamed over.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .create(true)
        .open(path)?
        .write_all(text)
}

/// Removes a secret, or empties it where another user's file cannot be removed.
pub fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            File::options().write(true).truncate(true).open(path)?;
            Ok(())
        }
        _ => Ok(()),
    }
}
