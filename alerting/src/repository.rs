//! What alerting must not forget, in SQLite: alerts, groups, silences, the notification log, the outbox.
//!
//! One database, one connection, one writer. Every step of the engine is one [`Changes`] and one
//! transaction, so a decision and its message are there together or not at all (I7); with
//! `synchronous=FULL` they survive power loss. The tenant is part of every key (I13). Not here: any
//! decision.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use crate::alert::Alert;
use crate::digest::Collected;
use crate::dispatch::LogEntry;
use crate::error::AlertingError;
use crate::labels::{Fingerprint, LabelSet};
use crate::matcher::{Matcher, MatcherJson};
use crate::notification::{Notification, ToldAlert};
use crate::outbox::Waiting;
use crate::silence::Silence;

/// How long a statement waits for another process (a person with `sqlite3`) to let go.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Waiting messages of one channel looked at in one go. Those behind them have their turn when these are
/// sent; another channel's are looked at however many this one has.
const WAITING_PER_CHANNEL: i64 = 256;

/// Bytes of an error's text that are kept with a message.
const ERROR_BYTES_MAX: usize = 1_024;

/// Each migration raises `user_version` by one. Released ones never change (I12).
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (
        tenant TEXT NOT NULL,
        name   TEXT NOT NULL,
        value  INTEGER NOT NULL,
        PRIMARY KEY (tenant, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE alerts (
        tenant        TEXT NOT NULL,
        fingerprint   INTEGER NOT NULL,
        labels        TEXT NOT NULL,
        annotations   TEXT NOT NULL,
        starts_at     INTEGER NOT NULL,
        ends_at       INTEGER NOT NULL,
        updated_at    INTEGER NOT NULL,
        timeout       INTEGER NOT NULL,
        generator_url TEXT NOT NULL,
        PRIMARY KEY (tenant, fingerprint)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE alert_history (
        id          INTEGER PRIMARY KEY,
        tenant      TEXT NOT NULL,
        at          INTEGER NOT NULL,
        fingerprint INTEGER NOT NULL,
        event       TEXT NOT NULL CHECK (event IN ('firing', 'resolved')),
        labels      TEXT NOT NULL
    ) STRICT;
    CREATE INDEX alert_history_at ON alert_history (tenant, at);
    CREATE TABLE groups (
        tenant        TEXT NOT NULL,
        route         TEXT NOT NULL,
        labels        TEXT NOT NULL,
        next_flush_at INTEGER NOT NULL,
        flushed       INTEGER NOT NULL,
        PRIMARY KEY (tenant, route, labels)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE silences (
        tenant     TEXT NOT NULL,
        id         TEXT NOT NULL,
        matchers   TEXT NOT NULL,
        starts_at  INTEGER NOT NULL,
        ends_at    INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        comment    TEXT NOT NULL,
        PRIMARY KEY (tenant, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE notification_log (
        tenant    TEXT NOT NULL,
        group_key TEXT NOT NULL,
        channel   TEXT NOT NULL,
        firing    TEXT NOT NULL,
        resolved  TEXT NOT NULL,
        at        INTEGER NOT NULL,
        PRIMARY KEY (tenant, group_key, channel)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE outbox (
        id              INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant          TEXT NOT NULL,
        key             TEXT NOT NULL,
        channel         TEXT NOT NULL,
        group_key       TEXT NOT NULL,
        state           TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'dead')),
        attempts        INTEGER NOT NULL,
        created_at      INTEGER NOT NULL,
        next_attempt_at INTEGER NOT NULL,
        done_at         INTEGER,
        last_error      TEXT,
        payload         TEXT NOT NULL,
        UNIQUE (tenant, key)
    ) STRICT;
    CREATE INDEX outbox_waiting ON outbox (tenant, channel, id) WHERE state = 'waiting';
    CREATE INDEX outbox_done ON outbox (tenant, done_at) WHERE state != 'waiting';
    CREATE TABLE conversations (
        tenant    TEXT NOT NULL,
        channel   TEXT NOT NULL,
        group_key TEXT NOT NULL,
        reference TEXT NOT NULL,
        at        INTEGER NOT NULL,
        PRIMARY KEY (tenant, channel, group_key)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE digests (
        tenant      TEXT NOT NULL,
        channel     TEXT NOT NULL,
        fingerprint INTEGER NOT NULL,
        since       INTEGER NOT NULL,
        receiver    TEXT NOT NULL,
        payload     TEXT NOT NULL,
        PRIMARY KEY (tenant, channel, fingerprint)
    ) STRICT, WITHOUT ROWID;
",
];

/// An event of an alert's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryEvent {
    /// It began.
    Firing,
    /// It ended.
    Resolved,
}

impl HistoryEvent {
    fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// A group as it is kept. Its members are the alerts that route there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    /// The route's id.
    pub route: String,
    /// The group's labels.
    pub labels: LabelSet,
    /// When it is looked at next.
    pub next_flush_at: Timestamp,
    /// Whether it was before.
    pub flushed: bool,
}

/// What one step of the engine changes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Alerts put in the place of those of the same labels.
    pub alerts: Vec<Alert>,
    /// Alerts that are forgotten.
    pub alerts_gone: Vec<Fingerprint>,
    /// What began and ended.
    pub history: Vec<(Timestamp, HistoryEvent, LabelSet)>,
    /// Groups put in place.
    pub groups: Vec<GroupRow>,
    /// Groups that are over: route and labels.
    pub groups_gone: Vec<(String, LabelSet)>,
    /// Silences put in place.
    pub silences: Vec<Silence>,
    /// Silences that are forgotten.
    pub silences_gone: Vec<String>,
    /// Entries of the log put in place: group key, channel, entry.
    pub log: Vec<(String, String, LogEntry)>,
    /// Entries that are forgotten: group key, channel.
    pub log_gone: Vec<(String, String)>,
    /// Messages to be sent.
    pub outbox: Vec<Notification>,
    /// Alerts that channels collect for their digest, each in the place of what it was.
    pub digests: Vec<DigestRow>,
    /// Channels whose collection is now a message.
    pub digests_gone: Vec<String>,
    /// When the process was last known to run.
    pub alive_at: Option<Timestamp>,
}

/// An alert as it waits for a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestRow {
    /// The channel.
    pub channel: String,
    /// The receiver's name.
    pub receiver: String,
    /// When it came; the row in its place keeps the time of the first.
    pub since: Timestamp,
    /// The alert.
    pub alert: ToldAlert,
}

impl Changes {
    /// Adds what a later part of the same step changes. An alert that is put and then gone is gone, since
    /// what goes is written after what is put.
    pub fn append(&mut self, mut later: Self) {
        self.alerts.append(&mut later.alerts);
        self.alerts_gone.append(&mut later.alerts_gone);
        self.history.append(&mut later.history);
        self.groups.append(&mut later.groups);
        self.groups_gone.append(&mut later.groups_gone);
        self.silences.append(&mut later.silences);
        self.silences_gone.append(&mut later.silences_gone);
        self.log.append(&mut later.log);
        self.log_gone.append(&mut later.log_gone);
        self.outbox.append(&mut later.outbox);
        self.digests.append(&mut later.digests);
        self.digests_gone.append(&mut later.digests_gone);
        self.alive_at = later.alive_at.or(self.alive_at);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            alerts,
            alerts_gone,
            history,
            groups,
            groups_gone,
            silences,
            silences_gone,
            log,
            log_gone,
            outbox,
            digests,
            digests_gone,
            alive_at,
        } = self;
        alerts.is_empty()
            && alerts_gone.is_empty()
            && history.is_empty()
            && groups.is_empty()
            && groups_gone.is_empty()
            && silences.is_empty()
            && silences_gone.is_empty()
            && log.is_empty()
            && log_gone.is_empty()
            && outbox.is_empty()
            && digests.is_empty()
            && digests_gone.is_empty()
            && alive_at.is_none()
    }
}

/// Everything a start needs.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Alerts.
    pub alerts: Vec<Alert>,
    /// Groups.
    pub groups: Vec<GroupRow>,
    /// Silences.
    pub silences: Vec<Silence>,
    /// The notification log: group key, channel, entry.
    pub log: Vec<(String, String, LogEntry)>,
    /// What channels have collected for their digests.
    pub digests: BTreeMap<String, Collected>,
    /// When the last process was last known to run.
    pub alive_at: Option<Timestamp>,
}

