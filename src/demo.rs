//! `godseye demo`: a real server on a temporary directory, a web shop that sends to it over real
//! OTLP, five questions with their answers, and the page that an SLO brings.
//!
//! Nothing here is staged: the shop's telemetry is generated from a seed, sent over gRPC on
//! loopback, logged with `fdatasync`, and the answers come from `POST /api/v1/sql`.

pub(crate) mod page;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use fixtures::load::{self, LoadConfig, LoadReport, Pace, Source};
use fixtures::parts::clickhouse::{ClickHouse, ClickHouseConfig, ClickHouseError};
use fixtures::parts::kafka::Kafka;
use fixtures::shop::ShopConfig;
use model::time::{Clock, Timestamp};
use tokio_util::sync::CancellationToken;

use self::page::OnCall;
use crate::alerts::files;
use crate::client::{self, ClientError};
use crate::config::{Config, Engine, Log, LogLevel, Role};
use crate::gateway::GatewayServer;
use crate::logging::LevelHandle;
use crate::server::{Addresses, Options, Reload, ServeError, Server};
use crate::{logging, terminal};

/// Event time that is played before the demo goes live, so that there is something to ask about.
const HISTORY_SECONDS: i64 = 600;

/// Wall time in which that history is sent.
const HISTORY_WALL_SECONDS: i64 = 15;

/// The same where ClickHouse shares the machine.
const HISTORY_WALL_SECONDS_CLICKHOUSE: i64 = 45;

/// How long before now the leaking build of `payment` is deployed.
const DEPLOY_AGO_SECONDS: i64 = 180;

/// User requests per second of the shop; each is about 13 spans.
const REQUESTS_PER_SECOND: f64 = 20.0;

/// How long the writer may take for what is in Kafka, and how often it is asked.
const STORED_WITHIN: Duration = Duration::from_secs(60);
const STORED_POLL: Duration = Duration::from_millis(100);

