//! The two envelopes every signal shares: resource around scope around items.
//!
//! `ResourceSpans`, `ResourceLogs`, `ResourceMetrics` and `ResourceProfiles` have one layout
//! (1 = resource, 2 = scope envelopes, 3 = schema URL), and so have their scopes.

use std::borrow::Cow;

use arrow::array::ArrayRef;
use model::columns::DictionaryColumn;
use model::context::{self, ContextKind};
use model::ledger::RejectReason;
use model::value::ItemError;
use model::wire::{BYTES, Reader, WireError, key, text};

/// How the envelopes of a request are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// In one pass, from the first byte to the last: what every exporter sends can be read so. It
    /// needs the context of an envelope before its items, and stops at whatever is not as usual.
    Usual,
    /// Each envelope is searched for its context before its items are walked, since fields may come
    /// in any order. It is slower: the search waits for memory at every item.
    Any,
}

/// Why a pass over a request ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The request is malformed.
    Wire(WireError),
    /// [`Order::Usual`] cannot tell what becomes of the request.
    Unusual,
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// A resource or scope with its schema URL, and the items below it.
pub(super) struct Envelope<'a> {
    order: Order,
    reader: Reader<'a>,
    any_item: bool,
    /// The `Resource` or `InstrumentationScope` message; empty when absent.
    pub(super) message: Cow<'a, [u8]>,
    /// The schema URL.
    pub(super) schema_url: &'a str,
}

impl<'a> Envelope<'a> {
    /// Begins to read an envelope. In [`Order::Any`] message and schema URL are there at once,
    /// otherwise when the last item has been read.
    pub(super) fn open(envelope: &'a [u8], order: Order) -> Result<Self, Stop> {
        let reader = Reader::new(envelope);
        let mut found = Self { order, reader, any_item: false, message: Cow::Borrowed(&[]), schema_url: "" };
        if order == Order::Any {
            while found.next_field()?.is_some() {}
            found.reader = reader;
        }
        Ok(found)
    }

    /// The next item, or `None` at the end.
    pub(super) fn next_item(&mut self) -> Result<Option<&'a [u8]>, Stop> {
        match self.order {
            Order::Usual => self.next_field(),
            Order::Any => loop {
                match self.reader.next()? {
                    Some((2, field)) => return Ok(Some(field.bytes(2)?)),
                    Some(_) => {}
                    None => return Ok(None),
                }
            },
        }
    }

    /// Reads up to the next item.
    fn next_field(&mut self) -> Result<Option<&'a [u8]>, Stop> {
        const CONTEXT: u64 = key(1, BYTES);
        const ITEM: u64 = key(2, BYTES);
        const SCHEMA_URL: u64 = key(3, BYTES);
        while let Some(key) = self.reader.key()? {
            match key {
                ITEM => {
                    self.any_item = true;
                    return Ok(Some(self.reader.bytes()?));
                }
                CONTEXT if self.any_item && self.order == Order::Usual => return Err(Stop::Unusual),
                CONTEXT => {
                    let message = self.reader.bytes()?;
                    // A message field that occurs twice merges; merging is concatenation.
                    if self.message.is_empty() {
                        self.message = Cow::Borrowed(message);
                    } else {
                        self.message.to_mut().extend_from_slice(message);
                    }
                }
                SCHEMA_URL => self.schema_url = text(self.reader.bytes()?)?,
                other => self.reader.other(other, |number| number <= 3)?,
            }
        }
        Ok(None)
    }
}

