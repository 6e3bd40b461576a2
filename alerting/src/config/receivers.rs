//! Receivers: where messages go, and the defaults of `global`.
//!
//! Four kinds send: Slack, email, PagerDuty and webhooks. The others that Alertmanager has are kept by
//! name, so that `check` reports them and a message to one fails visibly. Not here: sending.

use std::time::Duration;

use super::Problem;
use super::reader::{Fields, Reader};
use super::yaml::{Node, Place};
use crate::digest::DailyTime;
use crate::interval;
use crate::secret::{Secret, SecretSource};
use crate::template::Templates;

/// A named list of destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// The name routes use.
    pub name: String,
    /// Its destinations, kind by kind in the order of [`Integration::kind`]'s names in the file.
    pub integrations: Vec<Integration>,
}

/// One destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Integration {
    /// Slack's incoming webhook or Web API.
    Slack(Box<SlackConfig>),
    /// SMTP.
    Email(Box<EmailConfig>),
    /// PagerDuty Events v2.
    PagerDuty(Box<PagerDutyConfig>),
    /// An HTTP POST of Alertmanager's payload.
    Webhook(Box<WebhookConfig>),
    /// A kind that Alertmanager has and this crate does not send to.
    Unsupported {
        /// The key's name without `_configs`.
        kind: &'static str,
        /// Whether the end of alerts would be told.
        send_resolved: bool,
    },
}

impl Integration {
    /// The kind as in channel names: `slack`, `email`, `pagerduty`, `webhook` or the unsupported one's.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Slack(_) => "slack",
            Self::Email(_) => "email",
            Self::PagerDuty(_) => "pagerduty",
            Self::Webhook(_) => "webhook",
            Self::Unsupported { kind, .. } => kind,
        }
    }

    /// Whether the end of alerts is told.
    #[must_use]
    pub fn send_resolved(&self) -> bool {
        match self {
            Self::Slack(slack) => slack.send_resolved,
            Self::Email(email) => email.send_resolved,
            Self::PagerDuty(pagerduty) => pagerduty.send_resolved,
            Self::Webhook(webhook) => webhook.send_resolved,
            Self::Unsupported { send_resolved, .. } => *send_resolved,
        }
    }

    /// When what is to be told is told, if not at once.
    #[must_use]
    pub fn digest(&self) -> Option<&DailyTime> {
        match self {
            Self::Email(email) => email.digest.as_ref(),
            _ => None,
        }
    }
}

/// How a request proves who sends it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Authentication {
    /// Not at all.
    #[default]
    None,
    /// User name and password.
    Basic {
        /// The user.
        username: String,
        /// The password, if there is one.
        password: Option<SecretSource>,
    },
    /// `Authorization: SCHEME CREDENTIALS`.
    Scheme {
        /// Usually `Bearer`.
        scheme: String,
        /// What follows it.
        credentials: SecretSource,
    },
}

/// What of `http_config` has an effect.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HttpConfig {
    /// How a request proves who sends it.
    pub authentication: Authentication,
    /// Headers added to each request; their values may be secrets.
    pub headers: Vec<(String, Secret)>,
}

/// A Slack destination. Texts are templates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are Alertmanager's, by its names")]
pub struct SlackConfig {
    pub send_resolved: bool,
    pub http: HttpConfig,
    /// The incoming webhook, or the Web API's `chat.postMessage` when there is a token.
    pub api_url: SecretSource,
    /// A bot's token: messages go through the Web API and are updated in place.
    pub app_token: Option<SecretSource>,
    /// Whether a group's message is updated in place (needs the token).
    pub update_message: bool,
    pub channel: String,
    pub username: String,
    pub icon_emoji: String,
    pub icon_url: String,
    pub link_names: bool,
    pub color: String,
    pub title: String,
    pub title_link: String,
    pub pretext: String,
    pub text: String,
    pub fallback: String,
    pub footer: String,
    pub fields: Vec<Field>,
    pub short_fields: bool,
    pub image_url: String,
    pub thumb_url: String,
    pub timeout: Option<Duration>,
}

