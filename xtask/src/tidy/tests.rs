//! Each check is shown to pass on a good tree and to fail, with advice, on a bad one.

use std::path::PathBuf;

use super::supply::{check_packages, is_allowed, parse_packages, parse_rules};
use super::{File, bless, check_tree, migrations, read_tree};

const CORE_MANIFEST: &str = "[package]\nname = \"everstep-core\"\n[lints]\nworkspace = true\n\
                             [dependencies]\nserde.workspace = true\n[dev-dependencies]\nproptest.workspace = true\n";

/// A small tree in which everything is in order.
fn good_tree() -> Vec<File> {
    let mut tree = Vec::new();
    for path in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "LICENSE", "docs/concepts.md", "docs/errors.md"]
    {
        put(&mut tree, path, "text\n");
    }
    put(&mut tree, "crates/everstep-core/Cargo.toml", CORE_MANIFEST);
    put(&mut tree, "crates/everstep-core/src/lib.rs", "//! The rules.\n");
    put(&mut tree, "migrations/postgres/0001_log.sql", "CREATE TABLE events ();\n");
    put(&mut tree, "migrations/sqlite/0001_log.sql", "CREATE TABLE events (id);\n");
    let sums = migrations::bless(&tree).expect("a good tree");
    put(&mut tree, migrations::CHECKSUMS, &sums);
    tree
}

fn put(tree: &mut Vec<File>, path: &str, text: &str) {
    tree.retain(|file| file.path != path);
    tree.push(File { path: path.to_owned(), text: text.to_owned() });
}

/// Expects exactly one problem in the good tree with this file in it, with all these parts.
fn expect_problem(path: &str, text: &str, parts: &[&str]) {
    let mut tree = good_tree();
    put(&mut tree, path, text);
    let problems = check_tree(&tree);
    assert_eq!(problems.len(), 1, "{path}: {problems:#?}");
    for part in parts {
        assert!(problems[0].contains(part), "{path}: {:?} lacks {part:?}", problems[0]);
    }
}

fn expect_none(path: &str, text: &str) {
    let mut tree = good_tree();
    put(&mut tree, path, text);
    assert_eq!(check_tree(&tree), Vec::<String>::new(), "{path}");
}

fn manifest(name: &str, dependency: &str) -> String {
    format!("[package]\nname = \"{name}\"\n[lints]\nworkspace = true\n[dependencies]\n{dependency}\n")
}

#[test]
fn a_good_tree_has_no_problems() {
    assert_eq!(check_tree(&good_tree()), Vec::<String>::new());
}

#[test]
fn arrows_point_down_only() {
    let path = "crates/some/Cargo.toml";
    expect_none(path, &manifest("everstep-store", "everstep-core.workspace = true"));
    expect_none(path, &manifest("everstep-cli", "everstep-server.workspace = true"));
    let up = manifest("everstep-store", "everstep-engine.workspace = true");
    expect_problem(path, &up, &["may not depend on `everstep-engine`", "docs/adr"]);
    let adapter = manifest("everstep-engine", "everstep-store-postgres.workspace = true");
    expect_problem(path, &adapter, &["may not depend on `everstep-store-postgres`"]);
    let renamed = "store = { workspace = true, package = \"everstep-store\" }";
    expect_problem(path, &manifest("everstep-proto", renamed), &["may not depend on `everstep-store`"]);
    let new = manifest("everstep-new", "serde.workspace = true");
    expect_problem(path, &new, &["is new", "ARROWS"]);
}

#[test]
fn arrows_hold_for_tests_builds_and_single_systems() {
    for section in ["dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"] {
        let text = manifest("everstep-store", "").replace("[dependencies]", &format!("[{section}]"));
        let text = format!("{text}everstep-engine.workspace = true\n");
        expect_problem("crates/some/Cargo.toml", &text, &["may not depend on `everstep-engine`"]);
    }
}

