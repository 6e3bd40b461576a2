//! A disk in memory that misbehaves on command: full, short, failing to sync, and losing power.
//!
//! What was synced is kept apart from what was only written, for file contents and for directory
//! entries alike. It models a journaling file system, whose directory changes reach the disk in
//! order, on a device that writes 512-byte sectors in any order and may tear one.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::super::disk::{Disk, LogFile};

const SECTOR: usize = 512;

/// A small seeded generator (SplitMix64): the same seed gives the same disaster.
#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[derive(Debug, Clone, Default)]
struct Node {
    data: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug, Clone)]
enum DirOp {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl DirOp {
    fn apply(&self, dir: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, node) => {
                dir.insert(path.clone(), *node);
            }
            Self::Unlink(path) => {
                dir.remove(path);
            }
            Self::Rename(from, to) => {
                let node = dir.remove(from).expect("the journal is in order");
                dir.insert(to.clone(), node);
            }
        }
    }

    fn touches(&self, dir: &Path) -> bool {
        match self {
            Self::Link(path, _) | Self::Unlink(path) => path.parent() == Some(dir),
            Self::Rename(from, to) => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }
}

/// The disk and its faults.
#[derive(Debug)]
pub(super) struct State {
    nodes: Vec<Node>,
    dir: BTreeMap<PathBuf, usize>,
    durable_dir: BTreeMap<PathBuf, usize>,
    journal: Vec<DirOp>,
    /// Bytes all files together may take.
    pub(super) capacity: u64,
    /// The most one write takes.
    pub(super) write_max: usize,
    /// A write fails with this error once so many more bytes were written.
    pub(super) fail_write_after: Option<(usize, Errno)>,
    /// Syncs of files and directories fail once so many more succeeded; one failure, as in life.
    pub(super) fail_sync_after: Option<u32>,
    pub(super) fail_set_len: bool,
    /// Reads that touch this range of this file fail with EIO.
    pub(super) bad_sector: Option<(PathBuf, std::ops::Range<u64>)>,
    /// How many syncs there were.
    pub(super) syncs: u32,
}

#[derive(Debug, Clone)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

impl Default for SimDisk {
    fn default() -> Self {
        Self::from_image(&BTreeMap::new())
    }
}

impl SimDisk {
    /// A disk that holds these files, durably.
    pub(super) fn from_image(image: &BTreeMap<PathBuf, Vec<u8>>) -> Self {
        let nodes = image.values().map(|data| Node { data: data.clone(), durable: data.clone() }).collect();
        let dir: BTreeMap<_, _> = image.keys().cloned().zip(0..).collect();
        Self(Arc::new(Mutex::new(State {
            nodes,
            durable_dir: dir.clone(),
            dir,
            journal: Vec::new(),
            capacity: u64::MAX,
            write_max: usize::MAX,
            fail_write_after: None,
            fail_sync_after: None,
            fail_set_len: false,
            bad_sector: None,
            syncs: 0,
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What a reader sees now.
    pub(super) fn image(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        state.dir.iter().map(|(path, node)| (path.clone(), state.nodes[*node].data.clone())).collect()
    }

    /// Power goes and comes back: the disk holds what was synced and some of the rest.
    pub(super) fn lose_power(&self, dice: &mut Dice) {
        let mut state = self.state();
        let survived = dice.below(state.journal.len() + 1);
        let journal = std::mem::take(&mut state.journal);
        for op in &journal[..survived] {
            op.apply(&mut state.durable_dir);
        }
        state.dir = state.durable_dir.clone();
        for node in &mut state.nodes {
            if node.data != node.durable {
                node.data = torn(&node.durable, &node.data, dice);
                node.durable = node.data.clone();
            }
        }
    }
}

/// Some state between the synced and the written content of a file.
fn torn(old: &[u8], new: &[u8], dice: &mut Dice) -> Vec<u8> {
    let len = if new.len() > old.len() {
        match dice.below(3) {
            0 => old.len(),
            1 => new.len(),
            _ => old.len() + dice.below(new.len() - old.len()),
        }
    } else {
        [new.len(), old.len()][dice.below(2)]
    };
    let mut out = vec![0; len];
    for (i, sector) in out.chunks_mut(SECTOR).enumerate() {
        let tear = match dice.below(4) {
            0 => 0,
            1 => dice.below(SECTOR),
            _ => SECTOR,
        };
        for (j, byte) in sector.iter_mut().enumerate() {
            let at = i * SECTOR + j;
            let before = old.get(at).copied();
            let written = if j < tear { new.get(at).copied() } else { None };
            *byte = written.or(before).unwrap_or(0);
        }
    }
    out
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    node: usize,
}

impl State {
    fn used(&self) -> u64 {
        self.dir.values().map(|node| self.nodes[*node].data.len() as u64).sum()
    }

    fn sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        match &mut self.fail_sync_after {
            Some(0) => {
                self.fail_sync_after = None;
                Err(Errno::IO.into())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let state = self.state();
        let inside = state.dir.iter().filter(|(path, _)| path.parent() == Some(dir));
        Ok(inside
            .map(|(path, node)| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, state.nodes[*node].data.len() as u64)
            })
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let mut state = self.state();
        state.nodes.push(Node::default());
        let node = state.nodes.len() - 1;
        let op = DirOp::Link(path.to_owned(), node);
        op.apply(&mut state.dir);
        state.journal.push(op);
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), node }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let node = *self.state().dir.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), node }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.dir.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let op = DirOp::Rename(from.to_owned(), to.to_owned());
        op.apply(&mut state.dir);
        state.journal.push(op);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.dir.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.journal.push(DirOp::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.sync()?;
        let until = state.journal.iter().rposition(|op| op.touches(dir)).map_or(0, |i| i + 1);
        let done: Vec<DirOp> = state.journal.drain(..until).collect();
        for op in done {
            op.apply(&mut state.durable_dir);
        }
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.state();
        Ok(state.capacity.saturating_sub(state.used()))
    }
}

impl LogFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().nodes[self.node].data.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.state();
        if let Some((path, bad)) = &state.bad_sector
            && *path == self.path
            && at < bad.end
            && at + buf.len() as u64 > bad.start
        {
            return Err(Errno::IO.into());
        }
        let data = &state.nodes[self.node].data;
        let from = (at as usize).min(data.len());
        let n = buf.len().min(data.len() - from);
        buf[..n].copy_from_slice(&data[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let bytes: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
        let mut state = self.disk.state();
        let mut n = bytes.len().min(state.write_max);
        if let Some((left, error)) = &mut state.fail_write_after {
            if *left == 0 {
                let error = *error;
                state.fail_write_after = None;
                return Err(error.into());
            }
            n = n.min(*left);
            *left -= n;
        }
        let old_len = state.nodes[self.node].data.len();
        let free = state.capacity.saturating_sub(state.used());
        let room = (old_len as u64 + free).saturating_sub(at);
        n = n.min(usize::try_from(room).unwrap_or(usize::MAX));
        if n == 0 && !bytes.is_empty() {
            return Err(Errno::NOSPC.into());
        }
        let at = at as usize;
        let data = &mut state.nodes[self.node].data;
        data.resize(old_len.max(at + n), 0);
        data[at..at + n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.fail_set_len {
            return Err(Errno::IO.into());
        }
        state.nodes[self.node].data.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.sync()?;
        let node = &mut state.nodes[self.node];
        node.durable = node.data.clone();
        Ok(())
    }
}
