//! The configuration of `godseye`: one YAML file in the shape people know from the OpenTelemetry
//! Collector, then the environment, then flags, into one plain [`Config`].
//!
//! Everything that is wrong is reported at once, each with its line and a caret, and nothing that may
//! be a secret is ever shown. Loading decides nothing else: exit codes, logging and the command line
//! are the caller's, and no component reads a file of configuration or the environment itself.
//!
//! # Layout
//! - [`defaults`]: every default, with its reason
//! - `schema`: every key, with its type and limits
//! - `yaml`, `expand`, `read`: text → tree with places → references resolved → values checked
//! - `units`, `secret`, `suggest`: sizes, durations, addresses; masking; "did you mean"
//! - `report`, `mask`: diagnostics with carets, and what of a source line must stay hidden
//! - `render`: a configuration back to YAML
//!
//! # Rules
//! - File < environment < flags. A variable or flag that is set but empty is an error, since
//!   `--data-dir "$UNSET"` must not silently mean the default.
//! - Relative paths are relative to the working directory, as they are for flags.
//! - No file at all is fine; a file that was named must be there.

mod clickhouse;
pub mod defaults;
mod expand;
mod kafka;
mod mask;
mod read;
mod render;
mod report;
mod schema;
mod secret;
mod suggest;
mod units;
mod yaml;

pub use clickhouse::{Ack, ClickHouse, Engine};
pub use kafka::{Compression, Encoding, Kafka, Mechanism, MessageKey, Role};
pub use report::{Diagnostic, Report, Severity};
pub use secret::Secret;
pub use units::{ByteSize, Interval};

use model::tenant::TenantId;
use read::{Places, Reading};
use report::{Finding, Place, Source};
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use yaml::{Key, Node, Scalar, Value};

/// Bytes of a configuration file. A long one has 20 KiB; past 1 MiB it is some other file.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Everything that can be configured. [`Config::default`] is what an empty file means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which parts run in this process.
    pub role: Role,
    /// Where telemetry, the WAL and the manifest live. One process per directory.
    pub data_dir: PathBuf,
    /// What telemetry comes in through.
    pub receivers: Receivers,
    /// The API and web UI.
    pub http: Http,
    /// SQL in PostgreSQL's protocol.
    pub pg: Pg,
    /// Who may do what.
    pub auth: Auth,
    /// What happens to telemetry once it is in.
    pub storage: Storage,
    /// Who is told when something breaks, and what that is.
    pub alerting: Alerting,
    /// The Kafka that telemetry goes through.
    pub kafka: Kafka,
    /// Bounds on memory.
    pub limits: Limits,
    /// Bounds on one query.
    pub query: Query,
    /// The program's own log.
    pub log: Log,
    /// How it stops.
    pub shutdown: Shutdown,
}

/// What telemetry comes in through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receivers {
    /// OTLP.
    pub otlp: Otlp,
}

/// The OTLP receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// Its transports.
    pub protocols: Protocols,
}

/// OTLP's transports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// OTLP/gRPC.
    pub grpc: Grpc,
    /// OTLP/HTTP.
    pub http: OtlpHttp,
}

/// OTLP/gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// The address to listen on.
    pub endpoint: SocketAddr,
    /// The largest request, after decompression.
    pub max_request_bytes: ByteSize,
    /// HTTP/2 streams per connection.
    pub max_concurrent_streams: u64,
}

/// OTLP/HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpHttp {
    /// The address to listen on.
    pub endpoint: SocketAddr,
    /// The largest request, after decompression.
    pub max_request_bytes: ByteSize,
    /// How long a request's body may take to arrive.
    pub read_timeout: Interval,
}

/// The API and web UI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// The address to listen on.
    pub endpoint: SocketAddr,
}

/// SQL in PostgreSQL's protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pg {
    /// The address to listen on.
    pub endpoint: SocketAddr,
}

/// Who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Allows addresses other than loopback without any token.
    pub allow_unauthenticated: bool,
    /// The credentials, each different from every other.
    pub tokens: Vec<Token>,
}