/// A pair shown in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are Alertmanager's, by its names")]
pub struct Field {
    pub title: String,
    pub value: String,
    pub short: Option<bool>,
}

/// What of `tls_config` has an effect: for SMTP.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TlsConfig {
    /// Certificates in PEM to trust besides those that the world trusts; a file has at most 64 KiB.
    pub ca: Option<SecretSource>,
    /// The name that the server's certificate must have, if not its host's.
    pub server_name: Option<String>,
    /// Whether any certificate is good.
    pub insecure_skip_verify: bool,
}

/// An SMTP destination. Texts are templates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are Alertmanager's, by its names")]
pub struct EmailConfig {
    pub send_resolved: bool,
    pub to: String,
    pub from: String,
    pub hello: String,
    /// `host:port`.
    pub smarthost: String,
    pub auth_username: String,
    pub auth_password: Option<SecretSource>,
    /// Whether a server without STARTTLS is refused.
    pub require_tls: bool,
    /// TLS from the first byte; port 465 means it as well.
    pub implicit_tls: bool,
    pub tls: TlsConfig,
    pub headers: Vec<(String, String)>,
    pub html: String,
    pub text: String,
    /// Messages are collected and sent as one at this time of every day. This key is ours.
    pub digest: Option<DailyTime>,
}

/// A PagerDuty service. Texts are templates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are Alertmanager's, by its names")]
pub struct PagerDutyConfig {
    pub send_resolved: bool,
    pub http: HttpConfig,
    pub routing_key: SecretSource,
    pub url: String,
    pub client: String,
    pub client_url: String,
    pub description: String,
    pub severity: String,
    pub source: String,
    pub class: String,
    pub component: String,
    pub group: String,
    pub details: Vec<(String, String)>,
    /// `href`, `text`.
    pub links: Vec<(String, String)>,
    /// `src`, `href`, `alt`.
    pub images: Vec<(String, String, String)>,
    pub timeout: Option<Duration>,
}

/// An HTTP destination.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are Alertmanager's, by its names")]
pub struct WebhookConfig {
    pub send_resolved: bool,
    pub http: HttpConfig,
    pub url: SecretSource,
    /// At most so many alerts a message; 0 is no limit.
    pub max_alerts: u64,
    pub timeout: Option<Duration>,
    /// Signs bodies with HMAC-SHA256. This key is ours, Alertmanager has none.
    pub signing_secret: Option<SecretSource>,
}

/// Alertmanager's name of each kind that is not sent to.
const UNSUPPORTED: [&str; 16] = [
    "discord_configs",
    "incidentio_configs",
    "jira_configs",
    "mattermost_configs",
    "msteams_configs",
    "msteamsv2_configs",
    "opsgenie_configs",
    "pushover_configs",
    "rocketchat_configs",
    "sns_configs",
    "telegram_configs",
    "victorops_configs",
    "webex_configs",
    "wechat_configs",
    "zulip_configs",
    "zoom_configs",
];

/// Keys of `global` that serve kinds of receivers that are not sent to.
const UNSUPPORTED_GLOBAL: [&str; 23] = [
    "jira_api_url",
    "mattermost_webhook_url",
    "mattermost_webhook_url_file",
    "opsgenie_api_key",
    "opsgenie_api_key_file",
    "opsgenie_api_url",
    "rocketchat_api_url",
    "rocketchat_token",
    "rocketchat_token_file",
    "rocketchat_token_id",
    "rocketchat_token_id_file",
    "smtp_auth_identity",
    "smtp_auth_secret",
    "smtp_auth_secret_file",
    "telegram_api_url",
    "telegram_bot_token",
    "telegram_bot_token_file",
    "victorops_api_key",
    "victorops_api_key_file",
    "victorops_api_url",
    "webex_api_url",
    "wechat_api_corp_id",
    "wechat_api_url",
];

