//! OTLP/gRPC: the four unary `Export` methods over HTTP/2.
//!
//! Bodies, statuses and codes are tonic's. A unary call is one length-prefixed message each way, and
//! that prefix is read here: tonic's own reader answers a message over the limit with the code
//! OUT_OF_RANGE, which OTLP calls retryable, reserves memory on the prefix's word, and wants a
//! decoded message. Responses are not compressed: they are empty
//! or shorter than the gain. Not here: streaming, reflection, health: OTLP has none of them.

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::BodyExt as _;
use model::signal::Signal;
use tonic::body::Body;
use tonic::{Code, Status};

use super::auth::Authenticate;
use super::compression::{Encoding, Message, Payload};
use super::metrics::Transport;
use super::status::{Refusal, response_protobuf};
use super::{Export, Receiver, Reply};
use crate::export::Accepted;

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const APPLICATION_GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A message's prefix: one byte whether it is compressed, four its length, big-endian.
const PREFIX_BYTES: usize = 5;

const METHODS: &str = "the Export methods of opentelemetry.proto.collector's services";

fn signal_of(path: &str) -> Option<Signal> {
    match path.strip_prefix("/opentelemetry.proto.collector.")?.strip_suffix("/Export")? {
        "trace.v1.TraceService" => Some(Signal::Traces),
        "metrics.v1.MetricsService" => Some(Signal::Metrics),
        "logs.v1.LogsService" => Some(Signal::Logs),
        "profiles.v1development.ProfilesService" => Some(Signal::Profiles),
        _ => None,
    }
}

/// `application/grpc` and `application/grpc+proto`, with or without parameters.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/grpc") || essence.eq_ignore_ascii_case(b"application/grpc+proto")
}

impl<E: Export, A: Authenticate> Receiver<E, A> {
    /// Answers one call.
    pub(super) async fn grpc(&self, request: Request<Body>) -> Response<Body> {
        let (parts, mut body) = request.into_parts();
        let signal = signal_of(parts.uri.path());
        let mut observation = self.0.metrics.observe(Transport::Grpc, signal);
        match self.grpc_export(&parts, signal, &mut body).await {
            Ok(accepted) => {
                observation.outcome(grpc_number(Code::Ok), None);
                answer(&response_protobuf(&accepted))
            }
            Err(refusal) => {
                let (_status, code, reason) = refusal.codes();
                observation.outcome(grpc_number(code), Some(reason));
                if !matches!(refusal, Refusal::ReadTimeout { .. }) {
                    Self::discard(&parts.headers, body);
                }
                refused(&refusal)
            }
        }
    }

    async fn grpc_export(&self, parts: &Parts, signal: Option<Signal>, body: &mut Body) -> Result<Accepted, Refusal> {
        if parts.method != Method::POST {
            return Err(Refusal::MethodNotAllowed);
        }
        if !is_grpc(&parts.headers) {
            return Err(Refusal::UnsupportedMediaType { expected: "application/grpc" });
        }
        let signal = signal.ok_or(Refusal::UnknownPath { expected: METHODS })?;
        let tenant = self.authenticate(&parts.headers)?;
        let encoding = match parts.headers.get(GRPC_ENCODING) {
            None => Encoding::Identity,
            Some(value) => Encoding::from_header(value.as_bytes()).ok_or(Refusal::UnsupportedEncoding)?,
        };
        let within = self.0.config.read_timeout;
        let message = tokio::time::timeout(within, self.grpc_message(encoding, body))
            .await
            .map_err(|_elapsed| Refusal::ReadTimeout { within })??;
        self.export(signal, tenant, message).await
    }

    /// Reads the body: exactly one message.
    async fn grpc_message(&self, encoding: Encoding, body: &mut Body) -> Result<Message, Refusal> {
        let limit = self.0.config.request_bytes_max;
        let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
        let mut message: Option<(Payload, u32)> = None;
        let mut used = Encoding::Identity;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_broken| Refusal::Disconnected)?;
            let Some(data) = frame.data_ref() else { continue };
            let mut data: &[u8] = data;
            if message.is_none() {
                let (head, rest) = data.split_at(data.len().min(PREFIX_BYTES - prefix.len()));
                prefix.extend_from_slice(head);
                data = rest;
                let Ok([flag, length @ ..]) = <[u8; PREFIX_BYTES]>::try_from(prefix.as_ref()) else { continue };
                used = match flag {
                    0 => Encoding::Identity,
                    1 if encoding != Encoding::Identity => encoding,
                    1 => return Err(Refusal::Framing { detail: "compressed without grpc-encoding" }),
                    _ => return Err(Refusal::Framing { detail: "unknown compression flag" }),
                };
                let length = u32::from_be_bytes(length);
                let reservation = self.0.budget.reservation();
                message = Some((Payload::new(used, limit, Some(u64::from(length)), reservation)?, length));
            }
            if let Some((payload, left)) = &mut message {
                *left = u32::try_from(data.len())
                    .ok()
                    .and_then(|length| left.checked_sub(length))
                    .ok_or(Refusal::Cardinality)?;
                if !data.is_empty() {
                    payload.push(data).await?;
                }
            }
        }
        match message {
            Some((payload, 0)) => {
                let message = payload.finish()?;
                self.0.metrics.message(used.name(), message.bytes.len());
                Ok(message)
            }
            None if prefix.is_empty() => Err(Refusal::Cardinality),
            _ => Err(Refusal::Framing { detail: "truncated message" }),
        }
    }
}

fn grpc_number(code: Code) -> u16 {
    u16::try_from(i32::from(code)).unwrap_or_default()
}

fn answer(message: &[u8]) -> Response<Body> {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    let length = u32::try_from(message.len()).expect("a response is cut to about a kilobyte");
    framed.extend_from_slice(&[0]);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from(grpc_number(Code::Ok)));
    let reply = Reply { data: Some(framed.freeze()), trailers: Some(trailers) };
    let mut response = Response::new(Body::new(reply));
    response.headers_mut().insert(CONTENT_TYPE, APPLICATION_GRPC);
    response
}

/// A trailers-only response. What is not gRPC at all gets the HTTP status gRPC prescribes for it.
fn refused(refusal: &Refusal) -> Response<Body> {
    let (status, code, _reason) = refusal.codes();
    match refusal {
        Refusal::UnsupportedMediaType { .. } => {
            let text = Reply { data: Some(Bytes::from(refusal.message())), trailers: None };
            let mut response = Response::new(Body::new(text));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            return response;
        }
        Refusal::MethodNotAllowed => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        _ => {}
    }
    // For a client that does not read details, code and message say all there is.
    let details = Bytes::from(refusal.status_protobuf());
    let mut response = Status::with_details(code, refusal.message(), details).into_http::<Body>();
    if matches!(refusal, Refusal::UnsupportedEncoding) {
        response.headers_mut().insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity,gzip,zstd"));
    }
    response
}
