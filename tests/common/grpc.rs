//! One gRPC call on one connection, with the request as raw bytes and the answer as it came.
//!
//! No generated client would show the details of an error, or send a body that is no message. Not here: streams,
//! keeping connections, TLS.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// How long one call may take before the test calls the server hung.
const CALL_WITHIN: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// `grpc-status`.
    pub status: u16,
    /// `grpc-message`, as it was sent.
    pub message: String,
    /// `grpc-status-details-bin`, decoded: a `google.rpc.Status`.
    pub details: Vec<u8>,
    /// The response message, without its frame.
    pub body: Vec<u8>,
}

impl Reply {
    /// Whether the error tells the client when to send again.
    pub fn has_retry_info(&self) -> bool {
        let name = b"google.rpc.RetryInfo";
        self.details.windows(name.len()).any(|window| window == name)
    }
}

/// Calls a method (its whole path). `encoding` names the compression that `message` already has.
pub fn call(to: SocketAddr, path: &str, encoding: Option<&str>, message: &[u8]) -> Result<Reply, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async {
        tokio::time::timeout(CALL_WITHIN, exchange(to, path, encoding, message))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {CALL_WITHIN:?}")))
    })
}

async fn exchange(to: SocketAddr, path: &str, encoding: Option<&str>, message: &[u8]) -> Result<Reply, String> {
    let mut frame = vec![u8::from(encoding.is_some())];
    frame.extend_from_slice(&u32::try_from(message.len()).map_err(|error| error.to_string())?.to_be_bytes());
    frame.extend_from_slice(message);
    let mut request = http::Request::post(format!("http://{to}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let request = request.body(Full::new(Bytes::from(frame))).map_err(|error| error.to_string())?;

    let stream = tokio::net::TcpStream::connect(to).await.map_err(|error| format!("no connection: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| format!("no HTTP/2: {error}"))?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| format!("no response: {error}"))?;
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(|error| format!("response broke off: {error}"))?;
    connection.abort();

    let trailers = collected.trailers().cloned().unwrap_or_default();
    let value = |name: &str| head.headers.get(name).or(trailers.get(name)).and_then(|value| value.to_str().ok());
    let status = value("grpc-status").and_then(|text| text.parse().ok()).ok_or("no grpc-status")?;
    let details = match value("grpc-status-details-bin") {
        Some(text) => {
            let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
            engine.decode(text).map_err(|error| format!("grpc-status-details-bin: {error}"))?
        }
        None => Vec::new(),
    };
    let message = value("grpc-message").unwrap_or_default().to_owned();
    let body = collected.to_bytes();
    Ok(Reply { status, message, details, body: body.get(5..).unwrap_or_default().to_vec() })
}
