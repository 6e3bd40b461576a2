//! One connection: who it is, what it asks, and the answers, in both of PostgreSQL's query protocols.
//!
//! While the engine works, the connection is read on, so that a client that goes away takes its query with it. Rows are
//! written in slices into one buffer that is flushed as it fills, so an answer of any length needs little memory.
//! Not here: bytes ([`super::frame`]), values ([`super::values`]), and what a statement is ([`super::command`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::BytesMut;
use query::catalog::types::{self, ColumnType, column_type};
use query::catalog::{DATABASE, POSTGRES_VERSION};
use query::script::{self, Part};
use query::{Client, Limits, QueryError, QueryOutput};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::command::{Command, Setting, Unclear, default_setting, setting};
use super::frame::{Field, Frame, FrameError, Frames as _, Notice, Reader, Startup, Target};
use super::values::{BINARY, Columns, literal};
use super::{Cancel, Entered, Shared};
use crate::auth::{AuthError, Edition, Scope};

/// How long a client may take until it has said who it is.
const STARTUP_PATIENCE: Duration = Duration::from_secs(10);

/// The buffer is flushed at this size, bytes.
const FLUSH_BYTES: usize = 64 << 10;

/// Rows that are written before the buffer is looked at again.
const ROWS_AT_ONCE: usize = 256;

/// Statements of one text.
const SCRIPT_MAX: usize = 100;

/// Prepared statements of one session. Drivers that prepare everything keep about a hundred.
const PREPARED_MAX: usize = 500;

/// Portals of one session.
const PORTALS_MAX: usize = 50;

/// Settings that a session may keep.
const SETTINGS_MAX: usize = 200;

/// The setting for the rows an answer may have.
const ROWS_MAX: &str = "godseye.rows_max";

/// What a client is told when something fails.
#[derive(Debug)]
struct Failed {
    state: &'static str,
    message: String,
    hint: Option<String>,
}

impl Failed {
    fn new(state: &'static str, message: impl Into<String>) -> Self {
        Self { state, message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn notice(&self, severity: &'static str) -> Notice<'_> {
        Notice { severity, state: self.state, message: &self.message, hint: self.hint.as_deref() }
    }
}

/// How a statement may end early.
#[derive(Debug)]
enum Stop {
    /// The client is told.
    Failed(Failed),
    /// There is nobody to tell.
    Gone,
}

impl From<QueryError> for Stop {
    fn from(error: QueryError) -> Self {
        Self::Failed(Failed { state: error.sqlstate(), message: error.message, hint: error.hint })
    }
}

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<Unclear> for Stop {
    fn from(unclear: Unclear) -> Self {
        let state = if unclear.0.contains("does not exist") { "42704" } else { "42601" };
        Self::Failed(Failed::new(state, unclear.0))
    }
}

/// The client's end, with what is not sent yet.
struct Out {
    sink: OwnedWriteHalf,
    buffer: BytesMut,
    /// How long the client may take to read what is written, until it counts as gone. Its query holds a permit meanwhile.
    patience: Duration,
}

impl Out {
    async fn flush(&mut self) -> Result<(), Stop> {
        let written = tokio::time::timeout(self.patience, self.sink.write_all(&self.buffer)).await;
        self.buffer.clear();
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Stop::Gone),
        }
    }
}

/// Whether statements are in a transaction, and whether one of them failed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transaction {
    None,
    Open,
    Failed,
}

impl Transaction {
    const fn status(self) -> u8 {
        match self {
            Self::None => b'I',
            Self::Open => b'T',
            Self::Failed => b'E',
        }
    }
}

/// A statement that was parsed.
#[derive(Clone)]
struct Prepared {
    text: String,
    command: Command,
    /// Types of its parameters.
    parameters: Vec<u32>,
    /// Its columns: names and types; none for what answers nothing.
    columns: Vec<(String, ColumnType)>,
    /// Whether a client was told the columns.
    announced: bool,
}

/// A statement with its parameters, ready to run.
struct Portal {
    prepared: Prepared,
    bound: String,
    formats: Vec<i16>,
    running: Option<Running>,
    /// Whether it has run to its end.
    ended: bool,
    /// Whether its time was up before its last row was asked for.
    expired: bool,
}

/// A query whose rows are being sent.
struct Running {
    output: QueryOutput,
    columns: Vec<(ColumnType, i16)>,
    rest: Option<RecordBatch>,
    limits: Limits,
    /// When its time is up. The engine looks when it is asked for rows; a portal may not be.
    expires: Instant,
    sent: u64,
    _export: Option<OwnedSemaphorePermit>,
}

