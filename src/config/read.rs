//! From a tree to a [`Config`]: walks the schema over the tree, takes what is right, reports what is
//! not, and carries on, so that one run shows every mistake. The rules between keys come last.
//!
//! Values under `auth` and values from references are never quoted in a message.

use super::expand::{is_world_readable, read_file};
use super::mask::is_near_auth_key;
use super::report::{DIAGNOSTICS_MAX, Finding, Place, quote};
use super::schema::{self, Visitor, join};
use super::secret::{MASK, Secret};
use super::suggest::closest;
use super::units::{self, ByteSize, Interval, Refusal};
use super::yaml::{Key, Node, Scalar, Value};
use super::{Config, Scope, Token, defaults};
use model::tenant::TenantId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// A bearer token shorter than this can be guessed by trying.
const TOKEN_CHARS_MIN: usize = 16;

/// What a tenant looks like.
const TENANT_EXPECTED: &str = "expected 1 to 64 of a-z, 0-9, - and _, starting with a letter or digit";

/// Where each key's value stands, by dotted path: the rules between keys point there.
pub(super) type Places = BTreeMap<String, Place>;

/// What reading adds to.
pub(super) struct Reading<'a> {
    pub(super) findings: &'a mut Vec<Finding>,
    pub(super) places: &'a mut Places,
    /// The file can be read by every user, which matters once it holds a token.
    pub(super) is_world_readable: bool,
}

/// Reads the tree of one source into `config`, over what is there already.
pub(super) fn read(tree: &Node, config: &mut Config, reading: &mut Reading<'_>) {
    let Value::Map(entries) = &tree.value else {
        let message = format!("the configuration is {}", tree.value.noun());
        let at = match &tree.value {
            Value::List(_) => Place { end: tree.at.start + 1, ..tree.at.clone() },
            _ => tree.at.clone(),
        };
        reading.findings.push(Finding::error(at, &message, "expected keys such as `data_dir:` and `receivers:`"));
        return;
    };
    let mut reader = Reader::new(entries, String::new(), reading);
    schema::visit(config, &mut reader);
    reader.finish();
}

/// Reads one mapping.
struct Reader<'a, 'r> {
    entries: &'a [(Key, Node)],
    path: String,
    asked: Vec<&'static str>,
    reading: &'a mut Reading<'r>,
}

impl<'a, 'r> Reader<'a, 'r> {
    fn new(entries: &'a [(Key, Node)], path: String, reading: &'a mut Reading<'r>) -> Self {
        Self { entries, path, asked: Vec::new(), reading }
    }

    fn report(&mut self, finding: Finding) {
        self.reading.findings.push(finding);
    }

    /// The entry of a key, which thereby becomes a known one.
    fn take(&mut self, key: &'static str) -> Option<(&'a Key, &'a Node)> {
        self.asked.push(key);
        let entries = self.entries;
        let (key, node) = entries.iter().find(|(candidate, _)| candidate.text == key)?;
        self.reading.places.insert(join(&self.path, &key.text), spot(key, node));
        Some((key, node))
    }

    fn wrong_kind(&mut self, key: &Key, node: &Node, expected: &str) {
        let path = quote(&join(&self.path, &key.text));
        let finding = if node.value.noun() == "nothing" {
            Finding::error(key.at.clone(), &format!("{path} has no value"), expected)
                .help("give it one, or remove the key")
        } else {
            Finding::error(spot(key, node), &format!("{path} is {}", node.value.noun()), expected)
        };
        self.report(finding);
    }

    /// Whether a key says `null`, which thereby is read.
    fn take_null(&mut self, key: &'static str) -> bool {
        let entry = self.entries.iter().find(|(candidate, _)| candidate.text == key);
        let is_null = entry.is_some_and(|(_, node)| matches!(&node.value, Value::Scalar(scalar) if scalar.is_null()));
        if is_null {
            self.take(key);
        }
        is_null
    }

    /// The scalar of a key, or nothing if it is absent, or wrong and reported.
    fn scalar(&mut self, key: &'static str, expected: &str) -> Option<(&'a Scalar, &'a Place)> {
        let (key, node) = self.take(key)?;
        match &node.value {
            Value::Scalar(scalar) if scalar.broken => None,
            Value::Scalar(scalar) if !scalar.is_null() => Some((scalar, &node.at)),
            _ => {
                self.wrong_kind(key, node, expected);
                None
            }
        }
    }