/// What `global` says.
pub(super) struct Defaults {
    pub(super) resolve_timeout: Duration,
    http: HttpConfig,
    slack_api_url: Option<SecretSource>,
    slack_app_token: Option<SecretSource>,
    pagerduty_url: String,
    smtp_from: Option<String>,
    smtp_hello: String,
    smtp_smarthost: Option<String>,
    smtp_auth_username: String,
    smtp_auth_password: Option<SecretSource>,
    smtp_require_tls: bool,
    smtp_implicit_tls: bool,
    smtp_tls: TlsConfig,
}

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const PAGERDUTY_URL: &str = "https://events.pagerduty.com/v2/enqueue";
const SLACK_POST_URL: &str = "https://slack.com/api/chat.postMessage";

impl Defaults {
    pub(super) fn read(reader: &mut Reader, node: Option<&Node>) -> Self {
        let empty = Node { at: Place { line: 1, column: 1, bytes: 0..0 }, value: super::yaml::Value::Map(Vec::new()) };
        let mut fields = reader.fields(node.unwrap_or(&empty), "global");
        let defaults = Self {
            resolve_timeout: fields.duration(reader, "resolve_timeout").unwrap_or(RESOLVE_TIMEOUT),
            http: read_http(reader, &mut fields).unwrap_or_default(),
            slack_api_url: fields.secret(reader, "slack_api_url", "slack_api_url_file"),
            slack_app_token: fields.secret(reader, "slack_app_token", "slack_app_token_file"),
            pagerduty_url: url(reader, &mut fields, "pagerduty_url").unwrap_or_else(|| PAGERDUTY_URL.to_owned()),
            smtp_from: fields.text(reader, "smtp_from"),
            smtp_hello: fields.text(reader, "smtp_hello").unwrap_or_else(|| "localhost".to_owned()),
            smtp_smarthost: fields.text(reader, "smtp_smarthost"),
            smtp_auth_username: fields.text(reader, "smtp_auth_username").unwrap_or_default(),
            smtp_auth_password: fields.secret(reader, "smtp_auth_password", "smtp_auth_password_file"),
            smtp_require_tls: fields.flag(reader, "smtp_require_tls").unwrap_or(true),
            smtp_implicit_tls: fields.flag(reader, "smtp_force_implicit_tls").unwrap_or(false),
            smtp_tls: read_tls(reader, &mut fields, "smtp_tls_config").unwrap_or_default(),
        };
        fields.ignored(&UNSUPPORTED_GLOBAL);
        fields.ignored(&["wechat_api_secret", "wechat_api_secret_file", "slack_app_url"]);
        // `ignored` secrets are secrets all the same.
        if let Some(super::yaml::Value::Map(entries)) = node.map(|node| &node.value) {
            for (key, value) in entries {
                if ["_key", "_token", "_secret", "_webhook_url"].iter().any(|end| key.text.ends_with(end)) {
                    reader.secrets.push(value.at.bytes.clone());
                }
            }
        }
        fields.finish(reader);
        defaults
    }
}

/// Warns that a key has no effect.
fn unsupported_parts(reader: &mut Reader, fields: &mut Fields<'_>, keys: &[&'static str]) {
    for (key, at) in fields.ignored(keys) {
        let message = format!("`{key}` has no effect: GodsEye does not support it yet");
        let path = fields.path_of(key);
        reader.problems.push(Problem::warning(&path, at, message));
    }
}

/// An address that must be one of HTTP.
fn url(reader: &mut Reader, fields: &mut Fields<'_>, key: &'static str) -> Option<String> {
    let node = fields.take(key)?;
    let text = fields.text(reader, key)?;
    check_url(reader, &fields.path_of(key), node, &text);
    Some(text)
}