/// Serves one connection to its end.
pub(super) async fn run(socket: TcpStream, shared: Arc<Shared>, stop: CancellationToken) {
    // Answers are written in few large pieces, and a small one should not wait for the next.
    drop(socket.set_nodelay(true));
    let (source, sink) = socket.into_split();
    let mut reader = Reader::new(source);
    let mut out = Out { sink, buffer: BytesMut::new(), patience: shared.doors.0.deps.send_timeout };
    let opened = tokio::select! {
        () = stop.cancelled() => return,
        opened = tokio::time::timeout(STARTUP_PATIENCE, open(&mut reader, &mut out, &shared)) => opened,
    };
    let (client, edition, entered, parameters) = match opened {
        Ok(Ok(Some(opened))) => opened,
        // A request to cancel is answered by closing; so is a client that says nothing.
        Ok(Ok(None) | Err(Stop::Gone)) | Err(_) => return,
        Ok(Err(Stop::Failed(failed))) => {
            out.buffer.notice(b'E', &failed.notice("FATAL"));
            drop(out.flush().await);
            return;
        }
    };
    let mut session = Session {
        shared,
        reader,
        out,
        client,
        edition,
        entered,
        transaction: Transaction::None,
        settings: HashMap::new(),
        prepared: HashMap::new(),
        portals: HashMap::new(),
        skipping: false,
    };
    if session.greet(&parameters).await.is_ok() {
        session.serve(&stop).await;
    }
}

type Opened = (Client, Edition, Entered, Vec<(String, String)>);

/// Finds out who connects; `None` when the connection was only to stop another one's query.
async fn open(reader: &mut Reader<OwnedReadHalf>, out: &mut Out, shared: &Arc<Shared>) -> Result<Option<Opened>, Stop> {
    let fatal = |error: FrameError| match error {
        FrameError::Gone => Stop::Gone,
        other => Failed::new("08P01", other.to_string()).into(),
    };
    let mut asked_to_encrypt = 0;
    let (version, parameters) = loop {
        match reader.startup().await.map_err(fatal)? {
            // TLS and GSSAPI, once each.
            Startup::Encryption if asked_to_encrypt < 2 => {
                asked_to_encrypt += 1;
                out.buffer.extend_from_slice(b"N");
                out.flush().await?;
            }
            Startup::Encryption => return Err(Failed::new("08P01", "this server has no encryption").into()),
            Startup::Cancel { process, secret } => {
                shared.cancel(process, secret);
                return Ok(None);
            }
            Startup::Session { version, parameters } => break (version, parameters),
        }
    };
    if version.0 != 3 {
        let message = format!("protocol {}.{} is not spoken here: expected 3.0", version.0, version.1);
        return Err(Failed::new("08P01", message).into());
    }
    let unknown: Vec<&str> =
        parameters.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("_pq_.")).collect();
    if version.1 > 0 || !unknown.is_empty() {
        out.buffer.newest_version(&unknown);
    }
    if parameters
        .iter()
        .any(|(name, value)| name == "replication" && !["false", "off", "0", "no"].contains(&value.as_str()))
    {
        return Err(Failed::new("0A000", "replication is not available: this door only reads").into());
    }
    let authenticator = &shared.doors.0.deps.authenticator;
    let edition = authenticator.edition();
    let client = if authenticator.is_open() {
        let program =
            parameters.iter().find(|(name, _)| name == "application_name").map(|(_, program)| program.as_str());
        authenticator.authorize_token(None, Scope::Query).map(|tenant| Client::new(tenant, program))
    } else {
        const CLEARTEXT_PASSWORD: i32 = 3;
        out.buffer.authentication(CLEARTEXT_PASSWORD);
        out.flush().await?;
        let Frame::Password(password) = reader.next().await.map_err(fatal)? else {
            return Err(Failed::new("08P01", "expected a password").into());
        };
        let tenant = authenticator.authorize_token(Some(&password), Scope::Query);
        tenant.map(|tenant| Client::new(tenant, Some(&password)))
    };
    let client = client.map_err(|refused| match refused {
        AuthError::Unauthenticated => {
            Failed::new("28P01", "a valid token is required").hint("send it as the password, with any user name")
        }
        AuthError::PermissionDenied => Failed::new("28000", refused.to_string()),
    })?;
    if shared.doors.0.opened.get().is_none() {
        let failed = Failed::new("57P03", "the server is still reading its log");
        return Err(failed.hint("GET /readyz on the HTTP door tells how far it is").into());
    }
    let entered = shared.enter().map_err(|error| Failed::new("XX000", format!("no random numbers: {error}")))?;
    Ok(Some((client, edition, entered, parameters)))
}

