//! A connection in the middle that breaks on demand, so that a server's faults can be had from any server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What happens to connections from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing.
    Pass = 0,
    /// They are closed at once: the server is down.
    Refuse = 1,
    /// The server gets the request and carries it out; its answer never comes.
    LoseAnswers = 2,
    /// The server gets the first part of a body, then the connection is gone.
    CutRequests = 3,
}

/// Bytes of a request that pass when requests are cut: the head and some of the body.
const CUT_AFTER_BYTES: u64 = 4096;

/// The proxy. Its threads end with the process.
pub(crate) struct Proxy {
    url: String,
    mode: Arc<AtomicU8>,
    upstream: Arc<Mutex<String>>,
    lost: Arc<AtomicU64>,
}

impl Proxy {
    /// In front of a URL.
    pub(crate) fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mode = Arc::new(AtomicU8::new(Mode::Pass as u8));
        let upstream = Arc::new(Mutex::new(upstream.to_owned()));
        let lost = Arc::new(AtomicU64::new(0));
        let shared = (Arc::clone(&mode), Arc::clone(&upstream), Arc::clone(&lost));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (mode, upstream, lost) = (Arc::clone(&shared.0), Arc::clone(&shared.1), Arc::clone(&shared.2));
                std::thread::spawn(move || serve(client.unwrap(), &mode, &upstream, &lost));
            }
        });
        Self { url, mode, upstream, lost }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// From now on, for open connections as well.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// The server is somewhere else now.
    pub(crate) fn point_to(&self, upstream: &str) {
        upstream.clone_into(&mut self.upstream.lock().unwrap());
    }

    /// Answers that were swallowed.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }
}

fn serve(client: TcpStream, mode: &Arc<AtomicU8>, upstream: &Mutex<String>, lost: &Arc<AtomicU64>) {
    let is = |mode: &AtomicU8, wanted: Mode| mode.load(Ordering::SeqCst) == wanted as u8;
    if is(mode, Mode::Refuse) {
        return;
    }
    let place = upstream.lock().unwrap().trim_start_matches("http://").to_owned();
    let Ok(server) = TcpStream::connect(place) else { return };
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (mut from_server, mut to_client) = (server, client);
    let (requests, answers) = (Arc::clone(mode), Arc::clone(mode));
    let lost = Arc::clone(lost);
    let back = std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(count @ 1..) = from_server.read(&mut buffer) {
            if is(&answers, Mode::LoseAnswers) {
                lost.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            if to_client.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        drop(to_client.shutdown(Shutdown::Both));
        drop(from_server.shutdown(Shutdown::Both));
    });
    let mut buffer = [0; 2048];
    let mut passed = 0;
    while let Ok(count @ 1..) = from_client.read(&mut buffer) {
        if is(&requests, Mode::Refuse) || is(&requests, Mode::CutRequests) && passed >= CUT_AFTER_BYTES {
            break;
        }
        passed += count as u64;
        if to_server.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop(to_server.shutdown(Shutdown::Both));
    drop(from_client.shutdown(Shutdown::Both));
    drop(back.join());
}
