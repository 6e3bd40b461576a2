//! The OTLP messages as data: for every message its fields, each with JSON name, protobuf number and kind.
//!
//! The tables are transcribed from opentelemetry-proto 1.11 (the profiles signal is `v1development`)
//! and hold exactly what OTLP/JSON needs: which key leads to which field. They are NOT a general protobuf
//! descriptor: no services, no reserved ranges, no enum names (OTLP/JSON forbids enum names), no oneof
//! groups (on the wire the last member of a oneof wins by itself). A test generates every message with
//! every field set and compares with the reference implementation, so a missing or wrong row fails.

use model::signal::Signal;

/// How a JSON value becomes bytes on the protobuf wire.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// JSON string to UTF-8 bytes.
    String,
    /// Base64 string (standard or URL alphabet, padding optional) to bytes.
    Bytes,
    /// Hexadecimal string, either case, to bytes: the OTLP exception for identifiers.
    Hex,
    /// JSON boolean to varint.
    Bool,
    /// Integer to sign-extended varint, 32-bit range.
    Int32,
    /// Integer to zigzag varint, 32-bit range.
    Sint32,
    /// Integer to varint, unsigned 32-bit range.
    Uint32,
    /// Integer to varint, unsigned 64-bit range.
    Uint64,
    /// Integer to sign-extended varint, 64-bit range.
    Int64,
    /// Integer to 4 bytes, unsigned.
    Fixed32,
    /// Integer to 8 bytes, unsigned.
    Fixed64,
    /// Integer to 8 bytes, signed.
    Sfixed64,
    /// Number, numeric string or one of `NaN`, `Infinity`, `-Infinity` to 8 bytes.
    Double,
    /// Integer (never a name) to sign-extended varint, 32-bit range.
    Enum,
    /// JSON object to a length-delimited message.
    Message(&'static Message),
}

impl Kind {
    /// The words an error message uses for what this kind accepts.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Bytes => "a base64 string",
            Self::Hex => "a hexadecimal string",
            Self::Bool => "true or false",
            Self::Int32 | Self::Sint32 => "a signed 32-bit integer",
            Self::Uint32 | Self::Fixed32 => "an unsigned 32-bit integer",
            Self::Uint64 | Self::Fixed64 => "an unsigned 64-bit integer",
            Self::Int64 | Self::Sfixed64 => "a signed 64-bit integer",
            Self::Double => "a number",
            Self::Enum => "an integer enum value",
            Self::Message(_) => "an object",
        }
    }

    /// Whether proto3 packs a repeated field of this kind into one length-delimited block.
    pub(super) fn packs(self) -> bool {
        !matches!(self, Self::String | Self::Bytes | Self::Hex | Self::Message(_))
    }

    /// The protobuf wire type of one unpacked element.
    pub(super) fn wire_type(self) -> u32 {
        match self {
            Self::Bool | Self::Int32 | Self::Sint32 | Self::Uint32 | Self::Uint64 | Self::Int64 | Self::Enum => 0,
            Self::Fixed64 | Self::Sfixed64 | Self::Double => 1,
            Self::String | Self::Bytes | Self::Hex | Self::Message(_) => 2,
            Self::Fixed32 => 5,
        }
    }
}

/// One field of a message.
#[derive(Debug)]
pub(super) struct Field {
    /// The lowerCamelCase key; no other spelling is accepted.
    pub(super) name: &'static str,
    /// The protobuf field number.
    pub(super) number: u32,
    /// What the value is.
    pub(super) kind: Kind,
    /// Whether the JSON value is an array of `kind`.
    pub(super) repeated: bool,
}

/// One message.
#[derive(Debug)]
pub(super) struct Message {
    /// Every field, the frequent ones first because look-up is a linear scan of a short list.
    pub(super) fields: &'static [Field],
    /// Whether this is `AnyValue`, the only message through which the schema recurses.
    pub(super) is_value: bool,
}

impl Message {
    /// The field with this key, or `None` when the key is unknown and must be ignored.
    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// The request message of a signal.
pub(super) fn request(signal: Signal) -> &'static Message {
    match signal {
        Signal::Traces => &TRACES_REQUEST,
        Signal::Metrics => &METRICS_REQUEST,
        Signal::Logs => &LOGS_REQUEST,
        Signal::Profiles => &PROFILES_REQUEST,
    }
}

const fn one(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: false }
}

