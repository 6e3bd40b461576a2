//! The tables in ClickHouse: numbered migrations, settings that follow the configuration, and the check of what is there.
//!
//! Migrations are texts that never change once released (I12). They can be repeated, so that two writers, or one that was
//! interrupted, may start at once. Retention, deduplication window and syncing follow the configuration at every start.
//! Not here: the types of columns ([`crate::columns`]).

use std::collections::BTreeMap;

use model::signal::Table;

use crate::client::Server;
use crate::columns::columns;
use crate::config::{Ack, ClickHouseConfig};
use crate::error::ClickHouseError;

/// Each raises the version by one. Statements end with a line of `;`.
const MIGRATIONS: [&str; 2] = [include_str!("../migrations/1.sql"), include_str!("../migrations/2.sql")];

/// The tables of the OpenTelemetry Collector's exporter for ClickHouse, filled from ours as rows come in. Repeatable.
const OTEL_TABLES: &str = include_str!("../migrations/otel.sql");

/// The views that fill them. Without them the tables stay as they are, for whoever reads them.
const OTEL_VIEWS: [&str; 8] = [
    "otel_traces_from_spans",
    "otel_logs_from_logs",
    "otel_metrics_gauge_from_metric_points",
    "otel_metrics_sum_from_metric_points",
    "otel_metrics_histogram_from_metric_histograms",
    "otel_metrics_exponential_histogram_from_metric_histograms",
    "otel_metrics_summary_from_metric_histograms",
    "otel_traces_trace_id_ts_mv",
];

/// The table of the ledger.
pub(crate) const LEDGER: &str = "ingest_ledger";

/// A name as an identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A text as a literal.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn on_cluster(config: &ClickHouseConfig) -> String {
    config.cluster.as_ref().map_or_else(String::new, |cluster| format!(" ON CLUSTER {}", quoted(cluster)))
}

/// The settings of a table that follow the configuration.
fn table_settings(config: &ClickHouseConfig) -> Vec<(&'static str, String)> {
    let window = if config.cluster.is_some() {
        "replicated_deduplication_window"
    } else {
        "non_replicated_deduplication_window"
    };
    let sync = u8::from(config.ack == Ack::Fsync).to_string();
    vec![
        (window, config.deduplication_window.to_string()),
        ("fsync_after_insert", sync.clone()),
        ("fsync_part_directory", sync),
    ]
}

/// The expression by which rows expire. A row of the far future goes with those it came with.
fn ttl(table: Option<Table>, config: &ClickHouseConfig) -> String {
    match table {
        Some(table) => format!(
            "toDateTime(least({}, received_at)) + toIntervalSecond({})",
            table.time_column(),
            config.retention_of(table.signal())
        ),
        None => format!("minute + toIntervalSecond({})", (config.ledger_retention_ns / 1_000_000_000).max(1)),
    }
}

/// The tables by name; the ledger is none of the model's.
fn tables() -> impl Iterator<Item = (&'static str, Option<Table>)> {
    Table::ALL.into_iter().map(|table| (table.name(), Some(table))).chain([(LEDGER, None)])
}

/// The statements of a migration for a configuration.
fn statements(migration: &str, config: &ClickHouseConfig) -> Vec<String> {
    let settings: Vec<String> =
        table_settings(config).iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let mut text = migration
        .replace("{database}", &quoted(&config.database))
        .replace("{on_cluster}", &on_cluster(config))
        .replace(
            "{replacing_engine}",
            if config.cluster.is_some() { "ReplicatedReplacingMergeTree" } else { "ReplacingMergeTree" },
        )
        .replace("{engine}", if config.cluster.is_some() { "ReplicatedMergeTree" } else { "MergeTree" })
        .replace("{settings}", &settings.join(", "));
    for (name, table) in tables() {
        text = text.replace(&format!("{{ttl:{name}}}"), &ttl(table, config));
        if let Some(table) = table {
            let seconds = config.retention_of(table.signal()).to_string();
            text = text.replace(&format!("{{retention:{name}}}"), &seconds);
        }
    }
    text.split("\n;\n").map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
}

