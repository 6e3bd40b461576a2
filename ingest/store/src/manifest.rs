//! The manifest: which segments there are, what of the log they cover, and the ledger's sums.
//!
//! One SQLite database, one connection, every change one transaction: what a flush or a merge
//! does to the store is there whole or not at all. Not here: files and memory; the store does
//! those around the transaction, in an order that a crash cannot spoil.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::ledger::{LedgerLine, RejectReason};
use model::signal::{Signal, Table};
use model::tenant::TenantId;
use model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use crate::catalog::AttributeKinds;
use crate::derived::manifest::{self as derived, Delta};
use crate::error::StoreError;
use crate::record::Position;
use crate::segment::SegmentMeta;

/// How long a statement waits for another process (a person with `sqlite3`) to let go.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Each migration raises `user_version` by one. Released ones never change (I12).
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (
        name  TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT;
    INSERT INTO meta (name, value) VALUES ('next_segment_id', 1), ('covered_seq', 0);
    CREATE TABLE segments (
        id             INTEGER PRIMARY KEY,
        tenant         TEXT NOT NULL,
        table_number   INTEGER NOT NULL,
        format_version INTEGER NOT NULL,
        file           TEXT NOT NULL,
        rows           INTEGER NOT NULL,
        bytes          INTEGER NOT NULL,
        min_time       INTEGER NOT NULL,
        max_time       INTEGER NOT NULL,
        seq_min        INTEGER NOT NULL,
        seq_max        INTEGER NOT NULL,
        level          INTEGER NOT NULL,
        created_at     INTEGER NOT NULL,
        checksum       INTEGER NOT NULL,
        kinds          TEXT NOT NULL,
        state          TEXT NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'quarantined')),
        reason         TEXT
    ) STRICT;
    CREATE TABLE high_water (
        table_number INTEGER PRIMARY KEY,
        seq          INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE ledger (
        tenant TEXT NOT NULL,
        minute INTEGER NOT NULL,
        signal INTEGER NOT NULL,
        reason INTEGER NOT NULL, -- 0: stored
        items  INTEGER NOT NULL,
        PRIMARY KEY (tenant, minute, signal, reason)
    ) STRICT, WITHOUT ROWID;
",
    derived::MIGRATION,
    "
    CREATE TABLE cuts (
        table_number INTEGER PRIMARY KEY,
        seq          INTEGER NOT NULL,
        at           INTEGER NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE positions (
        source    TEXT NOT NULL,
        partition INTEGER NOT NULL,
        next      INTEGER NOT NULL,
        seq       INTEGER NOT NULL, -- the log record up to which it is known
        PRIMARY KEY (source, partition)
    ) STRICT, WITHOUT ROWID;
",
];

/// What the manifest held at start.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Segments that queries read.
    pub(crate) live: Vec<(SegmentMeta, AttributeKinds)>,
    /// Segments that are set aside.
    pub(crate) quarantined: Vec<SegmentMeta>,
    /// Up to which log record each table's rows are in segments; indexed by [`Table::index`].
    pub(crate) high_water: [u64; Table::COUNT],
    /// Up to which log record everything is in segments.
    pub(crate) covered_seq: u64,
    /// The next segment's number.
    pub(crate) next_segment_id: u64,
    /// The log record that ends a cut of each table which a sink may have; indexed by [`Table::index`].
    pub(crate) cuts: [Option<u64>; Table::COUNT],
    /// How far sources were read when log records up to `positions_seq` had been written.
    pub(crate) positions: Vec<Position>,
    pub(crate) positions_seq: u64,
}