/// A message that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its number.
    pub id: i64,
    /// What it says.
    pub notification: Notification,
    /// How often sending it failed.
    pub attempts: u32,
    /// When it was decided.
    pub created_at: Timestamp,
    /// What the channel gave us for the group's earlier message, such as Slack's message id.
    pub reference: Option<String>,
}

/// A message with what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its number.
    pub id: i64,
    /// `waiting`, `sent` or `dead`.
    pub state: String,
    /// What it says.
    pub notification: Notification,
    /// How often sending it failed.
    pub attempts: u32,
    /// When it was decided.
    pub created_at: Timestamp,
    /// When it is tried again, of a waiting one.
    pub next_attempt_at: Option<Timestamp>,
    /// When it was taken or given up.
    pub done_at: Option<Timestamp>,
    /// Why sending it failed last; `None` when it was taken.
    pub last_error: Option<String>,
}

/// How many messages there are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxCounts {
    /// To be sent.
    pub waiting: u64,
    /// Taken by their channel.
    pub sent: u64,
    /// Given up.
    pub dead: u64,
}

/// The database, open.
#[derive(Debug)]
pub struct Repository {
    connection: Connection,
    path: PathBuf,
    tenant: String,
}

const fn signed(fingerprint: Fingerprint) -> i64 {
    fingerprint.0.cast_signed()
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("maps of text and numbers have a JSON form")
}

