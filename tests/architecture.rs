//! What holds between the parts, asked from Cargo and from the sources themselves.
//!
//! Which crate may use which, one version of every library whose types cross crates, and the small rules of a
//! tidy tree. Not here: formatting and lints, which are `make lint`'s; and what the code does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// Which workspace crates a crate may use. Data flows from left to right, so arrows point left only; ingest and
/// query never see each other, and nothing but the binary sees both.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("store", &["model"]),
    ("clickhouse_store", &["model", "store"]),
    ("ingest", &["model", "store"]),
    ("kafka_log", &["model", "store", "ingest"]),
    ("query", &["model", "store"]),
    ("alerting", &["model"]),
    ("slo", &["model"]),
    ("dashboards", &["model", "store", "query"]),
    ("fixtures", &["model"]),
    (
        "godseye",
        &[
            "model",
            "store",
            "clickhouse_store",
            "ingest",
            "kafka_log",
            "query",
            "alerting",
            "slo",
            "dashboards",
            "fixtures",
        ],
    ),
];

/// Any crate may test itself with these: they depend on nothing that is tested with them.
const TESTS_MAY_USE: &[&str] = &["fixtures"];

/// Libraries whose types cross crates: with a second version, types of the same name would not be the same.
const ONE_VERSION: &[&str] =
    &["arrow-array", "arrow-schema", "datafusion", "object_store", "opentelemetry-proto", "parquet", "prost", "tonic"];

/// Crates without any I/O of their own, and what therefore is not even below them.
const NEVER_BELOW: &[(&str, &[&str])] = &[("model", &["tokio", "hyper", "tonic", "rusqlite", "object_store"])];

/// A larger file makes every clone slower for ever; generate it, or fetch it where it is used.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `cargo metadata` says, for exactly what `Cargo.lock` says and for this platform: packages of other platforms
/// need not be downloaded.
static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let versions = String::from_utf8(cargo(&["-vV"])).expect("cargo prints UTF-8");
    let host = versions.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo -vV names its host");
    let arguments = ["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host];
    serde_json::from_slice(&cargo(&arguments)).expect("cargo metadata prints JSON")
});

/// What a command of Cargo prints.
fn cargo(arguments: &[&str]) -> Vec<u8> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo can be started");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("expected text, found {value}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("expected a list, found {value}"))
}

/// The packages of the workspace, by name.
fn members() -> BTreeMap<&'static str, &'static Value> {
    let ids: BTreeSet<&str> = list(&METADATA["workspace_members"]).iter().map(text).collect();
    list(&METADATA["packages"])
        .iter()
        .filter(|package| ids.contains(text(&package["id"])))
        .map(|package| (text(&package["name"]), package))
        .collect()
}

