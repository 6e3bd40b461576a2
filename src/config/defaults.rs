//! Every default of the configuration, in one place, each with its reason.
//!
//! Nothing else in the program may spell one of these values: components take their settings from
//! [`Config`](super::Config). The limits of what may be configured are in the schema, beside the keys.

use super::units::{ByteSize, Interval};
use super::{
    Alerting, Auth, ClickHouse, Compaction, Config, Engine, Grpc, Http, Kafka, Limits, Log, LogFormat, LogLevel,
    Memtable, Otlp, OtlpHttp, Pg, Protocols, Query, Receivers, Retention, Role, Shutdown, Storage, Wal,
};
use model::tenant::TenantId;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// Beside where the command was started, visible, and easy to delete after a trial.
pub const DATA_DIR: &str = "./godseye-data";

/// Loopback: nothing is exposed until somebody says so, and loopback needs no login.
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// OTLP/gRPC's registered port, where every exporter looks first.
pub const OTLP_GRPC_PORT: u16 = 4317;

/// OTLP/HTTP's registered port.
pub const OTLP_HTTP_PORT: u16 = 4318;

/// The usual port of a web UI that is not run as root.
pub const HTTP_PORT: u16 = 8080;

/// PostgreSQL's port plus one, so that a PostgreSQL on the same machine keeps its own.
pub const PG_PORT: u16 = 5433;

/// The limit the OTLP specification recommends for one request after decompression.
pub const MAX_REQUEST_BYTES: ByteSize = ByteSize(64 * MIB);

/// Enough for an exporter per core of a large host, and a bound on what one connection can hold:
/// HTTP/2 itself has none.
pub const MAX_CONCURRENT_STREAMS: u64 = 128;

/// A body that takes longer than this to arrive is a stalled client holding memory. Exporters give
/// up after 10 s by default, so that none is cut off that still waits.
pub const READ_TIMEOUT: Interval = Interval::seconds(30);

/// A request's tenant and rights where the file does not say: one tenant, both doors.
pub const TENANT: &str = "default";

/// Replay reads whole WAL segments: 64 MiB is a fraction of a second, and few files at full load.
pub const WAL_SEGMENT_BYTES: ByteSize = ByteSize(64 * MIB);

/// Ingest refuses (retryably) while less than this is free, so that compaction, the manifest and
/// the next WAL segment still have room to free some.
pub const WAL_MIN_FREE_BYTES: ByteSize = ByteSize(64 * MIB);

/// Large enough for good Parquet row groups, small enough that all signals together stay below
/// half of the memory goal of 512 MiB.
pub const MEMTABLE_FLUSH_BYTES: ByteSize = ByteSize(32 * MIB);

/// Bounds the WAL, and so the time a restart takes, where little telemetry arrives.
pub const MEMTABLE_FLUSH_INTERVAL: Interval = Interval::seconds(30);

/// Six memtables' worth, so that some are flushed while others fill, within a process of 512 MiB.
pub const MEMTABLE_MAX_BYTES: ByteSize = ByteSize(192 * MIB);

/// Often enough that small segments never pile up at full load, and idle work stays negligible.
pub const COMPACTION_INTERVAL: Interval = Interval::seconds(10);

/// Size-tiered fan-in: eight segments of like size become one, so that a row is rewritten once per
/// factor of eight: twice on its way to the largest.
pub const COMPACTION_MIN_SEGMENTS: u64 = 8;

/// A segment this large is left alone: rewriting it again would cost more than the one file less
/// saves a query.
pub const COMPACTION_TARGET_BYTES: ByteSize = ByteSize(256 * MIB);

/// A week covers "since last week's release" at a size one disk holds.
pub const RETENTION: Interval = Interval::seconds(7 * 24 * 3600);

/// ClickHouse's port on this machine.
pub const CLICKHOUSE_URL: &str = "http://127.0.0.1:8123";

/// The user that a fresh ClickHouse has.
pub const CLICKHOUSE_USER: &str = "default";

