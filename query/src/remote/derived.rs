//! `span_metrics` and `service_edges` where ClickHouse has the spans: their partial rows, counted from spans as they are
//! asked for.
//!
//! Nothing is stored beside the spans. So there is nothing that could be there twice or be missing after a crash, late
//! spans and spans of long ago included, and nothing to derive anew. The price is that a question reads the columns of the
//! spans within its time instead of sums that were made before; ClickHouse reads columns fast. The rules are those of
//! `ingest/store/src/derived`, written as SQL: a call is joined from its halves in one statement instead of as they come.
//!
//! Only the columns that a plan wants are asked for, and rows are grouped by no more keys than those: what is left out
//! would be added up here. Pure. Not here: how partial rows become the rows people see
//! ([`crate::derived`]), which is the same code wherever they come from.

use std::fmt::Write as _;

use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use model::derived::{BUCKET_NS, DerivedTable, Measure, RESOLUTIONS_S, schema};
use model::durations::{STEP_BOUNDS, ZERO_BUCKET};
use model::signal::Table;

use super::Reach;
use super::plan;
use super::writer::{identifier, time};

/// How far apart the halves of a call may begin, where the question has a bound of time. Embedded, halves are joined that
/// *come* within ten minutes; here a consumer may begin an hour after its producer.
const HALVES_APART_NS: i64 = 3_600 * 1_000_000_000;

/// From, and up to but not including, nanoseconds since the epoch.
pub(crate) type Bounds = (Option<i64>, Option<i64>);

/// The statement for columns of a derived table's partial rows of the finest resolution whose time is within bounds.
/// Filters that ClickHouse can see to are in it; whoever asks looks at them again.
///
/// # Errors
/// When a filter names what the table does not have.
pub(crate) fn statement(
    reach: &Reach,
    table: DerivedTable,
    wanted: &[usize],
    bounds: Bounds,
    filters: &[Expr],
) -> Result<String> {
    let keys = table.keys();
    let fields = schema(table);
    let mut list = Vec::with_capacity(wanted.len());
    let mut groups = Vec::new();
    for (number, index) in wanted.iter().enumerate() {
        let name = fields.field(*index).name();
        let sql = match name.as_str() {
            "resolution" => format!("toInt32({})", RESOLUTIONS_S[0]),
            key if keys.contains(&key) => {
                groups.push(identifier(key));
                identifier(key)
            }
            measure => measured(table, measure),
        };
        list.push(format!("{sql} AS c{number}"));
    }
    if list.is_empty() {
        list.push("1 AS c0".to_owned());
    }
    let rows = match table {
        DerivedTable::SpanMetrics => spans(reach, bounds),
        DerivedTable::ServiceEdges => calls(reach, bounds),
    };
    let mut sql = format!("SELECT {} FROM ({rows})", list.join(", "));
    let conditions = plan::key_conditions(reach, table, filters)?;
    if !conditions.is_empty() {
        write!(sql, " WHERE {}", conditions.join(" AND ")).expect("a string takes everything");
    }
    if groups.is_empty() {
        // One row of everything, and none of nothing.
        sql.push_str(" GROUP BY tuple()");
    } else {
        write!(sql, " GROUP BY {}", groups.join(", ")).expect("a string takes everything");
    }
    Ok(sql)
}

/// A measure of a group of rows.
fn measured(table: DerivedTable, name: &str) -> String {
    let timed = "isNotNull(duration)";
    // The trace of the greatest, the least such trace: `bitNot` turns the order around and overflows nowhere.
    let exemplar = |of: &str| {
        format!(
            "if(countIf({of}) > 0, toNullable(argMinIf(trace_id, (bitNot(ifNull(duration, 0)), trace_id), {of})), NULL)"
        )
    };
    let cells = |duration: &str, part: u8| {
        let bucket = bucket_of(&format!("ifNull({duration}, 0)"));
        let cells = format!("sumMapIf([{bucket}], [toInt64(1)], isNotNull({duration}))");
        format!("tupleElement({cells}, {part})")
    };
    for measure in table.measures() {
        match measure {
            Measure::Histogram { buckets, .. } if *buckets == name => return cells(side_of(buckets), 1),
            Measure::Histogram { counts, .. } if *counts == name => return cells(side_of(counts), 2),
            _ => {}
        }
    }
    match name {
        "count" => "toInt64(count())".to_owned(),
        "errors" => "toInt64(countIf(error))".to_owned(),
        "client_errors" => "toInt64(countIf(client_error))".to_owned(),
        "duration_sum_ns" => "ifNull(sum(duration), toInt64(0))".to_owned(),
        "client_duration_sum_ns" => "ifNull(sum(client_duration), toInt64(0))".to_owned(),
        "duration_min_ns" => "min(duration)".to_owned(),
        "duration_max_ns" => "max(duration)".to_owned(),
        "slowest_trace_id" => exemplar(timed),
        "error_max_ns" => "maxIf(duration, error)".to_owned(),
        "error_trace_id" => exemplar("isNotNull(duration) AND error"),
        other => unreachable!("{table} has no column {other}"),
    }
}

