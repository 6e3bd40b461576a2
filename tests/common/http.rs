//! HTTP/1.1 by hand: one request on one connection, any bytes as body.
//!
//! Tests of a server must be able to send what no client library would. It reads a response whole and understands
//! `Content-Length`, chunked bodies and the end of the connection. Not here: redirects, keep-alive, compression,
//! TLS.

use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long one response may take before the test calls the server hung.
const RESPONSE_WITHIN: Duration = Duration::from_secs(60);

/// A request in the making.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A response, read to its end.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body, without transfer coding.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without headers or body.
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body; its length is sent with it.
    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    /// Sends the request and reads the whole response.
    pub fn send(&self, to: SocketAddr) -> Result<Response, Error> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(RESPONSE_WITHIN))?;
        stream.set_write_timeout(Some(RESPONSE_WITHIN))?;
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", self.body.len()));
        // A server may refuse a large body before it has read it: it answers and closes, and writing then fails.
        // So the answer is read meanwhile, and only a missing answer is an error.
        let mut writing = stream.try_clone()?;
        let body = self.body.clone();
        let writer =
            std::thread::spawn(move || writing.write_all(head.as_bytes()).and_then(|()| writing.write_all(&body)));
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        let written = writer.join().expect("the writing thread does not panic");
        match (parse(&bytes), read, written) {
            (Some(response), _, _) => Ok(response),
            (None, Err(error), _) | (None, Ok(_), Err(error)) => Err(error),
            (None, Ok(_), Ok(())) => {
                let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
                Err(Error::new(ErrorKind::InvalidData, format!("no complete HTTP/1.1 response: {shown:?}")))
            }
        }
    }
}

impl Response {
    /// The first header with this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Parses a response; `None` when it is incomplete or not HTTP.
fn parse(bytes: &[u8]) -> Option<Response> {
    let end = find(bytes, b"\r\n\r\n")?;
    let mut lines = std::str::from_utf8(&bytes[..end]).ok()?.split("\r\n");
    let status: u16 = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let rest = &bytes[end + 4..];
    if status == 100 {
        return parse(rest);
    }
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())))
        .collect::<Option<_>>()?;
    let mut response = Response { status, headers, body: Vec::new() };
    response.body = if response.header("transfer-encoding") == Some("chunked") {
        dechunk(rest)?
    } else if let Some(length) = response.header("content-length") {
        rest.get(..length.parse().ok()?)?.to_vec()
    } else {
        rest.to_vec()
    };
    Some(response)
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = find(rest, b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