#[test]
fn arrows_between_crates_run_one_way() {
    let members = members();
    let known: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = members.keys().copied().collect();
    assert_eq!(found, known, "the table of this test names every workspace crate");

    let mut wrong = Vec::new();
    for (name, may_use) in MAY_USE {
        for dependency in list(&members[name]["dependencies"]) {
            let on = text(&dependency["name"]);
            let for_tests = dependency["kind"] == "dev";
            let allowed = may_use.contains(&on) || for_tests && (TESTS_MAY_USE.contains(&on) || on == *name);
            if known.contains(on) && !allowed {
                wrong.push(format!("{name} uses {on}{}", if for_tests { " in its tests" } else { "" }));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that run backwards: {wrong:#?}");
}

#[test]
fn the_table_of_arrows_has_no_circle() {
    // A crate stands after everything it may use, except `fixtures`, which uses `model` alone.
    for (at, (name, may_use)) in MAY_USE.iter().enumerate() {
        for on in *may_use {
            let place = MAY_USE.iter().position(|(other, _)| other == on);
            assert!(place.is_some_and(|place| place < at), "{name} may use {on}, which does not come before it");
        }
    }
}

#[test]
fn libraries_whose_types_cross_crates_have_one_version() {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in list(&METADATA["packages"]) {
        versions.entry(text(&package["name"])).or_default().insert(text(&package["version"]));
    }
    for name in ONE_VERSION {
        let found = versions.get(name).unwrap_or_else(|| panic!("nothing uses {name} any more: drop it from the list"));
        assert_eq!(found.len(), 1, "{name} is there in the versions {found:?}");
    }
}

#[test]
fn pure_crates_stay_pure() {
    let nodes: BTreeMap<&str, &Value> =
        list(&METADATA["resolve"]["nodes"]).iter().map(|node| (text(&node["id"]), node)).collect();
    let names: BTreeMap<&str, &str> =
        list(&METADATA["packages"]).iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    for (name, forbidden) in NEVER_BELOW {
        let mut below = BTreeMap::new();
        let mut todo = vec![(text(&members()[name]["id"]), (*name).to_owned())];
        while let Some((id, path)) = todo.pop() {
            if below.contains_key(names[id]) {
                continue;
            }
            below.insert(names[id], path.clone());
            for dependency in list(&nodes[id]["deps"]) {
                if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                    let on = text(&dependency["pkg"]);
                    todo.push((on, format!("{path} → {}", names[on])));
                }
            }
        }
        assert!(below.len() > 1, "{name} has dependencies, so the walk finds some");
        for crate_name in *forbidden {
            assert_eq!(below.get(crate_name), None, "{name} must not use {crate_name}, not even indirectly");
        }
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for (name, package) in members() {
        let manifest = std::fs::read_to_string(text(&package["manifest_path"])).unwrap();
        let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
        let takes = lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line == "workspace = true");
        assert!(takes, "{name}: its Cargo.toml has no `[lints]` with `workspace = true`");
    }
}

/// Every file that is, or would be, committed, relative to the root.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is there, since this is a clone");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("names of files are UTF-8");
    let files: Vec<PathBuf> = names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .filter(|file| root().join(file).is_file())
        .collect();
    assert!(files.contains(&PathBuf::from("tests/architecture.rs")), "the list has this very file");
    files
}

fn sources() -> Vec<(PathBuf, String)> {
    files()
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .map(|file| {
            let text = std::fs::read_to_string(root().join(&file)).unwrap_or_else(|error| panic!("{file:?}: {error}"));
            (file, text)
        })
        .collect()
}

#[test]
fn sources_say_what_they_are_and_leave_nothing_open() {
    // In two parts, so that this file does not find itself.
    let left_over: &[&str] = &[
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
        concat!("FIX", "ME"),
        concat!("XX", "X "),
    ];
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if !text.starts_with("//!") {
            wrong.push(format!("{} does not open with `//!`", file.display()));
        }
        for (number, line) in text.lines().enumerate() {
            for word in left_over.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{}:{}: `{word}`", file.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_is_large() {
    for file in files() {
        let bytes = std::fs::metadata(root().join(&file)).unwrap().len();
        assert!(
            bytes <= FILE_BYTES_MAX,
            "{} has {bytes} bytes, at most {FILE_BYTES_MAX} are committed",
            file.display()
        );
    }
}

#[test]
fn the_readme_names_the_two_commands() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md is there");
    let makefile = std::fs::read_to_string(root().join("Makefile")).expect("Makefile is there");
    for target in ["demo", "test"] {
        assert!(readme.contains(&format!("make {target}")), "README.md does not mention `make {target}`");
        assert!(
            makefile.lines().any(|line| line.starts_with(&format!("{target}:"))),
            "Makefile has no target {target}"
        );
    }
}

#[test]
fn fail_points_have_names_of_their_own() {
    let call = concat!("fail_point", "!(");
    let mut places: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (file, text) in sources() {
        // Tests look for fail points; they have none.
        if file.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        for rest in text.split(call).skip(1) {
            let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            let name = name.unwrap_or_else(|| panic!("{}: a fail point's name is a literal", file.display()));
            places.entry(name.to_owned()).or_default().push(file.clone());
        }
    }
    assert!(!places.is_empty(), "the store has fail points");
    for (name, files) in places {
        assert_eq!(files.len(), 1, "fail point `{name}` is in {files:?}: it would fire at the first of them only");
    }
}