fn check_url(reader: &mut Reader, path: &str, node: &Node, text: &str) {
    let good = url::Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if !good {
        // The address may be a secret: it is not quoted.
        reader.error(path, &node.at, "expected an address such as https://example.com/path");
    }
}

/// `tls_config` of SMTP, or `None` where it is not there and the global one holds.
fn read_tls(reader: &mut Reader, fields: &mut Fields<'_>, key: &'static str) -> Option<TlsConfig> {
    let node = fields.take(key)?;
    let mut tls = reader.fields(node, &fields.path_of(key));
    let config = TlsConfig {
        ca: tls.secret(reader, "ca", "ca_file"),
        server_name: tls.text(reader, "server_name").filter(|name| !name.is_empty()),
        insecure_skip_verify: tls.flag(reader, "insecure_skip_verify").unwrap_or(false),
    };
    if let Some(node) = tls.take("key") {
        reader.secrets.push(node.at.bytes.clone());
    }
    let parts = ["cert", "cert_file", "cert_ref", "key", "key_file", "key_ref", "ca_ref", "min_version", "max_version"];
    unsupported_parts(reader, &mut tls, &parts);
    tls.finish(reader);
    Some(config)
}

/// `http_config`, or `None` where it is not there and the global one holds.
fn read_http(reader: &mut Reader, fields: &mut Fields<'_>) -> Option<HttpConfig> {
    let node = fields.take("http_config")?;
    let mut http = reader.fields(node, &fields.path_of("http_config"));
    let mut kinds = Vec::new();
    if let Some(node) = http.take("basic_auth") {
        let mut basic = reader.fields(node, &http.path_of("basic_auth"));
        let username = basic.text(reader, "username").unwrap_or_default();
        let password = basic.secret(reader, "password", "password_file");
        unsupported_parts(reader, &mut basic, &["username_file"]);
        basic.finish(reader);
        kinds.push(Authentication::Basic { username, password });
    }
    if let Some(node) = http.take("authorization") {
        let mut authorization = reader.fields(node, &http.path_of("authorization"));
        let scheme = authorization.text(reader, "type").unwrap_or_else(|| "Bearer".to_owned());
        let credentials = authorization.secret(reader, "credentials", "credentials_file");
        authorization.finish(reader);
        kinds.extend(credentials.map(|credentials| Authentication::Scheme { scheme, credentials }));
    }
    if let Some(credentials) = http.secret(reader, "bearer_token", "bearer_token_file") {
        kinds.push(Authentication::Scheme { scheme: "Bearer".to_owned(), credentials });
    }
    if kinds.len() > 1 {
        let message = "`basic_auth`, `authorization` and `bearer_token` exclude each other";
        reader.error(&http.path, &node.at, message);
    }
    let mut headers = Vec::new();
    if let Some(node) = http.take("http_headers") {
        let path = http.path_of("http_headers");
        if let super::yaml::Value::Map(entries) = &node.value {
            for (key, value) in entries {
                let path = format!("{path}.{}", key.text);
                let mut header = reader.fields(value, &path);
                for value in header.texts(reader, "values") {
                    headers.push((key.text.clone(), Secret::new(value)));
                }
                if let Some(node) = header.take("secrets") {
                    reader.secrets.push(node.at.bytes.clone());
                    let secrets = header.texts(reader, "secrets");
                    headers.extend(secrets.into_iter().map(|value| (key.text.clone(), Secret::new(value))));
                }
                unsupported_parts(reader, &mut header, &["files"]);
                header.finish(reader);
                if http::HeaderName::try_from(key.text.as_str()).is_err() {
                    reader.error(&path, &key.at, "this is no name of a header");
                }
            }
        } else {
            reader.error(&path, &node.at, format!("expected a mapping, found {}", node.noun()));
        }
    }
    // Redirects are never followed and one protocol is enough: these change nothing that can be seen.
    http.ignored(&["follow_redirects", "enable_http2"]);
    let parts = ["oauth2", "proxy_url", "no_proxy", "proxy_from_environment", "proxy_connect_header", "tls_config"];
    unsupported_parts(reader, &mut http, &parts);
    http.finish(reader);
    Some(HttpConfig { authentication: kinds.pop().unwrap_or_default(), headers })
}