/// A bearer token and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What the client sends: visible ASCII, not empty.
    pub secret: Secret,
    /// Whose telemetry it writes and reads.
    pub tenant: TenantId,
    /// What it may do, without repetition, not empty.
    pub scopes: Vec<Scope>,
}

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Send telemetry.
    Ingest,
    /// Read it.
    Query,
}

impl Scope {
    pub(crate) const ALL: [Self; 2] = [Self::Ingest, Self::Query];
    pub(crate) const NAMES: &'static [&'static str] = &["ingest", "query"];

    /// The scope as it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Query => "query",
        }
    }
}

/// What happens to telemetry once it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// What keeps it.
    pub engine: Engine,
    /// ClickHouse, where that is what does.
    pub clickhouse: ClickHouse,
    /// The write-ahead log.
    pub wal: Wal,
    /// Rows not yet in a segment.
    pub memtable: Memtable,
    /// Merging of segments.
    pub compaction: Compaction,
    /// How long telemetry is kept, by its own time.
    pub retention: Retention,
    /// Whether `span_metrics` and `service_edges` are derived from spans.
    pub derived: bool,
}

/// The write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wal {
    /// A file's size before the next one begins.
    pub segment_bytes: ByteSize,
    /// Free space on the disk below which ingest refuses, retryably.
    pub min_free_bytes: ByteSize,
}

/// Rows not yet in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memtable {
    /// Memory at which a table's rows are written as a segment.
    pub flush_bytes: ByteSize,
    /// Age at which they are, however few.
    pub flush_interval: Interval,
    /// Memory of all tables' rows at which ingest refuses, retryably.
    pub max_bytes: ByteSize,
}

/// Merging of segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// How often to look for work.
    pub interval: Interval,
    /// How many segments of like size are merged at once.
    pub min_segments: u64,
    /// The size from which a segment is left alone.
    pub target_bytes: ByteSize,
}

/// How long telemetry is kept, by its own time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Spans.
    pub traces: Interval,
    /// Metric points and histograms.
    pub metrics: Interval,
    /// Log records.
    pub logs: Interval,
    /// Profile samples.
    pub profiles: Interval,
}

/// Who is told when something breaks, and what that is. Nothing is evaluated where no file is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alerting {
    /// Alertmanager's configuration file.
    pub alertmanager_config: Option<PathBuf>,
    /// Rule files in Prometheus' format.
    pub rules: Vec<PathBuf>,
    /// OpenSLO documents: files, and folders of `.yaml` and `.yml` files.
    pub slos: Vec<PathBuf>,
    /// Whose telemetry is judged and whose alerts these are.
    pub tenant: TenantId,
    /// Where people reach this program, for links in messages; the HTTP listener when absent.
    pub external_url: Option<String>,
    /// Whether messages may go to loopback and private addresses.
    pub allow_private_targets: bool,
    /// The signing secret of the Slack app whose buttons silence alerts; no buttons when absent.
    pub slack_signing_secret: Option<Secret>,
}

impl Alerting {
    /// Whether there is anything to do.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.alertmanager_config.is_some() || !self.rules.is_empty() || !self.slos.is_empty()
    }
}

/// Bounds on memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Decompressed bytes of requests that are being worked on, all receivers together.
    pub in_flight_bytes: ByteSize,
    /// Metric series per tenant.
    pub series_max: u64,
}

/// Bounds on one query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// How long it may run.
    pub timeout: Interval,
    /// Memory it may hold.
    pub memory_bytes: ByteSize,
    /// Rows it may return.
    pub rows_max: u64,
    /// Bytes of rows it may return.
    pub output_bytes: ByteSize,
    /// Rows it may return when its client asks for more than that.
    pub export_rows_max: u64,
    /// How long it may run then.
    pub export_timeout: Interval,
    /// How long a client may read nothing of what is sent to it.
    pub send_timeout: Interval,
    /// How many may run at once.
    pub concurrency: u64,
    /// How many of one client may run at once.
    pub concurrency_per_client: u64,
    /// How many may wait for their turn.
    pub queue: u64,
    /// How long one may wait.
    pub queue_wait: Interval,
}

/// The program's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// How lines look.
    pub format: LogFormat,
}

