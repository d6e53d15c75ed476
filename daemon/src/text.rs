//! What commands print.

/// Columns as wide as what stands in them.
pub(crate) fn columns<R: AsRef<[String]>>(rows: &[R]) -> String {
    let count = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.as_ref().get(column)).map(String::len).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let line = |row: &R| {
        let cells = row.as_ref().iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A command's answer.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// A command's reason.
#[expect(clippy::print_stderr, reason = "the command's reason")]
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}
