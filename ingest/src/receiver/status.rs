//! What receivers answer: the one table from a refusal to its HTTP and gRPC codes, and the bytes of
//! `google.rpc.Status` and of `Export*ServiceResponse` in protobuf and JSON.
//!
//! Source: the OTLP 1.11 specification. These messages are a handful of fields, so they are written
//! field by field. Not here: when a request is refused.

use std::time::Duration;

use http::StatusCode;
use model::signal::Signal;
use model::wire::{put_bytes, put_varint};
use serde_json::json;
use tonic::Code;

use super::auth::AuthError;
use crate::admission::BudgetExhausted;
use crate::export::{Accepted, ExportError};

/// The longest text of a response, bytes. OTLP limits a response to 4 MiB and wants the message
/// shortened first; a kilobyte is what a person reads in a log line.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 10;

/// Why a request was not exported.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("unknown path; expected one of {expected}")]
    UnknownPath { expected: &'static str },
    #[error("method not allowed; expected POST")]
    MethodNotAllowed,
    #[error("unsupported content-type; expected {expected}")]
    UnsupportedMediaType { expected: &'static str },
    #[error("unsupported compression; expected one of {}", super::compression::Encoding::ACCEPTED)]
    UnsupportedEncoding,
    #[error("{0}")]
    Auth(AuthError),
    #[error("request is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("request body did not arrive within {} s", .within.as_secs())]
    ReadTimeout { within: Duration },
    /// The connection broke or the body's framing is wrong: most often nobody reads the answer.
    #[error("request body ended early")]
    Disconnected,
    #[error("request body is corrupt: {detail}")]
    CorruptBody { detail: String },
    #[error("{detail}")]
    Malformed { detail: String },
    /// gRPC only: bytes that are not one length-prefixed message.
    #[error("invalid gRPC frame: {detail}")]
    Framing { detail: &'static str },
    /// gRPC only: not exactly one message.
    #[error("expected exactly one request message")]
    Cardinality,
    #[error("{what}")]
    Overloaded { what: &'static str, retry_after: Duration },
    #[error("server is shutting down")]
    ShuttingDown,
    #[error("internal error")]
    Internal,
}

impl Refusal {
    /// HTTP status, gRPC code and the label of the refusal counter. The gRPC codes that OTLP calls
    /// retryable stand only where sending the same bytes again can help.
    pub(super) const fn codes(&self) -> (StatusCode, Code, &'static str) {
        match self {
            Self::UnknownPath { .. } => (StatusCode::NOT_FOUND, Code::Unimplemented, "unknown_path"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, "method_not_allowed"),
            Self::UnsupportedMediaType { .. } => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::Unimplemented, "unsupported_media_type")
            }
            Self::UnsupportedEncoding => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::Unimplemented, "unsupported_encoding")
            }
            Self::Auth(AuthError::Unauthenticated) => {
                (StatusCode::UNAUTHORIZED, Code::Unauthenticated, "unauthenticated")
            }
            Self::Auth(AuthError::PermissionDenied) => {
                (StatusCode::FORBIDDEN, Code::PermissionDenied, "permission_denied")
            }
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, "too_large"),
            // HTTP's own word would be 408, but OTLP has clients drop what gets it, and a slow network
            // is no reason to lose telemetry.
            Self::ReadTimeout { .. } => (StatusCode::SERVICE_UNAVAILABLE, Code::DeadlineExceeded, "read_timeout"),
            Self::Disconnected => (StatusCode::BAD_REQUEST, Code::Cancelled, "disconnected"),
            Self::CorruptBody { .. } => (StatusCode::BAD_REQUEST, Code::InvalidArgument, "corrupt_body"),
            Self::Malformed { .. } => (StatusCode::BAD_REQUEST, Code::InvalidArgument, "malformed"),
            Self::Framing { .. } => (StatusCode::BAD_REQUEST, Code::Internal, "malformed"),
            Self::Cardinality => (StatusCode::BAD_REQUEST, Code::Unimplemented, "malformed"),
            Self::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "overloaded"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "shutting_down"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "internal"),
        }
    }

    /// The text for the client, cut to [`MESSAGE_BYTES_MAX`].
    pub(super) fn message(&self) -> String {
        cut(self.to_string())
    }

    /// When the client should come back, in whole seconds, at least one.
    pub(super) fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Overloaded { retry_after, .. } => {
                Some((retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0)).max(1))
            }
            _ => None,
        }
    }

    fn is_bad_request(&self) -> bool {
        matches!(self, Self::CorruptBody { .. } | Self::Malformed { .. })
    }

    /// `google.rpc.Status` as protobuf: code 1, message 2, details 3 (`Any`).
    pub(super) fn status_protobuf(&self) -> Vec<u8> {
        let message = self.message();
        let mut status = Vec::new();
        put_varint(&mut status, 1 << 3);
        put_varint(&mut status, u64::from(i32::from(self.codes().1).unsigned_abs()));
        put_bytes(&mut status, 2, message.as_bytes());
        if let Some(seconds) = self.retry_after_s() {
            // RetryInfo.retry_delay = 1, Duration.seconds = 1.
            let (mut duration, mut retry_info) = (Vec::new(), Vec::new());
            put_varint(&mut duration, 1 << 3);
            put_varint(&mut duration, seconds);
            put_bytes(&mut retry_info, 1, &duration);
            put_any(&mut status, "type.googleapis.com/google.rpc.RetryInfo", &retry_info);
        }
        if self.is_bad_request() {
            // BadRequest.field_violations = 1, FieldViolation.field = 1 and description = 2.
            let (mut violation, mut bad_request) = (Vec::new(), Vec::new());
            put_bytes(&mut violation, 1, b"body");
            put_bytes(&mut violation, 2, message.as_bytes());
            put_bytes(&mut bad_request, 1, &violation);
            put_any(&mut status, "type.googleapis.com/google.rpc.BadRequest", &bad_request);
        }
        status
    }

    /// `google.rpc.Status` as JSON.
    pub(super) fn status_json(&self) -> Vec<u8> {
        let message = self.message();
        let mut details = Vec::new();
        if let Some(seconds) = self.retry_after_s() {
            details.push(json!({
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": format!("{seconds}s"),
            }));
        }
        if self.is_bad_request() {
            details.push(json!({
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [{ "field": "body", "description": message }],
            }));
        }
        let mut status = json!({ "code": i32::from(self.codes().1), "message": message });
        if !details.is_empty() {
            status["details"] = details.into();
        }
        status.to_string().into_bytes()
    }
}

