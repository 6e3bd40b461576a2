//! The configuration against files that are good, bad and hostile.
//!
//! Every `tests/config/NAME.yaml` has its exact output beside it as `NAME.expected`; `UPDATE_EXPECT=1`
//! writes those anew, for review. Not here: how single sizes and durations are read (beside the code),
//! and what the binary does with a report.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use godseye::config::{Config, Diagnostic, Env, Overrides, Report, Severity, check, check_file, load};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// An environment of its own.
struct Variables(BTreeMap<&'static str, &'static str>);

impl Env for Variables {
    fn var(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|value| (*value).to_owned())
    }
}

fn variables(extra: &[(&'static str, &'static str)]) -> Variables {
    let common = [
        ("GODSEYE_TOKEN", "token-from-the-environment"),
        ("NAME", "godseye"),
        ("PORT", "14317"),
        ("EMPTY", ""),
        ("INJECTION", "/data\nlog: { level: trace }\nhttp: [${env:GODSEYE_TOKEN}]"),
        ("SECRET_VALUE", "hunter2hunter2hunter2"),
    ];
    Variables(common.into_iter().chain(extra.iter().copied()).collect())
}

fn render(diagnostics: Vec<Diagnostic>) -> String {
    Report { diagnostics }.to_string()
}

fn load_text(text: &str, overrides: &Overrides, env: &Variables) -> Result<(Config, Vec<Diagnostic>), Report> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("godseye.yaml");
    fs::write(&path, text).unwrap();
    private(&path);
    load(Some(&path), overrides, env)
}

#[cfg(unix)]
fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn private(path: &Path) {
    #[cfg(unix)]
    chmod(path, 0o600);
}

fn golden_inputs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut inputs: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn every_file_gets_exactly_its_diagnostics() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let (mut good, mut bad, mut differing) = (0, 0, Vec::new());
    for input in golden_inputs() {
        let text = fs::read_to_string(&input).unwrap();
        let name = input.file_stem().unwrap().to_str().unwrap();
        let env = variables(&[]);
        let diagnostics = check(&text, "godseye.yaml", &env);
        let is_good = diagnostics.is_empty();
        assert_eq!(is_good, name.starts_with("good-"), "{name}: {}", render(diagnostics));
        let output = if is_good {
            good += 1;
            load_text(&text, &Overrides::default(), &env).unwrap().0.render_masked()
        } else {
            bad += 1;
            render(diagnostics) + "\n"
        };
        assert!(!output.contains("hunter2"), "{name} shows a secret:\n{output}");
        assert!(output.lines().all(|line| line.chars().count() < 300), "{name} has an endless line:\n{output}");
        let expected = input.with_extension("expected");
        if update {
            fs::write(&expected, &output).unwrap();
        } else if fs::read_to_string(&expected).ok().as_deref() != Some(output.as_str()) {
            differing.push(format!("=== {name}\n{output}"));
        }
    }
    assert!(differing.is_empty(), "UPDATE_EXPECT=1 accepts these:\n{}", differing.join("\n"));
    assert!(good >= 5 && bad >= 20, "{good} good, {bad} bad: the files are not where they should be");
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let text = include_str!("../src/config/default.yaml");
    let (config, warnings) = load_text(text, &Overrides::default(), &variables(&[])).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(warnings, []);
    // And it documents every key: what it sets is all that rendering shows.
    let keys = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim_end).filter(|line| !line.trim_start().starts_with('#'));
        lines.filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect()
    };
    assert_eq!(keys(text), keys(&Config::default().render_masked()));
    assert!(text.starts_with('#') && text.matches('#').count() > 20, "the example explains itself");
}

