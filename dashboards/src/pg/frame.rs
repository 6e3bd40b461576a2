//! The frames of PostgreSQL's protocol 3: what a client sends, read strictly, and what it is sent.
//!
//! Every length is checked before anything is kept, and no frame can be read past its end: what arrives here is
//! anybody's bytes, before anybody has said who they are. (Source: PostgreSQL 17 documentation, chapter 53.)
//! Not here: what frames mean ([`super::session`]), and how values look ([`super::values`]).

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A first frame, bytes: what PostgreSQL takes.
const STARTUP_BYTES_MAX: usize = 10_000;

/// A password, bytes.
const PASSWORD_BYTES_MAX: usize = 8 << 10;

/// Any other frame, bytes. A statement has 64 KiB; its parameters become part of it.
const FRAME_BYTES_MAX: usize = 256 << 10;

/// Bytes that a client may send ahead while it waits for an answer; it is read no further until then.
const AHEAD_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// Why a client's bytes make no sense; the connection cannot go on after it.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The client is gone.
    #[error("the connection ended")]
    Gone,
    /// More than may be sent.
    #[error("a message of {found} bytes is over the limit of {limit}")]
    TooLarge {
        /// What it says it has.
        found: usize,
        /// What it may have.
        limit: usize,
    },
    /// A frame whose parts do not fill it, or overflow it.
    #[error("a message of type `{}` is malformed", char::from(*.0).escape_default())]
    Malformed(u8),
    /// A frame that no client sends.
    #[error("a message of type `{}` is not known", char::from(*.0).escape_default())]
    Unknown(u8),
    /// TLS without asking first.
    #[error("this server has no TLS: connect with sslmode=disable or prefer")]
    Tls,
}

/// The first frame of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Startup {
    /// TLS or GSSAPI is asked for.
    Encryption,
    /// Another connection's query is to be stopped.
    Cancel {
        /// Which connection.
        process: i32,
        /// What only its client knows.
        secret: i32,
    },
    /// A session.
    Session {
        /// The protocol's version.
        version: (u16, u16),
        /// User, database and settings, by name.
        parameters: Vec<(String, String)>,
    },
}

/// Which of its two kinds a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A prepared statement.
    Statement,
    /// A statement with its parameters.
    Portal,
}

/// A frame from a client that has said who it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Query(String),
    Parse {
        name: String,
        sql: String,
        types: Vec<u32>,
    },
    Bind {
        portal: String,
        statement: String,
        formats: Vec<i16>,
        values: Vec<Option<Bytes>>,
        results: Vec<i16>,
    },
    Describe(Target, String),
    Execute {
        portal: String,
        rows_max: i32,
    },
    Close(Target, String),
    Sync,
    Flush,
    Terminate,
    Password(String),
    /// Of a copy or a function call, which there are none of.
    Other(u8),
}

