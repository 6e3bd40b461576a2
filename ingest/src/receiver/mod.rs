//! OTLP receivers: gRPC and HTTP on their listeners, one [`Export`] behind both.
//!
//! A request passes, in this order: route, credential, content type and encoding, size, budget,
//! decompression, export. Each refusal has its exact code (module `status`; the table is in this
//! crate's README). HTTP is routed by axum, gRPC speaks tonic's statuses; both sit on hyper's
//! connections here, where every limit of HTTP/1 and HTTP/2 is set.
//! Not here: what an export does, TLS, and which credentials exist.

mod auth;
mod compression;
mod grpc;
mod http;
mod metrics;
mod status;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{HeaderMap, Request};
use bytes::Bytes;
use futures::FutureExt as _;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use model::signal::Signal;
use model::tenant::TenantId;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub use auth::{AuthError, Authenticate, OpenAccess};
pub use metrics::Metrics;

use crate::admission::ByteBudget;
use crate::export::{Accepted, ExportError, ExportRequest};
use compression::Message;
use metrics::Transport;
use status::Refusal;

/// What stands behind the receivers: the pipeline, or a fake in tests.
pub trait Export: Clone + Send + Sync + 'static {
    /// Stores a request's items durably and says which were rejected. The future may be dropped
    /// when the client leaves; whether the items are stored is then unknown to the client, which
    /// sends them again.
    fn export(&self, request: ExportRequest) -> impl Future<Output = Result<Accepted, ExportError>> + Send;
}

/// Limits of the receivers. Every one bounds memory, time or connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// One request, bytes, before and after decompression, and as protobuf. OTLP recommends 64 MiB.
    pub request_bytes_max: usize,
    /// Connections per listener; more wait in the kernel's accept queue until one closes.
    pub connections_max: usize,
    /// Concurrent requests on one HTTP/2 connection. Exporters use a handful.
    pub streams_per_connection_max: u32,
    /// Header fields of one HTTP/2 request, bytes. Exporters send less than 1 KiB, tokens a few.
    pub header_bytes_max: u32,
    /// From a request's headers to the end of its body: 64 MiB at 2 MiB/s take 32 s.
    pub read_timeout: Duration,
    /// For the headers of an HTTP/1 request, the wait for the next request included.
    pub header_timeout: Duration,
    /// A connection without a request for this long, at most twice this long, is closed. Metric
    /// exporters send every minute.
    pub idle_timeout: Duration,
    /// How often HTTP/2 peers are pinged, so that dead ones are noticed.
    pub keepalive_interval: Duration,
    /// How long such a ping may go unanswered.
    pub keepalive_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request_bytes_max: 64 << 20,
            connections_max: 1024,
            streams_per_connection_max: 128,
            header_bytes_max: 16 << 10,
            read_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(150),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// HTTP/1 read buffer of a connection, bytes; request headers have to fit in it.
const HTTP1_BUFFER_BYTES: usize = 64 << 10;

/// Header fields of an HTTP/1 request.
const HTTP1_HEADERS_MAX: usize = 100;

/// Flow-control window of one HTTP/2 stream, bytes: what a client may send ahead of our reading.
/// One usual batch, so that a single call is not held up by round trips.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Flow-control window of one HTTP/2 connection, bytes: all that can wait unread outside the budget.
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;

/// Largest HTTP/2 frame accepted, bytes. Above the default 16 KiB large batches cost fewer frames.
const FRAME_BYTES_MAX: u32 = 64 << 10;

/// Streams a peer has opened and reset while we have not yet looked at them, after which the
/// connection is closed: the bound on "rapid reset".
const PENDING_RESETS_MAX: usize = 20;

/// Streams we have reset for a peer's errors, after which the connection is closed.
const LOCAL_RESETS_MAX: usize = 128;

/// Responses are at most a few kilobytes; this is the most that waits for one connection's peer.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// How long the body of a refused request is still read and thrown away, so that a client which
/// sends before it reads finds the answer and not a reset (which it would take as retryable).
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of it is read, bytes: twice the default limit of a request.
const DISCARD_BYTES_MAX: usize = 128 << 20;

/// How long a connection without a request may take to close on shutdown; one that has not even
/// begun to speak HTTP/2 cannot be told.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// Pause after a failed accept: it fails when file descriptors run out, and they come back in time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the receivers need. Cheap to clone; one value serves both listeners.
pub struct Receiver<E, A>(Arc<Parts<E, A>>);

struct Parts<E, A> {
    config: Config,
    export: E,
    auth: A,
    budget: ByteBudget,
    metrics: Metrics,
}