pub(super) fn read(reader: &mut Reader, node: &Node, path: &str, defaults: &Defaults) -> Option<Receiver> {
    let mut fields = reader.fields(node, path);
    let name = fields.required(reader, "name");
    let mut integrations = Vec::new();
    // The order in which Alertmanager builds them.
    let webhooks = fields.list(reader, "webhook_configs", |r, n, p| read_webhook(r, n, p, defaults));
    integrations.extend(webhooks.into_iter().map(|webhook| Integration::Webhook(Box::new(webhook))));
    let emails = fields.list(reader, "email_configs", |r, n, p| read_email(r, n, p, defaults));
    integrations.extend(emails.into_iter().map(|email| Integration::Email(Box::new(email))));
    let pagerduties = fields.list(reader, "pagerduty_configs", |r, n, p| read_pagerduty(r, n, p, defaults));
    integrations.extend(pagerduties.into_iter().map(|pagerduty| Integration::PagerDuty(Box::new(pagerduty))));
    let slacks = fields.list(reader, "slack_configs", |r, n, p| read_slack(r, n, p, defaults));
    integrations.extend(slacks.into_iter().map(|slack| Integration::Slack(Box::new(slack))));
    for key in UNSUPPORTED {
        let Some(node) = fields.take(key) else { continue };
        let path = fields.path_of(key);
        let kind = key.trim_end_matches("_configs");
        let message = format!("GodsEye does not send to {kind}: messages to it fail and are reported as failed");
        reader.problems.push(Problem::warning(&path, &node.at, message));
        // Its content may hold secrets, and is not shown.
        reader.secrets.push(node.at.bytes.clone());
        let count = reader.items(node, &path).len();
        integrations.extend((0..count).map(|_| Integration::Unsupported { kind, send_resolved: true }));
    }
    fields.finish(reader);
    Some(Receiver { name: name?, integrations })
}

fn read_webhook(reader: &mut Reader, node: &Node, path: &str, defaults: &Defaults) -> Option<WebhookConfig> {
    let mut fields = reader.fields(node, path);
    let url_node = fields.take("url");
    let url = fields.secret(reader, "url", "url_file");
    match (&url, url_node) {
        (Some(SecretSource::Inline(url)), Some(node)) => check_url(reader, &fields.path_of("url"), node, url.expose()),
        (None, None) => reader.error(path, &node.at, "`url` or `url_file` is missing"),
        _ => {}
    }
    let webhook = WebhookConfig {
        send_resolved: fields.flag(reader, "send_resolved").unwrap_or(true),
        http: read_http(reader, &mut fields).unwrap_or_else(|| defaults.http.clone()),
        url: url.unwrap_or_else(|| SecretSource::Inline(Secret::new(String::new()))),
        max_alerts: fields.number(reader, "max_alerts").unwrap_or(0),
        timeout: fields.duration(reader, "timeout").filter(|timeout| !timeout.is_zero()),
        signing_secret: fields.secret(reader, "signing_secret", "signing_secret_file"),
    };
    unsupported_parts(reader, &mut fields, &["payload"]);
    fields.finish(reader);
    Some(webhook)
}

/// A template, or its default.
fn template(reader: &mut Reader, fields: &mut Fields<'_>, key: &'static str, default: &str) -> String {
    let Some(node) = fields.take(key) else {
        return default.to_owned();
    };
    let text = fields.text(reader, key).unwrap_or_default();
    if let Err(error) = Templates::check(key, &text) {
        reader.error(&fields.path_of(key), &node.at, error.to_string());
    }
    text
}