#[test]
fn no_file_at_all_means_the_defaults() {
    let (config, warnings) = load(None, &Overrides::default(), &variables(&[])).unwrap();
    assert_eq!((config, warnings), (Config::default(), vec![]));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "data_dir: /file\nhttp: { endpoint: 127.0.0.1:1 }\nlog: { level: error, format: json }\n\
                receivers: { otlp: { protocols: { grpc: { endpoint: 127.0.0.1:2 }, http: { endpoint: 127.0.0.1:3 } } } }\n";
    let env = variables(&[
        ("GODSEYE_DATA_DIR", "/environment"),
        ("GODSEYE_HTTP", "127.0.0.1:11"),
        ("GODSEYE_OTLP_GRPC", "127.0.0.1:12"),
        ("GODSEYE_LOG_LEVEL", "debug"),
    ]);
    let overrides = Overrides {
        data_dir: Some(PathBuf::from("/flag/$HOME/${env:X}")),
        otlp_grpc: Some("127.0.0.1:22".to_owned()),
        ..Overrides::default()
    };
    let (config, _) = load_text(file, &overrides, &env).unwrap();
    let protocols = &config.receivers.otlp.protocols;
    assert_eq!(config.data_dir, PathBuf::from("/flag/$HOME/${env:X}"), "flags are not expanded");
    assert_eq!(protocols.grpc.endpoint.port(), 22, "flag over environment");
    assert_eq!(config.http.endpoint.port(), 11, "environment over file");
    assert_eq!(protocols.http.endpoint.port(), 3, "file over default");
    assert_eq!(config.log.level.name(), "debug");

    let all = Overrides {
        role: Some("writer".to_owned()),
        kafka_brokers: Some("a:9092,b:9092".to_owned()),
        data_dir: Some(PathBuf::from("/d")),
        otlp_grpc: Some("0.0.0.0:31".to_owned()),
        otlp_http: Some("127.0.0.1:32".to_owned()),
        http: Some("127.0.0.1:33".to_owned()),
        pg: Some("127.0.0.1:34".to_owned()),
        storage: Some("clickhouse".to_owned()),
        clickhouse_urls: vec!["http://a:1".to_owned()],
        alertmanager_config: Some("/am.yml".to_owned()),
        rules: vec!["/r1.yml".to_owned(), "/r2.yml".to_owned()],
        slos: vec!["/slos".to_owned()],
        log_level: Some("trace".to_owned()),
        log_format: Some("text".to_owned()),
        allow_unauthenticated: Some(true),
    };
    let (config, warnings) = load_text(file, &all, &env).unwrap();
    let mut want = Config { data_dir: PathBuf::from("/d"), ..Config::default() };
    want.role = godseye::config::Role::Writer;
    want.kafka.brokers = Some("a:9092,b:9092".to_owned());
    want.receivers.otlp.protocols.grpc.endpoint = "0.0.0.0:31".parse().unwrap();
    want.receivers.otlp.protocols.http.endpoint = "127.0.0.1:32".parse().unwrap();
    want.http.endpoint = "127.0.0.1:33".parse().unwrap();
    want.pg.endpoint = "127.0.0.1:34".parse().unwrap();
    want.storage.engine = godseye::config::Engine::ClickHouse;
    want.storage.clickhouse.urls = vec!["http://a:1".to_owned()];
    want.alerting.alertmanager_config = Some(PathBuf::from("/am.yml"));
    want.alerting.rules = vec![PathBuf::from("/r1.yml"), PathBuf::from("/r2.yml")];
    want.alerting.slos = vec![PathBuf::from("/slos")];
    want.log.level = godseye::config::LogLevel::Trace;
    want.auth.allow_unauthenticated = true;
    assert_eq!(config, want);
    assert_eq!(warnings.len(), 1, "open to the network without a token: {warnings:?}");
    assert_eq!(warnings[0].severity, Severity::Warning);
}

#[test]
fn a_bad_flag_or_variable_is_named() {
    let env = variables(&[("GODSEYE_HTTP", "8080"), ("GODSEYE_LOG_LEVEL", "")]);
    let overrides = Overrides {
        otlp_grpc: Some("localhost".to_owned()),
        otlp_http: Some("0.0.0.0:4318".to_owned()),
        data_dir: Some(PathBuf::new()),
        ..Overrides::default()
    };
    let report = load(None, &overrides, &env).unwrap_err();
    let text = report.to_string();
    for want in [
        "--> --data-dir (or GODSEYE_DATA_DIR)",
        "`data_dir` is empty",
        "--> --otlp-grpc (or GODSEYE_OTLP_GRPC)\n |\n | localhost\n | ^^^^^^^^^ expected an address with a port",
        "--> --otlp-http (or GODSEYE_OTLP_HTTP)",
        "can be reached from other machines, without any token",
        "--> GODSEYE_HTTP\n",
        "= help: write `127.0.0.1:8080`",
        "--> GODSEYE_LOG_LEVEL\n",
        "5 errors",
    ] {
        assert!(text.contains(want), "no {want:?} in:\n{text}");
    }
}

