//! Reading one message from the chunks of a body: decompression with hard limits.
//!
//! Every byte is reserved in the budget before it is allocated, the message may not pass the limit
//! before or after decompression, and a claim in a header (length, window) never allocates more than
//! a small, named amount. Decompression happens as chunks arrive, so the compressed body is never
//! held, and in slices between which the task yields, so a large body does not keep an async worker
//! from its other connections (this takes the place of a blocking thread and its two hops). Not here:
//! HTTP or gRPC framing.

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::status::Refusal;
use crate::admission::Reservation;

/// Output of one slice of decompression, bytes: a quarter to half a millisecond of work.
const SLICE_BYTES: usize = 256 << 10;

/// The most that is allocated because a header says so, bytes. The rest follows the data received.
const FIRST_BYTES_MAX: usize = 1 << 20;

/// The least that is allocated for a message that is not empty, bytes.
const FIRST_BYTES_MIN: usize = 4 << 10;

/// How much larger than its compressed form telemetry usually is: sizes the first allocation.
const USUAL_RATIO: usize = 4;

/// What an inflating gzip stream holds: a 32 KiB window and its tables, bytes.
const GZIP_STATE_BYTES: usize = 64 << 10;

/// Members of one gzip body. Parallel compressors cut every 64 KiB or more, so a body of the default
/// limit has at most 1024; past this, members are a way to burn CPU.
const GZIP_MEMBERS_MAX: u32 = 4096;

/// The largest zstd window, as a power of two: 8 MiB, what RFC 8878 asks decoders to support and all
/// levels but the `--ultra` ones stay within. A frame header alone can claim it.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a body or message is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As is.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Encoding {
    /// What is accepted, as `accept-encoding` and `grpc-accept-encoding` want it.
    pub(super) const ACCEPTED: &'static str = "gzip, zstd, identity";

    /// The encoding of a header's value. `x-gzip` is the name RFC 9110 wants treated alike.
    pub(super) fn from_header(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let is = |name: &str| value.eq_ignore_ascii_case(name.as_bytes());
        if value.is_empty() || is("identity") {
            Some(Self::Identity)
        } else if is("gzip") || is("x-gzip") {
            Some(Self::Gzip)
        } else if is("zstd") {
            Some(Self::Zstd)
        } else {
            None
        }
    }

    /// The name in headers and metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

enum Decoder {
    Gzip { member: Option<Box<Decompress>>, members: u32 },
    Zstd { context: DCtx<'static>, inside_frame: bool, frames: bool },
}

struct Step {
    read: usize,
    written: usize,
}

impl Decoder {
    /// `None` for data that is not compressed.
    fn new(encoding: Encoding) -> Result<Option<Self>, Refusal> {
        Ok(Some(match encoding {
            Encoding::Identity => return Ok(None),
            Encoding::Gzip => Self::Gzip { member: None, members: 0 },
            Encoding::Zstd => {
                let mut context = DCtx::try_create().ok_or(Refusal::Internal)?;
                context
                    .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
                    .map_err(|_code| Refusal::Internal)?;
                Self::Zstd { context, inside_frame: false, frames: false }
            }
        }))
    }

    /// Memory held beside the output, bytes.
    fn state_bytes(&self) -> usize {
        match self {
            Self::Gzip { .. } => GZIP_STATE_BYTES,
            Self::Zstd { context, .. } => context.sizeof(),
        }
    }

    /// Decompresses some of `input` into some of `output`, which is not empty.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refusal> {
        let step = match self {
            Self::Gzip { member: None, .. } if input.is_empty() => Step { read: 0, written: 0 },
            Self::Gzip { member, members } => {
                if member.is_none() {
                    *members += 1;
                    if *members > GZIP_MEMBERS_MAX {
                        return Err(corrupt(Encoding::Gzip, format!("more than {GZIP_MEMBERS_MAX} members")));
                    }
                }
                let inflate = member.get_or_insert_with(|| Box::new(Decompress::new_gzip(15)));
                let (read, written) = (inflate.total_in(), inflate.total_out());
                let status = inflate
                    .decompress(input, output, FlushDecompress::None)
                    .map_err(|error| corrupt(Encoding::Gzip, error.to_string()))?;
                // The differences are at most the lengths of the two slices.
                let step = Step {
                    read: (inflate.total_in() - read) as usize,
                    written: (inflate.total_out() - written) as usize,
                };
                if status == Status::StreamEnd {
                    *member = None;
                }
                step
            }
            Self::Zstd { inside_frame: false, .. } if input.is_empty() => Step { read: 0, written: 0 },
            Self::Zstd { context, inside_frame, frames } => {
                let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
                let hint = context
                    .decompress_stream(&mut to, &mut from)
                    .map_err(|code| corrupt(Encoding::Zstd, get_error_name(code).to_owned()))?;
                *inside_frame = hint != 0;
                *frames = true;
                Step { read: from.pos(), written: to.pos() }
            }
        };
        // Both slices had room; a decoder that does not move would loop for ever.
        if step.read == 0 && step.written == 0 && !input.is_empty() {
            return Err(Refusal::CorruptBody { detail: "decompression makes no progress".to_owned() });
        }
        Ok(step)
    }

