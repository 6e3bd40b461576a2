//! The few file operations the write-ahead log needs, behind two small traits.
//!
//! `StdDisk` is the real one. The traits exist so that tests can run the log on a simulated disk
//! that fills up, fails to sync, writes short and loses power; they are not a storage abstraction.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::path::Path;

/// A directory tree. Paths are those of the options; names in answers are single components.
pub(super) trait Disk: Send {
    /// Creates a directory and its missing parents; one that exists is fine.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names and lengths of the regular files in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Creates a file to write, empty: an older one of this name is emptied.
    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Opens a file that exists, to read and write.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes this process may still write below a directory.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// An open file. All access is positional, so there is no seek position to keep right.
pub(super) trait LogFile: Send {
    fn len(&self) -> io::Result<u64>;
    /// May read less than asked; 0 only at the end of the file.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    /// May write less than asked.
    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// `fdatasync`: the data and the length are durable when it returns.
    fn sync(&self) -> io::Result<()>;
}

/// The operating system's file system.
pub(super) struct StdDisk;

impl Disk for StdDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        std::fs::create_dir_all(dir)?;
        match dir.parent() {
            Some(parent) if parent.as_os_str().is_empty() => self.sync_dir(Path::new(".")),
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                // A name that is not Unicode is none of ours, and its file is never opened.
                if let Ok(name) = entry.file_name().into_string() {
                    files.push((name, entry.metadata()?.len()));
                }
            }
        }
        Ok(files)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl LogFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, at)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(self, parts, at)?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// How many slices one `pwritev` may take (`IOV_MAX` on Linux).
const SLICES_MAX: usize = 1024;

/// Writes all of `parts` at an offset, through interruptions and short writes.
pub(super) fn write_all(file: &dyn LogFile, mut parts: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0); // Drops empty slices, which would read as "wrote nothing".
    while !parts.is_empty() {
        match file.write_at(&parts[..parts.len().min(SLICES_MAX)], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                at += n as u64;
                IoSlice::advance_slices(&mut parts, n);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Piece a failing read is retried in: a bad sector then costs one piece, not a whole window.
const READ_PIECE_BYTES: usize = 4096;

/// Fills `buf` from an offset. Bytes the disk cannot give (a medium error, a file that shrank) read
/// as zero, which no checksum takes for a record; the answer says whether all bytes are real.
pub(super) fn read_all(file: &dyn LogFile, buf: &mut [u8], at: u64) -> io::Result<bool> {
    let mut done = 0;
    let mut whole = true;
    while done < buf.len() {
        let end = if whole { buf.len() } else { buf.len().min(done + READ_PIECE_BYTES) };
        match file.read_at(&mut buf[done..end], at + done as u64) {
            Ok(0) => {
                buf[done..].fill(0);
                return Ok(false);
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                if end - done > READ_PIECE_BYTES {
                    whole = false; // Try again in pieces.
                    continue;
                }
                whole = false;
                buf[done..end].fill(0);
                done = end;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(whole)
}