#[test]
fn a_file_that_cannot_be_used_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("large"), "# x\n".repeat(300_000)).unwrap();
    fs::write(path("binary"), b"data_dir: /a\nlog: \xff\xfe\n").unwrap();
    fs::write(path("bom"), "\u{feff}log: { level: loud }\n").unwrap();
    let rows = [
        ("missing", "the file cannot be read"),
        (".", "the file cannot be read"),
        ("large", "the file is too large"),
        ("binary", "line 2 is not UTF-8 text"),
        ("bom", "bom:1:15"),
    ];
    for (name, want) in rows {
        let file = path(name);
        for text in [
            load(Some(&file), &Overrides::default(), &variables(&[])).unwrap_err().to_string(),
            render(check_file(&file, &variables(&[]))),
        ] {
            assert!(text.contains(want) && text.ends_with("1 error"), "{name}: no {want:?} in:\n{text}");
        }
    }
    let ten_megabytes = "a: b\n".repeat(2_000_000);
    assert_eq!(check(&ten_megabytes, "x", &variables(&[])).len(), 1);
    let name: &'static str = Box::leak(path("missing").display().to_string().into_boxed_str());
    let report = load(None, &Overrides::default(), &variables(&[("GODSEYE_CONFIG", name)])).unwrap_err();
    assert!(report.to_string().contains("missing"), "GODSEYE_CONFIG names the file: {report}");
}

#[cfg(unix)]
#[test]
fn secrets_that_every_user_can_read_are_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let (secret, config) = (folder.path().join("secret"), folder.path().join("godseye.yaml"));
    fs::write(&secret, "file-token-0123456789\r\n").unwrap();
    let by_file = format!("auth: {{ tokens: [{{ token_file: '{}' }}] }}\n", secret.display());
    let by_reference = format!("auth: {{ tokens: [{{ token: '${{file:{}}}' }}] }}\n", secret.display());
    let literal = "auth: { tokens: [{ token: file-token-0123456789 }] }\n".to_owned();
    let by_variable = "auth: { tokens: [{ token: '${env:GODSEYE_TOKEN}' }] }\n".to_owned();
    // (the file, mode of the secret, mode of the configuration, warnings)
    let rows = [
        (&by_file, 0o600, 0o644, 0),
        (&by_file, 0o644, 0o600, 1),
        (&by_reference, 0o600, 0o644, 0),
        (&by_reference, 0o644, 0o600, 1),
        (&literal, 0o600, 0o600, 0),
        (&literal, 0o600, 0o644, 1),
        (&by_variable, 0o644, 0o644, 0),
    ];
    for (text, secret_mode, config_mode, want) in rows {
        fs::write(&config, text).unwrap();
        chmod(&secret, secret_mode);
        chmod(&config, config_mode);
        let (loaded, warnings) = load(Some(&config), &Overrides::default(), &variables(&[])).unwrap();
        assert_eq!(warnings.len(), want, "{text} {secret_mode:o} {config_mode:o}: {}", render(warnings));
        assert_eq!(render(check_file(&config, &variables(&[]))), render(warnings));
        let token = loaded.auth.tokens[0].secret.expose();
        assert!(matches!(token, "file-token-0123456789" | "token-from-the-environment"), "line breaks stay out");
    }
}

#[test]
fn secrets_are_masked_wherever_a_configuration_is_shown() {
    let text = "auth: { tokens: [{ token: hunter2hunter2hunter2, tenant: shop }] }\n";
    let (config, _) = load_text(text, &Overrides::default(), &variables(&[])).unwrap();
    assert_eq!(config.auth.tokens[0].secret.expose(), "hunter2hunter2hunter2");
    let json = serde_json::to_string(&config.auth.tokens[0].secret).unwrap();
    assert_eq!(json, "\"***\"");
    for shown in [format!("{config:?}"), format!("{config:#?}"), config.render_masked(), json] {
        assert!(shown.contains("***") && !shown.contains("hunter2"), "{shown}");
    }
    let masked = check(&config.render_masked(), "x", &variables(&[]));
    assert!(render(masked).contains("the token is the mask shown in place of one"));
}

#[test]
fn what_is_rendered_reads_back() {
    let rows = [
        "",
        "data_dir: 'a \"b\" $$x $${env:Y} é\\'\n",
        "http: { endpoint: '[::1]:1' }\n",
        "log: { level: warn, format: json }\n",
    ];
    for text in rows {
        let (config, _) = load_text(text, &Overrides::default(), &variables(&[])).unwrap();
        let (again, _) = load_text(&config.render_masked(), &Overrides::default(), &variables(&[])).unwrap();
        assert_eq!(again, config, "{text}");
    }
}

