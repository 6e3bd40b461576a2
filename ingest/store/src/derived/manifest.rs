//! The derived tables in the manifest: deltas with their rows, segments, and by which rules each
//! tenant's are derived.
//!
//! A delta is what one flush of spans adds. Its rows are a value of the manifest itself, so that
//! they are there when the segment of those spans is, and cost no file and no sync of their own.
//! Not here: the base tables ([`crate::manifest`]).

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::max;
use arrow::datatypes::TimestampNanosecondType;
use arrow::error::ArrowError;
use arrow_ipc::CompressionType;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use model::derived::{DerivedTable, RULES_VERSION, schema};
use model::tenant::TenantId;
use model::time::Timestamp;
use rusqlite::{Transaction, params};

use super::segment::DerivedMeta;
use crate::error::StoreError;
use crate::manifest::{Manifest, begin, signed};

/// The rules' version of a tenant whose tables are to be derived anew.
const STALE: u32 = 0;

/// The part of a migration that makes the derived tables. Spans that are there already are
/// underived: their tenants' tables start as stale.
pub(crate) const MIGRATION: &str = "
    CREATE TABLE derived_tenants (
        tenant        TEXT PRIMARY KEY,
        rules_version INTEGER NOT NULL -- 0: to be derived anew
    ) STRICT, WITHOUT ROWID;
    INSERT INTO derived_tenants (tenant, rules_version) SELECT DISTINCT tenant, 0 FROM segments WHERE table_number = 1;
    CREATE TABLE derived_deltas (
        id            INTEGER PRIMARY KEY,
        tenant        TEXT NOT NULL,
        table_number  INTEGER NOT NULL,
        rules_version INTEGER NOT NULL,
        created_at    INTEGER NOT NULL,
        rows          BLOB NOT NULL
    ) STRICT;
    CREATE TABLE derived_segments (
        id            INTEGER PRIMARY KEY,
        tenant        TEXT NOT NULL,
        table_number  INTEGER NOT NULL,
        rules_version INTEGER NOT NULL,
        rows          INTEGER NOT NULL,
        bytes         INTEGER NOT NULL,
        min_time      INTEGER NOT NULL,
        max_time      INTEGER NOT NULL,
        created_at    INTEGER NOT NULL,
        checksum      INTEGER NOT NULL
    ) STRICT;
";

/// What one flush of a tenant's spans adds to a derived table.
#[derive(Debug)]
pub(crate) struct Delta {
    /// Its number, unique among all segments and deltas.
    pub(crate) id: u64,
    pub(crate) tenant: TenantId,
    pub(crate) table: DerivedTable,
    pub(crate) created_at: Timestamp,
    /// Partial rows of the finest resolution.
    pub(crate) rows: RecordBatch,
}

impl Delta {
    /// The time its age is reckoned from, as [`DerivedMeta::age_time`].
    pub(crate) fn age_time(&self) -> Timestamp {
        let times =
            self.rows.column_by_name("time").and_then(|times| times.as_primitive_opt::<TimestampNanosecondType>());
        let latest = times.and_then(max).unwrap_or(i64::MAX);
        Timestamp(latest).min(self.created_at)
    }
}

/// The derived part of the manifest at start.
#[derive(Debug, Default)]
pub(crate) struct LoadedDerived {
    /// Tenants whose tables are to be derived anew.
    pub(crate) stale: Vec<TenantId>,
    pub(crate) deltas: Vec<Arc<Delta>>,
    pub(crate) segments: Vec<DerivedMeta>,
}

fn encode(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), rows.schema_ref(), options)?;
    writer.write(rows)?;
    writer.into_inner()
}

fn decode(table: DerivedTable, bytes: &[u8]) -> Result<RecordBatch, ArrowError> {
    let mut reader = StreamReader::try_new(Cursor::new(bytes), None)?;
    let rows = reader.next().ok_or_else(|| ArrowError::IpcError("a delta without rows".to_owned()))??;
    if rows.schema().fields() == schema(table).fields() {
        Ok(rows)
    } else {
        Err(ArrowError::SchemaError(format!("a delta of {table} has other columns")))
    }
}

