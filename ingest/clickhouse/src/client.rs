//! One statement on one host, through the official client.
//!
//! Not here: which host, and what to do when it fails.

use std::time::Duration;

use bytes::Bytes;
use clickhouse::Client;
use clickhouse::error::Error;
use clickhouse::query::BytesCursor;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::config::ClickHouseConfig;
use crate::error::ClickHouseError;

/// A message of the server is cut to this length: it may repeat a row.
const MESSAGE_BYTES_MAX: usize = 600;

/// A body is handed to the connection in pieces, so that a connection that is gone is noticed before its end.
const PIECE_BYTES: usize = 256 << 10;

/// A connection that nothing was sent over is closed before the server does so, after its default of 10 seconds.
const IDLE: Duration = Duration::from_secs(5);

/// One server.
pub(crate) struct Server {
    client: Client,
    host: String,
    timeout_ms: u64,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("host", &self.host).finish_non_exhaustive()
    }
}

/// The servers of a configuration, in its order.
pub(crate) fn servers(config: &ClickHouseConfig) -> Result<Vec<Server>, ClickHouseError> {
    let connector = connector(config)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector);
    let client = Client::with_http_client(http)
        .with_user(&config.user)
        .with_password(&config.password.0)
        .with_product_info("godseye", env!("CARGO_PKG_VERSION"));
    let server = |url: &String| Server {
        client: client.clone().with_url(url),
        // Only the place: what stands before an `@` may be a secret.
        host: url.rsplit_once('@').map_or(url.as_str(), |(_, place)| place).to_owned(),
        timeout_ms: config.timeout_ms,
    };
    Ok(config.urls.iter().map(server).collect())
}

fn connector(config: &ClickHouseConfig) -> Result<HttpsConnector<HttpConnector>, ClickHouseError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_millis(config.connect_timeout_ms)));
    let builder = HttpsConnectorBuilder::new();
    let tls = |reason: String| ClickHouseError::Tls { what: "the certificates of ClickHouse", reason };
    let builder = match &config.ca_pem {
        None => builder
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| tls(error.to_string()))?,
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| tls(error.to_string()))?;
                roots.add(certificate).map_err(|error| tls(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(tls("there is none in the file".to_owned()));
            }
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            let versions = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| tls(error.to_string()))?;
            builder.with_tls_config(versions.with_root_certificates(roots).with_no_client_auth())
        }
    };
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}

impl Server {
    /// Carries out a statement without an answer.
    pub(crate) async fn execute(&self, statement: &str) -> Result<(), ClickHouseError> {
        let executed = self.client.query_raw(statement).execute();
        self.in_time(executed).await
    }

    /// The answer to a query, in a format.
    pub(crate) async fn fetch(&self, query: &str, format: &str) -> Result<Vec<u8>, ClickHouseError> {
        let fetched = async {
            let mut cursor = self.client.query_raw(query).fetch_bytes(format)?;
            Ok(cursor.collect().await?.to_vec())
        };
        self.in_time(fetched).await
    }

    /// Begins to read the answer to a query, in a format. How long it may take is a setting of the query.
    pub(crate) fn open(
        &self,
        query: &str,
        settings: &[(&'static str, String)],
        format: &str,
    ) -> Result<Answer<'_>, ClickHouseError> {
        let mut query = self.client.query_raw(query);
        for (name, value) in settings {
            query = query.with_setting(*name, value.as_str());
        }
        let cursor = query.fetch_bytes(format).map_err(|error| self.failed(error))?;
        Ok(Answer { server: self, cursor })
    }

    /// The answer to a query, in lines of fields without their escapes: for names and types, which have none.
    pub(crate) async fn rows(&self, query: &str) -> Result<Vec<Vec<String>>, ClickHouseError> {
        let text = String::from_utf8_lossy(&self.fetch(query, "TSVRaw").await?).into_owned();
        Ok(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
    }

    /// Inserts a body in the format that the statement names.
    pub(crate) async fn insert(
        &self,
        statement: &str,
        settings: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(), ClickHouseError> {
        let inserted = async {
            let mut insert = self.client.insert_formatted_with(statement);
            for (name, value) in settings {
                insert = insert.with_setting(*name, *value);
            }
            let mut rest = body;
            while !rest.is_empty() {
                let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
                insert.send(piece).await?;
            }
            insert.end().await
        };
        self.in_time(inserted).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, ClickHouseError> {
        match tokio::time::timeout(Duration::from_millis(self.timeout_ms), work).await {
            Err(_) => Err(self.failed(Error::TimedOut)),
            Ok(outcome) => outcome.map_err(|error| self.failed(error)),
        }
    }

    fn failed(&self, error: Error) -> ClickHouseError {
        let host = self.host.clone();
        match error {
            Error::TimedOut => ClickHouseError::TimedOut { host, timeout_ms: self.timeout_ms },
            Error::BadResponse(text) => ClickHouseError::Server { host, code: code_of(&text), message: cut(&text) },
            error => ClickHouseError::Network { host, reason: with_causes(&error) },
        }
    }
}

/// An answer on its way.
pub(crate) struct Answer<'a> {
    server: &'a Server,
    cursor: BytesCursor,
}

impl Answer<'_> {
    /// The next bytes; `None` after the last ones.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClickHouseError> {
        self.cursor.next().await.map_err(|error| self.server.failed(error))
    }
}

/// The number in `Code: 60. DB::Exception: …`; 0 when there is none.
fn code_of(text: &str) -> u32 {
    let number = text.split_once("Code: ").map_or("", |(_, after)| after);
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().unwrap_or(0)
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].trim_end().to_owned()
}

/// The client says "network error" and keeps what happened behind it.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_error_is_read_from_its_text() {
        for (text, code) in [
            ("Code: 60. DB::Exception: Table x does not exist. (UNKNOWN_TABLE)", 60),
            ("HTTP 500 Code: 241. DB::Exception", 241),
            ("502 Bad Gateway", 0),
            ("Code: many", 0),
        ] {
            assert_eq!(code_of(text), code, "{text}");
        }
        assert_eq!(cut(&"é".repeat(400)).len(), 600);
    }
}
