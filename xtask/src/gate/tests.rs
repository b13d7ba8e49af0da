//! What passes the gate, and what does not.

use super::*;

fn counts(of: &[(&str, u64)]) -> Counts {
    of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn a_count_beyond_its_tolerance_fails_and_one_at_it_passes() -> anyhow::Result<()> {
    let baseline = parse("# words\n\nfold 1000 30\n")?;
    assert!(compare(&baseline, &counts(&[("fold", 1_030)])).is_empty());
    assert!(compare(&baseline, &counts(&[("fold", 10)])).is_empty());
    let problems = compare(&baseline, &counts(&[("fold", 1_031)]));
    assert!(matches!(&problems[..], [p] if p.contains("--bless")), "{problems:?}");
    Ok(())
}

#[test]
fn a_path_without_a_line_and_a_line_without_a_path_fail() -> anyhow::Result<()> {
    let baseline = parse("fold 1000 30\n")?;
    assert_eq!(compare(&baseline, &counts(&[("replay", 1)])).len(), 2);
    Ok(())
}

#[test]
fn blessing_keeps_the_tolerances() -> anyhow::Result<()> {
    let baseline = parse("fold 1000 70\n")?;
    let after = parse(&blessed(&baseline, &counts(&[("fold", 2_000), ("replay", 5)])))?;
    assert_eq!(after["fold"], Allowed { instructions: 2_000, per_mille: 70 });
    assert_eq!(after["replay"], Allowed { instructions: 5, per_mille: TOLERANCE_PER_MILLE });
    Ok(())
}

#[test]
fn lines_that_are_no_baseline_and_output_without_counts_are_refused() {
    assert!(parse("fold 1000\n").is_err());
    assert!(parse("fold many 30\n").is_err());
    assert!(counts_of("").is_err());
    assert!(counts_of(r#"{"function_name":"fold","profiles":[{"data":{"parts":[]}}]}"#).is_err());
    let line = r#"{"function_name":"fold","profiles":[{"data":{"parts":[{"metrics":{"Ir":{"values":{"new":7}}}}]}}]}"#;
    assert_eq!(counts_of(line).ok(), Some(counts(&[("fold", 7)])));
}