fn hex_list(fingerprints: &BTreeSet<Fingerprint>) -> String {
    let list: Vec<String> = fingerprints.iter().map(ToString::to_string).collect();
    list.join(" ")
}

impl Repository {
    /// Opens or creates the database, checks it, and brings it to this release's version.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, is damaged, or is of a later release.
    pub fn open(path: &Path, tenant: &str) -> Result<Self, AlertingError> {
        let error = AlertingError::database;
        let damaged = |reason: String| AlertingError::Damaged { path: path.to_owned(), reason };
        let mut connection = Connection::open(path).map_err(error("open the database"))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(error("set the busy timeout"))?;
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            .and_then(|()| connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0)))
            .map_err(|source| match source.sqlite_error_code() {
                Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                    damaged(source.to_string())
                }
                _ => error("check the database")(source),
            })
            .and_then(|verdict| if verdict == "ok" { Ok(()) } else { Err(damaged(verdict)) })?;
        let version: u32 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(error("read the version"))?;
        let supported = u32::try_from(MIGRATIONS.len()).expect("there are few migrations");
        if version > supported {
            return Err(AlertingError::NewerFormat { path: path.to_owned(), found: version, supported });
        }
        for (number, migration) in MIGRATIONS.iter().enumerate().skip(version as usize) {
            let transaction = begin(&mut connection)?;
            transaction.execute_batch(migration).map_err(error("migrate"))?;
            let reached = i64::try_from(number + 1).expect("there are few migrations");
            transaction.pragma_update(None, "user_version", reached).map_err(error("migrate"))?;
            transaction.commit().map_err(error("migrate"))?;
        }
        Ok(Self { connection, path: path.to_owned(), tenant: tenant.to_owned() })
    }

    fn damaged(&self, reason: impl std::fmt::Display) -> AlertingError {
        AlertingError::Damaged { path: self.path.clone(), reason: reason.to_string() }
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, text: &str) -> Result<T, AlertingError> {
        serde_json::from_str(text).map_err(|error| self.damaged(error))
    }

    /// Reads what a start needs.
    ///
    /// # Errors
    ///
    /// When the database cannot be read or holds what this program does not write.
    pub fn load(&self) -> Result<Loaded, AlertingError> {
        let error = AlertingError::database;
        let mut loaded = Loaded::default();
        let tenant = self.tenant.as_str();

        let mut statement = self
            .connection
            .prepare(
                "SELECT labels, annotations, starts_at, ends_at, updated_at, timeout, generator_url
                 FROM alerts WHERE tenant = ?1",
            )
            .map_err(error("list alerts"))?;
        let mut rows = statement.query([tenant]).map_err(error("list alerts"))?;
        while let Some(row) = rows.next().map_err(error("list alerts"))? {
            let (labels, annotations, starts_at, ends_at, updated_at, timeout, generator_url): (
                String,
                String,
                i64,
                i64,
                i64,
                bool,
                String,
            ) = row.try_into().map_err(error("list alerts"))?;
            loaded.alerts.push(Alert {
                labels: self.parse(&labels)?,
                annotations: self.parse(&annotations)?,
                starts_at: Timestamp(starts_at),
                ends_at: Timestamp(ends_at),
                updated_at: Timestamp(updated_at),
                timeout,
                generator_url,
            });
        }

        let mut statement = self
            .connection
            .prepare("SELECT route, labels, next_flush_at, flushed FROM groups WHERE tenant = ?1")
            .map_err(error("list groups"))?;
        let mut rows = statement.query([tenant]).map_err(error("list groups"))?;
        while let Some(row) = rows.next().map_err(error("list groups"))? {
            let (route, labels, next_flush_at, flushed): (String, String, i64, bool) =
                row.try_into().map_err(error("list groups"))?;
            let next_flush_at = Timestamp(next_flush_at);
            loaded.groups.push(GroupRow { route, labels: self.parse(&labels)?, next_flush_at, flushed });
        }

        let mut statement = self
            .connection
            .prepare(
                "SELECT id, matchers, starts_at, ends_at, updated_at, created_by, comment
                 FROM silences WHERE tenant = ?1",
            )
            .map_err(error("list silences"))?;
        let mut rows = statement.query([tenant]).map_err(error("list silences"))?;
        while let Some(row) = rows.next().map_err(error("list silences"))? {
            let (id, matchers, starts_at, ends_at, updated_at, created_by, comment): (
                String,
                String,
                i64,
                i64,
                i64,
                String,
                String,
            ) = row.try_into().map_err(error("list silences"))?;
            let matchers: Vec<MatcherJson> = self.parse(&matchers)?;
            let matchers: Result<Vec<Matcher>, _> = matchers.iter().map(Matcher::try_from).collect();
            loaded.silences.push(Silence {
                id,
                matchers: matchers.map_err(|error| self.damaged(error))?,
                starts_at: Timestamp(starts_at),
                ends_at: Timestamp(ends_at),
                updated_at: Timestamp(updated_at),
                created_by,
                comment,
            });
        }

        let mut statement = self
            .connection
            .prepare("SELECT group_key, channel, firing, resolved, at FROM notification_log WHERE tenant = ?1")
            .map_err(error("read the notification log"))?;
        let mut rows = statement.query([tenant]).map_err(error("read the notification log"))?;
        let list = |text: &str| -> Result<BTreeSet<Fingerprint>, AlertingError> {
            text.split_whitespace().map(|one| one.parse().map_err(|error| self.damaged(error))).collect()
        };
        while let Some(row) = rows.next().map_err(error("read the notification log"))? {
            let (group_key, channel, firing, resolved, at): (String, String, String, String, i64) =
                row.try_into().map_err(error("read the notification log"))?;
            let entry = LogEntry { firing: list(&firing)?, resolved: list(&resolved)?, at: Timestamp(at) };
            loaded.log.push((group_key, channel, entry));
        }

        let mut statement = self
            .connection
            .prepare("SELECT channel, fingerprint, since FROM digests WHERE tenant = ?1")
            .map_err(error("list digests"))?;
        let mut rows = statement.query([tenant]).map_err(error("list digests"))?;
        while let Some(row) = rows.next().map_err(error("list digests"))? {
            let (channel, fingerprint, since): (String, i64, i64) = row.try_into().map_err(error("list digests"))?;
            let since = Timestamp(since);
            let collected =
                loaded.digests.entry(channel).or_insert_with(|| Collected { since, alerts: BTreeSet::new() });
            collected.since = collected.since.min(since);
            collected.alerts.insert(Fingerprint(fingerprint.cast_unsigned()));
        }

        loaded.alive_at = self
            .connection
            .query_row("SELECT value FROM meta WHERE tenant = ?1 AND name = 'alive_at'", [tenant], |row| row.get(0))
            .optional()
            .map_err(error("read a value"))?
            .map(Timestamp);
        Ok(loaded)
    }

    /// Commits one step.
    ///
    /// # Errors
    ///
    /// When the transaction fails; nothing of it is kept then.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), AlertingError> {
        if changes.is_empty() {
            return Ok(());
        }
        let tenant = self.tenant.clone();
        let transaction = begin(&mut self.connection)?;
        write(&transaction, &tenant, changes).map_err(AlertingError::database("write a change"))?;
        transaction.commit().map_err(AlertingError::database("commit a change"))
    }

    /// What a channel has collected for its digest: the receiver's name and the alerts.
    ///
    /// # Errors
    ///
    /// When the database cannot be read or holds what this program does not write.
    pub fn digest(&self, channel: &str) -> Result<(String, Vec<ToldAlert>), AlertingError> {
        let error = AlertingError::database;
        let mut statement = self
            .connection
            .prepare_cached("SELECT receiver, payload FROM digests WHERE tenant = ?1 AND channel = ?2")
            .map_err(error("read a digest"))?;
        let mut rows = statement.query(params![self.tenant, channel]).map_err(error("read a digest"))?;
        let (mut receiver, mut alerts) = (String::new(), Vec::new());
        while let Some(row) = rows.next().map_err(error("read a digest"))? {
            receiver = row.get(0).map_err(error("read a digest"))?;
            alerts.push(self.parse(&row.get::<_, String>(1).map_err(error("read a digest"))?)?);
        }
        Ok((receiver, alerts))
    }

    /// Waiting messages in the order of their ids.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn waiting(&self) -> Result<Vec<Waiting>, AlertingError> {
        let error = AlertingError::database;
        let mut statement = self
            .connection
            .prepare_cached(
                // From channel to channel by the index, so that a long queue costs no more than a short one.
                "WITH RECURSIVE channels (channel) AS (
                     SELECT min(channel) FROM outbox WHERE tenant = ?1 AND state = 'waiting'
                     UNION ALL
                     SELECT (SELECT min(channel) FROM outbox
                             WHERE tenant = ?1 AND state = 'waiting' AND channel > channels.channel)
                     FROM channels WHERE channel IS NOT NULL)
                 SELECT o.id, o.channel, o.group_key, o.attempts, o.next_attempt_at
                 FROM channels JOIN outbox AS o ON o.id IN (
                     SELECT id FROM outbox
                     WHERE tenant = ?1 AND state = 'waiting' AND channel = channels.channel ORDER BY id LIMIT ?2)
                 ORDER BY o.id",
            )
            .map_err(error("read the outbox"))?;
        let rows = statement
            .query_map(params![self.tenant, WAITING_PER_CHANNEL], |row| {
                Ok(Waiting {
                    id: row.get(0)?,
                    channel: row.get(1)?,
                    group_key: row.get(2)?,
                    attempts: row.get(3)?,
                    next_attempt_at: Timestamp(row.get(4)?),
                })
            })
            .map_err(error("read the outbox"))?;
        rows.collect::<Result<_, _>>().map_err(error("read the outbox"))
    }

    /// A message by its number, if it is waiting still.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn delivery(&self, id: i64) -> Result<Option<Delivery>, AlertingError> {
        let row = self
            .connection
            .query_row(
                "SELECT payload, attempts, created_at,
                        (SELECT reference FROM conversations AS c
                         WHERE c.tenant = o.tenant AND c.channel = o.channel AND c.group_key = o.group_key)
                 FROM outbox AS o WHERE tenant = ?1 AND id = ?2 AND state = 'waiting'",
                params![self.tenant, id],
                |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )
            .optional()
            .map_err(AlertingError::database("read a message"))?;
        row.map(|(payload, attempts, created_at, reference)| {
            let notification = self.parse(&payload)?;
            Ok(Delivery { id, notification, attempts, created_at: Timestamp(created_at), reference })
        })
        .transpose()
    }

    /// Notes that a message was taken, and what the channel calls it; `None` ends the conversation.
    ///
    /// # Errors
    ///
    /// When the transaction fails.
    pub fn sent(&mut self, delivery: &Delivery, reference: Option<&str>, now: Timestamp) -> Result<(), AlertingError> {
        let error = AlertingError::database("note a sent message");
        let tenant = self.tenant.clone();
        let transaction = begin(&mut self.connection)?;
        let notification = &delivery.notification;
        transaction
            .execute(
                "UPDATE outbox SET state = 'sent', done_at = ?3, last_error = NULL WHERE tenant = ?1 AND id = ?2",
                params![tenant, delivery.id, now.0],
            )
            .map_err(&error)?;
        match reference {
            Some(reference) => transaction.execute(
                "INSERT INTO conversations (tenant, channel, group_key, reference, at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET reference = excluded.reference, at = excluded.at",
                params![tenant, notification.channel, notification.group_key, reference, now.0],
            ),
            None => transaction.execute(
                "DELETE FROM conversations WHERE tenant = ?1 AND channel = ?2 AND group_key = ?3",
                params![tenant, notification.channel, notification.group_key],
            ),
        }
        .map_err(&error)?;
        transaction.commit().map_err(&error)
    }

    /// Notes that sending a message failed and when it is tried again.
    ///
    /// # Errors
    ///
    /// When the transaction fails.
    pub fn retry(&mut self, id: i64, next: Timestamp, reason: &str) -> Result<(), AlertingError> {
        self.connection
            .execute(
                "UPDATE outbox SET attempts = attempts + 1, next_attempt_at = ?3, last_error = ?4
                 WHERE tenant = ?1 AND id = ?2 AND state = 'waiting'",
                params![self.tenant, id, next.0, cut(reason)],
            )
            .map(|_| ())
            .map_err(AlertingError::database("note a failed message"))
    }

    /// Gives a message up. In the same transaction the log forgets that the channel was told, so that
    /// the group's next look tells it again.
    ///
    /// # Errors
    ///
    /// When the transaction fails.
    pub fn dead(&mut self, delivery: &Delivery, reason: &str, now: Timestamp) -> Result<(), AlertingError> {
        let error = AlertingError::database("note a dead letter");
        let tenant = self.tenant.clone();
        let transaction = begin(&mut self.connection)?;
        let notification = &delivery.notification;
        transaction
            .execute(
                "UPDATE outbox SET state = 'dead', attempts = attempts + 1, done_at = ?3, last_error = ?4
                 WHERE tenant = ?1 AND id = ?2",
                params![tenant, delivery.id, now.0, cut(reason)],
            )
            .map_err(&error)?;
        transaction
            .execute(
                "DELETE FROM notification_log WHERE tenant = ?1 AND group_key = ?2 AND channel = ?3 AND at = ?4",
                params![tenant, notification.group_key, notification.channel, notification.at],
            )
            .map_err(&error)?;
        transaction.commit().map_err(&error)
    }

    /// Deletes history, finished messages and conversations from before a time.
    ///
    /// # Errors
    ///
    /// When the transaction fails.
    pub fn forget_before(&mut self, before: Timestamp) -> Result<(), AlertingError> {
        let error = AlertingError::database("forget what is old");
        let tenant = self.tenant.clone();
        let transaction = begin(&mut self.connection)?;
        for sql in [
            "DELETE FROM alert_history WHERE tenant = ?1 AND at < ?2",
            "DELETE FROM outbox WHERE tenant = ?1 AND state != 'waiting' AND done_at < ?2",
            "DELETE FROM conversations WHERE tenant = ?1 AND at < ?2",
        ] {
            transaction.execute(sql, params![tenant, before.0]).map_err(&error)?;
        }
        transaction.commit().map_err(&error)
    }

    /// How many messages there are.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn outbox_counts(&self) -> Result<OutboxCounts, AlertingError> {
        let error = AlertingError::database;
        let mut statement = self
            .connection
            .prepare_cached("SELECT state, count(*) FROM outbox WHERE tenant = ?1 GROUP BY state")
            .map_err(error("count messages"))?;
        let mut rows = statement.query([&self.tenant]).map_err(error("count messages"))?;
        let mut counts = OutboxCounts::default();
        while let Some(row) = rows.next().map_err(error("count messages"))? {
            let (state, count): (String, i64) = row.try_into().map_err(error("count messages"))?;
            let count = count.cast_unsigned();
            match state.as_str() {
                "waiting" => counts.waiting = count,
                "sent" => counts.sent = count,
                _ => counts.dead = count,
            }
        }
        Ok(counts)
    }

    /// Messages that wait and those of the last days that do not, newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn messages(&self, limit: u32) -> Result<Vec<OutboxRow>, AlertingError> {
        let error = AlertingError::database;
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT id, state, attempts, created_at, next_attempt_at, done_at, last_error, payload
                 FROM outbox WHERE tenant = ?1 ORDER BY id DESC LIMIT ?2",
            )
            .map_err(error("read messages"))?;
        let mut rows = statement.query(params![self.tenant, limit]).map_err(error("read messages"))?;
        let mut messages = Vec::new();
        while let Some(row) = rows.next().map_err(error("read messages"))? {
            type Columns = (i64, String, u32, i64, i64, Option<i64>, Option<String>, String);
            let columns: Columns = row.try_into().map_err(error("read messages"))?;
            let (id, state, attempts, created_at, next_attempt_at, done_at, last_error, payload) = columns;
            messages.push(OutboxRow {
                id,
                next_attempt_at: (state == "waiting").then_some(Timestamp(next_attempt_at)),
                state,
                notification: self.parse(&payload)?,
                attempts,
                created_at: Timestamp(created_at),
                done_at: done_at.map(Timestamp),
                last_error,
            });
        }
        Ok(messages)
    }

    /// The newest `limit` entries of the history, newest first.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn latest_history(&self, limit: u32) -> Result<Vec<(Timestamp, HistoryEvent, LabelSet)>, AlertingError> {
        self.read_history(
            "SELECT at, event, labels FROM alert_history WHERE tenant = ?1 AND at >= ?2 ORDER BY id DESC LIMIT ?3",
            Timestamp(i64::MIN),
            limit,
        )
    }

    /// The history from a time on: when, what, labels; oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn history(
        &self,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<(Timestamp, HistoryEvent, LabelSet)>, AlertingError> {
        self.read_history(
            "SELECT at, event, labels FROM alert_history WHERE tenant = ?1 AND at >= ?2 ORDER BY id LIMIT ?3",
            since,
            limit,
        )
    }

    fn read_history(
        &self,
        sql: &str,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<(Timestamp, HistoryEvent, LabelSet)>, AlertingError> {
        let error = AlertingError::database;
        let mut statement = self.connection.prepare_cached(sql).map_err(error("read the history"))?;
        let mut rows = statement.query(params![self.tenant, since.0, limit]).map_err(error("read the history"))?;
        let mut history = Vec::new();
        while let Some(row) = rows.next().map_err(error("read the history"))? {
            let (at, event, labels): (i64, String, String) = row.try_into().map_err(error("read the history"))?;
            let event = if event == "firing" { HistoryEvent::Firing } else { HistoryEvent::Resolved };
            history.push((Timestamp(at), event, self.parse(&labels)?));
        }
        Ok(history)
    }
}

