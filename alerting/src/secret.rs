//! A string that must not be printed.
//!
//! `Debug` and `Serialize` give `***` and there is no `Display`: showing the value takes a call to
//! [`Secret::expose`], which is easy to search for. Not here: encryption; the value is plain text in
//! this process's memory.

use std::fmt;
use std::path::PathBuf;

/// A credential, shown as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
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

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Where a credential comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// It stands in the configuration.
    Inline(Secret),
    /// It is the content of a file, read anew for every message so that a rotated one is used at once.
    File(PathBuf),
}

/// A credential's file is a line or a key; a larger one is some other file.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

impl SecretSource {
    /// The credential, without the blanks around a file's content.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is larger than 64 KiB or is not UTF-8; the text names the file.
    pub async fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Inline(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
                let size = tokio::fs::metadata(path).await.map_err(failed)?.len();
                if size > SECRET_FILE_BYTES_MAX {
                    return Err(format!("{} has {size} bytes, a credential has at most 64 KiB", path.display()));
                }
                let text = tokio::fs::read_to_string(path).await.map_err(failed)?;
                Ok(Secret::new(text.trim().to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_in_no_output() {
        let secret = SecretSource::Inline(Secret::new("hunter2".to_owned()));
        assert_eq!(format!("{secret:?}"), "Inline(***)");
        assert_eq!(serde_json::to_string(&Secret::new("hunter2".to_owned())).unwrap(), "\"***\"");
    }
}
