//! Third-party code, held against `deny.toml` without cargo-deny, which few machines have: licenses,
//! banned crates, crates that may be there only once. The list of known vulnerabilities is not here.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;
use toml::Table;

use super::Problems;
use crate::shell;

/// What `deny.toml` asks for.
#[derive(Debug, Default)]
pub(super) struct Rules {
    licenses: Vec<String>,
    /// Banned: the name and, where only old versions are, the first good one.
    bans: Vec<(String, Option<Version>, String)>,
    once: Vec<(String, String)>,
    wrappers: Vec<(String, Vec<String>)>,
}

/// A package of the resolved dependency tree.
#[derive(Debug)]
pub(super) struct Package {
    name: String,
    version: String,
    license: Option<String>,
    dependencies: Vec<String>,
}

type Version = (u64, u64, u64);

pub(super) fn check(root: &Path) -> anyhow::Result<Problems> {
    let text = std::fs::read_to_string(root.join("deny.toml")).context("cannot read deny.toml")?;
    let rules = parse_rules(&text)?;
    let mut metadata = shell::cargo(root);
    metadata.args(["metadata", "--format-version", "1", "--locked"]);
    let packages = parse_packages(&shell::output(&mut metadata)?)?;
    Ok(check_packages(&rules, &packages))
}

pub(super) fn check_packages(rules: &Rules, packages: &[Package]) -> Problems {
    let mut problems = Problems::new();
    check_licenses(rules, packages, &mut problems);
    check_bans(rules, packages, &mut problems);
    check_once(rules, packages, &mut problems);
    check_wrappers(rules, packages, &mut problems);
    problems
}

fn check_licenses(rules: &Rules, packages: &[Package], problems: &mut Problems) {
    for Package { name, version, license, .. } in packages {
        let allowed = license.as_deref().is_some_and(|license| is_allowed(license, &rules.licenses));
        if !allowed {
            let license = license.as_deref().unwrap_or("no stated license");
            problems.push(format!(
                "{name} {version}: {license} is not in the allow-list of deny.toml; choose another crate"
            ));
        }
    }
}

fn check_bans(rules: &Rules, packages: &[Package], problems: &mut Problems) {
    for (banned, first_good, reason) in &rules.bans {
        for package in packages.iter().filter(|package| package.name == *banned) {
            let too_old = first_good.is_none_or(|good| parse_version(&package.version) < Some(good));
            if too_old {
                problems.push(format!(
                    "{banned} {}: is banned by deny.toml: {reason}; `cargo tree -i {banned}` shows who brings it",
                    package.version
                ));
            }
        }
    }
}

fn check_once(rules: &Rules, packages: &[Package], problems: &mut Problems) {
    for (name, reason) in &rules.once {
        let found = packages.iter().filter(|package| package.name == *name);
        let versions: Vec<&str> = found.map(|package| package.version.as_str()).collect();
        if versions.len() > 1 {
            problems.push(format!(
                "{name}: there in {} versions ({}), but deny.toml allows one: {reason}; `cargo tree -d` shows who \
                 brings them",
                versions.len(),
                versions.join(", ")
            ));
        }
    }
}

fn check_wrappers(rules: &Rules, packages: &[Package], problems: &mut Problems) {
    for (name, wrappers) in &rules.wrappers {
        let users = packages.iter().filter(|package| package.dependencies.contains(name));
        for user in users.filter(|user| !wrappers.contains(&user.name)) {
            problems.push(format!(
                "{}: may not depend on {name}; deny.toml leaves that to {}",
                user.name,
                wrappers.join(", ")
            ));
        }
    }
}

