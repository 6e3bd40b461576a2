//! What the tests share: a statement over a plain socket, a proxy that breaks connections, rows from a seed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub(crate) mod proxy;
pub(crate) mod rows;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// What a server answers to a statement: its status and its body. Nothing of the code under test is used.
pub(crate) fn ask_bytes(url: &str, statement: &str, settings: &str) -> (u16, Vec<u8>) {
    let place = url.strip_prefix("http://").unwrap().trim_end_matches('/');
    let mut socket = TcpStream::connect(place).unwrap();
    let settings = if settings.is_empty() { String::new() } else { format!("?{settings}") };
    let length = statement.len();
    let head = format!(
        "POST /{settings} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{statement}"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&bytes[9..12]).unwrap().parse().unwrap();
    (status, bytes.split_off(end + 4))
}

/// The answer as text, of a statement that must succeed.
pub(crate) fn ask(url: &str, statement: &str) -> String {
    let (status, body) = ask_bytes(url, statement, "");
    let text = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(status, 200, "{statement}: {text}");
    text.trim_end().to_owned()
}