#[test]
fn heavy_dependencies_are_fenced() {
    for (name, dependency) in [
        ("everstep-engine", "sqlx"),
        ("everstep-server", "async-nats"),
        ("everstep-store", "anyhow"),
        ("everstep-server", "reqwest"),
        ("everstep-engine", "tonic"),
        ("everstep-store-postgres", "prost"),
        ("everstep-server", "clap"),
    ] {
        let text = manifest(name, &format!("{dependency}.workspace = true"));
        expect_problem("crates/some/Cargo.toml", &text, &[&format!("`{dependency}` belongs to"), "alone"]);
    }
    expect_none("crates/some/Cargo.toml", &manifest("everstep-store-postgres", "sqlx.workspace = true"));
}

#[test]
fn core_names_only_what_it_may() {
    let path = "crates/everstep-core/Cargo.toml";
    let text = format!("{CORE_MANIFEST}[dependencies.tokio]\nworkspace = true\n");
    expect_problem(path, &text, &["may not name `tokio`", "bytes, everstep-fault, serde"]);
    let test_only = CORE_MANIFEST.replace("serde.workspace", "proptest.workspace");
    expect_problem(path, &test_only, &["may not name `proptest`"]);
}

#[test]
fn only_tests_plan_failures() {
    let text =
        manifest("everstep-engine", "everstep-fault = { workspace = true, features = [\"failpoints\"] }");
    expect_problem("crates/everstep-engine/Cargo.toml", &text, &["turn on features of `everstep-fault`"]);
}

#[test]
fn crates_inherit_lints_and_versions() {
    let path = "crates/some/Cargo.toml";
    let bare = manifest("everstep-store", "").replace("[lints]\nworkspace = true\n", "");
    expect_problem(path, &bare, &["[lints]", "workspace = true"]);
    let own = manifest("everstep-store", "serde = \"1\"");
    expect_problem(path, &own, &["`serde` has a version of its own", "serde.workspace = true"]);
    expect_problem(path, "[package\n", &["no valid TOML"]);
}

#[test]
fn rust_files_open_with_what_they_own() {
    expect_problem("crates/a/src/lib.rs", "use std::fmt;\n//! Late.\n", &["must open with `//!`"]);
    expect_problem("crates/a/src/empty.rs", "", &["must open with `//!`"]);
    expect_none("crates/a/src/lib.rs", "\n//! Owns this.\n");
}

#[test]
fn module_names_say_something() {
    for path in ["crates/a/src/utils.rs", "crates/a/src/util/text.rs", "tests/src/helpers.rs"] {
        expect_problem(path, "//! Owns this.\n", &["says nothing"]);
    }
}

#[test]
fn files_are_short() {
    let lines = |count: usize| "//! Owns this.\n".repeat(count);
    expect_none("crates/a/src/b.rs", &lines(800));
    expect_problem("crates/a/src/b.rs", &lines(801), &["801 lines", "split it"]);
    expect_problem("proto/a.proto", &lines(801), &["801 lines"]);
    expect_none("crates/a/src/b/tests.rs", &lines(801));
    let generated = format!("//! Made by a tool, {}.\n{}", concat!("@gener", "ated"), lines(801));
    expect_none("crates/a/src/b.rs", &generated);
}

#[test]
fn notes_to_oneself_are_refused() {
    for word in [concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK"), concat!("TO", "DO")] {
        expect_problem("docs/a.md", &format!("first\n{word}: later\n"), &["docs/a.md:2", word]);
        expect_none("docs/a.md", &format!("{word}ER_{word}\n"));
    }
    let call = format!("//! Owns this.\nfn a() {{ {}) }}\n", concat!("to", "do!("));
    expect_problem("crates/a/src/b.rs", &call, &["b.rs:2", "write the code"]);
}

#[test]
fn every_test_runs() {
    let text = format!("//! Owns this.\n{} = \"slow\"]\nfn a() {{}}\n", concat!("#[ig", "nore"));
    expect_problem("crates/a/src/b/tests.rs", &text, &["tests.rs:2", "never runs"]);
}

