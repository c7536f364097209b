//! Files that hold either the old content or the new, never a part.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Writes `bytes` to `path` so that a reader, a crash or a full disk sees the old content or the new one.
///
/// The bytes go to a temporary file in the same folder, which must exist, and are synced before the rename.
///
/// # Errors
/// [`Error::Io`] naming `path`; what was there before is then untouched.
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    refuse_device(path)?;
    let write = || {
        let mut file = temporary_beside(path)?;
        file.write_all(bytes)?;
        put_in_place(file, path)
    };
    write().map_err(Error::io("write", path))
}

/// Refuses to replace a folder or a device: the rename would put a file in the place of `/dev/null`.
pub(crate) fn refuse_device(path: &Path) -> Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let reason = io::Error::new(io::ErrorKind::InvalidInput, "it is a folder or a device, not a file");
        return Err(Error::io("write", path)(reason));
    }
    Ok(())
}

/// Creates a hidden file in the folder of `path`, which is removed on drop unless [`put_in_place`] renames it.
///
/// A killed process leaves it behind; nothing reads it.
pub(crate) fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".burn-var-").suffix(".tmp");
    // By default only the owner may read it. The file that it becomes gets what the umask allows, as any other file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder_of(path))
}

/// Syncs a complete temporary file and renames it to `path`.
pub(crate) fn put_in_place(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_dir(folder_of(path))
}

/// Writes a file and waits until the device has it.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in a folder durable. Only Unix can open a folder; elsewhere the file system does this itself.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

/// Returns the folder that holds `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
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
    fn names_may_have_the_length_that_the_system_allows() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a".repeat(255));
        atomic_write(&path, b"one").expect("a name of 255 bytes");
        assert_eq!(fs::read(&path).expect("read back"), b"one");
    }

    #[test]
    #[cfg(unix)]
    fn permissions_are_those_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().expect("temporary folder");
        let mode = |name: &str| fs::metadata(dir.path().join(name)).expect("there").permissions().mode();
        File::create(dir.path().join("plain")).expect("created");
        atomic_write(dir.path().join("atomic"), b"one").expect("written");
        assert_eq!(mode("atomic"), mode("plain"), "what the umask allows");
    }

    #[test]
    #[cfg(unix)]
    fn devices_stay_what_they_are() {
        let dir = tempfile::tempdir().expect("temporary folder");
        // A socket stands for a device: creating one takes no rights.
        let path = dir.path().join("a.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let error = atomic_write(&path, b"one").expect_err("not a file").to_string();
        assert!(error.contains("a.sock"), "{error}");
        assert!(!fs::metadata(&path).expect("still there").is_file(), "it is still a socket");
    }

    #[test]
    fn failure_keeps_the_old_content_and_names_the_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a.txt");
        atomic_write(&path, b"one").expect("first write");
        let mut file = temporary_beside(&path).expect("created");
        file.write_all(b"half").expect("written");
        drop(file);
        assert_eq!(fs::read(&path).expect("read back"), b"one", "the old content is intact");
        // A folder in the way makes the rename fail, for root too.
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).expect("created");
        let file = temporary_beside(&folder).expect("created");
        put_in_place(file, &folder).expect_err("a folder is not replaced");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 2, "no temporary file is left");
        let error = atomic_write(dir.path().join("none/b.txt"), b"two").expect_err("no folder").to_string();
        assert!(error.contains("b.txt"), "the message names the file: {error}");
    }
}
