//! `${env:NAME}` and `${file:PATH}`: secrets stay out of the file.
//!
//! Replaced in strings after the TOML is parsed, so that no secret can break the file's syntax.

use toml::Value;

/// Why a reference cannot be replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// The variable is not set.
    #[error("{reference}: the environment variable is not set; set it, or write the value here")]
    Env {
        /// As it stands in the file.
        reference: String,
    },
    /// The file cannot be read.
    #[error("{reference}: cannot read the file: {source}")]
    File {
        /// As it stands in the file.
        reference: String,
        /// Why.
        source: std::io::Error,
    },
    /// Neither `env` nor `file`.
    #[error("{reference}: unknown reference; use ${{env:NAME}} or ${{file:PATH}}")]
    Unknown {
        /// As it stands in the file.
        reference: String,
    },
}

/// Replaces every reference in every string of `value`.
pub(crate) fn expand(value: &mut Value) -> Result<(), SecretError> {
    match value {
        Value::String(text) => {
            if text.contains("${") {
                *text = expand_text(text)?;
            }
        }
        Value::Array(values) => values.iter_mut().try_for_each(expand)?,
        Value::Table(table) => table.iter_mut().try_for_each(|(_, value)| expand(value))?,
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
    Ok(())
}

fn expand_text(text: &str) -> Result<String, SecretError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            return Err(SecretError::Unknown { reference: format!("${{{after}") });
        };
        out.push_str(&look_up(name)?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn look_up(name: &str) -> Result<String, SecretError> {
    let reference = format!("${{{name}}}");
    if let Some(variable) = name.strip_prefix("env:") {
        return std::env::var(variable).map_err(|_| SecretError::Env { reference });
    }
    if let Some(path) = name.strip_prefix("file:") {
        return std::fs::read_to_string(path)
            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
            .map_err(|source| SecretError::File { reference, source });
    }
    Err(SecretError::Unknown { reference })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_and_broken_ones_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        let mut value: Value =
            toml::from_str(&format!("url = \"x://u:${{file:{}}}@h\"", file.path().display()))
                .unwrap();
        expand(&mut value).unwrap();
        assert_eq!(value["url"].as_str(), Some("x://u:s3cret@h"));
        for (text, problem) in [
            ("${env:TAILWATER_NO_SUCH}", "not set"),
            ("${file:/no/such/file}", "cannot read"),
            ("${vault:x}", "unknown reference"),
            ("${env:X", "unknown reference"),
        ] {
            let error = expand_text(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