#[test]
fn tests_do_not_sleep() {
    let text = |call: &str| format!("//! Owns this.\n    {call};\n");
    for call in [
        concat!("std::thread::sl", "eep(pause)"),
        concat!("tokio::time::sl", "eep(pause).await"),
        concat!("sl", "eep_until(then).await"),
    ] {
        for path in ["tests/it/a.rs", "crates/a/src/b/tests.rs", "crates/a/tests/b.rs"] {
            expect_problem(path, &text(call), &[":2", "tests do not sleep"]);
        }
        expect_none("crates/a/src/b.rs", &text(call));
    }
    for call in [
        concat!("ctx.sl", "eep(day).await"),
        concat!("async fn sl", "eep(&self)"),
        concat!("// sl", "eep(1)"),
    ] {
        expect_none("tests/it/a.rs", &text(call));
    }
    let foreign = "crates/everstep/src/machine/tests.rs";
    expect_none(foreign, &text(concat!("tokio::time::sl", "eep(hour).await")));
}

#[test]
fn nothing_points_to_one_machine_or_registry() {
    for place in
        [concat!("/ro", "ot/x"), concat!("/wo", "rk/x"), concat!("/ho", "me/x"), concat!("/Us", "ers/x")]
    {
        expect_problem("docs/a.md", &format!("see {place}\n"), &["docs/a.md:1", "one machine only"]);
    }
    let setting = format!("pip install --{} x\n", concat!("index", "-url"));
    expect_problem("docs/a.md", &setting, &["docs/a.md:1", "package registry"]);
    let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
    expect_none("Cargo.lock", public);
    let other = public.replace("github.com/rust-lang", "example.com");
    expect_problem("Cargo.lock", &other, &["Cargo.lock:1", "not the public registry"]);
}

#[test]
fn files_that_others_look_for_are_there() {
    for required in ["docs/errors.md", "LICENSE"] {
        let mut tree = good_tree();
        tree.retain(|file| file.path != required);
        let problems = check_tree(&tree);
        assert!(matches!(problems.as_slice(), [one] if one.starts_with(required)), "{problems:?}");
    }
}

/// Puts a file into both folders of migrations and expects problems with these parts, in any order.
fn expect_migration_problems(tree: &[File], parts: &[&str]) {
    let problems = migrations::check(tree);
    for part in parts {
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part:?} is not in {problems:#?}");
    }
    assert_eq!(problems.len(), parts.len(), "{problems:#?}");
}

#[test]
fn migrations_come_in_pairs_and_in_order() {
    let mut tree = good_tree();
    put(&mut tree, "migrations/sqlite/0002_more.sql", "SELECT 1;\n");
    let unblessed = "sqlite/0002_more.sql: is not in migrations/checksums.txt";
    expect_migration_problems(&tree, &["migrations/postgres/0002_more.sql: is missing", unblessed]);
    for folder in ["postgres", "sqlite"] {
        put(&mut tree, &format!("migrations/{folder}/0002_more.sql"), "SELECT 1;\n");
        put(&mut tree, &format!("migrations/{folder}/0002_other.sql"), "SELECT 1;\n");
    }
    let sums = migrations::bless(&tree).expect("names are fine");
    put(&mut tree, migrations::CHECKSUMS, &sums);
    let gap = "0002_other.sql: the next number is 0003";
    expect_migration_problems(&tree, &[&format!("postgres/{gap}"), &format!("sqlite/{gap}")]);
}

#[test]
fn migrations_have_plain_names() {
    let mut tree = good_tree();
    for folder in ["postgres", "sqlite"] {
        put(&mut tree, &format!("migrations/{folder}/0002-More.sql"), "SELECT 1;\n");
    }
    assert!(migrations::bless(&tree).is_err(), "a wrong name is not recorded");
    let problems = migrations::check(&tree);
    assert_eq!(problems.iter().filter(|problem| problem.contains("NNNN_what_it_does.sql")).count(), 2);
}