/// The durations that a histogram is of.
fn side_of(column: &str) -> &'static str {
    if column.starts_with("client_") { "client_duration" } else { "duration" }
}

/// The bucket of a number of nanoseconds, as [`model::durations::bucket`] has it, by whole numbers: a logarithm only
/// guesses the power of two, and is put right.
fn bucket_of(nanos: &str) -> String {
    let bounds: Vec<String> = STEP_BOUNDS.iter().map(u64::to_string).collect();
    // What is no positive number is left out at the end, and must only not disturb here.
    let number = format!("toUInt64(greatest({nanos}, 1))");
    let guess = format!("toUInt8(floor(log2({number})))");
    let power = format!(
        "toUInt8({guess} - (bitShiftLeft(toUInt64(1), {guess}) > {number}) \
         + (bitShiftLeft(toUInt64(1), toUInt8(least({guess} + 1, 63))) <= {number}))"
    );
    let scaled = format!("bitShiftLeft({number}, toUInt8(62 - {power}))");
    format!(
        "toInt16(if({nanos} <= 0, {ZERO_BUCKET}, {power} * 16 + if({scaled} = bitShiftLeft(toUInt64(1), 62), -1, \
         toInt16(arrayCount(bound -> {scaled} > bound, [{}])))))",
        bounds.join(", ")
    )
}

/// The tenant's spans within bounds of their bucket's time.
fn from(reach: &Reach, (from, to): Bounds, kinds: &str) -> String {
    let whole = |nanos: i64| nanos.saturating_add(BUCKET_NS - 1).div_euclid(BUCKET_NS).saturating_mul(BUCKET_NS);
    let [table, tenant] = plan::of_tenant(reach, Table::Spans.name());
    let mut sql = format!("FROM {table} WHERE {tenant}");
    for (bound, operator) in [(from, ">="), (to, "<")] {
        if let Some(nanos) = bound {
            write!(sql, " AND start_time {operator} {}", time(whole(nanos))).expect("a string takes everything");
        }
    }
    sql.push_str(kinds);
    sql
}

/// The ten seconds that a span started in.
const BUCKET: &str = "fromUnixTimestamp64Nano(toInt64(toUnixTimestamp64Nano(start_time) \
                      - positiveModulo(toUnixTimestamp64Nano(start_time), 10000000000)), 'UTC')";

/// What a resource says of where and what it is; null when it does not.
const ENVIRONMENT: &str = "nullIf(if(resource_attributes['deployment.environment.name'] != '', \
                           resource_attributes['deployment.environment.name'], \
                           resource_attributes['deployment.environment']), '')";
const VERSION: &str = "nullIf(resource_attributes['service.version'], '')";

/// Each span as a row of `span_metrics` of its own.
fn spans(reach: &Reach, bounds: Bounds) -> String {
    format!(
        "SELECT kind, service_name, name AS span_name, status_code, {ENVIRONMENT} AS environment, \
         {VERSION} AS service_version, {BUCKET} AS time, status_code = 'ERROR' AS error, duration_ns AS duration, \
         trace_id {}",
        from(reach, bounds, "")
    )
}

/// Whether a span has an attribute that is not empty, of any kind.
fn has(key: &str) -> String {
    let maps = ["strings", "ints", "bools", "doubles", "others"];
    let parts: Vec<String> = maps.iter().map(|map| format!("mapContains(attributes.{map}, '{key}')")).collect();
    format!("({})", parts.join(" OR "))
}

fn text(key: &str) -> String {
    format!("attributes.strings['{key}']")
}

/// The text of one key, else of another.
fn either(one: &str, other: &str) -> String {
    format!("if(mapContains(attributes.strings, '{one}'), {}, {})", text(one), text(other))
}

/// What carries a span's call.
fn connection() -> String {
    format!(
        "multiIf(kind IN ('PRODUCER', 'CONSUMER') OR {}, 'messaging', {} OR {}, 'db', {} OR {}, 'rpc', {} OR {}, 'http', 'other')",
        has("messaging.system"),
        has("db.system.name"),
        has("db.system"),
        has("rpc.system.name"),
        has("rpc.system"),
        has("http.request.method"),
        has("http.method")
    )
}

