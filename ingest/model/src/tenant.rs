//! Who owns a row. A tenant comes from the credential and is part of every key (I13).
//!
//! Not here: how a credential is checked; that is the receivers' and the API's work.

use std::fmt;
use std::sync::Arc;

/// The longest tenant name, bytes. It is part of file names.
pub const TENANT_BYTES_MAX: usize = 64;

/// A tenant's name: 1 to [`TENANT_BYTES_MAX`] of `a-z`, `0-9`, `-`, `_`, first a letter or digit.
/// The rule is strict since the name becomes a folder name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// Why a name cannot be a tenant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "tenant `{name}` is not valid: expected 1 to {TENANT_BYTES_MAX} characters of a-z, 0-9, - and _, starting with a letter or digit"
)]
pub struct InvalidTenant {
    /// The offending name, cut to a length that fits a log line.
    pub name: String,
}

impl TenantId {
    /// The tenant of a server without tokens: `default`.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self(Arc::from("default"))
    }

    /// Parses a name by the rule above.
    ///
    /// # Errors
    /// [`InvalidTenant`] with the name.
    pub fn new(name: &str) -> Result<Self, InvalidTenant> {
        let bytes = name.as_bytes();
        let valid = !bytes.is_empty()
            && bytes.len() <= TENANT_BYTES_MAX
            && bytes[0].is_ascii_alphanumeric()
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
        if valid {
            Ok(Self(Arc::from(name)))
        } else {
            Err(InvalidTenant { name: name.chars().take(TENANT_BYTES_MAX).collect() })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for good in ["default", "a", "team-1", "0_x", &"x".repeat(64)] {
            assert!(TenantId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "A", "-a", "_a", "a b", "é", "a\0", &"x".repeat(65)] {
            assert!(TenantId::new(bad).is_err(), "{bad:?}");
        }
    }
}
