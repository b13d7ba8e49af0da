//! Search attributes: what namespaces declare, as this node knows it, and requests held against it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use everstep_core::{Attribute, AttributeType, Finite, StartRun};
use everstep_engine::Engine;
use everstep_proto::api;
use everstep_proto::wire::decode_attribute;
use everstep_store::{AttributeFilter, Comparison};
use tokio::time::Instant;
use tonic::Status;

use crate::check::Check;
use crate::reason::{self, Reason};
use crate::status;

/// What was declared is looked up again after this long, and whenever it would lead to a refusal.
const AGE_MAX: Duration = Duration::from_secs(5);
/// Filters of one list.
const FILTERS_MAX: usize = 10;

/// The attributes of one namespace.
type Declared = Arc<BTreeMap<String, AttributeType>>;

/// What the namespaces that were asked for declare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declarations {
    known: Arc<Mutex<HashMap<String, (Declared, Instant)>>>,
}

/// Why an attribute cannot be used.
struct Unfit {
    field: String,
    reason: Reason,
    problem: String,
}

impl Declarations {
    /// Looks it up if it is not known, or was longer ago than `age`.
    async fn of(&self, engine: &Engine, namespace: &str, age: Duration) -> Result<Declared, Status> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned();
        if let Some((declared, at)) = known
            && at.elapsed() < age
        {
            return Ok(declared);
        }
        let at = Instant::now();
        let found = engine.store().search_attributes(namespace).await.map_err(|e| status::of_store(&e))?;
        let found = Arc::new(found);
        // A caller may name any namespace: those that declare nothing are not remembered.
        if !found.is_empty() {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(namespace.to_owned(), (Arc::clone(&found), at));
        }
        Ok(found)
    }

    /// Holds something against what is declared, and if that is not what it is, against what is declared now.
    async fn check<T>(
        &self,
        engine: &Engine,
        namespace: &str,
        hold: impl Fn(&BTreeMap<String, AttributeType>) -> Result<T, Unfit>,
    ) -> Result<T, Status> {
        if let Ok(fits) = hold(&*self.of(engine, namespace, AGE_MAX).await?) {
            return Ok(fits);
        }
        hold(&*self.of(engine, namespace, Duration::ZERO).await?).map_err(
            |Unfit { field, reason, problem }| {
                status::of_violations(vec![status::violation(field, reason, problem)])
            },
        )
    }

    /// Refuses the attributes of a start, which stands in the field `outer`, that its namespace has not declared, or
    /// with another type.
    pub(crate) async fn check_start(
        &self,
        engine: &Engine,
        outer: &str,
        start: &StartRun,
    ) -> Result<(), Status> {
        if start.notes.attributes.is_empty() {
            return Ok(());
        }
        self.check(engine, &start.namespace, |declared| {
            for (name, value) in &start.notes.attributes {
                let field = format!("{outer}search_attributes[{name}]");
                let kind = type_of(declared, &field, name)?;
                if kind != value.kind() {
                    return Err(other_type(field, kind, value));
                }
            }
            Ok(())
        })
        .await
    }

    /// Reads the filters of a list.
    pub(crate) async fn filters(
        &self,
        engine: &Engine,
        namespace: &str,
        wire: Vec<api::AttributeFilter>,
    ) -> Result<Vec<AttributeFilter>, Status> {
        if wire.is_empty() {
            return Ok(Vec::new());
        }
        let mut check = Check::default();
        if wire.len() > FILTERS_MAX {
            let problem = format!("has {} entries, more than the limit of {FILTERS_MAX}", wire.len());
            check.refuse("attribute_filters", reason::LIMIT_EXCEEDED, problem);
        }
        let mut filters = Vec::new();
        for (i, filter) in wire.into_iter().take(FILTERS_MAX).enumerate() {
            filters.extend(read_filter(&mut check, &format!("attribute_filters[{i}]"), filter));
        }
        check.finish()?;
        self.check(engine, namespace, |declared| {
            let with_type = |(i, filter): (usize, &AttributeFilter)| {
                let field = format!("attribute_filters[{i}]");
                let kind = type_of(declared, &format!("{field}.name"), &filter.name)?;
                fit(field, kind, filter)
            };
            filters.iter().enumerate().map(with_type).collect()
        })
        .await
    }
}

fn read_filter(check: &mut Check, field: &str, wire: api::AttributeFilter) -> Option<AttributeFilter> {
    let api::AttributeFilter { name, op, value } = wire;
    let name = check.name(format!("{field}.name"), name);
    let op = match api::Comparison::try_from(op) {
        Ok(api::Comparison::Unspecified | api::Comparison::Eq) => Comparison::Eq,
        Ok(api::Comparison::Ne) => Comparison::Ne,
        Ok(api::Comparison::Lt) => Comparison::Lt,
        Ok(api::Comparison::Le) => Comparison::Le,
        Ok(api::Comparison::Gt) => Comparison::Gt,
        Ok(api::Comparison::Ge) => Comparison::Ge,
        Err(_) => {
            check.refuse(format!("{field}.op"), reason::UNKNOWN_ENUM, format!("has the unknown value {op}"));
            return None;
        }
    };
    let field = format!("{field}.value");
    let value = check.take(decode_attribute(&field, value.unwrap_or_default()).map(Some))?;
    if let Attribute::Keyword(text) = &value {
        check.text(field, text.clone(), everstep_core::limits::KEYWORD_BYTES_MAX);
    }
    Some(AttributeFilter { name, op, value })
}

