//! Administrative changes, and that a request is carried out once.

use std::collections::BTreeMap;

use everstep_core::{AttributeType, Duration, RetryPolicy, limits};

use super::sample::unique;
use super::{Subject, ok};
use crate::{AdminRequest, Administered, Change, NamespaceChange, NamespaceSettings, REQUESTS_KEPT};

fn request(id: &str, hash: u8) -> AdminRequest {
    AdminRequest { request_id: id.to_owned(), body_hash: [hash; 32] }
}

async fn make(subject: &Subject, change: &Change) -> Administered {
    ok(subject.store.administer(change, None).await)
}

async fn a_namespace(subject: &Subject) -> String {
    let name = unique("ns");
    let change = Change::CreateNamespace { name: name.clone(), description: "for people".to_owned() };
    assert_eq!(make(subject, &change).await, Administered::Done);
    assert_eq!(make(subject, &change).await, Administered::Exists);
    name
}

fn declare(namespace: &str, attributes: &[(&str, AttributeType)]) -> Change {
    let attributes = attributes.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
    Change::AddSearchAttributes { namespace: namespace.to_owned(), attributes }
}

/// Goal: a namespace keeps what it is told to set, and forgets it when told so.
pub async fn a_namespace_keeps_its_settings(subject: &Subject) {
    let name = a_namespace(subject).await;
    let settings = async || ok(subject.store.get_namespace(&name).await).map(|n| (n.description, n.settings));
    let update = |change| Change::UpdateNamespace { name: name.clone(), change };
    assert_eq!(settings().await, Some(("for people".to_owned(), NamespaceSettings::default())));
    let odd = RetryPolicy { backoff_coefficient: 1.1, maximum_attempts: 7, ..RetryPolicy::default() };
    let first = NamespaceChange {
        step_retry: Some(Some(odd.clone())),
        run_timeout: Some(Some(Duration::from_micros(1))),
        ..NamespaceChange::default()
    };
    assert_eq!(make(subject, &update(first)).await, Administered::Done);
    let expected = NamespaceSettings {
        step_retry: Some(odd.clone()),
        run_retry: None,
        run_timeout: Some(Duration::from_micros(1)),
    };
    assert_eq!(settings().await, Some(("for people".to_owned(), expected)));
    let second = NamespaceChange {
        description: Some("changed".to_owned()),
        run_retry: Some(Some(odd.clone())),
        run_timeout: Some(None),
        ..NamespaceChange::default()
    };
    assert_eq!(make(subject, &update(second)).await, Administered::Done);
    let expected =
        NamespaceSettings { step_retry: Some(odd.clone()), run_retry: Some(odd), run_timeout: None };
    assert_eq!(settings().await, Some(("changed".to_owned(), expected)));
    let nowhere = Change::UpdateNamespace { name: unique("ns"), change: NamespaceChange::default() };
    assert_eq!(make(subject, &nowhere).await, Administered::NoNamespace);
}

/// Goal: attributes are declared once with a type that stays, up to the limit, and all or none of a change.
pub async fn attributes_are_declared_for_good(subject: &Subject) {
    let name = a_namespace(subject).await;
    let declared = async || ok(subject.store.search_attributes(&name).await);
    assert!(declared().await.is_empty());
    let all: Vec<(&str, AttributeType)> =
        AttributeType::ALL.into_iter().map(|kind| (kind.as_str(), kind)).collect();
    assert_eq!(make(subject, &declare(&name, &all)).await, Administered::Done);
    let expected: BTreeMap<String, AttributeType> =
        all.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
    assert_eq!(declared().await, expected);
    assert_eq!(make(subject, &declare(&name, &all[..2])).await, Administered::Done, "it is so already");
    let other = declare(&name, &[("another", AttributeType::Int), ("int", AttributeType::Float)]);
    let refused = Administered::OtherType { name: "int".to_owned(), declared: AttributeType::Int };
    assert_eq!(make(subject, &other).await, refused);
    assert_eq!(declared().await, expected, "all or none");
    let many: Vec<String> = (0..limits::DECLARED_ATTRIBUTES_MAX).map(|i| format!("many {i}")).collect();
    let many: Vec<(&str, AttributeType)> = many.iter().map(|name| (&**name, AttributeType::Int)).collect();
    let actual = limits::DECLARED_ATTRIBUTES_MAX + all.len();
    assert_eq!(make(subject, &declare(&name, &many)).await, Administered::TooMany { actual });
    let rest = &many[all.len()..];
    assert_eq!(make(subject, &declare(&name, rest)).await, Administered::Done);
    assert_eq!(declared().await.len(), limits::DECLARED_ATTRIBUTES_MAX);
    let nowhere = declare(&unique("ns"), &all);
    assert_eq!(make(subject, &nowhere).await, Administered::NoNamespace);
    assert!(ok(subject.store.search_attributes(nowhere.namespace()).await).is_empty());
}

/// Goal: the same request again changes nothing, also when others have made changes since; the same id for another
/// request is told; what was refused may be asked again.
pub async fn an_administrative_request_is_carried_out_once(subject: &Subject) {
    let (store, name) = (&*subject.store, a_namespace(subject).await);
    let describe = |text: &str| Change::UpdateNamespace {
        name: name.clone(),
        change: NamespaceChange { description: Some(text.to_owned()), ..NamespaceChange::default() },
    };
    let description = async || ok(store.get_namespace(&name).await).map(|n| n.description);
    let ask =
        async |change: &Change, request: &AdminRequest| ok(store.administer(change, Some(request)).await);
    assert_eq!(ask(&describe("first"), &request("r", 1)).await, Administered::Done);
    assert_eq!(ask(&describe("second"), &request("s", 2)).await, Administered::Done);
    assert_eq!(ask(&describe("first"), &request("r", 1)).await, Administered::Again);
    assert_eq!(ask(&describe("third"), &request("r", 3)).await, Administered::OtherRequest);
    assert_eq!(description().await.as_deref(), Some("second"));
    // Each kind of change and each namespace has ids of its own.
    let declared = declare(&name, &[("a", AttributeType::Int)]);
    assert_eq!(ask(&declared, &request("r", 4)).await, Administered::Done);
    let (other, elsewhere) = (a_namespace(subject).await, describe("elsewhere"));
    let elsewhere = match elsewhere {
        Change::UpdateNamespace { change, .. } => Change::UpdateNamespace { name: other, change },
        other => other,
    };
    assert_eq!(ask(&elsewhere, &request("r", 5)).await, Administered::Done);
    let refused = declare(&name, &[("a", AttributeType::Bool)]);
    let of_other_type = Administered::OtherType { name: "a".to_owned(), declared: AttributeType::Int };
    assert_eq!(ask(&refused, &request("t", 6)).await, of_other_type);
    assert_eq!(
        ask(&declared, &request("t", 7)).await,
        Administered::Done,
        "nothing was noted of what was refused"
    );
    let (change, asked) = (describe("both"), request("u", 8));
    let (a, b) = (store.administer(&change, Some(&asked)), store.administer(&change, Some(&asked)));
    let (a, b) = tokio::join!(a, b);
    let mut outcomes = [ok(a), ok(b)];
    outcomes.sort_by_key(|outcome| *outcome == Administered::Again);
    assert_eq!(outcomes, [Administered::Done, Administered::Again]);
    if subject.advance.is_some() {
        subject.pass(subject.now().await.after(REQUESTS_KEPT)).await;
        assert_eq!(ask(&describe("first"), &request("r", 9)).await, Administered::Done, "a day later");
    }
}
