//! Alerts, SLOs, silences and messages as SQL tables: what [`query::offered`] asks for, read from the running parts.
//!
//! A server that alerts nobody has the same tables, and they are empty. Not here: what is answered as JSON (`api.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use alerting::engine::{AlertFilter, AlertView};
use alerting::labels::LabelSet;
use alerting::repository::{HistoryEvent, OutboxRow};
use alerting::service::AlertingHandle;
use alerting::silence::Silence;
use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, RecordBatch, StringBuilder,
    TimestampNanosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use model::attributes::{AttributesColumn, attributes_type};
use model::schema::time_type;
use model::tenant::TenantId;
use model::time::Timestamp;
use model::value::Value;
use query::offered::{Bounds, Column, OfferedTable, Rows};
use serde_json::json;
use slo::archive::{Archive, StoredAlert};
use slo::counts::BUCKET_MS;
use slo::engine::{Board, Status};
use slo::openslo::Slo;
use slo::rules::state::{Labels, State};
use slo::sli::Part;

use super::api::{source, state_of};
use super::lock;

const NANOS_PER_MS: i64 = 1_000_000;

/// What the tables are read from, once it runs.
#[derive(Clone, Default)]
pub struct Watched(Arc<OnceLock<Parts>>);

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

/// The running parts.
pub(super) struct Parts {
    pub handle: AlertingHandle,
    pub board: Board,
    pub archive: Arc<Mutex<Archive>>,
    /// Another one after a reload.
    pub counted: Arc<Mutex<Vec<Counted>>>,
    pub tenant: TenantId,
}

/// An objective whose events are counted.
#[derive(Debug)]
pub(super) struct Counted {
    slo: String,
    objective: String,
    key: u64,
    part: Part,
}

/// The objectives of these SLOs.
pub(super) fn counted(slos: &[Slo]) -> Vec<Counted> {
    let objectives = slos.iter().flat_map(|slo| {
        slo.objectives.iter().map(|objective| Counted {
            slo: slo.name.clone(),
            objective: objective.name.clone(),
            key: objective.indicator.key(),
            part: objective.indicator.part,
        })
    });
    objectives.collect()
}

impl Watched {
    /// From now on the tables have rows.
    pub(super) fn runs(&self, parts: Parts) {
        // A process starts its parts once.
        drop(self.0.set(parts));
    }

    /// Every table, for the query engine.
    #[must_use]
    pub fn tables(&self) -> Vec<Arc<dyn OfferedTable>> {
        Which::ALL.map(|which| Arc::new(Table { which, watched: self.clone() }) as _).into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Alerts,
    AlertHistory,
    SloStatus,
    SloCounts,
    Silences,
    Notifications,
}

impl Which {
    const ALL: [Self; 6] =
        [Self::Alerts, Self::AlertHistory, Self::SloStatus, Self::SloCounts, Self::Silences, Self::Notifications];

    const fn name(self) -> &'static str {
        match self {
            Self::Alerts => "alerts",
            Self::AlertHistory => "alert_history",
            Self::SloStatus => "slo_status",
            Self::SloCounts => "slo_counts",
            Self::Silences => "silences",
            Self::Notifications => "notifications",
        }
    }