/// What a flush of one table adds.
#[derive(Debug)]
pub(crate) struct FlushCommit<'a> {
    pub(crate) table: Table,
    pub(crate) segments: Vec<(&'a SegmentMeta, &'a AttributeKinds)>,
    pub(crate) ledger: Vec<(&'a TenantId, LedgerLine)>,
    /// What the segments' rows add to the derived tables.
    pub(crate) deltas: &'a [Arc<Delta>],
    /// Every row of the table up to this log record is in a segment now.
    pub(crate) high_water: u64,
    /// Every row of any table up to this log record is.
    pub(crate) covered_seq: u64,
    /// How far every source is read, once everything up to `positions_seq` is in the log or a segment.
    pub(crate) positions: Vec<Position>,
    pub(crate) positions_seq: u64,
}

/// The manifest, open.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) connection: Connection,
    path: PathBuf,
}

/// SQLite's integers are signed; a number above its range is kept as the same 64 bits.
pub(crate) const fn signed(value: u64) -> i64 {
    value.cast_signed()
}

impl Manifest {
    /// Opens or creates it, checks it, and brings it to this release's version.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let error = StoreError::manifest;
        let mut connection = Connection::open(path).map_err(error("open the database"))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(error("set the busy timeout"))?;
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            .map_err(|source| damage_or(path, "set pragmas", source))?;
        let verdict: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| damage_or(path, "check the database", source))?;
        if verdict != "ok" {
            return Err(StoreError::ManifestDamaged { path: path.to_owned(), reason: verdict });
        }
        let version: u32 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(error("read the version"))?;
        let supported = u32::try_from(MIGRATIONS.len()).expect("there are few migrations");
        if version > supported {
            return Err(StoreError::NewerFormat { path: path.to_owned(), found: version, supported });
        }
        for (number, migration) in MIGRATIONS.iter().enumerate().skip(version as usize) {
            let transaction = begin(&mut connection)?;
            transaction.execute_batch(migration).map_err(error("migrate"))?;
            let reached = i64::try_from(number + 1).expect("there are few migrations");
            transaction.pragma_update(None, "user_version", reached).map_err(error("migrate"))?;
            transaction.commit().map_err(error("migrate"))?;
        }
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Reads what a start needs.
    pub(crate) fn load(&self) -> Result<Loaded, StoreError> {
        let error = StoreError::manifest;
        let mut loaded = Loaded {
            live: Vec::new(),
            quarantined: Vec::new(),
            high_water: [0; Table::COUNT],
            covered_seq: self.meta("covered_seq")?,
            next_segment_id: self.meta("next_segment_id")?,
            cuts: [None; Table::COUNT],
            positions: Vec::new(),
            positions_seq: 0,
        };
        let mut statement = self
            .connection
            .prepare(
                "SELECT id, tenant, table_number, format_version, rows, bytes, min_time, max_time, seq_min, seq_max,
                        level, created_at, checksum, kinds, state FROM segments ORDER BY id",
            )
            .map_err(error("list segments"))?;
        let mut rows = statement.query([]).map_err(error("list segments"))?;
        while let Some(row) = rows.next().map_err(error("list segments"))? {
            let number = |index: usize| row.get::<_, i64>(index).map_err(error("read a segment"));
            let text = |index: usize| row.get::<_, String>(index).map_err(error("read a segment"));
            let id = number(0)?.cast_unsigned();
            let damaged = |what: &str| self.damaged(format!("segment {id} has an impossible {what}"));
            let small = |index: usize, what: &str| u32::try_from(number(index)?).map_err(|_| damaged(what));
            let meta = SegmentMeta {
                id,
                tenant: TenantId::new(&text(1)?).map_err(|_| damaged("tenant"))?,
                table: table_of(number(2)?).ok_or_else(|| damaged("table"))?,
                format_version: small(3, "format version")?,
                rows: number(4)?.cast_unsigned(),
                bytes: number(5)?.cast_unsigned(),
                min_time: Timestamp(number(6)?),
                max_time: Timestamp(number(7)?),
                seq_min: number(8)?.cast_unsigned(),
                seq_max: number(9)?.cast_unsigned(),
                level: small(10, "level")?,
                created_at: Timestamp(number(11)?),
                checksum: number(12)?.cast_unsigned(),
            };
            let kinds = AttributeKinds::from_json(&text(13)?).map_err(|_| damaged("catalog of attributes"))?;
            if text(14)? == "live" {
                loaded.live.push((meta, kinds));
            } else {
                loaded.quarantined.push(meta);
            }
        }
        let mut statement = self
            .connection
            .prepare("SELECT table_number, seq FROM high_water")
            .map_err(error("read high-water marks"))?;
        let mut rows = statement.query([]).map_err(error("read high-water marks"))?;
        while let Some(row) = rows.next().map_err(error("read high-water marks"))? {
            let (table, seq): (i64, i64) = row.try_into().map_err(error("read high-water marks"))?;
            let table = table_of(table).ok_or_else(|| self.damaged(format!("high-water mark of table {table}")))?;
            loaded.high_water[table.index()] = seq.cast_unsigned();
        }
        let mut statement =
            self.connection.prepare("SELECT table_number, seq FROM cuts").map_err(error("read the cuts"))?;
        let mut rows = statement.query([]).map_err(error("read the cuts"))?;
        while let Some(row) = rows.next().map_err(error("read the cuts"))? {
            let (table, seq): (i64, i64) = row.try_into().map_err(error("read the cuts"))?;
            let table = table_of(table).ok_or_else(|| self.damaged(format!("cut of table {table}")))?;
            loaded.cuts[table.index()] = Some(seq.cast_unsigned());
        }
        let mut statement = self
            .connection
            .prepare("SELECT source, partition, next, seq FROM positions")
            .map_err(error("read the positions"))?;
        let mut rows = statement.query([]).map_err(error("read the positions"))?;
        while let Some(row) = rows.next().map_err(error("read the positions"))? {
            let (source, partition, next, seq): (String, i32, i64, i64) =
                row.try_into().map_err(error("read the positions"))?;
            loaded.positions.push(Position { source: source.into(), partition, next });
            loaded.positions_seq = loaded.positions_seq.max(seq.cast_unsigned());
        }
        Ok(loaded)
    }

    pub(crate) fn damaged(&self, reason: String) -> StoreError {
        StoreError::ManifestDamaged { path: self.path.clone(), reason }
    }

    fn meta(&self, name: &str) -> Result<u64, StoreError> {
        self.connection
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get::<_, i64>(0))
            .map(i64::cast_unsigned)
            .map_err(StoreError::manifest("read a value"))
    }

    /// Commits a flush. A flush whose high-water mark is there already was committed before, by an
    /// attempt whose answer was lost; doing it again changes nothing but what is covered by now.
    pub(crate) fn commit_flush(&mut self, flush: &FlushCommit<'_>) -> Result<(), StoreError> {
        let error = StoreError::manifest;
        let transaction = begin(&mut self.connection)?;
        transaction
            .execute("UPDATE meta SET value = max(value, ?1) WHERE name = 'covered_seq'", [signed(flush.covered_seq)])
            .map_err(error("set the covered sequence number"))?;
        insert_positions(&transaction, &flush.positions, flush.positions_seq)?;
        let known: Option<i64> = transaction
            .query_row("SELECT seq FROM high_water WHERE table_number = ?1", [flush.table as u8], |row| row.get(0))
            .optional()
            .map_err(error("read a high-water mark"))?;
        if known.is_some_and(|seq| seq.cast_unsigned() >= flush.high_water) {
            return transaction.commit().map_err(error("commit a flush again"));
        }
        for (meta, kinds) in &flush.segments {
            insert_segment(&transaction, meta, kinds)?;
        }
        derived::insert_deltas(&transaction, flush.deltas)?;
        {
            let mut statement = transaction
                .prepare(
                    "INSERT INTO ledger (tenant, minute, signal, reason, items) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT DO UPDATE SET items = items + excluded.items",
                )
                .map_err(error("add to the ledger"))?;
            for (tenant, line) in &flush.ledger {
                let reason = line.reason.map_or(0, |reason| reason as u8);
                let items = i64::try_from(line.items).unwrap_or(i64::MAX);
                statement
                    .execute(params![tenant.as_str(), line.minute, line.signal as u8, reason, items])
                    .map_err(error("add to the ledger"))?;
            }
        }
        transaction
            .execute(
                "INSERT INTO high_water (table_number, seq) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET seq = excluded.seq",
                params![flush.table as u8, signed(flush.high_water)],
            )
            .map_err(error("set a high-water mark"))?;
        transaction
            .execute("DELETE FROM cuts WHERE table_number = ?1", [flush.table as u8])
            .map_err(error("end a cut"))?;
        transaction.commit().map_err(error("commit a flush"))
    }

    /// Makes it durable that a table is cut behind a log record, before a sink gets the cut. Returns when that was: of a
    /// cut that is known already, its first time. [`Manifest::commit_flush`] forgets it.
    pub(crate) fn begin_cut(&mut self, table: Table, seq: u64, now: Timestamp) -> Result<Timestamp, StoreError> {
        let error = StoreError::manifest;
        let transaction = begin(&mut self.connection)?;
        transaction
            .execute(
                "INSERT INTO cuts (table_number, seq, at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET seq = excluded.seq, at = excluded.at WHERE seq <> excluded.seq",
                params![table as u8, signed(seq), now.0],
            )
            .map_err(error("begin a cut"))?;
        let at = transaction
            .query_row("SELECT at FROM cuts WHERE table_number = ?1", [table as u8], |row| row.get(0))
            .map_err(error("begin a cut"))?;
        transaction.commit().map_err(error("begin a cut"))?;
        Ok(Timestamp(at))
    }

    /// Commits a merge, unless one of the inputs is gone (expired or set aside) in the meantime.
    /// Returns whether it did.
    pub(crate) fn commit_merge(
        &mut self,
        output: (&SegmentMeta, &AttributeKinds),
        inputs: &[u64],
    ) -> Result<bool, StoreError> {
        let transaction = begin(&mut self.connection)?;
        if remove_live(&transaction, inputs)? != inputs.len() {
            return Ok(false);
        }
        insert_segment(&transaction, output.0, output.1)?;
        transaction.commit().map_err(StoreError::manifest("commit a merge"))?;
        Ok(true)
    }

    /// Whether a segment is listed.
    pub(crate) fn lists(&self, id: u64) -> Result<bool, StoreError> {
        self.connection
            .query_row("SELECT 1 FROM segments WHERE id = ?1", [signed(id)], |_| Ok(()))
            .optional()
            .map(|found| found.is_some())
            .map_err(StoreError::manifest("look for a segment"))
    }

    /// Forgets segments.
    pub(crate) fn remove(&mut self, ids: &[u64]) -> Result<(), StoreError> {
        let transaction = begin(&mut self.connection)?;
        remove_live(&transaction, ids)?;
        transaction.commit().map_err(StoreError::manifest("remove segments"))
    }

    /// Sets a segment aside.
    pub(crate) fn quarantine(&mut self, id: u64, reason: &str) -> Result<(), StoreError> {
        self.connection
            .execute(
                "UPDATE segments SET state = 'quarantined', reason = ?2 WHERE id = ?1",
                params![signed(id), reason],
            )
            .map(|_| ())
            .map_err(StoreError::manifest("set a segment aside"))
    }

    /// The ledger of a tenant, as far as it is persisted.
    pub(crate) fn ledger(&self, tenant: &TenantId) -> Result<Vec<LedgerLine>, StoreError> {
        let error = StoreError::manifest;
        let mut statement = self
            .connection
            .prepare("SELECT minute, signal, reason, items FROM ledger WHERE tenant = ?1")
            .map_err(error("read the ledger"))?;
        let mut rows = statement.query([tenant.as_str()]).map_err(error("read the ledger"))?;
        let mut lines = Vec::new();
        while let Some(row) = rows.next().map_err(error("read the ledger"))? {
            let (minute, signal, reason, items): (i64, u8, u8, i64) =
                row.try_into().map_err(error("read the ledger"))?;
            let damaged = || self.damaged(format!("ledger line with signal {signal} and reason {reason}"));
            lines.push(LedgerLine {
                minute,
                signal: Signal::from_u8(signal).ok_or_else(damaged)?,
                reason: match reason {
                    0 => None,
                    number => Some(RejectReason::from_u8(number).ok_or_else(damaged)?),
                },
                items: items.cast_unsigned(),
            });
        }
        Ok(lines)
    }

    /// Tenants that have a line in the ledger.
    pub(crate) fn ledger_tenants(&self) -> Result<Vec<String>, StoreError> {
        let error = StoreError::manifest;
        let mut statement =
            self.connection.prepare("SELECT DISTINCT tenant FROM ledger").map_err(error("list tenants"))?;
        let tenants = statement.query_map([], |row| row.get(0)).map_err(error("list tenants"))?;
        tenants.collect::<Result<_, _>>().map_err(error("list tenants"))
    }

    /// Forgets ledger lines of minutes before a time; returns how many.
    pub(crate) fn expire_ledger(&mut self, before: Timestamp) -> Result<usize, StoreError> {
        self.connection
            .execute("DELETE FROM ledger WHERE minute < ?1", [before.0])
            .map_err(StoreError::manifest("expire the ledger"))
    }
}