struct Session {
    shared: Arc<Shared>,
    reader: Reader<OwnedReadHalf>,
    out: Out,
    client: Client,
    /// The tokens by which it was let in.
    edition: Edition,
    entered: Entered,
    transaction: Transaction,
    settings: HashMap<String, String>,
    prepared: HashMap<String, Prepared>,
    portals: HashMap<String, Portal>,
    /// After an error, until the client says that it knows.
    skipping: bool,
}

/// Ends at a time, if there is one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits for work, and stops it when it is asked to or its client goes away.
async fn watched<T>(
    reader: &mut Reader<OwnedReadHalf>,
    cancel: &Cancel,
    work: impl Future<Output = T>,
) -> Result<T, Stop> {
    tokio::select! {
        biased;
        () = cancel.asked() => Err(Failed::new("57014", "canceling statement due to user request").into()),
        done = work => Ok(done),
        () = reader.gone() => Err(Stop::Gone),
    }
}

impl Session {
    /// Tells the client who it is and what to expect.
    async fn greet(&mut self, parameters: &[(String, String)]) -> Result<(), Stop> {
        let mut user = DATABASE;
        for (name, value) in parameters {
            match name.as_str() {
                "user" => user = value,
                "database" | "replication" => {}
                "options" => {
                    let options =
                        value.split("-c").filter_map(|option| option.trim().trim_start_matches('-').split_once('='));
                    for (name, value) in options {
                        self.apply(&name.trim().to_ascii_lowercase(), value.trim());
                    }
                }
                name if name.starts_with("_pq_.") => {}
                name => self.apply(&name.to_ascii_lowercase(), value),
            }
        }
        let out = &mut self.out.buffer;
        out.authentication(0);
        let application_name = self.settings.get("application_name").map_or("", String::as_str);
        for (name, value) in [
            ("server_version", POSTGRES_VERSION),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, MDY"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
            ("default_transaction_read_only", "on"),
            ("in_hot_standby", "off"),
            ("is_superuser", "off"),
            ("session_authorization", user),
            ("application_name", application_name),
        ] {
            out.parameter(name, value);
        }
        out.key(self.entered.process, self.entered.secret);
        out.ready(self.transaction.status());
        self.out.flush().await
    }