fn begin(connection: &mut Connection) -> Result<Transaction<'_>, AlertingError> {
    connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(AlertingError::database("begin a transaction"))
}

/// A text cut to what is kept.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(ERROR_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn write(transaction: &Transaction<'_>, tenant: &str, changes: &Changes) -> Result<(), rusqlite::Error> {
    for alert in &changes.alerts {
        transaction
            .prepare_cached(
                "INSERT INTO alerts (tenant, fingerprint, labels, annotations, starts_at, ends_at, updated_at,
                                     timeout, generator_url)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT DO UPDATE SET labels = excluded.labels, annotations = excluded.annotations,
                     starts_at = excluded.starts_at, ends_at = excluded.ends_at, updated_at = excluded.updated_at,
                     timeout = excluded.timeout, generator_url = excluded.generator_url",
            )?
            .execute(params![
                tenant,
                signed(alert.fingerprint()),
                json(&alert.labels),
                json(&alert.annotations),
                alert.starts_at.0,
                alert.ends_at.0,
                alert.updated_at.0,
                alert.timeout,
                alert.generator_url
            ])?;
    }
    for fingerprint in &changes.alerts_gone {
        transaction
            .prepare_cached("DELETE FROM alerts WHERE tenant = ?1 AND fingerprint = ?2")?
            .execute(params![tenant, signed(*fingerprint)])?;
    }
    for (at, event, labels) in &changes.history {
        transaction
            .prepare_cached(
                "INSERT INTO alert_history (tenant, at, fingerprint, event, labels) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![tenant, at.0, signed(labels.fingerprint()), event.as_str(), json(labels)])?;
    }
    for group in &changes.groups {
        transaction
            .prepare_cached(
                "INSERT INTO groups (tenant, route, labels, next_flush_at, flushed) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET next_flush_at = excluded.next_flush_at, flushed = excluded.flushed",
            )?
            .execute(params![tenant, group.route, json(&group.labels), group.next_flush_at.0, group.flushed])?;
    }
    for (route, labels) in &changes.groups_gone {
        transaction
            .prepare_cached("DELETE FROM groups WHERE tenant = ?1 AND route = ?2 AND labels = ?3")?
            .execute(params![tenant, route, json(labels)])?;
    }
    for silence in &changes.silences {
        let matchers: Vec<MatcherJson> = silence.matchers.iter().map(MatcherJson::from).collect();
        transaction
            .prepare_cached(
                "INSERT INTO silences (tenant, id, matchers, starts_at, ends_at, updated_at, created_by, comment)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT DO UPDATE SET matchers = excluded.matchers, starts_at = excluded.starts_at,
                     ends_at = excluded.ends_at, updated_at = excluded.updated_at,
                     created_by = excluded.created_by, comment = excluded.comment",
            )?
            .execute(params![
                tenant,
                silence.id,
                json(&matchers),
                silence.starts_at.0,
                silence.ends_at.0,
                silence.updated_at.0,
                silence.created_by,
                silence.comment
            ])?;
    }
    for id in &changes.silences_gone {
        transaction
            .prepare_cached("DELETE FROM silences WHERE tenant = ?1 AND id = ?2")?
            .execute(params![tenant, id])?;
    }
    for (group_key, channel, entry) in &changes.log {
        transaction
            .prepare_cached(
                "INSERT INTO notification_log (tenant, group_key, channel, firing, resolved, at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET firing = excluded.firing, resolved = excluded.resolved, at = excluded.at",
            )?
            .execute(params![
                tenant,
                group_key,
                channel,
                hex_list(&entry.firing),
                hex_list(&entry.resolved),
                entry.at.0
            ])?;
    }
    for (group_key, channel) in &changes.log_gone {
        transaction
            .prepare_cached("DELETE FROM notification_log WHERE tenant = ?1 AND group_key = ?2 AND channel = ?3")?
            .execute(params![tenant, group_key, channel])?;
    }
    for notification in &changes.outbox {
        transaction
            .prepare_cached(
                "INSERT INTO outbox (tenant, key, channel, group_key, state, attempts, created_at, next_attempt_at,
                                     payload)
                 VALUES (?1, ?2, ?3, ?4, 'waiting', 0, ?5, ?5, ?6)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                tenant,
                notification.key,
                notification.channel,
                notification.group_key,
                notification.at,
                json(notification)
            ])?;
    }
    for row in &changes.digests {
        transaction
            .prepare_cached(
                "INSERT INTO digests (tenant, channel, fingerprint, since, receiver, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET receiver = excluded.receiver, payload = excluded.payload",
            )?
            .execute(params![
                tenant,
                row.channel,
                signed(row.alert.labels.fingerprint()),
                row.since.0,
                row.receiver,
                json(&row.alert)
            ])?;
    }
    for channel in &changes.digests_gone {
        transaction
            .prepare_cached("DELETE FROM digests WHERE tenant = ?1 AND channel = ?2")?
            .execute(params![tenant, channel])?;
    }
    if let Some(at) = changes.alive_at {
        transaction
            .prepare_cached(
                "INSERT INTO meta (tenant, name, value) VALUES (?1, 'alive_at', ?2)
                 ON CONFLICT DO UPDATE SET value = excluded.value",
            )?
            .execute(params![tenant, at.0])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notification::Reason;

    #[test]
    fn a_long_queue_hides_no_other_channel_and_tenants_see_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sqlite");
        let message = |channel: &str, number: i64| Notification {
            key: format!("{channel}{number}"),
            channel: channel.to_owned(),
            receiver: "r".to_owned(),
            group_key: "g".to_owned(),
            group_labels: LabelSet::default(),
            alerts: Vec::new(),
            reason: Reason::First,
            left_out: 0,
            at: number,
        };
        let mut repository = Repository::open(&path, "one").unwrap();
        let many = (0..WAITING_PER_CHANNEL + 50).map(|number| message("a", number));
        let outbox = many.chain([message("b", 0), message("c", 0)]).collect();
        repository.commit(&Changes { outbox, ..Changes::default() }).unwrap();
        // The same key again is the same message.
        repository.commit(&Changes { outbox: vec![message("b", 0)], ..Changes::default() }).unwrap();
        let waiting = repository.waiting().unwrap();
        let of = |channel: &str| waiting.iter().filter(|one| one.channel == channel).count() as i64;
        assert_eq!((of("a"), of("b"), of("c")), (WAITING_PER_CHANNEL, 1, 1));
        assert!(waiting.is_sorted_by_key(|one| one.id));
        assert!(Repository::open(&path, "two").unwrap().waiting().unwrap().is_empty());
        assert_eq!(repository.outbox_counts().unwrap().waiting, 308);
    }

    #[test]
    fn a_database_that_is_none_or_of_a_later_release_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sqlite");
        std::fs::write(&path, "this is not a database, and long enough to be looked at as one".repeat(40)).unwrap();
        let error = Repository::open(&path, "one").unwrap_err();
        assert!(matches!(error, AlertingError::Damaged { .. }) && error.to_string().contains("a.sqlite"), "{error}");
        let later = folder.path().join("b.sqlite");
        drop(Repository::open(&later, "one").unwrap());
        Connection::open(&later).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Repository::open(&later, "one"), Err(AlertingError::NewerFormat { found: 99, .. })));
    }
}
