//! Which crate may depend on which: the arrows of ARCHITECTURE.md as a table, and the fences around
//! heavy dependencies.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{File, Problems};

/// The crates of this workspace that each one may name. A new arrow needs a decision in docs/adr.
const ARROWS: &[(&str, &[&str])] = &[
    ("everstep-fault", &[]),
    ("everstep-core", &["everstep-fault", "everstep-fuzz"]),
    ("everstep-proto", &["everstep-core", "everstep-fuzz"]),
    ("everstep-store", &["everstep-core", "everstep-fault", "everstep-proto"]),
    ("everstep-dispatch", &["everstep-core", "everstep-proto"]),
    ("everstep-store-postgres", &["everstep-core", "everstep-fault", "everstep-proto", "everstep-store"]),
    ("everstep-store-sqlite", &["everstep-core", "everstep-fault", "everstep-proto", "everstep-store"]),
    ("everstep-dispatch-nats", &["everstep-core", "everstep-proto", "everstep-dispatch", "everstep-fuzz"]),
    ("everstep-engine", &["everstep-core", "everstep-fault", "everstep-store", "everstep-dispatch"]),
    (
        "everstep-server",
        &[
            "everstep-core",
            "everstep-proto",
            "everstep-store",
            "everstep-dispatch",
            "everstep-engine",
            "everstep-fuzz",
        ],
    ),
    ("everstep-provider", &["everstep-fuzz"]),
    ("everstep", &["everstep-core", "everstep-fault", "everstep-proto"]),
    ("everstep-example-patterns", &["everstep"]),
    ("everstep-example-summarize", &["everstep", "everstep-provider"]),
    ("everstep-cli", &["*"]),
    ("everstep-tests", &["*"]),
    ("everstep-benches", &["everstep", "everstep-core", "everstep-proto"]),
    ("everstep-checker", &["everstep-core"]),
    ("everstep-faultproxy", &[]),
    ("everstep-fuzz", &[]),
    ("everstep-chaos", &["*"]),
    ("xtask", &[]),
];

/// The only crates that may name a dependency, and why.
const FENCES: &[(&str, &[&str], &str)] = &[
    (
        "sqlx",
        &[
            "everstep-store-postgres",
            "everstep-store-sqlite",
            "everstep-cli",
            "everstep-tests",
            "everstep-chaos",
        ],
        "SQL stays in the store adapters",
    ),
    (
        "async-nats",
        &["everstep-dispatch-nats", "everstep-tests", "everstep-chaos"],
        "NATS stays in its adapter",
    ),
    (
        "anyhow",
        &[
            "everstep-cli",
            "everstep-tests",
            "everstep-benches",
            "everstep-checker",
            "everstep-faultproxy",
            "everstep-chaos",
            "everstep-dispatch-nats",
            "xtask",
        ],
        "libraries have typed errors (the NATS adapter names it in its tests)",
    ),
    ("clap", &["everstep-cli", "everstep-chaos"], "only the command line parses arguments"),
    ("reqwest", &["everstep-provider", "everstep-cli", "everstep-tests"], "the server calls no vendor"),
    (
        "tonic",
        &[
            "everstep-proto",
            "everstep-server",
            "everstep",
            "everstep-cli",
            "everstep-tests",
            "everstep-chaos",
        ],
        "the engine and the ports know no transport",
    ),
    (
        "prost",
        &["everstep-proto", "everstep-server", "everstep-dispatch-nats", "everstep", "everstep-tests"],
        "wire messages stay behind everstep-proto",
    ),
];

/// The tests that plan failures.
const FAULTY: [&str; 2] = ["tests/Cargo.toml", "tests/chaos/Cargo.toml"];

/// All that the pure crate may name, and what its tests may name besides.
const CORE: &str = "everstep-core";
const CORE_ALLOWED: &[&str] = &["bytes", "everstep-fault", "serde", "sha2", "thiserror", "uuid"];
const CORE_ALLOWED_IN_TESTS: &[&str] = &["bolero", "everstep-fuzz", "proptest", "serde_json"];

/// One crate's manifest, as far as the rules look at it.
struct Manifest<'a> {
    path: &'a str,
    name: String,
    inherits_lints: bool,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    in_tests: bool,
    from_workspace: bool,
}

pub(super) fn check(files: &[File]) -> Problems {
    let mut problems = Problems::new();
    let mut manifests = Vec::new();
    for file in files.iter().filter(|file| file.name() == "Cargo.toml") {
        check_faults_stay_in_tests(file, &mut problems);
        match parse(file) {
            Ok(manifest) => manifests.extend(manifest),
            Err(error) => problems.push(format!("{}: is no valid TOML: {error}", file.path)),
        }
    }
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for manifest in &manifests {
        check_lints_inherited(manifest, &mut problems);
        check_workspace_versions(manifest, &mut problems);
        check_arrows(manifest, &arrows, &mut problems);
        check_fences(manifest, &mut problems);
        check_core(manifest, &mut problems);
    }
    problems
}