    /// Answers until the client ends, or `stop`.
    async fn serve(mut self, stop: &CancellationToken) {
        loop {
            let expiry = self.next_expiry();
            let frame = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.end(&Failed::new("57P01", "the server is stopping")).await;
                    return;
                }
                frame = self.reader.next() => frame,
                () = until(expiry) => {
                    self.expire();
                    continue;
                }
            };
            // A token that was taken away must not go on in a session that it opened.
            if !self.shared.doors.0.deps.authenticator.is_current(&self.edition) {
                self.end(&Failed::new("57P01", "the tokens have changed").hint("connect again")).await;
                return;
            }
            let answered = match frame {
                Err(FrameError::Gone) | Ok(Frame::Terminate) => return,
                Err(error) => {
                    self.end(&Failed::new("08P01", error.to_string())).await;
                    return;
                }
                Ok(Frame::Query(sql)) => {
                    self.skipping = false;
                    self.simple(&sql).await
                }
                Ok(Frame::Sync) => {
                    self.skipping = false;
                    if self.transaction == Transaction::None {
                        self.portals.clear();
                    }
                    self.out.buffer.ready(self.transaction.status());
                    self.out.flush().await
                }
                Ok(_) if self.skipping => Ok(()),
                Ok(frame) => {
                    let answered = self.extended(frame).await;
                    match self.tell(answered, true) {
                        // At once: a client may wait for the error before it says that it knows.
                        Ok(()) if self.skipping => self.out.flush().await,
                        told => told,
                    }
                }
            };
            if answered.is_err() {
                return;
            }
        }
    }

    /// When the first of the portals that wait to be read has to give its permit back.
    fn next_expiry(&self) -> Option<Instant> {
        self.portals.values().filter_map(|portal| portal.running.as_ref()).map(|running| running.expires).min()
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for portal in self.portals.values_mut() {
            if portal.running.as_ref().is_some_and(|running| running.expires <= now) {
                portal.running = None;
                portal.expired = true;
            }
        }
    }

    async fn end(&mut self, failed: &Failed) {
        self.out.buffer.notice(b'E', &failed.notice("FATAL"));
        drop(self.out.flush().await);
    }

    /// Writes what failed; only a client that is gone is an error after this.
    fn tell(&mut self, answered: Result<(), Stop>, extended: bool) -> Result<(), Stop> {
        match answered {
            Err(Stop::Failed(failed)) => {
                self.out.buffer.notice(b'E', &failed.notice("ERROR"));
                if self.transaction == Transaction::Open {
                    self.transaction = Transaction::Failed;
                }
                self.skipping = extended;
                Ok(())
            }
            other => other,
        }
    }

    /// A text of statements, each answered in turn, until one fails.
    async fn simple(&mut self, sql: &str) -> Result<(), Stop> {
        self.portals.remove("");
        let answered = self.script(sql).await;
        self.tell(answered, false)?;
        self.out.buffer.ready(self.transaction.status());
        self.out.flush().await
    }

    async fn script(&mut self, sql: &str) -> Result<(), Stop> {
        let parts = script::split(sql)?;
        if parts.is_empty() {
            self.out.buffer.bare(b'I');
        }
        if parts.len() > SCRIPT_MAX {
            return Err(Failed::new(
                "54000",
                format!("{} statements in one text are over the limit of {SCRIPT_MAX}", parts.len()),
            )
            .into());
        }
        for part in parts {
            self.entered.cancel.forget();
            match Command::of(&part)? {
                Command::Ask => self.ask(part.text).await?,
                Command::Execute { name, arguments } => {
                    let bound = self.bind_typed(&part, &name, &arguments)?;
                    self.ask(&bound).await?;
                }
                Command::Prepare { name, types, from } => {
                    self.check_transaction()?;
                    self.parse(name, &part.text[from..], &types).await?;
                    self.out.buffer.complete("PREPARE");
                }
                command => self.obey(&command, true)?,
            }
        }
        Ok(())
    }

    /// A question of the simple protocol, with its answer in text.
    async fn ask(&mut self, sql: &str) -> Result<(), Stop> {
        self.check_transaction()?;
        let mut running = self.start(sql, &[]).await?;
        let fields = fields(&running.output.schema, &running.columns);
        self.out.buffer.row_description(&fields);
        self.rows(&mut running, None).await?;
        self.finish(&running, sql);
        Ok(())
    }

    fn check_transaction(&self) -> Result<(), Stop> {
        if self.transaction == Transaction::Failed {
            let failed = Failed::new("25P02", "the transaction has failed: statements are ignored until it ends");
            return Err(failed.hint("ROLLBACK ends it").into());
        }
        Ok(())
    }

    /// Starts a query; `formats` are those of its columns, text when there are none.
    async fn start(&mut self, sql: &str, formats: &[i16]) -> Result<Running, Stop> {
        let (mut limits, export) = crate::sql::limits(&self.shared.doors, self.rows_max())?;
        if let Some(timeout) = self.settings.get("statement_timeout").and_then(|value| milliseconds(value)) {
            limits.timeout = limits.timeout.min(timeout);
        }
        let Some(opened) = self.shared.doors.0.opened.get() else {
            return Err(Failed::new("57P03", "the server is still reading its log").into());
        };
        let expires = Instant::now() + limits.timeout;
        let query = opened.engine.query_of(&self.client, sql, limits);
        let output = watched(&mut self.reader, &self.entered.cancel, query).await??;
        let columns = output.schema.fields().iter().map(|field| column_type(field.data_type()));
        let columns: Vec<ColumnType> = columns.collect();
        let formats = spread(formats, columns.len())?;
        Ok(Running {
            output,
            columns: columns.into_iter().zip(formats).collect(),
            rest: None,
            limits,
            expires,
            sent: 0,
            _export: export,
        })
    }

    fn rows_max(&self) -> Option<u64> {
        self.settings.get(ROWS_MAX).and_then(|rows| rows.parse().ok())
    }

    /// Sends rows, at most so many; whether there may be more.
    async fn rows(&mut self, running: &mut Running, rows_max: Option<u64>) -> Result<bool, Stop> {
        let mut left = rows_max.unwrap_or(u64::MAX);
        let mut text = String::new();
        loop {
            let batch = match running.rest.take() {
                Some(batch) => batch,
                None => match watched(&mut self.reader, &self.entered.cancel, running.output.next()).await? {
                    Some(batch) => batch?,
                    None => break,
                },
            };
            let rows = batch.num_rows().min(ROWS_AT_ONCE).min(usize::try_from(left).unwrap_or(usize::MAX));
            let slice = batch.slice(0, rows);
            write_rows(&slice, &running.columns, &mut self.out.buffer, &mut text)?;
            running.sent += rows as u64;
            left -= rows as u64;
            running.rest = (rows < batch.num_rows()).then(|| batch.slice(rows, batch.num_rows() - rows));
            if self.out.buffer.len() >= FLUSH_BYTES {
                // Not stopped in its middle by a request to cancel: half a frame would be read as something else.
                tokio::select! {
                    biased;
                    flushed = self.out.flush() => flushed?,
                    () = self.reader.gone() => return Err(Stop::Gone),
                }
            }
            if left == 0 {
                return Ok(true);
            }
        }
        let stats = running.output.stats();
        if stats.truncated {
            let most = self.shared.doors.0.deps.export.rows_max;
            let (rows, bytes) = (running.limits.rows_max, running.limits.output_bytes_max >> 20);
            let failed =
                Failed::new("54000", format!("the answer has more than {rows} rows or {bytes} MiB, the limit"));
            return Err(failed.hint(format!("add LIMIT, or SET {ROWS_MAX} = rows, up to {most}")).into());
        }
        for warning in &stats.warnings {
            let notice = Notice { severity: "WARNING", state: "01000", message: warning, hint: None };
            self.out.buffer.notice(b'N', &notice);
        }
        Ok(false)
    }

    fn finish(&mut self, running: &Running, sql: &str) {
        let first = sql.trim_start().get(..7).unwrap_or_default().to_ascii_uppercase();
        match first.as_str() {
            "EXPLAIN" => self.out.buffer.complete("EXPLAIN"),
            first if first.starts_with("SHOW ") => self.out.buffer.complete("SHOW"),
            _ => self.out.buffer.complete(&format!("SELECT {}", running.sent)),
        }
    }

    /// A command about the session. `describes` says whether columns are announced with the rows.
    fn obey(&mut self, command: &Command, describes: bool) -> Result<(), Stop> {
        let ends = matches!(command, Command::Commit | Command::Rollback);
        if !ends && !matches!(command, Command::Nothing("ROLLBACK")) {
            self.check_transaction()?;
        }
        let tag = match command {
            Command::Begin => {
                if self.transaction == Transaction::Open {
                    self.warn("25001", "there is already a transaction in progress");
                }
                self.transaction = Transaction::Open;
                "BEGIN"
            }
            Command::Commit | Command::Rollback => {
                let before = std::mem::replace(&mut self.transaction, Transaction::None);
                if before == Transaction::None {
                    self.warn("25P01", "there is no transaction in progress");
                }
                self.portals.clear();
                if *command == Command::Commit && before != Transaction::Failed { "COMMIT" } else { "ROLLBACK" }
            }
            Command::Nothing(tag) => {
                if *tag == "ROLLBACK" && self.transaction == Transaction::Failed {
                    self.transaction = Transaction::Open;
                }
                tag
            }
            Command::Set(name, value) => {
                self.set(name, value)?;
                "SET"
            }
            Command::Reset(name) => {
                match name {
                    Some(name) => drop(self.settings.remove(name)),
                    None => self.settings.clear(),
                }
                "RESET"
            }
            Command::Discard => {
                self.settings.clear();
                self.prepared.clear();
                "DISCARD ALL"
            }
            Command::Deallocate(name) => {
                match name {
                    None => self.prepared.clear(),
                    Some(name) => {
                        if self.prepared.remove(name).is_none() {
                            return Err(no_such_statement(name).into());
                        }
                    }
                }
                "DEALLOCATE"
            }
            Command::Show(name) => {
                let value = match self.settings.get(name) {
                    Some(value) if name != "timezone" => value.clone(),
                    _ => default_setting(name).map(str::to_owned).ok_or_else(|| no_such_setting(name))?,
                };
                if describes {
                    self.out.buffer.row_description(&show_fields(name));
                }
                self.out.buffer.frame(b'D', |body| {
                    body.extend_from_slice(&1_u16.to_be_bytes());
                    body.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_be_bytes());
                    body.extend_from_slice(value.as_bytes());
                });
                "SHOW"
            }
            Command::Missing(message, hint) => return Err(Failed::new("0A000", *message).hint(*hint).into()),
            // These are run by whoever has their text.
            Command::Ask | Command::Prepare { .. } | Command::Execute { .. } => return Ok(()),
        };
        self.out.buffer.complete(tag);
        Ok(())
    }

    fn warn(&mut self, state: &str, message: &str) {
        self.out.buffer.notice(b'N', &Notice { severity: "WARNING", state, message, hint: None });
    }

    /// Sets what a client may set before it is told anything; what is unknown is left out.
    fn apply(&mut self, name: &str, value: &str) {
        if setting(name, value) == Setting::Kept || matches!(name, "statement_timeout") {
            self.keep(name, value);
        }
    }

    fn keep(&mut self, name: &str, value: &str) {
        if self.settings.len() < SETTINGS_MAX || self.settings.contains_key(name) {
            self.settings.insert(name.to_owned(), value.to_owned());
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Stop> {
        let bad = |expected: &str| {
            Failed::new("22023", format!("invalid value for parameter \"{name}\": \"{value}\""))
                .hint(format!("expected {expected}"))
        };
        match name {
            "statement_timeout" if milliseconds(value).is_none() && value != "0" => {
                return Err(bad("a time such as 500, 10s or 2min; 0 is the server's own limit").into());
            }
            "statement_timeout" => self.keep(name, value),
            ROWS_MAX => {
                let most = self.shared.doors.0.deps.export.rows_max.max(self.shared.doors.0.deps.limits.rows_max);
                if !value.parse().is_ok_and(|rows: u64| (1..=most).contains(&rows)) {
                    return Err(bad(&format!("1 to {most}")).into());
                }
                self.keep(name, value);
            }
            _ => match setting(name, value) {
                Setting::Kept => {
                    self.keep(name, value);
                    if name == "application_name" {
                        self.out.buffer.parameter(name, value);
                    }
                }
                Setting::Stays(why) => {
                    self.out
                        .buffer
                        .notice(b'N', &Notice { severity: "NOTICE", state: "00000", message: why, hint: None });
                }
                Setting::Unknown => return Err(no_such_setting(name).into()),
            },
        }
        Ok(())
    }

    /// A frame of the extended protocol.
    async fn extended(&mut self, frame: Frame) -> Result<(), Stop> {
        match frame {
            Frame::Parse { name, sql, types } => {
                self.entered.cancel.forget();
                if name.is_empty() {
                    self.prepared.remove("");
                }
                self.parse(name, &sql, &types).await?;
                self.out.buffer.bare(b'1');
            }
            Frame::Bind { portal, statement, formats, values, results } => {
                let prepared = self.prepared.get(&statement).ok_or_else(|| no_such_statement(&statement))?.clone();
                if values.len() != prepared.parameters.len() {
                    let (given, expected) = (values.len(), prepared.parameters.len());
                    let message = format!("{given} parameters were given, and the statement has {expected}");
                    return Err(Failed::new("08P01", message).into());
                }
                let formats = spread(&formats, values.len())?;
                let literals = values.iter().zip(&prepared.parameters).zip(formats);
                let literals = literals.map(|((value, oid), format)| literal(value.as_deref(), *oid, format));
                let literals = literals.collect::<Result<Vec<_>, _>>()?;
                let bound = match script::split(&prepared.text)?.first() {
                    Some(part) => script::bind(part, &literals)?,
                    None => String::new(),
                };
                if self.portals.len() >= PORTALS_MAX && !self.portals.contains_key(&portal) {
                    return Err(Failed::new("54000", format!("a session has {PORTALS_MAX} portals at most")).into());
                }
                let opened = Portal { prepared, bound, formats: results, running: None, ended: false, expired: false };
                self.portals.insert(portal, opened);
                self.out.buffer.bare(b'2');
            }
            Frame::Describe(Target::Statement, name) => {
                let prepared = self.prepared.get_mut(&name).ok_or_else(|| no_such_statement(&name))?;
                prepared.announced = true;
                self.out.buffer.parameter_types(&prepared.parameters);
                match &prepared.command {
                    Command::Show(name) => self.out.buffer.row_description(&show_fields(name)),
                    _ if prepared.columns.is_empty() => self.out.buffer.bare(b'n'),
                    _ => {
                        let named = prepared.columns.iter().map(|(name, found)| field(name, *found, 0));
                        self.out.buffer.row_description(&named.collect::<Vec<_>>());
                    }
                }
            }
            Frame::Describe(Target::Portal, name) => {
                self.entered.cancel.forget();
                let mut portal = self.take_portal(&name)?;
                let described = self.describe(&mut portal).await;
                self.portals.insert(name, portal);
                described?;
            }
            Frame::Execute { portal: name, rows_max } => {
                self.entered.cancel.forget();
                let mut portal = self.take_portal(&name)?;
                let rows_max = u64::try_from(rows_max).ok().filter(|rows| *rows > 0);
                let executed = self.execute(&mut portal, rows_max).await;
                self.portals.insert(name, portal);
                executed?;
            }
            Frame::Close(Target::Statement, name) => {
                self.prepared.remove(&name);
                self.out.buffer.bare(b'3');
            }
            Frame::Close(Target::Portal, name) => {
                self.portals.remove(&name);
                self.out.buffer.bare(b'3');
            }
            Frame::Flush => self.out.flush().await?,
            Frame::Other(b'd' | b'c' | b'f') => {}
            Frame::Other(_) => {
                return Err(Failed::new("0A000", "function calls of the protocol are not available").into());
            }
            Frame::Password(_) => return Err(Failed::new("08P01", "a password was not asked for").into()),
            Frame::Query(_) | Frame::Sync | Frame::Terminate => {}
        }
        if self.out.buffer.len() >= FLUSH_BYTES {
            self.out.flush().await?;
        }
        Ok(())
    }

    fn take_portal(&mut self, name: &str) -> Result<Portal, Stop> {
        let none = || Failed::new("34000", format!("there is no portal \"{name}\""));
        Ok(self.portals.remove(name).ok_or_else(none)?)
    }

    /// Plans a statement and keeps it under a name.
    async fn parse(&mut self, name: String, sql: &str, types: &[u32]) -> Result<(), Stop> {
        if self.prepared.contains_key(&name) {
            return Err(Failed::new("42P05", format!("there is already a prepared statement \"{name}\"")).into());
        }
        if self.prepared.len() >= PREPARED_MAX {
            let failed = Failed::new("54000", format!("a session has {PREPARED_MAX} prepared statements at most"));
            return Err(failed.hint("DEALLOCATE those that are not needed").into());
        }
        let parts = script::split(sql)?;
        if parts.len() > 1 {
            return Err(Failed::new("42601", "a prepared statement is one statement").into());
        }
        let mut prepared = Prepared {
            text: sql.to_owned(),
            command: Command::Nothing(""),
            parameters: Vec::new(),
            columns: Vec::new(),
            announced: false,
        };
        if let Some(part) = parts.first() {
            prepared.command = Command::of(part)?;
            if !matches!(prepared.command, Command::Commit | Command::Rollback) {
                self.check_transaction()?;
            }
            if prepared.command == Command::Ask {
                let Some(opened) = self.shared.doors.0.opened.get() else {
                    return Err(Failed::new("57P03", "the server is still reading its log").into());
                };
                let describing = opened.engine.describe(&self.client.tenant, part.text);
                let found = watched(&mut self.reader, &self.entered.cancel, describing).await??;
                let count = script::parameters(&part.words).max(types.len());
                let of_parameter = |index: usize| match types.get(index) {
                    Some(declared) if *declared != 0 && *declared != UNKNOWN => *declared,
                    _ if script::counts_rows(&part.words, index + 1) => types::INT8.oid,
                    _ if script::holds_many(&part.words, index + 1) => types::TEXT.array,
                    _ => match found.parameters.get(index) {
                        Some(Some(data_type)) => column_type(data_type).oid(),
                        _ => types::TEXT.oid,
                    },
                };
                prepared.parameters = (0..count).map(of_parameter).collect();
                let columns = found.schema.fields().iter();
                prepared.columns =
                    columns.map(|field| (field.name().clone(), column_type(field.data_type()))).collect();
            }
        }
        self.prepared.insert(name, prepared);
        Ok(())
    }

    /// The text of a statement that was prepared in SQL, with the arguments that EXECUTE gives.
    fn bind_typed(&self, part: &Part<'_>, name: &str, arguments: &[(usize, usize)]) -> Result<String, Stop> {
        let prepared = self.prepared.get(name).ok_or_else(|| no_such_statement(name))?;
        if arguments.len() != prepared.parameters.len() {
            let (given, expected) = (arguments.len(), prepared.parameters.len());
            return Err(Failed::new(
                "42601",
                format!("{given} arguments were given, and the statement has {expected}"),
            )
            .into());
        }
        let literals = arguments
            .iter()
            .zip(&prepared.parameters)
            .map(|((from, until), oid)| super::values::typed(part.text[*from..*until].trim(), *oid));
        let literals: Vec<String> = literals.collect();
        match script::split(&prepared.text)?.first() {
            Some(prepared) => Ok(script::bind(prepared, &literals)?),
            None => Err(no_such_statement(name).into()),
        }
    }

    /// Announces the columns of a portal; a question is started for it, so that they are what it gives.
    async fn describe(&mut self, portal: &mut Portal) -> Result<(), Stop> {
        match &portal.prepared.command {
            Command::Ask => {
                self.check_transaction()?;
                if portal.running.is_none() {
                    portal.running = Some(self.start(&portal.bound, &portal.formats).await?);
                }
                if let Some(running) = &portal.running {
                    let fields = fields(&running.output.schema, &running.columns);
                    self.out.buffer.row_description(&fields);
                }
            }
            Command::Show(name) => self.out.buffer.row_description(&show_fields(name)),
            _ => self.out.buffer.bare(b'n'),
        }
        Ok(())
    }

    async fn execute(&mut self, portal: &mut Portal, rows_max: Option<u64>) -> Result<(), Stop> {
        match &portal.prepared.command {
            Command::Ask if portal.ended => self.out.buffer.complete("SELECT 0"),
            Command::Ask if portal.expired => {
                return Err(Failed::new(
                    "57014",
                    "the query took longer than its limit before all rows were asked for",
                )
                .into());
            }
            Command::Ask => {
                self.check_transaction()?;
                let mut running = match portal.running.take() {
                    Some(running) => running,
                    None => {
                        let running = self.start(&portal.bound, &portal.formats).await?;
                        let expected = portal.prepared.columns.iter().map(|(_, found)| found);
                        if portal.prepared.announced && !running.columns.iter().map(|(found, _)| found).eq(expected) {
                            let failed = Failed::new("0A000", "cached plan must not change result type");
                            return Err(failed.hint("attributes have other types by now: prepare it again").into());
                        }
                        running
                    }
                };
                if self.rows(&mut running, rows_max).await? {
                    portal.running = Some(running);
                    self.out.buffer.bare(b's');
                } else {
                    self.finish(&running, &portal.bound);
                    portal.ended = true;
                }
            }
            Command::Nothing("") => self.out.buffer.bare(b'I'),
            Command::Prepare { .. } | Command::Execute { .. } => {
                return Err(Failed::new("0A000", "PREPARE and EXECUTE are available in simple queries only").into());
            }
            command => {
                let command = command.clone();
                self.obey(&command, false)?;
            }
        }
        Ok(())
    }
}

/// PostgreSQL's number for a type that is not known.
const UNKNOWN: u32 = 705;

/// Encodes rows at once: what shows them may not be kept while anything is waited for.
fn write_rows(
    batch: &RecordBatch,
    columns: &[(ColumnType, i16)],
    out: &mut BytesMut,
    text: &mut String,
) -> Result<(), QueryError> {
    let shown = Columns::new(batch, columns)?;
    for row in 0..batch.num_rows() {
        out.frame(b'D', |body| shown.row(row, body, text));
    }
    Ok(())
}

/// Formats as the protocol abbreviates them: none is all text, one is for all.
fn spread(formats: &[i16], count: usize) -> Result<Vec<i16>, Failed> {
    if formats.iter().any(|format| !matches!(*format, 0 | BINARY)) {
        return Err(Failed::new("08P01", "a format is neither 0, text, nor 1, binary"));
    }
    match formats {
        [] => Ok(vec![0; count]),
        [format] => Ok(vec![*format; count]),
        formats if formats.len() == count => Ok(formats.to_vec()),
        formats => Err(Failed::new("08P01", format!("{} formats for {count} values", formats.len()))),
    }
}

fn field(name: &str, found: ColumnType, format: i16) -> Field {
    Field { name: name.to_owned(), oid: found.oid(), length: found.length(), format }
}

fn fields(schema: &SchemaRef, columns: &[(ColumnType, i16)]) -> Vec<Field> {
    let named = schema.fields().iter().zip(columns);
    named.map(|(column, (found, format))| field(column.name(), *found, *format)).collect()
}

fn show_fields(name: &str) -> [Field; 1] {
    [field(name, ColumnType { item: types::TEXT, is_array: false }, 0)]
}

fn no_such_statement(name: &str) -> Failed {
    Failed::new("26000", format!("there is no prepared statement \"{name}\""))
}

fn no_such_setting(name: &str) -> Failed {
    Failed::new("42704", format!("unrecognized configuration parameter \"{name}\""))
}

/// A time as PostgreSQL's settings have it; a bare number is milliseconds. `None` for 0, which is no limit.
fn milliseconds(value: &str) -> Option<Duration> {
    let value = value.trim();
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = value[..digits].parse().ok().filter(|number| *number > 0)?;
    let unit = match value[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_settings_have_units() {
        for (value, expected) in [
            ("500", Some(500)),
            ("10s", Some(10_000)),
            ("2 min", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("0", None),
            ("soon", None),
            ("5 weeks", None),
            ("99999999999999999d", None),
        ] {
            assert_eq!(milliseconds(value), expected.map(Duration::from_millis), "{value}");
        }
    }
}
