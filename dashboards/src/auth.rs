//! Tokens: from an `Authorization: Bearer` header to a tenant and what it may do (I13).
//!
//! Tokens are compared as SHA-256 digests, all of them each time, so that neither a digest's
//! prefix nor a token's place in the list shows in the time it takes. Not here: users, sessions
//! and roles.

use std::sync::{Arc, PoisonError, RwLock};

use model::tenant::TenantId;
use sha2::{Digest as _, Sha256};

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Send telemetry.
    Ingest,
    /// Ask questions, and operate the server.
    Query,
}

/// Why a caller may not. The text says nothing about which tokens exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// No token, or none that is known.
    Unauthenticated,
    /// A known token without the right.
    PermissionDenied,
}

impl std::fmt::Display for AuthError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unauthenticated => "a valid token is required: send `Authorization: Bearer TOKEN`",
            Self::PermissionDenied => "the token does not allow this",
        })
    }
}

impl std::error::Error for AuthError {}

/// A token as configured. The secret is forgotten once its digest is taken.
pub struct Token {
    /// The token itself.
    pub secret: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// Whether it may send telemetry.
    pub ingest: bool,
    /// Whether it may ask questions.
    pub query: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    digest: [u8; 32],
    tenant: TenantId,
    ingest: bool,
    query: bool,
}

/// The tokens of a time.
#[derive(Debug)]
pub struct Edition(Arc<[Known]>);

/// Knows every token. Without any, everyone is the tenant `default`; that such a server listens on
/// loopback only is checked where it is configured.
#[derive(Debug, Default)]
pub struct Authenticator(RwLock<Arc<[Known]>>);

impl Authenticator {
    /// From the configured tokens.
    #[must_use]
    pub fn new(tokens: impl IntoIterator<Item = Token>) -> Self {
        Self(RwLock::new(known(tokens)))
    }

    /// Takes other tokens from the next request on, also of connections that are open. The last
    /// token is never taken away: that would open a server to everyone on addresses that were
    /// bound with tokens in mind. Returns whether they were taken.
    pub fn replace(&self, tokens: impl IntoIterator<Item = Token>) -> bool {
        let tokens = known(tokens);
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let taken = !tokens.is_empty() || current.is_empty();
        // The same ones again are no change: sessions go on.
        if taken && *current != tokens {
            *current = tokens;
        }
        taken
    }

    /// The tokens as they are now, for whoever is let in once and stays.
    #[must_use]
    pub fn edition(&self) -> Edition {
        Edition(self.tokens())
    }

    /// Whether the tokens are still those of an edition.
    #[must_use]
    pub fn is_current(&self, edition: &Edition) -> bool {
        Arc::ptr_eq(&self.tokens(), &edition.0)
    }

    /// The tenant of a request with this `Authorization` header.
    ///
    /// # Errors
    /// [`AuthError`].
    pub fn authorize(&self, authorization: Option<&str>, scope: Scope) -> Result<TenantId, AuthError> {
        self.authorize_token(authorization.and_then(bearer), scope)
    }

    fn tokens(&self) -> Arc<[Known]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether no token is wanted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.tokens().is_empty()
    }

    /// The tenant of a token, where a door has a place of its own for it.
    ///
    /// # Errors
    /// [`AuthError`].
    pub fn authorize_token(&self, token: Option<&str>, scope: Scope) -> Result<TenantId, AuthError> {
        let tokens = self.tokens();
        if tokens.is_empty() {
            return Ok(TenantId::default_tenant());
        }
        let token = token.ok_or(AuthError::Unauthenticated)?;
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for known in tokens.iter() {
            let difference = known.digest.iter().zip(digest).fold(0, |all, (a, b)| all | (a ^ b));
            if difference == 0 {
                found = Some(known);
            }
        }
        let known = found.ok_or(AuthError::Unauthenticated)?;
        let allowed = match scope {
            Scope::Ingest => known.ingest,
            Scope::Query => known.query,
        };
        if allowed { Ok(known.tenant.clone()) } else { Err(AuthError::PermissionDenied) }
    }
}

fn known(tokens: impl IntoIterator<Item = Token>) -> Arc<[Known]> {
    let known = |token: Token| Known {
        digest: Sha256::digest(token.secret.as_bytes()).into(),
        tenant: token.tenant,
        ingest: token.ingest,
        query: token.query,
    };
    tokens.into_iter().map(known).collect()
}

/// The token of a bearer credential (RFC 6750); the scheme's case does not matter.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(secret: &str, tenant: &str, ingest: bool, query: bool) -> Token {
        Token { secret: secret.to_owned(), tenant: TenantId::new(tenant).unwrap(), ingest, query }
    }

    #[test]
    fn a_token_decides_tenant_and_scope() {
        let known = Authenticator::new([token("a1", "acme", true, false), token("b2", "beta", true, true)]);
        for (authorization, scope, expected) in [
            (Some("Bearer a1"), Scope::Ingest, Ok("acme")),
            (Some("bearer  b2 "), Scope::Query, Ok("beta")),
            (Some("Bearer a1"), Scope::Query, Err(AuthError::PermissionDenied)),
            (Some("Bearer a"), Scope::Ingest, Err(AuthError::Unauthenticated)),
            (Some("Bearer "), Scope::Ingest, Err(AuthError::Unauthenticated)),
            (Some("Basic a1"), Scope::Ingest, Err(AuthError::Unauthenticated)),
            (Some(""), Scope::Ingest, Err(AuthError::Unauthenticated)),
            (None, Scope::Query, Err(AuthError::Unauthenticated)),
        ] {
            let expected = expected.map(|tenant| TenantId::new(tenant).unwrap());
            assert_eq!(known.authorize(authorization, scope), expected, "{authorization:?}");
        }
        let open = Authenticator::default();
        assert_eq!(open.authorize(None, Scope::Query), Ok(TenantId::default_tenant()));
    }

    #[test]
    fn tokens_can_be_replaced_but_never_taken_away() {
        let tokens = Authenticator::default();
        let tenant = |secret: &str| {
            let credential = format!("Bearer {secret}");
            tokens.authorize(Some(&credential), Scope::Query).map(|tenant| tenant.to_string())
        };
        assert_eq!(tenant("x"), Ok("default".to_owned()), "everyone, as long as there is none");
        assert!(tokens.replace([]));
        assert!(tokens.replace([token("old", "acme", true, true)]));
        assert_eq!((tenant("old"), tenant("x")), (Ok("acme".to_owned()), Err(AuthError::Unauthenticated)));
        assert!(tokens.replace([token("new", "acme", true, true)]));
        let edition = tokens.edition();
        assert!(tokens.replace([token("new", "acme", true, true)]) && tokens.is_current(&edition), "the same again");
        assert!(!tokens.replace([]) && tokens.is_current(&edition), "the last one stays");
        assert!(tokens.replace([token("new", "acme", false, true)]) && !tokens.is_current(&edition));
        assert_eq!((tenant("new"), tenant("old")), (Ok("acme".to_owned()), Err(AuthError::Unauthenticated)));
    }
}