/// Makes the tables, brings them to this release's version and the configuration's settings, and checks them.
///
/// # Errors
/// [`ClickHouseError`] when the server does not do it, or has tables of a later release or with other columns.
pub(crate) async fn prepare(server: &Server, config: &ClickHouseConfig) -> Result<(), ClickHouseError> {
    let database = quoted(&config.database);
    let on_cluster = on_cluster(config);
    server.execute(&format!("CREATE DATABASE IF NOT EXISTS {database}{on_cluster}")).await?;
    let engine = if config.cluster.is_some() { "ReplicatedMergeTree" } else { "MergeTree" };
    let versions = format!(
        "CREATE TABLE IF NOT EXISTS {database}.godseye_schema{on_cluster} \
         (version UInt32, applied_at DateTime('UTC') DEFAULT now()) ENGINE = {engine} ORDER BY version"
    );
    server.execute(&versions).await?;
    let found = server.rows(&format!("SELECT max(version) FROM {database}.godseye_schema")).await?;
    let found: u32 = found.first().and_then(|row| row.first()?.parse().ok()).unwrap_or(0);
    let supported = u32::try_from(MIGRATIONS.len()).expect("there are few migrations");
    if found > supported {
        return Err(ClickHouseError::NewerSchema { database: config.database.clone(), found, supported });
    }
    for (version, migration) in (1..=supported).zip(MIGRATIONS).skip(found as usize) {
        for statement in statements(migration, config) {
            server.execute(&statement).await?;
        }
        server.execute(&format!("INSERT INTO {database}.godseye_schema (version) VALUES ({version})")).await?;
        tracing::info!(version, database = config.database, "ClickHouse's tables are at a new version");
    }
    check(server, config).await?;
    follow_configuration(server, config).await?;
    follow_otel_tables(server, config).await
}

/// Makes the tables of the Collector's exporter and what fills them, or ends the filling.
async fn follow_otel_tables(server: &Server, config: &ClickHouseConfig) -> Result<(), ClickHouseError> {
    if config.otel_tables {
        for statement in statements(OTEL_TABLES, config) {
            server.execute(&statement).await?;
        }
        return Ok(());
    }
    let query = format!("SELECT name FROM system.tables WHERE database = {}", literal(&config.database));
    let found = server.rows(&query).await?;
    for view in OTEL_VIEWS {
        if found.iter().any(|row| row.first().is_some_and(|name| name == view)) {
            tracing::info!(view, "a view of ClickHouse is dropped: the tables of the Collector's exporter are off");
            let target = format!("{}.{}{}", quoted(&config.database), quoted(view), on_cluster(config));
            server.execute(&format!("DROP VIEW IF EXISTS {target}")).await?;
        }
    }
    Ok(())
}

/// Whether every column that rows are written to is there with its type. Others are none of ours.
async fn check(server: &Server, config: &ClickHouseConfig) -> Result<(), ClickHouseError> {
    let database = literal(&config.database);
    let query = format!("SELECT table, name, type FROM system.columns WHERE database = {database}");
    let mut there: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for row in server.rows(&query).await? {
        if let [table, name, kind] = row.as_slice() {
            there.entry(table.clone()).or_default().insert(name.clone(), kind.clone());
        }
    }
    let differences = differences(&there);
    if differences.is_empty() {
        return Ok(());
    }
    Err(ClickHouseError::SchemaDiffers { database: config.database.clone(), differences })
}

/// What is missing or of another type, in sentences.
fn differences(there: &BTreeMap<String, BTreeMap<String, String>>) -> Vec<String> {
    let mut differences = Vec::new();
    for table in Table::ALL {
        let Some(found) = there.get(table.name()) else {
            differences.push(format!("table `{table}` is missing"));
            continue;
        };
        for (name, kind) in columns(table) {
            match found.get(&name) {
                None => differences.push(format!("`{table}` has no column `{name}` of type {kind}")),
                Some(other) if *other != kind => {
                    differences.push(format!("column `{name}` of `{table}` is {other} and should be {kind}"));
                }
                Some(_) => {}
            }
        }
    }
    differences
}