/// Reads a client's frames.
pub(super) struct Reader<R> {
    source: R,
    buffer: BytesMut,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: BytesMut::with_capacity(8 << 10), ended: false }
    }

    /// Reads some bytes. Safe to cancel.
    async fn more(&mut self) -> Result<(), FrameError> {
        match self.source.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => {
                self.ended = true;
                Err(FrameError::Gone)
            }
            Ok(_) => Ok(()),
        }
    }

    /// Ends when the client is gone, keeping what it sends meanwhile. Safe to cancel.
    pub(super) async fn gone(&mut self) {
        while !self.ended {
            if self.buffer.len() >= AHEAD_BYTES_MAX {
                // It may be gone or not: a client that does not wait for its answers finds out when they are written.
                std::future::pending::<()>().await;
            }
            if self.more().await.is_err() {
                return;
            }
        }
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), FrameError> {
        while self.buffer.len() < bytes {
            self.more().await?;
        }
        Ok(())
    }

    /// The first frame. Safe to cancel.
    pub(super) async fn startup(&mut self) -> Result<Startup, FrameError> {
        const TLS_HANDSHAKE: u8 = 0x16;
        self.fill(8).await?;
        if self.buffer[0] == TLS_HANDSHAKE {
            return Err(FrameError::Tls);
        }
        let length = length_at(&self.buffer, 0);
        if !(8..=STARTUP_BYTES_MAX).contains(&length) {
            return Err(FrameError::TooLarge { found: length, limit: STARTUP_BYTES_MAX });
        }
        self.fill(length).await?;
        let mut body = Body { tag: 0, bytes: self.buffer.split_to(length).freeze() };
        body.bytes.advance(4);
        let code = body.u32()?;
        match code {
            80_877_103 | 80_877_104 => Ok(Startup::Encryption),
            80_877_102 => Ok(Startup::Cancel { process: body.u32()?.cast_signed(), secret: body.u32()?.cast_signed() }),
            version => {
                let mut parameters = Vec::new();
                loop {
                    let name = body.text()?;
                    if name.is_empty() {
                        break;
                    }
                    parameters.push((name, body.text()?));
                }
                Ok(Startup::Session { version: ((version >> 16) as u16, version as u16), parameters })
            }
        }
    }

    /// The next frame. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Frame, FrameError> {
        self.fill(5).await?;
        let tag = self.buffer[0];
        let length = length_at(&self.buffer, 1);
        let limit = match tag {
            b'p' => PASSWORD_BYTES_MAX,
            b'Q' | b'P' | b'B' | b'D' | b'E' | b'C' | b'S' | b'H' | b'X' | b'F' | b'd' | b'c' | b'f' => FRAME_BYTES_MAX,
            _ => return Err(FrameError::Unknown(tag)),
        };
        if length < 4 {
            return Err(FrameError::Malformed(tag));
        }
        if length > limit {
            return Err(FrameError::TooLarge { found: length, limit });
        }
        self.fill(length + 1).await?;
        let mut bytes = self.buffer.split_to(length + 1).freeze();
        bytes.advance(5);
        Body { tag, bytes }.frame()
    }
}

fn length_at(bytes: &[u8], at: usize) -> usize {
    let length = bytes[at..].first_chunk().map_or(0, |length| u32::from_be_bytes(*length));
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// The inside of one frame.
struct Body {
    tag: u8,
    bytes: Bytes,
}

impl Body {
    fn malformed(&self) -> FrameError {
        FrameError::Malformed(self.tag)
    }

    fn take(&mut self, count: usize) -> Result<Bytes, FrameError> {
        if count > self.bytes.len() {
            return Err(self.malformed());
        }
        Ok(self.bytes.split_to(count))
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.take(1)?.get_u8())
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(self.take(2)?.get_u16())
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(self.take(4)?.get_u32())
    }

    /// Text up to its NUL.
    fn text(&mut self) -> Result<String, FrameError> {
        let end = self.bytes.iter().position(|byte| *byte == 0).ok_or_else(|| self.malformed())?;
        let text = self.take(end)?;
        self.bytes.advance(1);
        String::from_utf8(text.to_vec()).map_err(|_not_utf8| self.malformed())
    }

    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Result<T, FrameError>) -> Result<Vec<T>, FrameError> {
        let count = usize::from(self.u16()?);
        // Each item has two bytes at least, so a count cannot ask for more memory than was sent.
        if count * 2 > self.bytes.len() {
            return Err(self.malformed());
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn target(&mut self) -> Result<Target, FrameError> {
        match self.u8()? {
            b'S' => Ok(Target::Statement),
            b'P' => Ok(Target::Portal),
            _ => Err(self.malformed()),
        }
    }

    fn frame(mut self) -> Result<Frame, FrameError> {
        let frame = match self.tag {
            b'Q' => Frame::Query(self.text()?),
            b'P' => Frame::Parse { name: self.text()?, sql: self.text()?, types: self.list(Self::u32)? },
            b'B' => {
                let (portal, statement) = (self.text()?, self.text()?);
                let formats = self.list(|body| Ok(body.u16()?.cast_signed()))?;
                let values = self.list(|body| {
                    let length = body.u32()?.cast_signed();
                    usize::try_from(length).ok().map(|length| body.take(length)).transpose()
                })?;
                let results = self.list(|body| Ok(body.u16()?.cast_signed()))?;
                Frame::Bind { portal, statement, formats, values, results }
            }
            b'D' => Frame::Describe(self.target()?, self.text()?),
            b'E' => Frame::Execute { portal: self.text()?, rows_max: self.u32()?.cast_signed() },
            b'C' => Frame::Close(self.target()?, self.text()?),
            b'S' => Frame::Sync,
            b'H' => Frame::Flush,
            b'X' => Frame::Terminate,
            b'p' => Frame::Password(self.text()?),
            other => {
                self.bytes.clear();
                Frame::Other(other)
            }
        };
        if self.bytes.is_empty() { Ok(frame) } else { Err(self.malformed()) }
    }
}

/// What a column is announced as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) oid: u32,
    pub(super) length: i16,
    pub(super) format: i16,
}

