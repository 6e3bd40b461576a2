//! A string that must not be printed.
//!
//! `Debug` and `Serialize` give `***`, and there is no `Display`: showing the value takes a call
//! to [`Secret::expose`], which is easy to search for. This is not encryption: the value is plain
//! text in this process's memory.

use std::fmt;

/// What stands in for a secret wherever one would be shown.
pub(super) const MASK: &str = "***";

/// A credential, shown as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value. The caller has already trimmed and checked it.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself. Never log what this returns.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}