/// Adds what a flush adds, in its transaction.
pub(crate) fn insert_deltas(transaction: &Transaction<'_>, deltas: &[Arc<Delta>]) -> Result<(), StoreError> {
    let error = StoreError::manifest;
    for delta in deltas {
        let rows = encode(&delta.rows).map_err(StoreError::arrow("encode derived rows"))?;
        // A tenant's first spans: its tables are complete from the start.
        transaction
            .execute(
                "INSERT INTO derived_tenants (tenant, rules_version) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                params![delta.tenant.as_str(), RULES_VERSION],
            )
            .map_err(error("note a tenant"))?;
        transaction
            .execute(
                "INSERT INTO derived_deltas (id, tenant, table_number, rules_version, created_at, rows)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    signed(delta.id),
                    delta.tenant.as_str(),
                    delta.table as u8,
                    RULES_VERSION,
                    delta.created_at.0,
                    rows
                ],
            )
            .map_err(error("insert derived rows"))?;
        raise_next_id(transaction, delta.id)?;
    }
    Ok(())
}

fn insert_segment(transaction: &Transaction<'_>, meta: &DerivedMeta) -> Result<(), StoreError> {
    transaction
        .execute(
            "INSERT INTO derived_segments (id, tenant, table_number, rules_version, rows, bytes, min_time, max_time,
                                           created_at, checksum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                signed(meta.id),
                meta.tenant.as_str(),
                meta.table as u8,
                meta.rules_version,
                signed(meta.rows),
                signed(meta.bytes),
                meta.min_time.0,
                meta.max_time.0,
                meta.created_at.0,
                signed(meta.checksum),
            ],
        )
        .map_err(StoreError::manifest("insert a derived segment"))?;
    raise_next_id(transaction, meta.id)
}

fn raise_next_id(transaction: &Transaction<'_>, id: u64) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE meta SET value = max(value, ?1) WHERE name = 'next_segment_id'",
            [signed(id.saturating_add(1))],
        )
        .map(drop)
        .map_err(StoreError::manifest("set the next segment's number"))
}

/// Removes what is there of deltas and segments; returns what was not.
fn delete(transaction: &Transaction<'_>, replaced: &Replaced) -> Result<Replaced, StoreError> {
    let missing = |statement: &str, ids: &[u64]| {
        let mut missing = Vec::new();
        for id in ids {
            let removed = transaction.execute(statement, [signed(*id)]);
            if removed.map_err(StoreError::manifest("remove derived rows"))? == 0 {
                missing.push(*id);
            }
        }
        Ok::<_, StoreError>(missing)
    };
    Ok(Replaced {
        deltas: missing("DELETE FROM derived_deltas WHERE id = ?1", &replaced.deltas)?,
        segments: missing("DELETE FROM derived_segments WHERE id = ?1", &replaced.segments)?,
    })
}

/// Numbers of deltas and segments that go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replaced {
    pub(crate) deltas: Vec<u64>,
    pub(crate) segments: Vec<u64>,
}