/// `godseye demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Stop so many seconds after the answers; 0 goes on until Ctrl-C
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// The seed of the shop: the same seed plays the same shop
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep telemetry in ClickHouse: its engine is started beside the demo, where no URL is given
    #[arg(long)]
    clickhouse: bool,
    /// A ClickHouse that is there already
    #[arg(long, value_name = "URL", requires = "clickhouse")]
    clickhouse_url: Option<String>,
    /// Put Apache Kafka between a gateway and a writer; needs Java, and once Maven
    #[arg(long)]
    kafka: bool,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The server did not start or end well.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The shop could not send.
    #[error(transparent)]
    Load(#[from] load::LoadError),
    /// A question has no answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The webhook receiver or the mail server does not work.
    #[error(transparent)]
    Part(#[from] fixtures::parts::PartError),
    /// A file of the demo is wrong: a defect.
    #[error("the demo's own files: {0}")]
    Files(String),
    /// ClickHouse's engine does not start.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// Nobody was told.
    #[error("no page came within {waited_s} s; `godseye slo status` and `godseye alert list` say what is judged")]
    NoPage {
        /// How long it was waited for.
        waited_s: u64,
    },
    /// The writer does not have what the gateway acknowledged.
    #[error("the writer does not have {items} items after {waited_s} s; its log says why")]
    NotStored {
        /// How many there should be.
        items: u64,
        /// How long it was waited for.
        waited_s: u64,
    },
    /// The operating system refused something.
    #[error("cannot start the demo: {0}")]
    Io(#[from] std::io::Error),
}

/// A question an on-call engineer would ask, and its SQL.
struct Question {
    title: &'static str,
    sql: &'static str,
}

const QUESTIONS: [Question; 5] = [
    Question {
        title: "How is every service doing? (requests, errors, p95 of the last five minutes)",
        sql: "\
SELECT service_name, count(*) AS requests,
       round(100.0 * sum(CASE WHEN status_code = 'ERROR' THEN 1 ELSE 0 END) / count(*), 2) AS error_percent,
       round(approx_percentile_cont(duration_ns, 0.95) / 1e6, 1) AS p95_ms
FROM spans
WHERE kind = 'SERVER' AND start_time > now() - INTERVAL '5 minutes'
GROUP BY service_name ORDER BY error_percent DESC, requests DESC LIMIT 8",
    },
    Question {
        title: "Which deploy is it?",
        sql: "\
SELECT resource_attributes['service.version'] AS version, resource_attributes['deployment.id'] AS deploy,
       min(start_time) AS first_seen, count(*) AS requests,
       round(100.0 * sum(CASE WHEN status_code = 'ERROR' THEN 1 ELSE 0 END) / count(*), 2) AS error_percent
FROM spans
WHERE service_name = 'payment' AND kind = 'SERVER'
GROUP BY 1, 2 ORDER BY first_seen",
    },
    Question {
        title: "What do its failing requests say? (logs joined by trace id)",
        sql: "\
SELECT l.service_name, l.severity_text, l.body, count(*) AS records
FROM logs l JOIN spans s ON l.trace_id = s.trace_id
WHERE s.service_name = 'payment' AND s.status_code = 'ERROR' AND l.severity_number >= 17
  AND s.start_time > now() - INTERVAL '3 minutes'
GROUP BY 1, 2, 3 ORDER BY records DESC LIMIT 5",
    },
    Question {
        title: "Which routes return 5xx? (attributes keep their types: the status code is a number)",
        sql: "\
SELECT service_name, attributes['http.route'] AS route, attributes['http.response.status_code'] AS status,
       count(*) AS requests
FROM spans
WHERE kind = 'SERVER' AND attributes['http.response.status_code'] >= 500
GROUP BY 1, 2, 3 ORDER BY requests DESC LIMIT 5",
    },
    Question {
        title: "Was anything lost? (received = stored + rejected, always)",
        sql: "\
SELECT signal, sum(received) AS received, sum(stored) AS stored, sum(rejected) AS rejected
FROM ingest_ledger GROUP BY signal ORDER BY signal",
    },
];

/// Plays the demo.
///
/// # Errors
/// [`DemoError`].
pub fn run(args: &DemoArgs) -> Result<(), DemoError> {
    let directory = tempfile::Builder::new().prefix("godseye-demo-").tempdir()?;
    let mut config = config(directory.path().join("data"));
    // Ends with the demo.
    let clickhouse = match (args.clickhouse, &args.clickhouse_url) {
        (true, None) => {
            say("starting ClickHouse (it is installed once, 600 MB) …");
            Some(ClickHouse::start_own(&ClickHouseConfig::new(directory.path().join("clickhouse")))?)
        }
        _ => None,
    };
    if let Some(url) = args.clickhouse_url.as_deref().or(clickhouse.as_ref().map(ClickHouse::url)) {
        config.storage.engine = Engine::ClickHouse;
        config.storage.clickhouse.urls = vec![url.to_owned()];
    }
    let level = logging::init(&Log { level: LogLevel::Warn, ..config.log.clone() }, true);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let on_call = OnCall::start(directory.path()).await?;
        on_call.watch(&mut config.alerting);
        let (files, problems) = files::read(&config.alerting);
        if files::has_errors(&problems) {
            return Err(DemoError::Files(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")));
        }
        let between = match args.kafka {
            true => Some(Between::start(directory.path(), &mut config, level.clone()).await?),
            false => None,
        };
        let server = Server::start(&config, files, Options::default(), Arc::new(Reload::disabled(level))).await?;
        let mut addresses = server.addresses();
        if let Some(Between { gateway, .. }) = &between {
            addresses.otlp_grpc = gateway.addresses().otlp_grpc;
            addresses.otlp_http = gateway.addresses().otlp_http;
        }
        let played = tokio::select! {
            played = play(args, &server, addresses, between.as_ref(), directory.path(), &on_call, &config) => played,
            _interrupted = tokio::signal::ctrl_c() => Ok(()),
        };
        say("\ndraining …");
        let kafka = match between {
            Some(Between { gateway, kafka }) => {
                gateway.drain().await?;
                Some(kafka)
            }
            None => None,
        };
        server.drain().await?;
        if let Some(kafka) = kafka {
            kafka.stop().await?;
        }
        say(&format!("done; {} is removed", directory.path().display()));
        played
    })
}

/// What stands between the shop and the store.
struct Between {
    gateway: GatewayServer,
    kafka: Kafka,
}

impl Between {
    /// Starts Kafka and a gateway to it, and makes the server a writer.
    async fn start(directory: &Path, config: &mut Config, level: LevelHandle) -> Result<Self, DemoError> {
        say("  starting Apache Kafka …");
        let kafka = Kafka::start(&directory.join("kafka")).await?;
        config.kafka.brokers = Some(kafka.brokers().to_owned());
        let mut gateway = Config { role: Role::Gateway, ..config.clone() };
        gateway.alerting = Config::default().alerting;
        gateway.http.endpoint = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.role = Role::Writer;
        let gateway = GatewayServer::start(&gateway, Arc::new(Reload::disabled(level))).await?;
        Ok(Self { gateway, kafka })
    }
}

/// Waits until the writer has all items that the gateway acknowledged.
async fn until_stored(http: SocketAddr, items: u64) -> Result<(), DemoError> {
    let deadline = tokio::time::Instant::now() + STORED_WITHIN;
    while tokio::time::Instant::now() < deadline {
        let answer = client::ask(&http.to_string(), None, "SELECT sum(received) FROM ingest_ledger", "json").await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        let cell = &answer["rows"][0][0];
        let received = cell.as_u64().or_else(|| cell.as_str()?.parse().ok()).unwrap_or(0);
        if received >= items {
            return Ok(());
        }
        tokio::time::sleep(STORED_POLL).await;
    }
    Err(DemoError::NotStored { items, waited_s: STORED_WITHIN.as_secs() })
}

fn config(data_dir: std::path::PathBuf) -> Config {
    let mut config = Config { data_dir, ..Config::default() };
    for endpoint in [
        &mut config.receivers.otlp.protocols.grpc.endpoint,
        &mut config.receivers.otlp.protocols.http.endpoint,
        &mut config.http.endpoint,
        &mut config.pg.endpoint,
    ] {
        // The usual port when it is free, so that exporters find the demo without being told.
        if std::net::TcpListener::bind(*endpoint).is_err() {
            *endpoint = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        }
    }
    config
}

async fn play(
    args: &DemoArgs,
    server: &Server,
    addresses: Addresses,
    between: Option<&Between>,
    directory: &Path,
    on_call: &OnCall,
    config: &Config,
) -> Result<(), DemoError> {
    let Addresses { otlp_grpc: Some(otlp_grpc), otlp_http: Some(otlp_http), http, pg: Some(pg) } = addresses else {
        unreachable!("the demo receives, and answers PostgreSQL's clients");
    };
    say(&format!(
        "\n  GodsEye demo: a web shop of twelve services sends traces, metrics, logs and profiles\n\n\
         \x20 OTLP/gRPC   {otlp_grpc}      OTEL_EXPORTER_OTLP_ENDPOINT=http://{otlp_grpc}\n\
         \x20 OTLP/HTTP   {otlp_http}      OTEL_EXPORTER_OTLP_ENDPOINT=http://{otlp_http} (http/protobuf)\n\
         \x20 SQL         http://{http}/api/v1/sql\n\
         \x20 PostgreSQL  {pg}      psql -h {} -p {}\n\
         \x20 metrics     http://{http}/metrics\n\
         \x20 data        {}\n",
        pg.ip(),
        pg.port(),
        directory.display()
    ));
    if let Some(Between { gateway, kafka }) = between {
        say(&format!(
            "\x20 shop ─▶ gateway ─▶ Apache Kafka at {} ─▶ writer ─▶ store\n\
             \x20         acknowledges when brokers have it      each message once, with its offset\n\n\
             \x20 gateway     http://{}/metrics\n",
            kafka.brokers(),
            gateway.addresses().http
        ));
    }
    let now = Clock::System.now();
    let start = now.plus_nanos(-HISTORY_SECONDS * Timestamp::NANOS_PER_SECOND);
    let deploy_at = now.plus_nanos(-DEPLOY_AGO_SECONDS * Timestamp::NANOS_PER_SECOND);
    let shop = ShopConfig {
        seed: args.seed,
        requests_per_second: REQUESTS_PER_SECOND,
        daily_rhythm: false,
        ..ShopConfig::default()
    }
    .with_leaking_deploy(deploy_at.0.cast_unsigned());

    say(&format!(
        "  sending the last {} minutes; build 4521 of payment was deployed {} minutes ago …\n",
        HISTORY_SECONDS / 60,
        DEPLOY_AGO_SECONDS / 60
    ));
    let wall_seconds = match config.storage.engine {
        Engine::Embedded => HISTORY_WALL_SECONDS,
        Engine::ClickHouse => HISTORY_WALL_SECONDS_CLICKHOUSE,
    };
    let speed = HISTORY_SECONDS as f64 / wall_seconds as f64;
    let report = send(otlp_grpc, &shop, start, speed, wall_seconds).await?;
    say(&format!(
        "\n  {} items acknowledged, each after {}; acknowledgement p50 {:.1} ms, p99 {:.1} ms\n",
        report.totals.items_acked,
        if between.is_some() { "the brokers' delivery report" } else { "fdatasync" },
        report.service_latency.p50_ms,
        report.service_latency.p99_ms
    ));
    if between.is_some() {
        until_stored(http, report.totals.items_acked).await?;
        say("  the writer has them all\n");
    }

    if config.storage.engine == Engine::ClickHouse {
        let clickhouse = &config.storage.clickhouse;
        say(&format!(
            "  all of it is in ClickHouse, database {}, at {}\n",
            clickhouse.database,
            clickhouse.urls.join(", ")
        ));
        // What was acknowledged last is on its way.
        let patience = tokio::time::Instant::now() + STORED_WITHIN;
        while server.waiting_rows() > 0 && tokio::time::Instant::now() < patience {
            tokio::time::sleep(clickhouse.insert_interval.get() / 5).await;
        }
    }
    for (index, question) in QUESTIONS.iter().enumerate() {
        let body = client::ask(&http.to_string(), None, question.sql, "json").await?;
        say(&format!("{}. {}\n", index + 1, question.title));
        for line in question.sql.lines() {
            say(&format!("   {line}"));
        }
        say(&terminal::table(&serde_json::from_slice(&body).unwrap_or_default()));
    }
    say(&format!(
        "{}. Who was told? (the SLO in {} burned; Alertmanager's configuration beside it says whom to tell)\n",
        QUESTIONS.len() + 1,
        directory.join("slo.yaml").display()
    ));
    on_call.show().await?;
    let at =
        if http.port() == crate::config::defaults::HTTP_PORT { String::new() } else { format!(" --server {http}") };
    say(&format!(
        "Ask your own:  godseye query{at} \"SELECT count(*) FROM spans\"\n\
         The budget:    godseye slo status{at}      what burned it: godseye slo explain payment-availability{at}\n\
         Not now:       godseye silence add{at} service=payment --comment \"4521 is being rolled back\"\n"
    ));

    say("the shop stays open; Ctrl-C ends the demo");
    let live = send(otlp_grpc, &shop, Clock::System.now(), 1.0, i64::try_from(args.seconds).unwrap_or(0));
    live.await?;
    Ok(())
}

/// Sends the shop from `start` on, `speed` seconds of event time a second, for `seconds` (0: for
/// ever), with a line of live numbers.
async fn send(
    otlp_grpc: SocketAddr,
    shop: &ShopConfig,
    start: Timestamp,
    speed: f64,
    seconds: i64,
) -> Result<LoadReport, load::LoadError> {
    let config = LoadConfig {
        endpoints: vec![format!("http://{otlp_grpc}")],
        source: Source::Shop(shop.clone()),
        pace: Pace::EventTime(speed),
        duration_ms: Duration::from_secs(seconds.unsigned_abs()).as_millis() as u64,
        start_ns: start.0.cast_unsigned(),
        ..LoadConfig::default()
    };
    load::run(config, CancellationToken::new(), |progress| {
        drop(write!(
            std::io::stderr(),
            "\r  {:>5.0} s  {:>9} items acknowledged  {} rejected  {} retries  p99 {:.1} ms   ",
            progress.elapsed_ms as f64 / 1e3,
            progress.items_acked,
            progress.items_rejected,
            progress.retries,
            progress.p99_ms
        ));
    })
    .await
}

/// Prints a line; a closed standard output is nobody's problem.
fn say(text: &str) {
    drop(writeln!(std::io::stdout(), "{text}"));
}