pub(crate) fn begin(connection: &mut Connection) -> Result<Transaction<'_>, StoreError> {
    connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(StoreError::manifest("begin a transaction"))
}

fn damage_or(path: &Path, op: &'static str, source: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode;
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::ManifestDamaged { path: path.to_owned(), reason: source.to_string() }
        }
        _ => StoreError::Manifest { op, source },
    }
}

fn table_of(number: i64) -> Option<Table> {
    u8::try_from(number).ok().and_then(Table::from_u8)
}

fn insert_positions(transaction: &Transaction<'_>, positions: &[Position], seq: u64) -> Result<(), StoreError> {
    let error = StoreError::manifest;
    let mut statement = transaction
        .prepare(
            "INSERT INTO positions (source, partition, next, seq) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET next = excluded.next, seq = excluded.seq WHERE seq <= excluded.seq",
        )
        .map_err(error("set a position"))?;
    for Position { source, partition, next } in positions {
        statement.execute(params![source.as_ref(), partition, next, signed(seq)]).map_err(error("set a position"))?;
    }
    Ok(())
}

fn insert_segment(transaction: &Transaction<'_>, meta: &SegmentMeta, kinds: &AttributeKinds) -> Result<(), StoreError> {
    transaction
        .execute(
            "INSERT INTO segments (id, tenant, table_number, format_version, file, rows, bytes, min_time, max_time,
                                   seq_min, seq_max, level, created_at, checksum, kinds)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                signed(meta.id),
                meta.tenant.as_str(),
                meta.table as u8,
                meta.format_version,
                meta.file_name(),
                signed(meta.rows),
                signed(meta.bytes),
                meta.min_time.0,
                meta.max_time.0,
                signed(meta.seq_min),
                signed(meta.seq_max),
                meta.level,
                meta.created_at.0,
                signed(meta.checksum),
                kinds.to_json(),
            ],
        )
        .map_err(StoreError::manifest("insert a segment"))?;
    transaction
        .execute(
            "UPDATE meta SET value = max(value, ?1) WHERE name = 'next_segment_id'",
            [signed(meta.id.saturating_add(1))],
        )
        .map(|_| ())
        .map_err(StoreError::manifest("set the next segment's number"))
}

