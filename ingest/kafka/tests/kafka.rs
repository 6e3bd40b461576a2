//! The gateway and the writer against Apache Kafka itself.
//!
//! The oracle is the same everywhere: spans are numbered, and every acknowledged number must be in the store exactly once.
//! One Kafka serves all tests, each with topics of its own; the one that kills it has another. Without Java or its jars the
//! tests say so and pass. `KAFKA_BROKERS` points them at another cluster.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test sleeps and looks again")]
#![allow(clippy::print_stderr, reason = "what is left out is told")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{Array as _, AsArray as _};
use bytes::Bytes;
use fixtures::parts::PartError;
use fixtures::parts::kafka::Kafka;
use ingest::export::{Accepted, ExportError, ExportRequest};
use ingest::receiver::Export as _;
use ingest::series::SeriesLimiter;
use kafka_log::client::{Context, make_topics, settings};
use kafka_log::{Encoding, Gateway, KafkaConfig, Key, PositionedLog, Writer};
use model::ledger::RejectReason;
use model::signal::{Signal, Table};
use model::tenant::TenantId;
use model::time::Clock;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus_client::registry::Registry;
use prost::Message as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use store::wal::WalError;
use store::{Entry, Metrics, Position, ReplayProgress, Store, StoreConfig, StoreError};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// A test that waits longer than this hangs.
const HANG: Duration = Duration::from_secs(120);

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The shortest session that a broker allows unless it is told otherwise.
const SESSION_MS: u64 = 6_000;

/// 2026-11-21T10:00:00Z.
const AT_NS: u64 = 1_795_255_200_000_000_000;

static KAFKA: OnceCell<Option<(TempDir, Kafka)>> = OnceCell::const_new();

async fn start_kafka(folder: &Path) -> Option<Kafka> {
    match Kafka::start(folder).await {
        Err(error @ PartError::Missing { .. }) => {
            eprintln!("left out: {error}");
            None
        }
        started => Some(started.unwrap()),
    }
}

/// Partitions of the topic of spans. The other topics have one each, so whoever has half of all has some of these.
const PARTITIONS: i32 = 8;

/// All of them.
const PARTITIONS_TOTAL: f64 = 11.0;

/// A configuration with topics of its own.
async fn config_of(test: &str) -> Option<KafkaConfig> {
    let (_, kafka) = KAFKA
        .get_or_init(|| async {
            let folder = tempfile::tempdir().unwrap();
            let kafka = start_kafka(folder.path()).await?;
            Some((folder, kafka))
        })
        .await
        .as_ref()?;
    Some(config_at(kafka.brokers(), test).await)
}

async fn config_at(brokers: &str, test: &str) -> KafkaConfig {
    // On a cluster that outlives the test every run has its own.
    let run = std::process::id();
    let mut config = KafkaConfig::new(brokers);
    config.topics = config.topics.map(|topic| format!("{test}-{run}-{topic}"));
    config.dead_letters = format!("{test}-{run}-dead");
    config.group = format!("{test}-{run}");
    config.session_timeout_ms = SESSION_MS;
    config.commit_interval_ms = 100;
    let topics = config.topics.iter().zip([PARTITIONS, 1, 1, 1]);
    let topics: Vec<NewTopic<'_>> =
        topics.map(|(topic, partitions)| NewTopic::new(topic, partitions, TopicReplication::Fixed(-1))).collect();
    admin(&config).create_topics(&topics, &AdminOptions::new()).await.unwrap();
    make_topics(&config, &[&config.dead_letters]).await;
    config
}

fn admin(config: &KafkaConfig) -> AdminClient<Context> {
    settings(config).create_with_context(Context).unwrap()
}

fn open(dir: &TempDir) -> Arc<Store> {
    Store::open(StoreConfig::new(dir.path()), &ReplayProgress::default(), Metrics::default()).unwrap()
}

/// A writer with its metrics.
struct Running {
    writer: Writer,
    registry: Registry,
}

impl Running {
    fn start(config: &KafkaConfig, log: Arc<dyn PositionedLog>) -> Self {
        let mut registry = Registry::default();
        let series = SeriesLimiter::new(1_000_000);
        let writer =
            Writer::start(config.clone(), log, series, Clock::System, &mut registry, |error| panic!("{error}"));
        Self { writer: writer.unwrap(), registry }
    }

