//! Protobuf's wire format: a borrowing reader and the few writing helpers that go with it.
//!
//! Not here: any message. The reader knows fields, not schemas, allocates nothing and never
//! recurses. Source: protobuf.dev/programming-guides/encoding. It accepts and refuses what prost
//! does (property-tested against it), groups included, which it steps over.

/// What is wrong with bytes that are not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The buffer ended inside a field.
    #[error("truncated field")]
    Truncated,
    /// A varint of more than ten bytes, or whose value is over 64 bits.
    #[error("varint over 64 bits")]
    Varint,
    /// Field number 0, or a key over 32 bits.
    #[error("field number out of range")]
    FieldNumber,
    /// Wire type 6 or 7, or an end-group mark without its start.
    #[error("unknown wire type")]
    WireType,
    /// A known field with another wire type than its schema says.
    #[error("field {field} has wire type {found}")]
    FieldType {
        /// The field's number.
        field: u32,
        /// The wire type found.
        found: u8,
    },
    /// Groups nested over [`GROUP_DEPTH_MAX`] deep.
    #[error("groups nested too deep")]
    GroupDepth,
    /// A string field that is not UTF-8.
    #[error("string is not UTF-8")]
    Utf8,
}

/// How deep unknown groups may nest: prost's own recursion limit.
pub const GROUP_DEPTH_MAX: usize = 100;

/// One field's value as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: string, bytes, message or packed numbers.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
    /// Wire types 3 and 4: a whole group, stepped over.
    Group,
}

impl<'a> Field<'a> {
    const fn wire_type(&self) -> u8 {
        match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Group => 3,
            Self::Fixed32(_) => 5,
        }
    }

    #[cold]
    const fn mismatch(&self, field: u32) -> WireError {
        WireError::FieldType { field, found: self.wire_type() }
    }

    /// The value of a varint field.
    ///
    /// # Errors
    /// [`WireError::FieldType`] when the wire type is another.
    #[inline]
    pub const fn varint(self, field: u32) -> Result<u64, WireError> {
        match self {
            Self::Varint(value) => Ok(value),
            other => Err(other.mismatch(field)),
        }
    }

    /// The value of a uint32, int32 or enum field: the low 32 bits, as protobuf says.
    ///
    /// # Errors
    /// [`WireError::FieldType`] when the wire type is another.
    #[inline]
    pub const fn uint32(self, field: u32) -> Result<u32, WireError> {
        match self {
            Self::Varint(value) => Ok(value as u32),
            other => Err(other.mismatch(field)),
        }
    }

    /// The value of a sint32 field (zigzag).
    ///
    /// # Errors
    /// [`WireError::FieldType`] when the wire type is another.
    #[inline]
    pub fn sint32(self, field: u32) -> Result<i32, WireError> {
        let raw = self.uint32(field)?;
        Ok(((raw >> 1) as i32) ^ -((raw & 1) as i32))
    }

    /// The value of a fixed64, sfixed64 or double field.
    ///
    /// # Errors
    /// [`WireError::FieldType`] when the wire type is another.
    #[inline]
    pub const fn fixed64(self, field: u32) -> Result<u64, WireError> {
        match self {
            Self::Fixed64(value) => Ok(value),
            other => Err(other.mismatch(field)),
        }
    }

    /// The value of a fixed32 field.
    ///
    /// # Errors
    /// [`WireError::FieldType`] when the wire type is another.
    #[inline]
    pub const fn fixed32(self, field: u32) -> Result<u32, WireError> {
        match self {
            Self::Fixed32(value) => Ok(value),
            other => Err(other.mismatch(field)),
        }
    }

    /// The bytes of a bytes or message field.
    ///
    /// # Errors
    /// [`WireError::FieldType`] when the wire type is another.
    #[inline]
    pub const fn bytes(self, field: u32) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(value) => Ok(value),
            other => Err(other.mismatch(field)),
        }
    }

    /// The text of a string field.
    ///
    /// # Errors
    /// [`WireError::FieldType`] or [`WireError::Utf8`].
    #[inline]
    pub fn string(self, field: u32) -> Result<&'a str, WireError> {
        text(self.bytes(field)?)
    }
}

/// The bytes as text.
///
/// # Errors
/// [`WireError::Utf8`].
#[inline]
pub fn text(bytes: &[u8]) -> Result<&str, WireError> {
    simdutf8::basic::from_utf8(bytes).map_err(|_utf8| WireError::Utf8)
}