/// Failpoints and planted bugs are features that only tests turn on, so that no release has them.
fn check_faults_stay_in_tests(file: &File, problems: &mut Problems) {
    let turns_on = |line: &&str| line.starts_with("everstep-fault") && line.contains("features");
    if !FAULTY.contains(&file.path.as_str()) && file.text.lines().any(|line| turns_on(&line)) {
        problems.push(format!("{}: only {FAULTY:?} turn on features of `everstep-fault`", file.path));
    }
}

/// The manifest of a package; `None` for the one of the workspace.
fn parse(file: &File) -> Result<Option<Manifest<'_>>, toml::de::Error> {
    let table: Table = toml::from_str(&file.text)?;
    let Some(name) = table.get("package").and_then(|package| package.get("name")).and_then(Value::as_str)
    else {
        return Ok(None);
    };
    let inherits = table.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
    let mut dependencies = Vec::new();
    collect_dependencies(&table, &mut dependencies);
    for target in table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values) {
        collect_dependencies(target.as_table().unwrap_or(&Table::new()), &mut dependencies);
    }
    Ok(Some(Manifest {
        path: &file.path,
        name: name.to_owned(),
        inherits_lints: inherits == Some(true),
        dependencies,
    }))
}

fn collect_dependencies(table: &Table, dependencies: &mut Vec<Dependency>) {
    for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
        let Some(entries) = table.get(section).and_then(Value::as_table) else { continue };
        dependencies.extend(entries.iter().map(|(key, value)| Dependency {
            name: value.get("package").and_then(Value::as_str).unwrap_or(key).to_owned(),
            in_tests: section == "dev-dependencies",
            from_workspace: value.get("workspace").and_then(Value::as_bool) == Some(true),
        }));
    }
}

fn check_lints_inherited(manifest: &Manifest<'_>, problems: &mut Problems) {
    if !manifest.inherits_lints {
        let path = manifest.path;
        problems.push(format!(
            "{path}: does not inherit the workspace's lints; add `[lints]` with `workspace = true`"
        ));
    }
}

fn check_workspace_versions(manifest: &Manifest<'_>, problems: &mut Problems) {
    for dependency in manifest.dependencies.iter().filter(|dependency| !dependency.from_workspace) {
        problems.push(format!(
            "{}: `{name}` has a version of its own; put it into [workspace.dependencies] and write \
             `{name}.workspace = true`",
            manifest.path,
            name = dependency.name
        ));
    }
}

fn check_arrows(manifest: &Manifest<'_>, arrows: &BTreeMap<&str, &[&str]>, problems: &mut Problems) {
    let path = manifest.path;
    let Some(allowed) = arrows.get(manifest.name.as_str()) else {
        problems.push(format!(
            "{path}: the crate `{}` is new; give it its line in ARROWS of xtask/src/tidy/crates.rs and in \
             ARCHITECTURE.md",
            manifest.name
        ));
        return;
    };
    let inside =
        manifest.dependencies.iter().filter(|dependency| arrows.contains_key(dependency.name.as_str()));
    for dependency in inside {
        let name = dependency.name.as_str();
        if !allowed.contains(&"*") && !allowed.contains(&name) && name != manifest.name {
            problems.push(format!(
                "{path}: `{}` may not depend on `{name}`; nothing points up. Move the code to the crate that may, \
                 or decide the new arrow in docs/adr and add it to ARROWS of xtask/src/tidy/crates.rs",
                manifest.name
            ));
        }
    }
}

fn check_fences(manifest: &Manifest<'_>, problems: &mut Problems) {
    for (fenced, allowed, reason) in FENCES {
        let named = manifest.dependencies.iter().any(|dependency| dependency.name == *fenced);
        if named && !allowed.contains(&manifest.name.as_str()) {
            problems.push(format!(
                "{}: `{fenced}` belongs to {} alone ({reason}); call one of them instead",
                manifest.path,
                allowed.join(", ")
            ));
        }
    }
}

fn check_core(manifest: &Manifest<'_>, problems: &mut Problems) {
    if manifest.name != CORE {
        return;
    }
    for dependency in &manifest.dependencies {
        let name = dependency.name.as_str();
        let allowed =
            CORE_ALLOWED.contains(&name) || dependency.in_tests && CORE_ALLOWED_IN_TESTS.contains(&name);
        if !allowed {
            problems.push(format!(
                "{}: {CORE} is pure and may not name `{name}` (allowed: {}); do this in the shell, or in the edge \
                 that hands core its input",
                manifest.path,
                CORE_ALLOWED.join(", ")
            ));
        }
    }
}
