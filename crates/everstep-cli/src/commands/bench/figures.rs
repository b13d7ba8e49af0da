//! What was measured: medians, extremes, and whether a goal was met.

use serde_json::{Value, json};

use crate::fail::Fail;
use crate::out::{self, Format};

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
        }
    }
}

/// The values of one figure, one a round.
#[derive(Clone, Debug)]
struct Row {
    name: String,
    values: Vec<f64>,
    goal: Option<Goal>,
    /// Why there is no value.
    absent: &'static str,
}

/// All figures of a bench, in the order in which they were first taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures(Vec<Row>);

impl Figures {
    pub(super) fn add(&mut self, name: String, value: f64) {
        self.note(name, Some(value), None, "");
    }

    pub(super) fn add_with_goal(&mut self, name: String, value: f64, goal: Goal) {
        self.note(name, Some(value), Some(goal), "");
    }

    /// A figure that this machine cannot take.
    pub(super) fn add_absent(&mut self, name: String, why: &'static str) {
        self.note(name, None, None, why);
    }

    fn note(&mut self, name: String, value: Option<f64>, goal: Option<Goal>, absent: &'static str) {
        match value {
            Some(value) => out::note(&format!("{name:<40} {value:.3}")),
            None => out::note(&format!("{name:<40} {absent}")),
        }
        match self.0.iter_mut().find(|row| row.name == name) {
            Some(row) => row.values.extend(value),
            None => self.0.push(Row { name, values: value.into_iter().collect(), goal, absent }),
        }
    }

    #[cfg(test)]
    pub(super) fn median(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|row| row.name == name)?.summary().map(|(median, ..)| median)
    }

    /// The median and the extremes of each figure.
    pub(super) fn report(&self, output: Format) -> Result<(), Fail> {
        if output == Format::Text {
            let head = ("FIGURE", "MEDIAN", "LEAST", "GREATEST");
            out::line(&format!("{:<40} {:>12} {:>12} {:>12}  GOAL", head.0, head.1, head.2, head.3))?;
            return self.0.iter().try_for_each(|row| out::line(&row.text()));
        }
        let rounds = self.0.iter().map(|row| row.values.len()).max().unwrap_or(0);
        let figures: Vec<Value> = self.0.iter().map(Row::json).collect();
        out::json(&json!({"rounds": rounds, "figures": figures}))
    }
}

impl Row {
    /// Median, least and greatest.
    fn summary(&self) -> Option<(f64, f64, f64)> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        Some((*values.get(values.len() / 2)?, *values.first()?, *values.last()?))
    }

    fn text(&self) -> String {
        let name = &self.name;
        let Some((median, least, greatest)) = self.summary() else {
            return format!("{name:<40} {}", self.absent);
        };
        let goal = match self.goal {
            Some(goal) => format!("  {goal} {}", if goal.is_met(median) { "PASS" } else { "FAIL" }),
            None => String::new(),
        };
        format!("{name:<40} {median:>12.3} {least:>12.3} {greatest:>12.3}{goal}")
    }

    fn json(&self) -> Value {
        let Some((median, min, max)) = self.summary() else {
            return json!({"figure": self.name, "absent": self.absent});
        };
        let mut value = json!({"figure": self.name, "median": median, "min": min, "max": max});
        if let Some(goal) = self.goal {
            value["goal"] = json!(goal.to_string());
            value["met"] = json!(goal.is_met(median));
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides_whether_a_goal_is_met() {
        let mut figures = Figures::default();
        for value in [100.0, 1.0, 2.0] {
            figures.add_with_goal("page ms".to_owned(), value, Goal::AtMost(50.0));
        }
        figures.add_with_goal("ratio".to_owned(), 0.89, Goal::AtLeast(0.9));
        figures.add_absent("NATS".to_owned(), "not local");
        let [page, ratio, nats] = &figures.0[..] else { panic!("{figures:?}") };
        assert_eq!(page.summary(), Some((2.0, 1.0, 100.0)));
        assert!(page.text().ends_with("<= 50 PASS"), "{}", page.text());
        assert!(ratio.text().ends_with(">= 0.9 FAIL"), "{}", ratio.text());
        assert_eq!(ratio.json()["met"], false);
        assert!(nats.text().ends_with("not local") && nats.json()["absent"] == "not local");
    }
}