    fn refuse(&mut self, key: &str, scalar: &Scalar, at: &Place, noun: &str, refusal: Refusal) {
        let path = quote(&join(&self.path, key));
        let message = format!("{path}: {} is not {noun}", shown(scalar));
        let mut finding = Finding::error(at.clone(), &message, &refusal.expected);
        // The correction repeats the value, so it is for values that may be shown.
        finding.help = refusal.help.filter(|_| !scalar.referenced);
        self.report(finding);
    }

    fn out_of_range(&mut self, key: &str, scalar: &Scalar, at: &Place, size: &str, limits: (String, String)) {
        let path = quote(&join(&self.path, key));
        let message = format!("{path}: {} is too {size}", shown(scalar));
        self.report(Finding::error(at.clone(), &message, &format!("expected {} to {}", limits.0, limits.1)));
    }

    /// Whether a text can be a path; reported if not.
    fn is_path(&mut self, key: &str, text: &str, at: &Place, expected: &str) -> bool {
        let wrong = if text.trim().is_empty() {
            "empty"
        } else if text.contains('\0') {
            "a path with a zero byte"
        } else {
            return true;
        };
        let message = format!("{} is {wrong}", quote(&join(&self.path, key)));
        self.report(Finding::error(at.clone(), &message, expected));
        false
    }

    /// Checks a number against its limits.
    fn within(
        &mut self,
        key: &str,
        (scalar, at): (&Scalar, &Place),
        number: u64,
        allowed: &RangeInclusive<u64>,
        show: &dyn Fn(u64) -> String,
    ) -> bool {
        let size = match number {
            n if n < *allowed.start() => "small",
            n if n > *allowed.end() => "large",
            _ => return true,
        };
        self.out_of_range(key, scalar, at, size, (show(*allowed.start()), show(*allowed.end())));
        false
    }

    /// Reports duplicate and unknown keys, once all known ones have been asked for.
    fn finish(mut self) {
        let mut first: BTreeMap<&str, &Key> = BTreeMap::new();
        for (key, _) in self.entries {
            if let Some(earlier) = first.get(key.text.as_str()) {
                self.duplicate(key, earlier);
                continue;
            }
            first.insert(&key.text, key);
            if !self.asked.contains(&key.text.as_str()) {
                self.unknown(key);
            }
        }
    }

    fn may_be_named(&self, key: &str) -> bool {
        !self.path.starts_with("auth") || is_near_auth_key(key)
    }

    fn duplicate(&mut self, key: &Key, earlier: &Key) {
        let message = if self.may_be_named(&key.text) {
            format!("duplicate key {}", quote(&key.text))
        } else {
            "duplicate key".to_owned()
        };
        let mut finding = Finding::error(key.at.clone(), &message, "expected each key once");
        finding.first = Some(earlier.at.clone());
        self.report(finding);
    }

    fn unknown(&mut self, key: &Key) {
        let known = if self.asked.is_empty() {
            "no key is expected here".to_owned()
        } else {
            format!("expected one of: {}", self.asked.join(", "))
        };
        let named = if self.may_be_named(&key.text) { format!(" {}", quote(&key.text)) } else { String::new() };
        let place = if self.path.is_empty() { String::new() } else { format!(" in {}", quote(&self.path)) };
        let mut finding = Finding::error(key.at.clone(), &format!("unknown key{named}{place}"), &known);
        if self.reading.findings.len() < DIAGNOSTICS_MAX {
            finding.help = self.suggestion(key);
        }
        self.report(finding);
    }