/// What a client is told when something fails, or is worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice<'a> {
    pub(super) severity: &'static str,
    pub(super) state: &'a str,
    pub(super) message: &'a str,
    pub(super) hint: Option<&'a str>,
}

/// Frames on their way to a client, appended to a buffer.
pub(super) trait Frames {
    /// A frame whose body is appended by `body`.
    fn frame(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut));
    /// Text and its NUL; a NUL inside ends it.
    fn text(&mut self, text: &str);

    /// What authentication wants: 0 nothing, 3 a password.
    fn authentication(&mut self, wants: i32) {
        self.frame(b'R', |body| body.put_i32(wants));
    }

    fn parameter(&mut self, name: &str, value: &str) {
        self.frame(b'S', |body| {
            body.text(name);
            body.text(value);
        });
    }

    fn key(&mut self, process: i32, secret: i32) {
        self.frame(b'K', |body| {
            body.put_i32(process);
            body.put_i32(secret);
        });
    }

    fn newest_version(&mut self, unknown: &[&str]) {
        self.frame(b'v', |body| {
            body.put_i32(0);
            body.put_i32(i32::try_from(unknown.len()).unwrap_or(0));
            unknown.iter().for_each(|name| body.text(name));
        });
    }

    fn ready(&mut self, transaction: u8) {
        self.frame(b'Z', |body| body.put_u8(transaction));
    }

    /// A frame without a body: `1` parsed, `2` bound, `3` closed, `n` no columns, `s` more rows to come, `I` nothing
    /// was asked.
    fn bare(&mut self, tag: u8) {
        self.frame(tag, |_| {});
    }

    fn complete(&mut self, tag: &str) {
        self.frame(b'C', |body| body.text(tag));
    }

    fn notice(&mut self, tag: u8, notice: &Notice<'_>) {
        self.frame(tag, |body| {
            for (kind, text) in
                [(b'S', notice.severity), (b'V', notice.severity), (b'C', notice.state), (b'M', notice.message)]
            {
                body.put_u8(kind);
                body.text(text);
            }
            if let Some(hint) = notice.hint {
                body.put_u8(b'H');
                body.text(hint);
            }
            body.put_u8(0);
        });
    }

    fn parameter_types(&mut self, oids: &[u32]) {
        self.frame(b't', |body| {
            body.put_u16(u16::try_from(oids.len()).unwrap_or(u16::MAX));
            oids.iter().for_each(|oid| body.put_u32(*oid));
        });
    }

    fn row_description(&mut self, fields: &[Field]) {
        self.frame(b'T', |body| {
            body.put_u16(u16::try_from(fields.len()).unwrap_or(u16::MAX));
            for field in fields {
                body.text(&field.name);
                // No table and no place in it: a column of an answer is computed.
                body.put_u32(0);
                body.put_u16(0);
                body.put_u32(field.oid);
                body.put_i16(field.length);
                body.put_i32(-1);
                body.put_i16(field.format);
            }
        });
    }
}

