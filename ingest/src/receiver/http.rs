//! OTLP/HTTP: protobuf and JSON over `POST /v1/…`.
//!
//! An answer has the content type of its request, errors included. A request whose content type is
//! neither of the two (415, and whatever is refused before it) is answered in JSON, which a person
//! can read. Answers are not compressed: OTLP leaves that open, and with the message cut to a
//! kilobyte there is nothing to win. Not here: decompression and the error bodies' bytes.

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::header::{ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use model::signal::Signal;

use super::auth::{AuthError, Authenticate};
use super::compression::{Encoding, Message, Payload};
use super::metrics::Transport;
use super::status::{Refusal, response_json, response_protobuf};
use super::{Export, Receiver};
use crate::export::Accepted;
use crate::json;

/// JSON bodies from this size on are converted on a blocking thread, bytes: about a millisecond of
/// work, past which it would be felt by the worker's other connections.
const BLOCKING_JSON_BYTES: usize = 256 << 10;

/// The two encodings of OTLP/HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Protobuf,
    Json,
}

impl Format {
    const ACCEPTED: &'static str = "application/x-protobuf or application/json";

    /// From `content-type`: parameters are ignored, case too.
    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(CONTENT_TYPE)?.as_bytes();
        let essence = value.split(|byte| *byte == b';').next()?.trim_ascii();
        if essence.eq_ignore_ascii_case(b"application/x-protobuf") {
            Some(Self::Protobuf)
        } else if essence.eq_ignore_ascii_case(b"application/json") {
            Some(Self::Json)
        } else {
            None
        }
    }

    const fn content_type(self) -> HeaderValue {
        match self {
            Self::Protobuf => HeaderValue::from_static("application/x-protobuf"),
            Self::Json => HeaderValue::from_static("application/json"),
        }
    }
}

const PATHS: &str = "/v1/traces, /v1/metrics, /v1/logs, /v1development/profiles";

const SIGNAL_PATHS: [(&str, Signal); 4] = [
    ("/v1/traces", Signal::Traces),
    ("/v1/metrics", Signal::Metrics),
    ("/v1/logs", Signal::Logs),
    ("/v1development/profiles", Signal::Profiles),
];

fn signal_of(path: &str) -> Option<Signal> {
    SIGNAL_PATHS.iter().find(|(known, _)| *known == path).map(|(_, signal)| *signal)
}

impl<E: Export, A: Authenticate> Receiver<E, A> {
    /// The routes. Every path and method ends in one function, since a wrong one is answered in
    /// OTLP's own form too.
    pub(super) fn routes(&self) -> Router {
        let answer = |receiver: Self| any(move |request: Request<Body>| async move { receiver.http(request).await });
        let mut router = Router::new();
        for path in SIGNAL_PATHS {
            router = router.route(path.0, answer(self.clone()));
        }
        router.fallback_service(answer(self.clone()))
    }

    /// Answers one request.
    async fn http(&self, request: Request<Body>) -> Response<Body> {
        let (parts, mut body) = request.into_parts();
        let signal = signal_of(parts.uri.path());
        let format = Format::from_headers(&parts.headers);
        let mut observation = self.0.metrics.observe(Transport::Http, signal);
        match self.http_export(&parts, signal, format, &mut body).await {
            Ok((signal, accepted)) => {
                observation.outcome(StatusCode::OK.as_u16(), None);
                let format = format.unwrap_or(Format::Json);
                let bytes = match format {
                    Format::Protobuf => response_protobuf(&accepted),
                    Format::Json => response_json(signal, &accepted),
                };
                answer(StatusCode::OK, format, bytes)
            }
            Err(refusal) => {
                let (status, _code, reason) = refusal.codes();
                observation.outcome(status.as_u16(), Some(reason));
                if !matches!(refusal, Refusal::ReadTimeout { .. }) {
                    Self::discard(&parts.headers, body);
                }
                refused(&refusal, format.unwrap_or(Format::Json), parts.version)
            }
        }
    }