    /// Whether the input ended where it may end.
    fn finish(&self) -> Result<(), Refusal> {
        match self {
            Self::Gzip { member, members } if member.is_some() || *members == 0 => {
                Err(corrupt(Encoding::Gzip, "truncated".to_owned()))
            }
            Self::Zstd { inside_frame, frames, .. } if *inside_frame || !frames => {
                Err(corrupt(Encoding::Zstd, "truncated".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

fn corrupt(encoding: Encoding, detail: String) -> Refusal {
    Refusal::CorruptBody { detail: format!("{} data: {detail}", encoding.name()) }
}

/// A message being received.
pub(super) struct Payload {
    decoder: Option<Decoder>,
    /// The most bytes the message may have, compressed and not.
    limit: usize,
    /// Bytes seen, as they came.
    received: usize,
    /// The message. While decompressing: the message in front, zeroed room behind.
    out: Vec<u8>,
    /// How much of `out` is message.
    filled: usize,
    /// The size of the first allocation, from the length the sender claimed.
    first: usize,
    /// What the allocation need not pass.
    ceiling: usize,
    reservation: Reservation,
}

impl Payload {
    /// A message of at most `limit` bytes. `claimed` is its length as sent, where the sender said it.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] when the claim alone is over the limit.
    pub(super) fn new(
        encoding: Encoding,
        limit: usize,
        claimed: Option<u64>,
        reservation: Reservation,
    ) -> Result<Self, Refusal> {
        let claimed = match claimed {
            Some(length) => Some(
                usize::try_from(length).ok().filter(|length| *length <= limit).ok_or(Refusal::TooLarge { limit })?,
            ),
            None => None,
        };
        let decoder = Decoder::new(encoding)?;
        let (first, ceiling) = match (&decoder, claimed) {
            (None, Some(length)) => (length.min(FIRST_BYTES_MAX), length),
            (None, None) => (FIRST_BYTES_MIN, limit),
            // The byte over the limit is the one that tells.
            (Some(_), length) => (
                length.unwrap_or(0).saturating_mul(USUAL_RATIO).clamp(FIRST_BYTES_MIN, FIRST_BYTES_MAX),
                limit.saturating_add(1),
            ),
        };
        Ok(Self { decoder, limit, received: 0, out: Vec::new(), filled: 0, first, ceiling, reservation })
    }

    /// Takes the next chunk of the body.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::CorruptBody`] or the refusal of a full budget.
    pub(super) async fn push(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        self.received = self.received.saturating_add(chunk.len());
        if self.received > self.limit {
            return Err(Refusal::TooLarge { limit: self.limit });
        }
        if self.decoder.is_some() { self.decompress(chunk).await } else { self.append(chunk) }
    }

    fn append(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        let length = self.out.len() + chunk.len();
        if length > self.out.capacity() {
            self.make_room(length)?;
        }
        self.out.extend_from_slice(chunk);
        self.filled = length;
        Ok(())
    }

    async fn decompress(&mut self, mut input: &[u8]) -> Result<(), Refusal> {
        let mut work = 0;
        loop {
            if self.filled == self.out.len() {
                if self.filled > self.limit {
                    return Err(Refusal::TooLarge { limit: self.limit });
                }
                self.make_room(self.filled + 1)?;
                self.out.resize(self.out.capacity().min(self.ceiling), 0);
            }
            let Some(decoder) = &mut self.decoder else { return Ok(()) };
            let end = self.out.len().min(self.filled.saturating_add(SLICE_BYTES));
            let step = decoder.step(input, &mut self.out[self.filled..end])?;
            input = &input[step.read..];
            self.filled += step.written;
            // A zstd decoder sizes its window when it has read the frame's header.
            let held = self.out.capacity() + decoder.state_bytes();
            self.reservation.grow_to(held as u64)?;
            // A decoder that left room has given all it can for this input.
            if input.is_empty() && self.filled < end {
                return Ok(());
            }
            work += step.read + step.written;
            if work >= SLICE_BYTES {
                work = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Grows the allocation to at least `length`, at least twofold, not past the ceiling without need.
    fn make_room(&mut self, length: usize) -> Result<(), Refusal> {
        let capacity = (2 * self.out.capacity()).max(self.first).min(self.ceiling).max(length);
        let state = self.decoder.as_ref().map_or(0, Decoder::state_bytes);
        self.reservation.grow_to((capacity + state) as u64)?;
        self.out.reserve_exact(capacity - self.out.len());
        Ok(())
    }

    /// The message, when the body has ended.
    ///
    /// # Errors
    /// [`Refusal::CorruptBody`] when compressed data is truncated.
    pub(super) fn finish(mut self) -> Result<Message, Refusal> {
        if let Some(decoder) = self.decoder.take() {
            decoder.finish()?;
        }
        self.out.truncate(self.filled);
        if self.out.capacity() > 2 * self.out.len() {
            self.out.shrink_to_fit();
        }
        self.reservation.shrink_to(self.out.capacity() as u64);
        Ok(Message { bytes: self.out, reservation: self.reservation })
    }
}

/// A whole message with the reservation of its memory.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) reservation: Reservation,
}

impl Message {
    /// The message as shared bytes. The reservation ends when both the last of the bytes and the
    /// returned guard are gone: memory stays counted when the client has left but the pipeline still
    /// holds it, and a request stays counted until its outcome is known.
    pub(super) fn share(self) -> (Bytes, std::sync::Arc<Reservation>) {
        struct Held(Vec<u8>, #[expect(dead_code, reason = "held for its drop")] std::sync::Arc<Reservation>);
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let guard = std::sync::Arc::new(self.reservation);
        (Bytes::from_owner(Held(self.bytes, std::sync::Arc::clone(&guard))), guard)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::admission::ByteBudget;

    const LIMIT: usize = 1 << 20;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd_with(data: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn compressed(encoding: Encoding, data: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => data.to_vec(),
            Encoding::Gzip => gzip(data),
            Encoding::Zstd => zstd_with(data, 20),
        }
    }

    /// Text that compresses as telemetry does, about eightfold.
    fn sample(length: usize) -> Vec<u8> {
        (0_u64..).flat_map(|n| format!("span {} GET /cart/{} ", n / 7, n * n % 97).into_bytes()).take(length).collect()
    }

    /// Receives `body` in chunks of `chunk` bytes: the message, or the reason of the refusal.
    fn receive(encoding: Encoding, body: &[u8], chunk: usize, budget: &ByteBudget) -> Result<Vec<u8>, &'static str> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let received = runtime.block_on(async {
            let mut payload = Payload::new(encoding, LIMIT, None, budget.reservation())?;
            for chunk in body.chunks(chunk) {
                payload.push(chunk).await?;
            }
            payload.finish()
        });
        match received {
            Ok(message) => {
                assert_eq!(message.reservation.held(), message.bytes.capacity() as u64, "what is held is reserved");
                Ok(message.bytes)
            }
            Err(refusal) => Err(refusal.codes().2),
        }
    }

    #[track_caller]
    fn check(encoding: Encoding, body: &[u8], expected: Result<&[u8], &'static str>) {
        let budget = ByteBudget::new(64 << 20);
        for chunk in [1, 7, 4096, usize::MAX] {
            if body.len() / chunk > 100_000 {
                continue;
            }
            let found = receive(encoding, body, chunk, &budget);
            assert!(found.as_deref() == expected.as_deref(), "{encoding:?} in chunks of {chunk}: {:?}", found.err());
        }
        assert_eq!(budget.in_flight(), 0);
        assert!(budget.peak() <= 12 * LIMIT as u64, "an 8 MiB window and twice the limit: {}", budget.peak());
    }

    const COMPRESSED: [Encoding; 2] = [Encoding::Gzip, Encoding::Zstd];
    const ALL: [Encoding; 3] = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd];

    #[test]
    fn whole_messages_and_the_limit() {
        for encoding in ALL {
            for length in [0, 1, 4095, 4096, 4097, 100_000, LIMIT - 1, LIMIT] {
                let data = sample(length);
                check(encoding, &compressed(encoding, &data), Ok(&data));
            }
            check(encoding, &compressed(encoding, &sample(LIMIT + 1)), Err("too_large"));
            check(encoding, &compressed(encoding, &vec![0; 16 * LIMIT]), Err("too_large"));
        }
    }

    #[test]
    fn several_members_or_frames_are_one_message() {
        let data = sample(10_000);
        for encoding in COMPRESSED {
            let mut body = compressed(encoding, &data[..3000]);
            body.extend(compressed(encoding, b""));
            body.extend(compressed(encoding, &data[3000..]));
            check(encoding, &body, Ok(&data));
        }
        let members = gzip(b"").repeat(GZIP_MEMBERS_MAX as usize);
        check(Encoding::Gzip, &members, Ok(b""));
        check(Encoding::Gzip, &[members, gzip(b"")].concat(), Err("corrupt_body"));
    }

    #[test]
    fn what_is_not_a_whole_message_is_corrupt() {
        for encoding in COMPRESSED {
            let body = compressed(encoding, &sample(2000));
            for length in 0..body.len() {
                check(encoding, &body[..length], Err("corrupt_body"));
            }
            for garbage in [&b"x"[..], b"\0", b"garbage behind the end"] {
                check(encoding, &[&body[..], garbage].concat(), Err("corrupt_body"));
            }
            check(encoding, b"\x0a\x02\x08\x01 not compressed", Err("corrupt_body"));
        }
        let mut wrong_crc = gzip(b"telemetry");
        let crc = wrong_crc.len() - 8;
        wrong_crc[crc] ^= 1;
        check(Encoding::Gzip, &wrong_crc, Err("corrupt_body"));
    }

    #[test]
    fn a_flipped_bit_never_gives_another_message() {
        let data = sample(300);
        let budget = ByteBudget::new(64 << 20);
        for encoding in COMPRESSED {
            let body = compressed(encoding, &data);
            let mut refused = 0;
            for bit in 0..body.len() * 8 {
                let mut flipped = body.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                match receive(encoding, &flipped, usize::MAX, &budget) {
                    // Headers hold a time and a file system that nobody checks.
                    Ok(message) => assert_eq!(message, data, "{encoding:?} bit {bit}"),
                    Err(_reason) => refused += 1,
                }
            }
            assert!(refused > body.len() * 4, "{encoding:?}: {refused} of {} flips refused", body.len() * 8);
        }
    }

    #[test]
    fn a_header_alone_allocates_little() {
        // A window of 128 MiB is refused, before it is allocated.
        let wide = zstd_with(&sample(100_000), 27);
        check(Encoding::Zstd, &wide, Err("corrupt_body"));
        // A claimed length reserves nothing until data comes, and then a megabyte at most.
        let budget = ByteBudget::new(u64::MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for encoding in ALL {
            let limit = 64 << 20;
            let mut payload = Payload::new(encoding, limit, Some(limit as u64), budget.reservation()).ok().unwrap();
            assert_eq!(budget.in_flight(), 0);
            runtime.block_on(payload.push(&compressed(encoding, b"x")[..1])).unwrap();
            assert!(budget.in_flight() <= (FIRST_BYTES_MAX + GZIP_STATE_BYTES + (256 << 10)) as u64);
            assert!(Payload::new(encoding, limit, Some(limit as u64 + 1), budget.reservation()).is_err());
        }
    }

    #[test]
    fn a_full_budget_refuses_in_the_middle_and_frees_all() {
        for encoding in ALL {
            let budget = ByteBudget::new(300 << 10);
            let mut neighbour = budget.reservation();
            neighbour.grow_to(1).unwrap();
            let found = receive(encoding, &compressed(encoding, &sample(LIMIT)), 4096, &budget);
            assert_eq!(found.err(), Some("overloaded"), "{encoding:?}");
            assert_eq!(budget.in_flight(), 1);
            drop(neighbour);
            assert!(receive(encoding, &compressed(encoding, &sample(LIMIT)), 4096, &budget).is_ok(), "alone it fits");
        }
    }
}