    /// What the writer of an unknown key may have meant.
    fn suggestion(&self, key: &Key) -> Option<String> {
        if key.text == "<<" {
            return Some("merge keys are not read: write the keys out, or use an alias for a whole value".to_owned());
        }
        if let Some(near) = closest(&key.text, &self.asked) {
            return Some(format!("did you mean `{near}`?"));
        }
        if self.path.is_empty()
            && matches!(key.text.as_str(), "exporters" | "processors" | "service" | "extensions" | "connectors")
        {
            return Some("this is no collector pipeline: what is received is stored here".to_owned());
        }
        // Right key, wrong section: show where it belongs, if there is only one such place.
        let suffix = format!(".{}", key.text);
        let paths = schema::paths();
        let mut elsewhere = paths.iter().filter(|path| **path == key.text || path.ends_with(&suffix));
        match (elsewhere.next(), elsewhere.next()) {
            (Some(path), None) => Some(format!("the key `{path}` exists; is it meant?")),
            _ => None,
        }
    }

    /// Reads one entry of `auth.tokens`.
    fn token(mut self, at: &Place) -> Option<(Token, Place)> {
        const EXPECTED: &str = "expected a token, such as ${env:GODSEYE_TOKEN}";
        let literal = self.scalar("token", EXPECTED);
        let file = self.scalar("token_file", "expected the path of a file that holds a token");
        let tenant = self.own_tenant();
        let scopes = self.scopes();
        let given = |key: &str| self.entries.iter().any(|(candidate, _)| candidate.text == key);
        let (has_token, has_file) = (given("token"), given("token_file"));
        if has_token == has_file {
            let message =
                if has_token { "a token with both `token` and `token_file`" } else { "a token without a value" };
            self.report(Finding::error(at.clone(), message, "expected exactly one of `token` and `token_file`"));
            self.finish();
            return None;
        }
        let secret = match (literal, file) {
            (Some((scalar, at)), _) => {
                for path in &scalar.files {
                    self.warn_if_world_readable(Path::new(path), at);
                }
                if !scalar.referenced && self.reading.is_world_readable {
                    self.report(
                        Finding::warning(
                            at.clone(),
                            "a token in a file that every user can read",
                            "can be read by others",
                        )
                        .help("chmod 600 the file, or write ${env:NAME} or ${file:/path}"),
                    );
                }
                Some((scalar.text.clone(), at.clone()))
            }
            (None, Some((scalar, at))) => match read_file(Path::new(&scalar.text)) {
                Ok(text) => {
                    self.warn_if_world_readable(Path::new(&scalar.text), at);
                    Some((text, at.clone()))
                }
                Err((message, expected)) => {
                    let message = if scalar.referenced { "the token's file cannot be read" } else { &message };
                    self.report(Finding::error(at.clone(), message, expected));
                    None
                }
            },
            (None, None) => None,
        };
        let secret = secret.and_then(|(text, at)| self.secret(&text, &at).map(|secret| (secret, at)));
        self.finish();
        let (secret, at) = secret?;
        Some((Token { secret, tenant: tenant?, scopes: scopes? }, at))
    }

    /// Checks what a token consists of.
    fn secret(&mut self, text: &str, at: &Place) -> Option<Secret> {
        let refused = if text.is_empty() {
            Some(("the token is empty", "expected a token", "an empty variable or file gives an empty token"))
        } else if text == MASK {
            Some((
                "the token is the mask shown in place of one",
                "expected the token itself",
                "this configuration was printed by godseye, which does not print secrets",
            ))
        } else if !text.chars().all(|c| c.is_ascii_graphic()) {
            Some((
                "the token has a character that an HTTP header cannot carry",
                "expected letters, digits and punctuation of ASCII, without spaces",
                "`openssl rand -hex 32` makes a good one",
            ))
        } else {
            None
        };
        if let Some((message, expected, help)) = refused {
            self.report(Finding::error(at.clone(), message, expected).help(help));
            return None;
        }
        if text.len() < TOKEN_CHARS_MIN {
            let expected = format!("expected at least {TOKEN_CHARS_MIN} characters");
            self.report(
                Finding::warning(at.clone(), "the token is short enough to be guessed", &expected)
                    .help("`openssl rand -hex 32` makes a good one"),
            );
        }
        Some(Secret::new(text.to_owned()))
    }

    fn warn_if_world_readable(&mut self, path: &Path, at: &Place) {
        if is_world_readable(path) {
            let message = format!("file {} can be read by every user", quote(&path.to_string_lossy()));
            self.report(Finding::warning(at.clone(), &message, "holds a secret").help("chmod 600 the file"));
        }
    }