/// Reads the parts of `deny.toml` that are checked here, and refuses entries it does not understand.
pub(super) fn parse_rules(text: &str) -> anyhow::Result<Rules> {
    let table: Table = toml::from_str(text).context("deny.toml is no valid TOML")?;
    let list = |section: &str, key: &str| -> anyhow::Result<Vec<toml::Value>> {
        let found = table.get(section).and_then(|section| section.get(key)).and_then(toml::Value::as_array);
        found.cloned().with_context(|| format!("deny.toml has no list `{key}` in [{section}]"))
    };
    let mut rules = Rules::default();
    for license in list("licenses", "allow")? {
        rules.licenses.push(license.as_str().context("a license in deny.toml is no text")?.to_owned());
    }
    for ban in list("bans", "deny")? {
        let text = |key: &str| ban.get(key).and_then(toml::Value::as_str);
        let spec = text("crate").context("an entry of `deny` in deny.toml has no `crate`")?;
        let reason =
            text("reason").with_context(|| format!("the ban of {spec} in deny.toml has no reason"))?;
        if let Some(wrappers) = ban.get("wrappers").and_then(toml::Value::as_array) {
            let names = wrappers.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect();
            rules.wrappers.push((spec.to_owned(), names));
        } else if ban.get("deny-multiple-versions").and_then(toml::Value::as_bool) == Some(true) {
            rules.once.push((spec.to_owned(), reason.to_owned()));
        } else {
            let (name, first_good) = parse_spec(spec)?;
            rules.bans.push((name, first_good, reason.to_owned()));
        }
    }
    Ok(rules)
}

/// `name`, or `name:<1.2.3` for the versions before a good one.
fn parse_spec(spec: &str) -> anyhow::Result<(String, Option<Version>)> {
    let Some((name, versions)) = spec.split_once(':') else {
        return Ok((spec.to_owned(), None));
    };
    let first_good = versions.strip_prefix('<').and_then(parse_version);
    if first_good.is_none() {
        bail!("deny.toml: `{spec}` is not understood; write `{name}` or `{name}:<1.2.3`");
    }
    Ok((name.to_owned(), first_good))
}

/// The numbers of a version; a pre-release or build part is left out.
fn parse_version(text: &str) -> Option<Version> {
    let numbers = text.split(['-', '+']).next()?;
    let mut parts = numbers.split('.').map(|part| part.parse::<u64>().ok());
    let version = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(version)
}

pub(super) fn parse_packages(metadata: &str) -> anyhow::Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(metadata).context("cargo metadata wrote no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let read = |package: &Value| -> Option<Package> {
        let dependencies = package["dependencies"].as_array()?;
        Some(Package {
            name: text(&package["name"])?,
            version: text(&package["version"])?,
            license: text(&package["license"]),
            // Optional ones may be off; wrappers concern those that this workspace turns on by itself.
            dependencies: dependencies
                .iter()
                .filter(|dependency| dependency["optional"] != Value::Bool(true))
                .filter_map(|dependency| text(&dependency["name"]))
                .collect(),
        })
    };
    let packages: BTreeMap<_, _> = packages
        .iter()
        .map(|package| {
            let package =
                read(package).context("cargo metadata describes a package that is not understood")?;
            Ok(((package.name.clone(), package.version.clone()), package))
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(packages.into_values().collect())
}

/// Whether an SPDX expression can be met with the allowed licenses: `OR` below `AND`, parentheses,
/// `WITH` an exception, and the old forms `/` and `or` for `OR`.
pub(super) fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced =
        expression.replace('/', " OR ").replace(" or ", " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    let met = any_of(&mut words, allowed);
    met == Some(true) && words.is_empty()
}

/// The words are reversed, so that the next one is popped; `None` is a malformed expression.
fn any_of(words: &mut Vec<&str>, allowed: &[String]) -> Option<bool> {
    let mut met = all_of(words, allowed)?;
    while words.last() == Some(&"OR") {
        words.pop();
        met |= all_of(words, allowed)?;
    }
    Some(met)
}

fn all_of(words: &mut Vec<&str>, allowed: &[String]) -> Option<bool> {
    let mut met = license(words, allowed)?;
    while words.last() == Some(&"AND") {
        words.pop();
        met &= license(words, allowed)?;
    }
    Some(met)
}

fn license(words: &mut Vec<&str>, allowed: &[String]) -> Option<bool> {
    let first = words.pop()?;
    if first == "(" {
        let met = any_of(words, allowed)?;
        return (words.pop()? == ")").then_some(met);
    }
    let mut name = first.to_owned();
    if words.last() == Some(&"WITH") {
        words.pop();
        name = format!("{first} WITH {}", words.pop()?);
    }
    Some(allowed.contains(&name))
}