/// A database of our own: its tables have the plain names of ours.
pub const CLICKHOUSE_DATABASE: &str = "godseye";

/// Parts large enough that the server merges little, and a body of some MiB.
pub const CLICKHOUSE_INSERT_ROWS: u64 = clickhouse_store::config::INSERT_ROWS_DEFAULT as u64;

/// Queries see what was inserted, so this is how old an answer may be; a part a second and table is merged with ease.
pub const CLICKHOUSE_INSERT_INTERVAL: Interval = Interval::seconds(1);

/// So many saturate a server before one writer is.
pub const CLICKHOUSE_INSERTS_AT_ONCE: u64 = clickhouse_store::config::IN_FLIGHT_DEFAULT as u64;

/// A repetition is known although so many other inserts came between.
pub const CLICKHOUSE_DEDUPLICATION_WINDOW: u64 = clickhouse_store::config::DEDUPLICATION_WINDOW_DEFAULT as u64;

/// Longer than a merge or a quorum holds an insert up.
pub const CLICKHOUSE_TIMEOUT: Interval = Interval::seconds(30);

/// A host that takes no connection in this time is gone.
pub const CLICKHOUSE_CONNECT_TIMEOUT: Interval = Interval::seconds(2);

/// A group-by of some ten million groups; a server that is worth its own machine has several times that.
pub const CLICKHOUSE_QUERY_MEMORY_BYTES: ByteSize = ByteSize(4096 * MIB);

/// With key, headers and the batch around it, below what a broker takes unless it is told otherwise.
pub const KAFKA_MESSAGE_BYTES: ByteSize = ByteSize(kafka_log::config::MESSAGE_BYTES_DEFAULT as u64);

/// A second of some ten thousand usual requests, and one of the largest.
pub const KAFKA_QUEUE_BYTES: ByteSize = ByteSize(kafka_log::config::QUEUE_BYTES_DEFAULT as u64);

/// Less than the ten seconds after which an SDK gives up, and long enough for another broker to become leader.
pub const KAFKA_DELIVERY_TIMEOUT: Interval = Interval::seconds(kafka_log::config::DELIVERY_TIMEOUT_MS_DEFAULT / 1000);

/// Kafka's own: a writer that is restarted within it has its partitions at once.
pub const KAFKA_SESSION_TIMEOUT: Interval = Interval::seconds(kafka_log::config::SESSION_TIMEOUT_MS_DEFAULT / 1000);

/// Two of the largest requests at once, or thousands of usual ones; more arrive as retryable refusals.
pub const IN_FLIGHT_BYTES: ByteSize = ByteSize(128 * MIB);

/// About 200 bytes of memory per series: a million is 200 MiB, past which somebody has put a request
/// id in an attribute.
pub const SERIES_MAX: u64 = 1_000_000;

/// A person stops waiting after half a minute, and so do the proxies in front.
pub const QUERY_TIMEOUT: Interval = Interval::seconds(30);

/// Holds a sort of a few million rows, and leaves ingest its half of the memory goal.
pub const QUERY_MEMORY_BYTES: ByteSize = ByteSize(256 * MIB);

/// More rows than anybody reads; a program that wants more says so, and gets them up to the next limit.
pub const QUERY_ROWS_MAX: u64 = 100_000;

/// An answer in JSON is held by whoever reads it, and a page of rows is some MiB.
pub const QUERY_OUTPUT_BYTES: ByteSize = ByteSize(256 * MIB);

/// A day's spans of a busy system. Rows that are sent are not held, so the limit is on time and disk of whoever asks.
pub const QUERY_EXPORT_ROWS_MAX: u64 = 100_000_000;

/// Ten million rows at the pace of a slow reader; past this a proxy in between has given up.
pub const QUERY_EXPORT_TIMEOUT: Interval = Interval::seconds(600);

/// Two per core of the smallest machine we aim at, so that ingest always finds one.
pub const QUERY_CONCURRENCY: u64 = 4;

/// The slowest queries of one client leave a permit to everybody else.
pub const QUERY_CONCURRENCY_PER_CLIENT: u64 = 3;