    fn own_tenant(&mut self) -> Option<TenantId> {
        if !self.entries.iter().any(|(key, _)| key.text == "tenant") {
            self.asked.push("tenant");
            return TenantId::new(defaults::TENANT).ok();
        }
        let (scalar, at) = self.scalar("tenant", TENANT_EXPECTED)?;
        let tenant = TenantId::new(&scalar.text).ok();
        if tenant.is_none() {
            let refusal = Refusal { expected: TENANT_EXPECTED.to_owned(), help: None };
            self.refuse("tenant", scalar, at, "a tenant", refusal);
        }
        tenant
    }

    fn scopes(&mut self) -> Option<Vec<Scope>> {
        let expected = format!("expected a list of: {}", Scope::NAMES.join(", "));
        let Some((key, node)) = self.take("scopes") else {
            return Some(Scope::ALL.to_vec());
        };
        let Value::List(items) = &node.value else {
            self.wrong_kind(key, node, &expected);
            return None;
        };
        if items.is_empty() {
            self.report(Finding::error(key.at.clone(), "a token that may do nothing", &expected));
            return None;
        }
        let mut scopes = Vec::new();
        let mut all_good = true;
        for item in items {
            let scalar = match &item.value {
                Value::Scalar(scalar) if scalar.broken => {
                    all_good = false;
                    continue;
                }
                Value::Scalar(scalar) if !scalar.is_null() => scalar,
                _ => {
                    all_good = false;
                    self.wrong_kind(key, item, &expected);
                    continue;
                }
            };
            let known = Scope::NAMES.iter().position(|name| *name == scalar.text);
            match known.and_then(|index| Scope::ALL.get(index)) {
                Some(scope) if !scopes.contains(scope) => scopes.push(*scope),
                Some(_) => {}
                None => {
                    all_good = false;
                    let help = closest(&scalar.text, Scope::NAMES).map(|near| format!("did you mean `{near}`?"));
                    self.refuse("scopes", scalar, &item.at, "a scope", Refusal { expected: expected.clone(), help });
                }
            }
        }
        all_good.then_some(scopes)
    }
}

/// Where to point for an entry: at its value if that has a place of its own, else at its key.
fn spot(key: &Key, node: &Node) -> Place {
    match &node.value {
        Value::Scalar(scalar) if !scalar.is_null() => node.at.clone(),
        _ => key.at.clone(),
    }
}

/// A value as it may be shown.
fn shown(scalar: &Scalar) -> String {
    match scalar {
        Scalar { referenced: true, .. } => "the referenced value".to_owned(),
        Scalar { text, .. } if text.is_empty() => "an empty text".to_owned(),
        Scalar { text, .. } => quote(text),
    }
}

impl Visitor for Reader<'_, '_> {
    fn section(&mut self, key: &'static str, body: &mut dyn FnMut(&mut dyn Visitor)) {
        let Some((key, node)) = self.take(key) else {
            return;
        };
        match &node.value {
            Value::Map(entries) => {
                let path = join(&self.path, &key.text);
                let mut reader = Reader::new(entries, path, self.reading);
                body(&mut reader);
                reader.finish();
            }
            // `storage:` with everything below it commented out.
            Value::Scalar(scalar) if scalar.is_null() || scalar.broken => {}
            _ => self.wrong_kind(key, node, "expected keys below it"),
        }
    }

    fn bytes(&mut self, key: &'static str, value: &mut ByteSize, allowed: RangeInclusive<u64>) {
        let Some((scalar, at)) = self.scalar(key, "expected a size such as 64MiB") else {
            return;
        };
        match ByteSize::parse(&scalar.text) {
            Ok(size) => {
                if self.within(key, (scalar, at), size.0, &allowed, &|n| ByteSize(n).to_string()) {
                    *value = size;
                }
            }
            Err(refusal) => self.refuse(key, scalar, at, "a size", refusal),
        }
    }

