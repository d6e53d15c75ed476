//! The live table: redrawn in place on a terminal, one line per pipeline and look otherwise.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Looks that the little graph shows.
const GRAPH_LOOKS: usize = 16;
/// Without a terminal, of this many looks one is printed.
const PLAIN_EVERY: u64 = 5;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is shown of one pipeline.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Whether it has streamed long enough that rates and latencies are those of streaming.
    pub(crate) steady: bool,
    pub(crate) state: String,
    /// Rows changed on the source, per second.
    pub(crate) written: f64,
    /// Rows committed on the target, per second.
    pub(crate) applied: f64,
    pub(crate) lag_seconds: Option<f64>,
    /// Commit on the source to commit on the target, in seconds: half of them were faster.
    pub(crate) p50: Option<f64>,
    /// And all but one of a hundred.
    pub(crate) p99: Option<f64>,
    /// Rows committed on the target so far.
    pub(crate) rows: u64,
    /// How often a reader looked for half a transaction on the target, and found none.
    pub(crate) looks: Option<u64>,
    pub(crate) error: Option<String>,
}

/// Where the table is drawn.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    /// Lines of the last drawing, which the next one replaces.
    drawn: usize,
    looks: u64,
    graphs: Vec<VecDeque<f64>>,
}

impl Screen {
    /// A screen on standard output.
    pub(crate) fn new() -> Screen {
        Screen { terminal: io::stdout().is_terminal(), drawn: 0, looks: 0, graphs: Vec::new() }
    }

    /// Shows `rows`, `elapsed` after the start; `end` is when the demo ends by itself.
    pub(crate) fn draw(
        &mut self,
        elapsed: Duration,
        end: Option<Duration>,
        rows: &[Row],
    ) -> io::Result<()> {
        self.graphs.resize(rows.len(), VecDeque::new());
        for (graph, row) in self.graphs.iter_mut().zip(rows) {
            // Beside the first snapshot everything else would look like nothing.
            if row.steady {
                graph.push_back(row.applied);
            }
            if graph.len() > GRAPH_LOOKS {
                graph.pop_front();
            }
        }
        let text = if self.terminal {
            self.table(elapsed, end, rows)
        } else if self.looks.is_multiple_of(PLAIN_EVERY) {
            rows.iter().map(|row| plain(elapsed, row)).collect()
        } else {
            String::new()
        };
        self.looks += 1;
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// The table, with what replaces the last one in front of it. Lines do not wrap: a narrow
    /// window cuts them, and the count of lines stays right.
    fn table(&mut self, elapsed: Duration, end: Option<Duration>, rows: &[Row]) -> String {
        let mut lines = vec![heading(elapsed, end), String::new(), columns()];
        for (row, graph) in rows.iter().zip(&self.graphs) {
            lines.push(line(row, graph));
        }
        for row in rows {
            if let Some(error) = &row.error {
                lines.push(format!("\x1b[31m  {}: {error}\x1b[0m", row.name));
            }
        }
        lines.push(String::new());
        lines.extend(footer(rows));
        let mut text = String::from("\x1b[?7l");
        if self.drawn > 0 {
            write!(text, "\x1b[{}A", self.drawn).expect("a string takes every text");
        }
        for line in &lines {
            write!(text, "\r\x1b[2K{line}\n").expect("a string takes every text");
        }
        text.push_str("\x1b[J\x1b[?7h");
        self.drawn = lines.len();
        text
    }
}

fn heading(elapsed: Duration, end: Option<Duration>) -> String {
    let until = match end {
        Some(end) => format!(" of {}", minutes(end)),
        None => "   Ctrl-C ends it".to_owned(),
    };
    format!("\x1b[1m  {}{until}\x1b[0m", minutes(elapsed))
}

fn columns() -> String {
    format!(
        "\x1b[2m  {:<14} {:<9} {:>8} {:>8}  {:<GRAPH_LOOKS$} {:>7} {:>8} {:>8} {:>10}\x1b[0m",
        "pipeline", "state", "written", "applied", "rows/s", "lag", "p50", "p99", "rows"
    )
}

fn line(row: &Row, graph: &VecDeque<f64>) -> String {
    let state = format!("{}{:<9}\x1b[0m", color(&row.state), row.state);
    let graph = format!("\x1b[36m{:<GRAPH_LOOKS$}\x1b[0m", sparkline(graph));
    format!(
        "  \x1b[1m{:<14}\x1b[0m {state} {:>8} {:>8}  {graph} {:>7} {:>8} {:>8} {:>10}",
        row.name,
        thousands(whole(row.written)),
        thousands(whole(row.applied)),
        lag(row.lag_seconds),
        latency(row.p50),
        latency(row.p99),
        thousands(row.rows),
    )
}

/// What readers of the targets have found: the demo stops at the first half transaction.
fn footer(rows: &[Row]) -> [String; 2] {
    let looks: u64 = rows.iter().filter_map(|row| row.looks).sum();
    let found = format!(
        "  Readers looked {} times if all orders' items add up on the targets: \x1b[32m{}\x1b[0m",
        thousands(looks),
        if looks == 0 { "not yet" } else { "they did" },
    );
    let legend = "\x1b[2m  written, applied: rows/s. p50, p99: commit to commit, last ten seconds \
                  (MariaDB's binlog has no fractions).\x1b[0m";
    [found, legend.to_owned()]
}

fn plain(elapsed: Duration, row: &Row) -> String {
    let error = row.error.as_ref().map(|error| format!(", {error}")).unwrap_or_default();
    format!(
        "{}  {:<15} {:<10} {:>8} rows/s written {:>8} applied, lag {:>7}, p50 {:>7}, p99 {:>7}, {:>10} rows{error}\n",
        minutes(elapsed),
        row.name,
        row.state,
        thousands(whole(row.written)),
        thousands(whole(row.applied)),
        lag(row.lag_seconds),
        latency(row.p50),
        latency(row.p99),
        thousands(row.rows),
    )
}

fn color(state: &str) -> &'static str {
    match state {
        "streaming" => "\x1b[32m",
        "stopped" | "retrying" => "\x1b[31m",
        _ => "\x1b[33m",
    }
}

