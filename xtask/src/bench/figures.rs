//! Figures: medians of what was measured, what they must reach, and the table of them all.

use super::ours::Run;

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) name: String,
    /// None if it could not be measured.
    pub(crate) values: Option<Values>,
}

/// What a figure says.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    /// Ours and what it is measured beside, in words.
    pub(crate) ours: String,
    pub(crate) beside: String,
    /// What is compared with the goals.
    pub(crate) score: f64,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
    /// Our peak memory, in bytes, and our CPU seconds.
    pub(crate) peak_memory: u64,
    pub(crate) cpu_seconds: f64,
}

/// What DESIGN 11 asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) must: f64,
    pub(crate) aim: f64,
    /// Whether more is better: of speed, not of seconds.
    pub(crate) more: bool,
}

impl Goal {
    /// At least so many times as fast.
    pub(crate) const fn times(must: f64, aim: f64) -> Goal {
        Goal { must, aim, more: true }
    }

    /// At most so many.
    pub(crate) const fn at_most(must: f64, aim: f64) -> Goal {
        Goal { must, aim, more: false }
    }

    fn verdict(self, score: f64) -> &'static str {
        let reaches = |goal: f64| if self.more { score >= goal } else { score <= goal };
        match (reaches(self.must), reaches(self.aim)) {
            (_, true) => "aim",
            (true, false) => "must",
            (false, false) => "below",
        }
    }
}

impl Figure {
    /// A group of which nothing could be measured.
    pub(crate) fn failed(name: &str) -> Figure {
        Figure { name: name.to_owned(), values: None }
    }

    /// How many times as fast as `beside`, whose rounds took `theirs` seconds.
    pub(crate) fn speed(
        name: String,
        ours: &[Run],
        (beside, theirs): (&str, &[f64]),
        goal: Goal,
    ) -> Figure {
        let seconds = median(ours.iter().map(|run| run.seconds));
        let their_seconds = median(theirs.iter().copied());
        let values = Values {
            ours: format!("{seconds:.2} s"),
            beside: format!("{beside} {their_seconds:.2} s"),
            score: their_seconds / seconds,
            unit: " x",
            goal,
            peak_memory: peak(ours),
            cpu_seconds: median(ours.iter().map(|run| run.cpu_seconds)),
        };
        Figure { name, values: Some(values) }
    }

    /// Our CPU seconds per million rows, beside those of `beside`; `rows` were moved.
    pub(crate) fn cpu(
        name: String,
        rows: u64,
        ours: &[Run],
        (beside, theirs): (&str, &[f64]),
        goal: Goal,
    ) -> Figure {
        let cpu_seconds = median(ours.iter().map(|run| run.cpu_seconds));
        let their_seconds = median(theirs.iter().copied());
        let values = Values {
            ours: format!("{cpu_seconds:.2} s CPU"),
            beside: format!("{beside} {their_seconds:.2} s CPU"),
            score: cpu_seconds * 1e6 / count(rows),
            unit: " s/1M",
            goal,
            peak_memory: peak(ours),
            cpu_seconds,
        };
        Figure { name, values: Some(values) }
    }
}

fn peak(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.peak_memory).max().unwrap_or(0)
}

/// A count as a number to divide by.
pub(crate) fn count(number: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of rows are far below 2^52")]
    {
        number as f64
    }
}

/// The value in the middle, or the mean of the two that are.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The value that `rank` (0 to 1) of all values do not exceed.
pub(crate) fn percentile(values: &mut [f64], rank: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index below the length, which is far below 2^52"
    )]
    let index = (values.len() as f64 * rank).ceil() as usize;
    values[index.clamp(1, values.len()) - 1]
}

/// All figures, in columns as wide as they need.
pub(crate) fn table(figures: &[Figure]) -> String {
    let heading = ["figure", "ours", "beside", "", "must", "aim", "reached", "memory", "CPU"];
    let mut lines = vec![heading.map(str::to_owned)];
    lines.extend(figures.iter().map(cells));
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 9] = std::array::from_fn(width);
    let rows = lines.iter().map(|line| {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    rows.collect::<Vec<_>>().join("\n")
}

fn cells(figure: &Figure) -> [String; 9] {
    let Some(values) = &figure.values else {
        let mut cells: [String; 9] = std::array::from_fn(|_| "-".to_owned());
        cells[0].clone_from(&figure.name);
        cells[1] = "failed, see above".to_owned();
        return cells;
    };
    let bound = |goal: f64| format!("{goal:.2}{}", values.unit);
    [
        figure.name.clone(),
        values.ours.clone(),
        values.beside.clone(),
        format!("{:.2}{}", values.score, values.unit),
        bound(values.goal.must),
        bound(values.goal.aim),
        values.goal.verdict(values.score).to_owned(),
        format!("{} MiB", values.peak_memory >> 20),
        format!("{:.2} s", values.cpu_seconds),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_the_two() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.5), 50.0);
        assert_eq!(percentile(&mut values, 0.99), 99.0);
        assert_eq!(percentile(&mut values, 1.0), 100.0);
        assert_eq!(percentile(&mut [7.0], 0.0), 7.0);
        assert!(percentile(&mut [], 0.5).is_nan());
    }

    #[test]
    fn more_speed_and_fewer_seconds_are_better() {
        assert_eq!(Goal::times(1.6, 2.0).verdict(2.1), "aim");
        assert_eq!(Goal::times(1.6, 2.0).verdict(1.7), "must");
        assert_eq!(Goal::times(1.6, 2.0).verdict(1.5), "below");
        assert_eq!(Goal::at_most(1.0, 0.6).verdict(0.7), "must");
        assert_eq!(Goal::at_most(1.0, 0.6).verdict(f64::NAN), "below");
    }

    #[test]
    fn a_speed_is_their_time_over_ours() {
        let run = |seconds| Run { seconds, cpu_seconds: 1.0, peak_memory: 3 << 20 };
        let ours = [run(2.0), run(1.0), run(4.0)];
        let figure =
            Figure::speed("a".into(), &ours, ("b", &[5.0, 4.0, 4.0]), Goal::times(1.6, 2.0));
        let values = figure.values.as_ref().unwrap();
        assert_eq!((values.score, values.peak_memory), (2.0, 3 << 20));
        let table = table(&[figure, Figure::failed("c")]);
        assert!(table.contains("b 4.00 s") && table.contains("2.00 x"), "{table}");
        assert!(table.lines().last().unwrap().starts_with("c"), "{table}");
    }
}
