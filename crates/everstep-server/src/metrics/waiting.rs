//! Runs that nobody has the code for, by what they wait for. Names are the users', so there is a limit on them.

use std::fmt::Write as _;

use everstep_store::WaitingGroup;

/// Series at most; what is beyond is added up under [`OTHER`].
const SERIES_MAX: usize = 100;
const OTHER: &str = "_other";

pub(super) fn figures(waiting: &[WaitingGroup], text: &mut String) {
    let name = "everstep_runs_waiting_for_build";
    // Writing to a string cannot fail.
    let _ =
        writeln!(text, "# HELP {name} Runs that no connected worker has the code for.\n# TYPE {name} gauge");
    let (shown, rest) = waiting.split_at(waiting.len().min(SERIES_MAX - 1));
    let mut line = |labels: [&str; 4], runs: u64| {
        let [namespace, queue, workflow_type, build] = labels.map(escaped);
        let _ = writeln!(
            text,
            "{name}{{namespace=\"{namespace}\",queue=\"{queue}\",workflow_type=\"{workflow_type}\",build=\"{build}\"}} {runs}"
        );
    };
    for WaitingGroup { task, runs, .. } in shown {
        line([&task.queue.namespace, &task.queue.task_queue, &task.workflow_type, &task.build_id], *runs);
    }
    if !rest.is_empty() {
        line([OTHER; 4], rest.iter().map(|group| group.runs).sum());
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use everstep_core::{Duration, QueueKey, TaskRow};

    use super::*;

    fn group(n: usize) -> WaitingGroup {
        let queue = QueueKey { namespace: "n".to_owned(), task_queue: "q".to_owned() };
        let task = TaskRow { queue, workflow_type: format!("t{n}"), build_id: "a\"b\\c\n".to_owned() };
        WaitingGroup { task, runs: 2, oldest: Duration::default() }
    }

    #[test]
    fn there_are_at_most_a_hundred_series() {
        let mut text = String::new();
        figures(&(0..250).map(group).collect::<Vec<_>>(), &mut text);
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(series.len(), SERIES_MAX);
        assert!(series[0].ends_with("workflow_type=\"t0\",build=\"a\\\"b\\\\c\\n\"} 2"), "{}", series[0]);
        assert!(series[99].contains("build=\"_other\"} 302"), "{}", series[99]);
        let mut none = String::new();
        figures(&[], &mut none);
        assert!(none.contains("# TYPE everstep_runs_waiting_for_build gauge"), "{none}");
    }
}
