//! The PostgreSQL door: SQL for `psql`, drivers and dashboards that speak its protocol, read-only, on a port of its own.
//!
//! A question goes the same way as over HTTP: the engine's guard, limits and permits; the tenant comes from the token,
//! which is sent as the password. Prepared statements run as the text they become with their parameters put in. What
//! tools ask the catalog is answered by `query::catalog`.
//!
//! The protocol is read here and not by a library: it meets anybody's bytes before they have a token, a query has to
//! end when its client goes away, and frames have to be bounded before they are kept. The crate that there is does none
//! of these (`pgwire` 0.42 takes messages of 1 GiB, panics on short ones, and does not read while a query runs).
//!
//! Not here: TLS (a client that asks for it is told there is none), copying, cursors of SQL, writing.
//!
//! # Layout
//! - `frame`: bytes of the protocol
//! - `values`: values in text and binary
//! - `command`: statements about the session
//! - `session`: one connection

mod command;
mod frame;
mod session;
mod values;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use frame::{Frames as _, Notice};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Doors;

/// Connections at once. Each costs some KiB when it is idle, and pools open a few dozen.
pub const CONNECTIONS_MAX: usize = 200;

/// How a running query is told to stop, by a request on another connection.
#[derive(Debug, Default)]
struct Cancel {
    asked: AtomicBool,
    wake: Notify,
}

impl Cancel {
    fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// A new statement begins: what was asked before it is not about it.
    fn forget(&self) {
        self.asked.store(false, Ordering::Release);
    }

    /// Ends when it is asked for.
    async fn asked(&self) {
        let wake = self.wake.notified();
        tokio::pin!(wake);
        // From here on no request is missed.
        wake.as_mut().enable();
        if !self.asked.load(Ordering::Acquire) {
            wake.await;
        }
    }
}

/// What connections share.
struct Shared {
    doors: Doors,
    processes: AtomicI32,
    /// By process number: what only its client knows, and how to stop its query.
    cancels: Mutex<HashMap<i32, (i32, Arc<Cancel>)>>,
}

impl Shared {
    /// A new session's number and secret.
    fn enter(self: &Arc<Self>) -> std::io::Result<Entered> {
        let secret = OsRng.try_next_u32().map_err(std::io::Error::other)?.cast_signed();
        let cancel = Arc::new(Cancel::default());
        let mut cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        // There are fewer connections than numbers, so one is free.
        let process = loop {
            let process = self.processes.fetch_add(1, Ordering::Relaxed) & i32::MAX;
            if !cancels.contains_key(&process) {
                break process;
            }
        };
        cancels.insert(process, (secret, Arc::clone(&cancel)));
        Ok(Entered { shared: Arc::clone(self), process, secret, cancel })
    }

    /// Stops a session's query, for who knows its secret.
    fn cancel(&self, process: i32, secret: i32) {
        let cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, cancel)) = cancels.get(&process)
            && *known == secret
        {
            cancel.ask();
        }
    }
}

/// A session among the others, for as long as it lives.
struct Entered {
    shared: Arc<Shared>,
    process: i32,
    secret: i32,
    cancel: Arc<Cancel>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.shared.cancels.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.process);
    }
}

/// Serves connections until `stop`; then sessions end once their statement has, and this ends with the last of them.
pub async fn serve(listener: TcpListener, doors: Doors, stop: CancellationToken) {
    let shared = Arc::new(Shared { doors, processes: AtomicI32::new(1), cancels: Mutex::default() });
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_ended) = sessions.join_next() => continue,
        };
        let socket = match accepted {
            Ok((socket, _peer)) => socket,
            Err(error) => {
                // Out of file descriptors, mostly: others may close theirs.
                tracing::warn!(%error, "a PostgreSQL connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => {
                let (shared, stop) = (Arc::clone(&shared), stop.clone());
                sessions.spawn(async move {
                    session::run(socket, shared, stop).await;
                    drop(permit);
                });
            }
            Err(_none_left) => turn_away(&socket),
        }
    }
    while sessions.join_next().await.is_some() {}
}

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

fn turn_away(socket: &TcpStream) {
    let message = format!("there are {CONNECTIONS_MAX} connections, the limit");
    let mut out = BytesMut::new();
    out.notice(
        b'E',
        &Notice { severity: "FATAL", state: "53300", message: &message, hint: Some("close one, or use a pool") },
    );
    // A new connection has room for this; one that has not will see that it is closed.
    drop(socket.try_write(&out));
}