    fn interval(&mut self, key: &'static str, value: &mut Interval, allowed_s: RangeInclusive<u64>) {
        let Some((scalar, at)) = self.scalar(key, "expected a duration such as 30s") else {
            return;
        };
        match Interval::parse(&scalar.text) {
            Ok(interval) => {
                let ms = u64::try_from(interval.0.as_millis()).unwrap_or(u64::MAX);
                let allowed = *allowed_s.start() * 1000..=*allowed_s.end() * 1000;
                let show = |ms: u64| Interval(std::time::Duration::from_millis(ms)).to_string();
                if self.within(key, (scalar, at), ms, &allowed, &show) {
                    *value = interval;
                }
            }
            Err(refusal) => self.refuse(key, scalar, at, "a duration", refusal),
        }
    }

    fn count(&mut self, key: &'static str, value: &mut u64, allowed: RangeInclusive<u64>) {
        const EXPECTED: &str = "expected a whole number";
        let Some((scalar, at)) = self.scalar(key, EXPECTED) else {
            return;
        };
        match units::parse_count(&scalar.text) {
            Some(number) => {
                if self.within(key, (scalar, at), number, &allowed, &|n| n.to_string()) {
                    *value = number;
                }
            }
            None => {
                let refusal = Refusal { expected: EXPECTED.to_owned(), help: None };
                self.refuse(key, scalar, at, "a whole number", refusal);
            }
        }
    }

    fn flag(&mut self, key: &'static str, value: &mut bool) {
        const EXPECTED: &str = "expected true or false";
        let Some((scalar, at)) = self.scalar(key, EXPECTED) else {
            return;
        };
        match scalar.text.as_str() {
            "true" => *value = true,
            "false" => *value = false,
            other => {
                let help = match other.to_ascii_lowercase().as_str() {
                    "yes" | "on" | "true" | "y" | "1" => Some("write `true`".to_owned()),
                    "no" | "off" | "false" | "n" | "0" => Some("write `false`".to_owned()),
                    _ => None,
                };
                self.refuse(key, scalar, at, "true or false", Refusal { expected: EXPECTED.to_owned(), help });
            }
        }
    }

    fn address(&mut self, key: &'static str, value: &mut SocketAddr) {
        let Some((scalar, at)) = self.scalar(key, "expected an address such as 127.0.0.1:4317") else {
            return;
        };
        match units::parse_address(&scalar.text) {
            Ok(address) => *value = address,
            Err(refusal) => self.refuse(key, scalar, at, "an address to listen on", refusal),
        }
    }

    fn directory(&mut self, key: &'static str, value: &mut PathBuf) {
        const EXPECTED: &str = "expected the path of a directory";
        let Some((scalar, at)) = self.scalar(key, EXPECTED) else {
            return;
        };
        let wrong = if scalar.text.trim().is_empty() {
            Some("empty")
        } else if scalar.text.contains('\0') {
            Some("a path with a zero byte")
        } else if Path::new(&scalar.text).is_file() {
            Some("a file")
        } else {
            None
        };
        match wrong {
            Some(what) => {
                let message = format!("{} is {what}", quote(&join(&self.path, key)));
                self.report(Finding::error(at.clone(), &message, EXPECTED));
            }
            None => *value = PathBuf::from(&scalar.text),
        }
    }

    fn file(&mut self, key: &'static str, value: &mut Option<PathBuf>) {
        const EXPECTED: &str = "expected the path of a file";
        let entry = self.entries.iter().find(|(candidate, _)| candidate.text == key);
        if entry.is_some_and(|(_, node)| matches!(&node.value, Value::Scalar(scalar) if scalar.is_null())) {
            self.take(key);
            *value = None;
            return;
        }
        let Some((scalar, at)) = self.scalar(key, EXPECTED) else {
            return;
        };
        if self.is_path(key, &scalar.text, at, EXPECTED) {
            *value = Some(PathBuf::from(&scalar.text));
        }
    }

