//! Asking a segment's filters which blocks may hold what a predicate needs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use parquet::file::metadata::ParquetMetaDataReader;

use super::{
    BUCKET_BYTES, CHECKSUM_BYTES, ColumnFilters, Directory, METADATA_FILTERS, SECTION_BLOCKS, VERSION, bits_of,
    blocks_of_section, bucket_of, checksum,
};

/// What a row must have for a predicate to hold, as far as filters can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// All of these.
    All(Vec<Need>),
    /// One of these.
    Any(Vec<Need>),
    /// A value with all of these keys in one column of the file. Where the file has no filter of that
    /// column, every block may hold it.
    Keys {
        /// The column's name in the file: the table's, or that of a promoted column.
        column: String,
        /// See [`super::keys`].
        keys: Vec<u64>,
    },
}

impl Need {
    /// How many keys are asked for.
    #[must_use]
    pub fn keys(&self) -> usize {
        match self {
            Self::All(needs) | Self::Any(needs) => needs.iter().map(Self::keys).sum(),
            Self::Keys { keys, .. } => keys.len(),
        }
    }
}

/// Why filters cannot be used. The rows can be read all the same.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The segment.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What is there is not what was written.
    #[error("the block filters of {} are damaged: {what}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// Blocks of a file, some of them chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// A word for each section.
    sections: Vec<u64>,
    blocks: usize,
    block_rows: usize,
    rows: usize,
}

impl Blocks {
    /// All blocks of the file.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.blocks
    }

    /// The chosen ones.
    #[must_use]
    pub fn chosen(&self) -> usize {
        self.sections.iter().map(|section| section.count_ones() as usize).sum()
    }

    /// The rows of the chosen blocks, neighbours joined, in order.
    #[must_use]
    pub fn row_ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for block in 0..self.blocks {
            if self.sections[block / SECTION_BLOCKS] >> (block % SECTION_BLOCKS) & 1 == 0 {
                continue;
            }
            let start = block * self.block_rows;
            let end = (start + self.block_rows).min(self.rows);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }
}

/// The filters of one segment: where they are, not what is in them.
#[derive(Debug)]
pub struct BlockFilters {
    path: PathBuf,
    pub(super) directory: Directory,
    blocks: usize,
    rows: usize,
}

impl BlockFilters {
    /// Looks them up in a segment's footer. `None` when it has none that this version knows.
    ///
    /// # Errors
    /// When the file cannot be read, or what its footer says of them cannot be.
    pub fn open(path: &Path) -> Result<Option<Self>, FilterError> {
        let damaged = |what: String| FilterError::Damaged { path: path.to_owned(), what };
        let file = File::open(path).map_err(|source| FilterError::Io { path: path.to_owned(), source })?;
        let footer =
            ParquetMetaDataReader::new().parse_and_finish(&file).map_err(|error| damaged(error.to_string()))?;
        let footer = footer.file_metadata();
        let entry = footer.key_value_metadata().and_then(|all| all.iter().find(|entry| entry.key == METADATA_FILTERS));
        let Some(directory) = entry.and_then(|entry| entry.value.as_deref()) else { return Ok(None) };
        let directory: Directory = serde_json::from_str(directory).map_err(|error| damaged(error.to_string()))?;
        if directory.version != VERSION {
            return Ok(None);
        }
        let rows = usize::try_from(directory.rows).unwrap_or(usize::MAX);
        let blocks = rows.div_ceil(directory.block_rows.max(1));
        let sections = blocks.div_ceil(SECTION_BLOCKS);
        if i64::try_from(rows) != Ok(footer.num_rows())
            || directory.block_rows == 0
            || directory.filters.iter().any(|filter| filter.sections.len() != sections)
        {
            return Err(damaged("their directory is not that of these rows".to_owned()));
        }
        Ok(Some(Self { path: path.to_owned(), directory, blocks, rows }))
    }

    /// Memory of this, bytes, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let of_filter = |filter: &ColumnFilters| {
            size_of::<ColumnFilters>() + filter.column.len() + filter.sections.len() * size_of::<Option<(u64, u32)>>()
        };
        size_of::<Self>() + self.path.as_os_str().len() + self.directory.filters.iter().map(of_filter).sum::<usize>()
    }

    /// The blocks in which rows may have what is needed: at least every block that has such a row.
    ///
    /// # Errors
    /// When the filters cannot be read, or are not what was written.
    pub fn blocks(&self, need: &Need) -> Result<Blocks, FilterError> {
        let file = File::open(&self.path).map_err(|source| self.io(source))?;
        let sections = self.blocks.div_ceil(SECTION_BLOCKS);
        let sections = (0..sections).map(|section| self.section(&file, section, need)).collect::<Result<_, _>>()?;
        Ok(Blocks { sections, blocks: self.blocks, block_rows: self.directory.block_rows, rows: self.rows })
    }

    fn io(&self, source: io::Error) -> FilterError {
        FilterError::Io { path: self.path.clone(), source }
    }

    fn section(&self, file: &File, section: usize, need: &Need) -> Result<u64, FilterError> {
        let blocks = blocks_of_section(self.blocks, section);
        let all = u64::MAX >> (SECTION_BLOCKS - blocks);
        match need {
            Need::All(needs) => {
                let mut found = all;
                for need in needs {
                    if found == 0 {
                        break;
                    }
                    found &= self.section(file, section, need)?;
                }
                Ok(found)
            }
            Need::Any(needs) => {
                let mut found = 0;
                for need in needs {
                    if found == all {
                        break;
                    }
                    found |= self.section(file, section, need)?;
                }
                Ok(found)
            }
            Need::Keys { column, keys } => {
                let filter = self.directory.filters.iter().find(|filter| filter.column == *column);
                let Some((at, buckets)) = filter.and_then(|filter| filter.sections[section]) else { return Ok(all) };
                let mut found = all;
                for key in keys {
                    if found == 0 {
                        break;
                    }
                    let bucket = bucket_of(*key, buckets);
                    let lanes = self.read_bucket(file, column, section, (at, buckets), bucket, blocks)?;
                    let bits = bits_of(*key);
                    for (block, lane) in lanes.chunks_exact(BUCKET_BYTES).enumerate() {
                        let words = lane.as_chunks::<4>().0;
                        if !words.iter().zip(bits).all(|(word, bit)| u32::from_le_bytes(*word) & bit != 0) {
                            found &= !(1 << block);
                        }
                    }
                }
                Ok(found)
            }
        }
    }

    /// One bucket of every block of a section.
    fn read_bucket(
        &self,
        file: &File,
        column: &str,
        section: usize,
        (at, buckets): (u64, u32),
        bucket: usize,
        blocks: usize,
    ) -> Result<Vec<u8>, FilterError> {
        let lanes = blocks * BUCKET_BYTES;
        let mut bytes = vec![0; lanes + CHECKSUM_BYTES];
        let damaged = |what: &str| FilterError::Damaged {
            path: self.path.clone(),
            what: format!("{what} in section {section} of `{column}`"),
        };
        let offset = (bucket as u64).checked_mul(bytes.len() as u64).and_then(|offset| offset.checked_add(at));
        let offset = offset.ok_or_else(|| damaged("an offset beyond all files"))?;
        file.read_exact_at(&mut bytes, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => damaged("an offset beyond the file"),
            _ => self.io(source),
        })?;
        let sum = bytes.split_off(lanes);
        if sum != checksum(column, section, blocks, buckets, bucket, &bytes) {
            return Err(damaged("a wrong checksum"));
        }
        Ok(bytes)
    }
}
