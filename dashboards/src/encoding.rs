//! Compression of answers: chunk in, chunk out, so that an answer of any length needs one encoder's memory.
//!
//! Both encoders run at their fastest level. An answer is made once and read once, mostly over a fast network, and
//! text shrinks to a tenth even so; higher levels would spend a core of the machine that takes telemetry in.
//! Not here: which encoding a client wants (see [`crate::negotiate`]).

use std::io::Write as _;

/// Answers shorter than this go out as they are, bytes: a packet is not saved, and the header costs thirty.
pub(crate) const COMPRESSED_FROM_BYTES: usize = 1 << 10;

/// How the bytes of an answer are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As they are.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878. At this level a reader needs a window of 512 KiB.
    Zstd,
}

impl Encoding {
    /// The name in `Content-Encoding`; `None` for bytes as they are.
    pub(crate) const fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// Encodes one answer.
pub(crate) enum Encoder {
    Identity,
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    pub(crate) fn new(encoding: Encoding) -> std::io::Result<Self> {
        Ok(match encoding {
            Encoding::Identity => Self::Identity,
            Encoding::Gzip => Self::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast())),
            Encoding::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), 1)?),
        })
    }

    /// Takes the next part of an answer; gives what is encoded by now, which may be nothing yet.
    pub(crate) fn encode(&mut self, part: Vec<u8>) -> std::io::Result<Vec<u8>> {
        Ok(match self {
            Self::Identity => part,
            Self::Gzip(encoder) => {
                encoder.write_all(&part)?;
                std::mem::take(encoder.get_mut())
            }
            Self::Zstd(encoder) => {
                encoder.write_all(&part)?;
                std::mem::take(encoder.get_mut())
            }
        })
    }

    /// What is left, and the end of the encoding.
    pub(crate) fn finish(self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Identity => Ok(Vec::new()),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}
