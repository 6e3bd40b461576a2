//! `godseye loadgen`: the load generator of `fixtures` behind flags.

use std::io::Write as _;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use fixtures::load::{self, Compression, Hooks, LoadConfig, LoadError, LoadReport, Pace, Protocol, Source};
use fixtures::shop::ShopConfig;
use model::time::Clock;
use tokio_util::sync::CancellationToken;

use crate::cli::Output;
use crate::config::Secret;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    Grpc,
    HttpProtobuf,
    HttpJson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompressionArg {
    None,
    Gzip,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SourceArg {
    /// The web shop: traces, logs, metrics and profiles that belong together
    Shop,
    /// Spans of 484 bytes, 512 a request
    Spans,
    /// Log records of 229 bytes
    Logs,
    /// 20,000 metric series
    Metrics,
    /// Spans, logs and metrics in turn
    Mixed,
    /// Wide spans with events, links, stack traces, odd sizes
    Ugly,
}

/// `godseye loadgen`.
#[derive(Debug, Args)]
pub struct LoadgenArgs {
    /// Where to send: http://host:port, several separated by commas
    #[arg(long, default_value = "http://127.0.0.1:4317", value_delimiter = ',')]
    endpoint: Vec<String>,
    /// How requests travel
    #[arg(long, value_enum, default_value_t = ProtocolArg::Grpc)]
    protocol: ProtocolArg,
    /// How bodies are compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    compression: CompressionArg,
    /// A token, when the endpoint wants one
    #[arg(long, env = "GODSEYE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<Secret>,
    /// What to send
    #[arg(long, value_enum, default_value_t = SourceArg::Shop)]
    source: SourceArg,
    /// Items per second; 0 sends as fast as acknowledgements come
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Send the shop as time goes by, from now on, instead of as fast as acknowledgements come
    #[arg(long, conflicts_with = "rate")]
    live: bool,
    /// So many seconds after the start the shop deploys a build of payment that fails one charge in eight
    #[arg(long, value_name = "SECONDS")]
    leaking_deploy: Option<f64>,
    /// Time stamps begin so many seconds before now: telemetry of yesterday, to try questions about it
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    ago: f64,
    /// Stop after so many seconds; 0 for never
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Stop after so many items; 0 for never
    #[arg(long, default_value_t = 0)]
    items: u64,
    /// Connections
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// Requests prepared before the clock starts; they repeat
    #[arg(long, default_value_t = 64)]
    distinct_batches: u64,
    /// The seed: the same seed sends the same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How to print the report: table or json
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Why no load could be generated.
#[derive(Debug, thiserror::Error)]
pub enum LoadgenError {
    /// The settings do not make a load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The runtime could not be started.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
    /// Not one item was acknowledged.
    #[error("nothing was acknowledged: {errors}")]
    NothingAcknowledged {
        /// Failed attempts by code.
        errors: String,
    },
}

/// Sends, and prints the report.
///
/// # Errors
/// [`LoadgenError`].
pub fn run(args: LoadgenArgs) -> Result<(), LoadgenError> {
    let start_ns = Clock::System.now().0.cast_unsigned().saturating_sub((args.ago.max(0.0) * 1e9) as u64);
    let mut shop = ShopConfig { seed: args.seed, ..ShopConfig::default() };
    if let Some(seconds) = args.leaking_deploy {
        shop = shop.with_leaking_deploy(start_ns.saturating_add((seconds.max(0.0) * 1e9) as u64));
    }
    let config = LoadConfig {
        protocol: match args.protocol {
            ProtocolArg::Grpc => Protocol::Grpc,
            ProtocolArg::HttpProtobuf => Protocol::HttpProtobuf,
            ProtocolArg::HttpJson => Protocol::HttpJson,
        },
        compression: match args.compression {
            CompressionArg::None => Compression::None,
            CompressionArg::Gzip => Compression::Gzip,
            CompressionArg::Zstd => Compression::Zstd,
        },
        source: match args.source {
            SourceArg::Shop => Source::Shop(shop),
            SourceArg::Spans => Source::SpansS,
            SourceArg::Logs => Source::LogsL,
            SourceArg::Metrics => Source::MetricsM,
            SourceArg::Mixed => Source::Mixed,
            SourceArg::Ugly => Source::Ugly,
        },
        authorization: args.token.as_ref().map(|token| load::bearer(token.expose())).transpose()?,
        pace: if args.live {
            Pace::EventTime(1.0)
        } else if args.rate > 0.0 {
            Pace::ItemsPerSecond(args.rate)
        } else {
            Pace::Max
        },
        duration_ms: (args.seconds.max(0.0) * 1e3) as u64,
        total_items: args.items,
        connections: args.connections,
        in_flight: args.in_flight,
        distinct_batches: args.distinct_batches,
        seed: args.seed,
        start_ns,
        endpoints: args.endpoint,
        ..LoadConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(LoadgenError::Runtime)?;
    let cancel = CancellationToken::new();
    let interrupted = cancel.clone();
    let hooks = Hooks {
        on_progress: (args.output == Output::Table).then(|| {
            let show: load::OnProgress = Arc::new(|progress| {
                drop(writeln!(
                    std::io::stderr(),
                    "{:>6.1} s  {:>10} items acknowledged  {:>7} retries  p99 {:.1} ms",
                    progress.elapsed_ms as f64 / 1e3,
                    progress.items_acked,
                    progress.retries,
                    progress.p99_ms
                ));
            });
            show
        }),
        on_outcome: None,
    };
    let report = runtime.block_on(async move {
        let watch = tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.cancel();
            }
        });
        let report = load::run_with(config, cancel, hooks).await;
        watch.abort();
        report
    })?;
    print(&report, args.output);
    if report.totals.items_acked == 0 && !report.errors.is_empty() {
        let errors: Vec<String> = report.errors.iter().map(|(code, count)| format!("{count} × {code}")).collect();
        return Err(LoadgenError::NothingAcknowledged { errors: errors.join(", ") });
    }
    Ok(())
}

fn print(report: &LoadReport, output: Output) {
    let mut stdout = std::io::stdout().lock();
    let text = if output == Output::Table {
        let totals = &report.totals;
        format!(
            "acknowledged {} of {} items in {:.1} s: {:.0} items/s\n\
             rejected {}  failed {}  retries {}\n\
             acknowledgement p50 {:.1} ms  p90 {:.1} ms  p99 {:.1} ms  max {:.1} ms",
            totals.items_acked,
            totals.items_sent,
            report.wall_ms as f64 / 1e3,
            report.acked_per_second,
            totals.items_rejected,
            totals.items_failed,
            totals.retries,
            report.latency.p50_ms,
            report.latency.p90_ms,
            report.latency.p99_ms,
            report.latency.max_ms,
        )
    } else {
        serde_json::to_string(report).unwrap_or_default()
    };
    drop(writeln!(stdout, "{text}"));
}