impl From<BudgetExhausted> for Refusal {
    fn from(full: BudgetExhausted) -> Self {
        ExportError::from(full).into()
    }
}

impl From<ExportError> for Refusal {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Malformed { .. } => Self::Malformed { detail: error.to_string() },
            ExportError::TooLarge { limit, .. } => Self::TooLarge { limit },
            ExportError::Overloaded { what, retry_after } => Self::Overloaded { what, retry_after },
            ExportError::Internal { .. } => Self::Internal,
            ExportError::ShuttingDown => Self::ShuttingDown,
        }
    }
}

fn put_any(status: &mut Vec<u8>, type_url: &str, value: &[u8]) {
    let mut any = Vec::new();
    put_bytes(&mut any, 1, type_url.as_bytes());
    put_bytes(&mut any, 2, value);
    put_bytes(status, 3, &any);
}

/// Cuts a text at a character boundary.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
    text
}

/// `Export*ServiceResponse` as protobuf: the same field numbers for all four signals. Nothing
/// rejected is the empty message: `partial_success` must be unset then.
pub(super) fn response_protobuf(accepted: &Accepted) -> Vec<u8> {
    let rejected = accepted.rejected_total();
    let mut response = Vec::new();
    if rejected > 0 {
        let mut partial = Vec::new();
        put_varint(&mut partial, 1 << 3);
        put_varint(&mut partial, rejected);
        put_bytes(&mut partial, 2, cut(accepted.error_message()).as_bytes());
        put_bytes(&mut response, 1, &partial);
    }
    response
}

/// `Export*ServiceResponse` as JSON; the count is a string since it is an int64.
pub(super) fn response_json(signal: Signal, accepted: &Accepted) -> Vec<u8> {
    let rejected = accepted.rejected_total();
    if rejected == 0 {
        return b"{}".to_vec();
    }
    let field = match signal {
        Signal::Traces => "rejectedSpans",
        Signal::Metrics => "rejectedDataPoints",
        Signal::Logs => "rejectedLogRecords",
        Signal::Profiles => "rejectedProfiles",
    };
    let response = json!({
        "partialSuccess": { field: rejected.to_string(), "errorMessage": cut(accepted.error_message()) }
    });
    response.to_string().into_bytes()
}