#[test]
fn recorded_migrations_are_neither_edited_nor_removed_nor_blessed_again() {
    let mut tree = good_tree();
    put(&mut tree, "migrations/sqlite/0001_log.sql", "CREATE TABLE other (id);\n");
    expect_migration_problems(&tree, &["migrations/sqlite/0001_log.sql: was edited"]);
    let error = migrations::bless(&tree).expect_err("an edit is not blessed").to_string();
    assert!(error.contains("write the change as a new migration"), "{error}");
    let mut tree = good_tree();
    tree.retain(|file| !file.path.ends_with("0001_log.sql"));
    let problems = migrations::check(&tree);
    assert_eq!(problems.iter().filter(|problem| problem.contains("was removed")).count(), 2);
}

#[test]
fn blessing_adds_and_changes_nothing_else() {
    let mut tree = good_tree();
    let before = migrations::bless(&tree).expect("a good tree");
    for folder in ["postgres", "sqlite"] {
        put(&mut tree, &format!("migrations/{folder}/0002_more.sql"), "SELECT 1;\n");
    }
    let after = migrations::bless(&tree).expect("a good tree");
    assert!(before.lines().all(|line| after.contains(line)), "{after}");
    assert_eq!(after.lines().count(), before.lines().count() + 2);
    put(&mut tree, migrations::CHECKSUMS, &after);
    assert_eq!(check_tree(&tree), Vec::<String>::new());
}

const DENY: &str = r#"
[licenses]
allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
[bans]
deny = [
    { crate = "openssl", reason = "ring" },
    { crate = "h2:<0.4.16", reason = "a hole" },
    { crate = "tonic", deny-multiple-versions = true, reason = "one transport" },
    { crate = "sqlx", reason = "fence", wrappers = ["everstep-store-postgres"] },
]
"#;

fn package(name: &str, version: &str, license: &str, dependencies: &str) -> String {
    format!(
        r#"{{"name":"{name}","version":"{version}","license":{license},"dependencies":[{dependencies}]}}"#
    )
}