const fn many(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: true }
}

const fn message(fields: &'static [Field]) -> Message {
    Message { fields, is_value: false }
}

use Kind::{
    Bool, Bytes, Double, Enum, Fixed32, Fixed64, Hex, Int32, Int64, Message as Msg, Sfixed64, Sint32, String as Str,
    Uint32, Uint64,
};

// opentelemetry.proto.common.v1 and resource.v1

static ANY_VALUE: Message = Message {
    fields: &[
        one("stringValue", 1, Str),
        one("boolValue", 2, Bool),
        one("intValue", 3, Int64),
        one("doubleValue", 4, Double),
        one("arrayValue", 5, Msg(&ARRAY_VALUE)),
        one("kvlistValue", 6, Msg(&KEY_VALUE_LIST)),
        one("bytesValue", 7, Bytes),
        one("stringValueStrindex", 8, Int32),
    ],
    is_value: true,
};
static ARRAY_VALUE: Message = message(&[many("values", 1, Msg(&ANY_VALUE))]);
static KEY_VALUE_LIST: Message = message(&[many("values", 1, Msg(&KEY_VALUE))]);
static KEY_VALUE: Message =
    message(&[one("key", 1, Str), one("value", 2, Msg(&ANY_VALUE)), one("keyStrindex", 3, Int32)]);