/// `digest`: a time of the day in UTC, or a mapping of `at` and `location`.
fn read_digest(reader: &mut Reader, fields: &mut Fields<'_>) -> Option<DailyTime> {
    let node = fields.take("digest")?;
    let path = fields.path_of("digest");
    let (at, location) = match &node.value {
        super::yaml::Value::Scalar(..) => (reader.text(node, &path)?, String::new()),
        _ => {
            let mut digest = reader.fields(node, &path);
            let (at, location) = (digest.required(reader, "at"), digest.text(reader, "location"));
            digest.finish(reader);
            (at?, location.unwrap_or_default())
        }
    };
    let minute = interval::parse_minute(&at).map_err(|message| reader.error(&path, &node.at, message)).ok()?;
    let zone = interval::parse_location(&location).map_err(|message| reader.error(&path, &node.at, message)).ok()?;
    // 24:00 is the midnight that ends the day.
    Some(DailyTime { minute: minute % 1_440, zone })
}

fn read_email(reader: &mut Reader, node: &Node, path: &str, defaults: &Defaults) -> Option<EmailConfig> {
    let mut fields = reader.fields(node, path);
    let to = fields.required(reader, "to");
    let from = fields.text(reader, "from").or_else(|| defaults.smtp_from.clone());
    let smarthost = fields.text(reader, "smarthost").or_else(|| defaults.smtp_smarthost.clone());
    if from.is_none() {
        reader.error(path, &node.at, "`from` is missing, and so is `global.smtp_from`");
    }
    match &smarthost {
        None => reader.error(path, &node.at, "`smarthost` is missing, and so is `global.smtp_smarthost`"),
        Some(host) => {
            let good =
                host.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if !good {
                reader.error(path, &node.at, "`smarthost` must be a host and a port, such as mail.example.com:587");
            }
        }
    }
    let implicit = fields.flag(reader, "force_implicit_tls").unwrap_or(defaults.smtp_implicit_tls);
    let digest = read_digest(reader, &mut fields);
    // Who reads of the day wants to know what is over.
    let templates = if digest.is_some() { "digest" } else { "default" };
    let default = |part: &str| format!("{{{{ template \"email.{templates}.{part}\" . }}}}");
    let mut headers = fields.pairs(reader, "headers");
    if digest.is_some() && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("subject")) {
        headers.push(("Subject".to_owned(), default("subject")));
    }
    let email = EmailConfig {
        send_resolved: fields.flag(reader, "send_resolved").unwrap_or(digest.is_some()),
        to: to.unwrap_or_default(),
        from: from.unwrap_or_default(),
        hello: fields.text(reader, "hello").unwrap_or_else(|| defaults.smtp_hello.clone()),
        implicit_tls: implicit || smarthost.as_ref().is_some_and(|host| host.ends_with(":465")),
        smarthost: smarthost.unwrap_or_default(),
        auth_username: template(reader, &mut fields, "auth_username", &defaults.smtp_auth_username),
        auth_password: fields
            .secret(reader, "auth_password", "auth_password_file")
            .or_else(|| defaults.smtp_auth_password.clone()),
        require_tls: fields.flag(reader, "require_tls").unwrap_or(defaults.smtp_require_tls),
        tls: read_tls(reader, &mut fields, "tls_config").unwrap_or_else(|| defaults.smtp_tls.clone()),
        headers,
        html: template(reader, &mut fields, "html", &default("html")),
        text: template(reader, &mut fields, "text", &default("text")),
        digest,
    };
    for (name, _) in &email.headers {
        if http::HeaderName::try_from(name.as_str()).is_err() {
            reader.error(&fields.path_of("headers"), &node.at, format!("{name:?} is no name of a header"));
        }
    }
    // Messages of a group are always threaded.
    fields.ignored(&["threading"]);
    for secret in ["auth_secret", "auth_secret_file"] {
        if let Some(node) = fields.take(secret) {
            reader.secrets.push(node.at.bytes.clone());
            let message = format!("`{secret}` (CRAM-MD5) has no effect: use `auth_password`");
            let path = fields.path_of(secret);
            reader.problems.push(Problem::warning(&path, &node.at, message));
        }
    }
    unsupported_parts(reader, &mut fields, &["auth_identity"]);
    fields.finish(reader);
    Some(email)
}

