//! Search attributes: written with the events they follow from, and what lists are filtered by.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{
    Attribute, AttributeRows, AttributeType, Finite, RunId, RunRow, RunStatus, Timestamp, Write,
};

use super::sample::{MANY, Sample, commit, started, tables, unique};
use super::{Subject, ok};
use crate::{AttributeFilter, Comparison, PageToken, RunFilter};

fn float(number: f64) -> Attribute {
    Finite::new(number).map_or(Attribute::Int(0), Attribute::Float)
}

fn keyword(text: &str) -> Attribute {
    Attribute::Keyword(text.to_owned())
}

fn keywords(texts: &[&str]) -> Attribute {
    Attribute::Keywords(texts.iter().map(|text| (*text).to_owned()).collect())
}

/// Values of each type, the odd ones among them.
fn values() -> Vec<Attribute> {
    let mut values: Vec<Attribute> =
        ["", "a", "B", "ab", "é", "a'b\\%_", &"x".repeat(1_024)].map(keyword).into();
    values.extend([&[][..], &["a"], &["a", "b"], &["c", "B", "é"]].map(keywords));
    values.extend([i64::MIN, -1, 0, 1, 1 << 53, (1 << 53) + 1, i64::MAX].map(Attribute::Int));
    values.extend([f64::MIN, -1.5, -f64::MIN_POSITIVE, 0.0, 0.1 + 0.2, 0.3, 1e300, f64::MAX].map(float));
    values.extend([false, true].map(Attribute::Bool));
    let instants = [-62_135_596_800_000_000, -1, 0, 1, 1_700_000_000_000_001, Timestamp::MAX.as_micros()];
    values.extend(instants.map(|micros| Attribute::Time(Timestamp::from_micros(micros))));
    values
}

/// Values that a filter may ask for.
fn asked() -> Vec<Attribute> {
    let lists = ["a", "b", "é", "none"].map(|text| keywords(&[text]));
    values().into_iter().filter(|value| value.kind() != AttributeType::Keywords).chain(lists).collect()
}

fn operators(kind: AttributeType) -> &'static [Comparison] {
    match kind {
        AttributeType::Keywords | AttributeType::Bool => &[Comparison::Eq, Comparison::Ne],
        _ => &Comparison::ALL,
    }
}

/// Some attributes, drawn with `below`.
pub(super) fn random(below: &mut impl FnMut(usize) -> usize) -> BTreeMap<String, Attribute> {
    let all = values();
    (0..below(4)).map(|_| (["a", "b", "c"][below(3)].to_owned(), all[below(all.len())].clone())).collect()
}

/// A filter, drawn with `below`.
pub(super) fn random_filter(below: &mut impl FnMut(usize) -> usize) -> AttributeFilter {
    let all = asked();
    let value = all[below(all.len())].clone();
    let operators = operators(value.kind());
    AttributeFilter {
        name: ["a", "b", "c"][below(3)].to_owned(),
        op: operators[below(operators.len())],
        value,
    }
}

fn set(sample: &Sample, attributes: &BTreeMap<String, Attribute>) -> Write {
    let (namespace, attributes) = (sample.queue.namespace.clone(), attributes.clone());
    Write::AttributesSet(Box::new(AttributeRows { namespace, attributes }))
}

