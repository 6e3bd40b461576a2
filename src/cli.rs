//! The command line: what can be typed, and which exit code comes back.
//!
//! Exit codes scripts can trust: 0 done, 1 it failed, 2 wrong usage, 70 the server can no longer
//! promise durability, 78 the configuration is not valid (sysexits.h).

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::alerts::{backtest, files, unit};
use crate::config::{self, Env, Overrides, Severity};
use crate::server::ServeError;
use crate::{client, demo, loadgen, logging, server, tail, trace, watch};

/// Something went wrong that is neither the usage, the configuration nor the disk.
const EXIT_FAILURE: u8 = 1;
/// `EX_SOFTWARE`: the log failed; nothing more can be acknowledged.
const EXIT_FATAL: u8 = 70;
/// `EX_CONFIG`.
const EXIT_CONFIG: u8 = 78;

/// OpenTelemetry in, durable, in SQL: one binary.
#[derive(Debug, Parser)]
#[command(name = "godseye", version, about, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take OpenTelemetry in, keep it, answer SQL
    Serve(ServeArgs),
    /// Play a web shop into a server on a temporary directory, and show what SQL finds
    Demo(demo::DemoArgs),
    /// Check a configuration file and report every error with its place
    Check {
        /// The YAML file
        file: PathBuf,
    },
    /// Ask a running server a question in SQL
    Query(client::QueryArgs),
    /// Follow logs or spans of a running server as they come
    Tail(tail::TailArgs),
    /// Show one trace of a running server as a waterfall
    Trace(trace::TraceArgs),
    /// What is promised, what was kept, how fast the rest burns
    #[command(subcommand)]
    Slo(watch::SloCommand),
    /// What breaks
    #[command(subcommand)]
    Alert(watch::AlertCommand),
    /// Keep alerts from telling people
    #[command(subcommand)]
    Silence(watch::SilenceCommand),
    /// Which alerts rules and SLOs would have raised on stored telemetry
    Backtest(backtest::BacktestArgs),
    /// Test rules without a server
    #[command(subcommand)]
    Test(unit::TestCommand),
    /// Send telemetry to any OTLP endpoint, as fast as told
    Loadgen(loadgen::LoadgenArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `godseye serve`. Every flag is also an environment variable and a key of the file; a flag is
/// stronger than the environment, and that is stronger than the file.
#[derive(Debug, Args)]
struct ServeArgs {
    /// Where telemetry is kept [env: GODSEYE_DATA_DIR] [default: ./godseye-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where OTLP/gRPC is taken in [env: GODSEYE_OTLP_GRPC] [default: 127.0.0.1:4317]
    #[arg(long, value_name = "ADDR")]
    otlp_grpc: Option<String>,
    /// Where OTLP/HTTP is taken in [env: GODSEYE_OTLP_HTTP] [default: 127.0.0.1:4318]
    #[arg(long, value_name = "ADDR")]
    otlp_http: Option<String>,
    /// Where the API answers [env: GODSEYE_HTTP] [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Where SQL is answered in PostgreSQL's protocol [env: GODSEYE_PG] [default: 127.0.0.1:5433]
    #[arg(long, value_name = "ADDR")]
    pg: Option<String>,
    /// What keeps telemetry: embedded or clickhouse [env: GODSEYE_STORAGE] [default: embedded]
    #[arg(long, value_name = "ENGINE")]
    storage: Option<String>,
    /// Where ClickHouse answers; repeated for each replica [env: GODSEYE_CLICKHOUSE_URL, separated by commas]
    #[arg(long, value_name = "URL")]
    clickhouse_url: Vec<String>,
    /// Which parts run here: all, gateway (receivers → Kafka), writer (Kafka → store); over ClickHouse query or control (rules) [env: GODSEYE_ROLE] [default: all]
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Brokers of Kafka, separated by commas [env: GODSEYE_KAFKA_BROKERS]
    #[arg(long, value_name = "HOST:PORT")]
    kafka_brokers: Option<String>,
    /// Alertmanager's configuration: who is told about alerts [env: GODSEYE_ALERTMANAGER_CONFIG]
    #[arg(long, value_name = "FILE")]
    alertmanager_config: Option<String>,
    /// A rule file in Prometheus' format; may be repeated [env: GODSEYE_RULES, separated by colons]
    #[arg(long, value_name = "FILE")]
    rules: Vec<String>,
    /// OpenSLO documents; may be repeated [env: GODSEYE_SLOS, separated by colons]
    #[arg(long, value_name = "FILE_OR_DIR")]
    slos: Vec<String>,
    /// The configuration file [env: GODSEYE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The least severe level that is logged [env: GODSEYE_LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How log lines look: text or json [env: GODSEYE_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Serve addresses that are not loopback without tokens [env: GODSEYE_ALLOW_UNAUTHENTICATED]
    #[arg(long)]
    allow_unauthenticated: bool,
    /// Decode and acknowledge, but keep nothing: for measuring the receivers alone
    #[arg(long, hide = true, env = "GODSEYE_BENCH_DISCARD", value_parser = clap::builder::BoolishValueParser::new(), default_value_t = false)]
    bench_discard: bool,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// One JSON document.
    Json,
    /// One JSON object per row.
    Ndjson,
    /// Comma-separated values.
    Csv,
}

/// The process's own environment.
#[derive(Clone, Copy, Debug)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// Runs a command to its end.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve(args) => serve(args),
        Command::Demo(args) => finish(demo::run(&args)),
        Command::Check { file } => check(&file),
        Command::Query(args) => finish(client::run(&args)),
        Command::Tail(args) => finish(tail::run(&args)),
        Command::Trace(args) => finish(trace::run(&args)),
        Command::Slo(command) => finish(watch::slo(&command)),
        Command::Alert(command) => finish(watch::alert(&command)),
        Command::Silence(command) => finish(watch::silence(&command)),
        Command::Backtest(args) => finish(backtest::run(&args)),
        Command::Test(command) => match unit::run(&command) {
            Err(error @ unit::TestError::Invalid(_)) => {
                complain(&error.to_string());
                ExitCode::from(EXIT_CONFIG)
            }
            result => finish(result),
        },
        Command::Loadgen(args) => finish(loadgen::run(args)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "godseye", &mut script);
            // A closed pipe is nobody's problem.
            drop(std::io::stdout().write_all(&script));
            ExitCode::SUCCESS
        }
    }
}