fn read_pagerduty(reader: &mut Reader, node: &Node, path: &str, defaults: &Defaults) -> Option<PagerDutyConfig> {
    let mut fields = reader.fields(node, path);
    let routing_key = fields.secret(reader, "routing_key", "routing_key_file");
    let service_key = fields.secret(reader, "service_key", "service_key_file");
    let key = match (routing_key, service_key) {
        (Some(_), Some(_)) => {
            reader.error(path, &node.at, "`routing_key` and `service_key` exclude each other");
            None
        }
        (None, None) => {
            reader.error(path, &node.at, "`routing_key` is missing");
            None
        }
        (None, Some(key)) => {
            let message = "`service_key` is of the Events API v1, which is not supported: use `routing_key`";
            reader.problems.push(Problem::warning(path, &node.at, message.to_owned()));
            Some(key)
        }
        (key, None) => key,
    };
    let mut details = fields.pairs(reader, "details");
    for (name, text) in [
        ("firing", r#"{{ template "pagerduty.default.instances" .Alerts.Firing }}"#),
        ("resolved", r#"{{ template "pagerduty.default.instances" .Alerts.Resolved }}"#),
        ("num_firing", "{{ .Alerts.Firing | len }}"),
        ("num_resolved", "{{ .Alerts.Resolved | len }}"),
    ] {
        if !details.iter().any(|(key, _)| key == name) {
            details.push((name.to_owned(), text.to_owned()));
        }
    }
    let client = template(reader, &mut fields, "client", r#"{{ template "pagerduty.default.client" . }}"#);
    let pagerduty = PagerDutyConfig {
        send_resolved: fields.flag(reader, "send_resolved").unwrap_or(true),
        http: read_http(reader, &mut fields).unwrap_or_else(|| defaults.http.clone()),
        routing_key: key.unwrap_or_else(|| SecretSource::Inline(Secret::new(String::new()))),
        url: url(reader, &mut fields, "url").unwrap_or_else(|| defaults.pagerduty_url.clone()),
        source: template(reader, &mut fields, "source", &client),
        client,
        client_url: template(reader, &mut fields, "client_url", r#"{{ template "pagerduty.default.clientURL" . }}"#),
        description: template(
            reader,
            &mut fields,
            "description",
            r#"{{ template "pagerduty.default.description" . }}"#,
        ),
        severity: template(reader, &mut fields, "severity", r#"{{ template "pagerduty.default.severity" . }}"#),
        class: template(reader, &mut fields, "class", ""),
        component: template(reader, &mut fields, "component", ""),
        group: template(reader, &mut fields, "group", ""),
        details,
        links: fields.list(reader, "links", |reader, node, path| {
            let mut link = reader.fields(node, path);
            let (href, text) = (link.required(reader, "href"), link.text(reader, "text"));
            link.finish(reader);
            Some((href?, text.unwrap_or_default()))
        }),
        images: fields.list(reader, "images", |reader, node, path| {
            let mut image = reader.fields(node, path);
            let src = image.required(reader, "src");
            let (href, alt) = (image.text(reader, "href"), image.text(reader, "alt"));
            image.finish(reader);
            Some((src?, href.unwrap_or_default(), alt.unwrap_or_default()))
        }),
        timeout: fields.duration(reader, "timeout").filter(|timeout| !timeout.is_zero()),
    };
    fields.finish(reader);
    Some(pagerduty)
}

fn read_slack(reader: &mut Reader, node: &Node, path: &str, defaults: &Defaults) -> Option<SlackConfig> {
    let mut fields = reader.fields(node, path);
    let url_node = fields.take("api_url");
    let own_url = fields.secret(reader, "api_url", "api_url_file");
    if let (Some(SecretSource::Inline(url)), Some(node)) = (&own_url, url_node) {
        check_url(reader, &fields.path_of("api_url"), node, url.expose());
    }
    let own_token = fields.secret(reader, "app_token", "app_token_file");
    // A webhook of its own wins over a global token: it is the nearer word.
    let app_token = own_token.or_else(|| if own_url.is_none() { defaults.slack_app_token.clone() } else { None });
    let post = || SecretSource::Inline(Secret::new(SLACK_POST_URL.to_owned()));
    let api_url = match (&app_token, own_url) {
        (_, Some(url)) => Some(url),
        (Some(_), None) => fields
            .text(reader, "app_url")
            .map_or_else(|| Some(post()), |url| Some(SecretSource::Inline(Secret::new(url)))),
        (None, None) => defaults.slack_api_url.clone(),
    };
    if api_url.is_none() {
        reader.error(path, &node.at, "`api_url` is missing, and so is `global.slack_api_url`");
    }
    let default = |name: &str| format!("{{{{ template \"slack.default.{name}\" . }}}}");
    let text = |reader: &mut Reader, fields: &mut Fields<'_>, key: &'static str| {
        template(
            reader,
            fields,
            key,
            &default(match key {
                "title_link" => "titlelink",
                "icon_emoji" => "iconemoji",
                "icon_url" => "iconurl",
                other => other,
            }),
        )
    };
    let slack = SlackConfig {
        send_resolved: fields.flag(reader, "send_resolved").unwrap_or(false),
        http: read_http(reader, &mut fields).unwrap_or_else(|| defaults.http.clone()),
        update_message: fields.flag(reader, "update_message").unwrap_or(app_token.is_some()),
        app_token,
        api_url: api_url.unwrap_or_else(post),
        channel: template(reader, &mut fields, "channel", ""),
        username: text(reader, &mut fields, "username"),
        icon_emoji: text(reader, &mut fields, "icon_emoji"),
        icon_url: text(reader, &mut fields, "icon_url"),
        link_names: fields.flag(reader, "link_names").unwrap_or(false),
        color: template(reader, &mut fields, "color", r#"{{ template "slack.default.color" . }}"#),
        title: text(reader, &mut fields, "title"),
        title_link: text(reader, &mut fields, "title_link"),
        pretext: text(reader, &mut fields, "pretext"),
        text: text(reader, &mut fields, "text"),
        fallback: text(reader, &mut fields, "fallback"),
        footer: text(reader, &mut fields, "footer"),
        short_fields: fields.flag(reader, "short_fields").unwrap_or(false),
        fields: fields.list(reader, "fields", |reader, node, path| {
            let mut field = reader.fields(node, path);
            let (title, value) = (field.required(reader, "title"), field.required(reader, "value"));
            let short = field.flag(reader, "short");
            field.finish(reader);
            Some(Field { title: title?, value: value?, short })
        }),
        image_url: template(reader, &mut fields, "image_url", ""),
        thumb_url: template(reader, &mut fields, "thumb_url", ""),
        timeout: fields.duration(reader, "timeout").filter(|timeout| !timeout.is_zero()),
    };
    if slack.app_token.is_some() && slack.channel.is_empty() {
        reader.error(path, &node.at, "`channel` is missing: with `app_token` it says where messages go");
    }
    // Meaningless with the fields above; `mrkdwn_in` is always what it needs to be.
    fields.ignored(&["callback_id", "mrkdwn_in", "message_text", "app_url"]);
    unsupported_parts(reader, &mut fields, &["actions"]);
    fields.finish(reader);
    Some(slack)
}