/// The wire type of varint fields.
pub const VARINT: u64 = 0;
/// The wire type of fixed64, sfixed64 and double fields.
pub const FIXED64: u64 = 1;
/// The wire type of string, bytes and message fields, and of packed numbers.
pub const BYTES: u64 = 2;
/// The wire type of fixed32 fields.
pub const FIXED32: u64 = 5;

/// The key of a field: its number and wire type.
#[must_use]
pub const fn key(number: u64, wire_type: u64) -> u64 {
    number << 3 | wire_type
}

/// The number and the wire type in a key.
#[inline]
fn split(key: u64) -> Result<(u32, u8), WireError> {
    let key = u32::try_from(key).map_err(|_wide| WireError::FieldNumber)?;
    if key >> 3 == 0 {
        return Err(WireError::FieldNumber);
    }
    Ok((key >> 3, (key & 7) as u8))
}

/// Bytes, and those behind them in the same message. Copying or comparing a fixed number of bytes
/// is several times faster than any other number, and what is too many can be ignored.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The bytes and what follows them.
    view: &'a [u8],
    /// How many there are; at most `view.len()`.
    length: usize,
}

impl<'a> Run<'a> {
    /// All of `bytes`, with nothing in view behind them.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { view: bytes, length: bytes.len() }
    }

    /// The bytes.
    #[inline(always)]
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        &self.view[..self.length]
    }

    /// How many bytes there are.
    #[inline(always)]
    #[must_use]
    pub const fn len(self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.length == 0
    }

    /// The first `N` bytes in view, of which only the first [`Run::len`] are these bytes.
    #[inline(always)]
    #[must_use]
    pub fn chunk<const N: usize>(self) -> Option<&'a [u8; N]> {
        self.view.first_chunk::<N>()
    }

    /// The bytes from `start` on; `None` when there are fewer.
    #[inline(always)]
    #[must_use]
    pub fn from(self, start: usize) -> Option<Self> {
        let length = self.length.checked_sub(start)?;
        Some(Self { view: self.view.get(start..)?, length })
    }
}

/// Reads the fields of one message in order.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader over the bytes of one message.
    #[inline]
    #[must_use]
    pub const fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// Whether every byte has been read.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are still to be read.
    #[inline]
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// What has not been read yet.
    #[inline]
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next field's number and value, or `None` at the end.
    ///
    /// # Errors
    /// Any [`WireError`] but `FieldType` and `Utf8`, which only a schema can see.
    #[inline]
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator of results would hide the early return that callers want"
    )]
    pub fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, WireError> {
        match self.key()? {
            Some(key) => self.field(key).map(Some),
            None => Ok(None),
        }
    }

    /// The key of the next field, or `None` at the end, for messages that are worth a match on
    /// keys (see [`key`]). The field's value must be read next: as its wire type says, or by
    /// [`Reader::other`].
    ///
    /// # Errors
    /// [`WireError::Truncated`] or [`WireError::Varint`].
    #[inline(always)]
    pub fn key(&mut self) -> Result<Option<u64>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.varint().map(Some)
    }

    /// Steps over the value of a field that no match on keys took.
    ///
    /// # Errors
    /// Any [`WireError`] but `Utf8`; `FieldType` when the field's number is a `known` one.
    #[inline]
    pub fn other(&mut self, key: u64, known: impl FnOnce(u32) -> bool) -> Result<(), WireError> {
        let (number, field);
        (number, field, *self) = any_field(*self, key)?;
        if known(number) { Err(field.mismatch(number)) } else { Ok(()) }
    }

    #[inline]
    fn field(&mut self, key: u64) -> Result<(u32, Field<'a>), WireError> {
        let (number, wire_type) = split(key)?;
        let field = match wire_type {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(self.fixed64()?),
            2 => Field::Bytes(self.bytes()?),
            3 => {
                *self = skip_group(*self, number)?;
                Field::Group
            }
            5 => Field::Fixed32(self.fixed32()?),
            _ => return Err(WireError::WireType),
        };
        Ok((number, field))
    }

    /// A bare varint: the value of a varint field, or an element of a packed one.
    ///
    /// # Errors
    /// [`WireError::Truncated`] or [`WireError::Varint`].
    #[inline(always)]
    pub fn varint(&mut self) -> Result<u64, WireError> {
        match self.rest {
            // One byte is by far the most common: field keys and short lengths. Then two: lengths.
            [first, rest @ ..] if *first < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*first))
            }
            [first, second, rest @ ..] if *second < 0x80 => {
                self.rest = rest;
                Ok(u64::from(first & 0x7f) | u64::from(*second) << 7)
            }
            // By value: a reader that no call may change stays in registers.
            rest => {
                let (value, rest) = varint_long(rest)?;
                self.rest = rest;
                Ok(value)
            }
        }
    }

    /// The value of a fixed64 field, or an element of a packed one.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline(always)]
    pub fn fixed64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The value of a fixed32 field.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline(always)]
    pub fn fixed32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The value of a bytes, string or message field.
    ///
    /// # Errors
    /// [`WireError::Truncated`] or [`WireError::Varint`].
    #[inline(always)]
    pub fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        self.run().map(Run::bytes)
    }

    /// As [`Reader::bytes`], with what follows in view.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    #[inline(always)]
    pub fn run(&mut self) -> Result<Run<'a>, WireError> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_wide| WireError::Truncated)?;
        let view = self.rest;
        self.rest = view.get(length..).ok_or(WireError::Truncated)?;
        Ok(Run { view, length })
    }

    /// The value of a string field.
    ///
    /// # Errors
    /// As [`Reader::bytes`], or [`WireError::Utf8`].
    #[inline(always)]
    pub fn string(&mut self) -> Result<&'a str, WireError> {
        text(self.bytes()?)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }
}