impl Replaced {
    pub(crate) fn len(&self) -> usize {
        self.deltas.len() + self.segments.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Manifest {
    /// Reads the derived part. What was derived by other rules is forgotten at once: nothing can
    /// read it, and spans have it all.
    pub(crate) fn load_derived(&mut self) -> Result<LoadedDerived, StoreError> {
        let error = StoreError::manifest;
        let transaction = begin(&mut self.connection)?;
        for statement in [
            "DELETE FROM derived_deltas WHERE rules_version <> ?1",
            "DELETE FROM derived_segments WHERE rules_version <> ?1",
        ] {
            transaction.execute(statement, [RULES_VERSION]).map_err(error("forget outdated derived rows"))?;
        }
        transaction
            .execute("UPDATE derived_tenants SET rules_version = ?2 WHERE rules_version <> ?1", [RULES_VERSION, STALE])
            .map_err(error("forget outdated derived rows"))?;
        transaction.commit().map_err(error("forget outdated derived rows"))?;

        let mut loaded = LoadedDerived::default();
        let damaged = |what: &str| self.damaged(format!("derived rows have an impossible {what}"));
        let tenant = |name: String| TenantId::new(&name).map_err(|_| damaged("tenant"));
        let table = |number: u8| DerivedTable::from_u8(number).ok_or_else(|| damaged("table"));
        let mut statement = self
            .connection
            .prepare("SELECT tenant FROM derived_tenants WHERE rules_version = ?1")
            .map_err(error("list stale tenants"))?;
        let mut rows = statement.query([STALE]).map_err(error("list stale tenants"))?;
        while let Some(row) = rows.next().map_err(error("list stale tenants"))? {
            loaded.stale.push(tenant(row.get(0).map_err(error("list stale tenants"))?)?);
        }
        let mut statement = self
            .connection
            .prepare("SELECT id, tenant, table_number, created_at, rows FROM derived_deltas ORDER BY id")
            .map_err(error("list derived rows"))?;
        let mut rows = statement.query([]).map_err(error("list derived rows"))?;
        while let Some(row) = rows.next().map_err(error("list derived rows"))? {
            let (id, name, number, created_at, bytes): (i64, String, u8, i64, Vec<u8>) =
                row.try_into().map_err(error("list derived rows"))?;
            let (tenant, table) = (tenant(name)?, table(number)?);
            let rows = decode(table, &bytes).map_err(|_| damaged("encoding"))?;
            let (id, created_at) = (id.cast_unsigned(), Timestamp(created_at));
            loaded.deltas.push(Arc::new(Delta { id, tenant, table, created_at, rows }));
        }
        let mut statement = self
            .connection
            .prepare(
                "SELECT id, tenant, table_number, rules_version, rows, bytes, min_time, max_time, created_at, checksum
                 FROM derived_segments ORDER BY id",
            )
            .map_err(error("list derived segments"))?;
        let mut rows = statement.query([]).map_err(error("list derived segments"))?;
        while let Some(row) = rows.next().map_err(error("list derived segments"))? {
            let number = |index: usize| row.get::<_, i64>(index).map_err(error("read a derived segment"));
            loaded.segments.push(DerivedMeta {
                id: number(0)?.cast_unsigned(),
                tenant: tenant(row.get(1).map_err(error("read a derived segment"))?)?,
                table: table(row.get(2).map_err(error("read a derived segment"))?)?,
                rules_version: row.get(3).map_err(error("read a derived segment"))?,
                rows: number(4)?.cast_unsigned(),
                bytes: number(5)?.cast_unsigned(),
                min_time: Timestamp(number(6)?),
                max_time: Timestamp(number(7)?),
                created_at: Timestamp(number(8)?),
                checksum: number(9)?.cast_unsigned(),
            });
        }
        Ok(loaded)
    }

    /// Replaces deltas and segments by what they add up to, unless one of them is gone in the
    /// meantime. Returns those that are: none when it did.
    pub(crate) fn commit_derived(
        &mut self,
        outputs: &[&DerivedMeta],
        replaced: &Replaced,
    ) -> Result<Replaced, StoreError> {
        let transaction = begin(&mut self.connection)?;
        let missing = delete(&transaction, replaced)?;
        if missing.is_empty() {
            outputs.iter().try_for_each(|meta| insert_segment(&transaction, meta))?;
            transaction.commit().map_err(StoreError::manifest("commit derived rows"))?;
        }
        Ok(missing)
    }

    /// Replaces what is left of deltas and segments by what was derived anew; the tenant's tables
    /// are up to date then.
    pub(crate) fn commit_rebuild(
        &mut self,
        tenant: &TenantId,
        outputs: &[&DerivedMeta],
        replaced: &Replaced,
    ) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        delete(&transaction, replaced)?;
        outputs.iter().try_for_each(|meta| insert_segment(&transaction, meta))?;
        set_rules_version(&transaction, tenant, RULES_VERSION)?;
        transaction.commit().map_err(StoreError::manifest("commit derived rows"))
    }

    /// Whether a derived segment is listed.
    pub(crate) fn lists_derived(&self, id: u64) -> Result<bool, StoreError> {
        self.connection
            .query_row("SELECT count(*) FROM derived_segments WHERE id = ?1", [signed(id)], |row| row.get(0))
            .map_err(StoreError::manifest("look for a derived segment"))
    }

    /// Forgets deltas and segments, as far as they are there.
    pub(crate) fn remove_derived(&mut self, replaced: &Replaced) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        delete(&transaction, replaced)?;
        transaction.commit().map_err(StoreError::manifest("remove derived rows"))
    }

    /// Notes that a tenant's tables are to be derived anew, and forgets a segment that cannot be
    /// read any more.
    pub(crate) fn mark_stale(&mut self, tenant: &TenantId, unreadable: Option<u64>) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        set_rules_version(&transaction, tenant, STALE)?;
        delete(&transaction, &Replaced { deltas: Vec::new(), segments: unreadable.into_iter().collect() })?;
        transaction.commit().map_err(StoreError::manifest("mark derived rows as stale"))
    }
}

fn set_rules_version(transaction: &Transaction<'_>, tenant: &TenantId, version: u32) -> Result<(), StoreError> {
    transaction
        .execute(
            "INSERT INTO derived_tenants (tenant, rules_version) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET rules_version = excluded.rules_version",
            params![tenant.as_str(), version],
        )
        .map(drop)
        .map_err(StoreError::manifest("note the rules' version"))
}
