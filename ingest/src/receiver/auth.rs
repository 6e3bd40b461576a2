//! The authentication hook: from a request's `authorization` header to its tenant (I13).
//!
//! Not here: any credential store. The hook runs before a body is read, so that a stranger costs a
//! header and nothing more.

use model::tenant::TenantId;

/// Decides who is calling. Implementations must not block: they run on an async worker.
pub trait Authenticate: Clone + Send + Sync + 'static {
    /// The tenant of a request with this `authorization` header. A header that is not visible ASCII
    /// arrives as the empty string, which no scheme accepts.
    ///
    /// # Errors
    /// [`AuthError`].
    fn tenant(&self, authorization: Option<&str>) -> Result<TenantId, AuthError>;
}

/// Why a caller may not export. The text says nothing about which credentials exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No credential, or none that is known: HTTP 401, gRPC UNAUTHENTICATED.
    #[error("a valid credential is required")]
    Unauthenticated,
    /// A known credential without the right to write: HTTP 403, gRPC PERMISSION_DENIED.
    #[error("the credential does not allow writing telemetry")]
    PermissionDenied,
}

/// Everyone is the tenant `default`: a server without tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenAccess;

impl Authenticate for OpenAccess {
    fn tenant(&self, _authorization: Option<&str>) -> Result<TenantId, AuthError> {
        Ok(TenantId::default_tenant())
    }
}