    const fn description(self) -> &'static str {
        match self {
            Self::Alerts => "An alert that fires, or that is pending in a rule or an SLO",
            Self::AlertHistory => "The beginning or the end of an alert, newest first",
            Self::SloStatus => "An objective of an SLO as of the last evaluation",
            Self::SloCounts => "The events of an objective in one interval, in three widths; newest first",
            Self::Silences => "A silence, and what it is now",
            Self::Notifications => "A message to one channel about a group of alerts, newest first",
        }
    }

    fn columns(self) -> Vec<Column> {
        let time = |name, text| Column::new(name, time_type(), text);
        let text = |name, text| Column::new(name, DataType::Utf8, text);
        let list =
            |name, text| Column::new(name, DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))), text);
        let int = |name, text| Column::new(name, DataType::Int64, text);
        let double = |name, text| Column::new(name, DataType::Float64, text);
        let flag = |name, text| Column::new(name, DataType::Boolean, text);
        let fingerprint = text("fingerprint", "Its labels, hashed: the same for the same alert");
        let labels = Column::texts("labels", "What it is about; labels['severity'] is one of them");
        match self {
            Self::Alerts => vec![
                time("start_time", "Since when it fires, or is pending"),
                text("state", "pending, firing, silenced, inhibited or muted"),
                fingerprint,
                text("source", "rule, slo or posted; an alert counts as posted until what made it is written"),
                text("rule", "The rule or the SLO's window that makes it; null when it was posted"),
                labels,
                Column::texts("annotations", "What is said about it"),
                double("value", "The rule's value at its last evaluation; null when it has none"),
                time("updated_time", "When it was last heard of"),
                list("receivers", "Whom its routes tell"),
                list("silenced_by", "Ids of the silences that hold it"),
                list("inhibited_by", "Fingerprints of the alerts that inhibit it"),
                list("muted_by", "Time intervals that mute its routes now"),
                text("generator_url", "Where it comes from; null while it is pending"),
            ],
            Self::AlertHistory => {
                vec![time("time", "When it began or ended"), text("event", "firing or resolved"), fingerprint, labels]
            }
            Self::SloStatus => vec![
                time("time", "When it was evaluated"),
                text("slo", "Name of the SLO"),
                text("title", "Its display name"),
                text("service", "The service it is about"),
                text("objective", "Name of the objective"),
                text("health", "Of the SLO: ok, burning, exhausted or no_data"),
                flag("firing", "Whether an alert about the objective fires"),
                double("target", "How much must be good, 0 to 1"),
                double("sli", "How much is good, 0 to 1; null without data"),
                int("good", "Good events, or slices, of the period"),
                int("total", "All of them"),
                int("budget_allowed", "Bad ones that the period may have"),
                int("budget_spent", "Bad ones that it has"),
                double("budget_remaining", "What is left of the budget, 1 to 0; negative when it is overdrawn"),
                time("exhausts_time", "When the budget is used up, if it goes on so; null when it is not"),
                time("period_start_time", "When the period began"),
                time("period_end_time", "When it ends"),
                text("budget_window", "How long the period is"),
                text("burn", "Burn rates by window with what they say, as JSON"),
                text("defined_at", "File and line"),
            ],
            Self::SloCounts => vec![
                time("time", "When the interval begins"),
                int("width_ms", "How long it is, milliseconds: 10000, 300000 or 3600000; each event is in all three"),
                text("slo", "Name of the SLO"),
                text("objective", "Name of the objective"),
                int("good", "Good events"),
                int("bad", "Bad events"),
                int("total", "All events"),
            ],
            Self::Silences => vec![
                text("id", "Its id"),
                text("state", "pending, active or expired"),
                list("matchers", "What it silences: alerts that match all of these"),
                time("start_time", "From when it holds"),
                time("end_time", "Until when"),
                time("updated_time", "When it was last changed"),
                text("created_by", "Who made it"),
                text("comment", "Why"),
            ],
            Self::Notifications => vec![
                time("time", "When it was decided"),
                text("state", "waiting, sent or dead: given up"),
                text("receiver", "Whom it tells"),
                text("channel", "How: receiver, kind and number"),
                text("status", "firing or resolved"),
                text("reason", "first, new_alerts, all_resolved, new_resolved, repeat or digest"),
                text("group_key", "The group it is about"),
                Column::texts("group_labels", "Labels that all alerts of the group share by definition"),
                int("alerts", "Alerts in it"),
                int("failed_attempts", "How often sending it failed"),
                time("next_attempt_time", "When it is tried again; null when it does not wait"),
                time("done_time", "When it was taken, or given up"),
                text("error", "Why sending it failed last"),
                text("key", "Names it for ever: the same in every attempt"),
            ],
        }
    }
}

struct Table {
    which: Which,
    watched: Watched,
}

