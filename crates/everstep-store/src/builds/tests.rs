//! Who is there for whom.

use super::*;

fn queue(name: &str) -> QueueKey {
    QueueKey { namespace: "n".to_owned(), task_queue: name.to_owned() }
}

fn task(workflow_type: &str, build_id: &str) -> TaskRow {
    TaskRow { queue: queue("q"), workflow_type: workflow_type.to_owned(), build_id: build_id.to_owned() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&w| w.to_owned()).collect()
}

#[test]
fn a_want_fits_queue_type_and_build() {
    let want = RunWant {
        queue: queue("q"),
        workflow_types: words(&["a", "b"]),
        builds: words(&["2", "1"]),
        impatient: false,
    };
    for (fits, of, task) in [
        (true, "a type that it has", task("a", "")),
        (true, "its build", task("a", "2")),
        (true, "a build that it continues", task("b", "1")),
        (true, "an old row, without a type", task("", "")),
        (false, "a type that it lacks", task("c", "")),
        (false, "another build", task("a", "3")),
        (false, "another queue", TaskRow { queue: queue("p"), ..task("a", "") }),
    ] {
        assert_eq!(want.fits(&task), fits, "{of}");
    }
    let any = RunWant { workflow_types: Vec::new(), ..want };
    assert!(any.fits(&task("c", "")), "who names no types has them all");
}

#[test]
fn a_census_names_who_is_there_for_nobody() {
    let serving = ServingGroup {
        namespace: "n".to_owned(),
        build_id: "2".to_owned(),
        serves: Serves {
            task_queues: words(&["q"]),
            workflow_types: words(&["a"]),
            continues: words(&["1"]),
            ..Serves::default()
        },
        workers: 1,
    };
    let checks = ServingGroup { build_id: "9".to_owned(), serves: Serves::default(), ..serving.clone() };
    let waiting = |task| WaitingGroup { task, runs: 1, oldest: Duration::default() };
    let all = [task("a", ""), task("a", "2"), task("a", "1"), task("a", "0"), task("b", ""), task("a", "9")];
    let mut census =
        Census { waiting: all.map(waiting).to_vec(), serving: vec![serving, checks], allowed: Vec::new() };
    let unserved = |census: &Census| census.unserved().iter().map(|g| g.task.clone()).collect::<Vec<_>>();
    assert_eq!(unserved(&census), [task("a", "0"), task("b", ""), task("a", "9")]);
    let allow = |of| AllowedBuild { queue: queue(of), build_id: "2".to_owned(), continues: "0".to_owned() };
    census.allowed.push(allow("p"));
    assert_eq!(unserved(&census).len(), 3, "of another queue");
    census.allowed.push(allow("q"));
    assert_eq!(unserved(&census), [task("b", ""), task("a", "9")]);
    assert_eq!(census.builds("n"), BTreeSet::from(["2", "9"]));
}