/// A page of panels of each of a few people, all loaded at once.
pub const QUERY_QUEUE: u64 = 32;

/// As long as a person waits without a sign that anything happens.
pub const QUERY_QUEUE_WAIT: Interval = Interval::seconds(5);

/// What is sent lies in the kernel's buffers, which any client empties sooner: one that does not is gone or stalled,
/// and its query holds a permit meanwhile.
pub const QUERY_SEND_TIMEOUT: Interval = Interval::seconds(60);

/// Start, stop and every refusal; nothing per request.
pub const LOG_LEVEL: LogLevel = LogLevel::Info;

/// People read the first log; a collector of logs is told to ask for json.
pub const LOG_FORMAT: LogFormat = LogFormat::Text;

/// Kubernetes kills a pod 30 s after asking it to stop. Whatever is not drained by then is in the WAL.
pub const SHUTDOWN_TIMEOUT: Interval = Interval::seconds(30);

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(HOST, port)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: Role::All,
            data_dir: PathBuf::from(DATA_DIR),
            receivers: Receivers {
                otlp: Otlp {
                    protocols: Protocols {
                        grpc: Grpc {
                            endpoint: local(OTLP_GRPC_PORT),
                            max_request_bytes: MAX_REQUEST_BYTES,
                            max_concurrent_streams: MAX_CONCURRENT_STREAMS,
                        },
                        http: OtlpHttp {
                            endpoint: local(OTLP_HTTP_PORT),
                            max_request_bytes: MAX_REQUEST_BYTES,
                            read_timeout: READ_TIMEOUT,
                        },
                    },
                },
            },
            http: Http { endpoint: local(HTTP_PORT) },
            pg: Pg { endpoint: local(PG_PORT) },
            auth: Auth { allow_unauthenticated: false, tokens: Vec::new() },
            storage: Storage {
                engine: Engine::Embedded,
                clickhouse: ClickHouse::default(),
                wal: Wal { segment_bytes: WAL_SEGMENT_BYTES, min_free_bytes: WAL_MIN_FREE_BYTES },
                memtable: Memtable {
                    flush_bytes: MEMTABLE_FLUSH_BYTES,
                    flush_interval: MEMTABLE_FLUSH_INTERVAL,
                    max_bytes: MEMTABLE_MAX_BYTES,
                },
                compaction: Compaction {
                    interval: COMPACTION_INTERVAL,
                    min_segments: COMPACTION_MIN_SEGMENTS,
                    target_bytes: COMPACTION_TARGET_BYTES,
                },
                derived: true,
                retention: Retention { traces: RETENTION, metrics: RETENTION, logs: RETENTION, profiles: RETENTION },
            },
            alerting: Alerting {
                alertmanager_config: None,
                rules: Vec::new(),
                slos: Vec::new(),
                tenant: TenantId::default_tenant(),
                external_url: None,
                // Destinations stand in the operator's own file, and many are in the same network.
                allow_private_targets: true,
                slack_signing_secret: None,
            },
            kafka: Kafka::default(),
            limits: Limits { in_flight_bytes: IN_FLIGHT_BYTES, series_max: SERIES_MAX },
            query: Query {
                timeout: QUERY_TIMEOUT,
                memory_bytes: QUERY_MEMORY_BYTES,
                rows_max: QUERY_ROWS_MAX,
                output_bytes: QUERY_OUTPUT_BYTES,
                export_rows_max: QUERY_EXPORT_ROWS_MAX,
                export_timeout: QUERY_EXPORT_TIMEOUT,
                send_timeout: QUERY_SEND_TIMEOUT,
                concurrency: QUERY_CONCURRENCY,
                concurrency_per_client: QUERY_CONCURRENCY_PER_CLIENT,
                queue: QUERY_QUEUE,
                queue_wait: QUERY_QUEUE_WAIT,
            },
            log: Log { level: LOG_LEVEL, format: LOG_FORMAT },
            shutdown: Shutdown { timeout: SHUTDOWN_TIMEOUT },
        }
    }
}
