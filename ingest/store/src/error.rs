//! What can go wrong in the store, in one enum.
//!
//! [`StoreError::is_for_good`] and [`StoreError::is_fatal`] say what to do about a refused group; a
//! caller needs nothing else to choose between a 503, a 500 and the end of the process. Not here: the
//! write-ahead log's own errors ([`crate::wal::WalError`]) and the bytes of a record
//! ([`crate::record::RecordError`]), which this enum carries.

use std::io;
use std::path::{Path, PathBuf};

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

use crate::record::RecordError;
use crate::wal::WalError;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The write-ahead log refused or failed.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// A record could not be encoded or decoded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Unflushed rows take all the memory they may; a flush makes room.
    #[error("unflushed rows take {bytes} bytes of the {max} bytes they may take")]
    MemoryFull {
        /// Bytes taken now.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Another process owns the data directory.
    #[error("data directory {} is in use by {}", path.display(), match holder { Some(pid) => format!("process {pid}"), None => "another process".to_owned() })]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The process that holds the lock, when it left its number.
        holder: Option<u32>,
    },
    /// A stored format is of a later release.
    #[error("{} has format version {found}, this release reads up to {supported}", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this release reads.
        supported: u32,
    },
    /// `FORMAT` is not what this program writes.
    #[error("{} is not a data directory: its FORMAT file says `{found}`", path.display())]
    NotADataDirectory {
        /// The data directory.
        path: PathBuf,
        /// What the file says, cut to a length that fits a log line.
        found: String,
    },
    /// There are segments but no manifest that lists them; a new one would orphan them all.
    #[error("{} is missing, but {} holds segments; restore the manifest or move them away", manifest.display(), segments.display())]
    ManifestMissing {
        /// Where the manifest should be.
        manifest: PathBuf,
        /// The folder of the segments.
        segments: PathBuf,
    },
    /// `PRAGMA quick_check` found damage.
    #[error("manifest {} is damaged: {reason}", path.display())]
    ManifestDamaged {
        /// The manifest.
        path: PathBuf,
        /// What the check said, or which value is impossible.
        reason: String,
    },
    /// SQLite failed.
    #[error("cannot {op} in the manifest: {source}")]
    Manifest {
        /// What was tried.
        op: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// A file operation failed.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A segment could not be written or read as Parquet.
    #[error("cannot {op} segment {}: {source}", path.display())]
    Parquet {
        /// What was tried.
        op: &'static str,
        /// The segment's file.
        path: PathBuf,
        /// Why it failed.
        source: ParquetError,
    },
    /// Rows could not be sorted, joined or merged.
    #[error("cannot {op}: {source}")]
    Arrow {
        /// What was tried.
        op: &'static str,
        /// Why it failed.
        source: ArrowError,
    },
    /// An entry's batch does not have its table's schema.
    #[error("a batch for table `{table}` does not have that table's schema")]
    SchemaMismatch {
        /// The table.
        table: &'static str,
    },
    /// The sink did not store a cut; it is tried again.
    #[error("cannot store rows of `{table}`: {source}")]
    Sink {
        /// The table.
        table: &'static str,
        /// Why.
        source: crate::sink::SinkError,
    },
    /// A test asked the store to stop here, as a crash would.
    #[cfg(test)]
    #[error("stopped at {step}")]
    Stopped {
        /// Where.
        step: String,
    },
}

impl StoreError {
    /// The same call may work later, without a restart: no room, or a busy manifest.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Wal(error) => error.is_retryable(),
            Self::MemoryFull { .. } => true,
            Self::Io { source, .. } => is_full(source),
            Self::Parquet { source: ParquetError::External(inner), .. } => {
                inner.downcast_ref::<io::Error>().is_some_and(is_full)
            }
            Self::Manifest { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::DatabaseBusy)
            ),
            _ => false,
        }
    }

    /// The same group would be refused however often it came: it is at fault, and not the disk. Any
    /// other error, also one that does not heal by itself (no file handles, a read-only file
    /// system), leaves the group with its sender, who may keep it until somebody has helped.
    #[must_use]
    pub const fn is_for_good(&self) -> bool {
        matches!(self, Self::Wal(WalError::RecordTooLarge { .. }) | Self::Record(_) | Self::SchemaMismatch { .. })
    }

    /// Nothing may be acknowledged any more; the process must end.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Wal(error) if error.is_fatal())
    }

    /// A test stopped the store here: nothing may be tidied up, as after a crash.
    pub(crate) const fn is_stop(&self) -> bool {
        #[cfg(test)]
        let stop = matches!(self, Self::Stopped { .. });
        #[cfg(not(test))]
        let stop = false;
        stop
    }

    pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, path: path.to_owned(), source }
    }

    pub(crate) fn parquet(op: &'static str, path: &Path) -> impl FnOnce(ParquetError) -> Self {
        move |source| Self::Parquet { op, path: path.to_owned(), source }
    }

    pub(crate) fn arrow(op: &'static str) -> impl FnOnce(ArrowError) -> Self {
        move |source| Self::Arrow { op, source }
    }

    pub(crate) fn manifest(op: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Manifest { op, source }
    }
}

/// Whether a file that gives this error is damaged or gone, and not just out of reach for now: a
/// wrong permission or a lack of file handles must never set data aside.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// No space, no quota, or the file size limit.
fn is_full(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lack_of_room_heals_and_only_a_fault_of_its_own_condemns_a_group() {
        let io = |errno: rustix::io::Errno| StoreError::io("write", Path::new("x"))(errno.into());
        let external = |errno: rustix::io::Errno| {
            StoreError::parquet("write", Path::new("x"))(ParquetError::External(Box::new(io::Error::from(errno))))
        };
        for (error, retryable) in [
            (io(rustix::io::Errno::NOSPC), true),
            (io(rustix::io::Errno::DQUOT), true),
            (io(rustix::io::Errno::IO), false),
            (external(rustix::io::Errno::NOSPC), true),
            (external(rustix::io::Errno::IO), false),
            (StoreError::MemoryFull { bytes: 2, max: 1 }, true),
            (StoreError::SchemaMismatch { table: "spans" }, false),
        ] {
            assert_eq!(error.is_retryable(), retryable, "{error}");
            assert!(!error.is_fatal(), "{error}");
        }
        let unwritable = || WalError::Io { op: "append to", path: "x".into(), source: rustix::io::Errno::MFILE.into() };
        for (error, for_good) in [
            (StoreError::from(WalError::RecordTooLarge { bytes: 2, max: 1 }), true),
            (StoreError::from(unwritable()), false),
            (io(rustix::io::Errno::ROFS), false),
            (StoreError::MemoryFull { bytes: 2, max: 1 }, false),
        ] {
            assert_eq!(error.is_for_good(), for_good, "{error}");
        }
        let fatal = WalError::SyncFailed { path: "x".into(), reason: "EIO".to_owned() };
        assert!(StoreError::from(fatal).is_fatal());
    }
}