/// What of the configuration a table does not have, as the part of an `ALTER TABLE` behind its name.
fn alterations(create: &str, table: Option<Table>, config: &ClickHouseConfig) -> Vec<String> {
    let mut alterations = Vec::new();
    let ttl = ttl(table, config);
    if !create.contains(&format!("TTL {ttl}")) {
        alterations.push(format!("MODIFY TTL {ttl}"));
    }
    let settings = create.split_once("SETTINGS ").map_or("", |(_, settings)| settings);
    for (name, value) in table_settings(config) {
        let has = settings.split(',').filter_map(|setting| setting.split_once('='));
        let has = has.map(|(name, value)| (name.trim(), value.trim())).any(|found| found == (name, value.as_str()));
        if !has {
            alterations.push(format!("MODIFY SETTING {name} = {value}"));
        }
    }
    alterations
}

async fn follow_configuration(server: &Server, config: &ClickHouseConfig) -> Result<(), ClickHouseError> {
    let database = literal(&config.database);
    let query = format!("SELECT name, engine_full FROM system.tables WHERE database = {database}");
    let found: BTreeMap<String, String> = server
        .rows(&query)
        .await?
        .into_iter()
        .filter_map(|row| Some((row.first()?.clone(), row.get(1)?.clone())))
        .collect();
    for (name, table) in tables() {
        let create = found.get(name).map_or("", String::as_str);
        for alteration in alterations(create, table, config) {
            tracing::info!(table = name, alteration, "a table of ClickHouse follows the configuration");
            let target = format!("{}.{}{}", quoted(&config.database), quoted(name), on_cluster(config));
            server.execute(&format!("ALTER TABLE {target} {alteration}")).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the model's tables are as columns of a `CREATE TABLE`.
    fn definition(table: Table) -> String {
        // The three last ones came with the second migration.
        let columns = |table: Table| columns(table).into_iter().rev().skip(3).rev();
        let mut lines: Vec<String> = columns(table)
            .map(|(name, kind)| {
                let codec = match kind.as_str() {
                    _ if name == "received_at" => "",
                    "DateTime64(9, 'UTC')" => " CODEC(Delta, ZSTD(1))",
                    _ => " CODEC(ZSTD(1))",
                };
                format!("    {name} {kind}{codec}")
            })
            .collect();
        let mut index = |name: &str, expression: &str, kind: &str| {
            lines.push(format!("    INDEX {name} {expression} TYPE {kind} GRANULARITY 1"));
        };
        index("by_time", table.time_column(), "minmax");
        if columns(table).any(|(name, _)| name == "trace_id") {
            index("by_trace_id", "trace_id", "bloom_filter(0.001)");
        }
        index("by_attribute", "mapKeys(attributes.strings)", "bloom_filter(0.01)");
        index("by_attribute_value", "mapValues(attributes.strings)", "bloom_filter(0.01)");
        index("by_int_attribute", "mapKeys(attributes.ints)", "bloom_filter(0.01)");
        index("by_resource_attribute_value", "mapValues(resource_attributes)", "bloom_filter(0.01)");
        if table == Table::Logs {
            index("by_word", "ifNull(body, '')", "tokenbf_v1(32768, 3, 0)");
        }
        let order = table.sort_columns().join(", ");
        format!(
            "CREATE TABLE IF NOT EXISTS {{database}}.{table}{{on_cluster}}\n(\n{}\n)\nENGINE = {{engine}}\n\
             PARTITION BY toDate(received_at)\nORDER BY (tenant, {order})\nTTL {{ttl:{table}}}\nSETTINGS {{settings}}\n;\n",
            lines.join(",\n")
        )
    }

    #[test]
    fn the_migrations_make_the_tables_that_rows_are_written_for() {
        let mut text: String = Table::ALL.map(definition).join("\n");
        text.push_str(
            "\nCREATE TABLE IF NOT EXISTS {database}.ingest_ledger{on_cluster}\n(\n    tenant LowCardinality(String),\n    \
             minute DateTime('UTC'),\n    signal LowCardinality(String),\n    reason LowCardinality(String),\n    \
             items UInt64\n)\nENGINE = {engine}\nORDER BY (tenant, minute, signal, reason)\nTTL {ttl:ingest_ledger}\n\
             SETTINGS {settings}\n;\n",
        );
        if std::env::var_os("GODSEYE_WRITE_GOLDEN").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/1.sql"), &text).unwrap();
        }
        // A column that is added to the model needs a migration of its own: this one is released.
        assert_eq!(MIGRATIONS[0], text);
    }

    #[test]
    fn statements_have_the_names_and_settings_of_the_configuration() {
        let mut config = ClickHouseConfig::new("http://a");
        config.database = "o`dd".to_owned();
        let of_spans = |config: &ClickHouseConfig| statements(MIGRATIONS[0], config).swap_remove(0);
        let text = of_spans(&config);
        assert!(text.starts_with("CREATE TABLE IF NOT EXISTS `o\\`dd`.spans\n("), "{text}");
        assert!(text.contains("ENGINE = MergeTree\n"), "{text}");
        assert!(text.contains("TTL toDateTime(least(start_time, received_at)) + toIntervalSecond(604800)\n"), "{text}");
        assert!(
            text.ends_with(
                "non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1"
            ),
            "{text}"
        );
        config.cluster = Some("main".to_owned());
        config.ack = Ack::Replica;
        let text = of_spans(&config);
        assert!(text.starts_with("CREATE TABLE IF NOT EXISTS `o\\`dd`.spans ON CLUSTER `main`\n("), "{text}");
        assert!(text.contains("ENGINE = ReplicatedMergeTree\n"), "{text}");
        assert!(text.contains("SETTINGS replicated_deduplication_window = 10000, fsync_after_insert = 0"), "{text}");
        assert!(!text.contains('{'), "nothing is left to fill in: {text}");
    }

    #[test]
    fn differences_name_the_table_the_column_and_both_types() {
        let there: BTreeMap<String, BTreeMap<String, String>> =
            Table::ALL.map(|table| (table.name().to_owned(), columns(table).into_iter().collect())).into();
        assert_eq!(differences(&there), [""; 0]);
        let mut other = there.clone();
        other.remove("profiles");
        other.get_mut("logs").unwrap().remove("body");
        other.get_mut("spans").unwrap().insert("name".to_owned(), "String".to_owned());
        other.get_mut("spans").unwrap().insert("of_others".to_owned(), "String".to_owned());
        assert_eq!(
            differences(&other),
            [
                "column `name` of `spans` is String and should be LowCardinality(String)",
                "`logs` has no column `body` of type Nullable(String)",
                "table `profiles` is missing",
            ]
        );
    }

    #[test]
    fn a_table_is_altered_where_the_configuration_says_something_else() {
        let mut config = ClickHouseConfig::new("http://a");
        let create = "MergeTree PARTITION BY toDate(received_at) ORDER BY time TTL toDateTime(least(time, received_at)) + \
                      toIntervalSecond(604800) SETTINGS non_replicated_deduplication_window = 10000, \
                      fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 8192";
        assert_eq!(alterations(create, Some(Table::Logs), &config), [""; 0]);
        config.retention_ns = [3_600_000_000_000; 4];
        config.deduplication_window = 1000;
        assert_eq!(
            alterations(create, Some(Table::Logs), &config),
            [
                "MODIFY TTL toDateTime(least(time, received_at)) + toIntervalSecond(3600)",
                "MODIFY SETTING non_replicated_deduplication_window = 1000",
            ]
        );
    }
}
