//! The alerts of `docs/operations.md`: each has its page, and asks for figures that a node has.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Running, everstep, folder, run};

/// What Prometheus itself adds, and functions and words of its language.
const NOT_OURS: [&str; 1] = ["up"];

/// The body of a GET.
async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let host = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}

/// Rows of the table of alerts: name, expression, page.
fn alerts(operations: &str) -> Vec<(&str, &str, &str)> {
    let rows = operations.lines().filter(|line| line.starts_with("| Everstep"));
    rows.filter_map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, expression, _, page] = cells[..] else { return None };
        let page = page.split_once("](")?.1.trim_end_matches(')');
        Some((name, expression.trim_matches('`'), page))
    })
    .collect()
}

/// Names of metrics in an expression: words with an underscore that are followed by no parenthesis, outside of quotes
/// and of braces.
fn metrics(expression: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for outside in expression.split('{').flat_map(|part| part.rsplit('}').next()) {
        for word in outside.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '(') {
            if (word.contains('_') && !word.contains('(')) || NOT_OURS.contains(&word) {
                names.insert(word);
            } else if let Some((_, inner)) = word.rsplit_once('(').filter(|(_, inner)| inner.contains('_')) {
                names.insert(inner);
            }
        }
    }
    names
}

/// Whether a node's `/metrics` has it. Of a histogram, the three series that every histogram has.
fn has(metrics: &str, name: &str) -> bool {
    let family = ["_count", "_bucket", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let declared = |kind| metrics.lines().any(|line| line == format!("# TYPE {family} {kind}"));
    declared("histogram") || (family == name && (declared("counter") || declared("gauge")))
}

#[test]
fn metrics_are_found_in_expressions() {
    for (expression, expected) in [
        ("up{job=\"x\"} == 0", &["up"][..]),
        ("sum by (a) (rate(b_total{c_d=\"e_f\"}[5m])) > 0.2 * sum(g_h)", &["b_total", "g_h"]),
        ("histogram_quantile(0.99, sum by (le) (rate(a_bucket{b=\"c\"}[5m]))) > 1", &["a_bucket"]),
    ] {
        assert_eq!(metrics(expression), expected.iter().copied().collect(), "{expression}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_ask_for_what_a_node_says() -> anyhow::Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let operations = std::fs::read_to_string(docs.join("operations.md"))?;
    let alerts = alerts(&operations);
    assert!(alerts.len() > 10, "{alerts:?}");
    let folder = folder()?;
    let node = Running::server(everstep(folder.path(), &["dev", "--port", "0"])).await?;
    // Any call at all, so that the histogram of calls has a series.
    ensure!(run(folder.path(), &["run", "list", "--address", &node.address]).await?.code == Some(0));
    let said = get(&node.address, "/metrics").await?;
    let mut pages = BTreeSet::new();
    for (alert, expression, page) in alerts {
        let asked = metrics(expression);
        assert!(!asked.is_empty(), "{alert} asks for nothing: {expression}");
        for name in asked.into_iter().filter(|name| !NOT_OURS.contains(name)) {
            assert!(has(&said, name), "{alert} asks for {name}, which no node has");
        }
        let text = std::fs::read_to_string(docs.join(page)).with_context(|| format!("{alert}: {page}"))?;
        assert!(text.starts_with(&format!("# {alert}\n")), "{page} is not the page of {alert}");
        for part in ["**Look.**", "**Do.**", "**Do not**"] {
            assert!(text.contains(part), "{page} lacks {part}");
        }
        pages.insert(docs.join(page));
    }
    let written: BTreeSet<_> = std::fs::read_dir(docs.join("operations"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    assert_eq!(written, pages, "a page without an alert, or the other way round");
    assert_eq!(node.terminate().await?, Some(0));
    Ok(())
}