/// A level of the program's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what needs somebody.
    Error,
    /// And what may.
    Warn,
    /// And what happened.
    Info,
    /// And why.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    pub(crate) const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];
    pub(crate) const NAMES: &'static [&'static str] = &["error", "warn", "info", "debug", "trace"];

    /// The level as it is written, which is also how `tracing` filters spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line, for programs.
    Json,
}

impl LogFormat {
    pub(crate) const ALL: [Self; 2] = [Self::Text, Self::Json];
    pub(crate) const NAMES: &'static [&'static str] = &["text", "json"];
}

/// How the program stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// How long requests in flight may still take.
    pub timeout: Interval,
}

impl Config {
    /// The configuration as complete YAML, with `***` for secrets. Read back it gives the same
    /// configuration, but for tokens, which are refused as masks.
    #[must_use]
    pub fn render_masked(&self) -> String {
        render::render(self)
    }
}

/// Where environment variables come from, so that tests need not touch the process's own.
pub trait Env {
    /// The value of a variable; `None` if it is not set or not UTF-8.
    fn var(&self, name: &str) -> Option<String>;
}

/// What was set on the command line, the strongest layer. Values are texts, checked as the file's are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--role`.
    pub role: Option<String>,
    /// `--kafka-brokers`.
    pub kafka_brokers: Option<String>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--otlp-grpc`.
    pub otlp_grpc: Option<String>,
    /// `--otlp-http`.
    pub otlp_http: Option<String>,
    /// `--http`.
    pub http: Option<String>,
    /// `--pg`.
    pub pg: Option<String>,
    /// `--storage`.
    pub storage: Option<String>,
    /// `--clickhouse-url`, each.
    pub clickhouse_urls: Vec<String>,
    /// `--alertmanager-config`.
    pub alertmanager_config: Option<String>,
    /// `--rules`, each.
    pub rules: Vec<String>,
    /// `--slos`, each.
    pub slos: Vec<String>,
    /// `--log-level`.
    pub log_level: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
    /// `--allow-unauthenticated`.
    pub allow_unauthenticated: Option<bool>,
}

/// The variable that names the file, where no flag does.
pub const CONFIG_VARIABLE: &str = "GODSEYE_CONFIG";

/// A key that the environment and a flag can set too.
struct Setting {
    path: &'static [&'static str],
    variable: &'static str,
    flag: &'static str,
}

/// Between the paths of a list that is one text, as in `PATH`.
const PATHS_SEPARATOR: &str = ":";

/// Between the URLs of a list that is one text.
const URLS_SEPARATOR: &str = ",";

/// Every key that the environment and a flag can set too.
const SETTINGS: [Setting; 20] = [
    Setting { path: &["role"], variable: "GODSEYE_ROLE", flag: "--role" },
    Setting { path: &["kafka", "brokers"], variable: "GODSEYE_KAFKA_BROKERS", flag: "--kafka-brokers" },
    // Without flags: a command line is no place for a password, and the user goes with it.
    Setting { path: &["kafka", "user"], variable: "GODSEYE_KAFKA_USER", flag: "" },
    Setting { path: &["kafka", "password"], variable: "GODSEYE_KAFKA_PASSWORD", flag: "" },
    Setting { path: &["data_dir"], variable: "GODSEYE_DATA_DIR", flag: "--data-dir" },
    Setting {
        path: &["receivers", "otlp", "protocols", "grpc", "endpoint"],
        variable: "GODSEYE_OTLP_GRPC",
        flag: "--otlp-grpc",
    },
    Setting {
        path: &["receivers", "otlp", "protocols", "http", "endpoint"],
        variable: "GODSEYE_OTLP_HTTP",
        flag: "--otlp-http",
    },
    Setting { path: &["http", "endpoint"], variable: "GODSEYE_HTTP", flag: "--http" },
    Setting { path: &["pg", "endpoint"], variable: "GODSEYE_PG", flag: "--pg" },
    Setting { path: &["storage", "engine"], variable: "GODSEYE_STORAGE", flag: "--storage" },
    Setting { path: &["storage", "clickhouse", "urls"], variable: "GODSEYE_CLICKHOUSE_URL", flag: "--clickhouse-url" },
    // Without flags: a command line is no place for a password, and these go with it.
    Setting { path: &["storage", "clickhouse", "user"], variable: "GODSEYE_CLICKHOUSE_USER", flag: "" },
    Setting { path: &["storage", "clickhouse", "password"], variable: "GODSEYE_CLICKHOUSE_PASSWORD", flag: "" },
    Setting { path: &["storage", "clickhouse", "database"], variable: "GODSEYE_CLICKHOUSE_DATABASE", flag: "" },
    Setting {
        path: &["alerting", "alertmanager_config"],
        variable: "GODSEYE_ALERTMANAGER_CONFIG",
        flag: "--alertmanager-config",
    },
    Setting { path: &["alerting", "rules"], variable: "GODSEYE_RULES", flag: "--rules" },
    Setting { path: &["alerting", "slos"], variable: "GODSEYE_SLOS", flag: "--slos" },
    Setting { path: &["log", "level"], variable: "GODSEYE_LOG_LEVEL", flag: "--log-level" },
    Setting { path: &["log", "format"], variable: "GODSEYE_LOG_FORMAT", flag: "--log-format" },
    Setting {
        path: &["auth", "allow_unauthenticated"],
        variable: "GODSEYE_ALLOW_UNAUTHENTICATED",
        flag: "--allow-unauthenticated",
    },
];

impl Overrides {
    /// The flags' values in the order of [`SETTINGS`], with a data directory that is not UTF-8 left out.
    fn texts(&self) -> [Option<String>; SETTINGS.len()] {
        let paths = |paths: &[String]| (!paths.is_empty()).then(|| paths.join(PATHS_SEPARATOR));
        [
            self.role.clone(),
            self.kafka_brokers.clone(),
            None,
            None,
            self.data_dir.as_deref().and_then(Path::to_str).map(str::to_owned),
            self.otlp_grpc.clone(),
            self.otlp_http.clone(),
            self.http.clone(),
            self.pg.clone(),
            self.storage.clone(),
            (!self.clickhouse_urls.is_empty()).then(|| self.clickhouse_urls.join(URLS_SEPARATOR)),
            None,
            None,
            None,
            self.alertmanager_config.clone(),
            paths(&self.rules),
            paths(&self.slos),
            self.log_level.clone(),
            self.log_format.clone(),
            self.allow_unauthenticated.map(|allow| allow.to_string()),
        ]
    }
}

/// Loads the configuration: the file at `path`, or the one `GODSEYE_CONFIG` names, or none; then the
/// environment; then `overrides`. Returns it with the warnings.
///
/// # Errors
/// [`Report`] with every error and warning, if there is at least one error.
pub fn load(path: Option<&Path>, overrides: &Overrides, env: &dyn Env) -> Result<(Config, Vec<Diagnostic>), Report> {
    let named = path.map(Path::to_path_buf).or_else(|| env.var(CONFIG_VARIABLE).map(PathBuf::from));
    let file = match named {
        Some(path) => Some(read_config(&path)?),
        None => None,
    };
    let (config, diagnostics) = assemble(file, Some(overrides), env);
    if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return Err(Report { diagnostics });
    }
    Ok((config, diagnostics))
}

/// Checks a file's content, called `name` in the diagnostics, by itself: without flags, and with the
/// environment only for its references. The result is empty if there is nothing to say.
#[must_use]
pub fn check(source: &str, name: &str, env: &dyn Env) -> Vec<Diagnostic> {
    if source.len() > FILE_BYTES_MAX {
        return vec![too_large(name)];
    }
    let file = ConfigFile { name: name.to_owned(), text: source.to_owned(), is_world_readable: false };
    assemble(Some(file), None, env).1
}

/// Checks the file at `path` as [`check`] does, and whether others can read the tokens in it.
#[must_use]
pub fn check_file(path: &Path, env: &dyn Env) -> Vec<Diagnostic> {
    inspect(path, env).1
}

/// As [`check_file`], with the configuration as far as it could be read; `None` when the file could not.
#[must_use]
pub fn inspect(path: &Path, env: &dyn Env) -> (Option<Config>, Vec<Diagnostic>) {
    match read_config(path) {
        Ok(file) => {
            let (config, diagnostics) = assemble(Some(file), None, env);
            (Some(config), diagnostics)
        }
        Err(report) => (None, report.diagnostics),
    }
}

/// A file of configuration as read.
struct ConfigFile {
    name: String,
    text: String,
    is_world_readable: bool,
}

fn too_large(name: &str) -> Diagnostic {
    report::unreadable(name, "the file is too large", "expected at most 1 MiB of YAML")
}

fn read_config(path: &Path) -> Result<ConfigFile, Report> {
    let name = path.display().to_string();
    let refuse =
        |message: &str, expected: &str| Report { diagnostics: vec![report::unreadable(&name, message, expected)] };
    let cannot =
        |error: &std::io::Error| refuse(&format!("the file cannot be read: {error}"), "expected a readable YAML file");
    let file = File::open(path).map_err(|error| cannot(&error))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Report { diagnostics: vec![too_large(&name)] });
    }
    match String::from_utf8(bytes) {
        Ok(text) => {
            let is_world_readable = expand::is_world_readable(path);
            Ok(ConfigFile { name: name.clone(), text, is_world_readable })
        }
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            let message = format!("line {line} is not UTF-8 text");
            Err(refuse(&message, "expected a file saved as UTF-8"))
        }
    }
}

/// Builds the configuration from its layers and collects what there is to say about each.
fn assemble(file: Option<ConfigFile>, overrides: Option<&Overrides>, env: &dyn Env) -> (Config, Vec<Diagnostic>) {
    let mut config = Config::default();
    let mut findings: Vec<Finding> = Vec::new();
    let mut places = Places::new();
    let mut sources: Vec<Source> = Vec::new();
    let mut is_usable = true;

    if let Some(ConfigFile { name, text, is_world_readable }) = file {
        // A byte-order mark is no part of the text; editors on Windows write one.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let mut source = Source::new(&name, text, true);
        let tree = yaml::parse(sources.len(), text, &mut findings);
        report::mask_source(&mut source, tree.as_ref());
        sources.push(source);
        match tree {
            Some(mut tree) => {
                expand::expand_tree(&mut tree, text, env, &mut findings);
                let mut reading = Reading { findings: &mut findings, places: &mut places, is_world_readable };
                read::read(&tree, &mut config, &mut reading);
            }
            None => is_usable = false,
        }
    }
    if let Some(overrides) = overrides {
        for (setting, flag) in SETTINGS.iter().zip(overrides.texts()) {
            let (name, text) = match (flag, env.var(setting.variable)) {
                // The command line's parser may have taken the value from the variable.
                (Some(text), _) => (format!("{} (or {})", setting.flag, setting.variable), text),
                (None, Some(text)) => (setting.variable.to_owned(), text),
                (None, None) => continue,
            };
            let tree = nest(setting.path, sources.len(), &text);
            let mut source = Source::new(&name, &text, false);
            source.masked = mask::of_address(&text);
            if text.trim().is_empty() {
                // So that there is a line to show.
                source.text = "\"\"".to_owned();
            }
            sources.push(source);
            let mut reading = Reading { findings: &mut findings, places: &mut places, is_world_readable: false };
            read::read(&tree, &mut config, &mut reading);
        }
        if let Some(path) = overrides.data_dir.as_deref().filter(|path| path.to_str().is_none()) {
            config.data_dir = path.to_path_buf();
        }
    }
    if is_usable {
        let mut reading = Reading { findings: &mut findings, places: &mut places, is_world_readable: false };
        read::check_rules(&config, &mut reading);
    }
    (config, report::diagnose(findings, &sources))
}

/// A tree that holds one value at a path, as if a file had said so.
fn nest(path: &[&str], source: usize, text: &str) -> Node {
    let at = Place::new(source, 0..text.len());
    // Not plain: a flag's empty value is an empty text, never "no value".
    let scalar = Node { at: at.clone(), value: Value::Scalar(Scalar::new(text.to_owned(), false)) };
    path.iter().rev().fold(scalar, |node, key| {
        let key = Key { text: (*key).to_owned(), at: at.clone() };
        Node { at: at.clone(), value: Value::Map(vec![(key, node)]) }
    })
}
