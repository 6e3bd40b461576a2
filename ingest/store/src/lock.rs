//! The data directory: its layout, its version, and the lock that keeps a second process out.
//!
//! Not here: what is inside the files. The lock is the operating system's (`flock`), so it is gone
//! with the process, however that ends; the number in `LOCK` is only for the message.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use model::derived::DerivedTable;
use model::signal::Table;
use model::tenant::TenantId;
use rustix::fs::{FlockOperation, flock};

use crate::error::StoreError;

/// The version of the directory's layout, in `FORMAT`.
pub(crate) const LAYOUT_VERSION: u32 = 1;

const FORMAT_PREFIX: &str = "godseye ";

/// A version file that is longer than this is none of ours, bytes.
const FORMAT_BYTES_MAX: u64 = 64;

/// A data directory that this process owns.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    /// Holds the lock until it is dropped.
    _lock: File,
}

impl DataDir {
    /// Creates the directory when it is missing, takes its lock, and checks its version.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        create_dir_durably(root)?;
        let lock = take_lock(root)?;
        let dir = Self { root: root.to_owned(), _lock: lock };
        dir.check_format()?;
        for part in [dir.segments(), dir.quarantine()] {
            create_dir_durably(&part)?;
        }
        Ok(dir)
    }

    /// The folder of the write-ahead log.
    pub(crate) fn wal(&self) -> PathBuf {
        self.root.join("wal")
    }

    /// The folder of all segments.
    pub(crate) fn segments(&self) -> PathBuf {
        self.root.join("segments")
    }

    /// The folder of the segments of one tenant and table.
    pub(crate) fn segment_dir(&self, tenant: &TenantId, table: Table) -> PathBuf {
        self.segments().join(tenant.as_str()).join(table.name())
    }

    /// The folder of the segments of one tenant and derived table.
    pub(crate) fn derived_dir(&self, tenant: &TenantId, table: DerivedTable) -> PathBuf {
        self.segments().join(tenant.as_str()).join(table.name())
    }

    /// The manifest.
    pub(crate) fn manifest(&self) -> PathBuf {
        self.root.join("manifest.sqlite")
    }

    /// What was set aside.
    pub(crate) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Bytes this process may still write; everything when the file system cannot tell.
    pub(crate) fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.root).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let path = self.root.join("FORMAT");
        let mut found = String::new();
        match File::open(&path).and_then(|file| file.take(FORMAT_BYTES_MAX).read_to_string(&mut found)) {
            Ok(_) => {
                let version = found.trim().strip_prefix(FORMAT_PREFIX).and_then(|number| number.parse::<u32>().ok());
                match version {
                    Some(version) if version > LAYOUT_VERSION => {
                        Err(StoreError::NewerFormat { path, found: version, supported: LAYOUT_VERSION })
                    }
                    Some(_) => Ok(()),
                    None => {
                        Err(StoreError::NotADataDirectory { path: self.root.clone(), found: found.trim().to_owned() })
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!("{FORMAT_PREFIX}{LAYOUT_VERSION}\n");
                // Under its final name the file is whole or not there at all.
                let temporary = self.root.join("FORMAT.tmp");
                let written = File::create(&temporary).and_then(|mut file| {
                    file.write_all(text.as_bytes())?;
                    file.sync_all()
                });
                written.map_err(StoreError::io("write", &temporary))?;
                std::fs::rename(&temporary, &path).map_err(StoreError::io("create", &path))?;
                sync_dir(&self.root)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(StoreError::NotADataDirectory {
                path: self.root.clone(),
                found: "bytes that are not text".to_owned(),
            }),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }
}

fn take_lock(root: &Path) -> Result<File, StoreError> {
    let path = root.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let holder = (&file)
                .take(FORMAT_BYTES_MAX)
                .read_to_string(&mut holder)
                .ok()
                .and_then(|_| holder.trim().parse().ok());
            return Err(StoreError::Locked { path: root.to_owned(), holder });
        }
        Err(errno) => return Err(StoreError::io("lock", &path)(errno.into())),
    }
    // The number helps whoever is refused; a full disk is no reason not to start.
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    if let Err(error) = noted {
        tracing::debug!(path = %path.display(), %error, "cannot write the process number into the lock file");
    }
    Ok(file)
}

/// Makes what happened to the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(StoreError::io("sync", dir))
}

/// Creates a directory and its missing parents, durably.
pub(crate) fn create_dir_durably(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir_durably(parent)?;
    }
    match std::fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(StoreError::io("create", dir)(error)),
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_dir(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_refused_by_name() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("a/b");
        let first = DataDir::open(&root).unwrap();
        match DataDir::open(&root) {
            Err(error @ StoreError::Locked { holder, .. }) => {
                assert_eq!(holder, Some(std::process::id()));
                assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
            }
            other => panic!("expected a refusal, found {other:?}"),
        }
        drop(first);
        DataDir::open(&root).unwrap();
    }

    #[test]
    fn other_versions_and_other_directories_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        drop(DataDir::open(root).unwrap());
        for (text, check) in [
            (
                &b"godseye 2\n"[..],
                (|error| matches!(error, StoreError::NewerFormat { found: 2, .. })) as fn(StoreError) -> bool,
            ),
            (b"postgres 15\n", |error| matches!(error, StoreError::NotADataDirectory { .. })),
            (b"", |error| matches!(error, StoreError::NotADataDirectory { .. })),
            (b"\xff\xfe", |error| matches!(error, StoreError::NotADataDirectory { .. })),
        ] {
            std::fs::write(root.join("FORMAT"), text).unwrap();
            assert!(check(DataDir::open(root).unwrap_err()), "{text:?}");
        }
    }
}