#[async_trait]
impl OfferedTable for Table {
    fn name(&self) -> &'static str {
        self.which.name()
    }

    fn description(&self) -> &'static str {
        self.which.description()
    }

    fn columns(&self) -> Vec<Column> {
        self.which.columns()
    }

    async fn rows(&self, tenant: &TenantId, bounds: Bounds) -> Result<Rows, String> {
        let mut sheet = Sheet::new(self.which.columns(), bounds);
        let Some(parts) = self.watched.0.get().filter(|parts| parts.tenant == *tenant) else { return sheet.finish() };
        let text = |error: alerting::error::AlertingError| error.to_string();
        // One more than may be shown tells that there are more.
        let limit = u32::try_from(bounds.rows).unwrap_or(u32::MAX).saturating_add(1);
        match self.which {
            Which::Alerts => {
                let shown = parts.handle.alerts(AlertFilter::default()).await.map_err(text)?;
                let archive = Arc::clone(&parts.archive);
                let tenant = tenant.clone();
                let stored = off_thread(move || lock(&archive).load_alerts(&tenant)).await?;
                let known: BTreeMap<&Labels, &StoredAlert> =
                    stored.iter().map(|stored| (&stored.labels, stored)).collect();
                let pending = stored.iter().filter(|stored| stored.alert.state == State::Pending);
                sheet.fill(shown.iter().map(|view| alert(view, &known)).chain(pending.map(pending_alert)));
            }
            Which::AlertHistory => {
                sheet.fill(parts.handle.latest_history(limit).await.map_err(text)?.iter().map(|(at, event, labels)| {
                    let event = match event {
                        HistoryEvent::Firing => "firing",
                        HistoryEvent::Resolved => "resolved",
                    };
                    vec![time(*at), event.into(), labels.fingerprint().to_string().into(), labels.into()]
                }))
            }
            Which::SloStatus => sheet.fill(parts.board.statuses().iter().flat_map(objectives)),
            Which::SloCounts => {
                let (watched, tenant) = (self.watched.clone(), tenant.clone());
                let rows = off_thread(move || count_rows(&watched, &tenant, bounds.rows)).await?;
                sheet.fill(rows.into_iter());
            }
            Which::Silences => {
                let (silences, now) = parts.handle.silences(Vec::new()).await.map_err(text)?;
                sheet.fill(silences.iter().map(|one| silence(one, now)));
            }
            Which::Notifications => {
                sheet.fill(parts.handle.messages(limit).await.map_err(text)?.iter().map(message));
            }
        }
        sheet.finish()
    }
}

/// Runs what waits for a disk.
async fn off_thread<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, slo::error::SloError> + Send + 'static,
) -> Result<T, String> {
    let read = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
    read.map_err(|error| error.to_string())
}

fn alert(view: &AlertView, known: &BTreeMap<&Labels, &StoredAlert>) -> Vec<Cell> {
    let alert = &view.alert;
    let labels: Labels = alert.labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let stored = known.get(&labels);
    let rule = stored.map(|stored| stored.rule.as_str());
    vec![
        time(alert.starts_at),
        state_of(view).into(),
        alert.fingerprint().to_string().into(),
        source(rule).into(),
        rule.map_or(Cell::Null, Cell::from),
        (&alert.labels).into(),
        (&alert.annotations).into(),
        stored.map_or(Cell::Null, |stored| stored.alert.value.into()),
        time(alert.updated_at),
        view.receivers.clone().into(),
        view.silenced_by.clone().into(),
        view.inhibited_by.iter().map(ToString::to_string).collect::<Vec<_>>().into(),
        view.muted_by.clone().into(),
        alert.generator_url.as_str().into(),
    ]
}

fn pending_alert(stored: &StoredAlert) -> Vec<Cell> {
    let StoredAlert { rule, labels, alert, seen_at } = stored;
    let set: LabelSet = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut cells = vec![
        time(alert.active_at),
        "pending".into(),
        set.fingerprint().to_string().into(),
        source(Some(rule)).into(),
        rule.as_str().into(),
        (&set).into(),
        Cell::Labels(alert.annotations.clone().into_iter().collect()),
        alert.value.into(),
        time(*seen_at),
    ];
    cells.extend((0..4).map(|_| Vec::new().into()));
    cells.push(Cell::Null);
    cells
}

fn objectives(status: &Status) -> Vec<Vec<Cell>> {
    let report = status.report();
    let of = status.objectives.iter();
    let rows = report.objectives.iter().zip(of).map(|(objective, of)| {
        vec![
            time(status.at),
            report.slo.as_str().into(),
            report.title.as_str().into(),
            report.service.as_str().into(),
            objective.name.as_str().into(),
            report.health.name().into(),
            Cell::Flag(of.firing),
            objective.target.into(),
            objective.sli.map_or(Cell::Null, Cell::from),
            objective.good.into(),
            objective.total.into(),
            objective.budget_allowed.into(),
            objective.budget_spent.into(),
            objective.budget_remaining.into(),
            objective.exhausts_at_ms.map_or(Cell::Null, millis),
            millis(objective.period_start_ms),
            millis(objective.period_end_ms),
            report.window.as_str().into(),
            json!(objective.burn).to_string().into(),
            report.defined_at.as_str().into(),
        ]
    });
    rows.collect()
}

