//! Hard limits on one item of telemetry, each with its reason.
//!
//! These are fixed, since two encodings and every stored format must agree on them. Limits an
//! operator may tune (request size, memory, series) are configuration, not here.

/// How deep an `AnyValue` may nest arrays and key-value lists. A plain value has depth 0.
/// 32 is far past real data and far below what prost (47) and a JSON parser's stack allow, so that
/// both encodings refuse at the same, documented place.
pub const VALUE_DEPTH_MAX: usize = 32;

/// Attributes of one item, event, link, exemplar, resource or scope. SDKs cap at 128 by default.
pub const ATTRIBUTES_MAX: usize = 1024;

/// Bytes of an attribute key. Semantic-convention keys stay below 100.
pub const KEY_BYTES_MAX: usize = 1024;

/// Bytes of one item on the wire. Stack traces and prompts reach 1 MiB; past 8 MiB a row would
/// crowd out its neighbours' memory.
pub const ITEM_BYTES_MAX: usize = 8 << 20;

/// Span events, span links or exemplars of one item.
pub const NESTED_ITEMS_MAX: usize = 4096;

/// Buckets (or quantiles) of one histogram point. Exponential histograms use 160 by default.
pub const BUCKETS_MAX: usize = 16_384;

/// The largest |scale| of an exponential histogram: at 2^-64 one bucket spans every double, at
/// 2^64 a bucket is finer than a double's precision; past it a bound cannot be computed.
pub const EXPONENTIAL_SCALE_ABS_MAX: i32 = 64;

/// Frames of one profile stack. Deeper stacks are runaway recursion and are refused by name.
pub const STACK_FRAMES_MAX: usize = 4096;

/// Items of one request, and rows of one profile. An empty item takes two bytes on the wire and
/// some 200 in columns, so a request within its size limit could otherwise grow a hundredfold.
/// 64 MiB of ordinary log records are 300,000.
pub const ITEMS_PER_REQUEST_MAX: usize = 1 << 20;

/// What the profiles of one request may take, written out: stacks as text, and each profile with
/// the dictionary it points into. Samples share stacks and profiles share dictionaries, so a few
/// kilobytes could otherwise become gigabytes. A profile of 50,000 samples takes some 20 MiB.
pub const PROFILE_BYTES_PER_REQUEST_MAX: usize = 64 << 20;

/// Events, links and exemplars of one request together, for the same reason.
pub const NESTED_ITEMS_PER_REQUEST_MAX: usize = 1 << 20;