impl<E, A> Clone for Receiver<E, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Export, A: Authenticate> Receiver<E, A> {
    /// Puts the parts together.
    #[must_use]
    pub fn new(config: Config, export: E, auth: A, budget: ByteBudget, metrics: Metrics) -> Self {
        Self(Arc::new(Parts { config, export, auth, budget, metrics }))
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<TenantId, Refusal> {
        let authorization = headers.get(::http::header::AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
        self.0.auth.tenant(authorization).map_err(Refusal::Auth)
    }

    /// Hands a message on. A panic behind the seam is answered as a bug of ours that sending again
    /// will not help, since the same bytes would meet it again.
    async fn export(&self, signal: Signal, tenant: TenantId, message: Message) -> Result<Accepted, Refusal> {
        let (body, _until_the_outcome) = message.share();
        let outcome = async { self.0.export.export(ExportRequest { signal, tenant, body }).await };
        match AssertUnwindSafe(outcome).catch_unwind().await {
            Ok(Ok(accepted)) => Ok(accepted),
            Ok(Err(error)) => Err(error.into()),
            Err(_panic) => {
                tracing::error!(%signal, "export panicked; the request is refused as an internal error");
                Err(Refusal::Internal)
            }
        }
    }

    /// Reads what is left of a refused request's body, within bounds.
    fn discard<B>(headers: &HeaderMap, mut body: B)
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        // Polling the body would tell a waiting client to go on and send it.
        if body.is_end_stream() || headers.contains_key(::http::header::EXPECT) {
            return;
        }
        let mut left = DISCARD_BYTES_MAX;
        tokio::spawn(timeout(DISCARD_TIMEOUT, async move {
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                let Some(rest) = left.checked_sub(length) else { return };
                left = rest;
            }
        }));
    }
}

/// Serves OTLP/gRPC (HTTP/2 without TLS) until `shutdown`, then returns when every request in
/// flight has its answer; the caller bounds that wait by dropping the future, which closes what is
/// left.
pub async fn serve_grpc<E: Export, A: Authenticate>(
    listener: TcpListener,
    receiver: Receiver<E, A>,
    shutdown: CancellationToken,
) {
    serve(listener, receiver, Transport::Grpc, shutdown).await;
}

/// Serves OTLP/HTTP (HTTP/1.1 and HTTP/2) like [`serve_grpc`].
pub async fn serve_http<E: Export, A: Authenticate>(
    listener: TcpListener,
    receiver: Receiver<E, A>,
    shutdown: CancellationToken,
) {
    serve(listener, receiver, Transport::Http, shutdown).await;
}

async fn serve<E: Export, A: Authenticate>(
    listener: TcpListener,
    receiver: Receiver<E, A>,
    transport: Transport,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < receiver.0.config.connections_max => match accepted {
                Ok((stream, _peer)) => {
                    connections.spawn(connection(stream, receiver.clone(), transport, shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, transport = transport.name(), "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Counts a connection's requests, so that an idle one is known.
#[derive(Default)]
struct Activity {
    started: AtomicU64,
    finished: AtomicU64,
}

struct ActivityGuard(Arc<Activity>);

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.0.finished.fetch_add(1, Ordering::Release);
    }
}

async fn connection<E: Export, A: Authenticate>(
    stream: TcpStream,
    receiver: Receiver<E, A>,
    transport: Transport,
    shutdown: CancellationToken,
) {
    let config = receiver.0.config;
    let _counted = receiver.0.metrics.connection(transport);
    // Without it a small response waits for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection is gone before it began");
        return;
    }
    let activity = Arc::new(Activity::default());
    let routes = receiver.routes();
    let service = service_fn(|request: Request<Incoming>| {
        activity.started.fetch_add(1, Ordering::Release);
        let active = ActivityGuard(Arc::clone(&activity));
        let (receiver, routes) = (receiver.clone(), routes.clone());
        async move {
            let response = match transport {
                Transport::Grpc => receiver.grpc(request.map(tonic::body::Body::new)).await.map(axum::body::Body::new),
                Transport::Http => routes.oneshot(request.map(axum::body::Body::new)).await?,
            };
            drop(active);
            Ok::<_, Infallible>(response)
        }
    });
    let builder = builder(&config, transport);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let every = |period| tokio::time::interval_at(Instant::now() + period, period);
    let mut idle_check = every(config.idle_timeout);
    let mut seen_before = 0;
    let mut closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, transport = transport.name(), "connection ended with an error");
                }
                return;
            }
            () = shutdown.cancelled(), if !closing => {
                closing = true;
                idle_check = every(CLOSING_GRACE.min(config.idle_timeout));
                connection.as_mut().graceful_shutdown();
            }
            _tick = idle_check.tick() => {
                let finished = activity.finished.load(Ordering::Acquire);
                let started = activity.started.load(Ordering::Acquire);
                if started == finished && started == seen_before {
                    if closing {
                        return; // It was asked to close one period ago.
                    }
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                seen_before = started;
            }
        }
    }
}

fn builder(config: &Config, transport: Transport) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .max_headers(HTTP1_HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.streams_per_connection_max)
        .max_header_list_size(config.header_bytes_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout);
    match transport {
        Transport::Grpc => builder.http2_only(),
        Transport::Http => builder,
    }
}

/// A response's body: at most one chunk, then at most one set of trailers.
#[derive(Debug, Default)]
struct Reply {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.data.take() {
            Some(data) => Some(Frame::data(data)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}
