//! Lists by attributes go by an index, in its order.

use everstep_core::Attribute;
use everstep_store::{AttributeFilter, Comparison, RunFilter};
use sqlx::Row;

use super::list_query;
use crate::SqliteStore;
use crate::rows::run_columns;

async fn plan(store: &SqliteStore, attributes: Vec<AttributeFilter>) -> Vec<String> {
    let filter = RunFilter { namespace: "default".to_owned(), attributes, ..RunFilter::default() };
    let mut query = list_query(concat!("EXPLAIN QUERY PLAN SELECT ", run_columns!()), &filter, None, 10);
    let rows = query.build().fetch_all(store.readers()).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(3)).collect()
}

#[tokio::test]
async fn a_list_by_attributes_is_a_search_of_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("everstep.db")).await.unwrap();
    let filter = |name: &str, op, value| AttributeFilter { name: name.to_owned(), op, value };
    let customer = || filter("customer", Comparison::Eq, Attribute::Keyword("acme".to_owned()));
    let amount = || filter("amount", Comparison::Ge, Attribute::Int(10));
    let plan_of = plan(&store, vec![amount(), customer()]).await;
    let text = plan_of.join("\n");
    assert!(plan_of[0].contains("SEARCH d USING"), "{text}");
    assert!(
        plan_of[0].contains("run_attributes_text (namespace=? AND name=? AND text_value=? AND run_id<?)"),
        "{text}"
    );
    assert!(
        !text.contains("TEMP B-TREE") && !text.contains("SCAN"),
        "in the index's order, page by page: {text}"
    );
    let text = plan(&store, vec![amount()]).await.join("\n");
    assert!(text.contains("run_attributes_int (namespace=? AND name=? AND int_value>?)"), "{text}");
    assert!(!text.contains("SCAN"), "{text}");
}