/// A bar per look, the highest of them full.
fn sparkline(values: &VecDeque<f64>) -> String {
    let highest = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| {
        let step = (1..BARS.len()).rev().find(|step| {
            let step = u32::try_from(*step).map_or(0.0, f64::from);
            highest > 0.0 && *value >= highest * step / 8.0
        });
        BARS[step.unwrap_or(0)]
    };
    values.iter().map(bar).collect()
}

fn lag(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"))
}

/// A latency is a bucket's upper bound, so it is said as one.
fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 1.0 => format!("<{} ms", whole((seconds * 1e3).ceil())),
        Some(seconds) if seconds.is_finite() => format!("<{seconds:.0} s"),
        Some(_) => "minutes".to_owned(),
    }
}

pub(crate) fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

/// A number in groups of three digits.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn whole(number: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate to be shown; what does not fit saturates"
    )]
    {
        number.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_groups_of_three_digits() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }

    #[test]
    fn the_highest_value_has_the_full_bar() {
        assert_eq!(sparkline(&VecDeque::from([0.0, 4.0, 8.0])), "▁▅█");
        assert_eq!(sparkline(&VecDeque::from([0.0, 0.0])), "▁▁");
    }

    #[test]
    fn each_drawing_replaces_as_many_lines_as_the_last_one_had() {
        let mut screen = Screen { terminal: true, drawn: 0, looks: 0, graphs: Vec::new() };
        let rows = [Row { error: Some("gone".to_owned()), ..Row::default() }, Row::default()];
        let first = screen.table(Duration::ZERO, None, &rows);
        let second = screen.table(Duration::ZERO, None, &[Row::default()]);
        let lines = first.matches('\n').count();
        assert!(second.contains(&format!("\x1b[{lines}A")), "{second:?}");
    }

    #[test]
    fn latencies_are_said_as_bounds() {
        assert_eq!(latency(Some(0.0075)), "<8 ms");
        assert_eq!(latency(Some(5.0)), "<5 s");
        assert_eq!(latency(None), "-");
    }
}