    /// The sum of a metric over its labels.
    fn metric(&self, name: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let rest = |line: &str| {
            line.strip_prefix("godseye_kafka_").and_then(|line| line.strip_prefix(name)).map(str::to_owned)
        };
        let of = text.lines().filter_map(rest).filter(|rest| rest.starts_with([' ', '{']));
        of.map(|rest| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

fn gateway(config: &KafkaConfig) -> Gateway {
    Gateway::start(config.clone(), Clock::System, &mut Registry::default()).unwrap()
}

/// Spans numbered from `first`, each in a trace of its own.
fn spans(first: u64, count: u64, name_bytes: usize) -> Bytes {
    let span = |number: u64| Span {
        trace_id: [&[1; 8][..], &number.to_be_bytes()].concat(),
        span_id: (number + 1).to_be_bytes().to_vec(),
        name: "x".repeat(name_bytes),
        start_time_unix_nano: AT_NS,
        end_time_unix_nano: AT_NS + 1,
        ..Span::default()
    };
    let scope = ScopeSpans { spans: (first..first + count).map(span).collect(), ..ScopeSpans::default() };
    let resource_spans = vec![ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

async fn export(gateway: &Gateway, signal: Signal, tenant: &str, body: Bytes) -> Result<Accepted, ExportError> {
    gateway.export(ExportRequest { signal, tenant: TenantId::new(tenant).unwrap(), body }).await
}

/// Hands numbered spans on until they are acknowledged.
async fn export_spans(gateway: &Gateway, first: u64, count: u64) {
    let deadline = Instant::now() + HANG;
    loop {
        match export(gateway, Signal::Traces, "default", spans(first, count, 1)).await {
            Ok(accepted) => return assert_eq!(accepted.stored, count),
            Err(error) => assert!(error.is_retryable() && Instant::now() < deadline, "{error}"),
        }
    }
}

/// The numbers of a tenant's spans, sorted. No flush is due in these tests, so they are in memory.
fn numbers(store: &Store, tenant: &str) -> Vec<u64> {
    let snapshot = store.snapshot(&TenantId::new(tenant).unwrap());
    assert!(snapshot.table(Table::Spans).segments.is_empty());
    let mut numbers: Vec<u64> = Vec::new();
    for batch in &snapshot.table(Table::Spans).memory {
        let ids = batch.column_by_name("span_id").unwrap().as_fixed_size_binary();
        numbers.extend((0..ids.len()).map(|row| u64::from_be_bytes(ids.value(row).try_into().unwrap()) - 1));
    }
    numbers.sort_unstable();
    numbers
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Waits until so many spans are there, and looks whether they are `0..count`, each once.
fn check(what: &str, stores: &[&Arc<Store>], count: u64) {
    let all = || stores.iter().flat_map(|store| numbers(store, "default")).collect::<Vec<u64>>();
    wait_until(what, || all().len() as u64 >= count);
    let mut found = all();
    found.sort_unstable();
    assert!(found.iter().copied().eq(0..count), "{what}: {} rows of {count}: {found:?}", found.len());
}

/// Sends bytes to a topic that nobody has looked at.
async fn produce(config: &KafkaConfig, topic: &str, payload: &[u8]) {
    let producer: FutureProducer = settings(config).create().unwrap();
    let record = FutureRecord::<[u8], [u8]>::to(topic).payload(payload);
    producer.send(record, HANG).await.unwrap();
}

/// What is in a topic, from its start: payload and headers of each message.
fn read_all(config: &KafkaConfig, topic: &str, count: usize) -> Vec<(Vec<u8>, BTreeMap<String, String>)> {
    let mut settings = settings(config);
    settings.set("group.id", format!("{topic}-reader")).set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = settings.create().unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let mut found = Vec::new();
    wait_until("dead letters", || {
        while let Some(Ok(message)) = consumer.poll(LOOK_EVERY) {
            let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap_or_default().to_vec()).unwrap();
            let headers = message.headers().map_or_else(BTreeMap::new, |headers| {
                headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
            });
            found.push((message.payload().unwrap_or_default().to_vec(), headers));
        }
        found.len() >= count
    });
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_acknowledges_a_writer_stores_once_in_every_encoding_and_by_every_key() {
    for (name, encoding) in Encoding::ALL {
        for (key_name, key) in Key::ALL {
            let Some(mut config) = config_of(&format!("way-{name}-{key_name}")).await else { return };
            (config.encoding, config.key) = (encoding, key);
            let dir = tempfile::tempdir().unwrap();
            let store = open(&dir);
            let running = Running::start(&config, Arc::<Store>::clone(&store));
            let gateway = gateway(&config);
            for request in 0..10 {
                export_spans(&gateway, request * 20, 20).await;
            }
            let mut items = BTreeMap::new();
            let batches = fixtures::batches::logs_l(1, 2, AT_NS)
                .into_iter()
                .chain(fixtures::batches::metrics_m(1, 1, AT_NS).into_iter().take(2))
                .chain([fixtures::batches::counted("run", fixtures::otlp::Signal::Profiles, 0, 5, AT_NS)]);
            for batch in batches {
                let signal = Signal::from_name(&format!("{:?}", batch.signal).to_lowercase()).unwrap();
                let accepted = export(&gateway, signal, "team-1", batch.body).await.unwrap();
                assert_eq!((accepted.stored, accepted.rejected_total()), (batch.items, 0));
                *items.entry(signal).or_insert(0) += batch.items;
            }
            assert!(matches!(
                export(&gateway, Signal::Logs, "default", Bytes::from_static(b"\xff")).await,
                Err(ExportError::Malformed { .. })
            ));
            check(&format!("{name} {key_name}"), &[&store], 200);
            let other = TenantId::new("team-1").unwrap();
            let rows = |table: Table| -> u64 {
                store.snapshot(&other).table(table).memory.iter().map(|batch| batch.num_rows() as u64).sum()
            };
            wait_until("other signals", || rows(Table::Profiles) == items[&Signal::Profiles]);
            wait_until("other signals", || rows(Table::Logs) == items[&Signal::Logs]);
            wait_until("other signals", || rows(Table::MetricPoints) == items[&Signal::Metrics]);
            gateway.drain();
            assert!(matches!(
                export(&gateway, Signal::Logs, "default", Bytes::new()).await,
                Err(ExportError::ShuttingDown)
            ));
            wait_until("no lag", || running.metric("lag_messages") == 0.0);
            assert_eq!(running.metric("dead_letters_total"), 0.0);
            running.writer.stop();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_goes_on_where_its_rows_end_whatever_kafka_knows() {
    let Some(mut config) = config_of("own").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(&config);
    // Kafka never hears how far it is before the end, and then its group is another one.
    config.commit_interval_ms = 3_600_000;
    for round in 0..3 {
        let store = open(&dir);
        config.group = format!("{}-{round}", config.group);
        let running = Running::start(&config, Arc::<Store>::clone(&store));
        for request in 0..5 {
            export_spans(&gateway, round * 50 + request * 10, 10).await;
        }
        check("round", &[&store], (round + 1) * 50);
        running.writer.stop();
    }
    // A new data directory begins at the start.
    let fresh = tempfile::tempdir().unwrap();
    let store = open(&fresh);
    config.group = format!("{}-fresh", config.group);
    let running = Running::start(&config, Arc::<Store>::clone(&store));
    check("fresh", &[&store], 150);
    running.writer.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_telemetry_becomes_a_dead_letter_and_holds_nobody_up() {
    let Some(config) = config_of("poison").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let gateway = gateway(&config);
    let topic = config.topic(Signal::Traces).to_owned();
    export_spans(&gateway, 0, 10).await;
    for payload in [&b"not protobuf"[..], b"\xff\xff\xff", b"\x0a\x05abc"] {
        produce(&config, &topic, payload).await;
    }
    export_spans(&gateway, 10, 10).await;
    let running = Running::start(&config, Arc::<Store>::clone(&store));
    check("poison", &[&store], 20);
    let dead = read_all(&config, &config.dead_letters, 3);
    let mut payloads: Vec<&[u8]> = dead.iter().map(|(payload, _)| &payload[..]).collect();
    payloads.sort_unstable();
    assert_eq!(payloads, [&b"\x0a\x05abc"[..], b"not protobuf", b"\xff\xff\xff"]);
    for (_, headers) in &dead {
        assert_eq!((&*headers["godseye.reason"], &headers["godseye.topic"]), ("malformed", &topic));
        assert!(!headers["godseye.detail"].is_empty() && headers["godseye.offset"].parse::<i64>().is_ok());
    }
    assert_eq!(running.metric("dead_letters_total"), 3.0);
    running.writer.stop();
    // What is dead is so once: it was told to Kafka.
    let running = Running::start(&config, Arc::<Store>::clone(&store));
    export_spans(&gateway, 20, 10).await;
    check("after", &[&store], 30);
    assert_eq!(running.metric("dead_letters_total"), 0.0);
    running.writer.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_are_taken_apart_and_items_that_fit_no_message_are_told() {
    for (name, encoding) in Encoding::ALL {
        let Some(mut config) = config_of(&format!("large-{name}")).await else { return };
        (config.encoding, config.key) = (encoding, Key::None);
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        let running = Running::start(&config, Arc::<Store>::clone(&store));
        let gateway = gateway(&config);
        let accepted = export(&gateway, Signal::Traces, "default", spans(0, 50, 100_000)).await.unwrap();
        assert_eq!((accepted.stored, accepted.rejected_total()), (50, 0));
        // One of two is too large for a message.
        let both = [spans(50, 1, 10), spans(51, 1, 1_100_000)].concat();
        let accepted = export(&gateway, Signal::Traces, "default", both.into()).await.unwrap();
        assert_eq!(accepted.stored, 1);
        assert_eq!(accepted.rejected, BTreeMap::from([(RejectReason::MessageTooLarge, 1)]));
        check(name, &[&store], 51);
        running.writer.stop();
    }
    // Brokers that take less than they are given say so, and it is not asked for again.
    let Some(mut config) = config_of("larger").await else { return };
    config.message_bytes_max = 3_000_000;
    config.compression = kafka_log::Compression::None;
    let refused = export(&gateway(&config), Signal::Traces, "default", spans(0, 1, 2_000_000)).await.unwrap_err();
    assert!(matches!(refused, ExportError::TooLarge { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_go_and_come_in_mid_stream_double_and_lose_nothing() {
    let Some(config) = config_of("rebalance").await else { return };
    let config = KafkaConfig { key: Key::Trace, ..config };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = dirs.each_ref().map(open);
    let gateway = gateway(&config);
    let one = Running::start(&config, Arc::<Store>::clone(&first));
    let mut sent = 0;
    let mut send = async |requests: u64| {
        for _ in 0..requests {
            export_spans(&gateway, sent, 10).await;
            sent += 10;
        }
        sent
    };
    send(20).await;
    wait_until("one has all", || one.metric("assigned_partitions") == PARTITIONS_TOTAL);
    // Each topic's partitions are spread over both, while spans come.
    let two = Running::start(&config, Arc::<Store>::clone(&second));
    while two.metric("assigned_partitions") + one.metric("assigned_partitions") != PARTITIONS_TOTAL
        || two.metric("assigned_partitions") < 5.0
    {
        send(5).await;
    }
    let count = send(20).await;
    check("two writers", &[&first, &second], count);
    wait_until("both have some", || !numbers(&second, "default").is_empty());
    // One leaves; a member by name has its session to come back, then its partitions go to the other.
    one.writer.stop();
    while two.metric("assigned_partitions") < PARTITIONS_TOTAL {
        send(5).await;
        std::thread::sleep(LOOK_EVERY);
    }
    let count = send(10).await;
    check("one writer", &[&first, &second], count);
    assert!(two.metric("rebalances_total") >= 2.0);
    // And comes back, with positions that are old by now.
    let one = Running::start(&config, Arc::<Store>::clone(&first));
    while one.metric("assigned_partitions") < 5.0 {
        send(5).await;
    }
    let count = send(20).await;
    check("two again", &[&first, &second], count);
    one.writer.stop();
    two.writer.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_and_comes_back_costs_nothing_that_was_acknowledged() {
    if std::env::var_os("KAFKA_BROKERS").is_some() {
        eprintln!("left out: the brokers of KAFKA_BROKERS are not killed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(kafka) = start_kafka(folder.path()).await else { return };
    let address = kafka.brokers().parse().unwrap();
    let mut config = config_at(kafka.brokers(), "broker").await;
    config.delivery_timeout_ms = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let running = Running::start(&config, Arc::<Store>::clone(&store));
    let gateway = gateway(&config);
    export_spans(&gateway, 0, 10).await;
    check("before", &[&store], 10);
    kafka.stop().await.unwrap();
    // Nobody confirms: the client is asked to come again.
    let refused = export(&gateway, Signal::Traces, "unsure", spans(0, 1, 1)).await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert!(gateway.problem(Duration::from_secs(1)).is_some());
    let kafka = Kafka::start_at(address, folder.path()).await.unwrap();
    export_spans(&gateway, 10, 10).await;
    check("after", &[&store], 20);
    assert_eq!(gateway.problem(Duration::from_secs(10)), None);
    running.writer.stop();
    drop(kafka);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_kafka_deleted_are_counted_and_a_topic_made_anew_is_read_from_its_start() {
    let Some(config) = config_of("range").await else { return };
    let config = KafkaConfig { key: Key::None, ..config };
    let topic = config.topic(Signal::Traces);
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let send = async |first: u64| {
        let producer: FutureProducer = settings(&config).create().unwrap();
        let body = spans(first, 1, 1);
        let record = FutureRecord::<[u8], [u8]>::to(topic).partition(0).payload(&body[..]);
        producer.send(record, HANG).await.unwrap();
    };
    let running = Running::start(&config, Arc::<Store>::clone(&store));
    send(0).await;
    check("first", &[&store], 1);
    running.writer.stop();
    // Three more come while nobody reads, and two of them are deleted.
    for _ in 0..3 {
        send(1).await;
    }
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(topic, 0, Offset::Offset(3)).unwrap();
    admin(&config).delete_records(&before, &AdminOptions::new()).await.unwrap();
    let running = Running::start(&config, Arc::<Store>::clone(&store));
    check("what is left", &[&store], 2);
    assert_eq!(running.metric("lost_messages_total"), 2.0);
    running.writer.stop();

    // The topic is made anew, and shorter than what was read of it.
    admin(&config).delete_topics(&[topic], &AdminOptions::new()).await.unwrap();
    let deadline = Instant::now() + HANG;
    loop {
        let again = NewTopic::new(topic, 4, TopicReplication::Fixed(-1));
        let made = admin(&config).create_topics(&[again], &AdminOptions::new()).await.unwrap();
        if made[0].is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "{made:?}");
    }
    send(2).await;
    let running = Running::start(&config, Arc::<Store>::clone(&store));
    check("anew", &[&store], 3);
    assert_eq!(running.metric("restarted_partitions_total"), 1.0);
    running.writer.stop();
}

/// A log that refuses so often, and condemns groups with a span of a number.
struct Moody {
    store: Arc<Store>,
    refusals: AtomicU32,
    cannot_hold: Option<u64>,
    groups: Mutex<Vec<usize>>,
}

impl PositionedLog for Moody {
    fn append_group_at(&self, entries: &mut Vec<Entry>, positions: &[Position]) -> Result<(), StoreError> {
        if self.refusals.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::MemoryFull { bytes: 2, max: 1 });
        }
        let condemned = entries.iter().filter_map(|entry| entry.batch.as_ref()).any(|batch| {
            let ids = batch.column_by_name("span_id").unwrap().as_fixed_size_binary();
            let condemned = self.cannot_hold.map(|number| (number + 1).to_be_bytes());
            (0..ids.len()).any(|row| condemned.is_some_and(|id| ids.value(row) == id))
        });
        if condemned {
            return Err(WalError::RecordTooLarge { bytes: 2, max: 1 }.into());
        }
        self.groups.lock().unwrap().push(entries.len());
        self.store.append_group_at(entries, positions)
    }

    fn position(&self, source: &str, partition: i32) -> Option<i64> {
        self.store.position(source, partition)
    }

    fn log_id(&self) -> [u8; 16] {
        self.store.log_id()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_room_is_waited_for_and_a_group_at_fault_is_taken_apart() {
    let Some(config) = config_of("moody").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let gateway = gateway(&config);
    for request in 0..10 {
        export_spans(&gateway, request * 10, 10).await;
    }
    // 105 fits no record; its message has it alone, and comes among others.
    for (first, count) in [(100, 5), (105, 1), (106, 4)] {
        export_spans(&gateway, first, count).await;
    }
    let moody = Arc::new(Moody {
        store: Arc::clone(&store),
        refusals: AtomicU32::new(5),
        cannot_hold: Some(105),
        groups: Mutex::default(),
    });
    let running = Running::start(&config, moody);
    wait_until("all but one", || numbers(&store, "default").len() >= 109);
    let mut want: Vec<u64> = (0..110).collect();
    want.remove(105);
    assert_eq!(numbers(&store, "default"), want);
    let dead = read_all(&config, &config.dead_letters, 1);
    assert_eq!(dead[0].0, spans(105, 1, 1));
    assert_eq!(dead[0].1["godseye.reason"], "too_large");
    assert!(running.metric("store_refusals_total") >= 5.0);
    wait_until("it reads on", || running.metric("paused") == 0.0);
    export_spans(&gateway, 110, 1).await;
    wait_until("it reads on", || numbers(&store, "default").len() == 110);
    running.writer.stop();
}