    async fn http_export(
        &self,
        parts: &Parts,
        signal: Option<Signal>,
        format: Option<Format>,
        body: &mut Body,
    ) -> Result<(Signal, Accepted), Refusal> {
        let signal = signal.ok_or(Refusal::UnknownPath { expected: PATHS })?;
        if parts.method != Method::POST {
            return Err(Refusal::MethodNotAllowed);
        }
        let tenant = self.authenticate(&parts.headers)?;
        let format = format.ok_or(Refusal::UnsupportedMediaType { expected: Format::ACCEPTED })?;
        let encoding = encoding_of(&parts.headers)?;
        let within = self.0.config.read_timeout;
        let message = tokio::time::timeout(within, self.http_message(encoding, body))
            .await
            .map_err(|_elapsed| Refusal::ReadTimeout { within })??;
        self.0.metrics.message(encoding.name(), message.bytes.len());
        let message = match format {
            Format::Protobuf => message,
            Format::Json => self.transcode(signal, message).await?,
        };
        Ok((signal, self.export(signal, tenant, message).await?))
    }

    async fn http_message(&self, encoding: Encoding, body: &mut Body) -> Result<Message, Refusal> {
        let claimed = body.size_hint().exact();
        let reservation = self.0.budget.reservation();
        let mut payload = Payload::new(encoding, self.0.config.request_bytes_max, claimed, reservation)?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_broken| Refusal::Disconnected)?;
            if let Some(chunk) = frame.data_ref() {
                payload.push(chunk).await?;
            }
        }
        payload.finish()
    }

    /// JSON to protobuf. The reservation covers the worst case meanwhile, since the conversion
    /// cannot be stopped half way; a large JSON body may thus be told to come back under load.
    async fn transcode(&self, signal: Signal, message: Message) -> Result<Message, Refusal> {
        let Message { bytes: text, mut reservation } = message;
        let worst_case = text.len().saturating_mul(1 + json::MAX_EXPANSION);
        reservation.grow_to(worst_case as u64)?;
        let blocking = text.len() >= BLOCKING_JSON_BYTES;
        let convert = move || {
            let mut bytes = Vec::new();
            let result = json::transcode(signal, &text, &mut bytes);
            drop(text);
            result.map_err(|error| Refusal::Malformed { detail: error.to_string() })?;
            if bytes.capacity() > 2 * bytes.len() {
                bytes.shrink_to_fit();
            }
            reservation.shrink_to(bytes.capacity() as u64);
            Ok(Message { bytes, reservation })
        };
        let converted = if blocking {
            tokio::task::spawn_blocking(convert).await.map_err(|_panic| Refusal::Internal)?
        } else {
            convert()
        };
        let limit = self.0.config.request_bytes_max;
        match converted {
            Ok(message) if message.bytes.len() > limit => Err(Refusal::TooLarge { limit }),
            other => other,
        }
    }
}

/// One encoding, or none. A list of several is refused: nobody compresses twice but attackers.
fn encoding_of(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(Encoding::Identity),
        (Some(value), None) => Encoding::from_header(value.as_bytes()).ok_or(Refusal::UnsupportedEncoding),
        (Some(_), Some(_)) => Err(Refusal::UnsupportedEncoding),
    }
}

fn answer(status: StatusCode, format: Format, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, format.content_type());
    response
}

fn refused(refusal: &Refusal, format: Format, version: Version) -> Response<Body> {
    let body = match format {
        Format::Protobuf => refusal.status_protobuf(),
        Format::Json => refusal.status_json(),
    };
    let mut response = answer(refusal.codes().0, format, body);
    let headers = response.headers_mut();
    match refusal {
        Refusal::MethodNotAllowed => {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        Refusal::UnsupportedEncoding => {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(Encoding::ACCEPTED));
        }
        Refusal::Auth(AuthError::Unauthenticated) => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // What is left of the body is not worth waiting for. HTTP/2 has no such header.
        Refusal::ReadTimeout { .. } if version <= Version::HTTP_11 => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    if let Some(seconds) = refusal.retry_after_s() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