    fn files(&mut self, key: &'static str, value: &mut Vec<PathBuf>) {
        const EXPECTED: &str = "expected a list of paths";
        let Some((key, node)) = self.take(key) else {
            return;
        };
        // One text is what a flag or a variable has: paths with colons between.
        let items: Vec<(&str, &Place)> = match &node.value {
            Value::Scalar(scalar) if scalar.broken => return,
            Value::Scalar(scalar) if !scalar.is_null() => {
                scalar.text.split(super::PATHS_SEPARATOR).map(|path| (path, &node.at)).collect()
            }
            Value::List(items) => {
                let mut paths = Vec::new();
                for item in items {
                    match &item.value {
                        Value::Scalar(scalar) if scalar.broken => return,
                        Value::Scalar(scalar) if !scalar.is_null() => paths.push((scalar.text.as_str(), &item.at)),
                        _ => return self.wrong_kind(key, item, EXPECTED),
                    }
                }
                paths
            }
            _ => return self.wrong_kind(key, node, EXPECTED),
        };
        let mut paths: Vec<PathBuf> = Vec::new();
        for (path, at) in items {
            if !self.is_path(&key.text, path, at, EXPECTED) {
                return;
            }
            if paths.iter().any(|known| known == Path::new(path)) {
                let message = format!("{} names a path twice", quote(&join(&self.path, &key.text)));
                self.report(Finding::error(at.clone(), &message, "expected each path once"));
                return;
            }
            paths.push(PathBuf::from(path));
        }
        *value = paths;
    }

