//! One HTTP client for all channels: bounded, without redirects, and guarded against addresses that no
//! channel has.
//!
//! Link-local addresses (where clouds keep their credentials), multicast and the unspecified address are
//! always refused; loopback and private networks only if the policy says so. A name is resolved once and
//! each of its addresses is checked before a connection is made to one of exactly these, so a second
//! answer of the name server changes nothing. Not here: what a status means to a channel.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use url::{Host, Url};

use crate::error::AlertingError;
use crate::outbox::SendFailure;
use crate::secret::Secret;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read. Channels answer with a line.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Characters of an answer that are told.
const ANSWER_CHARS_SHOWN: usize = 200;

/// Which addresses messages may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Whether loopback and private networks are among them. Destinations stand in the operator's own
    /// file, so by default they are.
    pub allow_private: bool,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        Self { allow_private: true }
    }
}

impl NetworkPolicy {
    /// Whether a connection to an address may be made.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.allows_v4(v4),
            IpAddr::V6(v6) => self.allows_v6(v6),
        }
    }

    fn allows_v4(self, address: Ipv4Addr) -> bool {
        let [a, b, c, _] = address.octets();
        let never = a == 0 || address.is_link_local() || address.is_multicast() || a >= 240;
        let private = address.is_loopback()
            || address.is_private()
            || (a == 100 && (64..128).contains(&b))
            || (a == 198 && (18..20).contains(&b))
            || (a == 192 && b == 0 && c == 0);
        !never && (self.allow_private || !private)
    }

    fn allows_v6(self, address: Ipv6Addr) -> bool {
        let [a, b, c, ..] = address.segments();
        let embedded = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d)
        };
        let segments = address.segments();
        if let Some(v4) = address.to_ipv4_mapped() {
            return self.allows_v4(v4);
        }
        // NAT64 and 6to4 carry an address of the older kind.
        if (a, b) == (0x64, 0xff9b) {
            return self.allows_v4(embedded(segments[6], segments[7]));
        }
        if a == 0x2002 {
            return self.allows_v4(embedded(b, c));
        }
        let never = address.is_unspecified() || address.is_multicast() || (a & 0xffc0) == 0xfe80;
        let private = address.is_loopback() || (a & 0xfe00) == 0xfc00 || (a & 0xffc0) == 0xfec0;
        !never && (self.allow_private || !private)
    }
}

/// Resolves names and refuses those with an address that is not allowed.
#[derive(Clone, Debug)]
struct GuardedResolver {
    policy: NetworkPolicy,
}

impl tower::Service<Name> for GuardedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let policy = self.policy;
        Box::pin(async move {
            // The port is set by the connector.
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            match addresses.iter().find(|address| !policy.allows(address.ip())) {
                Some(refused) => {
                    Err(std::io::Error::other(format!("{name} resolves to {}, which is refused", refused.ip())))
                }
                None => Ok(addresses.into_iter()),
            }
        })
    }
}

/// An answer with its body's beginning.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// How long to wait, if the answer says so.
    pub retry_after: Option<Duration>,
    /// At most 64 KiB.
    pub body: Bytes,
}

impl Answer {
    /// Success, or the failure that the status stands for: 5xx, 429 and 408 may heal, the rest does not.
    ///
    /// # Errors
    ///
    /// When the status is no success.
    pub fn success(self) -> Result<Self, SendFailure> {
        if self.status.is_success() {
            return Ok(self);
        }
        let text = String::from_utf8_lossy(&self.body);
        let text: String = text.chars().filter(|c| !c.is_control()).take(ANSWER_CHARS_SHOWN).collect();
        let retryable = self.status.is_server_error()
            || matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        let message = format!("answered {}: {text}", self.status);
        Err(SendFailure { message, retryable, retry_after: self.retry_after })
    }
}