fn supply_problems(packages: &[String]) -> anyhow::Result<Vec<String>> {
    let metadata = format!(r#"{{"packages":[{}]}}"#, packages.join(","));
    Ok(check_packages(&parse_rules(DENY)?, &parse_packages(&metadata)?))
}

#[test]
fn third_party_code_is_held_to_deny_toml() -> anyhow::Result<()> {
    let mit = "\"MIT\"";
    let sqlx = r#"{"name":"sqlx","optional":false}"#;
    let good = [
        package("h2", "0.4.16", mit, ""),
        package("tonic", "0.14.9", mit, ""),
        package("everstep-store-postgres", "0.1.0", mit, sqlx),
    ];
    assert_eq!(supply_problems(&good)?, Vec::<String>::new());
    for (bad, part) in [
        (package("openssl", "0.10.0", mit, ""), "banned by deny.toml: ring"),
        (package("h2", "0.4.15", mit, ""), "h2 0.4.15: is banned"),
        (package("h2", "0.3.99", mit, ""), "a hole"),
        (package("tonic", "0.13.0", mit, ""), "2 versions (0.13.0, 0.14.9)"),
        (package("everstep-engine", "0.1.0", mit, sqlx), "may not depend on sqlx"),
        (package("evil", "1.0.0", "\"AGPL-3.0-only\"", ""), "AGPL-3.0-only is not in the allow-list"),
        (package("evil", "1.0.0", "null", ""), "no stated license"),
    ] {
        let packages: Vec<String> = good.iter().cloned().chain([bad]).collect();
        let problems = supply_problems(&packages)?;
        assert!(matches!(problems.as_slice(), [one] if one.contains(part)), "{part:?}: {problems:?}");
    }
    Ok(())
}

#[test]
fn rules_that_are_not_understood_are_an_error() {
    for (from, to, part) in [
        ("h2:<0.4.16", "h2:>1", "not understood"),
        ("reason = \"ring\"", "note = \"ring\"", "has no reason"),
        ("allow = [", "permit = [", "no list `allow`"),
        ("crate = \"openssl\"", "name = \"openssl\"", "no `crate`"),
    ] {
        let error = parse_rules(&DENY.replace(from, to)).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(parse_packages("{}").is_err());
    assert!(parse_packages(r#"{"packages":[{"name":"a"}]}"#).is_err());
}

#[test]
fn tests_that_the_documentation_names_exist() {
    let suite = "//! Tests.\n\n/// It does.\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn it_works() {}\n\nfn beside() {}\n";
    let page = |line: &str| {
        let mut tree = good_tree();
        put(&mut tree, "tests/it/steps.rs", suite);
        put(&mut tree, "docs/comparison.md", line);
        check_tree(&tree)
    };
    assert_eq!(page("| Steps | [`it_works`](../tests/it/steps.rs) |\n"), Vec::<String>::new());
    for (line, missing) in [
        (
            "one\n[`it_work`](../tests/it/steps.rs)\n",
            "docs/comparison.md:2: there is no test `it_work` in tests/it/steps.rs",
        ),
        ("[`it_works`](../tests/it/step.rs)\n", "no test `it_works` in tests/it/step.rs"),
        ("[`it_works`](../tests/it/steps.rs), [`beside`](../tests/it/steps.rs)\n", "no test `beside`"),
        ("[steps](../tests/it/steps.rs)\n", "no test `steps`"),
    ] {
        let problems = page(line);
        assert_eq!(problems.len(), 1, "{line}: {problems:#?}");
        assert!(problems[0].contains(missing), "{problems:#?}");
    }
    expect_none("docs/other.md", "[the suite](../tests/it/steps.rs), [`tests/it`](../tests/it/main.rs)\n");
    expect_problem(
        "docs/other.md",
        "[`gone`](../tests/it/steps.rs)\n",
        &["no test `gone`", "take the claim back"],
    );
}

#[test]
fn license_expressions_are_understood() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for (expression, expected) in [
        ("MIT", true),
        ("AGPL-3.0-only", false),
        ("AGPL-3.0-only OR MIT", true),
        ("MIT/GPL-2.0", true),
        ("GPL-2.0 / GPL-3.0", false),
        ("MIT or GPL-2.0", true),
        ("GPL-2.0 or GPL-3.0", false),
        ("MIT AND GPL-2.0", false),
        ("GPL-2.0 AND MIT OR Apache-2.0", true),
        ("GPL-2.0 AND (MIT OR Apache-2.0)", false),
        ("(MIT OR GPL-2.0) AND Apache-2.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH LLVM-exception", false),
        ("", false),
        ("MIT OR", false),
        ("(MIT", false),
        ("MIT MIT", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}

/// A folder on disk that is gone at the end of the test.
struct TempTree(PathBuf);

impl Drop for TempTree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_tree_on_disk_is_read_and_blessed() -> anyhow::Result<()> {
    let tree = TempTree(std::env::temp_dir().join(format!("everstep-tidy-{}", std::process::id())));
    let root = tree.0.as_path();
    let mut files: Vec<(&str, &[u8])> = vec![
        ("src/a.rs", b"//! A.\n"),
        ("target/b.rs", b"no doc\n"),
        (".git/config", b"x"),
        ("logo.png", &[0xff, 0xfe]),
    ];
    files.extend([("migrations/postgres/0001_log.sql", &b"1"[..]), ("migrations/sqlite/0001_log.sql", b"2")]);
    for (path, bytes) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("below the root"))?;
        std::fs::write(path, bytes)?;
    }
    let paths: Vec<String> = read_tree(root)?.into_iter().map(|file| file.path).collect();
    assert_eq!(paths, ["migrations/postgres/0001_log.sql", "migrations/sqlite/0001_log.sql", "src/a.rs"]);
    bless(root)?;
    let blessed = read_tree(root)?;
    assert_eq!(migrations::check(&blessed), Vec::<String>::new());
    std::fs::write(root.join("migrations/sqlite/0001_log.sql"), "3")?;
    assert!(bless(root).is_err(), "an edited migration is not blessed");
    Ok(())
}
