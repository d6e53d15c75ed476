//! Row messages as parameters and COPY fields, and the words for a row that does not go.

use tailwater_apply::{Change, TargetError};
use tailwater_change::{RowReader, Value};

use super::described::Described;
use super::param::{Param, put_text};
use super::unfit::Unfit;

/// Long keys are cut: a message names a row, it does not hold one.
const KEY_TEXT_BYTES: usize = 120;

/// Reads a row message; columns in `unsent` (field numbers) are marked.
pub(super) fn read<'b>(
    table: &Described,
    row: &'b [u8],
    unsent: &[u32],
    values: &mut Vec<Value<'b>>,
) -> Result<(), TargetError> {
    RowReader::new(&table.schema).read_with_unsent(row, unsent, values).map_err(|error| {
        TargetError::Bug {
            operation: format!("reading a row of {}", table.schema.table),
            detail: error.to_string(),
        }
    })
}

/// The new row of a change that has one.
pub(super) fn after(change: &Change) -> Result<&[u8], TargetError> {
    change.after.as_deref().ok_or_else(|| bug(change, "has no new row"))
}

/// The row message that names the row on the target.
pub(super) fn identity(change: &Change) -> Result<&[u8], TargetError> {
    change.identity().map(AsRef::as_ref).ok_or_else(|| bug(change, "names no row"))
}

fn bug(change: &Change, detail: &str) -> TargetError {
    TargetError::Bug {
        operation: format!("a change of {}", change.table.schema.table),
        detail: format!("the change at {} {detail}", change.place),
    }
}

/// The values of these columns as parameters.
pub(super) fn params<'b>(
    table: &Described,
    columns: &[usize],
    values: &[Value<'b>],
    out: &mut Vec<Param<'b>>,
) -> Result<(), TargetError> {
    for &index in columns {
        let param = Param::new(table.forms[index], &values[index])
            .map_err(|error| unfit(table, index, error, values))?;
        out.push(param);
    }
    Ok(())
}

/// A value that the target cannot hold: nothing heals it, so it stops with the column's name.
pub(super) fn unfit(
    table: &Described,
    index: usize,
    error: Unfit,
    values: &[Value<'_>],
) -> TargetError {
    conflict(
        table,
        values,
        &format!(
            "column {} ({}) got {error}",
            table.schema.columns[index].name,
            table.column(index).native
        ),
    )
}

/// A conflict over the row that `values` names.
pub(super) fn conflict(table: &Described, values: &[Value<'_>], detail: &str) -> TargetError {
    TargetError::Conflict {
        table: table.name.clone(),
        detail: format!("{detail}; {}", key_text(table, values)),
    }
}

/// `key (id, part) = (7, 2)`; where all columns are the identity, only that.
fn key_text(table: &Described, values: &[Value<'_>]) -> String {
    let key = table.schema.key();
    if key.is_empty() {
        return "a table without a key".into();
    }
    let (mut names, mut texts) = (String::new(), String::new());
    for (number, &index) in key.iter().enumerate() {
        if number > 0 {
            names.push_str(", ");
            texts.push_str(", ");
        }
        names.push_str(&table.schema.columns[index].name);
        put_text(&mut texts, &values[index]);
    }
    if texts.len() > KEY_TEXT_BYTES {
        texts.truncate(texts.floor_char_boundary(KEY_TEXT_BYTES));
        texts.push('…');
    }
    format!("key ({names}) = ({texts})")
}
