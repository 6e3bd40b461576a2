//! What must survive a restart: counts, revisions, history and alerts, in one SQLite database.
//!
//! Writes are incremental and each call is one transaction: the buckets that changed, the time up to
//! which everything was counted, the alerts as they are. Every stored format has a version (I12), and a
//! tenant is part of every key (I13). Not here: what any of it means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::tenant::TenantId;
use model::time::Timestamp;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::counts::{BUCKET_MS, Counts, Revision, Row, WIDTHS};
use crate::error::SloError;
use crate::rules::state::{Alert, Labels, State};

/// How long a statement waits for another process (a person with `sqlite3`) to let go.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Each migration raises `user_version` by one. Released ones never change (I12).
const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (
        tenant TEXT NOT NULL,
        name   TEXT NOT NULL,
        value  INTEGER NOT NULL,
        PRIMARY KEY (tenant, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE series (
        tenant     TEXT NOT NULL,
        key        INTEGER NOT NULL, -- of the definition
        definition TEXT NOT NULL,
        PRIMARY KEY (tenant, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE counts (
        tenant    TEXT NOT NULL,
        key       INTEGER NOT NULL,
        width_ms  INTEGER NOT NULL,
        start_ms  INTEGER NOT NULL,
        numerator INTEGER NOT NULL,
        total     INTEGER NOT NULL,
        PRIMARY KEY (tenant, key, width_ms, start_ms)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE revisions (
        tenant      TEXT NOT NULL,
        key         INTEGER NOT NULL,
        start_ms    INTEGER NOT NULL, -- of the five minutes that changed
        recorded_ms INTEGER NOT NULL,
        numerator   INTEGER NOT NULL, -- what came late; negative when a recount found less
        total       INTEGER NOT NULL,
        PRIMARY KEY (tenant, key, start_ms, recorded_ms)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE history (
        tenant    TEXT NOT NULL,
        slo       TEXT NOT NULL,
        objective TEXT NOT NULL,
        at_ms     INTEGER NOT NULL,
        good      INTEGER NOT NULL,
        total     INTEGER NOT NULL,
        allowed   INTEGER NOT NULL,
        spent     INTEGER NOT NULL,
        health    TEXT NOT NULL,
        PRIMARY KEY (tenant, slo, objective, at_ms)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE alerts (
        tenant            TEXT NOT NULL,
        rule              TEXT NOT NULL, -- what makes the alert: an SLO's rung, or a rule of a file
        labels            TEXT NOT NULL, -- JSON
        annotations       TEXT NOT NULL, -- JSON
        state             TEXT NOT NULL CHECK (state IN ('inactive', 'pending', 'firing')),
        value             REAL,
        active_at         INTEGER NOT NULL,
        fired_at          INTEGER,
        resolved_at       INTEGER,
        keep_firing_since INTEGER,
        sent_at           INTEGER,
        seen_at           INTEGER NOT NULL, -- the last evaluation
        PRIMARY KEY (tenant, rule, labels)
    ) STRICT, WITHOUT ROWID;
"];

/// A point of an objective's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPoint {
    /// The SLO.
    pub slo: String,
    /// The objective.
    pub objective: String,
    /// When, milliseconds since the epoch.
    pub at_ms: i64,
    /// Good events in the period.
    pub good: u64,
    /// All events in the period.
    pub total: u64,
    /// Bad events allowed in the period.
    pub allowed: u64,
    /// Bad events in the period.
    pub spent: u64,
    /// What could be said of it then.
    pub health: String,
}

/// An alert as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredAlert {
    /// What made it.
    pub rule: String,
    /// Its labels.
    pub labels: Labels,
    /// The alert.
    pub alert: Alert,
    /// The last evaluation before it was stored.
    pub seen_at: Timestamp,
}

/// What one write holds.
#[derive(Debug, Default)]
pub struct Write<'a> {
    /// Changed buckets by series.
    pub rows: Vec<(u64, Vec<Row>)>,
    /// Revisions by series.
    pub revisions: Vec<(u64, Vec<Revision>)>,
    /// Points of history.
    pub history: Vec<HistoryPoint>,
    /// All alerts of each rule named here, replacing what there was of it.
    pub alerts: Vec<(String, Vec<(&'a Labels, &'a Alert)>)>,
    /// Everything committed before this was counted.
    pub counted_until: Option<Timestamp>,
}

/// The database, open.
#[derive(Debug)]
pub struct Archive {
    connection: Connection,
    path: PathBuf,
}

/// SQLite's integers are signed; a number above its range is kept as the same 64 bits.
const fn signed(value: u64) -> i64 {
    value.cast_signed()
}

impl Archive {
    /// Opens or creates it, checks it, and brings it to this release's version.
    ///
    /// # Errors
    /// [`SloError`] when it is damaged, newer than this release, or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, SloError> {
        let error = SloError::database;
        let mut connection = Connection::open(path).map_err(error("open"))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(error("set the busy timeout"))?;
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(|source| damage_or(path, "set pragmas", source))?;
        let verdict: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| damage_or(path, "check", source))?;
        if verdict != "ok" {
            return Err(SloError::Damaged { path: path.to_owned(), reason: verdict });
        }
        let version: u32 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(error("read the version"))?;
        let supported = u32::try_from(MIGRATIONS.len()).expect("there are few migrations");
        if version > supported {
            return Err(SloError::NewerFormat { path: path.to_owned(), found: version, supported });
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

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn damaged(&self, reason: String) -> SloError {
        SloError::Damaged { path: self.path.clone(), reason }
    }

    /// Names the series of a tenant, and forgets those that no SLO counts any more.
    ///
    /// # Errors
    /// [`SloError::Database`].
    pub fn set_series(&mut self, tenant: &TenantId, series: &[(u64, String)]) -> Result<(), SloError> {
        let error = SloError::database;
        let transaction = begin(&mut self.connection)?;
        {
            let mut known: Vec<i64> = Vec::new();
            let mut statement =
                transaction.prepare("SELECT key FROM series WHERE tenant = ?1").map_err(error("list series"))?;
            let mut rows = statement.query([tenant.as_str()]).map_err(error("list series"))?;
            while let Some(row) = rows.next().map_err(error("list series"))? {
                known.push(row.get(0).map_err(error("list series"))?);
            }
            let wanted: std::collections::BTreeSet<i64> = series.iter().map(|(key, _)| signed(*key)).collect();
            for key in known.iter().filter(|key| !wanted.contains(*key)) {
                for sql in [
                    "DELETE FROM series WHERE tenant = ?1 AND key = ?2",
                    "DELETE FROM counts WHERE tenant = ?1 AND key = ?2",
                    "DELETE FROM revisions WHERE tenant = ?1 AND key = ?2",
                ] {
                    transaction.execute(sql, params![tenant.as_str(), key]).map_err(error("forget a series"))?;
                }
            }
            let mut insert = transaction
                .prepare("INSERT INTO series (tenant, key, definition) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")
                .map_err(error("add a series"))?;
            for (key, definition) in series {
                insert.execute(params![tenant.as_str(), signed(*key), definition]).map_err(error("add a series"))?;
            }
        }
        transaction.commit().map_err(error("set the series"))
    }

    /// The rows of every series of a tenant.
    ///
    /// # Errors
    /// [`SloError`].
    pub fn load_counts(&self, tenant: &TenantId) -> Result<BTreeMap<u64, Vec<Row>>, SloError> {
        let error = SloError::database("read counts");
        let mut statement = self
            .connection
            .prepare("SELECT key, width_ms, start_ms, numerator, total FROM counts WHERE tenant = ?1")
            .map_err(error)?;
        let mut rows = statement.query([tenant.as_str()]).map_err(error)?;
        let mut found: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
        while let Some(row) = rows.next().map_err(error)? {
            let (key, width_ms, start_ms, numerator, total): (i64, i64, i64, i64, i64) =
                row.try_into().map_err(error)?;
            if width_ms < BUCKET_MS {
                return Err(self.damaged(format!("a bucket of {width_ms} ms")));
            }
            let counts = Counts { numerator: numerator.cast_unsigned(), total: total.cast_unsigned() };
            let row = Row { width: width_ms / BUCKET_MS, index: start_ms.div_euclid(width_ms), counts };
            found.entry(key.cast_unsigned()).or_default().push(row);
        }
        Ok(found)
    }

    /// The rows of one series, newest first, at most `limit`.
    ///
    /// # Errors
    /// [`SloError`].
    pub fn counts_of(&self, tenant: &TenantId, key: u64, limit: usize) -> Result<Vec<Row>, SloError> {
        let error = SloError::database("read counts");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT width_ms, start_ms, numerator, total FROM counts WHERE tenant = ?1 AND key = ?2
                 ORDER BY start_ms DESC, width_ms LIMIT ?3",
            )
            .map_err(error)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![tenant.as_str(), signed(key), limit]).map_err(error)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(error)? {
            let (width_ms, start_ms, numerator, total): (i64, i64, i64, i64) = row.try_into().map_err(error)?;
            if width_ms < BUCKET_MS {
                return Err(self.damaged(format!("a bucket of {width_ms} ms")));
            }
            let counts = Counts { numerator: numerator.cast_unsigned(), total: total.cast_unsigned() };
            found.push(Row { width: width_ms / BUCKET_MS, index: start_ms.div_euclid(width_ms), counts });
        }
        Ok(found)
    }

    /// The alerts of a tenant.
    ///
    /// # Errors
    /// [`SloError`].
    pub fn load_alerts(&self, tenant: &TenantId) -> Result<Vec<StoredAlert>, SloError> {
        let error = SloError::database("read alerts");
        let mut statement = self
            .connection
            .prepare(
                "SELECT rule, labels, annotations, state, value, active_at, fired_at, resolved_at, keep_firing_since,
                        sent_at, seen_at
                 FROM alerts WHERE tenant = ?1",
            )
            .map_err(error)?;
        let mut rows = statement.query([tenant.as_str()]).map_err(error)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(error)? {
            let text = |index: usize| row.get::<_, String>(index).map_err(error);
            let time = |index: usize| row.get::<_, Option<i64>>(index).map(|at| at.map(Timestamp)).map_err(error);
            let rule = text(0)?;
            let json = |index: usize| {
                serde_json::from_str::<Labels>(&text(index)?)
                    .map_err(|reason| self.damaged(format!("an alert of {rule} has damaged labels: {reason}")))
            };
            let state = text(3)?;
            let state = State::from_name(&state)
                .ok_or_else(|| self.damaged(format!("an alert of {rule} has the state {state}")))?;
            let alert = Alert {
                state,
                annotations: json(2)?,
                value: row.get::<_, Option<f64>>(4).map_err(error)?.unwrap_or(f64::NAN),
                active_at: time(5)?.unwrap_or_default(),
                fired_at: time(6)?,
                resolved_at: time(7)?,
                keep_firing_since: time(8)?,
                sent_at: time(9)?,
            };
            let (labels, seen_at) = (json(1)?, time(10)?.unwrap_or_default());
            found.push(StoredAlert { rule, labels, alert, seen_at });
        }
        Ok(found)
    }

    /// A number under a name; `None` when it was never set.
    ///
    /// # Errors
    /// [`SloError::Database`].
    pub fn meta(&self, tenant: &TenantId, name: &str) -> Result<Option<i64>, SloError> {
        use rusqlite::OptionalExtension as _;
        self.connection
            .query_row("SELECT value FROM meta WHERE tenant = ?1 AND name = ?2", [tenant.as_str(), name], |row| {
                row.get(0)
            })
            .optional()
            .map_err(SloError::database("read a value"))
    }

    /// Sets a number under a name.
    ///
    /// # Errors
    /// [`SloError::Database`].
    pub fn set_meta(&self, tenant: &TenantId, name: &str, value: i64) -> Result<(), SloError> {
        self.connection
            .execute(
                "INSERT INTO meta (tenant, name, value) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET value = excluded.value",
                params![tenant.as_str(), name, value],
            )
            .map(|_| ())
            .map_err(SloError::database("set a value"))
    }

    /// Writes what changed, in one transaction.
    ///
    /// # Errors
    /// [`SloError::Database`]; nothing was written then.
    pub fn write(&mut self, tenant: &TenantId, now: Timestamp, write: &Write<'_>) -> Result<(), SloError> {
        let tenant = tenant.as_str();
        let transaction = begin(&mut self.connection)?;
        write_counts(&transaction, tenant, now, write).map_err(SloError::database("write counts"))?;
        write_alerts(&transaction, tenant, now, write).map_err(SloError::database("write alerts"))?;
        if let Some(until) = write.counted_until {
            transaction
                .execute(
                    "INSERT INTO meta (tenant, name, value) VALUES (?1, 'counted_until', ?2)
                     ON CONFLICT DO UPDATE SET value = excluded.value",
                    params![tenant, until.0],
                )
                .map_err(SloError::database("write counts"))?;
        }
        transaction.commit().map_err(SloError::database("commit"))
    }

    /// Forgets buckets that no window reaches, and history and revisions older than the longest window.
    ///
    /// # Errors
    /// [`SloError::Database`].
    pub fn expire(&mut self, tenant: &TenantId, now: Timestamp, longest_ms: i64) -> Result<usize, SloError> {
        let error = SloError::database("expire counts");
        let now_ms = now.0 / 1_000_000;
        let transaction = begin(&mut self.connection)?;
        let mut gone = 0;
        // The rings reach a little less than this: 65 minutes and three days and an hour.
        let (fine_ms, middle_ms) = (2 * 3_600_000, 4 * 86_400_000);
        for (width, keep_ms) in [(WIDTHS[0], fine_ms), (WIDTHS[1], middle_ms)] {
            gone += transaction
                .execute(
                    "DELETE FROM counts WHERE tenant = ?1 AND width_ms = ?2 AND start_ms < ?3",
                    params![tenant.as_str(), width * BUCKET_MS, now_ms - keep_ms],
                )
                .map_err(error)?;
        }
        let oldest = now_ms - longest_ms - 2 * 3_600_000;
        for sql in [
            "DELETE FROM counts WHERE tenant = ?1 AND start_ms < ?2",
            "DELETE FROM revisions WHERE tenant = ?1 AND recorded_ms < ?2",
            "DELETE FROM history WHERE tenant = ?1 AND at_ms < ?2",
        ] {
            gone += transaction.execute(sql, params![tenant.as_str(), oldest]).map_err(error)?;
        }
        transaction.commit().map_err(error)?;
        Ok(gone)
    }

    /// The history of an SLO between two times in milliseconds, in order.
    ///
    /// # Errors
    /// [`SloError::Database`].
    pub fn history(
        &self,
        tenant: &TenantId,
        slo: &str,
        from_ms: i64,
        to_ms: i64,
    ) -> Result<Vec<HistoryPoint>, SloError> {
        let error = SloError::database("read history");
        let mut statement = self
            .connection
            .prepare(
                "SELECT objective, at_ms, good, total, allowed, spent, health FROM history
                 WHERE tenant = ?1 AND slo = ?2 AND at_ms >= ?3 AND at_ms < ?4 ORDER BY at_ms, objective",
            )
            .map_err(error)?;
        let points = statement
            .query_map(params![tenant.as_str(), slo, from_ms, to_ms], |row| {
                let number = |index: usize| row.get::<_, i64>(index).map(i64::cast_unsigned);
                Ok(HistoryPoint {
                    slo: slo.to_owned(),
                    objective: row.get(0)?,
                    at_ms: row.get(1)?,
                    good: number(2)?,
                    total: number(3)?,
                    allowed: number(4)?,
                    spent: number(5)?,
                    health: row.get(6)?,
                })
            })
            .map_err(error)?;
        points.collect::<Result<_, _>>().map_err(error)
    }

    /// The revisions of a series, in order of when they were recorded.
    ///
    /// # Errors
    /// [`SloError::Database`].
    pub fn revisions(&self, tenant: &TenantId, key: u64) -> Result<Vec<(i64, Revision)>, SloError> {
        let error = SloError::database("read revisions");
        let mut statement = self
            .connection
            .prepare(
                "SELECT recorded_ms, start_ms, numerator, total FROM revisions
                 WHERE tenant = ?1 AND key = ?2 ORDER BY recorded_ms, start_ms",
            )
            .map_err(error)?;
        let rows = statement
            .query_map(params![tenant.as_str(), signed(key)], |row| {
                let (recorded, start): (i64, i64) = (row.get(0)?, row.get(1)?);
                let (numerator, total): (i64, i64) = (row.get(2)?, row.get(3)?);
                let added = Counts { numerator: numerator.cast_unsigned(), total: total.cast_unsigned() };
                Ok((recorded, Revision { bucket: start.div_euclid(BUCKET_MS), added }))
            })
            .map_err(error)?;
        rows.collect::<Result<_, _>>().map_err(error)
    }
}

fn write_counts(
    transaction: &Transaction<'_>,
    tenant: &str,
    now: Timestamp,
    write: &Write<'_>,
) -> Result<(), rusqlite::Error> {
    let mut statement = transaction.prepare(
        "INSERT INTO counts (tenant, key, width_ms, start_ms, numerator, total) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET numerator = excluded.numerator, total = excluded.total",
    )?;
    for (key, rows) in &write.rows {
        for Row { width, index, counts } in rows {
            let width_ms = width * BUCKET_MS;
            let (numerator, total) = (signed(counts.numerator), signed(counts.total));
            statement.execute(params![tenant, signed(*key), width_ms, index * width_ms, numerator, total])?;
        }
    }
    let mut statement = transaction.prepare(
        "INSERT INTO revisions (tenant, key, start_ms, recorded_ms, numerator, total) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET numerator = numerator + excluded.numerator, total = total + excluded.total",
    )?;
    for (key, revisions) in &write.revisions {
        for Revision { bucket, added } in revisions {
            let (numerator, total) = (signed(added.numerator), signed(added.total));
            let (start_ms, recorded_ms) = (bucket * BUCKET_MS, now.0 / 1_000_000);
            statement.execute(params![tenant, signed(*key), start_ms, recorded_ms, numerator, total])?;
        }
    }
    let mut statement = transaction.prepare(
        "INSERT INTO history (tenant, slo, objective, at_ms, good, total, allowed, spent, health)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
    )?;
    for point in &write.history {
        let HistoryPoint { slo, objective, at_ms, good, total, allowed, spent, health } = point;
        let numbers = [*good, *total, *allowed, *spent].map(signed);
        let [good, total, allowed, spent] = numbers;
        statement.execute(params![tenant, slo, objective, at_ms, good, total, allowed, spent, health])?;
    }
    Ok(())
}

fn write_alerts(
    transaction: &Transaction<'_>,
    tenant: &str,
    now: Timestamp,
    write: &Write<'_>,
) -> Result<(), rusqlite::Error> {
    let mut delete = transaction.prepare("DELETE FROM alerts WHERE tenant = ?1 AND rule = ?2")?;
    let mut insert = transaction.prepare(
        "INSERT INTO alerts (tenant, rule, labels, annotations, state, value, active_at, fired_at, resolved_at,
                             keep_firing_since, sent_at, seen_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    let json = |labels: &Labels| serde_json::to_string(labels).expect("a map of texts is JSON");
    for (rule, alerts) in &write.alerts {
        delete.execute(params![tenant, rule])?;
        for (labels, alert) in alerts {
            let time = |at: Option<Timestamp>| at.map(|at| at.0);
            insert.execute(params![
                tenant,
                rule,
                json(labels),
                json(&alert.annotations),
                alert.state.name(),
                Some(alert.value).filter(|value| value.is_finite()),
                alert.active_at.0,
                time(alert.fired_at),
                time(alert.resolved_at),
                time(alert.keep_firing_since),
                time(alert.sent_at),
                now.0,
            ])?;
        }
    }
    Ok(())
}

fn begin(connection: &mut Connection) -> Result<Transaction<'_>, SloError> {
    connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(SloError::database("begin a transaction"))
}

fn damage_or(path: &Path, op: &'static str, source: rusqlite::Error) -> SloError {
    use rusqlite::ErrorCode;
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            SloError::Damaged { path: path.to_owned(), reason: source.to_string() }
        }
        _ => SloError::Database { op, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);

    fn row(width: i64, index: i64, numerator: u64) -> Row {
        Row { width, index, counts: Counts { numerator, total: u64::MAX } }
    }

    #[test]
    fn what_is_written_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slo.sqlite");
        let (tenant, other) = (TenantId::default_tenant(), TenantId::new("other").unwrap());
        let labels = Labels::from([("alertname".to_owned(), "it's \"a\"".to_owned())]);
        let alert = Alert {
            state: State::Firing,
            annotations: Labels::new(),
            value: 1.5,
            active_at: NOW,
            fired_at: Some(NOW),
            resolved_at: None,
            keep_firing_since: Some(Timestamp(-1)),
            sent_at: None,
        };
        let revision = Revision { bucket: 60, added: Counts { numerator: 1, total: 2 } };
        let point = HistoryPoint {
            slo: "s".into(),
            objective: "1".into(),
            at_ms: 5,
            good: 1,
            total: 2,
            allowed: 3,
            spent: 4,
            health: "ok".into(),
        };
        {
            let mut archive = Archive::open(&path).unwrap();
            archive.set_series(&tenant, &[(u64::MAX, "a".into()), (2, "b".into())]).unwrap();
            for numerator in [1, 2] {
                let write = Write {
                    rows: vec![(u64::MAX, vec![row(1, -5, numerator), row(30, 7, numerator)]), (2, vec![row(1, 1, 9)])],
                    revisions: vec![(2, vec![revision])],
                    history: vec![point.clone()],
                    alerts: vec![("rule".into(), vec![(&labels, &alert)])],
                    counted_until: Some(NOW),
                };
                archive.write(&tenant, NOW, &write).unwrap();
            }
        }
        let mut archive = Archive::open(&path).unwrap();
        let counts = archive.load_counts(&tenant).unwrap();
        assert_eq!(counts[&u64::MAX], [row(1, -5, 2), row(30, 7, 2)]);
        assert_eq!(archive.counts_of(&tenant, u64::MAX, 9).unwrap(), [row(30, 7, 2), row(1, -5, 2)], "newest first");
        assert_eq!(archive.counts_of(&tenant, u64::MAX, 1).unwrap(), [row(30, 7, 2)]);
        assert_eq!(archive.counts_of(&other, u64::MAX, 9).unwrap(), []);
        assert_eq!(archive.meta(&tenant, "counted_until").unwrap(), Some(NOW.0));
        assert_eq!(archive.history(&tenant, "s", 0, 10).unwrap(), [point]);
        let late = Revision { bucket: 60, added: Counts { numerator: 2, total: 4 } };
        assert_eq!(archive.revisions(&tenant, 2).unwrap(), [(NOW.0 / 1_000_000, late)], "merged");
        let stored = archive.load_alerts(&tenant).unwrap();
        assert_eq!(stored, [StoredAlert { rule: "rule".into(), labels, alert, seen_at: NOW }]);
        assert_eq!(archive.load_counts(&other).unwrap(), BTreeMap::new(), "tenants are apart");
        assert_eq!(archive.load_alerts(&other).unwrap(), []);

        let none = Write { alerts: vec![("rule".into(), vec![])], ..Write::default() };
        archive.write(&tenant, NOW, &none).unwrap();
        assert_eq!(archive.load_alerts(&tenant).unwrap(), []);
        archive.set_series(&tenant, &[(2, "b".into())]).unwrap();
        assert_eq!(archive.load_counts(&tenant).unwrap().into_keys().collect::<Vec<_>>(), [2], "forgotten");
        archive.expire(&tenant, NOW, 1_000).unwrap();
        assert_eq!(archive.load_counts(&tenant).unwrap(), BTreeMap::new());
    }

    #[test]
    fn damage_and_later_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slo.sqlite");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        assert!(matches!(Archive::open(&path), Err(SloError::Damaged { .. })));
        std::fs::remove_file(&path).unwrap();
        drop(Archive::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Archive::open(&path), Err(SloError::NewerFormat { found: 99, .. })));
    }
}