fn count_rows(watched: &Watched, tenant: &TenantId, rows_max: usize) -> Result<Vec<Vec<Cell>>, slo::error::SloError> {
    let mut rows = Vec::new();
    let Some(parts) = watched.0.get() else { return Ok(rows) };
    // Two objectives of the same events share a series; each is a row of its own all the same.
    for of in lock(&parts.counted).iter() {
        let left = rows_max.saturating_add(1).saturating_sub(rows.len());
        if left == 0 {
            break;
        }
        let counted = lock(&parts.archive).counts_of(tenant, of.key, left)?;
        rows.extend(counted.into_iter().map(|row| {
            let other = row.counts.total.saturating_sub(row.counts.numerator);
            let (good, bad) = match of.part {
                Part::Good => (row.counts.numerator, other),
                Part::Bad => (other, row.counts.numerator),
            };
            let width_ms = row.width * BUCKET_MS;
            vec![
                millis(row.index * width_ms),
                Cell::Int(width_ms),
                of.slo.as_str().into(),
                of.objective.as_str().into(),
                good.into(),
                bad.into(),
                row.counts.total.into(),
            ]
        }));
    }
    Ok(rows)
}

fn silence(silence: &Silence, now: Timestamp) -> Vec<Cell> {
    vec![
        silence.id.as_str().into(),
        silence.state(now).as_str().into(),
        silence.matchers.iter().map(ToString::to_string).collect::<Vec<_>>().into(),
        time(silence.starts_at),
        time(silence.ends_at),
        time(silence.updated_at),
        silence.created_by.as_str().into(),
        silence.comment.as_str().into(),
    ]
}

fn message(row: &OutboxRow) -> Vec<Cell> {
    let told = &row.notification;
    vec![
        time(row.created_at),
        row.state.as_str().into(),
        told.receiver.as_str().into(),
        told.channel.as_str().into(),
        told.status().as_str().into(),
        told.reason.as_str().into(),
        told.group_key.as_str().into(),
        (&told.group_labels).into(),
        (told.alerts.len() as u64).into(),
        u64::from(row.attempts).into(),
        row.next_attempt_at.map_or(Cell::Null, time),
        row.done_at.map_or(Cell::Null, time),
        row.last_error.as_deref().map_or(Cell::Null, Cell::from),
        told.key.as_str().into(),
    ]
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Null,
    Text(String),
    Texts(Vec<String>),
    Labels(Vec<(String, String)>),
    /// Nanoseconds since the epoch.
    Time(i64),
    Int(i64),
    Double(f64),
    Flag(bool),
}

fn time(at: Timestamp) -> Cell {
    Cell::Time(at.0)
}

fn millis(at: i64) -> Cell {
    Cell::Time(at.saturating_mul(NANOS_PER_MS))
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<String>> for Cell {
    fn from(texts: Vec<String>) -> Self {
        Self::Texts(texts)
    }
}

impl From<&LabelSet> for Cell {
    fn from(labels: &LabelSet) -> Self {
        Self::Labels(labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        if number.is_finite() { Self::Double(number) } else { Self::Null }
    }
}

impl Cell {
    fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Texts(texts) => texts.iter().map(String::len).sum(),
            Self::Labels(labels) => labels.iter().map(|(name, value)| name.len() + value.len()).sum(),
            _ => 0,
        }
    }
}

/// Rows in the making.
struct Sheet {
    columns: Vec<Column>,
    bounds: Bounds,
    rows: Vec<Vec<Cell>>,
    cut: bool,
}

impl Sheet {
    const fn new(columns: Vec<Column>, bounds: Bounds) -> Self {
        Self { columns, bounds, rows: Vec::new(), cut: false }
    }

    /// Adds rows, as many as the bounds let through.
    fn fill(&mut self, rows: impl Iterator<Item = Vec<Cell>>) {
        let mut text_bytes = 0_usize;
        for row in rows {
            text_bytes = text_bytes.saturating_add(row.iter().map(Cell::text_bytes).sum());
            if self.rows.len() == self.bounds.rows || text_bytes > self.bounds.text_bytes {
                self.cut = true;
                return;
            }
            self.rows.push(row);
        }
    }