#[cold]
fn any_field(mut reader: Reader<'_>, key: u64) -> Result<(u32, Field<'_>, Reader<'_>), WireError> {
    let (number, field) = reader.field(key)?;
    Ok((number, field, reader))
}

fn varint_long(bytes: &[u8]) -> Result<(u64, &[u8]), WireError> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        // The tenth byte holds the 64th bit and nothing else.
        if index == 9 && *byte > 1 {
            return Err(WireError::Varint);
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            return Ok((value, &bytes[index + 1..]));
        }
    }
    Err(if bytes.len() < 10 { WireError::Truncated } else { WireError::Varint })
}

/// Steps over a group without recursion: a stack of open field numbers, bounded.
#[cold]
fn skip_group(mut reader: Reader<'_>, opened: u32) -> Result<Reader<'_>, WireError> {
    let mut open = [0_u32; GROUP_DEPTH_MAX];
    open[0] = opened;
    let mut depth = 1;
    while depth > 0 {
        let (number, wire_type) = split(reader.varint()?)?;
        match wire_type {
            0 => {
                reader.varint()?;
            }
            1 => {
                reader.fixed64()?;
            }
            2 => {
                reader.bytes()?;
            }
            3 => {
                *open.get_mut(depth).ok_or(WireError::GroupDepth)? = number;
                depth += 1;
            }
            4 if open[depth - 1] == number => depth -= 1,
            5 => {
                reader.fixed32()?;
            }
            _ => return Err(WireError::WireType),
        }
    }
    Ok(reader)
}

/// Appends a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length-delimited field: a string, bytes or a message.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Result<Vec<(u32, Field<'_>)>, WireError>) {
        let mut reader = Reader::new(bytes);
        let mut fields = Vec::new();
        let found = loop {
            match reader.next() {
                Ok(Some(field)) => fields.push(field),
                Ok(None) => break Ok(fields),
                Err(error) => break Err(error),
            }
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn fields_and_what_is_wrong_with_them() {
        check(&[], Ok(vec![]));
        check(&[0x08, 0x96, 0x01], Ok(vec![(1, Field::Varint(150))]));
        check(&[0x12, 0x02, b'h', b'i'], Ok(vec![(2, Field::Bytes(b"hi"))]));
        check(&[0x0d, 1, 0, 0, 0], Ok(vec![(1, Field::Fixed32(1))]));
        check(&[0x09, 1, 0, 0, 0, 0, 0, 0, 0], Ok(vec![(1, Field::Fixed64(1))]));
        // A length padded to five bytes is legal.
        check(&[0x0a, 0x81, 0x80, 0x80, 0x80, 0x00, b'x'], Ok(vec![(1, Field::Bytes(b"x"))]));
        // A group with a nested group and a varint in it.
        check(&[0x0b, 0x13, 0x08, 0x01, 0x14, 0x0c, 0x08, 0x02], Ok(vec![(1, Field::Group), (1, Field::Varint(2))]));
        check(&[0x0b, 0x14], Err(WireError::WireType));
        check(&[0x0c], Err(WireError::WireType));
        check(&[0x0e], Err(WireError::WireType));
        check(&[0x00], Err(WireError::FieldNumber));
        check(&[0x08], Err(WireError::Truncated));
        check(&[0x0a, 0x05, b'x'], Err(WireError::Truncated));
        check(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Err(WireError::Truncated));
        check(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], Err(WireError::Varint));
        check(&[0x0b; 101], Err(WireError::GroupDepth));
        check(&[0x0d, 1, 0], Err(WireError::Truncated));
    }
}
