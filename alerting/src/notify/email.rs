//! Email over SMTP: text and HTML, threaded by group, with a Message-ID that is the same in every
//! attempt.
//!
//! Nothing that comes from telemetry can add a header: line breaks and control characters become blanks,
//! and addresses are parsed before they are used. Not here: retries.

use std::time::{Duration, UNIX_EPOCH};

use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, Mailboxes, Message, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use sha2::{Digest as _, Sha256};

use super::{Context, Sent, cut, secret};
use crate::config::{EmailConfig, TlsConfig};
use crate::outbox::SendFailure;
use crate::template::Data;

/// Characters of a subject or another header: a line that mail clients show.
const HEADER_CHARS_MAX: usize = 900;

/// How long a command of SMTP may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// A text that fits into one header.
fn one_line(text: &str) -> String {
    let flat: String =
        text.chars().map(|c| if c.is_control() || c == '\u{2028}' || c == '\u{2029}' { ' ' } else { c }).collect();
    cut(flat.trim(), HEADER_CHARS_MAX)
}

/// Builds the message. Pure: the same notification gives the same bytes, boundaries of its parts aside.
pub(crate) fn message(context: &Context<'_>, config: &EmailConfig) -> Result<Message, SendFailure> {
    let notification = context.notification;
    let data = Data::new(notification, context.external_url);
    let expand = |source: &str| context.expand(source, &data);
    let bad =
        |what: &str, error: &dyn std::fmt::Display| SendFailure::permanent(format!("{what} is no address: {error}"));
    let from: Mailbox = one_line(&expand(&config.from)).parse().map_err(|error| bad("`from`", &error))?;
    let to: Mailboxes = one_line(&expand(&config.to)).parse().map_err(|error| bad("`to`", &error))?;

    let domain = from.email.domain().to_owned();
    let mut thread = Sha256::new();
    thread.update(&notification.channel);
    thread.update([0]);
    thread.update(&notification.group_key);
    // Every message answers the same one, which was never sent: clients show them as one thread.
    let thread = format!("<{}@{domain}>", &hex::encode(thread.finalize())[..32]);
    let at = u64::try_from(notification.at).unwrap_or(0);
    let mut builder = Message::builder()
        .from(from)
        .message_id(Some(format!("<{}@{domain}>", notification.key)))
        .in_reply_to(thread.clone())
        .references(thread)
        .date(UNIX_EPOCH + Duration::from_nanos(at));
    for mailbox in to {
        builder = builder.to(mailbox);
    }
    let subject = config.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("subject"));
    let subject = subject.map_or(r#"{{ template "email.default.subject" . }}"#, |(_, source)| source);
    builder = builder.subject(one_line(&expand(subject)));
    for (name, source) in &config.headers {
        // These are made above, and a second one would be a contradiction.
        let own = ["subject", "from", "to", "date", "message-id", "in-reply-to", "references", "content-type"];
        if own.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            continue;
        }
        let name = HeaderName::new_from_ascii(name.clone())
            .map_err(|_| SendFailure::permanent(format!("{name:?} is no name of a header")))?;
        builder = builder.raw_header(HeaderValue::new(name, one_line(&expand(source))));
    }
    let text = expand(&config.text);
    let html = context.templates.expand_html(&config.html, &data);
    let built = match html {
        Ok(html) if !html.trim().is_empty() => builder
            .multipart(MultiPart::alternative().singlepart(SinglePart::plain(text)).singlepart(SinglePart::html(html))),
        Ok(_) => builder.singlepart(SinglePart::plain(text)),
        Err(error) => {
            tracing::warn!(channel = %notification.channel, %error, "the HTML template failed: text alone is sent");
            builder.singlepart(SinglePart::plain(text))
        }
    };
    built.map_err(|error| SendFailure::permanent(format!("the message cannot be built: {error}")))
}

pub(super) async fn send(context: &Context<'_>, config: &EmailConfig) -> Result<Sent, SendFailure> {
    let message = message(context, config)?;
    let Some((host, port)) = config.smarthost.rsplit_once(':') else {
        return Err(SendFailure::permanent("`smarthost` has no port"));
    };
    let host = host.trim_matches(['[', ']']);
    let port = port.parse().map_err(|_| SendFailure::permanent("`smarthost` has no port"))?;
    let parameters = tls_parameters(host, &config.tls).await?;
    let tls = match (config.implicit_tls, config.require_tls) {
        (true, _) => Tls::Wrapper(parameters),
        (false, true) => Tls::Required(parameters),
        (false, false) => Tls::Opportunistic(parameters),
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
        .port(port)
        .hello_name(ClientId::Domain(config.hello.clone()))
        .timeout(Some(COMMAND_TIMEOUT))
        .tls(tls);
    if !config.auth_username.is_empty() {
        let password = match &config.auth_password {
            Some(source) => secret(source).await?,
            None => return Err(SendFailure::permanent("`auth_username` is set, and `auth_password` is missing")),
        };
        let credentials = Credentials::new(config.auth_username.clone(), password.expose().to_owned());
        transport = transport.credentials(credentials);
    }
    match transport.build().send(message).await {
        Ok(_) => Ok(Sent::default()),
        Err(error) => Err(failure(host, &error)),
    }
}

async fn tls_parameters(host: &str, config: &TlsConfig) -> Result<TlsParameters, SendFailure> {
    let bad = |error: &dyn std::fmt::Display| SendFailure::permanent(format!("TLS for {host}: {error}"));
    let name = config.server_name.clone().unwrap_or_else(|| host.to_owned());
    let mut builder = TlsParameters::builder(name).dangerous_accept_invalid_certs(config.insecure_skip_verify);
    if let Some(source) = &config.ca {
        let pem = secret(source).await?;
        if !pem.expose().contains("-----BEGIN CERTIFICATE-----") {
            return Err(bad(&"`ca` or `ca_file` has no certificate in PEM"));
        }
        let certificate = Certificate::from_pem(pem.expose().as_bytes()).map_err(|error| bad(&error))?;
        builder = builder.add_root_certificate(certificate);
    }
    builder.build().map_err(|error| bad(&error))
}

/// What a failure means. That a server offers no TLS, or has a certificate that is not trusted, is healed by
/// somebody who changes a configuration, and who must hear of it now, not when time has run out.
fn failure(host: &str, error: &lettre::transport::smtp::Error) -> SendFailure {
    let mut reason = error.to_string();
    let mut certificate = false;
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let text = inner.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        let tls = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        certificate |= tls.is_some_and(|tls| {
            matches!(
                tls.downcast_ref(),
                Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
            )
        });
        source = inner.source();
    }
    if error.is_client() && reason.contains("STARTTLS") {
        reason = format!("{reason}; only with `require_tls: false` is it sent without TLS");
    }
    if certificate {
        reason = format!("{reason}; `tls_config` says whom else to trust (`ca_file`, `server_name`)");
    }
    let permanent = error.is_permanent() || error.is_client() || certificate;
    SendFailure { message: format!("{host}: {reason}"), retryable: !permanent, retry_after: None }
}