    fn url(&mut self, key: &'static str, value: &mut Option<String>) {
        const EXPECTED: &str = "expected a web address such as https://godseye.example.com";
        let entry = self.entries.iter().find(|(candidate, _)| candidate.text == key);
        if entry.is_some_and(|(_, node)| matches!(&node.value, Value::Scalar(scalar) if scalar.is_null())) {
            self.take(key);
            *value = None;
            return;
        }
        let Some((scalar, at)) = self.scalar(key, EXPECTED) else {
            return;
        };
        let uri: Option<http::Uri> = scalar.text.parse().ok();
        let is_web = uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && uri.query().is_none()
        });
        if is_web {
            *value = Some(scalar.text.trim_end_matches('/').to_owned());
        } else {
            let refusal = Refusal { expected: EXPECTED.to_owned(), help: None };
            self.refuse(key, scalar, at, "a web address", refusal);
        }
    }

    fn urls(&mut self, key: &'static str, value: &mut Vec<String>) {
        const EXPECTED: &str = "expected a list of web addresses such as http://127.0.0.1:8123";
        let Some((key, node)) = self.take(key) else {
            return;
        };
        // One text is what a flag or a variable has: addresses with commas between.
        let items: Vec<(&Scalar, &str, &Place)> = match &node.value {
            Value::Scalar(scalar) if scalar.broken => return,
            Value::Scalar(scalar) if !scalar.is_null() => {
                scalar.text.split(super::URLS_SEPARATOR).map(|url| (scalar, url.trim(), &node.at)).collect()
            }
            Value::List(items) => {
                let mut urls = Vec::new();
                for item in items {
                    match &item.value {
                        Value::Scalar(scalar) if scalar.broken => return,
                        Value::Scalar(scalar) if !scalar.is_null() => urls.push((scalar, scalar.text.trim(), &item.at)),
                        _ => return self.wrong_kind(key, item, EXPECTED),
                    }
                }
                urls
            }
            _ => return self.wrong_kind(key, node, EXPECTED),
        };
        if items.is_empty() {
            let message = format!("{} is empty", quote(&join(&self.path, &key.text)));
            self.report(Finding::error(key.at.clone(), &message, EXPECTED));
            return;
        }
        let mut urls: Vec<String> = Vec::new();
        for (scalar, url, at) in items {
            let uri: Option<http::Uri> = url.parse().ok();
            let is_plain = uri.as_ref().is_some_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.host().is_some_and(|host| !host.is_empty())
                    && uri.query().is_none()
                    // A password in an address would be shown with it.
                    && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            });
            if !is_plain {
                let help = url.contains('@').then(|| "the user and the password have keys of their own".to_owned());
                let scalar = Scalar { referenced: scalar.referenced || url.contains('@'), ..scalar.clone() };
                let refusal = Refusal { expected: EXPECTED.to_owned(), help };
                self.refuse(&key.text, &scalar, at, "a web address", refusal);
                return;
            }
            let url = url.trim_end_matches('/').to_owned();
            if urls.contains(&url) {
                let message = format!("{} names an address twice", quote(&join(&self.path, &key.text)));
                self.report(Finding::error(at.clone(), &message, "expected each address once"));
                return;
            }
            urls.push(url);
        }
        *value = urls;
    }

    fn text(&mut self, key: &'static str, value: &mut String) {
        const EXPECTED: &str = "expected a name";
        let Some((scalar, at)) = self.scalar(key, EXPECTED) else {
            return;
        };
        if scalar.text.trim().is_empty() || scalar.text.contains(char::is_control) {
            let refusal = Refusal { expected: EXPECTED.to_owned(), help: None };
            self.refuse(key, scalar, at, "a name", refusal);
        } else {
            scalar.text.clone_into(value);
        }
    }

    fn name(&mut self, key: &'static str, value: &mut Option<String>) {
        if self.take_null(key) {
            *value = None;
            return;
        }
        let mut text = value.take().unwrap_or_default();
        self.text(key, &mut text);
        *value = (!text.is_empty()).then_some(text);
    }

    fn secret(&mut self, key: &'static str, value: &mut Option<Secret>) {
        if self.take_null(key) {
            *value = None;
            return;
        }
        let Some((scalar, at)) = self.scalar(key, "expected a text, such as ${env:PASSWORD}") else {
            return;
        };
        if scalar.text == MASK {
            let message = format!("{} is the mask shown in place of a secret", quote(&join(&self.path, key)));
            let finding = Finding::error(at.clone(), &message, "expected the secret itself");
            self.report(finding.help("this configuration was printed by godseye, which does not print secrets"));
            return;
        }
        for path in &scalar.files {
            self.warn_if_world_readable(Path::new(path), at);
        }
        if !scalar.referenced && self.reading.is_world_readable {
            let message = format!("{} in a file that every user can read", quote(&join(&self.path, key)));
            let finding = Finding::warning(at.clone(), &message, "can be read by others");
            self.report(finding.help("chmod 600 the file, or write ${env:NAME} or ${file:/path}"));
        }
        *value = (!scalar.text.is_empty()).then(|| Secret::new(scalar.text.clone()));
    }

    fn tenant(&mut self, key: &'static str, value: &mut TenantId) {
        let Some((scalar, at)) = self.scalar(key, TENANT_EXPECTED) else {
            return;
        };
        match TenantId::new(&scalar.text) {
            Ok(tenant) => *value = tenant,
            Err(_) => {
                let refusal = Refusal { expected: TENANT_EXPECTED.to_owned(), help: None };
                self.refuse(key, scalar, at, "a tenant", refusal);
            }
        }
    }

    fn choice(&mut self, key: &'static str, names: &'static [&'static str], chosen: &mut usize) {
        let expected = format!("expected one of: {}", names.join(", "));
        let Some((scalar, at)) = self.scalar(key, &expected) else {
            return;
        };
        match names.iter().position(|name| *name == scalar.text) {
            Some(index) => *chosen = index,
            None => {
                let near = closest(&scalar.text, names).or(match scalar.text.to_ascii_lowercase().as_str() {
                    "warning" if names.contains(&"warn") => Some("warn"),
                    _ => None,
                });
                let help = near.map(|near| format!("did you mean `{near}`?"));
                self.refuse(key, scalar, at, "known", Refusal { expected, help });
            }
        }
    }

    fn tokens(&mut self, key: &'static str, value: &mut Vec<Token>) {
        let Some((key, node)) = self.take(key) else {
            return;
        };
        let Value::List(items) = &node.value else {
            self.wrong_kind(key, node, "expected a list of tokens, each `- token: ...`");
            return;
        };
        let mut tokens: Vec<(Token, Place)> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Value::Map(entries) = &item.value else {
                let at = match &item.value {
                    Value::Scalar(scalar) if !scalar.is_null() => item.at.clone(),
                    _ => Place { end: item.at.start + 1, ..item.at.clone() },
                };
                let message = format!("a token is {}", item.value.noun());
                self.report(Finding::error(at, &message, "expected `token` or `token_file`, `tenant`, `scopes`"));
                continue;
            };
            let at = entries.first().map_or_else(|| item.at.clone(), |(first, _)| first.at.clone());
            let path = format!("{}[{index}]", join(&self.path, &key.text));
            let Some((token, at)) = Reader::new(entries, path, self.reading).token(&at) else {
                continue;
            };
            let twin = tokens.iter().position(|(other, _)| other.secret == token.secret);
            if let Some(twin) = twin {
                let message = if tokens[twin].0.tenant == token.tenant {
                    "the same token twice"
                } else {
                    "the same token for two tenants"
                };
                let mut finding = Finding::error(at, message, "expected a token of its own");
                finding.first = Some(tokens[twin].1.clone());
                self.report(finding);
                continue;
            }
            tokens.push((token, at));
        }
        *value = tokens.into_iter().map(|(token, _)| token).collect();
    }
}