/// The client.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector<GuardedResolver>>, Full<Bytes>>,
    policy: NetworkPolicy,
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl HttpClient {
    /// Builds the client.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(policy: NetworkPolicy) -> Result<Self, AlertingError> {
        let mut connector = HttpConnector::new_with_resolver(GuardedResolver { policy });
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        // The provider is named: with two of them in one program rustls would not choose.
        let https = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| AlertingError::HttpClient { reason: error.to_string() })?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(https), policy })
    }

    /// Posts a body. The address may be a secret: no error shows more of it than its host.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn post(
        &self,
        url: &str,
        content_type: &'static str,
        headers: &[(String, Secret)],
        body: Vec<u8>,
    ) -> Result<Answer, SendFailure> {
        let url = Url::parse(url.trim()).map_err(|_| SendFailure::permanent("the address is not one of HTTP"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SendFailure::permanent("the address is not one of HTTP"));
        }
        // A literal address never reaches the resolver. The parser has made one of every spelling.
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) => None,
            None => return Err(SendFailure::permanent("the address has no host")),
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        if literal.is_some_and(|address| !self.policy.allows(address)) {
            return Err(SendFailure::permanent(format!("connections to {host} are refused")));
        }
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(url.as_str())
            .header(CONTENT_TYPE, content_type)
            .header(USER_AGENT, concat!("GodsEye/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            let bad = |_| SendFailure::permanent(format!("{name} is no header, or its value is none"));
            let header = HeaderName::try_from(name.as_str()).map_err(|error| bad(error.to_string()))?;
            let mut value = HeaderValue::try_from(value.expose()).map_err(|error| bad(error.to_string()))?;
            value.set_sensitive(true);
            request = request.header(header, value);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| SendFailure::permanent(format!("the request cannot be built: {error}")))?;
        let response = self.client.request(request).await.map_err(|error| {
            let mut reason = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(inner) = source {
                reason = inner.to_string();
                source = inner.source();
            }
            // Names may resolve to something else later; the refusal of an address may end as well.
            SendFailure::retryable(format!("{host}: {reason}"))
        })?;
        let status = response.status();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Ok(Answer { status, retry_after: retry_after.map(Duration::from_secs), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_channel_has_are_refused() {
        // Address, allowed with private networks, allowed without.
        for (address, with, without) in [
            ("93.184.216.34", true, true),
            ("2606:2800:220:1::1", true, true),
            ("127.0.0.1", true, false),
            ("::1", true, false),
            ("10.1.2.3", true, false),
            ("172.16.0.1", true, false),
            ("192.168.1.1", true, false),
            ("100.64.0.1", true, false),
            ("fd00::1", true, false),
            ("::ffff:10.0.0.1", true, false),
            ("64:ff9b::a00:1", true, false),
            ("2002:a00:1::", true, false),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("64:ff9b::a9fe:a9fe", false, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("224.0.0.1", false, false),
            ("ff02::1", false, false),
            ("255.255.255.255", false, false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(NetworkPolicy { allow_private: true }.allows(address), with, "{address}");
            assert_eq!(NetworkPolicy { allow_private: false }.allows(address), without, "{address}");
        }
    }

    #[tokio::test]
    async fn every_spelling_of_an_address_is_refused() {
        let client = HttpClient::new(NetworkPolicy { allow_private: false }).unwrap();
        for url in [
            "http://127.0.0.1:1/",
            "http://2130706433:1/",
            "http://0x7f.1:1/",
            "http://[::1]:1/",
            "http://[::ffff:127.0.0.1]:1/",
            "http://169.254.169.254/latest",
            "http://localhost:1/",
            "http://LOCALHOST:1/",
            "file:///etc/passwd",
            "gopher://example.com/",
            "not an address",
        ] {
            let failure = client.post(url, "text/plain", &[], Vec::new()).await.unwrap_err();
            assert!(
                failure.message.contains("refused") || failure.message.contains("not one of HTTP"),
                "{url}: {failure:?}"
            );
            assert!(!failure.message.contains("Connection refused"), "{url}: no connection is tried: {failure:?}");
        }
    }

    #[test]
    fn statuses_are_healed_by_time_or_not() {
        for (status, want) in [
            (200, None),
            (202, None),
            (299, None),
            (301, Some(false)),
            (400, Some(false)),
            (404, Some(false)),
            (408, Some(true)),
            (429, Some(true)),
            (500, Some(true)),
            (503, Some(true)),
        ] {
            let answer = Answer {
                status: StatusCode::from_u16(status).unwrap(),
                retry_after: None,
                body: Bytes::from("x\u{1b}[31m"),
            };
            let got = answer.success().err();
            assert_eq!(got.as_ref().map(|failure| failure.retryable), want, "{status}");
            assert!(got.is_none_or(|failure| !failure.message.contains('\u{1b}')));
        }
    }
}
