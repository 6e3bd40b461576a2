//! A [`Config`] as YAML, complete, with secrets masked: what `godseye` shows when asked what it runs
//! with. Read back, it gives the same configuration, except for the tokens.

use super::schema::{Visitor, visit};
use super::secret::MASK;
use super::units::{ByteSize, Interval};
use super::{Config, Secret, Token};
use model::tenant::TenantId;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Renders every key in the schema's order.
pub(super) fn render(config: &Config) -> String {
    let mut renderer = Renderer { text: String::new(), depth: 0 };
    // The walk wants to be able to fill values in, so it gets a copy.
    visit(&mut config.clone(), &mut renderer);
    renderer.text
}

struct Renderer {
    text: String,
    depth: usize,
}

impl Renderer {
    fn line(&mut self, line: &str) {
        self.text.push_str(&"  ".repeat(self.depth));
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn pair(&mut self, key: &str, value: &str) {
        self.line(&format!("{key}: {value}"));
    }
}

/// A text as a double-quoted scalar, whose escapes are JSON's, with dollar signs that start no reference.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text.replace('$', "$$")).to_string()
}

impl Visitor for Renderer {
    fn section(&mut self, key: &'static str, body: &mut dyn FnMut(&mut dyn Visitor)) {
        self.line(&format!("{key}:"));
        self.depth += 1;
        body(self);
        self.depth -= 1;
    }
    fn bytes(&mut self, key: &'static str, value: &mut ByteSize, _: RangeInclusive<u64>) {
        self.pair(key, &value.to_string());
    }
    fn interval(&mut self, key: &'static str, value: &mut Interval, _: RangeInclusive<u64>) {
        self.pair(key, &value.to_string());
    }
    fn count(&mut self, key: &'static str, value: &mut u64, _: RangeInclusive<u64>) {
        self.pair(key, &value.to_string());
    }
    fn flag(&mut self, key: &'static str, value: &mut bool) {
        self.pair(key, &value.to_string());
    }
    fn address(&mut self, key: &'static str, value: &mut SocketAddr) {
        // Quoted, since an IPv6 address begins with a bracket.
        self.pair(key, &quoted(&value.to_string()));
    }
    fn directory(&mut self, key: &'static str, value: &mut PathBuf) {
        self.pair(key, &quoted(&value.to_string_lossy()));
    }
    fn file(&mut self, key: &'static str, value: &mut Option<PathBuf>) {
        self.pair(key, &value.as_ref().map_or_else(|| "null".to_owned(), |path| quoted(&path.to_string_lossy())));
    }
    fn files(&mut self, key: &'static str, value: &mut Vec<PathBuf>) {
        let paths: Vec<String> = value.iter().map(|path| quoted(&path.to_string_lossy())).collect();
        self.pair(key, &format!("[{}]", paths.join(", ")));
    }
    fn url(&mut self, key: &'static str, value: &mut Option<String>) {
        self.pair(key, &value.as_ref().map_or_else(|| "null".to_owned(), |url| quoted(url)));
    }
    fn text(&mut self, key: &'static str, value: &mut String) {
        self.pair(key, &quoted(value));
    }
    fn name(&mut self, key: &'static str, value: &mut Option<String>) {
        self.pair(key, &value.as_ref().map_or_else(|| "null".to_owned(), |name| quoted(name)));
    }
    fn secret(&mut self, key: &'static str, value: &mut Option<Secret>) {
        self.pair(key, &value.as_ref().map_or_else(|| "null".to_owned(), |_| quoted(MASK)));
    }
    fn tenant(&mut self, key: &'static str, value: &mut TenantId) {
        self.pair(key, &quoted(value.as_str()));
    }
    fn choice(&mut self, key: &'static str, names: &'static [&'static str], chosen: &mut usize) {
        self.pair(key, names.get(*chosen).unwrap_or(&""));
    }
    fn tokens(&mut self, key: &'static str, value: &mut Vec<Token>) {
        if value.is_empty() {
            self.pair(key, "[]");
            return;
        }
        self.line(&format!("{key}:"));
        for token in value {
            let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.name()).collect();
            self.line(&format!("  - token: {}", quoted(MASK)));
            self.line(&format!("    tenant: {}", quoted(token.tenant.as_str())));
            self.line(&format!("    scopes: [{}]", scopes.join(", ")));
        }
    }
}
