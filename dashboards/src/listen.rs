//! The HTTP listener: connections are counted, and none may stay that asks nothing.
//!
//! Without these bounds a stranger could take every file descriptor of the process, which the log and the segments need
//! too. HTTP/1.1, and HTTP/2 for those who begin with it. Not here: what is answered.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures::stream;
use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// What one listener gives to its clients.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at once; more wait in the kernel's accept queue. People, dashboards and scrapers are some dozens.
    connections_max: usize,
    /// For the headers of an HTTP/1 request, the wait for the next one included.
    header_timeout: Duration,
    /// From a request's headers to the end of its body: a statement is small.
    body_timeout: Duration,
    /// A connection without a request for this long, at most twice this long, is closed. Scrapers come every minute.
    idle_timeout: Duration,
}

const LIMITS: Limits = Limits {
    connections_max: 512,
    header_timeout: Duration::from_secs(30),
    body_timeout: Duration::from_secs(30),
    idle_timeout: Duration::from_secs(75),
};

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;

/// How often HTTP/2 peers are pinged, and how long they may take to answer, so that dead ones are noticed.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Pause after a failed accept: it fails when file descriptors run out, and they come back in time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection without a request may take to close when the server ends.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// Serves the routes until `stop`, then finishes what is being answered.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    serve_within(listener, router, stop, LIMITS).await;
}

async fn serve_within(listener: TcpListener, router: Router, stop: CancellationToken, limits: Limits) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < limits.connections_max => match accepted {
                Ok((stream, _peer)) => {
                    connections.spawn(connection(stream, router.clone(), stop.clone(), limits));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the API");
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
    /// Requests whose answer has been handed over to its last byte, or given up.
    finished: AtomicU64,
}

struct ActivityGuard(Arc<Activity>);

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.0.finished.fetch_add(1, Ordering::Release);
    }
}

/// A body that fails when it has not arrived by the deadline.
fn in_time(body: Incoming, deadline: Instant) -> Body {
    Body::from_stream(stream::unfold(body, move |mut body| async move {
        let chunk = match timeout_at(deadline, body.frame()).await {
            Ok(frame) => frame?.map(|frame| frame.into_data().unwrap_or_default()).map_err(axum::Error::new),
            Err(elapsed) => Err(axum::Error::new(elapsed)),
        };
        Some((chunk, body))
    }))
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken, limits: Limits) {
    // Without it a small answer waits for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection is gone before it began");
        return;
    }
    let activity = Arc::new(Activity::default());
    let service = service_fn(|request: Request<Incoming>| {
        activity.started.fetch_add(1, Ordering::Release);
        let active = ActivityGuard(Arc::clone(&activity));
        let answer = router.clone().oneshot(request.map(|body| in_time(body, Instant::now() + limits.body_timeout)));
        async move {
            // A long answer is streamed: the request is over with its last byte.
            let until_the_end = move |frame| {
                let _active = &active;
                frame
            };
            Ok::<_, Infallible>(answer.await?.map(|body| Body::new(body.map_frame(until_the_end))))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let every = |period| tokio::time::interval_at(Instant::now() + period, period);
    let mut idle_check = every(limits.idle_timeout);
    let mut seen_before = 0;
    let mut closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection of the API ended with an error");
                }
                return;
            }
            () = stop.cancelled(), if !closing => {
                closing = true;
                idle_check = every(CLOSING_GRACE.min(limits.idle_timeout));
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A test that waits longer than this hangs.
    const HANG: Duration = Duration::from_secs(60);

    async fn start(limits: Limits) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            "slow"
        };
        let here = get(|| async { "here" }).post(|body: String| async { body });
        let router = Router::new().route("/", here).route("/slow", get(slow));
        (address, stop.clone(), tokio::spawn(serve_within(listener, router, stop, limits)))
    }

    /// All that comes back until the connection is closed.
    async fn exchange(to: SocketAddr, sent: &str) -> String {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A connection that is reset is closed too.
        tokio::time::timeout(HANG, stream.read_to_end(&mut answer)).await.expect("it is closed").ok();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn who_asks_nothing_is_sent_away_and_who_asks_is_answered() {
        let short = Duration::from_millis(100);
        let (address, _stop, _task) =
            start(Limits { header_timeout: short, body_timeout: short, idle_timeout: short, ..LIMITS }).await;
        for opening in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: a\r\n", "PRI * HTTP/2.0\r\n"] {
            let answer = exchange(address, opening).await;
            assert!(!answer.contains("here"), "{opening:?}: {answer}");
        }
        let half = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\n\r\nhalf";
        assert!(exchange(address, half).await.starts_with("HTTP/1.1 400"));
        assert!(exchange(address, &format!("{half}full")).await.ends_with("halffull"));
        // One that is kept open after an answer, too, and one whose answer takes longer than all of that.
        assert!(exchange(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ends_with("here"));
        assert!(exchange(address, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.ends_with("slow"));
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait() {
        let (address, _stop, _task) = start(Limits { connections_max: 1, ..LIMITS }).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        tokio::time::timeout(HANG, first.read(&mut [0; 8])).await.unwrap().unwrap();
        let second = tokio::spawn(exchange(address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!second.is_finished(), "served beside the first");
        drop(first);
        assert!(second.await.unwrap().ends_with("here"));
    }

    #[tokio::test]
    async fn the_end_waits_for_answers_and_for_nobody_else() {
        let (address, stop, task) = start(LIMITS).await;
        let _idle = TcpStream::connect(address).await.unwrap();
        let asked = tokio::spawn(exchange(address, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
        assert!(asked.await.unwrap().ends_with("slow"));
        tokio::time::timeout(HANG, task).await.expect("it ends").unwrap();
    }
}