#[test]
fn ten_thousand_mistakes_are_a_screenful_and_soon_found() {
    let text: String = (0..9_000).map(|n| format!("unknown_{n}: x\n")).collect();
    let diagnostics = check(&text, "x", &variables(&[]));
    assert_eq!(diagnostics.len(), 100);
    assert!(render(diagnostics).contains("8900 more problems are not shown"));
    let line = format!("{{{}}}", "a: b, ".repeat(9_000));
    assert_eq!(check(&line, "x", &variables(&[])).len(), 100);
}

#[test]
fn references_cannot_fill_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let big = folder.path().join("big");
    fs::write(&big, "x".repeat(60_000)).unwrap();
    let text = format!("data_dir: {}\n", format!("${{file:{}}}", big.display()).repeat(50));
    assert!(render(check(&text, "x", &variables(&[]))).contains("references bring in too much"));
    fs::write(&big, "x".repeat(70_000)).unwrap();
    assert!(render(check(&text, "x", &variables(&[]))).contains("is larger than 64 KiB"));
}

/// A configuration with a secret in it, in several styles.
const WITH_SECRET: [&str; 5] = [
    "data_dir: /a\nauth:\n  tokens:\n    - token: S3cretVal9\n      tenant: shop\n      scopes: [ingest]\nlog: { level: info }\n",
    "auth: { tokens: [ { token: \"S3cretVal9\", tenant: shop, scopes: [ingest, query] } ] }\nhttp: { endpoint: 127.0.0.1:1 }\n",
    "auth:\n  tokens:\n  - tenant: shop\n    token: 'S3cretVal9' # comment\n  - {token: S3cretVal9}\nquery: { timeout: 1s }\n",
    "auth:\n  tokens:\n    - token: >-\n        S3cretVal9\n      scopes: [query]\n",
    "auth:\n  tokens:\n    - { tenant: a,\n        token:\n          S3cretVal9,\n        scopes: [query] }\n",
];

fn shows_part_of_the_secret(output: &str) -> Option<&'static str> {
    let secret = "S3cretVal9";
    (0..=secret.len() - 5).map(|at| &secret[at..at + 5]).find(|part| output.contains(part))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any one slip of the editor, anywhere: whatever the report then says, it does not say the secret.
    #[test]
    fn no_slip_makes_a_report_show_a_secret(
        which in 0..WITH_SECRET.len(),
        at in 0..1000_usize,
        removed in 0..3_usize,
        inserted in "[ \n\t:,{}\\[\\]\"'#$&*!|>%@`a-z-]{0,3}",
    ) {
        let text = WITH_SECRET[which];
        let at = at % text.len();
        let end = (at + removed).min(text.len());
        let slipped = format!("{}{inserted}{}", &text[..at], &text[end..]);
        let output = render(check(&slipped, "x", &variables(&[])));
        prop_assert!(shows_part_of_the_secret(&output).is_none(), "{slipped}\n---\n{output}");
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text in "(\\PC|[\n\r\t {}\\[\\]:,&*#?|>!%@`'\"$-]){0,80}") {
        drop(render(check(&text, "x", &variables(&[]))));
    }

    /// Lines that look like ours, put together at random.
    #[test]
    fn any_yaml_is_judged_without_a_panic(
        lines in prop::collection::vec(
            (0..4_usize, prop::sample::select(vec![
                "auth:", "tokens:", "- token: x", "- {", "}", "storage:", "wal: &a", "*a", "<<: *a", "endpoint: ${env:PORT}",
                "data_dir: ${file:/}", "- - -", "? x", ": y", "|", "  text", "'open", "\"open", "---", "...", "%YAML 1.2",
                "!!str x", "http: { endpoint: 1", "]", "\u{feff}", "\u{85}", "日本: é", "log: [a, b", "x: >2-",
            ])),
            0..12,
        ),
    ) {
        let text: String = lines.iter().map(|(indent, line)| format!("{}{line}\n", "  ".repeat(*indent))).collect();
        let output = render(check(&text, "x", &variables(&[])));
        prop_assert!(!output.contains("token-from"), "{output}");
    }
}