/// The rules between keys.
pub(super) fn check_rules(config: &Config, reading: &mut Reading<'_>) {
    let protocols = &config.receivers.otlp.protocols;
    let endpoints = [
        ("receivers.otlp.protocols.grpc.endpoint", protocols.grpc.endpoint),
        ("receivers.otlp.protocols.http.endpoint", protocols.http.endpoint),
        ("http.endpoint", config.http.endpoint),
        ("pg.endpoint", config.pg.endpoint),
    ];
    let place = |path: &str| reading.places.get(path).cloned();
    let mut findings = Vec::new();
    for (index, (path, address)) in endpoints.iter().enumerate() {
        for (other_path, other) in &endpoints[..index] {
            if units::collide(*address, *other) {
                // The one set later is the one to change.
                let (blamed, spared) =
                    if place(path) >= place(other_path) { (path, other_path) } else { (other_path, path) };
                if let Some(at) = place(blamed) {
                    let message = format!("{} needs the port of {}", quote(blamed), quote(spared));
                    findings.push(Finding::error(at, &message, "expected an address of its own"));
                }
            }
        }
        let is_exposed = !address.ip().is_loopback();
        // An entry that is there but wrong has been reported; one mistake is one error.
        let has_tokens =
            !config.auth.tokens.is_empty() || reading.places.keys().any(|key| key.starts_with("auth.tokens["));
        if is_exposed
            && !has_tokens
            && let Some(at) = place(path)
        {
            let message = format!("{} can be reached from other machines, without any token", quote(path));
            findings.push(if config.auth.allow_unauthenticated {
                Finding::warning(at, &message, "anybody who reaches it may read and write")
            } else {
                Finding::error(at, &message, "expected a loopback address such as 127.0.0.1")
                    .help("add `auth.tokens`, or set `auth.allow_unauthenticated: true` on a network you trust")
            });
        }
    }
    if let Some(refusal) = crate::roles::problem(config)
        && let Some(at) = refusal.keys.iter().filter_map(|path| place(path)).max()
    {
        findings.push(Finding::error(at, &refusal.message, &refusal.expected));
    }
    let in_flight = config.limits.in_flight_bytes;
    for (path, request) in [
        ("receivers.otlp.protocols.grpc.max_request_bytes", protocols.grpc.max_request_bytes),
        ("receivers.otlp.protocols.http.max_request_bytes", protocols.http.max_request_bytes),
    ] {
        if request > in_flight
            && let Some(at) = place(path).max(place("limits.in_flight_bytes"))
        {
            let message = format!("{} ({request}) is more than `limits.in_flight_bytes` ({in_flight})", quote(path));
            findings.push(Finding::error(at, &message, "the largest request would never be let in"));
        }
    }
    let clickhouse = &config.storage.clickhouse;
    if clickhouse.urls.len() > 1
        && clickhouse.cluster.is_none()
        && let Some(at) = place("storage.clickhouse.urls")
    {
        let finding = Finding::error(at, "several ClickHouse servers without a cluster", "expected one address");
        findings.push(finding.help(
            "only replicas of one table know what another has: name their cluster in `storage.clickhouse.cluster`",
        ));
    }
    if clickhouse.ack == super::Ack::Replica
        && clickhouse.cluster.is_none()
        && let Some(at) = place("storage.clickhouse.ack")
    {
        findings.push(
            Finding::error(at, "`storage.clickhouse.ack`: there are no replicas without a cluster", "expected `fsync`")
                .help("name the cluster in `storage.clickhouse.cluster`"),
        );
    }
    reading.findings.append(&mut findings);
}