/// Whom a caller called, as far as it says; empty when it does not.
fn peer() -> String {
    let (by_message, to_database) =
        (has("messaging.system"), format!("{} OR {}", has("db.system.name"), has("db.system")));
    let system = format!(
        "multiIf({by_message}, {}, {to_database}, {}, '')",
        text("messaging.system"),
        either("db.system.name", "db.system")
    );
    let part = format!(
        "multiIf({by_message}, {}, {to_database}, {}, '')",
        text("messaging.destination.name"),
        either("db.namespace", "db.name")
    );
    format!(
        "multiIf({0} != '', {0}, {1} != '', {1}, {system} != '', concat({system}, if({part} != '', concat('/', {part}), '')), {2})",
        text("peer.service"),
        text("service.peer.name"),
        text("server.address")
    )
}

/// Each call as a row of `service_edges` of its own: those with both halves, and those of callers that nobody answers
/// for.
fn calls(reach: &Reach, bounds: Bounds) -> String {
    let (from_time, to_time) = bounds;
    let wide = (
        from_time.map(|nanos| nanos.saturating_sub(HALVES_APART_NS)),
        to_time.map(|nanos| nanos.saturating_add(HALVES_APART_NS)),
    );
    let (connection, peer) = (connection(), peer());
    // Whom a callee was called by: its parent, and of a consumer what its links point at.
    let references = "arrayConcat(if(isNull(parent_span_id), [], [(trace_id, assumeNotNull(parent_span_id))]), \
         if(kind = 'CONSUMER', arrayFilter(item -> isNull(parent_span_id) OR item.1 != trace_id OR item.2 != \
         assumeNotNull(parent_span_id), arrayMap(link -> (assumeNotNull(link.trace_id), assumeNotNull(link.span_id)), \
         arrayFilter(link -> isNotNull(link.trace_id) AND isNotNull(link.span_id), links))), []))";
    let callees = " AND kind IN ('SERVER', 'CONSUMER')";
    let callers = " AND kind IN ('CLIENT', 'PRODUCER')";
    let answered = format!(
        "SELECT caller.service AS client, callee.service AS server, if(callee.connection = 'other' AND caller.is_side, \
         caller.connection, callee.connection) AS connection_type, false AS server_inferred, \
         callee.environment AS environment, callee.time AS time, callee.error AS error, \
         caller.is_side AND caller.error AS client_error, callee.duration AS duration, \
         if(caller.is_side, caller.duration, NULL) AS client_duration, callee.trace AS trace_id \
         FROM (SELECT arrayJoin({references}) AS reference, reference.1 AS reference_trace, \
         reference.2 AS reference_span, toString(service_name) AS service, {connection} AS connection, \
         {ENVIRONMENT} AS environment, {BUCKET} AS time, status_code = 'ERROR' AS error, duration_ns AS duration, \
         trace_id AS trace {}) AS callee \
         ANY LEFT JOIN (SELECT trace_id AS caller_trace, span_id AS caller_span, toString(service_name) AS service, \
         {connection} AS connection, kind IN ('CLIENT', 'PRODUCER') AS is_side, status_code = 'ERROR' AS error, \
         duration_ns AS duration, true AS is_there {}) AS caller \
         ON callee.reference_trace = caller.caller_trace AND callee.reference_span = caller.caller_span \
         WHERE caller.is_there AND caller.service != callee.service",
        from(reach, bounds, callees),
        from(reach, wide, "")
    );
    let inferred = format!(
        "SELECT caller.service AS client, caller.peer AS server, caller.connection AS connection_type, \
         true AS server_inferred, caller.environment AS environment, caller.time AS time, caller.error AS error, \
         caller.error AS client_error, caller.duration AS duration, caller.duration AS client_duration, \
         caller.trace AS trace_id \
         FROM (SELECT trace_id AS trace, span_id AS span, toString(service_name) AS service, {peer} AS peer, \
         {connection} AS connection, {ENVIRONMENT} AS environment, {BUCKET} AS time, status_code = 'ERROR' AS error, \
         duration_ns AS duration {}) AS caller \
         LEFT ANTI JOIN (SELECT arrayJoin({references}) AS reference, reference.1 AS reference_trace, \
         reference.2 AS reference_span {}) AS callee \
         ON caller.trace = callee.reference_trace AND caller.span = callee.reference_span \
         WHERE caller.peer != ''",
        from(reach, bounds, callers),
        from(reach, wide, callees)
    );
    format!("{answered} UNION ALL {inferred}")
}
