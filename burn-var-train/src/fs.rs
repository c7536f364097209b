//! Files that are either the old ones or the new ones, never halves.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes `bytes` to `path` so that a reader, a crash or a full disk sees the old content or the new one.
///
/// The bytes go to a temporary name in the same folder, which must exist, and are synced before the rename.
///
/// # Errors
/// [`Error::Io`] naming `path`; what was there before is then untouched.
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    refuse_device(path)?;
    let temporary = temporary_name(path);
    let written = write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the error to report is the one above.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_dir(folder_of(path))).map_err(Error::io("write", path))
}

/// Refuses what is there and no file: a rename would put a file in the place of `/dev/null`.
pub(crate) fn refuse_device(path: &Path) -> Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let reason = io::Error::new(io::ErrorKind::InvalidInput, "it is no file but a folder or a device");
        return Err(Error::io("write", path)(reason));
    }
    Ok(())
}

/// Writes a file and waits until the device has it.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in a folder durable. Only Unix can open a folder; elsewhere the file system does it by itself.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The process id keeps two processes that write the same file (a shared cache) from writing into one temporary.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a.txt");
        atomic_write(&path, b"one").expect("first write");
        atomic_write(&path, b"two").expect("second write");
        assert_eq!(fs::read(&path).expect("read back"), b"two", "the second content replaces the first");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "no temporary file is left");
    }

    #[test]
    #[cfg(unix)]
    fn devices_stay_what_they_are() {
        let dir = tempfile::tempdir().expect("temporary folder");
        // A socket stands for what is no file: it can be made without rights.
        let path = dir.path().join("a.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let error = atomic_write(&path, b"one").expect_err("no file").to_string();
        assert!(error.contains("a.sock"), "{error}");
        assert!(!fs::metadata(&path).expect("still there").is_file(), "and it is what it was");
    }

    #[test]
    fn failure_keeps_the_old_content_and_names_the_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a.txt");
        atomic_write(&path, b"one").expect("first write");
        // A folder in the temporary's place makes its creation fail, also for root.
        fs::create_dir(temporary_name(&path)).expect("block the temporary");
        let error = atomic_write(&path, b"two").expect_err("the write must fail").to_string();
        assert!(error.contains("a.txt"), "the message names the file: {error}");
        assert_eq!(fs::read(&path).expect("read back"), b"one", "the old content is intact");
    }
}