fn named(attributes: &[(&str, Attribute)]) -> BTreeMap<String, Attribute> {
    attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// Goal: the attributes of a run are what the last append that names them says, all of them, whatever their types.
pub async fn attributes_of_a_run_are_replaced(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    assert!(tables(store, sample.run).await.projection.attributes.is_empty());
    let all: BTreeMap<String, Attribute> =
        values().into_iter().enumerate().map(|(i, value)| (format!("attribute {i}"), value)).collect();
    let written = [
        all,
        named(&[("a", keywords(&["x", "y", "z"])), ("b", Attribute::Int(7))]),
        named(&[("a", keywords(&["y"])), ("b", float(7.5)), ("c", Attribute::Bool(true))]),
        BTreeMap::new(),
    ];
    for (seq, attributes) in (2..).zip(&written) {
        commit(store, vec![sample.with(seq, vec![set(&sample, attributes)])]).await;
        assert_eq!(tables(store, sample.run).await.projection.attributes, *attributes);
    }
    let [first, last] =
        [named(&[("a", Attribute::Int(1)), ("b", Attribute::Int(2))]), named(&[("b", keyword("c"))])];
    commit(store, vec![sample.with(6, vec![set(&sample, &first), set(&sample, &last)])]).await;
    assert_eq!(tables(store, sample.run).await.projection.attributes, last);
    // Whoever loses writes none.
    let lost = store.append(vec![crate::Append::of(sample.with(6, vec![set(&sample, &first)]))]).await;
    assert!(matches!(lost.verdicts[..], [crate::Verdict::Conflict]), "{lost:?}");
    assert_eq!(tables(store, sample.run).await.projection.attributes, last);
}

/// Runs of one namespace with attributes of every type, newest first.
async fn a_population(subject: &Subject) -> Vec<(RunRow, BTreeMap<String, Attribute>)> {
    let namespace = unique("ns");
    let mut runs = Vec::new();
    for (i, value) in values().into_iter().enumerate() {
        let sample = Sample::of(subject, &namespace, &format!("order-{}", i % 3)).await;
        let found = ok(subject.store.find_start(&namespace, &sample.workflow_id, "none").await);
        commit(&*subject.store, vec![sample.start(found.current.map(|(run, _)| run))]).await;
        let status = if i % 2 == 0 { RunStatus::Running } else { RunStatus::Completed };
        let row = RunRow { status, ..sample.row(2) };
        let attributes = named(&[("a", value), ("i", Attribute::Int(i as i64 % 5))]);
        let writes = vec![set(&sample, &attributes), Write::Run(Box::new(row.clone()))];
        commit(&*subject.store, vec![sample.with(2, writes)]).await;
        runs.push((row, attributes));
    }
    // Another namespace has one just like it.
    let sample = Sample::new(subject).await;
    commit(&*subject.store, vec![sample.start(None)]).await;
    let writes = vec![set(&sample, &runs[0].1), Write::Run(Box::new(sample.row(2)))];
    commit(&*subject.store, vec![sample.with(2, writes)]).await;
    runs.reverse();
    runs
}

async fn check_list(
    subject: &Subject,
    runs: &[(RunRow, BTreeMap<String, Attribute>)],
    filter: &RunFilter,
) -> usize {
    let fits = |(row, attributes): &&(RunRow, BTreeMap<String, Attribute>)| {
        filter.attributes.iter().all(|filter| filter.matches(attributes))
            && filter.workflow_id.as_ref().is_none_or(|id| *id == row.workflow_id)
            && (filter.statuses.is_empty() || filter.statuses.contains(&row.status))
    };
    let expected: Vec<RunRow> = runs.iter().filter(fits).map(|(row, _)| row.clone()).collect();
    let store = &*subject.store;
    assert_eq!(ok(store.list_runs(filter, None, MANY).await), expected, "{:?}", filter.attributes);
    let (mut paged, mut page) = (Vec::new(), None);
    loop {
        let part = ok(store.list_runs(filter, page, 3).await);
        let Some(last) = part.last() else { break };
        page = Some(PageToken(last.run_id));
        paged.extend(part);
    }
    assert_eq!(paged, expected, "{:?}", filter.attributes);
    expected.len()
}

/// Goal: runs are found by attributes of each type with each operator, in pages too, and by nothing of another type
/// or namespace.
pub async fn runs_are_found_by_each_type_and_operator(subject: &Subject) {
    let runs = a_population(subject).await;
    let namespace = runs[0].0.namespace.clone();
    let mut found = BTreeSet::new();
    for value in asked() {
        for &op in operators(value.kind()) {
            let attribute = AttributeFilter { name: "a".to_owned(), op, value: value.clone() };
            let attributes = vec![attribute];
            let filter = RunFilter { namespace: namespace.clone(), attributes, ..RunFilter::default() };
            if check_list(subject, &runs, &filter).await > 0 {
                found.insert((value.kind(), op.as_sql()));
            }
        }
    }
    let all: usize = AttributeType::ALL.into_iter().map(|kind| operators(kind).len()).sum();
    assert_eq!(found.len(), all, "a pair that finds nothing compares nothing");
}

/// Goal: filters by attributes hold together, and with the other filters.
pub async fn filters_by_attributes_hold_together(subject: &Subject) {
    let runs = a_population(subject).await;
    let namespace = runs[0].0.namespace.clone();
    let of = |name: &str, op, value| AttributeFilter { name: name.to_owned(), op, value };
    let sets = [
        vec![of("i", Comparison::Eq, Attribute::Int(3)), of("a", Comparison::Ge, Attribute::Int(0))],
        vec![of("a", Comparison::Ge, Attribute::Int(0)), of("i", Comparison::Ne, Attribute::Int(3))],
        vec![of("a", Comparison::Ne, keyword("a")), of("i", Comparison::Lt, Attribute::Int(3))],
        vec![of("i", Comparison::Gt, Attribute::Int(0)), of("i", Comparison::Lt, Attribute::Int(4))],
    ];
    for attributes in sets {
        let filter = RunFilter { namespace: namespace.clone(), attributes, ..RunFilter::default() };
        assert!(check_list(subject, &runs, &filter).await > 0, "{filter:?}");
        let statuses = vec![RunStatus::Running, RunStatus::Failed];
        check_list(subject, &runs, &RunFilter { statuses: statuses.clone(), ..filter.clone() }).await;
        let workflow_id = Some("order-1".to_owned());
        check_list(subject, &runs, &RunFilter { workflow_id, statuses, ..filter.clone() }).await;
        let by_type = RunFilter { workflow_type: Some("refund".to_owned()), ..filter.clone() };
        assert!(ok(subject.store.list_runs(&by_type, None, MANY).await).is_empty());
        let parent = Some(RunId::from_uuid(uuid::Uuid::now_v7()));
        let children = RunFilter { parent, ..filter };
        assert!(ok(subject.store.list_runs(&children, None, MANY).await).is_empty());
    }
}