fn type_of(
    declared: &BTreeMap<String, AttributeType>,
    field: &str,
    name: &str,
) -> Result<AttributeType, Unfit> {
    declared.get(name).copied().ok_or_else(|| {
        let hint = match nearest(name, declared.keys()) {
            Some(nearest) => format!("; did you mean '{nearest}'?"),
            None => String::new(),
        };
        let problem = format!("is not declared in the namespace{hint}");
        Unfit { field: field.to_owned(), reason: reason::ATTRIBUTE_NOT_DECLARED, problem }
    })
}

fn other_type(field: String, kind: AttributeType, value: &Attribute) -> Unfit {
    let problem = format!("is declared as {}, not as {}", kind.as_str(), value.kind().as_str());
    Unfit { field, reason: reason::ATTRIBUTE_TYPE_MISMATCH, problem }
}

/// The filter as the store takes it: with a value of the declared type.
fn fit(field: String, kind: AttributeType, filter: &AttributeFilter) -> Result<AttributeFilter, Unfit> {
    let value = match (kind, &filter.value) {
        (AttributeType::Keywords, Attribute::Keyword(text)) => Attribute::Keywords(vec![text.clone()]),
        (AttributeType::Float, Attribute::Int(number)) => match exact(*number) {
            Some(number) => Attribute::Float(number),
            None => {
                let problem = "is a whole number that no floating-point number is equal to".to_owned();
                return Err(Unfit {
                    field: format!("{field}.value"),
                    reason: reason::INVALID_FILTER,
                    problem,
                });
            }
        },
        (kind, value) if kind == value.kind() && kind != AttributeType::Keywords => value.clone(),
        (kind, value) => return Err(other_type(format!("{field}.value"), kind, value)),
    };
    let ordered = !matches!(kind, AttributeType::Keywords | AttributeType::Bool);
    if !ordered && !matches!(filter.op, Comparison::Eq | Comparison::Ne) {
        let problem = format!("makes no sense of {}: only EQ and NE do", kind.as_str());
        return Err(Unfit { field: format!("{field}.op"), reason: reason::INVALID_FILTER, problem });
    }
    Ok(AttributeFilter { name: filter.name.clone(), op: filter.op, value })
}

/// The same number as a floating-point one, if there is one.
fn exact(number: i64) -> Option<Finite> {
    let float = number as f64;
    (float as i128 == i128::from(number)).then(|| Finite::new(float)).flatten()
}

/// The name that is most like one that is not there, if one is at all.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let near = names.map(|candidate| (distance(name, candidate), candidate)).min()?;
    (near.0 <= name.len().max(near.1.len()) / 2).then_some(near.1)
}

/// Letters to change, add or leave out to get from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let kept = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = kept.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_that_may_be_meant() {
        let names: Vec<String> = ["customer", "amount", "stage"].map(String::from).into();
        let near = |name| nearest(name, names.iter()).map(String::as_str);
        assert_eq!(near("custmer"), Some("customer"));
        assert_eq!(near("Amount"), Some("amount"));
        assert_eq!(near("satge"), Some("stage"));
        assert_eq!(near("zzzzzzz"), None);
        assert_eq!(nearest("x", std::iter::empty()), None);
    }

    #[test]
    fn a_whole_number_does_for_a_number_when_it_is_one() {
        assert_eq!(exact(3).map(Finite::get), Some(3.0));
        assert_eq!(exact(1 << 53).map(Finite::get), Some(9_007_199_254_740_992.0));
        assert_eq!(exact((1 << 53) + 1), None);
        assert_eq!(exact(i64::MAX), None);
    }

    #[test]
    fn a_filter_fits_the_declared_type_or_says_why_not() {
        let filter = |op, value| AttributeFilter { name: "a".to_owned(), op, value };
        let fits = |kind, op, value| fit("f".to_owned(), kind, &filter(op, value)).map_err(|u| u.reason.word);
        let word = || Attribute::Keyword("x".to_owned());
        assert!(fits(AttributeType::Keyword, Comparison::Lt, word()).is_ok());
        let listed = fits(AttributeType::Keywords, Comparison::Ne, word()).map(|f| f.value);
        assert_eq!(listed, Ok(Attribute::Keywords(vec!["x".to_owned()])));
        assert_eq!(fits(AttributeType::Keywords, Comparison::Lt, word()), Err("INVALID_FILTER"));
        assert_eq!(fits(AttributeType::Bool, Comparison::Ge, Attribute::Bool(true)), Err("INVALID_FILTER"));
        assert_eq!(fits(AttributeType::Int, Comparison::Eq, word()), Err("ATTRIBUTE_TYPE_MISMATCH"));
        let list = Attribute::Keywords(vec!["x".to_owned()]);
        assert_eq!(fits(AttributeType::Keywords, Comparison::Eq, list), Err("ATTRIBUTE_TYPE_MISMATCH"));
    }
}
