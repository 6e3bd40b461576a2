//! The two envelopes every signal shares: resource around scope around items.
//!
//! `ResourceSpans`, `ResourceLogs`, `ResourceMetrics` and `ResourceProfiles` have one layout
//! (1 = resource, 2 = scope envelopes, 3 = schema URL), and so have their scopes. Fields may come
//! in any order, so each envelope is scanned for its context before its items are walked.

use std::borrow::Cow;

use model::columns::DictionaryColumn;
use model::context::{self, ContextKind};
use model::ledger::RejectReason;
use model::value::ItemError;
use model::wire::{Reader, WireError};

/// A resource or scope with its schema URL, and whether what it encloses can be stored.
pub(super) struct Envelope<'a> {
    /// The `Resource` or `InstrumentationScope` message; empty when absent.
    pub(super) message: Cow<'a, [u8]>,
    /// The schema URL.
    pub(super) schema_url: &'a str,
    /// Set when the context itself breaks a rule: every enclosed item is refused for it.
    pub(super) refused: Option<RejectReason>,
}

impl<'a> Envelope<'a> {
    /// Finds the context of an envelope.
    pub(super) fn scan(kind: ContextKind, envelope: &'a [u8]) -> Result<Self, WireError> {
        let mut found = Self { message: Cow::Borrowed(&[]), schema_url: "", refused: None };
        let mut reader = Reader::new(envelope);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => {
                    let message = field.bytes(1)?;
                    // A message field that occurs twice merges; merging is concatenation.
                    if found.message.is_empty() {
                        found.message = Cow::Borrowed(message);
                    } else {
                        found.message.to_mut().extend_from_slice(message);
                    }
                }
                2 => {
                    field.bytes(2)?;
                }
                3 => found.schema_url = field.string(3)?,
                _ => {}
            }
        }
        match context::check(kind, &found.message) {
            Ok(()) => {}
            Err(ItemError::Reject(reason)) => found.refused = Some(reason),
            Err(ItemError::Wire(error)) => return Err(error),
        }
        Ok(found)
    }

    /// The bytes that are stored for this context.
    pub(super) fn encode(&self, kind: ContextKind) -> Vec<u8> {
        context::encode(kind, &self.message, self.schema_url)
    }
}

/// The items (field 2) of an envelope.
pub(super) fn items(envelope: &[u8]) -> impl Iterator<Item = Result<&[u8], WireError>> {
    repeated(envelope, 2)
}

/// Every occurrence of a repeated message field.
pub(super) fn repeated(message: &[u8], wanted: u32) -> impl Iterator<Item = Result<&[u8], WireError>> {
    let mut reader = Reader::new(message);
    std::iter::from_fn(move || {
        loop {
            match reader.next() {
                Ok(Some((number, field))) if number == wanted => return Some(field.bytes(wanted)),
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    })
}

/// The three columns every table has from its envelopes.
#[derive(Debug, Default)]
pub(super) struct ContextColumns {
    pub(super) service_name: DictionaryColumn,
    pub(super) resource: DictionaryColumn,
    pub(super) scope: DictionaryColumn,
}

/// Dictionary keys of one (resource, scope), pushed for every item below it.
#[derive(Clone, Copy, Default)]
pub(super) struct ContextKeys {
    pub(super) service_name: i32,
    pub(super) resource: i32,
    pub(super) scope: i32,
}

impl ContextColumns {
    /// Interns a resource.
    pub(super) fn resource(&mut self, resource: &Envelope<'_>) -> ContextKeys {
        ContextKeys {
            service_name: self.service_name.intern(context::service_name(&resource.message).as_bytes()),
            resource: self.resource.intern(&resource.encode(ContextKind::Resource)),
            scope: 0,
        }
    }

    /// Interns a scope below a resource.
    pub(super) fn scope(&mut self, keys: ContextKeys, scope: &Envelope<'_>) -> ContextKeys {
        ContextKeys { scope: self.scope.intern(&scope.encode(ContextKind::Scope)), ..keys }
    }

    #[inline]
    pub(super) fn push(&mut self, keys: ContextKeys) {
        self.service_name.push_key(keys.service_name);
        self.resource.push_key(keys.resource);
        self.scope.push_key(keys.scope);
    }

    pub(super) fn len(&self) -> usize {
        self.resource.len()
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.service_name.truncate(rows);
        self.resource.truncate(rows);
        self.scope.truncate(rows);
    }
}