/// Every occurrence of a repeated message field.
pub(super) fn repeated(message: &[u8], wanted: u32) -> impl Iterator<Item = Result<&[u8], WireError>> {
    let mut reader = Reader::new(message);
    let wanted_key = key(u64::from(wanted), BYTES);
    std::iter::from_fn(move || {
        loop {
            match reader.key() {
                Ok(Some(key)) if key == wanted_key => return Some(reader.bytes()),
                Ok(Some(other)) => {
                    if let Err(error) = reader.other(other, |number| number == wanted) {
                        return Some(Err(error));
                    }
                }
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    })
}

/// The three columns every table has from its envelopes.
///
/// A context is checked, and its service name looked up, once in a batch: what the resource and
/// scope columns hold has been checked, whatever number of requests repeat it.
#[derive(Debug, Default)]
pub(super) struct ContextColumns {
    service_name: DictionaryColumn,
    resource: DictionaryColumn,
    scope: DictionaryColumn,
    /// What is known of each value of `resource` and `scope`, by its key there.
    resources: Vec<Known>,
    scopes: Vec<Known>,
    scratch: Vec<u8>,
}

/// What checking a context said.
#[derive(Clone, Copy, Debug)]
struct Known {
    service_name: i32,
    refused: Option<RejectReason>,
    identity: u64,
}

/// The key of a resource or a scope in its column, and what is known of it.
#[derive(Clone, Copy)]
pub(super) struct Found {
    key: i32,
    known: Known,
}

/// Dictionary keys of one (resource, scope), for every item below it.
#[derive(Clone, Copy)]
pub(super) struct ContextKeys {
    resource: Found,
    scope: Found,
}

impl ContextKeys {
    /// Set when a context breaks a rule: every enclosed item is refused for it.
    pub(super) fn refused(&self) -> Option<RejectReason> {
        self.resource.known.refused.or(self.scope.known.refused)
    }

    /// A hash of the resource and the scope.
    pub(super) const fn identity(&self) -> u64 {
        self.resource.known.identity ^ self.scope.known.identity.rotate_left(17)
    }
}

impl ContextColumns {
    /// Checks a resource whose envelope is in [`Order::Any`], or at its end.
    pub(super) fn find_resource(&mut self, resource: &Envelope<'_>) -> Result<Found, WireError> {
        let (message, schema_url) = (&resource.message[..], resource.schema_url);
        self.scratch.clear();
        context::encode_into(ContextKind::Resource, message, schema_url, &mut self.scratch);
        let key = match self.resource.find(&self.scratch) {
            Ok(key) => key,
            Err(hash) => {
                let refused = check(ContextKind::Resource, message)?;
                let service_name = self.service_name.intern(context::service_name(message).as_bytes());
                let identity = context::identity(ContextKind::Resource, message, schema_url)?;
                self.resources.push(Known { service_name, refused, identity });
                self.resource.insert(hash, &self.scratch)
            }
        };
        Ok(Found { key, known: self.resources[key as usize] })
    }

    fn find_scope(&mut self, scope: &Envelope<'_>) -> Result<Found, WireError> {
        let (message, schema_url) = (&scope.message[..], scope.schema_url);
        self.scratch.clear();
        context::encode_into(ContextKind::Scope, message, schema_url, &mut self.scratch);
        let key = match self.scope.find(&self.scratch) {
            Ok(key) => key,
            Err(hash) => {
                let refused = check(ContextKind::Scope, message)?;
                let identity = context::identity(ContextKind::Scope, message, schema_url)?;
                self.scopes.push(Known { service_name: 0, refused, identity });
                self.scope.insert(hash, &self.scratch)
            }
        };
        Ok(Found { key, known: self.scopes[key as usize] })
    }

    /// The keys of a resource, found before, and a scope below it.
    pub(super) fn find(&mut self, resource: Found, scope: &Envelope<'_>) -> Result<ContextKeys, WireError> {
        Ok(ContextKeys { resource, scope: self.find_scope(scope)? })
    }

    /// Gives these contexts to every row up to `rows` that has none yet.
    pub(super) fn fill(&mut self, rows: usize, keys: ContextKeys) {
        self.service_name.fill_key(rows, keys.resource.known.service_name);
        self.resource.fill_key(rows, keys.resource.key);
        self.scope.fill_key(rows, keys.scope.key);
    }

    /// Why the items of these envelopes cannot be stored, if so. In [`Order::Usual`] that is not
    /// known before the envelopes end.
    pub(super) fn refused(
        &mut self,
        resource: &Envelope<'_>,
        scope: &Envelope<'_>,
    ) -> Result<Option<RejectReason>, WireError> {
        match resource.order {
            Order::Usual => Ok(None),
            Order::Any => {
                let resource = self.find_resource(resource)?;
                Ok(self.find(resource, scope)?.refused())
            }
        }
    }

    /// The last item of a scope was read: gives the scope to every row up to `rows` that has none
    /// yet.
    pub(super) fn end_scope(&mut self, scope: &Envelope<'_>, rows: usize) -> Result<(), Stop> {
        let Found { key, known } = self.find_scope(scope)?;
        if scope.order == Order::Usual && known.refused.is_some() {
            return Err(Stop::Unusual);
        }
        self.scope.fill_key(rows, key);
        Ok(())
    }

    /// As [`ContextColumns::end_scope`], for the resource and its service name.
    pub(super) fn end_resource(&mut self, resource: &Envelope<'_>, rows: usize) -> Result<(), Stop> {
        let Found { key, known } = self.find_resource(resource)?;
        if resource.order == Order::Usual && known.refused.is_some() {
            return Err(Stop::Unusual);
        }
        self.service_name.fill_key(rows, known.service_name);
        self.resource.fill_key(rows, key);
        Ok(())
    }

    /// Whether no context was looked for since the last batch.
    pub(super) fn is_untouched(&self) -> bool {
        self.resources.is_empty()
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.service_name.truncate(rows);
        self.resource.truncate(rows);
        self.scope.truncate(rows);
    }

    /// `service_name`, `resource` and `scope` as Arrow columns.
    pub(super) fn finish(&mut self) -> [ArrayRef; 3] {
        self.resources.clear();
        self.scopes.clear();
        [self.service_name.finish_utf8(), self.resource.finish_binary(), self.scope.finish_binary()]
    }
}

fn check(kind: ContextKind, message: &[u8]) -> Result<Option<RejectReason>, WireError> {
    match context::check(kind, message) {
        Ok(()) => Ok(None),
        Err(ItemError::Reject(reason)) => Ok(Some(reason)),
        Err(ItemError::Wire(error)) => Err(error),
    }
}
