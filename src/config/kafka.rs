//! The keys `role` and `kafka`: which parts run in this process, and the Kafka between them.
//!
//! Not here: what the client of Kafka is told (`crate::roles`), and rules that it checks by itself.

use super::schema::{Visitor, choose};
use super::units::{ByteSize, Interval};
use super::{Secret, defaults};
use model::tenant::TenantId;
use std::path::PathBuf;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Which parts run in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receivers, store, queries, alerting; and topics of Kafka as well, where brokers are named.
    All,
    /// Receivers; what they take goes to Kafka.
    Gateway,
    /// From Kafka into the store; queries, alerting.
    Writer,
    /// Queries alone, of what others store in ClickHouse.
    Query,
    /// Rules and who is told, over what others store in ClickHouse; and queries.
    Control,
}

impl Role {
    pub(super) const ALL: [Self; 5] = [Self::All, Self::Gateway, Self::Writer, Self::Query, Self::Control];
    pub(super) const NAMES: &'static [&'static str] = &["all", "gateway", "writer", "query", "control"];

    /// The role as it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().zip(Self::NAMES).find(|(role, _)| **role == self).map_or("all", |(_, name)| name)
    }

    /// Whether telemetry comes in by OTLP.
    #[must_use]
    pub const fn receives(self) -> bool {
        matches!(self, Self::All | Self::Gateway)
    }

    /// Whether telemetry comes in from Kafka, where brokers are named.
    #[must_use]
    pub const fn reads_topics(self) -> bool {
        matches!(self, Self::All | Self::Writer)
    }

    /// Whether telemetry comes in at all, and so is counted and followed here.
    #[must_use]
    pub const fn is_fed(self) -> bool {
        self.receives() || self.reads_topics()
    }
}

/// How messages are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Protobuf.
    OtlpProto,
    /// JSON.
    OtlpJson,
}

impl Encoding {
    const ALL: [Self; 2] = [Self::OtlpProto, Self::OtlpJson];
    const NAMES: &'static [&'static str] = &["otlp_proto", "otlp_json"];
}

/// What decides a message's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKey {
    /// Nothing.
    None,
    /// The resource.
    Resource,
    /// The trace.
    Trace,
}

impl MessageKey {
    const ALL: [Self; 3] = [Self::None, Self::Resource, Self::Trace];
    const NAMES: &'static [&'static str] = &["none", "resource", "trace"];
}

/// How batches are compressed on the way to brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// `gzip`.
    Gzip,
    /// `snappy`.
    Snappy,
    /// `lz4`.
    Lz4,
}

impl Compression {
    const ALL: [Self; 4] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4];
    const NAMES: &'static [&'static str] = &["none", "gzip", "snappy", "lz4"];
}

/// How a client shows who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// It does not.
    None,
    /// `PLAIN`.
    Plain,
    /// `SCRAM-SHA-256`.
    ScramSha256,
    /// `SCRAM-SHA-512`.
    ScramSha512,
}

impl Mechanism {
    const ALL: [Self; 4] = [Self::None, Self::Plain, Self::ScramSha256, Self::ScramSha512];
    const NAMES: &'static [&'static str] = &["none", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

    /// Its name; `None` for none.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let named = Self::ALL.iter().zip(Self::NAMES).find(|(mechanism, _)| **mechanism == self);
        named.map(|(_, name)| *name).filter(|_| self != Self::None)
    }
}

/// How Kafka is reached and used. Nothing of it matters where no brokers are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kafka {
    /// Some of the brokers, `host:port`, separated by commas.
    pub brokers: Option<String>,
    /// The topics of traces, metrics, logs and profiles.
    pub topics: [String; 4],
    /// How messages are encoded.
    pub encoding: Encoding,
    /// What decides a message's partition.
    pub key: MessageKey,
    /// How batches are compressed.
    pub compression: Compression,
    /// A message's largest payload.
    pub message_bytes: ByteSize,
    /// What may wait for brokers.
    pub queue_bytes: ByteSize,
    /// How long brokers may take before a request is refused, retryably.
    pub delivery_timeout: Interval,
    /// The consumer group of writers.
    pub group: String,
    /// Where messages go that are no telemetry.
    pub dead_letters: String,
    /// Whose telemetry it is when a message does not say so.
    pub tenant: TenantId,
    /// How long a writer may be away before others get its partitions.
    pub session_timeout: Interval,
    /// Whether connections are TLS.
    pub tls: bool,
    /// Certificates in PEM that sign the brokers' own; the usual authorities when absent.
    pub ca_file: Option<PathBuf>,
    /// How we show who we are.
    pub sasl: Mechanism,
    /// Who we are.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: None,
            topics: kafka_log::config::TOPICS_DEFAULT.map(str::to_owned),
            encoding: Encoding::OtlpProto,
            key: MessageKey::Resource,
            compression: Compression::Lz4,
            message_bytes: defaults::KAFKA_MESSAGE_BYTES,
            queue_bytes: defaults::KAFKA_QUEUE_BYTES,
            delivery_timeout: defaults::KAFKA_DELIVERY_TIMEOUT,
            group: kafka_log::config::GROUP_DEFAULT.to_owned(),
            dead_letters: kafka_log::config::DEAD_LETTERS_DEFAULT.to_owned(),
            tenant: TenantId::default_tenant(),
            session_timeout: defaults::KAFKA_SESSION_TIMEOUT,
            tls: false,
            ca_file: None,
            sasl: Mechanism::None,
            user: None,
            password: None,
        }
    }
}

/// Walks the keys.
pub(super) fn visit(c: &mut Kafka, v: &mut dyn Visitor) {
    v.name("brokers", &mut c.brokers);
    v.section("topics", &mut |v| {
        let [traces, metrics, logs, profiles] = &mut c.topics;
        v.text("traces", traces);
        v.text("metrics", metrics);
        v.text("logs", logs);
        v.text("profiles", profiles);
    });
    choose(v, "encoding", Encoding::NAMES, &Encoding::ALL, &mut c.encoding);
    choose(v, "key", MessageKey::NAMES, &MessageKey::ALL, &mut c.key);
    choose(v, "compression", Compression::NAMES, &Compression::ALL, &mut c.compression);
    // Below a few KiB resource and scope leave no room for an item; past 1 GiB librdkafka takes none.
    v.bytes("message_bytes", &mut c.message_bytes, 16 * KIB..=512 * MIB);
    v.bytes("queue_bytes", &mut c.queue_bytes, MIB..=GIB);
    v.interval("delivery_timeout", &mut c.delivery_timeout, 1..=300);
    v.text("group", &mut c.group);
    v.text("dead_letters", &mut c.dead_letters);
    v.tenant("tenant", &mut c.tenant);
    // What brokers allow unless they are told otherwise.
    v.interval("session_timeout", &mut c.session_timeout, 6..=300);
    v.flag("tls", &mut c.tls);
    v.file("ca_file", &mut c.ca_file);
    choose(v, "sasl", Mechanism::NAMES, &Mechanism::ALL, &mut c.sasl);
    v.name("user", &mut c.user);
    v.secret("password", &mut c.password);
}