fn remove_live(transaction: &Transaction<'_>, ids: &[u64]) -> Result<usize, StoreError> {
    let mut removed = 0;
    for id in ids {
        removed += transaction
            .execute("DELETE FROM segments WHERE id = ?1 AND state = 'live'", [signed(*id)])
            .map_err(StoreError::manifest("remove a segment"))?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(id: u64) -> SegmentMeta {
        SegmentMeta {
            id,
            tenant: TenantId::new("a-1").unwrap(),
            table: Table::Logs,
            format_version: 1,
            rows: 10,
            bytes: 1000,
            min_time: Timestamp(-5),
            max_time: Timestamp(i64::MAX),
            seq_min: 3,
            seq_max: 9,
            level: 2,
            created_at: Timestamp(77),
            checksum: u64::MAX - 1,
        }
    }

    fn flush<'a>(
        segments: Vec<(&'a SegmentMeta, &'a AttributeKinds)>,
        tenant: &'a TenantId,
        seq: u64,
    ) -> FlushCommit<'a> {
        let line = LedgerLine { minute: 60, signal: Signal::Logs, reason: None, items: 10 };
        FlushCommit {
            table: Table::Logs,
            segments,
            ledger: vec![(tenant, line)],
            deltas: &[],
            high_water: seq,
            covered_seq: seq - 1,
            positions: vec![Position { source: "spans".into(), partition: 1, next: seq.cast_signed() * 10 }],
            positions_seq: seq,
        }
    }

    #[test]
    fn what_is_committed_is_loaded_and_a_repeated_flush_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.sqlite");
        let (one, two, kinds) = (meta(1), meta(2), AttributeKinds::default());
        {
            let mut manifest = Manifest::open(&path).unwrap();
            for _ in 0..2 {
                manifest.commit_flush(&flush(vec![(&one, &kinds), (&two, &kinds)], &one.tenant, 9)).unwrap();
            }
        }
        let mut manifest = Manifest::open(&path).unwrap();
        let loaded = manifest.load().unwrap();
        assert_eq!(loaded.live.iter().map(|(meta, _)| meta.clone()).collect::<Vec<_>>(), [one.clone(), two.clone()]);
        assert_eq!((loaded.high_water[Table::Logs.index()], loaded.covered_seq, loaded.next_segment_id), (9, 8, 3));
        assert_eq!((loaded.positions[0].next, loaded.positions_seq), (90, 9));
        assert_eq!(manifest.ledger(&one.tenant).unwrap()[0].items, 10);
        assert_eq!(manifest.ledger(&TenantId::default_tenant()).unwrap(), []);

        manifest.quarantine(2, "damaged").unwrap();
        let merged = meta(3);
        assert!(!manifest.commit_merge((&merged, &kinds), &[1, 2]).unwrap(), "an input is set aside");
        assert_eq!(manifest.load().unwrap().live.len(), 1);
        assert!(manifest.commit_merge((&merged, &kinds), &[1]).unwrap());
        let loaded = manifest.load().unwrap();
        assert_eq!((loaded.live[0].0.id, loaded.quarantined[0].id, loaded.next_segment_id), (3, 2, 4));
        assert!(manifest.lists(3).unwrap() && !manifest.lists(1).unwrap());

        manifest.commit_flush(&flush(vec![], &one.tenant, 12)).unwrap();
        assert_eq!(manifest.ledger(&one.tenant).unwrap()[0].items, 20);
        assert_eq!(manifest.expire_ledger(Timestamp(61)).unwrap(), 1);
    }

    #[test]
    fn damage_and_later_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.sqlite");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        assert!(matches!(Manifest::open(&path), Err(StoreError::ManifestDamaged { .. })));
        std::fs::remove_file(&path).unwrap();
        drop(Manifest::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Manifest::open(&path), Err(StoreError::NewerFormat { found: 99, .. })));
    }
}