    fn finish(self) -> Result<Rows, String> {
        let cells = |at: usize| self.rows.iter().map(move |row| row.get(at).unwrap_or(&Cell::Null));
        let arrays = self.columns.iter().enumerate().map(|(at, column)| array(&column.field, cells(at)));
        let arrays = arrays.collect::<Result<Vec<ArrayRef>, String>>()?;
        let fields: Vec<Field> = self.columns.iter().map(|column| column.field.clone()).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|error| error.to_string())?;
        Ok(Rows { batch, cut: self.cut })
    }
}

fn array<'a>(field: &Field, cells: impl Iterator<Item = &'a Cell>) -> Result<ArrayRef, String> {
    macro_rules! plain {
        ($builder:expr, $cell:ident) => {{
            let mut builder = $builder;
            for cell in cells {
                match cell {
                    Cell::$cell(value) => builder.append_value(value.clone()),
                    _ => builder.append_null(),
                }
            }
            Ok(Arc::new(builder.finish()))
        }};
    }
    match field.data_type() {
        DataType::Utf8 => plain!(StringBuilder::new(), Text),
        DataType::Int64 => plain!(Int64Builder::new(), Int),
        DataType::Float64 => plain!(Float64Builder::new(), Double),
        DataType::Boolean => plain!(BooleanBuilder::new(), Flag),
        DataType::Timestamp(..) => plain!(TimestampNanosecondBuilder::new().with_timezone("UTC"), Time),
        DataType::List(_) => {
            let mut builder = ListBuilder::new(StringBuilder::new());
            for cell in cells {
                if let Cell::Texts(texts) = cell {
                    texts.iter().for_each(|text| builder.values().append_value(text));
                }
                builder.append(matches!(cell, Cell::Texts(_)));
            }
            Ok(Arc::new(builder.finish()))
        }
        data_type if *data_type == attributes_type() => {
            let mut builder = AttributesColumn::default();
            for cell in cells {
                let Cell::Labels(labels) = cell else { return Err(format!("{} has no labels", field.name())) };
                for (name, value) in labels {
                    let pushed = builder.push(name, Some(Value::String(value)));
                    pushed.map_err(|error| format!("a row has more labels than can be shown: {error:?}"))?;
                }
                builder.end_row();
            }
            Ok(builder.finish())
        }
        other => Err(format!("{} has the type {other}", field.name())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BOUNDS: Bounds = Bounds { rows: 3, text_bytes: 100 };

    #[test]
    fn every_table_is_described_and_empty_without_alerting() {
        let tenant = TenantId::default_tenant();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let names: BTreeSet<&str> = Which::ALL.map(Which::name).into();
        assert_eq!(names.len(), Which::ALL.len());
        for table in Watched::default().tables() {
            let rows = runtime.block_on(table.rows(&tenant, BOUNDS)).unwrap();
            assert_eq!((rows.batch.num_rows(), rows.cut), (0, false), "{}", table.name());
            let columns = table.columns();
            assert!(columns.iter().all(|column| !column.description.is_empty()), "{}", table.name());
            let names: BTreeSet<&String> = columns.iter().map(|column| column.field.name()).collect();
            assert_eq!(names.len(), columns.len(), "{} has a name twice", table.name());
        }
    }

    #[test]
    fn rows_are_bounded_by_number_and_by_text() {
        let columns = || vec![Column::new("a", DataType::Utf8, "A"), Column::texts("labels", "B")];
        let row = |bytes: usize| vec!["x".repeat(bytes).into(), Cell::Labels(vec![("k".to_owned(), "v".to_owned())])];
        for (rows, want) in [
            (vec![1, 1, 1], (3, false)),
            (vec![1, 1, 1, 1], (3, true)),
            (vec![97, 0], (1, true)),
            (vec![94, 2], (2, false)),
            (vec![99], (0, true)),
        ] {
            let mut sheet = Sheet::new(columns(), BOUNDS);
            sheet.fill(rows.iter().map(|bytes| row(*bytes)));
            let found = sheet.finish().unwrap();
            assert_eq!((found.batch.num_rows(), found.cut), want, "{rows:?}");
        }
    }
}