impl Frames for BytesMut {
    fn frame(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        self.put_u8(tag);
        let at = self.len();
        self.put_u32(0);
        body(self);
        let length = u32::try_from(self.len() - at).unwrap_or(u32::MAX);
        self[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.put_slice(text.split('\0').next().unwrap_or_default().as_bytes());
        self.put_u8(0);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Frame, FrameError> {
        Reader::new(bytes).next().now_or_never().expect("bytes in memory are there at once")
    }

    fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        bytes.frame(tag, |out| out.put_slice(body));
        bytes.to_vec()
    }

    #[test]
    fn frames_are_read_as_sent() {
        let text = |text: &str| text.to_owned();
        for (bytes, expected) in [
            (framed(b'Q', b"SELECT 1\0"), Frame::Query(text("SELECT 1"))),
            (
                framed(b'P', b"s\0SELECT $1\0\0\x01\0\0\0\x14"),
                Frame::Parse { name: text("s"), sql: text("SELECT $1"), types: vec![20] },
            ),
            (
                framed(b'B', b"\0s\0\0\x01\0\x01\0\x02\0\0\0\x02hi\xff\xff\xff\xff\0\0"),
                Frame::Bind {
                    portal: text(""),
                    statement: text("s"),
                    formats: vec![1],
                    values: vec![Some(Bytes::from_static(b"hi")), None],
                    results: Vec::new(),
                },
            ),
            (framed(b'D', b"Sx\0"), Frame::Describe(Target::Statement, text("x"))),
            (framed(b'E', b"\0\0\0\0\x05"), Frame::Execute { portal: text(""), rows_max: 5 }),
            (framed(b'S', b""), Frame::Sync),
            (framed(b'd', b"rows"), Frame::Other(b'd')),
        ] {
            assert_eq!(read(&bytes).unwrap(), expected);
            // Any shorter frame is an end, or malformed.
            for length in 0..bytes.len() {
                assert!(matches!(read(&bytes[..length]), Err(FrameError::Gone)), "{length} of {bytes:?}");
            }
        }
    }

    #[test]
    fn bytes_that_make_no_sense_are_errors_and_ask_for_no_memory() {
        for bytes in [
            &b"Q\0\0\0\x03"[..],
            b"Q\xff\xff\xff\xff",
            b"p\0\0\xff\xff",
            b"!\0\0\0\x04",
            b"\0\0\0\0\x04",
            b"Q\0\0\0\x06ab",
            b"Q\0\0\0\x06\xffb",
            b"P\0\0\0\x0aa\0b\0\xff\xff",
            b"B\0\0\0\x08\0\0\xff\xff",
            b"B\0\0\0\x10\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0",
            b"D\0\0\0\x06x\0",
            b"E\0\0\0\x05\0",
            b"S\0\0\0\x05x",
        ] {
            let mut source = bytes.to_vec();
            source.resize(bytes.len() + 64, 0);
            assert!(!matches!(read(&source), Ok(_) | Err(FrameError::Gone)), "{bytes:?}");
        }
        for bytes in [
            &b"\0\0\0\x04\0\x03\0\0"[..],
            b"\x7f\xff\xff\xff\0\x03\0\0",
            b"\x16\x03\x01\0\0\0\0\0",
            b"\0\0\0\x09\0\x03\0\0x",
        ] {
            let startup = Reader::new(bytes).startup().now_or_never().unwrap();
            assert!(!matches!(startup, Ok(_) | Err(FrameError::Gone)), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), tag in proptest::sample::select(b"QPBDECSHXpFdcf".to_vec())) {
            drop(read(&framed(tag, &bytes)));
            drop(Reader::new(&bytes[..]).startup().now_or_never());
        }
    }
}