fn finish<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("godseye: {error}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Writes to standard error; a closed one is nobody's problem.
fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

fn serve(args: ServeArgs) -> ExitCode {
    let overrides = Overrides {
        role: args.role,
        kafka_brokers: args.kafka_brokers,
        data_dir: args.data_dir,
        otlp_grpc: args.otlp_grpc,
        otlp_http: args.otlp_http,
        http: args.http,
        pg: args.pg,
        storage: args.storage,
        clickhouse_urls: args.clickhouse_url,
        alertmanager_config: args.alertmanager_config,
        rules: args.rules,
        slos: args.slos,
        log_level: args.log_level,
        log_format: args.log_format,
        allow_unauthenticated: args.allow_unauthenticated.then_some(true),
    };
    let source = server::ConfigSource { path: args.config, overrides };
    let (config, warnings) = match config::load(source.path.as_deref(), &source.overrides, &ProcessEnv) {
        Ok(loaded) => loaded,
        Err(report) => {
            complain(&report.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    for warning in &warnings {
        complain(&warning.to_string());
    }
    let (files, problems) = files::read(&config.alerting);
    for problem in &problems {
        complain(&problem.to_string());
    }
    if files::has_errors(&problems) {
        return ExitCode::from(EXIT_CONFIG);
    }
    let log_level = logging::init(&config.log, std::io::stderr().is_terminal());
    let options = server::Options {
        announce: std::env::var_os("GODSEYE_READY_JSON").is_some_and(|value| value == "1"),
        discard: args.bench_discard,
    };
    match server::serve(config, files, source, log_level, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(if matches!(error, ServeError::Log { .. }) { EXIT_FATAL } else { EXIT_FAILURE })
        }
    }
}

fn check(file: &std::path::Path) -> ExitCode {
    let (config, diagnostics) = config::inspect(file, &ProcessEnv);
    for diagnostic in &diagnostics {
        complain(&diagnostic.to_string());
    }
    let problems = config.map(|config| files::read(&config.alerting).1).unwrap_or_default();
    for problem in &problems {
        complain(&problem.to_string());
    }
    let severities = diagnostics.iter().map(|found| found.severity);
    let severities: Vec<Severity> = severities.chain(problems.iter().map(|problem| problem.severity)).collect();
    let errors = severities.iter().filter(|severity| **severity == Severity::Error).count();
    let warnings = severities.len() - errors;
    if errors > 0 {
        complain(&format!("{}: {errors} errors, {warnings} warnings", file.display()));
        return ExitCode::from(EXIT_CONFIG);
    }
    drop(writeln!(std::io::stdout(), "{}: valid, {warnings} warnings", file.display()));
    ExitCode::SUCCESS
}

/// Where clients look for a server by default.
pub const HTTP_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), config::defaults::HTTP_PORT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