static INSTRUMENTATION_SCOPE: Message = message(&[
    one("name", 1, Str),
    one("version", 2, Str),
    many("attributes", 3, Msg(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Uint32),
]);
static ENTITY_REF: Message =
    message(&[one("schemaUrl", 1, Str), one("type", 2, Str), many("idKeys", 3, Str), many("descriptionKeys", 4, Str)]);
static RESOURCE: Message = message(&[
    many("attributes", 1, Msg(&KEY_VALUE)),
    one("droppedAttributesCount", 2, Uint32),
    many("entityRefs", 3, Msg(&ENTITY_REF)),
]);

// opentelemetry.proto.trace.v1

static TRACES_REQUEST: Message = message(&[many("resourceSpans", 1, Msg(&RESOURCE_SPANS))]);
static RESOURCE_SPANS: Message =
    message(&[one("resource", 1, Msg(&RESOURCE)), many("scopeSpans", 2, Msg(&SCOPE_SPANS)), one("schemaUrl", 3, Str)]);
static SCOPE_SPANS: Message =
    message(&[one("scope", 1, Msg(&INSTRUMENTATION_SCOPE)), many("spans", 2, Msg(&SPAN)), one("schemaUrl", 3, Str)]);
static SPAN: Message = message(&[
    one("traceId", 1, Hex),
    one("spanId", 2, Hex),
    one("traceState", 3, Str),
    one("parentSpanId", 4, Hex),
    one("flags", 16, Fixed32),
    one("name", 5, Str),
    one("kind", 6, Enum),
    one("startTimeUnixNano", 7, Fixed64),
    one("endTimeUnixNano", 8, Fixed64),
    many("attributes", 9, Msg(&KEY_VALUE)),
    one("droppedAttributesCount", 10, Uint32),
    many("events", 11, Msg(&SPAN_EVENT)),
    one("droppedEventsCount", 12, Uint32),
    many("links", 13, Msg(&SPAN_LINK)),
    one("droppedLinksCount", 14, Uint32),
    one("status", 15, Msg(&STATUS)),
]);
static SPAN_EVENT: Message = message(&[
    one("timeUnixNano", 1, Fixed64),
    one("name", 2, Str),
    many("attributes", 3, Msg(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Uint32),
]);
static SPAN_LINK: Message = message(&[
    one("traceId", 1, Hex),
    one("spanId", 2, Hex),
    one("traceState", 3, Str),
    many("attributes", 4, Msg(&KEY_VALUE)),
    one("droppedAttributesCount", 5, Uint32),
    one("flags", 6, Fixed32),
]);
static STATUS: Message = message(&[one("message", 2, Str), one("code", 3, Enum)]);

// opentelemetry.proto.metrics.v1

static METRICS_REQUEST: Message = message(&[many("resourceMetrics", 1, Msg(&RESOURCE_METRICS))]);
static RESOURCE_METRICS: Message = message(&[
    one("resource", 1, Msg(&RESOURCE)),
    many("scopeMetrics", 2, Msg(&SCOPE_METRICS)),
    one("schemaUrl", 3, Str),
]);
static SCOPE_METRICS: Message = message(&[
    one("scope", 1, Msg(&INSTRUMENTATION_SCOPE)),
    many("metrics", 2, Msg(&METRIC)),
    one("schemaUrl", 3, Str),
]);
static METRIC: Message = message(&[
    one("name", 1, Str),
    one("description", 2, Str),
    one("unit", 3, Str),
    one("gauge", 5, Msg(&GAUGE)),
    one("sum", 7, Msg(&SUM)),
    one("histogram", 9, Msg(&HISTOGRAM)),
    one("exponentialHistogram", 10, Msg(&EXPONENTIAL_HISTOGRAM)),
    one("summary", 11, Msg(&SUMMARY)),
    many("metadata", 12, Msg(&KEY_VALUE)),
]);
static GAUGE: Message = message(&[many("dataPoints", 1, Msg(&NUMBER_DATA_POINT))]);
static SUM: Message = message(&[
    many("dataPoints", 1, Msg(&NUMBER_DATA_POINT)),
    one("aggregationTemporality", 2, Enum),
    one("isMonotonic", 3, Bool),
]);
static HISTOGRAM: Message =
    message(&[many("dataPoints", 1, Msg(&HISTOGRAM_DATA_POINT)), one("aggregationTemporality", 2, Enum)]);
static EXPONENTIAL_HISTOGRAM: Message =
    message(&[many("dataPoints", 1, Msg(&EXPONENTIAL_HISTOGRAM_DATA_POINT)), one("aggregationTemporality", 2, Enum)]);
static SUMMARY: Message = message(&[many("dataPoints", 1, Msg(&SUMMARY_DATA_POINT))]);
static NUMBER_DATA_POINT: Message = message(&[
    many("attributes", 7, Msg(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("asDouble", 4, Double),
    one("asInt", 6, Sfixed64),
    many("exemplars", 5, Msg(&EXEMPLAR)),
    one("flags", 8, Uint32),
]);
static HISTOGRAM_DATA_POINT: Message = message(&[
    many("attributes", 9, Msg(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    many("bucketCounts", 6, Fixed64),
    many("explicitBounds", 7, Double),
    many("exemplars", 8, Msg(&EXEMPLAR)),
    one("flags", 10, Uint32),
    one("min", 11, Double),
    one("max", 12, Double),
]);
static EXPONENTIAL_HISTOGRAM_DATA_POINT: Message = message(&[
    many("attributes", 1, Msg(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    one("scale", 6, Sint32),
    one("zeroCount", 7, Fixed64),
    one("positive", 8, Msg(&BUCKETS)),
    one("negative", 9, Msg(&BUCKETS)),
    one("flags", 10, Uint32),
    many("exemplars", 11, Msg(&EXEMPLAR)),
    one("min", 12, Double),
    one("max", 13, Double),
    one("zeroThreshold", 14, Double),
]);
static BUCKETS: Message = message(&[one("offset", 1, Sint32), many("bucketCounts", 2, Uint64)]);
static SUMMARY_DATA_POINT: Message = message(&[
    many("attributes", 7, Msg(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    many("quantileValues", 6, Msg(&VALUE_AT_QUANTILE)),
    one("flags", 8, Uint32),
]);
static VALUE_AT_QUANTILE: Message = message(&[one("quantile", 1, Double), one("value", 2, Double)]);
static EXEMPLAR: Message = message(&[
    many("filteredAttributes", 7, Msg(&KEY_VALUE)),
    one("timeUnixNano", 2, Fixed64),
    one("asDouble", 3, Double),
    one("asInt", 6, Sfixed64),
    one("spanId", 4, Hex),
    one("traceId", 5, Hex),
]);

// opentelemetry.proto.logs.v1

static LOGS_REQUEST: Message = message(&[many("resourceLogs", 1, Msg(&RESOURCE_LOGS))]);
static RESOURCE_LOGS: Message =
    message(&[one("resource", 1, Msg(&RESOURCE)), many("scopeLogs", 2, Msg(&SCOPE_LOGS)), one("schemaUrl", 3, Str)]);
static SCOPE_LOGS: Message = message(&[
    one("scope", 1, Msg(&INSTRUMENTATION_SCOPE)),
    many("logRecords", 2, Msg(&LOG_RECORD)),
    one("schemaUrl", 3, Str),
]);
static LOG_RECORD: Message = message(&[
    one("timeUnixNano", 1, Fixed64),
    one("observedTimeUnixNano", 11, Fixed64),
    one("severityNumber", 2, Enum),
    one("severityText", 3, Str),
    one("body", 5, Msg(&ANY_VALUE)),
    many("attributes", 6, Msg(&KEY_VALUE)),
    one("droppedAttributesCount", 7, Uint32),
    one("flags", 8, Fixed32),
    one("traceId", 9, Hex),
    one("spanId", 10, Hex),
    one("eventName", 12, Str),
]);

// opentelemetry.proto.profiles.v1development

static PROFILES_REQUEST: Message =
    message(&[many("resourceProfiles", 1, Msg(&RESOURCE_PROFILES)), one("dictionary", 2, Msg(&PROFILES_DICTIONARY))]);
static PROFILES_DICTIONARY: Message = message(&[
    many("mappingTable", 1, Msg(&MAPPING)),
    many("locationTable", 2, Msg(&LOCATION)),
    many("functionTable", 3, Msg(&FUNCTION)),
    many("linkTable", 4, Msg(&PROFILE_LINK)),
    many("stringTable", 5, Str),
    many("attributeTable", 6, Msg(&KEY_VALUE_AND_UNIT)),
    many("stackTable", 7, Msg(&STACK)),
]);
static RESOURCE_PROFILES: Message = message(&[
    one("resource", 1, Msg(&RESOURCE)),
    many("scopeProfiles", 2, Msg(&SCOPE_PROFILES)),
    one("schemaUrl", 3, Str),
]);
static SCOPE_PROFILES: Message = message(&[
    one("scope", 1, Msg(&INSTRUMENTATION_SCOPE)),
    many("profiles", 2, Msg(&PROFILE)),
    one("schemaUrl", 3, Str),
]);
// The specification names only trace and span identifiers as hexadecimal. `profileId` is an identifier of
// the same shape (16 bytes, zero is invalid) and the published implementations write it as hexadecimal, so
// base64 here would misread their output: 32 hex digits are also valid base64, of 24 other bytes.
static PROFILE: Message = message(&[
    one("sampleType", 1, Msg(&VALUE_TYPE)),
    many("samples", 2, Msg(&SAMPLE)),
    one("timeUnixNano", 3, Fixed64),
    one("durationNano", 4, Uint64),
    one("periodType", 5, Msg(&VALUE_TYPE)),
    one("period", 6, Int64),
    one("profileId", 7, Hex),
    one("droppedAttributesCount", 8, Uint32),
    one("originalPayloadFormat", 9, Str),
    one("originalPayload", 10, Bytes),
    many("attributeIndices", 11, Int32),
]);
static PROFILE_LINK: Message = message(&[one("traceId", 1, Hex), one("spanId", 2, Hex)]);
static VALUE_TYPE: Message = message(&[one("typeStrindex", 1, Int32), one("unitStrindex", 2, Int32)]);
static SAMPLE: Message = message(&[
    one("stackIndex", 1, Int32),
    many("attributeIndices", 2, Int32),
    one("linkIndex", 3, Int32),
    many("values", 4, Int64),
    many("timestampsUnixNano", 5, Fixed64),
]);
static MAPPING: Message = message(&[
    one("memoryStart", 1, Uint64),
    one("memoryLimit", 2, Uint64),
    one("fileOffset", 3, Uint64),
    one("filenameStrindex", 4, Int32),
    many("attributeIndices", 5, Int32),
]);
static STACK: Message = message(&[many("locationIndices", 1, Int32)]);
static LOCATION: Message = message(&[
    one("mappingIndex", 1, Int32),
    one("address", 2, Uint64),
    many("lines", 3, Msg(&LINE)),
    many("attributeIndices", 4, Int32),
]);
static LINE: Message = message(&[one("functionIndex", 1, Int32), one("line", 2, Int64), one("column", 3, Int64)]);
static FUNCTION: Message = message(&[
    one("nameStrindex", 1, Int32),
    one("systemNameStrindex", 2, Int32),
    one("filenameStrindex", 3, Int32),
    one("startLine", 4, Int64),
]);
static KEY_VALUE_AND_UNIT: Message =
    message(&[one("keyStrindex", 1, Int32), one("value", 2, Msg(&ANY_VALUE)), one("unitStrindex", 3, Int32)]);
